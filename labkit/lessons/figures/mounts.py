"""Mounts that spread, drawn: which of two mount tables sees what was mounted in the other."""

from labkit.lessons import figures


def propagation(seen):
    """Draw what was measured: {kind: (ours is seen there, theirs is seen here)}, one panel a kind."""
    figure, panels = figures.new(3.5 * len(seen), 3.1, 1, len(seen))
    for axes, (kind, (there, here)) in zip(panels, seen.items(), strict=True):
        figures.blank(axes)
        axes.set(xlim=(0, 10), ylim=(0, 6.4))
        axes.set_title(kind, loc="center")
        for x, words, colour in ((2, "this\nmachine", figures.GREY), (8, "the\ncontainer", figures.BLUE)):
            axes.text(
                x, 2.6, words, ha="center", va="center", color="white", fontweight="bold", fontsize=12,
                bbox={"boxstyle": "round,pad=0.6", "facecolor": colour, "edgecolor": "none"},
            )  # fmt: skip
        _arrow(axes, 4.1, 5.9, 3.5, there)
        _arrow(axes, 5.9, 4.1, 1.7, here)
        axes.text(5, 5.4, "mounted on the machine:\n" + _word(there), ha="center", va="center", fontsize=11)
        axes.text(5, 0.2, "mounted in the container:\n" + _word_back(here), ha="center", va="center", fontsize=11)
    return figure


def _word(arrives):
    return "seen in the container" if arrives else "not seen"


def _word_back(arrives):
    return "seen on the machine" if arrives else "not seen"


def _arrow(axes, start, end, y, arrives):
    colour, style, head = (figures.GREEN, "-", "-|>") if arrives else (figures.RED, ":", "-")
    axes.annotate(
        "", (end, y), (start, y),
        arrowprops={"arrowstyle": head, "color": colour, "linewidth": 3, "linestyle": style, "mutation_scale": 22},
    )  # fmt: skip
    if not arrives:
        axes.text(
            (start + end) / 2, y, "✕", color=figures.RED, ha="center", va="center", fontsize=20, fontweight="bold"
        )
