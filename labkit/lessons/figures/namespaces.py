"""The map of a machine's namespaces: who lives with whom, kind by kind."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.ground import proc
from labkit.ground.errors import LabError
from labkit.lessons import figures

_WHAT = {
    "mnt": "mounts",
    "uts": "host name",
    "ipc": "shared memory",
    "pid": "processes",
    "net": "network",
    "user": "users",
    "cgroup": "cgroup tree",
    "time": "clocks",
}


def families(pids: Iterable[int] | None = None) -> dict[tuple[int, ...], list[int]]:
    """Return {tuple of inode numbers, one a kind: [pids]}: processes that share all their namespaces."""
    found = defaultdict(list)
    kinds = proc.namespaces()  # a kernel may lack a kind
    for pid in proc.pids() if pids is None else pids:
        try:
            its = proc.namespaces(pid)
        except LabError:  # it has ended, or is not ours to look at
            continue
        if its.keys() == kinds.keys():  # a zombie has lost most of its own
            found[tuple(its.values())].append(pid)
    return dict(found)


def map_of(names: Mapping[int, str] | None = None, most: int = 8) -> Figure:
    """Draw who shares which namespace: a column a family of processes, a row a kind.

    Boxes of one colour in a row are one and the same namespace. `names` are
    {pid: name} for families to be shown by name, first after the machine itself.
    """
    names = {os.getpid(): "this machine"} | dict(names or {})
    columns = sorted(families().items(), key=lambda item: (not names.keys() & item[1], -len(item[1])))
    host = max(columns, key=lambda item: len(item[1]))
    columns = [host, *[column for column in columns if column is not host]][:most]
    figure, axes = figures.new(2.2 + 1.55 * max(len(columns), 3), 5.4)
    title = "Who lives with whom: one colour in a row is one namespace"
    figures.blank(axes, title, xlim=(-1.55, len(columns)), ylim=(8.1, -1.25))
    for place, (key, pids) in enumerate(columns):
        figures.text(axes, place + 0.45, -0.62, _title(pids, names), fontsize=11)
        for row, inode in enumerate(key):
            _box(axes, place, row, inode, [column[0][row] for column in columns])
    for row, kind in enumerate(proc.namespaces()):
        figures.text(axes, -0.12, row + 0.45, kind, ha="right", fontweight="bold", fontsize=13)
        figures.text(axes, -0.75, row + 0.45, _WHAT[kind], ha="right", fontsize=10, color=figures.GREY)
    return figure


_COLOURS = (figures.PALE, figures.SKY, figures.ORANGE, figures.GREEN, figures.YELLOW, figures.PURPLE, figures.BLUE)


def _box(axes: Axes, place: float, row: float, inode: int, all_of_row: list[int]) -> None:
    # The colour is that of the first column that has it.
    colour = _COLOURS[all_of_row.index(inode) % len(_COLOURS)]
    axes.barh(row + 0.45, 0.9, 0.8, left=place, color=colour, edgecolor="white")
    figures.text(axes, place + 0.45, row + 0.45, f"…{inode % 10000:04}", fontsize=10)


def _title(pids: list[int], names: Mapping[int, str]) -> str:
    named = next((names[pid] for pid in pids if pid in names), None)
    if named is None:
        try:
            named = proc.process(min(pids)).name[:13]
        except LabError:
            named = "ended"
    many = f"{len(pids)} processes" if len(pids) > 1 else f"pid {pids[0]}"
    return f"{named}\n{many}"
