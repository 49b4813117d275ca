"""A container started by an ordinary user: first be root in a user namespace of one's own, then as always.

Nearly all that a container needs from root, a user namespace gives to anyone: mounts,
the other namespaces, capabilities, all of them good only for what belongs to that
namespace. So `lab`, started by an ordinary user, enters one as root before anything
else, and the rest of labkit goes its usual way in there:

    you, user 1000 ──unshare(CLONE_NEWUSER)──▶ root, of a world with one user
                     uid_map: 0 1000 1

What can't be had that way, by name:

    limits      a cgroup is a folder that root must hand over first
    a network   a cable between namespaces ends on the host's side, and that is root's
    users       one user has one id; an image with files of several can't be unpacked
    host ports  --network host: /sys shows a network that is not its own

Every further `lab` joins the namespace that a running container holds, or it would
have no power over it. See user_namespaces(7), "userxattr" in overlayfs(5).
"""

import contextlib
import os
import signal

from labkit.ground import proc, state, syscalls
from labkit.ground.errors import KernelError, LabError, NotFound, Unsupported
from labkit.ground.typed import TYPE_CHECKING, Any
from labkit.isolation import namespaces

if TYPE_CHECKING:
    from labkit.cgroups.cgroup import Stats
    from labkit.container.life import Container
    from labkit.container.spec import Spec


def active() -> bool:
    """Tell whether this process is root only in a user namespace that `enter` made."""
    return state.ROOTLESS in os.environ


def enter() -> None:
    """Become root in a user namespace: that of one's running containers, else a new one.

    The caller is an ordinary user's process with one thread. Raises Unsupported where
    the machine does not let users do this.
    """
    uid, gid = os.getuid(), os.getgid()
    os.environ[state.ROOTLESS] = str(uid)  # first: it decides where the state is
    held = _held()
    if held is not None:
        try:
            syscalls.setns(held, syscalls.CLONE_NEWUSER)
        finally:
            os.close(held)
        return
    refusal = namespaces.refusal()
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        namespaces.map_ids("self", [(0, uid, 1)], [(0, gid, 1)])
        if refusal:  # AppArmor gives the namespace, and no power in it: use some
            from labkit.ground.child import in_child

            in_child(syscalls.unshare, syscalls.CLONE_NEWNS)
    except LabError as error:
        why, hint = refusal or ("no setting that labkit knows says why", "ask the machine's owner")
        raise Unsupported(
            f"this machine lets no ordinary user make a user namespace: {error.message} ({why})",
            f"sudo lab …, or {hint}",
        ) from None


def _held() -> int | None:
    """Return an fd of the user namespace that one of our running containers is in, or None."""
    for path in sorted(state.run_dir("containers").glob("*/state.json")):
        with contextlib.suppress(LabError, OSError):
            record = state.read_json(path, {"pid": int, "start_ticks": int})
            if record and proc.is_running(record["pid"], record["start_ticks"]):
                return os.open(f"/proc/{record['pid']}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    return None


def check(spec: "Spec") -> None:
    """Raise Unsupported for what a container without root can't be given, by name."""
    if wanted := spec.limits.describe():
        raise Unsupported(
            f"without root there is no cgroup that could hold: {', '.join(wanted)}",
            "leave the limits out, or sudo lab run",
        )
    if spec.network not in ("none", "auto") or spec.ports:
        raise Unsupported("without root there is no network but the container's own loopback", "--network none")
    if spec.userns:
        raise Unsupported("without root there is one id to give away, and it is given: you are root inside already")


class Ungoverned:
    """What stands where a Cgroup would: the processes of a container, found by their PID namespace."""

    folders: tuple[Any, ...] = ()

    def __init__(self, box: "Container") -> None:
        self.box = box

    def procs(self) -> list[int]:
        """Return the ids of its processes."""
        try:
            home = proc.namespace(self.box.pid, "pid")
        except LabError:
            return []
        return [pid for pid in proc.pids() if _in(pid, home)]

    def kill(self) -> None:
        """Kill its first process; the kernel kills the rest of the namespace."""
        with contextlib.suppress(NotFound, KernelError), self.box.pidfd() as pidfd:
            syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)

    def stats(self) -> "Stats":
        """Return counters, all unknown: nobody counts."""
        from labkit.cgroups.cgroup import Stats

        return Stats()

    def freeze(self, timeout: float = 5) -> None:
        """Raise Unsupported."""
        raise Unsupported("without root there is no cgroup, and only a cgroup can be frozen", "sudo lab run")

    thaw = freeze

    def oom_kills(self) -> int | None:
        """Return None: nobody counts."""

    def remove(self, timeout: float = 5) -> None:
        """Nothing was made, nothing is to be removed."""

    def remove_if_empty(self) -> bool:
        """Tell that nothing is left: with the first process all others have gone."""
        return True


def _in(pid: int, home: int | None) -> bool:
    try:
        return proc.namespace(pid, "pid") == home
    except LabError:
        return False
