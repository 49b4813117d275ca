"""The eight views of the machine that a process can have to itself.

A namespace wraps one thing that is global (the mount table, the host name, the
process numbers, …) so that its members see a copy of their own. Every process is
in exactly one of each kind, and /proc/PID/ns names it: two processes see the same
mounts if and only if their `mnt` links show the same inode number.

    unshare(2)   leave the present one for a new one
    clone3(2)    make a child in a new one
    setns(2)     join one that exists, by a file descriptor

A namespace lives as long as a process is in it, or an fd or a bind mount holds it.
`survey` finds all that there are, `pin` keeps one without a process.
See namespaces(7), and one page a kind: mount_namespaces(7), pid_namespaces(7) …
"""

import contextlib
import errno
import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path

from labkit.ground import ledger, proc, state, syscalls
from labkit.ground.child import in_child
from labkit.ground.errors import BadValue, KernelError, NotFound, Unsupported, from_oserror

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


def flags(kinds):
    """Return the CLONE_NEW… bits of some kinds, `("mnt", "uts")`. Raise BadValue for an unknown kind."""
    bits = 0
    for kind in kinds:
        if kind not in KINDS:
            raise BadValue(f"{kind!r} is not a kind of namespace", "the kinds: " + ", ".join(KINDS))
        bits |= KINDS[kind][0]
    return bits


def enter(pidfd, kinds):
    """Join namespaces of the process behind `pidfd`, all or none. See setns(2).

    The pid namespace is joined for children only: the caller keeps its own number.
    """
    syscalls.setns(pidfd, flags(kinds))


def join(path, kind):
    """Join the namespace that a file of /proc/PID/ns, or a pin, leads to. See setns(2)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise from_oserror(error, f"opening a {kind} namespace") from None
    try:
        syscalls.setns(fd, flags((kind,)))
    finally:
        os.close(fd)


@contextlib.contextmanager
def pin(pid, kind):
    """Keep a namespace of a process for the block, whether the process lives or not; yield a path to `join`.

    A bind mount of /proc/PID/ns/KIND holds it, as `ip netns` and Docker do. Raises
    NotFound if the process is gone.
    """
    flags((kind,))
    if not os.path.exists(f"/proc/{pid}/ns/{kind}"):
        raise NotFound(f"process {pid} has ended, or this kernel has no {kind} namespaces")
    folder = state.run_dir("pins") / state.new_id()
    path = folder / kind

    def mount():
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

    def __repr__(self):
        return f"<{self.kind} namespace {self.inode}: {self.processes} processes, {self.command!r}>"


def survey():
    """Return every Namespace that can be seen from here, by kind and inode. See ioctl_ns(2).

    Looks at each process, at each pin, and from there at parents and owners. Without
    root only one's own processes tell.
    """
    found = {}  # (kind, inode): [pids, a path to open, owner, parent]
    for pid in proc.pids():
        for kind in KINDS:
            with contextlib.suppress(NotFound, KernelError):
                inode = proc.namespace(pid, kind)
                if inode is not None:
                    found.setdefault((kind, inode), ([], f"/proc/{pid}/ns/{kind}"))[0].append(pid)
    for mount in proc.mounts():
        if mount.type == "nsfs" and (match := re.fullmatch(r"(\w+):\[(\d+)\]", mount.root)):
            found.setdefault((match[1], int(match[2])), ([], mount.target))
    relations = {}
    for (kind, inode), (_, path) in found.items():
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            _relations(kind, inode, fd, relations)
    return sorted(
        (_namespace(key, found.get(key), *relations.get(key, (None, None))) for key in {*found, *relations}),
        key=lambda one: (list(KINDS).index(one.kind), one.inode),
    )


def _relations(kind, inode, fd, relations):
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


def _ask(fd, question, kind, relations):
    try:
        answer = fcntl.ioctl(fd, question)
    except OSError:  # EPERM: it lies outside of our own, and is not ours to know
        return None
    inode = os.fstat(answer).st_ino
    _relations(kind, inode, answer, relations)
    return inode


def _namespace(key, place, parent, owner):
    pids, path = place or ([], "")
    command = path
    if pids:
        command = ""
        with contextlib.suppress(NotFound):
            command = " ".join(proc.cmdline(pids[0])) or f"[{proc.process(pids[0]).name}]"
    return Namespace(*key, len(pids), pids[0] if pids else None, command, parent, owner)


def map_ids(pid, uid_map, gid_map):
    """Write the id maps of a process that is in a new user namespace, once. See user_namespaces(7).

    A map is a list of (first inside, first outside, how many).
    """
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


def set_time_offsets(monotonic=0, boottime=0):
    """Make a time namespace with clocks shifted by whole seconds, and enter it. See time_namespaces(7).

    unshare(2) puts only children into it, and offsets can be written only while
    nobody is inside; setns(2) then takes the caller in too.
    """
    syscalls.unshare(syscalls.CLONE_NEWTIME)
    try:
        Path("/proc/self/timens_offsets").write_text(f"monotonic {monotonic} 0\nboottime {boottime} 0\n")
        fd = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise from_oserror(error, "setting the clock offsets") from None
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWTIME)
    finally:
        os.close(fd)
