"""Into a container that runs: the steps of a further command, up to where it is inside.

setns(2) is not enough for a pid namespace. It takes children only, so the process
clones once more and goes on as its own sibling.
See setns(2), pid_namespaces(7).
"""

import contextlib
import os

from labkit.container.channel import Child, Spawned, Step
from labkit.container.steps import BecomeRootInside, HideFromOthers, NewSession
from labkit.ground import proc
from labkit.ground import syscalls as sc
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import NotFound
from labkit.isolation import namespaces, security


def join(pid: int, kinds: tuple[str, ...], capabilities: tuple[str, ...]) -> tuple[Step, ...]:
    """Return the steps into the namespaces of a container's first process."""
    return (
        HideFromOthers(),
        JoinNamespaces(pid, kinds),
        LeavePowerOutside(capabilities),
        GoOnAsSibling(),
        *([BecomeRootInside()] if "user" in kinds else []),
        NewSession(),
    )


@dataclass(frozen=True)
class JoinNamespaces(Step):
    """All of them at once, by a pidfd."""

    pid: int
    kinds: tuple[str, ...]

    def describe(self) -> str:
        return f"setns: join {', '.join(self.kinds)} of process {self.pid}"

    def execute(self, child: Child) -> None:
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            raise NotFound("the container's first process has ended") from None
        namespaces.enter(pidfd, self.kinds)
        os.close(pidfd)


@dataclass(frozen=True)
class LeavePowerOutside(Step):
    """Full power never enters: a container with CAP_SYS_PTRACE could take this process over."""

    keep: tuple[str, ...]
    needed: tuple[str, ...] = ("SETPCAP", "SETUID", "SETGID", "CHOWN")  # by the steps that follow

    def describe(self) -> str:
        return "keep the container's capabilities and " + " ".join(self.needed)

    def execute(self, child: Child) -> None:
        permitted = security.names(sc.capget()[1])
        security.set_capabilities({*self.keep, *self.needed} & set(permitted))


@dataclass(frozen=True)
class GoOnAsSibling(Step):
    """Clone once more and go on as the child; the first process tells its pid and ends. See clone3(2)."""

    says = "pid"
    waits = True

    kinds: tuple[str, ...] = ()  # of namespace, made on the way

    def describe(self) -> str:
        return "clone3: go on as a sibling, inside"

    def execute(self, child: Child) -> None:
        # CLONE_PARENT: the grandchild becomes our sibling, so the spawner can wait for it.
        pid, _ = sc.clone3(sc.CLONE_PARENT | namespaces.flags(self.kinds), 0)
        if pid:
            child.say("pid", pid)
            os._exit(0)
        # Until the parent knows of us, and has moved our ids if they have to be. Who fails and
        # ends unknown to it is waited for by nobody, and then the container's PID 1 can't end.
        child.await_go()

    def answer(self, spawned: Spawned, value: object, fds: list[int]) -> bool:
        if not isinstance(value, int) or not _is_child(value):
            return False
        os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
        os.close(spawned.pidfd)
        spawned.pid, spawned.pidfd = value, os.pidfd_open(value)
        return True


def _is_child(pid: int) -> bool:
    with contextlib.suppress(NotFound):
        return int(proc.stat_fields(pid)[1]) == os.getpid()
    return False
