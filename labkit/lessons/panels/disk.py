"""The panel of chapter 05 for a disk: how many bytes a second a container may write.

The limit is on the disk that labkit's own files are on, for there the container
writes. It stands in the container's own cgroup and goes with it: nobody else's
writing is touched. Without a mouse, and for tests:

    disk_panel()                         MiB a second
    disk(limit=8, seconds=3)             returns the Trace: write_bytes
"""

from matplotlib.figure import Figure

from labkit.cgroups.limits import IoLimit, Limits
from labkit.cgroups.quantities import disk_of
from labkit.ground import state
from labkit.lessons.figures import memory as figure
from labkit.lessons.panels import Panel, Values, slider
from labkit.lessons.panels.experiments import MIB, Experiment, measured
from labkit.lessons.watch import workloads
from labkit.lessons.watch.sampling import Trace

MOST = 64  # MiB a second: where a slow disk begins to be the limit itself


class Disk(Experiment):
    """A program that writes past the page cache as fast as it may, and a limit that can be turned."""

    numbers = ("write_bytes",)
    least = 250  # a second: its first blocks are sent before the limit counts

    def start(self, values: Values) -> None:
        self.disk = disk_of(state.lib_dir())
        self.contain(workloads.write(), values)

    def allowed(self, values: Values) -> Limits:
        return Limits(io=(IoLimit(self.disk, wbps=self.line(values)),))

    def line(self, values: Values) -> int:
        return values["limit"] * MIB

    def picture(self, trace: Trace) -> Figure:
        return figure.bandwidth(trace, self.limits, title="A program that writes as fast as it may")


def disk_panel(limit: int = 8) -> Panel:
    """Return the panel: the limit for writing to the disk, in MiB a second."""
    knobs = {"limit": slider("limit [MiB/s]", limit, 1, MOST)}
    return Panel("disk", Disk(), knobs, alt="How fast a container writes, on the line of its limit")


def disk(limit: int = 8, seconds: float = 3) -> Trace:
    """Let a program write with at most `limit` MiB a second; return the Trace."""
    return measured(Disk(), {"limit": limit}, seconds)
