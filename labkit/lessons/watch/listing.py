"""What is in a folder of a layer, said line by line, with the marks that overlayfs reads.

`ls` shows a whiteout as a strange device and an opaque folder as any other. Here each
line says what the kernel takes it for.
"""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from labkit.images import whiteouts

SEEN, HIDDEN, GONE, JOINED = "wins", "hidden", "whiteout", "joined"
_SHORT = 48  # bytes of a file that are shown


def lines(folder: str | Path) -> list[str]:
    """Return one line for each thing below a folder, in order, folders before what is in them."""
    found = []
    root = Path(folder)
    for path in sorted(root.rglob("*")):
        depth = len(path.relative_to(root).parts) - 1
        found.append(f"{'  ' * depth}{path.name}{what(path)}")
    return found


def show(*folders: str | Path) -> None:
    """Print what is in each folder, under its name."""
    for folder in folders:
        print(f"{Path(folder).name}/")
        print("\n".join(f"    {line}" for line in lines(folder)) or "    (empty)")


def what(path: Path) -> str:
    """Return what stands behind a name in the list: a file's contents or size, overlayfs's marks."""
    status = path.lstat()
    if whiteouts.is_whiteout(status, path):
        return f"  [whiteout: character device {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}]"
    if stat.S_ISDIR(status.st_mode):
        return "/  [opaque: trusted.overlay.opaque=y]" if whiteouts.is_opaque(path) else "/"
    if stat.S_ISLNK(status.st_mode):
        return f" -> {os.readlink(path)}"
    if stat.S_ISREG(status.st_mode):
        return f"  {_contents(path, status.st_size)}"
    return "  [device, pipe or socket]"


def _contents(path: Path, size: int) -> str:
    with open(path, "rb") as file:
        start = file.read(_SHORT)
    if size <= _SHORT and start.isascii():
        return repr(start.decode())
    return f"{size} bytes"


def verdicts(folders: Sequence[Path], below: str = ".") -> dict[tuple[int, str], str]:
    """Return {(row, name): what an overlay of the folders makes of it}; rows count from the lowest, row 0.

    `below` is a folder in them. The uppermost comes first.
    """
    found: dict[tuple[int, str], str] = {}
    seen: dict[str, str] = {}
    closed = False
    for row in reversed(range(len(folders))):
        folder = folders[row] / below
        for name in sorted(os.listdir(folder)) if _is_folder(folder) else ():
            found[row, name] = _verdict(folder / name, seen, closed)
        closed = closed or _closes(folder)
    joined = Counter(name for (_, name), word in found.items() if word == JOINED)
    return {key: SEEN if joined[key[1]] == 1 and word == JOINED else word for key, word in found.items()}


def _verdict(path: Path, seen: dict[str, str], closed: bool) -> str:
    """Return what becomes of a file, after those above it; note in `seen` what is decided of its name."""
    status, above = path.lstat(), seen.get(path.name)
    folder = stat.S_ISDIR(status.st_mode)
    if closed or above == SEEN:
        return HIDDEN
    if above == JOINED and not folder:
        seen[path.name] = SEEN  # what lies below a file is not joined any more
        return HIDDEN
    if whiteouts.is_whiteout(status, path):
        seen[path.name] = SEEN
        return GONE
    seen[path.name] = JOINED if folder and not whiteouts.is_opaque(path) else SEEN
    return JOINED if folder and (above or seen[path.name] == JOINED) else SEEN


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _closes(folder: Path) -> bool:
    """Tell whether nothing below this folder is seen: it is opaque, or deleted, or no folder."""
    return os.path.lexists(folder) and (not _is_folder(folder) or whiteouts.is_opaque(folder))
