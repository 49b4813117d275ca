"""A file that somebody named to write to: `save -o`, `--pid-file`. It may be anything.

    with named_file.writing("image.tar") as file: …

An ordinary file is replaced whole or not at all, and keeps its mode and owner; a link
stays one, and what it leads to is written. A pipe, a terminal, /dev/stdout or
/dev/null can't be replaced by a file, and must not be: `mv` onto /dev/stdout would
take it from everybody on the machine. Into those is written.
See rename(2), path_resolution(7).
"""

import contextlib
import os
import stat
from collections.abc import Iterator

from labkit.ground import ledger, state, synced
from labkit.ground.errors import from_oserror
from labkit.ground.typed import IO


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Give a stream whose bytes are in the file at `path` when the block has ended well. Raises KernelError."""
    try:
        # A file behind somebody's fd (/proc/PID/fd/N, where /dev/stdout leads) is theirs to replace, not ours.
        whole = os.path.realpath(path)
        plain = not os.path.exists(path) or (stat.S_ISREG(os.stat(path).st_mode) and not _leads_to_an_fd(path))
        if plain:
            with _replacing(whole) as stream:
                yield stream
        else:
            with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb") as stream:
                yield stream
    except OSError as error:
        raise from_oserror(error, f"writing {os.fspath(path)}") from None


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    folder, name = os.path.split(path)
    scratch = os.path.join(folder, f".{name[:100]}.{state.new_id()}.tmp")
    with ledger.made("file", path=scratch):
        with open(scratch, "xb") as stream:
            with contextlib.suppress(FileNotFoundError):
                old = os.stat(path)
                os.fchown(stream.fileno(), old.st_uid, old.st_gid)
                os.fchmod(stream.fileno(), stat.S_IMODE(old.st_mode))
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(scratch, path)
    synced.folder(folder)


def _leads_to_an_fd(path: str | os.PathLike[str]) -> bool:
    """Tell whether one of the links that a path is made of is a process's fd."""
    here = os.path.abspath(path)
    for _ in range(40):  # as many as the kernel follows
        folder = os.path.realpath(os.path.dirname(here))
        if folder.startswith("/proc/") and folder.endswith("/fd"):
            return True
        if not os.path.islink(here):
            return False
        here = os.path.join(folder, os.readlink(here))
    return False
