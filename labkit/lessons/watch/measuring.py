"""Measuring what a group gets of the CPU, on a machine that does other things too.

A limit says what a group may have; the machine says what there is. On a busy one
a spinner with a quota of half a CPU gets less than that, and the quota is not to
blame. So `ahead` clears the way for as long as something is measured.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from labkit.cgroups.cgroup import Cgroup
from labkit.ground import state


def until(condition: Callable[[], object], seconds: float = 20, pause: float = 0.02) -> bool:
    """Wait for a condition for at most so many seconds; return whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def cpu_share(cgroup: Cgroup, seconds: float = 1.0) -> float:
    """Return how many CPUs a cgroup uses in the next `seconds`: 0.5 is half of one."""
    before, start = cgroup.stats().usage_usec, time.monotonic()
    time.sleep(seconds)
    return (cgroup.stats().usage_usec - before) / 1e6 / (time.monotonic() - start)


@contextlib.contextmanager
def ahead() -> Iterator[None]:
    """Give labkit's own folder the largest CPU weight while the block runs.

    For measuring: what is found is then the limit, and not what else this machine
    does at the moment. A weight counts among siblings only, so a container's own
    could not do that. See Documentation/admin-guide/cgroup-v2.rst, "Weights".
    """
    with Cgroup.create(f"ahead-{state.new_id()}") as holder:  # keeps the folder above from being removed
        name, most, usual = ("cpu.shares", 262_144, 1024) if holder.version("cpu") == 1 else ("cpu.weight", 10_000, 100)
        file = holder.path("cpu").parent / name
        file.write_text(str(most))
        try:
            yield
        finally:
            file.write_text(str(usual))
