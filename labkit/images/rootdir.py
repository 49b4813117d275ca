"""A folder whose contents nobody trusts, walked by file descriptor.

`/layers/x/etc/passwd` is a text; what it leads to can change between a check and
its use, and one symlink in the middle (`etc -> /etc`) leads out of the folder. So
the folder is opened once, and every path below it is walked by the kernel from
that descriptor with openat2(2):

    RESOLVE_BENEATH         a `..`, an absolute path or a symlink that leads out: EXDEV
    RESOLVE_NO_MAGICLINKS   nothing of /proc on the way
    RESOLVE_NO_XDEV         no mount on the way

A symlink that stays inside is followed, as a program in the container would
(`lib -> usr/lib`). What is then made is made by name in the parent's descriptor
(mkdirat, linkat, openat), with the last component never followed. There is no
moment between check and use for anyone to swap a folder for a symlink.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence

from labkit.ground import syscalls
from labkit.ground.errors import BadArchive, KernelError, LabError

_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV
Maker = Callable[[list[str], int], object]  # makes a folder, given its components and the fd above it
_FOLDER = os.O_DIRECTORY | os.O_PATH
DEPTH = 256  # folders in folders: what removes a tree, or lists it, goes as deep


def normal(name: str, what: str = "path") -> list[str]:
    """Return the components of a path from an archive, from the layer's root on. Raises BadArchive if it is none.

    `./a//b/` is a, b, and so is `/a/b`: some tools write it. Refused: a `..`, a NUL, a name over 255 bytes.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    for part in parts:
        if part == "..":
            raise BadArchive(f"{what} {shown(name)} leads upward", "made to write outside the layer: don't use it")
        if "\0" in part or len(os.fsencode(part)) > 255:
            raise BadArchive(f"{what} {shown(name)} has a name no file can have", "255 bytes at most, no NUL")
    if len(os.fsencode("/".join(parts))) >= 4096:
        raise BadArchive(f"{what} {shown(name)} is too long", "4095 bytes at most")
    return parts


def shown(name: object) -> str:
    """Return a path as it can be printed: control characters escaped, the middle of a long one left out."""
    text = repr(name)
    return text if len(text) <= 120 else f"{text[:70]}…{text[-40:]}"


class RootDir:
    """An opened folder; every method takes components below it and never leaves it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        self.fd = os.open(path, _FOLDER | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._depth = os.readlink(f"/proc/self/fd/{self.fd}").count("/")
        self._cached: tuple[tuple[str, ...], int] | None = None  # ((component, …), fd) of the parent used last

    def __enter__(self) -> "RootDir":
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()
        os.close(self.fd)

    def forget(self) -> None:
        """Drop the cached parent: something on its path may have been replaced."""
        if self._cached:
            os.close(self._cached[1])
            self._cached = None

    def parent(self, parts: Sequence[str], make: Maker | None = None) -> int:
        """Return the fd of the folder that holds the last component; it stays ours to close.

        `make` is called with (parts, parent's fd) for each folder missing on the way;
        without it a missing one raises BadArchive.
        """
        folders = tuple(parts[:-1])
        if not folders:
            return self.fd
        if self._cached is None or self._cached[0] != folders:
            self.forget()
            self._cached = (folders, self._walk(folders, make))
        return self._cached[1]

    def _walk(self, folders: tuple[str, ...], make: Maker | None) -> int:
        try:
            return self._open(folders)
        except KernelError as error:
            if error.errno != errno.ENOENT or make is None:
                raise self._refusal(folders, error) from None
        for depth in range(1, len(folders) + 1):
            above = self._open(folders[: depth - 1]) if depth > 1 else os.dup(self.fd)
            try:
                os.stat(folders[depth - 1], dir_fd=above, follow_symlinks=False)
            except FileNotFoundError:
                make(list(folders[:depth]), above)
            finally:
                os.close(above)
        try:
            return self._open(folders)
        except KernelError as error:
            raise self._refusal(folders, error) from None

    def _open(self, folders: tuple[str, ...]) -> int:
        for attempt in range(100):
            try:
                fd = syscalls.openat2(self.fd, "/".join(folders), _FOLDER, 0, _RESOLVE)
                break
            except KernelError as error:
                # Something was renamed while the kernel stepped over a symlink's `..`,
                # so it could not prove that the walk stayed inside: it asks to try again.
                if error.errno != errno.EAGAIN or attempt == 99:
                    raise
        # Depth counts as it is on disk: symlinks to deep folders would stack it up.
        if os.readlink(f"/proc/self/fd/{fd}").count("/") - self._depth > DEPTH:
            os.close(fd)
            raise BadArchive(
                f"{shown('/'.join(folders))} is deeper than {DEPTH} folders", "made to break what walks it"
            )
        return fd

    def _refusal(self, folders: tuple[str, ...], error: KernelError) -> LabError:
        where = shown("/".join(folders))
        why = {
            errno.EXDEV: "leads out of the layer by a symlink or a mount",
            errno.ELOOP: "is a loop of symlinks",
            errno.ENOTDIR: "is used as a folder and is none",
            errno.ENOENT: "is a folder that is not there",
            errno.ENAMETOOLONG: "is too long",
        }.get(error.errno)
        return (
            BadArchive(f"{where} {why}", "made to write outside the layer, or broken: don't use it") if why else error
        )

    def lstat(self, parts: Sequence[str]) -> os.stat_result | None:
        """Return the stat of a path, its last component not followed, or None if it is not there."""
        if not parts:
            return os.stat(self.fd)
        try:
            return os.stat(parts[-1], dir_fd=self.parent(parts), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def remove(self, parts: Sequence[str]) -> None:
        """Remove what is at a path, a folder with all in it."""
        self.forget()
        parent = os.dup(self.parent(parts))
        try:
            self.forget()
            remove_at(parent, parts[-1])
        finally:
            os.close(parent)


def remove_at(parent: int, name: str) -> None:
    """Remove `name` from an opened folder, and if it is a folder all that is in it.

    No symlink is followed and no path is put together, at any depth.
    """
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for inside in os.listdir(fd):
            remove_at(fd, inside)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)
