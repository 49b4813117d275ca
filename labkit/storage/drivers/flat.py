"""A root that is one folder: what the drivers without a merging file system share.

The layers are applied onto each other once, in a folder that holds all the image's
files; a whiteout deletes there. Each container gets its own copy or snapshot of it.
No upperdir takes the changes apart, so they are found by comparing, file by file.
"""

import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from labkit.images import diff, digests, layers, whiteouts
from labkit.images.diff import Change
from labkit.isolation import mounts
from labkit.storage import roots


@dataclass(frozen=True)
class FlatRootfs(roots.Rootfs):
    """A root that is one folder; `base` holds the image's files, untouched."""

    base: str = ""

    def step(self):
        """Return the mount step that shows this root: the folder, bound onto itself."""
        return mounts.BindRoot(self.merged, self.merged)

    def changes(self):
        """Return what the container has changed, as `docker diff` lists it: every file looked at."""
        return changes(self.base, self.merged)

    def diff(self, out, compression=None):
        """Write what the container has changed as a layer; return (diff_id, digest, size)."""
        with tempfile.TemporaryDirectory(dir=Path(self.merged).parent) as upperdir:
            fill_upperdir(self.base, self.merged, upperdir)
            return diff.diff(upperdir, out, compression)

    def usage(self):
        """Return the Usage of the whole folder."""
        return roots.usage(self.merged)

    def tree(self):
        """Return {role: folder}: which file is where."""
        return {"merged": self.merged, "image": self.base}


def chain(diff_ids):
    """Return one name for a stack of layers in this order. See the OCI specification, config.md, ChainID."""
    name = ""
    for diff_id in diff_ids:
        name = digests.digest(f"{name} {diff_id}".encode()) if name else diff_id
    return digests.hex_of(name) if name else "scratch"


def flatten(folders, target):
    """Apply unpacked layers, the lowest first, onto each other in the folder `target`."""
    for folder in folders:
        with tempfile.TemporaryFile(dir=Path(target).parent) as tar:
            diff.diff(folder, tar)
            tar.seek(0)
            layers.apply_onto(tar, target, flat=True, devices=True)


def changes(before, after):
    """Return the Changes from one tree to another, in path order."""
    return sorted(Change(f"/{inside}", kind) for inside, kind in _differences(Path(before), Path(after)))


def _differences(before, after, inside=Path()):
    """Yield (path, kind) of what differs, a changed folder's own line after what is in it."""
    old, new = _names(before / inside), _names(after / inside)
    changed = False
    for name in sorted(old | new):
        path = inside / name
        was, now = (
            _lstat(before / path) if name in old else None,
            _lstat(after / path) if name in new else None,
        )
        if now is None:
            yield path, "D"
        elif was is None:
            yield path, "A"
            yield from ((path / found, "A") for found in _all(after / path, now))
        elif stat.S_ISDIR(was.st_mode) and stat.S_ISDIR(now.st_mode):
            deeper = list(_differences(before, after, path))
            if deeper or _said(was, before / path) != _said(now, after / path):
                yield path, "C"
            yield from deeper
            changed = changed or bool(deeper)
            continue
        elif _said(was, before / path) != _said(now, after / path):
            yield path, "C"
            yield from ((path / found, "A") for found in _all(after / path, now))
        else:
            continue
        changed = True


def _names(folder):
    return set(os.listdir(folder)) if folder.is_dir() and not folder.is_symlink() else set()


def _lstat(path):
    return os.lstat(path)


def _all(path, status):
    if stat.S_ISDIR(status.st_mode):
        for found in sorted(path.rglob("*")):
            yield found.relative_to(path)


def _said(status, path):
    """Return what tells two states of one file apart. A folder's time says nothing of itself."""
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


def fill_upperdir(before, after, upperdir):
    """Make in an empty folder the upperdir that overlayfs would have made of the same changes."""
    before, after, upperdir = Path(before), Path(after), Path(upperdir)
    _copy_folder(after, upperdir)
    copied = {}  # inode → where its first name was copied to
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
        elif source.is_dir() and not source.is_symlink():
            target.mkdir(exist_ok=True)
            _copy_folder(source, target)
            if (before / inside).is_symlink() or ((before / inside).exists() and not (before / inside).is_dir()):
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


def _copy_folder(source, target):
    status = os.lstat(source)
    os.chown(target, status.st_uid, status.st_gid)
    shutil.copystat(source, target)
