"""Folders that a stranger has filled, however deep.

A container needs one line of shell to make ten thousand folders in each other. A path
to the innermost does not exist: paths end at 4,096 bytes. And whoever goes down by
calling himself, as Python's own `shutil.rmtree` did until 3.13, ends at a thousand. So
here each folder is opened from the one above it, and no more than two are open at once.
See path_resolution(7), openat(2).
"""

import itertools
import os
from collections.abc import Iterator

from labkit.ground.errors import LabError
from labkit.ground.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(path: "str | Path") -> None:
    """Remove a folder and all in it. Raises OSError. It may not hold a mount."""
    top = os.open(path, _FOLDER)
    # Names that nothing in it can have on purpose.
    names = (f"{os.urandom(8).hex()}-{number}" for number in itertools.count())
    try:
        while folders := _entries(top):
            for entry in folders:
                if entry.is_dir(follow_symlinks=False):
                    _remove_folder(top, entry.name, names)
                else:
                    os.unlink(entry.name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


def _remove_folder(top: int, name: str, names: Iterator[str]) -> None:
    """Remove one of the folder `top`'s folders. Those in it come up into `top`: a level less each time."""
    folder = os.open(name, _FOLDER, dir_fd=top)
    try:
        for entry in _entries(folder):
            if entry.is_dir(follow_symlinks=False):
                os.rename(entry.name, next(names), src_dir_fd=folder, dst_dir_fd=top)
            else:
                os.unlink(entry.name, dir_fd=folder)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)


def walk(path: "str | Path") -> Iterator[tuple[int, list[os.DirEntry[str]]]]:
    """Yield (fd, entries) of a folder and of each below it; the fd is open until the next. Raises OSError, LabError."""
    folder = os.open(path, _FOLDER & ~os.O_NOFOLLOW)
    above: list[tuple[os.stat_result, list[str]]] = []  # of each level which it is, and whom it has yet to show
    try:
        while True:
            entries = _entries(folder)
            yield folder, entries
            left = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            while not left and above:
                folder, (known, left) = _instead(folder, ".."), above.pop()
                if not os.path.samestat(os.fstat(folder), known):
                    raise LabError(f"a folder in {path} was moved while it was read", "try again when nobody writes")
            if not left:
                return
            above.append((os.fstat(folder), left))
            folder = _instead(folder, left.pop())
    finally:
        os.close(folder)


def _instead(folder: int, name: str) -> int:
    """Open a folder that is next to an open one, in its place."""
    other = os.open(name, _FOLDER, dir_fd=folder)
    os.close(folder)
    return other


def _entries(folder: int) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)
