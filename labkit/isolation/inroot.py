"""Paths inside a root that is not trusted, walked by descriptor.

An image can hold `/dev -> /etc`, or swap a folder for a link while it is being
walked. A path handed to the kernel as text would be followed out of the root. So
each path is opened with openat2(2) and RESOLVE_IN_ROOT: whatever links, `..` or
absolute targets are on the way, the kernel itself keeps the walk below the folder
that the fd `root` stands for. What comes back is an fd, and an fd can't be swapped.
"""

import errno
import os
from pathlib import Path

from labkit.ground import syscalls as sc
from labkit.ground.errors import BadValue, KernelError, from_oserror


def open_in_root(root: int, path: str | Path, flags: int = os.O_PATH, follow: bool = True) -> int:
    """Open `path` below the folder fd `root`; nothing in it can lead outside. See openat2(2).

    With follow=False a symlink anywhere on the way is refused (ELOOP).
    """
    resolve = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
    if not follow:
        resolve |= sc.RESOLVE_NO_SYMLINKS
    return sc.openat2(root, str(path).lstrip("/") or ".", flags, 0, resolve)


def make_in_root(root: int, path: str | Path, folder: bool = True, follow: bool = True) -> int:
    """Open `path` below `root` as an fd, making what is missing: folders, and a file at the end if asked.

    Each part is made relative to the fd of the part before it, so a link that
    appears halfway changes nothing.
    """
    parts = [part for part in str(path).split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BadValue(f"mount target {path!r} has `..` in it", "name the folder itself")
    return _make("/" + "/".join(parts), root, folder, follow)


def _make(path: str, root: int, folder: bool, follow: bool, links: int = 8) -> int:
    try:
        return open_in_root(root, path, follow=follow)
    except KernelError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        is_link = error.errno == errno.ELOOP
    above, name = os.path.split(path)
    parent = _make(above, root, True, follow, links)  # a link that is further up is found there
    try:
        if is_link:
            raise BadValue(
                f"the image has a symbolic link at {path}, where labkit must mount",
                "a container's own mounts go on real folders only; in runc's words, each "
                "must be mounted on ordinary directory",
            )
        if not folder:
            return os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent)
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        # A dangling link: openat2 says it leads nowhere, mkdir says it is there. Where it leads to, in
        # this root, is made by the same steps.
        try:
            end = os.path.normpath(os.path.join(above, os.readlink(name, dir_fd=parent)))
        except OSError:
            end = ""
        if not links or not end:
            raise BadValue(f"the image has a broken link at {path}, where labkit must mount") from None
        os.close(_make(end, root, folder, follow, links - 1))
    except OSError as error:
        raise from_oserror(error, f"making {path} in the container's root") from None
    finally:
        os.close(parent)
    return open_in_root(root, path, follow=follow)
