"""The cgroup tree as a picture in text: which folders there are, and who is in them.

`systemd-cgls` draws what systemd made. This draws any tree of this machine, on v1
the one of a controller, on v2 the only one:

    memory (v1) /sys/fs/cgroup/memory
    └─labkit
      └─web
        ├─4711 sh
        └─4712 sleep 1000

See systemd-cgls(1), cgroups(7).
"""

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from labkit.cgroups import hierarchies
from labkit.ground import proc, state
from labkit.ground.errors import LabError


def tree(controller: str = "cpu", everything: bool = False, numbers: bool = True) -> str:
    """Return the tree of a controller as text: labkit's own part, or with `everything` all that can be seen.

    `numbers=False` leaves the process ids out. Raises Unsupported for a controller
    that is in no tree here.
    """
    home = hierarchies.home(controller)
    top = home.mount if everything else home.own
    lines = [f"{controller} (v{home.version}) {top}"]
    children = None if everything else [name for name in _folders(top) if name == state.label()]
    lines += _below(top, "", numbers, children, processes=everything)
    return "\n".join(lines)


def _folders(path: Path) -> list[str]:
    with contextlib.suppress(OSError):  # it may go while we look
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    return []


def _below(
    path: Path, indent: str, numbers: bool, children: Sequence[str] | None = None, processes: bool = True
) -> list[str]:
    """Return the lines below a folder: its folders first, then its processes."""
    rows: list[tuple[str, Path | None]]
    rows = [(name, path / name) for name in (_folders(path) if children is None else children)]
    rows += [(_process(pid, numbers), None) for pid in (_pids(path) if processes else ())]
    lines = []
    for index, (text, folder) in enumerate(rows):
        last = index == len(rows) - 1
        lines.append(indent + ("└─" if last else "├─") + text)
        if folder:
            lines += _below(folder, indent + ("  " if last else "│ "), numbers)
    return lines


def _pids(path: Path) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(path, "cgroup.procs").read_text().split()]
    return []


def _process(pid: int, numbers: bool) -> str:
    words = ""
    with contextlib.suppress(LabError):
        words = " ".join(" ".join(proc.cmdline(pid)).split()) or f"[{proc.process(pid).name}]"
    return f"{pid} {words[:60]}" if numbers else words[:60]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the trees of the controllers named (cpu by default)."""
    parser = argparse.ArgumentParser(prog="lab cgls", description="Show which processes are in which cgroup.")
    parser.add_argument("controllers", nargs="*", default=["cpu"], metavar="CONTROLLER")
    parser.add_argument("-a", "--all", action="store_true", help="the whole tree, not only labkit's part")
    words = parser.parse_args(arguments)
    print("\n\n".join(tree(controller, everything=words.all) for controller in words.controllers))
    return 0
