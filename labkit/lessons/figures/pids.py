"""Process numbers, drawn: the same processes seen from two PID namespaces, and numbers that are never given back."""

from collections.abc import Iterable

from matplotlib.figure import Figure

from labkit.ground.proc import Process
from labkit.lessons import figures


def two_views(processes: Iterable[Process], title: str = "The same processes, counted twice") -> Figure:
    """Draw each process with its number outside on the left and inside on the right.

    `processes` are `proc.Process`, as `box.top()` returns them: NSpid has both numbers.
    """
    processes = sorted(processes, key=lambda process: process.nspid[-1])
    figure, axes = figures.new(9, 0.62 * len(processes) + 1.2)
    figures.blank(axes, title, xlim=(0, 10), ylim=(-len(processes), 0.8))
    sides = ((2, "outside: the host counts", figures.GREY), (8, "inside: the container counts", figures.BLUE))
    for x, words, colour in sides:
        axes.text(x, 0.35, words, ha="center", color=colour, fontweight="bold")
    rows = {process.pid: -row - 0.5 for row, process in enumerate(processes)}
    for process in processes:
        y = rows[process.pid]
        parent = rows.get(process.ppid)
        for (x, _, colour), number in zip(sides, (process.pid, process.nspid[-1]), strict=True):
            look = {"color": "white", "fontsize": 15, "fontweight": "bold", "bbox": figures.tag(colour, 0.35)}
            figures.text(axes, x, y, number, **look)
        axes.annotate("", (7.0, y), (3.0, y), arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "linestyle": ":"})
        figures.text(axes, 5, y, process.name, fontsize=13, bbox=figures.tag("white"))
        if parent is not None:
            for edge in (0.8, 9.2):  # who started whom: a bracket beside the numbers
                inner = edge + (0.35 if edge < 5 else -0.35)
                axes.plot([inner, edge, edge, inner], [parent, parent, y, y], color=figures.GREY, linewidth=1.3)
    return figure


def held_numbers(samples: dict[str, list[tuple[float, int]]], limit: int) -> Figure:
    """Draw how many numbers zombies hold as time goes on: {label: [(seconds, zombies)]}, and the limit."""
    figure, axes = figures.new(9, 4)
    for (label, points), colour in zip(samples.items(), (figures.RED, figures.GREEN), strict=False):
        axes.step(*zip(*points, strict=True), where="post", color=colour, label=label)
    axes.axhline(limit, color=figures.BLACK, linestyle="--", linewidth=1.5)
    axes.text(0, limit, f"the limit: {limit} processes, living or dead", va="bottom")
    axes.set(xlabel="time [s]", ylabel="zombies", ylim=(-0.6, limit * 1.2), title="A zombie keeps its number")
    axes.legend(loc="center right")
    return figure
