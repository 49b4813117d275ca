"""Pictures of what root in a container may do, and of the museum of escapes."""

import textwrap
from collections.abc import Collection, Sequence

from matplotlib.figure import Figure

from labkit.isolation import security
from labkit.lessons import figures
from labkit.lessons.scenes.museum import Visit


def capabilities(kept: Collection[str], columns: int = 6) -> Figure:
    """Draw the capabilities, one box each: blue if the container keeps it, grey if it is taken away."""
    known = security.CAPABILITIES[: security.last_capability() + 1]
    rows = -(-len(known) // columns)
    figure, axes = figures.new(11, 0.62 * rows + 0.9)
    title = f"Root in a container: {len(set(kept))} of {len(known)} capabilities (blue)"
    figures.blank(axes, title, xlim=(0, columns), ylim=(rows, -0.1))
    for place, name in enumerate(known):
        row, column = divmod(place, columns)
        ink = {"color": "white", "fontweight": "bold"} if name in kept else {"color": figures.GREY}
        colour, size = figures.BLUE if name in kept else figures.PALE, 9.5 if len(name) < 17 else 8.5
        figures.box(axes, column + 0.03, row + 0.08, 0.94, 0.84, colour, name, fontsize=size, **ink)
    return figure


def museum(visits: Sequence[Visit]) -> Figure:
    """Draw the museum: a row an escape, with its lock off and with all locks on."""
    figure, axes = figures.new(11, 0.52 * len(visits) + 1.3)
    figures.blank(axes, "Each escape, tried: its lock off, then on", xlim=(0, 10), ylim=(len(visits), -0.9))
    for x, words in ((5.55, "without its lock"), (8.85, "all locks on")):
        figures.text(axes, x, -0.4, words, fontweight="bold", fontsize=11)
    for row, visit in enumerate(visits):
        figures.text(axes, 3.3, row + 0.5, visit.exhibit.name, ha="right")
        for x, width, got in ((3.5, 4.1, visit.off), (7.8, 2.1, visit.on)):
            words = textwrap.shorten(got, 52, placeholder=" …") if got else "holds"
            ink = {"color": "white", "fontsize": 9.5 if got else 11, "fontweight": "bold"}
            figures.box(axes, x, row + 0.08, width, 0.84, figures.RED if got else figures.GREEN, words, **ink)
    return figure
