"""Checks of chapter 01: which namespaces a process has to itself, shares, or is owned by."""

import fcntl
import os
from collections.abc import Iterable

from labkit.ground import proc, syscalls
from labkit.lessons.checks import Requirements, exercise
from labkit.lessons.watch.measuring import until


def own(pid: int, than: int | str = "self") -> set[str]:
    """Return the kinds of namespace in which a process is not with the process `than`."""
    its, ours = proc.namespaces(pid), proc.namespaces(than)
    return {kind for kind in ours if its.get(kind) != ours[kind]}


@exercise
def has_its_own(pid: int, kinds: Iterable[str]) -> Requirements:
    """Start a process that has some namespaces to itself, and shares all the others."""
    kinds = set(kinds)
    yield isinstance(pid, int) and pid > 0, "the answer is a process number", "Popen's .pid is one"
    yield pid != os.getpid(), "it is not this notebook itself", "start a process for it"
    until(lambda: own(pid) == kinds, 1)  # it may not be there yet
    found = own(pid)
    for kind in sorted(kinds):
        yield kind in found, f"its {kind} namespace is its own", f"man unshare: which word stands for {kind}?"
    extra = ", ".join(sorted(found - kinds))
    yield not extra, "and no other", f"it also left {extra}: take that word away"


@exercise
def is_with(pid: int, other: int, kinds: Iterable[str]) -> Requirements:
    """Start a process that joins a container in the namespaces asked for, and in no other."""
    kinds = set(kinds)
    yield isinstance(pid, int) and pid > 0, "the answer is a process number", "Popen's .pid is one"
    yield pid != other, "it is not the container's own process", "a process of yours shall be in there"
    # A process that lives where both are is no stranger in the kinds that they share anyway.
    until(lambda: own(pid) == kinds, 1)
    found = own(pid)
    together = {kind for kind in proc.NAMESPACES if kind not in own(pid, other)}
    for kind in sorted(kinds):
        yield (
            kind in together,
            f"it sees the container's {kind}",
            "nsenter --target PID joins; a word a kind",
            f"--{kind}",
        )
    extra = ", ".join(sorted(found - kinds))
    yield not extra, "and all else as this machine does", f"it joined {extra} too: take that word away"


@exercise
def owner_of(pid: int, kind: str, answer: object) -> Requirements:
    """Find the user namespace that owns a namespace of a process, by its inode number."""
    yield isinstance(answer, int), "the answer is a number", "inode numbers: os.fstat(fd).st_ino"
    fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(fd, syscalls.NS_GET_USERNS)
        inode = os.fstat(owner).st_ino
        os.close(owner)
    finally:
        os.close(fd)
    yield (
        answer != proc.namespace(pid, kind),
        "it is not the namespace itself",
        "ask the kernel who owns it: the ioctl NS_GET_USERNS, see ioctl_ns(2)",
    )
    yield (
        answer == inode,
        f"it is the user namespace that owns this {kind} namespace",
        "the ioctl NS_GET_USERNS returns a new fd: whose inode is asked for",
        "os.fstat(fcntl.ioctl(fd, labkit.ground.syscalls.NS_GET_USERNS)).st_ino, or lsns.survey()",
    )
