"""The eight views of the machine that a process can have to itself.

A namespace wraps one thing that is global (the mount table, the host name, the
process numbers, …) so that its members see a copy of their own. Every process is
in exactly one of each kind, and /proc/PID/ns names it: two processes see the same
mounts if and only if their `mnt` links show the same inode number.

    unshare(2)   leave the present one for a new one
    clone3(2)    make a child in a new one
    setns(2)     join one that exists, by a file descriptor

A namespace lives as long as a process is in it, or an fd or a bind mount holds it.
See namespaces(7), and one page a kind: mount_namespaces(7), pid_namespaces(7) …
"""

import os
from collections.abc import Iterable
from pathlib import Path

from labkit.ground import syscalls
from labkit.ground.errors import BadValue, NotFound, from_oserror

# kind: the flag, and what a process in a new one no longer shares
KINDS = {
    "mnt": (syscalls.CLONE_NEWNS, "the mount table"),
    "uts": (syscalls.CLONE_NEWUTS, "the host name and domain name"),
    "ipc": (syscalls.CLONE_NEWIPC, "System V IPC objects and POSIX message queues"),
    "pid": (syscalls.CLONE_NEWPID, "process numbers: its first process is 1"),
    "net": (syscalls.CLONE_NEWNET, "links, addresses, routes, ports, firewall rules"),
    "user": (syscalls.CLONE_NEWUSER, "user and group numbers, and what root may do"),
    "cgroup": (syscalls.CLONE_NEWCGROUP, "where the cgroup tree begins"),
    "time": (syscalls.CLONE_NEWTIME, "the offsets of the monotonic and boot clocks"),
}


def flags(kinds: Iterable[str]) -> int:
    """Return the CLONE_NEW… bits of some kinds, `("mnt", "uts")`. Raise BadValue for an unknown kind."""
    bits = 0
    for kind in kinds:
        if kind not in KINDS:
            raise BadValue(f"{kind!r} is not a kind of namespace", "the kinds: " + ", ".join(KINDS))
        bits |= KINDS[kind][0]
    return bits


# The settings that keep ordinary users out of user namespaces: the value that does, and one that does not.
_SWITCHES = {
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),  # Ubuntu 24.04 and later
    "kernel/unprivileged_userns_clone": ("0", "1"),  # Debian before 11
    "user/max_user_namespaces": ("0", "10000"),
}


def refusal(settings: Path = Path("/proc/sys")) -> tuple[str, str] | None:
    """Return which setting keeps ordinary users out of user namespaces, and how to allow them, or None."""
    for switch, (closed, opened) in _SWITCHES.items():
        file, name = settings / switch, switch.replace("/", ".")
        if file.exists() and file.read_text().strip() == closed:
            return f"{name} is {closed}", f"allow it until the next boot: sudo sysctl {name}={opened}"
    return None


def enter(pidfd: int, kinds: Iterable[str]) -> None:
    """Join namespaces of the process behind `pidfd`, all or none. See setns(2).

    The pid namespace is joined for children only: the caller keeps its own number.
    """
    syscalls.setns(pidfd, flags(kinds))


def join(path: str | Path, kind: str) -> None:
    """Join the namespace that a file of /proc/PID/ns, or a bind mount of one, leads to. See setns(2)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise from_oserror(error, f"joining the {kind} namespace") from None
    try:
        syscalls.setns(fd, flags((kind,)))
    finally:
        os.close(fd)


IdMap = Iterable[tuple[int, int, int]]  # first inside, first outside, how many


def map_ids(pid: int | str, uid_map: IdMap, gid_map: IdMap) -> None:
    """Write the id maps of a process that is in a new user namespace, once. See user_namespaces(7)."""
    process = Path("/proc", str(pid))
    try:
        # Without privilege over the outer namespace a gid map is refused until
        # setgroups(2) is given up: dropping a group could open what it was denied.
        if os.geteuid() != 0:
            (process / "setgroups").write_text("deny")
        for name, mapping in (("uid_map", uid_map), ("gid_map", gid_map)):
            (process / name).write_text("".join(f"{a} {b} {n}\n" for a, b, n in mapping))
    except FileNotFoundError:
        raise NotFound(f"process {pid} ended before its ids were mapped") from None
    except OSError as error:
        raise from_oserror(
            error,
            f"writing the id maps of process {pid}",
            "a map is written once, and only over ids that the writer itself has",
        ) from None


def set_time_offsets(monotonic: int = 0, boottime: int = 0, nanoseconds: tuple[int, int] = (0, 0)) -> None:
    """Make a time namespace with clocks shifted by seconds (and nanoseconds of each), and enter it.

    See time_namespaces(7).

    unshare(2) puts only children into it, and offsets can be written only while
    nobody is inside; setns(2) then takes the caller in too.
    """
    syscalls.unshare(syscalls.CLONE_NEWTIME)
    try:
        Path("/proc/self/timens_offsets").write_text(
            f"monotonic {monotonic} {nanoseconds[0]}\nboottime {boottime} {nanoseconds[1]}\n"
        )
        fd = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise from_oserror(error, "setting the clock offsets") from None
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWTIME)
    finally:
        os.close(fd)
