"""What runs behind a panel: a container, its sampler, and the limits that were set meanwhile.

Who inherits says what the container does, which numbers are read, what the knobs mean
to the kernel, and how it is drawn. `measured` runs one without any panel.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from matplotlib.figure import Figure

from labkit.cgroups.limits import Limits
from labkit.container.life import Container
from labkit.lessons.panels import Values
from labkit.lessons.watch.sampling import Sampler, Trace

MIB = 1 << 20


class Experiment:
    """One container, whose limits can be turned while it runs."""

    numbers: tuple[str, ...] = ()  # what is sampled
    least = 3  # samples that a picture needs
    box: Any = None
    sampler: Sampler | None = None
    limits: list[tuple[float, Any]] = []  # (when, limit): the line in the picture has a step here

    def allowed(self, values: Values) -> Limits:
        """Return the kernel's limits for what the knobs say."""
        raise NotImplementedError

    def line(self, values: Values) -> Any:
        """Return the limit that is drawn for what the knobs say."""
        return None

    def picture(self, trace: Trace) -> Figure:
        """Return the picture of a trace, and of `limits`."""
        raise NotImplementedError

    def contain(self, command: list[str], values: Values, **words: Any) -> None:
        """Start the container and its sampler."""
        self.box = Container("busybox", command, limits=self.allowed(values), **words).start()
        self.sampler = Sampler(self.box.cgroup, self.numbers).start()
        self.limits = [(self.sampler.seconds(), self.line(values))]

    def turn(self, values: Values) -> None:
        """Set other limits. v1 refuses one of memory below what is used now: then the old one stays."""
        assert self.sampler, "it has not been started"
        self.box.cgroup.set(self.allowed(values))
        self.limits.append((self.sampler.seconds(), self.line(values)))

    def still(self, values: Values) -> Figure:
        """Return the picture of before: axes and limits."""
        self.limits = [(0.0, self.line(values))]
        return self.picture(Trace.without_samples(self.numbers))

    def trace(self) -> Trace:
        """Return what was sampled so far."""
        assert self.sampler, "it has not been started"
        return self.sampler.trace()

    def draw(self) -> Figure | None:
        """Return the picture of what was sampled so far, or None if that is too little."""
        trace = self.trace()
        return self.picture(trace) if len(trace) >= self.least else None

    def stop(self) -> None:
        """Take the container away; the trace stays."""
        if self.sampler:
            self.sampler.stop()
        if self.box:
            self.box.delete()
            self.box = None


Any_experiment = TypeVar("Any_experiment", bound=Any)


def measured(
    experiment: Any_experiment, values: Values, seconds: float, then: Callable[[Any_experiment], object] | None = None
) -> Trace:
    """Run an experiment for `seconds`, and `then(experiment)`; take all away and return its Trace."""
    try:
        experiment.start(values)
        time.sleep(seconds)
        if then:
            then(experiment)
        return experiment.trace()
    finally:
        experiment.stop()
