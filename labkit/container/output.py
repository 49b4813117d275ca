"""What a container printed, kept byte for byte, and which of it was stderr.

    log          the bytes, in the order in which they came
    log.marks    a line for each piece of them: the stream, 1 or 2, and its length

Whoever stands between a container and its log keeps both. Where nobody does, as in a
notebook, the container writes into `log` itself, and all of it counts as stdout.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

from labkit.ground.typed import BinaryIO

_NAMES = ("log", "log.marks")
_MARK = re.compile(rb"([12]) (\d{1,9})\n", re.ASCII)


class Log:
    """A container's log, open for adding. A disk that is full ends it, and not the container."""

    def __init__(self, folder: Path) -> None:
        self.error: OSError | None = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._files = [FileIO(os.open(folder / name, flags, 0o600), "wb") for name in _NAMES]

    def keep(self, stream: int) -> Callable[[bytes], None]:
        """Return the function that adds what came from a stream, 1 or 2."""

        def add(data: bytes) -> None:
            while data and not self.error:
                try:
                    count = self._files[0].write(data)
                    self._files[1].write(b"%d %d\n" % (stream, count))
                    data = data[count:]
                except OSError as error:
                    self.error = error

        return add

    def close(self) -> None:
        """Close its files."""
        for file in self._files:
            file.close()


def pieces(folder: Path, more: Callable[[], bool] | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (stream, bytes) of what was printed so far, in its order; then go on as long as `more` says so."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(folder / name, "rb")) for name in _NAMES if (folder / name).is_file()]
        going = True
        while files and going:
            going = more is not None and more()  # asked first: what it wrote last is still read
            yield from _new(*files)


def _new(text: BinaryIO, marks: BinaryIO | None = None) -> Iterator[tuple[int, bytes]]:
    for line in marks or ():
        if not (mark := _MARK.fullmatch(line)):
            marks = None  # damaged: what follows is shown all the same
            break
        yield int(mark[1]), text.read(int(mark[2]))
    while not marks and (data := text.read(1 << 20)):
        yield 1, data
