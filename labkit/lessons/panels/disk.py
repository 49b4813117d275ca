"""The panel of chapter 05 for a disk: how many bytes a second a container may write.

The limit is on the disk that labkit's own files are on, for there the container
writes. It stands in the container's own cgroup and goes with it: nobody else's
writing is touched. Without a mouse, and for tests:

    disk_panel()                         MiB a second
    disk(limit=8, seconds=3)             returns the Trace: write_bytes
"""

from labkit.cgroups.cgroup import Limits
from labkit.cgroups.limits import IoLimit
from labkit.cgroups.quantities import disk_of
from labkit.ground import state
from labkit.lessons.figures import memory as figure
from labkit.lessons.panels import Panel
from labkit.lessons.panels.memory import MIB, Contained, measured
from labkit.lessons.watch import workloads

MOST = 64  # MiB a second: where a slow disk begins to be the limit itself


class Disk(Contained):
    """A program that writes past the page cache as fast as it may, and a limit that can be turned."""

    numbers = ("write_bytes",)

    def start(self, values):
        self.disk = disk_of(state.lib_dir())
        self.contain(Limits(io=(self._limit(values),)))
        self.remember(values["limit"] * MIB)
        self.run_inside(workloads.write())

    def _limit(self, values):
        return IoLimit(self.disk, wbps=values["limit"] * MIB)

    def turn(self, values):
        self.box.cgroup.set(Limits(io=(self._limit(values),)))
        self.remember(values["limit"] * MIB)

    def draw(self):
        trace = self.trace()
        enough = len(trace) and trace.time[-1] > 1
        title = "A program that writes as fast as it may"
        return figure.bandwidth(trace, self.limits, title=title) if enough else None


def disk_panel(limit=8):
    """Return the panel: the limit for writing to the disk, in MiB a second."""
    import ipywidgets

    knob = ipywidgets.IntSlider(limit, min=1, max=MOST, description="MiB/s", continuous_update=False)
    alt = "How fast a container writes, on the line of its limit"
    return Panel("disk", Disk(), {"limit": knob}, alt=alt)


def disk(limit=8, seconds=3):
    """Let a program write with at most `limit` MiB a second; return the Trace."""
    return measured(Disk(), {"limit": limit}, seconds)
