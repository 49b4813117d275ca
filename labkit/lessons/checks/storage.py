"""Checks of chapter 08: which driver stands behind a root, what a change costs there, and a flat root by hand."""

import os
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.container.life import Container
from labkit.ground import child, proc, syscalls
from labkit.ground.errors import LabError
from labkit.images import whiteouts
from labkit.isolation import mounts
from labkit.lessons import scratch
from labkit.lessons.checks import Requirements, exercise, running
from labkit.storage import roots

_SUBVOLUME = 256  # the inode number of a btrfs subvolume's root, always: linux/btrfs_tree.h


def disk_of_its_own(box: Container) -> int:
    """Return how many bytes of disk belong to this container alone.

    On btrfs that is not what its files take, since they share blocks with the image's:
    there btrfs itself counts. See btrfs-filesystem(8).
    """
    if box.rootfs.driver != "btrfs":
        return box.rootfs.usage().allocated
    _btrfs("sync", box.rootfs.merged)  # what is not yet on the disk is not counted
    return int(_btrfs("du", "-s", "--raw", box.rootfs.merged).splitlines()[-1].split()[1])


def _btrfs(*words: str | Path) -> str:
    done = subprocess.run(["btrfs", "filesystem", *words], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"btrfs filesystem {words[0]} failed: {done.stderr.strip()[:200]}")
    return done.stdout


def driver_of(box: Container) -> str:
    """Return the driver behind a running container's root, as the kernel shows it."""
    kind = proc.mounts(box.pid)[0].type
    if kind == "btrfs":  # a copy may lie on btrfs too, as an ordinary folder
        return "btrfs" if os.stat(f"/proc/{box.pid}/root").st_ino == _SUBVOLUME else "vfs"
    return {"overlay": "overlay", "fuse.fuse-overlayfs": "fuse-overlayfs"}.get(kind, "vfs")


@exercise
def told_apart(boxes: Sequence[Container], answer: Any) -> Requirements:
    """Tell which storage driver each container's root stands on."""
    yield (
        isinstance(answer, (list, tuple)) and len(answer) == len(boxes),
        "there is one name for each container",
        "a list as long as the list of containers, in the same order",
    )
    yield (
        all(name in roots.NAMES for name in answer),
        "each is the name of a driver",
        f"the names are {', '.join(roots.NAMES)}",
    )
    right = sum(driver_of(box) == name for box, name in zip(boxes, answer, strict=True))
    yield (
        right == len(boxes),
        "the kernel says the same of each",
        f"{right} right so far. What stands in the first line of each container's mountinfo?",
        "proc.mounts(box.pid)[0].type; what is neither overlay, btrfs nor fuse is a plain folder: vfs",
    )


@exercise
def changed_for_a_block(box: Container, path: str, limit: int = 1 << 20) -> Requirements:
    """Change one byte of a large file for the price of a block.

    All that is the container's own must take less than `limit` bytes of disk.
    """
    yield running(box)
    inside = max(
        (mount.target for mount in proc.mounts(box.pid) if f"{path}/".startswith(f"{mount.target.rstrip('/')}/")),
        key=len,
    )
    yield inside == "/", f"{path} is in the container's root, not in a volume", "no volumes this time"
    old, new = _of_image(box.rootfs, path), Path(f"/proc/{box.pid}/root{path}")
    yield new.is_file() and old, f"{path} is a file of the image", "start it from the image of this chapter"
    assert old
    yield (
        new.stat().st_size == old.stat().st_size > limit,
        "it is as long as it was",
        "change a byte, don't replace the file: dd has conv=notrunc",
    )
    yield (
        new.read_bytes() != old.read_bytes(),
        "and its contents are not the image's any more",
        f"box.exec(['sh', '-c', 'printf x | dd of={path} bs=1 conv=notrunc'])",
    )
    own = disk_of_its_own(box)
    yield (
        own < limit,
        f"all that is the container's own takes less than {limit >> 20} MB of disk",
        f"it takes {own >> 20} MB now. Which driver shares blocks, and not files?",
        'labkit.Container(…, storage="btrfs")',
    )


def _of_image(rootfs: Any, path: str) -> Path | None:
    places = [getattr(rootfs, "base", "")] if getattr(rootfs, "base", "") else reversed(rootfs.lowerdirs)
    found = (Path(place, path.lstrip("/")) for place in places)
    return next((path for path in found if path.is_file()), None)


@exercise
def flattened(flat: str | Path, layers: Sequence[str | Path]) -> Requirements:
    """Fill a folder with plain copies of what an overlay of the layers shows.

    The lowest layer comes first.
    """
    yield Path(flat).is_dir(), "the folder is there", "flat.mkdir()"
    yield (
        not any(whiteouts.is_whiteout(path.lstat(), path) for path in Path(flat).rglob("*")),
        "there is no whiteout in it",
        "in a plain folder a whiteout hides nothing: what must be done instead?",
        "delete the file of that name, and don't copy the whiteout: stat.S_ISCHR(path.lstat().st_mode)",
    )
    wanted, found = _merged(layers), _contents(flat)
    yield (
        not found.keys() - wanted.keys(),
        "it has no file that the overlay hides",
        "does the upper layer's whiteout delete what the lower one brought?",
    )
    yield not wanted.keys() - found.keys(), "it has every file that the overlay shows", "copy both layers"
    yield (
        found == wanted,
        "where both layers have a file, it is the upper one's",
        "apply the lowest layer first, then the next onto it",
    )
    below = {_inode(path) for layer in layers for path in Path(layer).rglob("*") if path.is_file()}
    yield (
        not any(_inode(path) in below for path in Path(flat).rglob("*") if path.is_file()),
        "and each file is a copy of its own",
        "a hard link is the layer's own file: who writes to it changes the layer",
        "shutil.copy2(path, target)",
    )


def _merged(layers: Sequence[str | Path]) -> dict[str, tuple[int, bytes]]:
    """Return the _contents of an overlay of the layers, mounted where only a child sees it."""

    def look(folder: Path) -> dict[str, tuple[int, bytes]]:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        tops = tuple(os.path.realpath(layer) for layer in reversed(list(layers)))
        mounts.Overlay(tops, "", "", str(folder), roots.DEFAULT_OPTIONS).execute()
        return _contents(folder)

    with scratch.folder() as folder:
        return child.in_child(look, folder)


def _contents(folder: str | Path) -> dict[str, tuple[int, bytes]]:
    """Return {path: mode and contents} of the files in a folder."""
    files = (path for path in Path(folder).rglob("*") if stat.S_ISREG(path.lstat().st_mode))
    return {str(path.relative_to(folder)): (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) for path in files}


def _inode(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
