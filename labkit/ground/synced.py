"""Synced to the disk, and so still there after a power cut.

    synced.tree(scratch)            all the files of an unpacked layer, by one syncfs(2)
    os.rename(scratch, "diff")       the name that says: this layer is whole
    synced.folder(blobs)            the names in a folder themselves

A write(2) ends in memory; the kernel brings it to the disk within half a minute, in an
order of its own. A process that is killed loses nothing by that. A machine that is
switched off may come back with a name and without what it leads to: a layer whose
files are empty. So what gets a name that means "complete" is brought to the disk first.

One file has fsync(2) for that. A layer has thousands, each of which would wait for the
disk alone; syncfs(2) waits once, for all that is unwritten on that file system, of
whoever it is. Both cost milliseconds, paid when an image arrives and never when a
container starts: what a container changes was never said to be complete.
"""

import os
from collections.abc import Callable
from pathlib import Path

from labkit.ground import syscalls


def folder(path: str | Path) -> None:
    """Wait until the names in a folder are on the disk: made, renamed, removed. See fsync(2)."""
    _opened(path, os.fsync)


def tree(path: str | Path) -> None:
    """Wait until all the files below a folder are on the disk, with their contents. See syncfs(2)."""
    _opened(path, syscalls.syncfs)


def _opened(path: str | Path, sync: Callable[[int], None]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)
