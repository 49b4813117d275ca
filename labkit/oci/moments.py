"""What only Docker and its like ask of a process: further steps, put between those of `launch`.

Who manages containers wants more than a process that starts. It wants moments: one at
which the root is complete and its hooks may run, one at which all is ready and waits
for `start`. And it says in numbers what labkit else finds out by itself. Each of that
is a step like any other, and the lists at the end put them where they belong.
See the runtime specification, "Lifecycle".
"""

import errno
import os
from collections.abc import Callable

from labkit.container.channel import Child, Spawned, Step
from labkit.container.joining import GoOnAsSibling
from labkit.container.launch import ParentStep, at_birth
from labkit.container.steps import (
    BecomeRootInside,
    BecomeUser,
    CgroupNamespace,
    CloseFds,
    DieWithParent,
    Exec,
    FindCommand,
    GoTo,
    HideFromOthers,
    InstallFilter,
    LimitBoundingSet,
    LoopbackUp,
    MakeMounts,
    MakePrivate,
    NewKeyring,
    NewSession,
    NoNewPrivs,
    OpenTerminal,
    PivotRoot,
    ResetSignals,
    SealProgram,
    SetHostName,
    ShiftClocks,
    StandardStreams,
    as_dict,
)
from labkit.ground import proc
from labkit.ground import syscalls as sc
from labkit.ground.dataclass import dataclass, replace
from labkit.ground.errors import KernelError
from labkit.ground.typed import Any
from labkit.isolation import mount_options, mounts, namespaces, security
from labkit.isolation.users import home_of
from labkit.oci import gate, hooks, links, priorities, settings

# ---- while it may still do everything ----


@dataclass(frozen=True)
class ComeToGate(Step):
    """While its pipes can still be reached."""

    folder: str

    def describe(self) -> str:
        return "open the gate's pipes"

    def execute(self, child: Child) -> None:
        child.fds["wait"], child.fds["result"] = gate.come_to(self.folder)


@dataclass(frozen=True)
class OpenHostProc(Step):
    """The container's own /proc may be anything."""

    profile: str

    def describe(self) -> str:
        return "open the host's /proc"

    def execute(self, child: Child) -> None:
        child.fds["proc"] = settings.open_proc(self.profile)


@dataclass(frozen=True)
class JoinPaths(Step):
    """Each by the power that there is for it: the caller's, or a joined user namespace's. See setns(2)."""

    paths: tuple[tuple[str, str], ...]  # (kind, path)

    def describe(self) -> list[str]:
        return [f"setns: join the {kind} namespace {path}" for kind, path in self.paths]

    def execute(self, child: Child) -> None:
        # Mounts last: the paths are those of the mounts here.
        others = [pair for pair in sorted(self.paths, key=lambda pair: pair[0] == "mnt") if pair[0] != "user"]
        for kind, path in self.paths:
            if kind == "user":
                # Who is in there has no more power over what is not its own.
                others = [pair for pair in others if pair[0] == "mnt" or not _joined(*pair)]
                namespaces.join(path, kind)
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
        for kind, path in others:
            namespaces.join(path, kind)


def _joined(kind: str, path: str) -> bool:
    try:
        namespaces.join(path, kind)
    except KernelError as error:
        if error.errno != errno.EPERM:
            raise
        return False
    return True


@dataclass(frozen=True)
class GoOnInNew(GoOnAsSibling):
    """One that is made comes last, with this clone: it takes the power over those joined. See user_namespaces(7)."""

    map_ids: ParentStep | None = None

    def answer(self, spawned: Spawned, value: object, fds: list[int]) -> bool:
        known = super().answer(spawned, value, fds)
        if known and self.map_ids:
            self.map_ids.execute(spawned.pid)
        return known


@dataclass(frozen=True)
class SetDomainName(Step):
    """Beside the host's name, of the same namespace."""

    name: str

    def describe(self) -> str:
        return f"setdomainname {self.name}"

    def execute(self, child: Child) -> None:
        sc.setdomainname(self.name)


# ---- around its root ----


@dataclass(frozen=True)
class LetThrough(Step):
    """Mounts stay shared with, or slaves of, the parent's, so that a bind of one can be; but not those at the root."""

    kind: int  # MS_…
    root: str

    def describe(self) -> str:
        return "leave the mounts in their peer groups"

    def execute(self, child: Child) -> None:
        if self.kind != sc.MS_SHARED:
            alone = self.kind in (sc.MS_PRIVATE, sc.MS_UNBINDABLE)
            sc.mount(None, "/", None, sc.MS_REC | (sc.MS_PRIVATE if alone else sc.MS_SLAVE))
        # pivot_root(2) refuses a shared parent, and what is mounted on one would show up on the host.
        path = self.root + "/"
        above = [mount.target for mount in proc.mounts() if path.startswith(mount.target.rstrip("/") + "/")]
        sc.mount(None, max(above, key=len), None, sc.MS_PRIVATE)


@dataclass(frozen=True)
class PassOn(Step):
    """How the new root passes mounts on."""

    kind: int  # MS_…
    whole: bool  # the whole tree

    def describe(self) -> str:
        return "set the propagation of /"

    def execute(self, child: Child) -> None:
        sc.mount(None, "/", None, self.kind | (sc.MS_REC if self.whole else 0))


@dataclass(frozen=True)
class MakeMore(MakeMounts):
    """What comes in a root that is there."""

    def describe(self) -> list[str]:
        return self.plan.describe()[1:]

    def execute(self, child: Child) -> None:
        self.plan.go_on(child.root)


@dataclass(frozen=True)
class MountUnderIds(Step):
    """Its source, some mount before it, only this process can see; power over the filesystem only its parent has.

    See open_tree(2), mount_setattr(2).
    """

    waits = True

    mount: mount_options.Mount
    number: int

    @property
    def says(self) -> str:  # type: ignore[override]  # of each such step its own
        """Return the kind of its message."""
        return f"translate {self.number}"

    def describe(self) -> str:
        return self.mount.describe()

    def execute(self, child: Child) -> None:
        tree = replace(self.mount, id_maps=None).bound(child.root)
        child.say(self.says, fds=[tree])
        child.await_go()
        replace(self.mount, tree=tree).execute(child.root)

    def answer(self, spawned: Spawned, value: object, fds: list[int]) -> bool:
        if len(fds) != 1:
            return False
        try:
            self.mount.translate(fds[0])
        finally:
            os.close(fds[0])
        return True


@dataclass(frozen=True)
class MoveLinks(Step):
    """Its parent can see them: they are the host's."""

    says = "links"
    waits = True

    devices: dict[str, Any]  # linux.netDevices

    def describe(self) -> str:
        return f"move the links {', '.join(self.devices)} into this network namespace"

    def execute(self, child: Child) -> None:
        child.ask("links")

    def answer(self, spawned: Spawned, value: object, fds: list[int]) -> bool:
        links.move(self.devices, spawned.pid)
        return True


@dataclass(frozen=True)
class HooksOnHost(Step):
    """The root is complete, the host's files are still there: its parent runs programs on the host."""

    says = "hooks"
    waits = True

    run: Callable[[int], None]  # called with the pid

    def describe(self) -> str:
        return "hooks " + " and ".join(hooks.ON_CREATE)

    def execute(self, child: Child) -> None:
        child.ask("hooks")

    def answer(self, spawned: Spawned, value: object, fds: list[int]) -> bool:
        self.run(spawned.pid)
        return True


@dataclass(frozen=True)
class HooksInside(Step):
    """Programs that run in the container's own namespaces."""

    hooks: tuple[hooks.Hook, ...]
    when: str
    state: dict[str, Any]
    env: tuple[str, ...] | None = None  # of the program, for hooks without their own
    filters: tuple["InstallFilterOfConfig", ...] = ()  # that the program gets after them: a hook may be the image's

    def describe(self) -> str:
        return f"hooks {self.when}"

    def execute(self, child: Child) -> None:
        env = None if self.env is None else as_dict(self.env, child.home)

        def lock() -> None:
            for step in self.filters:
                step.execute(child)

        hooks.run(self.hooks, [self.when], {**self.state, "pid": os.getpid()}, env, lock if self.filters else None)


# ---- who it is ----


@dataclass(frozen=True)
class BeNumbers(Step):
    """Numbers as they are given: the image's files are not asked."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    def describe(self) -> str:
        return f"user {self.uid}:{self.gid}, whatever /etc/passwd says"

    def execute(self, child: Child) -> None:
        child.uid, child.gid, child.groups, child.home = self.uid, self.gid, self.groups, home_of(self.uid)


@dataclass(frozen=True)
class AskForRlimits(Step):
    """Only who has CAP_SYS_RESOURCE outside may raise a hard limit."""

    says = "rlimits"
    waits = True

    rlimits: tuple[tuple[str, int, int], ...]

    def describe(self) -> list[str]:
        return [f"{name} {soft}:{hard}" for name, soft, hard in self.rlimits]

    def execute(self, child: Child) -> None:
        child.ask("rlimits")

    def answer(self, spawned: Spawned, value: object, fds: list[int]) -> bool:
        settings.set_rlimits(spawned.pid, self.rlimits)
        return True


@dataclass(frozen=True)
class TakePriorities(Step):
    """While it has the power to: its user may not go before others. See sched(7)."""

    scheduler: bytes | None
    io: int | None
    memory: tuple[int, int] | None

    def describe(self) -> str:
        return "scheduling policy, I/O priority, memory policy"

    def execute(self, child: Child) -> None:
        priorities.take_on(self.scheduler, self.io, self.memory)


@dataclass(frozen=True)
class CloseOthersFds(CloseFds):
    """And at once: a pipe that its caller had open would not end before `start`, which may never come."""

    def execute(self, child: Child) -> None:
        super().execute(child)
        last = 2 + self.keep
        for fd in (*sorted({child.channel.fileno(), *child.fds.values()}), 2**32 - 1):
            if fd > last + 1:
                sc.close_range(last + 1, fd - 1)
            last = fd


EVERY_CPU = tuple(range(1024))


@dataclass(frozen=True)
class TakeCpus(Step):
    """Its cpuset's, of those; what its caller was bound to is not the container's. See sched_setaffinity(2)."""

    cpus: tuple[int, ...] = EVERY_CPU

    def describe(self) -> str:
        return f"CPUs {self.cpus[0]} to {self.cpus[-1]}"

    def execute(self, child: Child) -> None:
        os.sched_setaffinity(0, self.cpus)


@dataclass(frozen=True)
class TakePersonality(Step):
    """Before a filter that may forbid it."""

    number: int

    def describe(self) -> str:
        return f"personality {self.number:#x}"

    def execute(self, child: Child) -> None:
        sc.personality(self.number)


@dataclass(frozen=True)
class InstallFilterOfConfig(InstallFilter):
    """With a listener, the fd behind which somebody else answers syscalls: its parent hands it on. See seccomp(2)."""

    says = "listener"
    waits = True

    flags: int = 0
    at_listener: Callable[[int, int], None] | None = None  # takes the pid and the fd

    def execute(self, child: Child) -> None:
        listens = sc.SECCOMP_FILTER_FLAG_NEW_LISTENER if self.at_listener else 0
        fd = sc.seccomp(sc.SECCOMP_SET_MODE_FILTER, self.flags | listens, self.program)
        if listens:
            child.say("listener", fds=[fd])
            child.await_go()
            os.close(fd)

    def answer(self, spawned: Spawned, value: object, fds: list[int]) -> bool:
        if not self.at_listener or len(fds) != 1:
            return False
        try:
            self.at_listener(spawned.pid, fds[0])
        finally:
            os.close(fds[0])
        return True


@dataclass(frozen=True)
class SetPower(Step):
    """The capability sets one by one."""

    sets: security.Sets

    def describe(self) -> str:
        return "capset: " + " ".join(self.sets.effective or ("none",))

    def execute(self, child: Child) -> None:
        security.set_sets(self.sets)


# ---- ready, and started ----


@dataclass(frozen=True)
class WaitAtGate(Step):
    """Created: its parent has what it wanted. What goes wrong from here on is told to who opens the gate."""

    says = "created"
    last = True

    def describe(self) -> str:
        return "wait at the gate until `start`"

    def execute(self, child: Child) -> None:
        child.say("created")
        child.report_to = child.fds["result"]
        gate.wait(child.fds["wait"])

    def answer(self, spawned: Spawned, value: object, fds: list[int]) -> bool:
        return True


@dataclass(frozen=True)
class TakeProfile(Step):
    """AppArmor's, at the next exec. See apparmor(7)."""

    profile: str

    def describe(self) -> str:
        return f"AppArmor: {self.profile}"

    def execute(self, child: Child) -> None:
        settings.apparmor_on_exec(child.fds["proc"], self.profile)


# ---- what the parent does ----


@dataclass(frozen=True)
class Call:
    """Something that the runtime does with the process's number."""

    text: str
    function: Callable[[int], None]

    def describe(self) -> str:
        return self.text

    def execute(self, pid: int) -> None:
        self.function(pid)


def oom_score(words: dict[str, Any]) -> tuple[ParentStep, ...]:
    """Return the step that says how soon a process is killed when memory is short."""
    number = words["settings"].oom_score_adj
    if number is None:
        return ()
    return (Call(f"oom_score_adj {number}", lambda pid: settings.set_oom_score_adj(pid, number)),)


# ---- the order ----


def before_the_gate(filters: tuple[InstallFilterOfConfig, ...]) -> bool:
    """Tell whether filters must be there when it is created: who hands a listener on is not there later."""
    return any(step.at_listener for step in filters)


def _mounted(plan: mounts.Plan, alone: bool) -> tuple[Step, ...]:
    """Return the steps that make a plan. `alone`: its process has no power over the host's filesystems."""
    steps: list[Step] = []
    some: list[mounts.MountStep] = []
    for step in plan.steps:
        if alone and isinstance(step, mount_options.Mount) and step.inside and step.id_maps:
            steps += [MakeMore(replace(plan, steps=tuple(some))), MountUnderIds(step, len(steps))]
            some = []
        else:
            some.append(step)
    steps.append(MakeMore(replace(plan, steps=tuple(some))))
    first = MakeMounts(steps[0].plan) if isinstance(steps[0], MakeMounts) else steps[0]
    return (first, *steps[1:])


def furnish(
    plan: mounts.Plan,
    made: tuple[str, ...],
    *,
    paths: tuple[tuple[str, str], ...],
    clocks: tuple[int, int, tuple[int, int]],
    names: tuple[str | None, str | None],
    map_ids: ParentStep | None,
    spread: tuple[int, bool] | None,
    at_root: tuple[Step, ...],
) -> tuple[Step, ...]:
    """Return the steps of the first process up to its own root.

    `paths` are (kind, path) of namespaces that are joined and not made, `names` the
    host's and the domain's, `at_root` what is done before pivot_root.
    """
    inside = [BecomeRootInside()] if "user" in made else []
    shift = [ShiftClocks(*clocks)] if "time" in made else []
    host, domain = names
    return (
        *([] if paths else [*shift, *inside]),
        HideFromOthers(),
        *([JoinPaths(paths), GoOnInNew(at_birth(made), map_ids), *inside, HideFromOthers()] if paths else []),
        NewSession(),
        *([CgroupNamespace()] if "cgroup" in made else []),
        *([SetHostName(host)] if host else []),
        *([SetDomainName(domain)] if domain else []),
        *([LoopbackUp()] if "net" in made else []),
        *(shift if paths else []),
        LetThrough(spread[0], plan.root.target) if spread else MakePrivate(),
        *_mounted(plan, alone="user" in (*made, *dict(paths))),
        *at_root,
        PivotRoot(),
        *([PassOn(*spread)] if spread else []),
    )


def inside(
    words: dict[str, Any],
    *,
    console: bool,
    keep_fds: int,
    survives: bool,
    new_keyring: bool = True,
    ready: tuple[Step, ...] = (),
) -> tuple[Step, ...]:
    """Return the steps of a process that is inside, down to its command. `words` are those of `bundle.process_words`.

    `ready` is done when all is ready but the exec.
    """
    wanted, power, argv, env = words["settings"], words["power"], words["argv"], words["env"]
    filters, locked = words["filters"], words["no_new_privs"]
    early = before_the_gate(filters)
    uid, gid, groups = words["ids"]
    return (
        BeNumbers(uid, gid, groups),
        *(
            [OpenTerminal(console, words["console_size"], returns=survives or os.isatty(1))]
            if words["terminal"]
            else []
        ),
        StandardStreams(files=False),
        GoTo(words["cwd"], makes=console),  # the first process's only
        *([NewKeyring()] if new_keyring else []),
        CloseOthersFds(keep_fds),
        *([AskForRlimits(wanted.rlimits)] if wanted.rlimits else []),
        *([TakePriorities(*words["priorities"])] if any(one is not None for one in words["priorities"]) else []),
        *([] if wanted.personality is None else [TakePersonality(wanted.personality)]),
        # Without no_new_privs only CAP_SYS_ADMIN may install a filter: while it is there.
        *(() if locked else filters),
        LimitBoundingSet(power.bounding),
        BecomeUser(f"{uid}:{gid}", keep_capabilities=True),
        SetPower(power),
        *([NoNewPrivs()] if locked else []),
        *(filters if locked and early else ()),
        ResetSignals(wanted.umask),
        *([] if survives else [DieWithParent()]),
        FindCommand(argv[0], env),
        *ready,
        *([TakeProfile(wanted.apparmor)] if wanted.apparmor else []),
        SealProgram(keep_fds),
        *(filters if locked and not early else ()),
        Exec(argv, env),
    )
