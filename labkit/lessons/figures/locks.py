"""Pictures of what root in a container may do, and of the museum of escapes."""

import textwrap

from matplotlib.patches import FancyBboxPatch

from labkit.isolation import security
from labkit.lessons import figures


def capabilities(kept, columns=6):
    """Draw the capabilities, one box each: blue if the container keeps it, grey if it is taken away."""
    known = security.CAPABILITIES[: security.last_capability() + 1]
    rows = -(-len(known) // columns)
    figure, axes = figures.new(11, 0.62 * rows + 0.9)
    figures.blank(axes)
    axes.set(xlim=(0, columns), ylim=(rows, -0.1))
    axes.set_title(f"Root in a container: {len(set(kept))} of {len(known)} capabilities (blue)")
    for place, name in enumerate(known):
        row, column = divmod(place, columns)
        mine = name in kept
        axes.add_patch(
            FancyBboxPatch(
                (column + 0.03, row + 0.08), 0.94, 0.84, boxstyle="round,pad=0,rounding_size=0.05",
                facecolor=figures.BLUE if mine else figures.PALE, edgecolor="none",
            )
        )  # fmt: skip
        axes.text(
            column + 0.5, row + 0.5, name, ha="center", va="center", fontsize=9.5 if len(name) < 17 else 8.5,
            color="white" if mine else figures.GREY, fontweight="bold" if mine else "normal",
        )  # fmt: skip
    return figure


def museum(visits):
    """Draw the museum: a row an escape, with its lock off and with all locks on."""
    figure, axes = figures.new(11, 0.52 * len(visits) + 1.3)
    figures.blank(axes)
    axes.set(xlim=(0, 10), ylim=(len(visits), -0.9))
    axes.set_title("Each escape, tried: its lock off, then on")
    for x, text in ((3.5, "without its lock"), (8.85, "all locks on")):
        axes.text(x + (2.05 if x < 8 else 0), -0.4, text, ha="center", va="center", fontweight="bold", fontsize=11)
    for row, visit in enumerate(visits):
        axes.text(3.3, row + 0.5, visit.exhibit.name, ha="right", va="center", fontsize=12)
        _cell(axes, 3.5, 4.1, row, visit.off)
        _cell(axes, 7.8, 2.1, row, visit.on)
    return figure


def _cell(axes, x, width, row, got):
    axes.add_patch(
        FancyBboxPatch(
            (x, row + 0.08), width, 0.84, boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=figures.RED if got else figures.GREEN, edgecolor="none",
        )
    )  # fmt: skip
    text = textwrap.shorten(got, 52, placeholder=" …") if got else "holds"
    axes.text(
        x + width / 2,
        row + 0.5,
        text,
        ha="center",
        va="center",
        color="white",
        fontsize=9.5 if got else 11,
        fontweight="bold",
    )
