"""Panels of chapter 04: a quota against a spinner, and three weights against each other.

Each has a plain function beside it, for who has no mouse, and for tests:

    quota_panel()                          knobs: CPUs, period
    quota(0.5, period=100, seconds=2)      the same without knobs; returns the Trace

    weights_panel()
    weights(100, 200, 400, seconds=2)
"""

from typing import Any

from matplotlib.figure import Figure

from labkit.cgroups.limits import Limits
from labkit.container.life import Container
from labkit.lessons.figures import cpu
from labkit.lessons.panels import Panel, Values, knob, slider
from labkit.lessons.panels.experiments import Experiment, measured
from labkit.lessons.watch import workloads
from labkit.lessons.watch.measuring import ahead
from labkit.lessons.watch.sampling import Sampler, Trace


class Quota(Experiment):
    """A spinner in a container, whose quota can be turned while it runs."""

    numbers = ("usage_usec", "nr_periods", "nr_throttled", "throttled_usec")
    least = 0

    def start(self, values: Values) -> None:
        self.contain(workloads.spin(), values)

    def allowed(self, values: Values) -> Limits:
        return Limits.parse(cpus=f"{values['cpus']:.2f}", cpu_period=int(values["period"]) * 1000)

    def line(self, values: Values) -> tuple[Any, int]:
        limits = self.allowed(values)
        return limits.cpu_quota, limits.period

    def picture(self, trace: Trace) -> Figure:
        quotas = [(when, quota) for when, (quota, _) in self.limits]
        periods = [(when, period) for when, (_, period) in self.limits]
        return cpu.throttling(trace, quotas, periods, title="A program that wants a whole CPU")


def quota(cpus: float, period: int = 100, seconds: float = 2) -> Trace:
    """Run a spinner with a quota of `cpus` CPUs in periods of `period` ms; return the Trace."""
    with ahead():
        return measured(Quota(), {"cpus": cpus, "period": period}, seconds)


def quota_panel(cpus: float = 0.5, period: int = 100) -> Panel:
    """Return the panel: how many CPUs, and in periods of how many ms."""
    knobs = {
        "cpus": knob("FloatSlider", "quota [CPUs]", value=cpus, min=0.05, max=1.0, step=0.05),
        "period": knob("SelectionSlider", "period [ms]", options=[20, 50, 100, 200, 500], value=period),
    }
    alt = "CPU use of a spinner over time, at the limit line; below it the time in which it was throttled"
    return Panel("quota", Quota(), knobs, alt=alt)


class Weights(Experiment):
    """Three spinners in three containers on one CPU, whose weights can be turned while they run."""

    least = 21

    def __init__(self) -> None:
        self.boxes: dict[str, Any] = {}
        self.weights: Values = {}

    def start(self, values: Values) -> None:
        for label, weight in values.items():
            box = Container("busybox", workloads.spin(), limits=Limits(cpu_weight=weight, cpuset_cpus="0"))
            self.boxes[label] = box.start()
        self._sample(values)

    def turn(self, values: Values) -> None:
        for label, weight in values.items():
            self.boxes[label].cgroup.set(Limits(cpu_weight=weight))
        self._sample(values)

    def _sample(self, values: Values) -> None:
        """Sample from now on: the totals of before belong to other weights."""
        if self.sampler:
            self.sampler.stop()
        self.weights = dict(values)
        groups = {label: box.cgroup for label, box in self.boxes.items()}
        self.sampler = Sampler(groups, ("usage_usec",), rate=100).start()

    def still(self, values: Values) -> Figure:
        self.weights = dict(values)
        return self.picture(Trace.without_samples([f"{label}.usage_usec" for label in values]))

    def picture(self, trace: Trace) -> Figure:
        return cpu.contention(trace, self.weights)

    def stop(self) -> None:
        super().stop()
        while self.boxes:
            self.boxes.popitem()[1].delete()


def weights(first: int = 100, second: int = 200, third: int = 400, seconds: float = 2) -> Trace:
    """Run three spinners on one CPU with these weights; return the Trace: a.usage_usec, b…, c…."""
    with ahead():
        return measured(Weights(), {"a": first, "b": second, "c": third}, seconds)


def weights_panel(first: int = 100, second: int = 200, third: int = 400) -> Panel:
    """Return the panel: three weights."""
    knobs = {
        label: slider(f"weight {label}", weight, 10, 1000, step=10)
        for label, weight in {"a": first, "b": second, "c": third}.items()
    }
    return Panel("weights", Weights(), knobs, alt="What share of one CPU each of three containers gets, and its ideal")
