"""Panels of chapter 04: a quota against a spinner, and three weights against each other.

Each has a plain function beside it, for who has no mouse, and for tests:

    quota_panel()                          knobs: CPUs, period
    quota(0.5, period=100, seconds=2)      the same without knobs; returns the Trace

    weights_panel()
    weights(100, 200, 400, seconds=2)
"""

import time

from labkit.cgroups.cgroup import Limits
from labkit.container.life import Container
from labkit.lessons.figures import cpu
from labkit.lessons.panels import Panel
from labkit.lessons.watch import workloads
from labkit.lessons.watch.measuring import ahead
from labkit.lessons.watch.sampling import Sampler

NUMBERS = ("usage_usec", "nr_periods", "nr_throttled", "throttled_usec")


class Quota:
    """A spinner in a container, whose quota can be turned while it runs."""

    box = sampler = None

    def start(self, values):
        self.limits = []  # (when, quota, period): what the limit line is drawn from
        limits = _quota(values)
        self.box = Container("busybox", workloads.spin(), limits=limits).start()
        self.sampler = Sampler(self.box.cgroup, NUMBERS).start()
        self._remember(limits)

    def turn(self, values):
        limits = _quota(values)
        self.box.cgroup.set(limits)
        self._remember(limits)

    def _remember(self, limits):
        self.limits.append((self.sampler.seconds(), limits.cpu_quota, limits.period))

    def trace(self):
        return self.sampler.trace()

    def draw(self):
        quotas = [(when, quota) for when, quota, _ in self.limits]
        periods = [(when, period) for when, _, period in self.limits]
        return cpu.throttling(self.trace(), quotas, periods, title="A program that wants a whole CPU")

    def stop(self):
        if self.sampler:
            self.sampler.stop()
        if self.box:
            self.box.delete()
            self.box = None


def _quota(values):
    return Limits.parse(cpus=f"{values['cpus']:.2f}", cpu_period=int(values["period"]) * 1000)


def quota(cpus, period=100, seconds=2):
    """Run a spinner with a quota of `cpus` CPUs in periods of `period` ms; return the Trace."""
    return _run(Quota(), {"cpus": cpus, "period": period}, seconds)


def quota_panel(cpus=0.5, period=100):
    """Return the panel: how many CPUs, and in periods of how many ms."""
    import ipywidgets

    return Panel(
        "quota",
        Quota(),
        {
            "cpus": ipywidgets.FloatSlider(cpus, min=0.05, max=1.0, step=0.05, description="CPUs"),
            "period": ipywidgets.SelectionSlider(
                options=[20, 50, 100, 200, 500], value=period, description="period [ms]"
            ),
        },
        alt="CPU use of a spinner over time, at the limit line; below it the time in which it was throttled",
    )


class Weights:
    """Three spinners in three containers on one CPU, whose weights can be turned while they run."""

    def __init__(self):
        self.boxes, self.sampler, self.weights = {}, None, {}

    def start(self, values):
        self.weights = dict(values)
        for label, weight in values.items():
            box = Container("busybox", workloads.spin(), limits=Limits(cpu_weight=weight, cpuset_cpus="0"))
            self.boxes[label] = box.start()
        self._sample()

    def turn(self, values):
        self.weights = dict(values)
        for label, weight in values.items():
            self.boxes[label].cgroup.set(Limits(cpu_weight=weight))
        self._sample()  # the totals of before belong to other weights

    def _sample(self):
        if self.sampler:
            self.sampler.stop()
        groups = {label: box.cgroup for label, box in self.boxes.items()}
        self.sampler = Sampler(groups, ("usage_usec",), rate=100).start()

    def trace(self):
        return self.sampler.trace()

    def draw(self):
        trace = self.trace()
        return cpu.contention(trace, self.weights) if len(trace) > 20 else None

    def stop(self):
        if self.sampler:
            self.sampler.stop()
        while self.boxes:
            self.boxes.popitem()[1].delete()


def weights(first=100, second=200, third=400, seconds=2):
    """Run three spinners on one CPU with these weights; return the Trace: a.usage_usec, b…, c…."""
    return _run(Weights(), {"a": first, "b": second, "c": third}, seconds)


def weights_panel(first=100, second=200, third=400):
    """Return the panel: three weights."""
    import ipywidgets

    knobs = {
        label: ipywidgets.IntSlider(
            value, min=10, max=1000, step=10, description=f"weight {label}", continuous_update=False
        )
        for label, value in (("a", first), ("b", second), ("c", third))
    }
    return Panel("weights", Weights(), knobs, alt="What share of one CPU each of three containers gets, and its ideal")


def _run(experiment, values, seconds):
    with ahead():
        try:
            experiment.start(values)
            time.sleep(seconds)
            return experiment.trace()
        finally:
            experiment.stop()
