"""Panel of chapter 07: turn a file's size, and see what its first change costs.

copy_up_panel()     copy_up("one byte written", size=1 << 20) is the same without a mouse
"""

from labkit.ground.errors import BadValue
from labkit.lessons.figures import storage as figure
from labkit.lessons.panels import Panel
from labkit.lessons.watch import copyup

SIZES = tuple(1 << power for power in range(10, 29, 2))
CHANGES = {
    "one byte written": copyup.one_byte,
    "chmod only": copyup.mode_only,
    "chmod only, metacopy": lambda size: copyup.mode_only(size, metacopy=True),
    "one byte of a sparse file": copyup.sparse,
    "one byte, in a volume": copyup.volume,
}


def copy_up(change="one byte written", size=1 << 20):
    """Measure one change of a file of `size` bytes; return its copyup.Cost. `change` is one of CHANGES."""
    if change not in CHANGES:
        raise BadValue(f"there is no change {change!r}", f"one of {', '.join(CHANGES)}")
    return CHANGES[change](size)


class CopyUp:
    """One measurement for each picture, of whatever the knobs say; all that was measured stays in it."""

    def __init__(self):
        self.found = {}

    def start(self, values):
        self.found = {}
        self.turn(values)

    def turn(self, values):
        self.change, self.size = values["change"], values["size"]

    def draw(self):
        costs = self.found.setdefault(self.change, {})
        cost = copy_up(self.change, self.size)
        # The quickest counts: what else uses the disk only ever adds time.
        costs[self.size] = min(cost, costs.get(self.size, cost), key=lambda one: one.seconds)
        series = {name: [costs[size] for size in sorted(costs)] for name, costs in self.found.items()}
        return figure.copy_up(series, title=f"{self.change}, {figure.size(self.size)}")

    def stop(self):
        """Nothing is left to take away: each measurement ends before its picture is drawn."""


def copy_up_panel(change="one byte written", size=1 << 20, seconds=60):
    """Return the panel: two knobs, a file's size and what is done to it."""
    import ipywidgets

    knobs = {
        "size": ipywidgets.SelectionSlider(
            options=[(figure.size(size), size) for size in SIZES],
            value=size,
            description="file size",
            continuous_update=False,
        ),
        "change": ipywidgets.Dropdown(options=list(CHANGES), value=change, description="change"),
    }
    return Panel(
        "copy-up",
        CopyUp(),
        knobs,
        seconds=seconds,
        alt="Time and upperdir bytes of a file's first change, for each size and change chosen so far",
    )
