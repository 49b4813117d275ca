"""What a first write through an overlay costs, measured: time, and bytes of the upperdir.

Before a file of a lowerdir is changed, the kernel copies it to the upperdir, whole:
the copy-up. It happens when the file is opened for writing, and once. Each function
here makes a fresh overlay, does one thing to it, and says what that took.
See Documentation/filesystems/overlayfs.rst.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from labkit.ground import state
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue
from labkit.lessons import scratch
from labkit.storage import roots

Fill = Callable[[Path], object]
KIB, MIB = 1 << 10, 1 << 20
_BLOCK = os.urandom(MIB)  # not zeros: those a file system may not store


@dataclass(frozen=True)
class Cost:
    """What one change cost."""

    size: int  # bytes of the file that was changed (of all of them, if several)
    seconds: float
    upper: int  # bytes on disk in the upperdir afterwards
    files: int = 1

    def __repr__(self) -> str:
        return f"<{self.size} bytes: {self.upper} in the upperdir, {self.seconds * 1000:.1f} ms>"


@contextlib.contextmanager
def overlay(fill: Fill, options: tuple[str, ...] = roots.DEFAULT_OPTIONS) -> Iterator[tuple[Path, Path]]:
    """Yield (merged, upperdir) of a fresh overlay whose lowerdir `fill(folder)` has filled."""
    with scratch.folder() as place:
        lower, upper, work, merged = (place / name for name in ("lower", "upper", "work", "merged"))
        for folder in (lower, upper, work, merged):
            folder.mkdir()
        fill(lower)
        with roots.mounted(lower, upper, work, merged, options=options):
            yield merged, upper


def affordable(sizes: Iterable[int], times: float = 2) -> list[int]:
    """Return those of some sizes, in bytes, that the disk holds `times` over and has as much left again."""
    disk = os.statvfs(state.lib_dir("chapters"))
    return [size for size in sizes if 2 * times * size <= disk.f_bavail * disk.f_frsize]


def write_file(path: Path, size: int) -> None:
    """Write a file of `size` bytes, all of them stored, and wait until the disk has them."""
    with open(path, "wb") as file:
        for at in range(0, size, MIB):
            file.write(_BLOCK[: min(MIB, size - at)])
        file.flush()
        os.fsync(file.fileno())


def change_one_byte(path: Path) -> None:
    """Write one byte at the beginning of a file."""
    with open(path, "r+b") as file:
        file.write(b"x")


def best(measure: Callable[..., Cost], *arguments: Any, times: int = 3) -> Cost:
    """Call `measure` several times; return the quickest Cost. What else uses the disk only ever adds time."""
    return min((measure(*arguments) for _ in range(times)), key=lambda cost: cost.seconds)


def one_byte(size: int) -> Cost:
    """Return the Cost of one byte written to a lowerdir's file of `size` bytes."""
    return _cost(size, change_one_byte)


def mode_only(size: int, metacopy: bool = False) -> Cost:
    """Return the Cost of a chmod of a lowerdir's file, with or without overlayfs's metacopy."""
    options = ("metacopy=on", "redirect_dir=on", "index=off") if metacopy else roots.DEFAULT_OPTIONS
    return _cost(size, lambda path: path.chmod(0o600), options)


def sparse(size: int) -> Cost:
    """Return the Cost of one byte written to a file of `size` bytes that is a hole but for 4 KiB."""

    def fill(folder: Path) -> None:
        with open(folder / "file", "wb") as file:
            file.write(_BLOCK[: 4 * KIB])
            file.truncate(size)

    return _cost(size, change_one_byte, fill=fill)


def many(files: int, size: int) -> Cost:
    """Return the Cost of one byte written to each of `files` files of `size` bytes."""

    def fill(folder: Path) -> None:
        for number in range(files):
            write_file(folder / f"file{number}", size)

    with overlay(fill) as (merged, upper):
        seconds = _timed(lambda: list(map(change_one_byte, merged.iterdir())))
        return Cost(files * size, seconds, roots.usage(upper).allocated, files)


def volume(size: int) -> Cost:
    """Return the Cost of one byte written to a file of `size` bytes in a plain folder, as in a volume."""
    with scratch.folder() as place:
        write_file(place / "file", size)
        before = roots.usage(place).allocated
        # Nothing is copied, so a second change is like the first: the quickest counts.
        seconds = min(_timed(lambda: change_one_byte(place / "file")) for _ in range(3))
        return Cost(size, seconds, roots.usage(place).allocated - before)


def _timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _cost(
    size: int,
    change: Callable[[Path], object],
    options: tuple[str, ...] = roots.DEFAULT_OPTIONS,
    fill: Fill | None = None,
) -> Cost:
    if size < 1:
        raise BadValue(f"a file of {size} bytes has no byte to change", "1 or more")
    with overlay(fill or (lambda folder: write_file(folder / "file", size)), options) as (merged, upper):
        seconds = _timed(lambda: change(Path(merged, "file")))
        return Cost(size, seconds, roots.usage(upper).allocated)
