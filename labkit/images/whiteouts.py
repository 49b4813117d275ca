"""How a layer says "this is gone", in the two notations that exist.

A layer only adds: it cannot take a file away from the layer below, which others
share. So it holds a mark that hides it.

                        in a tar (OCI layer.md)      in an upperdir (overlayfs)
    NAME is gone        empty file `.wh.NAME`        NAME, a character device 0:0
    the folder hides    `.wh..wh..opq` in it         xattr trusted.overlay.opaque=y
    all below it                                     on it: it is *opaque*

The first can be stored anywhere and hides by being read. The second is what the
kernel makes when a program in a container deletes a file, and what it obeys.
Inside a user namespace the kernel takes user.overlay.* for trusted.overlay.*
(mount option `userxattr`). See Documentation/filesystems/overlayfs.rst.
"""

import errno
import os
import stat
from collections.abc import Iterable, Sequence

from labkit.ground.errors import BadArchive

Place = int | str | os.PathLike[str]  # a path or an fd
PREFIX = ".wh."
OPAQUE = ".wh..wh..opq"
_METADATA = ".wh..wh."  # aufs, docker's first driver, left its own books in some old layers
LINKS = ".wh..wh.plnk"  # one of them: the data of files that have several names, which are hard links to it
FUSE_MARKS = (OPAQUE, ".wh..opq")  # files that fuse-overlayfs puts into an opaque folder beside the xattr
XATTRS = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.")


def read_name(name: str) -> tuple[str, str]:
    """Tell what a tar entry's last component means: ("file" | "whiteout" | "opaque" | "skip", name)."""
    if not name.startswith(PREFIX):
        return "file", name
    if name == OPAQUE:
        return "opaque", ""
    if name.startswith(_METADATA):
        return "skip", ""
    hidden = name[len(PREFIX) :]
    if hidden in ("", ".", ".."):
        raise BadArchive(
            f"{name!r} is a whiteout of {hidden or 'nothing'}",
            "obeyed to the letter it would delete the folder itself, or the one above: don't use this layer",
        )
    return "whiteout", hidden


def is_book(parts: Sequence[str]) -> bool:
    """Tell whether a path of a tar is in one of aufs's books, which are at the top."""
    return len(parts) > 1 and parts[0].startswith(_METADATA) and parts[0] != OPAQUE


def is_whiteout(status: os.stat_result, path: Place | None = None) -> bool:
    """Tell whether a stat result (of `path`) is overlayfs's mark for a deleted file.

    Since Linux 6.7 an empty file with the xattr overlay.whiteout, in a folder marked
    for it, is one too: for filesystems without device nodes.
    """
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return True
    return path is not None and stat.S_ISREG(status.st_mode) and not status.st_size and _has(path, "whiteout")


def is_opaque(path: Place, marks: Iterable[str] = ()) -> bool:
    """Tell whether a folder (path or fd) of an upperdir hides all that is below it.

    `marks` are names of files that say so too: FUSE_MARKS.
    """
    if any(_get(path, prefix + "opaque") == b"y" for prefix in XATTRS):
        return True
    return not isinstance(path, int) and any(os.path.lexists(os.path.join(path, name)) for name in marks)


def make(name: str, parent: int) -> None:
    """Make overlayfs's whiteout of `name` in the folder opened as `parent`. See mknod(2)."""
    os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)


def set_opaque(path: Place, userxattr: bool = False) -> None:
    """Mark a folder (path or fd) of an upperdir opaque."""
    os.setxattr(path, XATTRS[userxattr] + "opaque", b"y")


def mark(path: Place, what: str) -> bytes | None:
    """Return overlayfs's own mark `what` (origin, redirect, metacopy …) on a file, or None."""
    for prefix in XATTRS:
        value = _get(path, prefix + what)
        if value is not None:
            return value
    return None


def _has(path: Place, what: str) -> bool:
    return mark(path, what) is not None


def _get(path: Place, attribute: str) -> bytes | None:
    try:
        return os.getxattr(path, attribute, **({} if isinstance(path, int) else {"follow_symlinks": False}))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
            return None
        raise
