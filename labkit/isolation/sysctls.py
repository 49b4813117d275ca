"""Knobs of the kernel in /proc/sys: those that a namespace has for itself.

A sysctl is only allowed here if the container has the namespace that the kernel
keeps it in; any other would change the whole machine.
See sysctl(8), network_namespaces(7), ipc_namespaces(7).
"""

import os
from collections.abc import Iterable

from labkit.ground import syscalls as sc
from labkit.ground.errors import BadValue, KernelError

# ipc(7): the knobs that an ipc namespace has for itself
_IPC = {f"kernel.{name}" for name in "msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced".split()}


def check(name: str, value: object, kinds: Iterable[str]) -> tuple[str, str]:
    """Return the pair; raise BadValue unless one of the container's own namespaces, `kinds`, holds it."""
    home = "net" if name.startswith("net.") else "ipc" if name in _IPC or name.startswith("fs.mqueue.") else None
    if name == "kernel.domainname":
        home = "uts"
    if home is None or ".." in name or "/" in name:
        raise BadValue(
            f"sysctl {name!r} is not the container's own", "no namespace holds it: it would change the whole machine"
        )
    if home not in kinds:
        raise BadValue(f"sysctl {name!r} would change the host's: the container has no {home} namespace of its own")
    return name, str(value)


def write(sysctls: Iterable[tuple[str, str]]) -> None:
    """Write sysctls, as the namespaces of the calling process have them."""
    for name, value in sysctls:
        path = "/proc/sys/" + name.replace(".", "/")
        try:
            with open(path, "w", opener=_of_this_proc) as file:
                file.write(value)
        except OSError as error:
            raise KernelError(f"writing {value!r}", error.errno, path) from None


def _of_this_proc(path: str, flags: int) -> int:
    """Open a file of /proc itself: a link or a mount on the way could lead to sysrq-trigger (CVE-2025-52881)."""
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        resolve = sc.RESOLVE_NO_XDEV | sc.RESOLVE_NO_SYMLINKS
        return sc.openat2(proc, os.path.relpath(path, "/proc"), flags & ~(os.O_CREAT | os.O_TRUNC), 0, resolve)
    finally:
        os.close(proc)
