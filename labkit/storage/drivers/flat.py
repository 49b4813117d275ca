"""A root that is one folder: what the drivers without a merging file system share.

The layers are applied onto each other once, in a folder that holds all the image's
files; a whiteout deletes there. Each container gets its own copy or snapshot of it.
No upperdir takes the changes apart, so they are found by comparing, file by file.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from labkit.ground.dataclass import dataclass
from labkit.ground.typed import BinaryIO
from labkit.images import diff, digests, layers, whiteouts
from labkit.images.diff import Change
from labkit.isolation import mounts
from labkit.storage import roots


@dataclass(frozen=True)
class FlatRootfs(roots.Rootfs):
    """A root that is one folder; `base` holds the image's files, untouched."""

    base: str = ""

    def step(self) -> mounts.BindRoot:
        """Return the mount step that shows this root: the folder, bound onto itself."""
        return mounts.BindRoot(self.merged, self.merged)

    def changes(self) -> list[Change]:
        """Return what the container has changed, as `docker diff` lists it: every file looked at."""
        return changes(self.base, self.merged)

    def diff(self, out: BinaryIO, compression: str | None = None) -> tuple[str, str, int]:
        """Write what the container has changed as a layer; return (diff_id, digest, size)."""
        with tempfile.TemporaryDirectory(dir=Path(self.merged).parent) as upperdir:
            fill_upperdir(Path(self.base), Path(self.merged), Path(upperdir))
            return diff.diff(upperdir, out, compression)

    def usage(self) -> roots.Usage:
        """Return the Usage of the whole folder."""
        return roots.usage(self.merged)

    def tree(self) -> dict[str, str]:
        """Return {role: folder}: which file is where."""
        return {"merged": self.merged, "image": self.base}


def chain(diff_ids: Iterable[str]) -> str:
    """Return one name for a stack of layers in this order. See the OCI specification, config.md, ChainID."""
    name = ""
    for diff_id in diff_ids:
        name = digests.digest(f"{name} {diff_id}".encode()) if name else diff_id
    return digests.hex_of(name) if name else "scratch"


def flatten(folders: Iterable[str], target: Path) -> None:
    """Apply unpacked layers, the lowest first, onto each other in the folder `target`."""
    for folder in folders:
        with tempfile.TemporaryFile(dir=target.parent) as tar:
            diff.diff(folder, tar)
            tar.seek(0)
            layers.apply_onto(tar, target, flat=True, devices=True)


def changes(before: str | Path, after: str | Path) -> list[Change]:
    """Return the Changes from one tree to another, in path order."""
    found = (Change(f"/{inside}", kind) for inside, kind in _differences(Path(before), Path(after), Path()))
    return sorted(found, key=lambda one: one.path)


def _differences(before: Path, after: Path, inside: Path) -> Iterator[tuple[Path, str]]:
    """Yield (path, kind) of what differs below `inside`."""
    old, new = _names(before / inside), _names(after / inside)
    for name in sorted(old | new):
        path = inside / name
        was, now = before / path, after / path
        if name not in new:
            yield path, "D"
        elif name not in old:
            yield from ((found, "A") for found in (path, *_all_below(after, path)))
        elif _is_folder(was) and _is_folder(now):
            deeper = list(_differences(before, after, path))
            if deeper or _said(was) != _said(now):
                yield path, "C"
            yield from deeper
        elif _said(was) != _said(now):
            yield path, "C"
            yield from ((found, "A") for found in _all_below(after, path))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if _is_folder(folder) else set()


def _all_below(root: Path, path: Path) -> list[Path]:
    return [found.relative_to(root) for found in sorted((root / path).rglob("*"))] if _is_folder(root / path) else []


def _said(path: Path) -> tuple[object, ...]:
    """Return what tells two states of one file apart. A folder's time says nothing of itself."""
    status = os.lstat(path)
    folder = stat.S_ISDIR(status.st_mode)
    xattrs = sorted(
        (key, os.getxattr(path, key, follow_symlinks=False)) for key in os.listxattr(path, follow_symlinks=False)
    )
    return (
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        xattrs,
        None if folder else (status.st_size, status.st_mtime_ns),
        os.readlink(path) if stat.S_ISLNK(status.st_mode) else None,
    )


def fill_upperdir(before: Path, after: Path, upperdir: Path) -> None:
    """Make in an empty folder the upperdir that overlayfs would have made of the same changes."""
    _copy_folder(after, upperdir)
    copied: dict[tuple[int, int], Path] = {}  # inode → where its first name was copied to
    for change in changes(before, after):
        inside = change.path.lstrip("/")
        target = upperdir / inside
        missing = [parent for parent in reversed(Path(inside).parents) if not (upperdir / parent).exists()]
        for parent in missing:
            (upperdir / parent).mkdir()
            _copy_folder(after / parent, upperdir / parent)
        source = after / inside
        if change.kind == "D":
            os.mknod(target, stat.S_IFCHR, 0)
        elif _is_folder(source):
            target.mkdir(exist_ok=True)
            _copy_folder(source, target)
            if os.path.lexists(before / inside) and not _is_folder(before / inside):
                whiteouts.set_opaque(target)
        else:
            status = os.lstat(source)
            first = copied.setdefault((status.st_dev, status.st_ino), target)
            if first is not target:
                os.link(first, target, follow_symlinks=False)
            else:
                roots.copy_file(source, target)
    for folder, _, _ in os.walk(upperdir, topdown=False):  # files made in them have changed their times
        shutil.copystat(after / Path(folder).relative_to(upperdir), folder)


def _copy_folder(source: Path, target: Path) -> None:
    status = os.lstat(source)
    os.chown(target, status.st_uid, status.st_gid)
    shutil.copystat(source, target)
