"""Mounts that spread, drawn: which of two mount tables sees what was mounted in the other."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.lessons import figures


def propagation(seen: dict[str, tuple[bool, bool]]) -> Figure:
    """Draw what was measured: {kind: (ours is seen there, theirs is seen here)}, one panel a kind."""
    figure, panels = figures.new(3.5 * len(seen), 3.1, 1, len(seen))
    for axes, (kind, (there, here)) in zip(panels, seen.items(), strict=True):
        figures.blank(axes, xlim=(0, 10), ylim=(0, 6.4))
        axes.set_title(kind, loc="center")
        for x, words, colour in ((2, "this\nmachine", figures.GREY), (8, "the\ncontainer", figures.BLUE)):
            figures.text(axes, x, 2.6, words, color="white", fontweight="bold", bbox=figures.tag(colour, 0.6))
        _arrow(axes, 4.1, 5.9, 3.5, there)
        _arrow(axes, 5.9, 4.1, 1.7, here)
        for y, words, arrives, seen_in in ((5.4, "on the machine", there, "in the container"),
                                           (0.2, "in the container", here, "on the machine")):  # fmt: skip
            seen_there = f"seen {seen_in}" if arrives else "not seen"
            figures.text(axes, 5, y, f"mounted {words}:\n{seen_there}", fontsize=11)
    return figure


def _arrow(axes: Axes, start: float, end: float, y: float, arrives: bool) -> None:
    colour, style, head = (figures.GREEN, "-", "-|>") if arrives else (figures.RED, ":", "-")
    axes.annotate(
        "", (end, y), (start, y),
        arrowprops={"arrowstyle": head, "color": colour, "linewidth": 3, "linestyle": style, "mutation_scale": 22},
    )  # fmt: skip
    if not arrives:
        figures.text(axes, (start + end) / 2, y, "✕", color=figures.RED, fontsize=20, fontweight="bold")
