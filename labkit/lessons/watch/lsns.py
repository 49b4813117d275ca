"""Which namespaces there are on this machine, who is in them, and how one is kept without anybody.

`survey` finds all that can be seen, as lsns(8) does; `pin` holds one by a mount.
See namespaces(7), ioctl_ns(2).
"""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from labkit.ground import ledger, proc, state, syscalls
from labkit.ground.child import in_child
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import KernelError, NotFound, Unsupported
from labkit.isolation import namespaces


@contextlib.contextmanager
def pin(pid: int, kind: str) -> Iterator[Path]:
    """Keep a namespace of a process for the block, whether the process lives or not; yield a path to `namespaces.join`.

    A bind mount of /proc/PID/ns/KIND holds it, as `ip netns` and Docker do. Raises
    NotFound if the process is gone.
    """
    namespaces.flags((kind,))
    if not os.path.exists(f"/proc/{pid}/ns/{kind}"):
        raise NotFound(f"process {pid} has ended, or this kernel has no {kind} namespaces")
    folder = state.run_dir("pins") / state.new_id()
    path = folder / kind

    def mount() -> None:
        # A mount of its own, private: a mount namespace can't be held by a mount
        # that would spread into it.
        syscalls.mount(folder, folder, None, syscalls.MS_BIND)
        syscalls.mount(None, folder, None, syscalls.MS_PRIVATE)
        try:
            syscalls.mount(f"/proc/{pid}/ns/{kind}", path, None, syscalls.MS_BIND)
        except KernelError as error:
            if kind != "mnt" or error.errno != errno.EINVAL:
                raise
            # Or two could hold each other for ever. Since Linux 6.18 each CPU numbers those it makes by itself.
            raise Unsupported(
                f"the kernel counts the mount namespace of process {pid} as older than the one it would be pinned in",
                "pin it from a process of the host's own mount namespace",
            ) from None

    with ledger.made("folder", path=str(folder)), ledger.made("mount", target=str(folder)):
        folder.mkdir(0o700)
        path.touch()
        in_child(mount)
        yield path


Key = tuple[str, int]  # kind, inode
Place = tuple[list[int], str]  # the processes in it, a path that leads to it
Relations = dict[Key, tuple[int | None, int | None]]  # the inodes of what is around it, and of its owner


@dataclass(frozen=True)
class Namespace:
    """One namespace that exists on this machine, and who is in it."""

    kind: str
    inode: int  # its identity
    processes: int  # how many are in it; 0 if only a mount or another namespace holds it
    pid: int | None  # the lowest of them
    command: str  # of that process; for a pinned one the path of the pin
    parent: int | None  # inode of the one around it: pid and user namespaces are nested
    owner: int | None  # inode of the user namespace whose root has power over it

    def __repr__(self) -> str:
        return f"<{self.kind} namespace {self.inode}: {self.processes} processes, {self.command!r}>"


def survey() -> list[Namespace]:
    """Return every Namespace that can be seen from here, by kind and inode. See ioctl_ns(2).

    Looks at each process, at each pin, and from there at parents and owners. Without
    root only one's own processes tell.
    """
    found: dict[Key, Place] = {}
    for pid in proc.pids():
        for kind in namespaces.KINDS:
            with contextlib.suppress(NotFound, KernelError):
                inode = proc.namespace(pid, kind)
                if inode is not None:
                    found.setdefault((kind, inode), ([], f"/proc/{pid}/ns/{kind}"))[0].append(pid)
    for mount in proc.mounts():
        if mount.type == "nsfs" and (match := re.fullmatch(r"(\w+):\[(\d+)\]", mount.root)):
            found.setdefault((match[1], int(match[2])), ([], mount.target))
    relations: Relations = {}
    for (kind, inode), (_, path) in found.items():
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            _relations(kind, inode, fd, relations)
    return sorted(
        (_namespace(key, found.get(key), *relations.get(key, (None, None))) for key in {*found, *relations}),
        key=lambda one: (list(namespaces.KINDS).index(one.kind), one.inode),
    )


def _relations(kind: str, inode: int, fd: int, relations: Relations) -> None:
    """Note parent and owner of the namespace behind `fd`, and of these in turn; close the fd."""
    try:
        if (kind, inode) in relations:
            return
        relations[kind, inode] = (None, None)
        above = _ask(fd, syscalls.NS_GET_PARENT, kind, relations) if kind in ("pid", "user") else None
        # A user namespace is owned by the one around it.
        owner = above if kind == "user" else _ask(fd, syscalls.NS_GET_USERNS, "user", relations)
        relations[kind, inode] = (above, owner)
    finally:
        os.close(fd)


def _ask(fd: int, question: int, kind: str, relations: Relations) -> int | None:
    try:
        answer = fcntl.ioctl(fd, question)
    except OSError:  # EPERM: it lies outside of our own, and is not ours to know
        return None
    inode = os.fstat(answer).st_ino
    _relations(kind, inode, answer, relations)
    return inode


def _namespace(key: Key, place: Place | None, parent: int | None, owner: int | None) -> Namespace:
    pids, path = place or ([], "")
    command = path
    if pids:
        command = ""
        with contextlib.suppress(NotFound):
            command = " ".join(proc.cmdline(pids[0])) or f"[{proc.process(pids[0]).name}]"
    return Namespace(*key, len(pids), pids[0] if pids else None, command, parent, owner)
