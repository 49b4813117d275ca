"""Panels of chapter 05: a memory limit against a growing process, pids.max against a fork bomb, the freezer.

Each has a plain function beside it that returns the Trace:

    memory_panel()     memory(limit=48, wants=96, seconds=3)       MiB
    processes_panel()  processes(limit=20, seconds=2)
    freeze_panel()     freeze(seconds=2)
"""

import shlex
import threading
import time

from labkit.cgroups.cgroup import Limits
from labkit.cgroups.limits import MIN_MEMORY
from labkit.container.life import Container
from labkit.lessons.figures import memory as figure
from labkit.lessons.panels import Panel
from labkit.lessons.watch import workloads
from labkit.lessons.watch.sampling import Sampler

MIB = 1 << 20


class Contained:
    """An idle container that things are started in, and its sampler: what is killed is not PID 1."""

    numbers: tuple[str, ...] = ()
    box = sampler = None
    workers = ()

    def contain(self, limits, **words):
        self.box = Container("busybox", ["sleep", "100000"], limits=limits, **words).start()
        self.sampler = Sampler(self.box.cgroup, self.numbers).start()
        self.workers = []
        self.limits = []

    def remember(self, limit):
        """Write down the limit as it is from now on: the line in the picture has a step here."""
        self.limits.append((self.sampler.seconds(), limit))

    def run_inside(self, command):
        """Start a command in the container, and don't wait for it."""
        worker = threading.Thread(target=self.box.exec, args=(command,), daemon=True)
        worker.start()
        self.workers.append(worker)

    def trace(self):
        return self.sampler.trace()

    def stop(self):
        if self.sampler:
            self.sampler.stop()
        if self.box:
            self.box.kill()
            for worker in self.workers:
                worker.join(5)
            self.box.delete()
            self.box = None


class Memory(Contained):
    """A process that wants more and more, and a limit that can be turned; killed, it begins again."""

    numbers = ("memory_current", "memory_anon", "memory_file", "oom_kills")

    def start(self, values):
        self.wants = values["wants"]
        self.contain(Limits(memory=values["limit"] * MIB))
        self.remember(values["limit"] * MIB)
        self.run_inside(
            ["sh", "-c", f"while :; do {shlex.join(workloads.grow(self.wants, every=0.01))}; sleep 0.5; done"]
        )

    def turn(self, values):
        # v1 refuses a limit below what is used now; the panel says so, and the old one stays.
        self.box.cgroup.set(Limits(memory=values["limit"] * MIB))
        self.remember(values["limit"] * MIB)

    def draw(self):
        trace = self.trace()
        return (
            figure.growth(trace, self.limits, title=f"A program that wants {self.wants} MiB")
            if len(trace) > 2
            else None
        )


class Processes(Contained):
    """A fork bomb, and a limit that can be turned."""

    numbers = ("pids_current", "pids_denied")

    def start(self, values):
        # With an init, as else nobody would bury the dead: they count, and soon there would
        # be nothing else. And with little CPU, for the other programs here have work too.
        self.contain(Limits(pids=values["limit"], cpu_quota=30_000), init=True)
        self.remember(values["limit"])
        # A shell ends when a fork of its is refused; awk tries again.
        bomb = "bomb() { sleep 0.1; bomb | bomb & }; bomb; sleep 0.3"
        self.run_inside(["awk", f'BEGIN {{ while (1) system("{bomb}") }}'])

    def turn(self, values):
        self.box.cgroup.set(Limits(pids=values["limit"]))
        self.remember(values["limit"])

    def draw(self):
        trace = self.trace()
        return figure.processes(trace, self.limits) if len(trace) > 2 else None


class Freeze(Contained):
    """A spinner that a box freezes and thaws."""

    numbers = ("usage_usec", "frozen")

    def start(self, values):
        self.contain(Limits(cpu_quota=100_000))
        self.run_inside(workloads.spin())
        self.turn(values)

    def turn(self, values):
        if values["frozen"]:
            self.box.cgroup.freeze()
        else:
            self.box.cgroup.thaw()

    def draw(self):
        trace = self.trace()
        return figure.freezing(trace) if len(trace) > 30 else None

    def stop(self):
        if self.box:
            self.box.cgroup.thaw()
        super().stop()


def memory_panel(limit=48, wants=96):
    """Return the panel: the limit and what the program wants, in MiB."""
    import ipywidgets

    least = MIN_MEMORY // MIB
    knobs = {
        "limit": ipywidgets.IntSlider(limit, min=least, max=256, description="limit [MiB]", continuous_update=False),
        "wants": ipywidgets.IntSlider(wants, min=8, max=256, description="wants [MiB]", continuous_update=False),
    }
    return Panel("memory", Memory(), knobs, alt="Memory in use grows to the limit; there the process is killed")


def processes_panel(limit=20):
    """Return the panel: pids.max."""
    import ipywidgets

    knob = ipywidgets.IntSlider(limit, min=5, max=100, description="pids.max", continuous_update=False)
    return Panel("processes", Processes(), {"limit": knob}, alt="A fork bomb's processes, flat at pids.max")


def freeze_panel():
    """Return the panel: frozen or not."""
    import ipywidgets

    return Panel(
        "freeze",
        Freeze(),
        {"frozen": ipywidgets.ToggleButton(False, description="frozen")},
        alt="CPU use, none while frozen",
    )


def memory(limit=48, wants=96, seconds=3):
    """Let a process that wants `wants` MiB run into a limit of `limit` MiB; return the Trace."""
    return measured(Memory(), {"limit": limit, "wants": wants}, seconds)


def processes(limit=20, seconds=2):
    """Let a fork bomb run into pids.max, and `seconds` on from there; return the Trace."""

    def refused(experiment):
        deadline = time.monotonic() + 20  # a slow machine needs a while to start so many
        while not experiment.trace()["pids_denied"][-1] and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(seconds)

    return measured(Processes(), {"limit": limit}, 0, refused)


def freeze(seconds=2):
    """Freeze a spinner for the middle third of `seconds`; return the Trace."""

    def turns(experiment):
        for frozen in (False, True, False):
            experiment.turn({"frozen": frozen})
            time.sleep(seconds / 3)

    return measured(Freeze(), {"frozen": False}, 0, turns)


def measured(experiment, values, seconds, then=lambda experiment: None):
    """Run an experiment for `seconds`, and `then(experiment)`; take all away and return its Trace."""
    try:
        experiment.start(values)
        time.sleep(seconds)
        then(experiment)
        return experiment.trace()
    finally:
        experiment.stop()
