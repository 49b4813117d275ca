"""Checks of chapter 01: which namespaces a process has to itself, shares, or is owned by."""

import fcntl
import os
import time

from labkit.ground import proc, syscalls
from labkit.lessons.checks import exercise


def own(pid, than="self"):
    """Return the kinds of namespace in which a process is not with the process `than`."""
    its, ours = proc.namespaces(pid), proc.namespaces(than)
    return {kind for kind in ours if its.get(kind) != ours[kind]}


def _settled(question, wanted, seconds=1.0):
    """Ask until the answer is `wanted`, for a moment: a process that was just started may not be there yet."""
    deadline = time.monotonic() + seconds
    while (answer := question()) != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    return answer


@exercise
def has_its_own(pid, kinds):
    """The process has exactly these kinds of namespace to itself."""
    kinds = set(kinds)
    yield isinstance(pid, int) and pid > 0, "the answer is a process number", "Popen's .pid is one"
    yield pid != os.getpid(), "it is not this notebook itself", "start a process for it"
    found = _settled(lambda: own(pid), kinds)
    for kind in sorted(kinds):
        yield kind in found, f"it has a {kind} namespace of its own", f"man unshare: which word stands for {kind}?"
    extra = ", ".join(sorted(found - kinds))
    yield not extra, "and no other", f"it also left {extra}: take that word away"


@exercise
def is_with(pid, other, kinds):
    """The process is with another one in exactly these kinds, and with this notebook in the rest."""
    kinds = set(kinds)
    yield isinstance(pid, int) and pid > 0, "the answer is a process number", "Popen's .pid is one"
    yield pid != other, "it is not the container's own process", "a process of yours shall be in there"
    # A process that lives where both are is no stranger in the kinds that they share anyway.
    found = _settled(lambda: own(pid), kinds)
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
def owner_of(pid, kind, answer):
    """The answer is the inode number of the user namespace that owns a namespace of the process."""
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
        "os.fstat(fcntl.ioctl(fd, labkit.ground.syscalls.NS_GET_USERNS)).st_ino, or namespaces.survey()",
    )
