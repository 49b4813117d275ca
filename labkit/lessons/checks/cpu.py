"""Checks of chapter 04: a quota, shares by weight, a CPU of one's own."""

import os
import time
from collections.abc import Sequence

from labkit.cgroups.cgroup import Cgroup
from labkit.container.life import Container
from labkit.lessons.checks import Requirements, exercise, running
from labkit.lessons.watch.measuring import cpu_share


def _limit(cgroup: Cgroup) -> tuple[int | None, int]:
    """Return the (quota, period) that the kernel has for a cgroup, in µs; the quota is None if there is none."""
    if cgroup.version("cpu") == 2:
        quota, period = cgroup.read("cpu.max").split()
    else:
        quota, period = cgroup.read("cpu.cfs_quota_us"), cgroup.read("cpu.cfs_period_us")
    return (None if quota.strip() in ("max", "-1") else int(quota)), int(period)


def _shares(boxes: Sequence[Container], seconds: float) -> list[float]:
    """Return what each container got of what all of them got in the next `seconds`."""
    before = [box.stats().usage_usec for box in boxes]
    time.sleep(seconds)
    used = [box.stats().usage_usec - start for box, start in zip(boxes, before, strict=True)]
    return [one / max(sum(used), 1) for one in used]


@exercise
def quota(box: Container, cpus: float, period: int) -> Requirements:
    """Give a container the same CPUs in periods of another length.

    `cpus` is in CPUs, `period` in µs.
    """
    yield running(box)
    quota, has = _limit(box.cgroup)
    yield (
        quota is not None,
        "it has a quota",
        "a limit is set by box.cgroup.set(Limits(...)) or cpus=",
        "cpus=0.5 is one",
    )
    yield (has == period, f"its period is {period} µs", "the period is a limit of its own", "cpu_period=, in µs")
    wanted = round(cpus * period)
    yield (
        quota == wanted,
        f"its quota is {wanted} µs",
        "the quota is the CPU time in one period, not in a second",
        f"{cpus} CPUs of a period of {period} µs: multiply",
    )
    share = cpu_share(box.cgroup)
    yield share > 0.02, "something in it wants CPU", "run something that never rests: workloads.spin()"
    yield (share <= 1.1 * cpus, f"in one second it got no more than {cpus} CPUs", "is the limit on this container?")


@exercise
def shares(boxes: Sequence[Container], wanted: Sequence[float], seconds: float = 1.5, tries: int = 4) -> Requirements:
    """Share one CPU among containers by weights alone.

    `wanted` are their ideal shares, which sum up to 1.
    """
    yield (all(box.status == "running" for box in boxes), "all of them run", "start them again: run the cell above")
    yield len(boxes) == len(wanted), f"there are {len(wanted)} of them", f"a list of {len(wanted)} containers"
    yield (
        all(_limit(box.cgroup)[0] is None for box in boxes),
        "none of them has a quota",
        "a quota would hold one back also when the CPU is free; use weights only",
        "cpu_weight=, and no cpus=",
    )
    allowed = {frozenset(os.sched_getaffinity(box.pid)) for box in boxes}
    yield (
        len(allowed) == 1 and len(next(iter(allowed))) == 1,
        "all want the same one CPU",
        "where there is a free CPU nobody has to share",
        'cpuset_cpus="0" for each of them',
    )
    # Others' work on the machine disturbs a short look: the best of a few counts.
    found = [_shares(boxes, seconds)]
    while len(found) < tries and not _near(found[-1], wanted):
        found.append(_shares(boxes, seconds))
    yield (
        _near(found[-1], wanted),
        "the shares are " + " ".join(f"{100 * share:.0f} %" for share in wanted),
        "a share is one's own weight by the sum of all: now they are "
        + " ".join(f"{100 * share:.0f} %" for share in found[-1]),
        "for a half and two quarters: weights like 200, 100, 100",
    )


def _near(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return all(abs(a / b - 1) <= 0.1 for a, b in zip(found, wanted, strict=True))


@exercise
def pinned(box: Container, cpu: int) -> Requirements:
    """Keep a running container on one CPU, and on no other."""
    yield running(box)
    cpus = box.cgroup.read("cpuset.cpus").strip()
    yield (cpus == str(cpu), f"its cpuset.cpus is {cpu}", f"it is {cpus or 'empty'} now", f'cpuset_cpus="{cpu}"')
    yield (
        all(os.sched_getaffinity(process.pid) == {cpu} for process in box.top()),
        f"all of its processes are allowed on CPU {cpu} only",
        "Cpus_allowed_list in /proc/PID/status",
    )
