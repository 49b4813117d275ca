"""Panels of chapter 05: a memory limit against a growing process, pids.max against a fork bomb, the freezer.

Each has a plain function beside it that returns the Trace:

    memory_panel()     memory(limit=48, wants=96, seconds=3)       MiB
    processes_panel()  processes(limit=20, seconds=2)
    freeze_panel()     freeze(seconds=2)
"""

import shlex
import time

from matplotlib.figure import Figure

from labkit.cgroups.limits import MIN_MEMORY, Limits
from labkit.lessons.figures import memory as figure
from labkit.lessons.panels import Panel, Values, knob, slider
from labkit.lessons.panels.experiments import MIB, Experiment, measured
from labkit.lessons.watch import workloads
from labkit.lessons.watch.measuring import until
from labkit.lessons.watch.sampling import Trace


class Memory(Experiment):
    """A process that wants more and more, and a limit that can be turned; killed, it begins again."""

    numbers = ("memory_current", "memory_anon", "memory_file", "oom_kills")

    def start(self, values: Values) -> None:
        self.wants = values["wants"]
        grow = shlex.join(workloads.grow(self.wants, every=0.01))
        self.contain(["sh", "-c", f"while :; do {grow}; sleep 0.5; done"], values)

    def allowed(self, values: Values) -> Limits:
        return Limits(memory=self.line(values))

    def line(self, values: Values) -> int:
        return values["limit"] * MIB

    def still(self, values: Values) -> Figure:
        self.wants = values["wants"]
        return super().still(values)

    def picture(self, trace: Trace) -> Figure:
        return figure.growth(trace, self.limits, title=f"A program that wants {self.wants} MiB")


class Processes(Experiment):
    """A fork bomb, and a limit that can be turned."""

    numbers = ("pids_current", "pids_denied")

    def start(self, values: Values) -> None:
        # A shell ends when a fork of its is refused; awk tries again.
        bomb = "bomb() { sleep 0.1; bomb | bomb & }; bomb; sleep 0.3"
        # With an init, as else nobody would bury the dead: they count, and soon there would be nothing else.
        self.contain(["awk", f'BEGIN {{ while (1) system("{bomb}") }}'], values, init=True)

    def allowed(self, values: Values) -> Limits:
        return Limits(pids=self.line(values), cpu_quota=30_000)

    def line(self, values: Values) -> int:
        return values["limit"]

    def picture(self, trace: Trace) -> Figure:
        return figure.processes(trace, self.limits)


class Freeze(Experiment):
    """A spinner that a box freezes and thaws."""

    numbers = ("usage_usec", "frozen")
    least = 31

    def start(self, values: Values) -> None:
        self.contain(workloads.spin(), values)
        self.turn(values)

    def allowed(self, values: Values) -> Limits:
        return Limits(cpu_quota=100_000)

    def turn(self, values: Values) -> None:
        if values["frozen"]:
            self.box.cgroup.freeze()
        else:
            self.box.cgroup.thaw()

    def picture(self, trace: Trace) -> Figure:
        return figure.freezing(trace)

    def stop(self) -> None:
        if self.box:
            self.box.cgroup.thaw()
        super().stop()


def memory_panel(limit: int = 48, wants: int = 96) -> Panel:
    """Return the panel: the limit and what the program wants, in MiB."""
    least = MIN_MEMORY // MIB
    knobs = {"limit": slider("limit [MiB]", limit, least, 256), "wants": slider("wants [MiB]", wants, 8, 256)}
    return Panel("memory", Memory(), knobs, alt="Memory in use grows to the limit; there the process is killed")


def processes_panel(limit: int = 20) -> Panel:
    """Return the panel: pids.max."""
    knobs = {"limit": slider("pids.max", limit, 5, 100)}
    return Panel("processes", Processes(), knobs, alt="A fork bomb's processes, flat at pids.max")


def freeze_panel() -> Panel:
    """Return the panel: frozen or not."""
    return Panel(
        "freeze", Freeze(), {"frozen": knob("Checkbox", "frozen", indent=False)}, alt="CPU use, none while frozen"
    )


def memory(limit: int = 48, wants: int = 96, seconds: float = 3) -> Trace:
    """Let a process that wants `wants` MiB run into a limit of `limit` MiB; return the Trace."""
    return measured(Memory(), {"limit": limit, "wants": wants}, seconds)


def processes(limit: int = 20, seconds: float = 2) -> Trace:
    """Let a fork bomb run into pids.max, and `seconds` on from there; return the Trace."""

    def refused(bomb: Processes) -> None:
        until(lambda: bomb.trace()["pids_denied"][-1] > 0)  # a slow machine needs a while to start so many
        time.sleep(seconds)

    return measured(Processes(), {"limit": limit}, 0, refused)


def freeze(seconds: float = 2) -> Trace:
    """Freeze a spinner for the middle third of `seconds`; return the Trace."""

    def turns(spinner: Freeze) -> None:
        for frozen in (False, True, False):
            spinner.turn({"frozen": frozen})
            time.sleep(seconds / 3)

    return measured(Freeze(), {"frozen": False}, 0, turns)
