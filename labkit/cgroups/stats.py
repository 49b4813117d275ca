"""What a cgroup has used so far, in named units, whatever version it was read from.

The kernel keeps these numbers in a dozen files, under names and in units that
differ by version. `controllers` reads them; here is only what they mean.
See Documentation/admin-guide/cgroup-v2.rst, "cpu.stat", "memory.events", "pids.events".
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """What a cgroup has used. A number that this kernel does not keep is None."""

    usage_usec: int | None = None  # µs of CPU, of which
    user_usec: int | None = None
    system_usec: int | None = None
    nr_periods: int | None = None  # periods in which it wanted to run under a quota
    nr_throttled: int | None = None  # of those, how many ended with the quota used up
    throttled_usec: int | None = None  # µs in which it was held back, summed over CPUs
    nr_bursts: int | None = None
    burst_usec: int | None = None
    memory_current: int | None = None  # bytes
    memory_peak: int | None = None
    memory_max: int | None = None  # bytes; None also means no limit
    memory_swap_current: int | None = None
    memory_max_hits: int | None = None  # how often it ran into memory_max
    memory_high_hits: int | None = None  # how often it was slowed down at memory_high
    oom_kills: int | None = None  # processes killed for lack of memory
    pids_current: int | None = None
    pids_peak: int | None = None
    pids_max: int | None = None
    pids_denied: int | None = None  # forks refused

    def __repr__(self):
        known = ((name, value) for name, value in vars(self).items() if value is not None)
        return "Stats(" + ", ".join(f"{name}={value}" for name, value in known) + ")"
