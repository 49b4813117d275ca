"""What is in a folder of a layer, said line by line, with the marks that overlayfs reads.

`ls` shows a whiteout as a strange device and an opaque folder as any other. Here each
line says what the kernel takes it for.
"""

import os
import stat
from pathlib import Path

from labkit.images import whiteouts

_SHORT = 48  # bytes of a file that are shown


def lines(folder):
    """Return one line for each thing below a folder, in order, folders before what is in them."""
    found = []
    root = Path(folder)
    for path in sorted(root.rglob("*")):
        depth = len(path.relative_to(root).parts) - 1
        found.append(f"{'  ' * depth}{path.name}{what(path)}")
    return found


def show(*folders):
    """Print what is in each folder, under its name."""
    for folder in folders:
        print(f"{Path(folder).name}/")
        print("\n".join(f"    {line}" for line in lines(folder)) or "    (empty)")


def what(path):
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


def _contents(path, size):
    with open(path, "rb") as file:
        start = file.read(_SHORT)
    if size <= _SHORT and start.isascii():
        return repr(start.decode())
    return f"{size} bytes"
