"""A container with some of its locks left off, to see what each of them holds.

A lock is a step of `launch`, or the way in which one is done. So a container without
it is made by another list of steps: here they are taken out, or weaker ones put in
their place. labkit itself has no switch for it, and neither has the `lab` command.
Only for a container of one's own, on a machine of one's own.
"""

import contextlib
import os
from collections.abc import Callable, Iterable
from types import UnionType
from typing import Any

from labkit.container.channel import Child, Step
from labkit.container.joining import LeavePowerOutside
from labkit.container.launch import Job, before, instead
from labkit.container.life import Container
from labkit.container.steps import (
    CloseFds,
    Exec,
    InstallFilter,
    LimitBoundingSet,
    MakeMounts,
    MakePrivate,
    NewKeyring,
    NewSession,
    NoNewPrivs,
    OpenTerminal,
    PivotRoot,
    SealProgram,
    StandardStreams,
    WriteSysctls,
)
from labkit.ground import syscalls as sc
from labkit.ground.dataclass import dataclass, replace
from labkit.ground.errors import BadValue
from labkit.isolation import mounts
from labkit.isolation.inroot import open_in_root

# Each lock, and what it is that holds while it is on.
LOCKS = {
    "pivot_root": "the old root is unmounted, not only hidden behind a chroot",
    "private": "no mount of the host follows into the container, and none of its own out",
    "in_root": "a mount's target is walked inside the root, whatever the image's links say",
    "nodev": "a device node opens no device, whoever made it",
    "devices": "the cgroup opens no device but eleven harmless ones",
    "mask_source": "what covers a masked file is the host's /dev/null, whatever the container's has become",
    "masks_first": "masks and read-only files are in place before anything else in the root is opened",
    "terminal_fd": "what is bound to /dev/console is the terminal that labkit opened, whatever its name leads to now",
    "proc_itself": "a file of /proc that labkit writes is that file, whatever was mounted over it",
    "masks": "files of /proc and /sys that tell too much are covered",
    "read_only": "files of /proc that change the whole machine can't be written",
    "cgroup_read_only": "a container can't write its own limits",
    "cgroup_namespace": "a container sees no cgroup above its own",
    "pid_namespace": "the host's processes have no number in the container",
    "session": "a container is not in the session of a terminal of the host",
    "keyring": "a container has a session keyring of its own",
    "capabilities": "root inside has some fourteen of root's forty-one powers",
    "no_new_privs": "no setuid program gives power back",
    "seccomp": "some syscalls can't be made at all",
    "close_fds": "no open file of the host is handed down",
    "exe": "/proc/self/exe never leads to a program of the host",
}


class Unlocked(Container):
    """A Container without the locks that are named by `unlocked`. Raises BadValue for one that is not in LOCKS."""

    def __init__(
        self, image: str = "busybox", command: Iterable[Any] = (), *, unlocked: Iterable[str] = (), **words: Any
    ) -> None:
        self.unlocked = (unlocked,) if isinstance(unlocked, str) else tuple(unlocked)
        for name in self.unlocked:
            if name not in LOCKS:
                raise BadValue(f"there is no lock {name!r}", "the locks: " + ", ".join(LOCKS))
        if "capabilities" in self.unlocked:
            words["cap_add"] = (*words.get("cap_add", ()), "ALL")
        if "seccomp" in self.unlocked:
            words["security_opt"] = ("seccomp=unconfined",)
        super().__init__(image, command, **words)
        kinds = tuple(kind for kind in self.spec.namespaces if f"{kind}_namespace" not in self.unlocked)
        self.spec = replace(self.spec, namespaces=kinds)

    def altered(self, job: Job) -> Job:
        """Return the job with other steps in the place of its locks."""
        steps = job.steps
        for name in self.unlocked:
            steps = OTHERWISE.get(name, lambda same: same)(steps)
        return replace(job, steps=(*steps[:-1], *map(LeftOff, self.unlocked), steps[-1]))

    def _shut_devices(self) -> None:
        if "devices" not in self.unlocked:
            super()._shut_devices()


# ---- steps that hold less ----


@dataclass(frozen=True)
class LeftOff(Step):
    """Nothing is done; it is said."""

    lock: str

    def describe(self) -> str:
        return f"LEFT OFF: {self.lock}, so it is not true that {LOCKS[self.lock]}"

    def execute(self, child: Child) -> None:
        pass


@dataclass(frozen=True)
class Chroot(Step):
    """In the place of pivot_root."""

    def describe(self) -> str:
        return "chroot only: the old root stays mounted"

    def execute(self, child: Child) -> None:
        os.fchdir(child.root)
        os.chroot(".")
        os.close(child.root)


@dataclass(frozen=True)
class BindByPath:
    """A bind whose target is a path of text, which links lead wherever they like."""

    source: str
    target: str

    def describe(self) -> str:
        return f"bind {self.source} to {self.target}, wherever that leads"

    def execute(self, root: int) -> None:
        path = os.readlink(f"/proc/self/fd/{root}") + self.target
        with contextlib.suppress(FileExistsError):
            os.makedirs(path) if os.path.isdir(self.source) else open(path, "x").close()
        sc.mount(self.source, path, None, sc.MS_BIND | sc.MS_REC)


@dataclass(frozen=True)
class MaskFromInside(mounts.Mask):
    """A mask made of whatever lies at /dev/null in the container's root."""

    def execute(self, root: int) -> None:
        cover = open_in_root(root, "/dev/null")
        try:
            tree = mounts.clone_tree("", cover, recursive=False)
        finally:
            os.close(cover)
        mounts.Bind("/dev/null", self.target, tree=tree).execute(root)


@dataclass(frozen=True)
class SwapNull:
    """What another container in the same root does in the right moment: /dev/null becomes a link."""

    text: str

    def describe(self) -> str:
        return f"ATTACK: /dev/null becomes a link to {self.text}"

    def execute(self, root: int) -> None:
        device = os.readlink(f"/proc/self/fd/{root}") + "/dev/null"
        sc.umount2(device)
        os.unlink(device)
        os.symlink(self.text, device)


@dataclass(frozen=True)
class LateLocks(Step):
    """Masks and read-only files, put in place when the container's own files were used already."""

    locks: tuple[mounts.MountStep, ...]

    def describe(self) -> list[str]:
        return [lock.describe() for lock in self.locks]

    def execute(self, child: Child) -> None:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for lock in self.locks:
            lock.execute(root)
        os.close(root)


@dataclass(frozen=True)
class TerminalByName(OpenTerminal):
    """A terminal that goes to /dev/console by its name: the first of a new devpts is 0."""

    def execute(self, child: Child) -> None:
        OpenTerminal(False, self.size, self.returns).execute(child)
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mounts.Bind("/dev/pts/0", "/dev/console", recursive=False).execute(root)
        os.close(root)


@dataclass(frozen=True)
class SwapTerminal(Step):
    """What another container in the same root does in the right moment: the terminal's name becomes a link."""

    text: str

    def describe(self) -> str:
        return f"ATTACK: /dev/pts/0 becomes a link to {self.text}"

    def execute(self, child: Child) -> None:
        os.mkdir("/dev/moved")
        sc.move_mount(sc.AT_FDCWD, "/dev/pts", sc.AT_FDCWD, "/dev/moved", 0)
        os.unlink("/dev/ptmx")
        os.symlink("moved/ptmx", "/dev/ptmx")
        os.symlink(self.text, "/dev/pts/0")


@dataclass(frozen=True)
class SysctlsByPath(WriteSysctls):
    """Sysctls written to whatever lies at their paths."""

    def execute(self, child: Child) -> None:
        for name, value in self.sysctls:
            with open("/proc/sys/" + name.replace(".", "/"), "w") as file:
                file.write(value)


@dataclass(frozen=True)
class CoverSysctl(Step):
    """What a process that shares these mounts does in the right moment: another file lies over a sysctl."""

    name: str
    other: str

    def describe(self) -> str:
        return f"ATTACK: {self.other} is mounted over {self.name}"

    def execute(self, child: Child) -> None:
        sc.mount(self.other, self.name, None, sc.MS_BIND)


@dataclass(frozen=True)
class PlainExec(Exec):
    """The host's own program executes the container's: /proc/self/exe leads to it until then."""

    def execute(self, child: Child) -> None:
        self.replace_process(child.path, list(self.argv), child)


# ---- lock: the list of steps without it ----


def _filter_early(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Without no_new_privs only CAP_SYS_ADMIN may install a filter: while it is there."""
    filters = tuple(step for step in steps if isinstance(step, InstallFilter))
    steps = instead(instead(steps, NoNewPrivs), InstallFilter)
    steps = tuple(
        replace(step, needed=(*step.needed, "SYS_ADMIN")) if filters and isinstance(step, LeavePowerOutside) else step
        for step in steps
    )
    return before(steps, LimitBoundingSet, *filters)


def _plain_exec(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    last = steps[-1]
    assert isinstance(last, Exec)
    return (*instead(steps[:-1], SealProgram), PlainExec(last.argv, last.env))


def _masks_last(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """With the masks after the terminal: before the streams, the next step."""
    plans = [step.plan for step in steps if isinstance(step, MakeMounts)]
    late = tuple(one for plan in plans for one in plan.steps if isinstance(one, mounts.Mask | mounts.ReadOnly))
    return before(_mounts(_no_kind(mounts.Mask | mounts.ReadOnly))(steps), StandardStreams, LateLocks(late))


def _changed(kind: type[Step], change: Callable[[Any], Step]) -> Callable[[tuple[Step, ...]], tuple[Step, ...]]:
    return lambda steps: tuple(change(step) if isinstance(step, kind) else step for step in steps)


def _without(kind: type[Step], *new: Step) -> Callable[[tuple[Step, ...]], tuple[Step, ...]]:
    return lambda steps: instead(steps, kind, *new)


def _mounts(change: Callable[[Any], Any]) -> Callable[[tuple[Step, ...]], tuple[Step, ...]]:
    """Return what changes each mount step, the root among them; a step that is None then is left out."""

    def other(plan: mounts.Plan) -> mounts.Plan:
        found = tuple(new for step in plan.steps if (new := change(step)) is not None)
        return replace(plan, root=change(plan.root), steps=found)

    return lambda steps: _with_plan(steps, other)


def _with_plan(steps: tuple[Step, ...], other: Callable[[mounts.Plan], mounts.Plan]) -> tuple[Step, ...]:
    """Return the steps with another plan of mounts."""
    return tuple(MakeMounts(other(step.plan)) if isinstance(step, MakeMounts) else step for step in steps)


def swapped_null(steps: tuple[Step, ...], text: str) -> tuple[Step, ...]:
    """Return the steps with /dev/null swapped for a link after all mounts, before the first mask."""

    def other(plan: mounts.Plan) -> mounts.Plan:
        first = next((at for at, one in enumerate(plan.steps) if isinstance(one, mounts.Mask)), None)
        if first is None:
            return plan
        return replace(plan, steps=(*plan.steps[:first], SwapNull(text), *plan.steps[first:]))

    return _with_plan(steps, other)


def _no_kind(kind: type | UnionType) -> Callable[[Any], Any]:
    return lambda step: None if isinstance(step, kind) else step


def _devices_open(step: Any) -> Any:
    root = isinstance(step, mounts.Overlay | mounts.BindRoot)
    return replace(step, attrs=step.attrs & ~mounts.NODEV) if root else step


def _cgroups_writable(step: Any) -> Any:
    cgroup = isinstance(step, mounts.Filesystem) and step.kind.startswith("cgroup")
    return replace(step, attrs=step.attrs & ~mounts.RDONLY) if cgroup else step


def _mask_from_inside(step: Any) -> Any:
    return MaskFromInside(step.target) if step == mounts.Mask("/proc/interrupts") else step


def _by_path(step: Any) -> Any:
    return BindByPath(step.source, step.target) if isinstance(step, mounts.Bind) else step


OTHERWISE: dict[str, Callable[[tuple[Step, ...]], tuple[Step, ...]]] = {
    "pivot_root": _without(PivotRoot, Chroot()),
    "private": _without(MakePrivate),
    "in_root": _mounts(_by_path),
    "nodev": _mounts(_devices_open),
    "mask_source": _mounts(_mask_from_inside),
    "masks_first": _masks_last,
    "terminal_fd": _changed(OpenTerminal, lambda step: TerminalByName(step.console, step.size, step.returns)),
    "proc_itself": _changed(WriteSysctls, lambda step: SysctlsByPath(step.sysctls)),
    "masks": _mounts(_no_kind(mounts.Mask)),
    "read_only": _mounts(_no_kind(mounts.ReadOnly)),
    "cgroup_read_only": _mounts(_cgroups_writable),
    "session": _without(NewSession),
    "keyring": _without(NewKeyring),
    "capabilities": _without(LeavePowerOutside),
    "no_new_privs": _filter_early,
    "close_fds": _without(CloseFds),
    "exe": _plain_exec,
}
