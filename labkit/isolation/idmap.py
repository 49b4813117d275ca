"""One set of files, seen under other ids: root's in the image, the container's root's in the container.

In a container with a user namespace user 0 is, say, 524288 outside. The image's
files belong to 0, and there they would be nobody's. Copying them for each container
under new ids would cost what layers save. An *idmapped mount* costs nothing: it is
a mount like any other, with a user namespace attached through which the kernel
translates every owner that it shows.

    layer, on disk     0 ──▶ idmapped mount   524288 ──▶ in the container   0

The translation needs power over the filesystem, which the container must not have.
So the container's parent makes the mount, in a mount namespace of its own that is
gone at once, and hands it to the child as a file descriptor, attached nowhere. Only
the lowerdirs are translated: what the container writes lies in its upperdir under
the outer ids. See mount_setattr(2), MOUNT_ATTR_IDMAP; Documentation/filesystems/idmappings.rst.
"""

import errno
import os
import signal
import socket

from labkit.ground import proc
from labkit.ground import syscalls as sc
from labkit.ground.dataclass import replace
from labkit.ground.errors import BadValue, KernelError, LabError, Unsupported
from labkit.ground.typed import NoReturn
from labkit.isolation import mounts, namespaces

# Where systemd's range for containers begins; no distribution gives these to people.
FIRST, COUNT = 524288, 65536


def parse(text: str | bool | None) -> tuple[int, int] | None:
    """Return (first, count) of `remap`, `FIRST` or `FIRST:COUNT`: the outer ids of the container's. Raises BadValue."""
    if text in (None, False, "", "host"):
        return None
    if text in (True, "remap"):
        return FIRST, COUNT
    start, _, length = str(text).partition(":")
    if not start.isdigit() or not (length or "1").isdigit():
        raise BadValue(f"--userns {text!r} can't be read", "remap, FIRST or FIRST:COUNT, as in 100000:65536")
    first, count = int(start), int(length or COUNT)
    if first < 1000 or not 1 <= count <= 2**31 or first + count > 2**32 - 2:
        raise BadValue(
            f"--userns {text!r}: ids {first} to {first + count - 1} can't be given away", "from 1000 to 4294967293"
        )
    return first, count


def namespace(uid_map: namespaces.IdMap, gid_map: namespaces.IdMap) -> int:
    """Return the fd of a user namespace with these maps and nobody in it. The caller has one thread."""
    pid, _ = sc.clone3(sc.CLONE_NEWUSER, signal.SIGCHLD)
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        namespaces.map_ids(pid, uid_map, gid_map)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def root(step: mounts.Root, pid: int) -> int:
    """Return the root that `step` describes as a mount held by an fd, its files under the ids of process `pid`.

    Raises Unsupported where this kernel or filesystem has no idmapped mounts. The
    caller has one thread, and power over the filesystem.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        _make(step, pid, theirs)
    theirs.close()
    try:
        message, fds, _, _ = socket.recv_fds(ours, 1 << 16, 1)
    finally:
        ours.close()
        os.waitpid(child, 0)
    if fds:
        return fds[0]
    number = int(message or 0)
    if number in (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW):
        raise Unsupported(
            f"this kernel can't show the image's files under the container's ids ({errno.errorcode[number]})",
            "idmapped layers need Linux 5.19, and a filesystem that can: ext4, xfs, btrfs; without --userns it works",
        )
    raise KernelError("making the idmapped root", number, step.target)


def _make(step: mounts.Root, pid: int, channel: socket.socket) -> NoReturn:
    """Mount the root in a mount namespace that ends with this process, send it, and end."""
    try:
        sc.unshare(sc.CLONE_NEWNS)
        mounts.make_private()
        users = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        socket.send_fds(channel, [b"here"], [_tree(step, users, proc.id_map(pid))])
    except (LabError, OSError) as error:
        channel.send(str(getattr(error, "errno", 0) or 0).encode())
    finally:
        os._exit(0)


def _tree(step: mounts.Root, users: int, uid_map: list[tuple[int, ...]]) -> int:
    if isinstance(step, mounts.BindRoot):
        return _translated(step.source, users, step.attrs)
    assert isinstance(step, mounts.Overlay)  # the one other kind that a driver makes
    step = step.resolved()
    _give_away(step.upperdir, uid_map)
    sc.mount("idmap", step.target, "tmpfs", 0)
    shown = []
    for number, lower in enumerate(step.lowerdirs):
        place = f"{step.target}/{number}"
        os.mkdir(place)
        tree = _translated(lower, users)
        sc.move_mount(tree, "", sc.AT_FDCWD, place, sc.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(tree)
        shown.append(place)
    merged = f"{step.target}/merged"
    os.mkdir(merged)
    replace(step, lowerdirs=tuple(shown), target=merged).execute()
    return mounts.clone_tree(merged, attrs=step.attrs, recursive=False)


def _translated(folder: str, users: int, attrs: int = 0) -> int:
    tree = mounts.clone_tree(folder, attrs=attrs, recursive=False)
    sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH, attr_set=sc.MOUNT_ATTR_IDMAP, userns_fd=users)
    return tree


def _give_away(folder: str, uid_map: list[tuple[int, ...]]) -> None:
    """Make a folder of user 0 the container's root's: its own / is the upperdir."""
    if os.stat(folder).st_uid == 0:
        first = next(outside for inside, outside, _ in uid_map if inside == 0)
        os.chown(folder, first, first)
