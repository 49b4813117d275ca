"""Panel of chapter 07: turn a file's size, and see what its first change costs.

copy_up_panel()     copy_up("one byte written", size=1 << 20) is the same without a mouse
"""

from collections.abc import Callable

from matplotlib.figure import Figure

from labkit.ground.errors import BadValue
from labkit.lessons.figures import storage as figure
from labkit.lessons.panels import Panel, Values, knob
from labkit.lessons.watch import copyup

SIZES = tuple(1 << power for power in range(10, 29, 2))
CHANGES: dict[str, Callable[[int], copyup.Cost]] = {
    "one byte written": copyup.one_byte,
    "chmod only": copyup.mode_only,
    "chmod only, metacopy": lambda size: copyup.mode_only(size, metacopy=True),
    "one byte of a sparse file": copyup.sparse,
    "one byte, in a volume": copyup.volume,
}


def copy_up(change: str = "one byte written", size: int = 1 << 20) -> copyup.Cost:
    """Measure one change of a file of `size` bytes; return its copyup.Cost. `change` is one of CHANGES."""
    if change not in CHANGES:
        raise BadValue(f"there is no change {change!r}", f"one of {', '.join(CHANGES)}")
    return CHANGES[change](size)


class CopyUp:
    """One measurement for each picture, of whatever the knobs say; all that was measured stays in it."""

    def __init__(self) -> None:
        self.found: dict[str, dict[int, copyup.Cost]] = {}

    def start(self, values: Values) -> None:
        self.found = {}
        self.turn(values)

    def turn(self, values: Values) -> None:
        self.change, self.size = values["change"], values["size"]

    def still(self, values: Values) -> Figure:
        self.turn(values)
        return self._picture({self.change: []})

    def draw(self) -> Figure:
        costs = self.found.setdefault(self.change, {})
        cost = copy_up(self.change, self.size)
        # The quickest counts: what else uses the disk only ever adds time.
        costs[self.size] = min(cost, costs.get(self.size, cost), key=lambda one: one.seconds)
        return self._picture({name: [costs[size] for size in sorted(costs)] for name, costs in self.found.items()})

    def _picture(self, series: dict[str, list[copyup.Cost]]) -> Figure:
        return figure.copy_up(series, f"{self.change}, {figure.size(self.size)}", SIZES[-1])

    def stop(self) -> None:
        """Nothing is left to take away: each measurement ends before its picture is drawn."""


def copy_up_panel(change: str = "one byte written", size: int = 1 << 20, seconds: float = 60) -> Panel:
    """Return the panel: two knobs, a file's size and what is done to it."""
    sizes = [(figure.size(one), one) for one in SIZES]
    knobs = {
        "size": knob("SelectionSlider", "file size", options=sizes, value=size, continuous_update=False),
        "change": knob("Dropdown", "change", options=list(CHANGES), value=change),
    }
    alt = "Time and upperdir bytes of a file's first change, for each size and change chosen so far"
    return Panel("copy-up", CopyUp(), knobs, seconds, alt)
