"""Snapshots: btrfs shares blocks, not files, so a copy of everything costs nothing.

On btrfs a *subvolume* is a tree of files with its own root. A *snapshot* is a new root
that points to the same blocks. Nothing is copied; a block is written anew only when
one of the two changes it. So a first write to a large file costs 4 KiB and not the
file: what overlayfs copies up, btrfs has no word for.

The price is that everything must be on btrfs. Where /var/lib/labkit isn't, this driver
makes a sparse file, a btrfs in it, and mounts it by a loop device: the *pool*. The last
container that leaves takes the pool away. See btrfs-subvolume(8), ioctl_btrfs(2).
"""

import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

from labkit.ground import child, ledger, proc, state, synced, syscalls
from labkit.ground.errors import LabError, Unsupported, from_oserror
from labkit.ground.typed import TYPE_CHECKING
from labkit.storage import roots
from labkit.storage.drivers import flat, loop

if TYPE_CHECKING:
    from labkit.images.catalog import Image
SIZE = 8 << 30  # bytes the pool may grow to; it is sparse, and starts with a few megabytes

# linux/btrfs.h: _IOW(0x94, number, 4096 bytes of arguments)
_ARGUMENTS = 4096
SUBVOL_CREATE = 1 << 30 | _ARGUMENTS << 16 | 0x94 << 8 | 14
SNAP_DESTROY = 1 << 30 | _ARGUMENTS << 16 | 0x94 << 8 | 15
SNAP_CREATE = 1 << 30 | _ARGUMENTS << 16 | 0x94 << 8 | 1


class Btrfs(roots.Driver[flat.FlatRootfs]):
    """A snapshot of an image's subvolume for each container."""

    name = "btrfs"

    def check(self) -> None:
        """Raise Unsupported without btrfs in the kernel, or its tools."""
        if "\tbtrfs\n" not in Path("/proc/filesystems").read_text():
            subprocess.run(["modprobe", "btrfs"], capture_output=True)
        if "\tbtrfs\n" not in Path("/proc/filesystems").read_text():
            raise Unsupported("this kernel has no btrfs", "--storage overlay needs none")
        if not shutil.which("mkfs.btrfs"):
            raise Unsupported("mkfs.btrfs is not here", "apt-get install btrfs-progs")

    def _rootfs(self, image: "Image | roots.Stack", container_id: str, home: Path, userxattr: bool) -> flat.FlatRootfs:
        base = pool() / "images" / flat.chain(image.diff_ids)
        merged = pool() / "containers" / container_id
        return flat.FlatRootfs(self.name, container_id, image.layers, "", "", str(merged), (), str(base))

    def _make(self, rootfs: flat.FlatRootfs, home: Path) -> None:
        with state.lock("btrfs"):
            open_pool()
            if not os.path.exists(rootfs.base):
                _make_base(rootfs)
            # In the ledger under the container's group: gone with it, and the pool with the last.
            ledger.write("subvolume", path=rootfs.merged)
            snapshot(Path(rootfs.base), Path(rootfs.merged))

    def _unmake(self, container_id: str, home: Path) -> None:
        path = str(pool() / "containers" / container_id)
        remove_subvolume(path)
        for entry in ledger.entries():
            if entry.kind == "subvolume" and entry.what.get("path") == path:
                ledger.strike(entry)


def pool() -> Path:
    """Return where the pool is mounted, while it is."""
    return state.lib_dir("btrfs") / "pool"


def disk() -> Path:
    """Return the file that the pool's btrfs is in."""
    return state.lib_dir("btrfs") / "pool.img"


def is_open() -> bool:
    """Tell whether the pool is mounted."""
    return any(mount.target == str(pool()) for mount in proc.mounts())


def open_pool() -> None:
    """Make the pool if there is none, and mount it. Caller holds the lock `btrfs`."""
    if is_open():
        return
    image, target = disk(), pool()
    with ledger.group(""):  # it belongs to no single container
        ledger.write("pool", path=str(target))
    if not image.exists():
        _make_disk(image)
    target.mkdir(exist_ok=True)
    device, fd = loop.attach(image)
    try:
        child.in_child(syscalls.mount, device, str(target), "btrfs", syscalls.MS_NOATIME, None)
    finally:
        os.close(fd)
    for name in ("images", "containers"):
        (target / name).mkdir(exist_ok=True)


def _make_disk(image: Path) -> None:
    scratch = image.with_suffix(".tmp")
    try:
        with open(scratch, "wb") as file:
            file.truncate(SIZE)
        made = subprocess.run(["mkfs.btrfs", "-q", "-m", "single", str(scratch)], capture_output=True, text=True)
        if made.returncode:
            raise LabError(f"mkfs.btrfs failed: {made.stderr.strip()[:300]}", "df -h: is there room?")
        scratch.rename(image)
    except OSError as error:
        raise from_oserror(error, f"making {image}") from None
    finally:
        scratch.unlink(missing_ok=True)


def _close_if_last() -> None:
    """Unmount the pool and remove it, unless a container is in it. Caller holds the lock `btrfs`."""
    if is_open() and os.listdir(pool() / "containers"):
        return
    while is_open():
        syscalls.umount2(pool(), syscalls.MNT_DETACH)
    loop.detach(disk())
    disk().unlink(missing_ok=True)
    for entry in ledger.entries():
        if entry.kind == "pool" and entry.what.get("path") == str(pool()):
            ledger.strike(entry)


@ledger.undoes("pool")
def give_back(path: str) -> None:
    """Remove the pool if nobody is in it; else its last container will. The ledger's kind `pool`."""
    with state.lock("btrfs"):
        _close_if_last()


def _make_base(rootfs: flat.FlatRootfs) -> None:
    base = Path(rootfs.base)
    scratch = base.with_name(f"{base.name}.tmp")
    if scratch.exists():  # left by a crash
        destroy(scratch)
    create(scratch)
    scratch.chmod(0o755)
    try:
        flat.flatten(rootfs.lowerdirs, scratch)
        synced.tree(scratch)
        scratch.rename(base)
    except BaseException:
        destroy(scratch)
        raise


# ioctls


def _ioctl(folder: Path, number: int, arguments: bytes, doing: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, number, bytearray(arguments))
    except OSError as error:
        raise from_oserror(error, doing) from None
    finally:
        os.close(fd)


def _named(name: str, fd: int = 0) -> bytes:
    # struct btrfs_ioctl_vol_args: s64 fd, then the name, 4096 bytes in all
    return struct.pack("=q4088s", fd, os.fsencode(name))


def create(path: Path) -> None:
    """Make a subvolume at `path`. See ioctl_btrfs(2), BTRFS_IOC_SUBVOL_CREATE."""
    _ioctl(path.parent, SUBVOL_CREATE, _named(path.name), f"making the subvolume {path}")


def snapshot(source: Path, path: Path) -> None:
    """Make a snapshot of a subvolume at `path`: in constant time, whatever its size."""
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _ioctl(path.parent, SNAP_CREATE, _named(path.name, fd), f"making a snapshot of {source} at {path}")
    finally:
        os.close(fd)


def destroy(path: Path) -> None:
    """Remove a subvolume. See ioctl_btrfs(2), BTRFS_IOC_SNAP_DESTROY."""
    _ioctl(path.parent, SNAP_DESTROY, _named(path.name), f"removing the subvolume {path}")


@ledger.undoes("subvolume")
def remove_subvolume(path: str) -> None:
    """Remove a container's subvolume, and with the last of them the pool. The ledger's kind `subvolume`."""
    with state.lock("btrfs"):
        if os.path.exists(path):
            destroy(Path(path))
        _close_if_last()
