"""From clone to exec: what is done so that a process becomes the container.

The parent has cloned it into new namespaces; it runs labkit's code, with root's
power, and sees the host's files. Step by step it gives that up, and the last step
replaces it with the container's own program. The order is the lock:

    session, cgroup namespace, host name, loopback     while it may still do so
    the mount plan and pivot_root                      the host's files are gone
    terminal or pipes                                  its only way to the outside
    keyring, bounding set, user, capabilities          power, from the outside in
    no_new_privs, seccomp                              none of it comes back
    a sealed program, then exec

A Job is this way as a list of steps, plain data that can be sent to who clones. The
list is what is printed (`lab run --explain`), and it is what is done. Who wants a
process made in some other way (Docker's runtime, the museum) puts other steps in.
Whatever fails goes back to the parent as a LabError with the step's name, and the
child is gone.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from types import UnionType

from labkit.container.channel import Child, Step
from labkit.container.entry import Entry
from labkit.container.steps import (
    BecomeRootInside,
    BecomeUser,
    CgroupNamespace,
    CloseFds,
    DieWithParent,
    Exec,
    FindCommand,
    FindUser,
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
    SetCapabilities,
    SetHostName,
    ShiftClocks,
    StandardStreams,
    WriteSysctls,
)
from labkit.ground import syscalls as sc
from labkit.ground.dataclass import dataclass, replace
from labkit.ground.errors import KernelError, LabError, from_oserror
from labkit.ground.typed import NoReturn, Protocol
from labkit.isolation import idmap, mounts, namespaces


class ParentStep(Protocol):
    """One thing that only the parent can do for the child, which waits for its `go`."""

    def describe(self) -> str | list[str]:
        """Return what it does, in a line or several."""

    def execute(self, pid: int) -> int | None:
        """Do it for the process `pid`; return an fd that goes to it with the `go`, or None."""


@dataclass(frozen=True)
class Job:
    """One process to be started: what it is cloned into, what is done for it, and its own steps."""

    steps: tuple[Step, ...]
    namespaces: tuple[str, ...] = ()  # made by the clone
    entry: Entry = Entry()
    parent: tuple[ParentStep, ...] = ()
    sources_first: bool = False  # in a user namespace of its own it has no power over the folders of binds

    def describe(self) -> list[str]:
        """Return one line for everything that will happen, in the order it happens."""
        return [
            *(["take the sources of all binds, by the power that the parent has"] if self.sources_first else []),
            *(f"new namespace, {kind}: {namespaces.KINDS[kind][1]}" for kind in self.namespaces),
            *(["born in its cgroup"] if self.entry.v2 else []),
            *(line for done in self.parent for line in _lines(done)),
            *(line for step in (self.entry, *self.steps) for line in _lines(step)),
        ]

    def clone(self) -> tuple[int, int | None]:
        """Clone the calling process; return (pid, pidfd), or (0, None) in the child. See clone3(2)."""
        with self.entry.birthplace() as into:
            return sc.clone3(namespaces.flags(self.namespaces) | sc.CLONE_PIDFD, signal.SIGCHLD, into)

    @contextlib.contextmanager
    def gathered(self) -> Iterator["Job"]:
        """Yield the job, with the sources of its binds taken if that must be done by the parent."""
        with contextlib.ExitStack() as stack:
            steps = [
                replace(step, plan=stack.enter_context(step.plan.gathered()))
                if self.sources_first and isinstance(step, MakeMounts)
                else step
                for step in self.steps
            ]
            yield replace(self, steps=tuple(steps))


def _lines(step: Step | ParentStep) -> list[str]:
    said = step.describe()
    return [said] if isinstance(said, str) else said


# ---- the order ----


def at_birth(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Return the kinds of namespace that the clone makes; for the two others it is too early."""
    return tuple(kind for kind in kinds if kind not in ("cgroup", "time"))


def furnish(
    plan: mounts.Plan,
    kinds: tuple[str, ...],
    hostname: str | None = None,
    clocks: tuple[int, int] = (0, 0),
    sysctls: tuple[tuple[str, str], ...] = (),
) -> tuple[Step, ...]:
    """Return the steps of a container's first process up to its own root. `clocks` are offsets in seconds."""
    return (
        *([ShiftClocks(*clocks)] if "time" in kinds else []),
        *([BecomeRootInside()] if "user" in kinds else []),
        HideFromOthers(),
        NewSession(),
        *([CgroupNamespace()] if "cgroup" in kinds else []),
        *([SetHostName(hostname)] if hostname else []),
        *([LoopbackUp()] if "net" in kinds else []),
        MakePrivate(),
        MakeMounts(plan),
        *([WriteSysctls(sysctls)] if sysctls else []),
        PivotRoot(),
    )


def inside(
    argv: tuple[str, ...],
    env: tuple[str, ...] = (),
    cwd: str = "/",
    user: str = "0",
    capabilities: tuple[str, ...] = (),
    terminal: OpenTerminal | None = None,
    filters: tuple[InstallFilter, ...] = (),
) -> tuple[Step, ...]:
    """Return the steps of a process that is inside: down to its command.

    `env` are "NAME=value", `user` is a uid, name, uid:gid or name:group of the image's own.
    """
    return (
        FindUser(user),
        *([terminal] if terminal else []),
        StandardStreams(),
        GoTo(cwd),
        NewKeyring(),
        CloseFds(),
        LimitBoundingSet(capabilities),
        BecomeUser(user),
        SetCapabilities(capabilities),
        NoNewPrivs(),
        ResetSignals(),
        DieWithParent(),
        FindCommand(argv[0], env),
        SealProgram(),
        *filters,
        Exec(argv, env),
    )


def instead(steps: tuple[Step, ...], kind: type[Step] | UnionType, *new: Step) -> tuple[Step, ...]:
    """Return the steps with `new` in the place of each that is of a kind; without `new` it is left out."""
    return tuple(one for step in steps for one in (new if isinstance(step, kind) else (step,)))


def before(steps: tuple[Step, ...], kind: type[Step] | UnionType, *new: Step) -> tuple[Step, ...]:
    """Return the steps with `new` before each that is of a kind."""
    return tuple(one for step in steps for one in ((*new, step) if isinstance(step, kind) else (step,)))


# ---- what only the parent can do ----


@dataclass(frozen=True)
class MapIds:
    """Whose numbers are whose: (first inside, first outside, how many)."""

    uid_map: tuple[tuple[int, int, int], ...]
    gid_map: tuple[tuple[int, int, int], ...]

    def describe(self) -> str:
        return "uid_map: " + ", ".join(f"{a} to {a + n - 1} are {b} to {b + n - 1} outside" for a, b, n in self.uid_map)

    def execute(self, pid: int) -> None:
        namespaces.map_ids(pid, self.uid_map, self.gid_map)


@dataclass(frozen=True)
class HandOverRoot:
    """After the ids are mapped: it shows the files under them."""

    root: mounts.Root

    def describe(self) -> str:
        return "hand over the root, its files under the container's ids"

    def execute(self, pid: int) -> int:
        return idmap.root(self.root, pid)


# ---- done ----


def become(job: Job, channel: socket.socket, stdio: Sequence[int]) -> NoReturn:
    """Turn the calling process, fresh from clone3, into the job's program. Never returns."""
    child = Child(channel, stdio, channel.fileno())
    try:
        child.handed = child.await_go()
        for step in (job.entry, *job.steps):
            _do(step, child)
    except LabError as error:
        child.report(error)
    except OSError as error:
        child.report(from_oserror(error, "setting up the container"))
    except BaseException as error:  # noqa: BLE001 - a bug in labkit must be seen too
        child.report(LabError(f"labkit itself failed while setting up: {error!r}"))
    finally:
        os._exit(1)


def _do(step: Step, child: Child) -> None:
    try:
        step.execute(child)
    except KernelError as error:
        if isinstance(said := step.describe(), str):  # one of several lines names itself
            error.message = f"can't {said}: {error.message}"
        raise
