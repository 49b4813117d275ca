"""The same limit, the same count, in two dialects: V1 and V2, side by side.

Both versions know a memory limit, a CPU quota, a weight. They differ in the
names, in the units (v1 counts throttled time in ns, v2 in µs) and in what one
file holds: v2's `cpu.max` is quota and period together, v1 has a file for each.
So there is one small class a version, with the same three methods:

    plan(limits)    [(file, text), …] in the order in which the kernel takes them
    file(name)      this version's file for a name of the other
    stats()         what has been used, by the names of Stats

Order matters more than it seems. v1 checks limits against each other at every
write: memory alone may never exceed memory and swap together, and a child's
quota may never pass its parent's, not even for the moment between two writes.
See Documentation/admin-guide/cgroup-v1/memory.rst, Documentation/scheduler/sched-bwc.rst,
Documentation/admin-guide/cgroup-v2.rst: "cpu.stat", "memory.events", "pids.events".
"""

import os
from collections.abc import Iterable
from pathlib import Path

from labkit.cgroups.events import flat
from labkit.cgroups.hierarchies import Hierarchy
from labkit.cgroups.limits import PER_SHARE, UNLIMITED, Limits
from labkit.ground import proc
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import Unsupported

_TO_V1 = {
    "memory.max": "memory.limit_in_bytes",
    "memory.current": "memory.usage_in_bytes",
    "memory.peak": "memory.max_usage_in_bytes",
    "memory.low": "memory.soft_limit_in_bytes",
    "cpu.max.burst": "cpu.cfs_burst_us",
    "cpuset.cpus.effective": "cpuset.effective_cpus",
    "cpuset.mems.effective": "cpuset.effective_mems",
}
_TO_V2 = {v1: v2 for v2, v1 in _TO_V1.items()}
_NEAR = {
    "cpu.max": "cpu.cfs_quota_us and cpu.cfs_period_us",
    "cpu.weight": "cpu.shares (1024 shares are weight 100)",
    "memory.swap.max": "memory.memsw.limit_in_bytes (memory and swap together)",
    "memory.events": "memory.oom_control and memory.failcnt",
    "io.max": "blkio.throttle.read_bps_device and its three siblings",
    "cgroup.freeze": "freezer.state",
    "memory.high": "nothing like it",
    "memory.oom.group": "nothing like it",
}


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

    def __repr__(self) -> str:
        known = ((name, value) for name, value in vars(self).items() if value is not None)
        return "Stats(" + ", ".join(f"{name}={value}" for name, value in known) + ")"


Found = dict[str, int | None]  # by the names of Stats
_Step = tuple[str, str | None]  # a file and what to write; None is nothing
# Of v2's cpu.stat, which has the names of Stats.
_CPU = "usage_usec user_usec system_usec nr_periods nr_throttled throttled_usec nr_bursts burst_usec".split()


class _Folder:
    """One folder in one tree."""

    version: int
    KILLS: str  # the file that counts kills for want of memory

    def __init__(self, path: str | Path, tree: Hierarchy) -> None:
        self.path = Path(path)
        self.tree, self.controllers = tree, tree.controllers

    def __repr__(self) -> str:
        return f"<v{self.version} {self.path}>"

    def has(self, name: str) -> bool:
        return os.path.exists(f"{self.path}/{name}")

    def number(self, name: str) -> int | None:
        """Return the number in a file; None if it says `max` or there is no such file."""
        text = self.text(name).strip()
        return int(text) if text.lstrip("-").isdigit() else None

    def numbers(self, name: str) -> dict[str, int]:
        return flat(self.text(name))  # nothing, if there is no such file

    def text(self, name: str) -> str:
        try:
            return proc.read_plain(f"{self.path}/{name}")
        except OSError:
            return ""

    def oom_kills(self) -> int | None:
        """Return how many of its processes were killed for want of memory."""
        return self.numbers(self.KILLS).get("oom_kill")

    def _pids(self) -> Found:
        return {
            "pids_current": self.number("pids.current"),
            "pids_peak": self.number("pids.peak"),
            "pids_max": self.number("pids.max"),
            "pids_denied": self.numbers("pids.events").get("max"),
        }


class V2(_Folder):
    """A folder in the one tree of version 2."""

    version = 2
    KILLS = "memory.events"

    def file(self, name: str) -> str:
        return _TO_V2.get(name, name)

    def prepare(self) -> None:
        """Make the folder fit for processes: nothing to do."""

    def plan(self, limits: Limits) -> list[tuple[str, str]]:
        """Return the (file, text) to write for what `limits` sets."""
        steps: list[_Step] = [
            # Before memory.max: that one, lowered below what is in use, swaps out all it may.
            ("memory.swap.max", self._swap(limits)),
            ("memory.max", _or_max(limits.memory)),
            ("memory.high", _or_max(limits.memory_high)),
            ("memory.low", _or_max(limits.memory_low)),
            ("memory.oom.group", None if limits.oom_group is None else str(int(limits.oom_group))),
            ("cpu.weight", _text(limits.cpu_weight)),
            ("cpuset.cpus", limits.cpuset_cpus),
            ("pids.max", _or_max(limits.pids)),
            (self._weight_file(), _text(limits.io_weight)),
        ]
        if limits.cpu_quota is not None:
            # A burst above the new quota would be refused: none, quota, then the new one.
            if self.number("cpu.max.burst"):
                steps.append(("cpu.max.burst", "0"))
            steps.append(("cpu.max", f"{_or_max(limits.cpu_quota)} {limits.period}"))
        steps.append(("cpu.max.burst", _text(limits.cpu_burst)))
        for limit in limits.io:
            rates = " ".join(f"{name}={_or_max(value)}" for name, value in limit.rates().items())
            steps.append(("io.max", f"{limit.device} {rates}"))
        return _said(steps)

    def _swap(self, limits: Limits) -> str | None:
        """Return the swap beside a memory limit: none, where this kernel counts it and nothing else is said."""
        if limits.memory_swap in (None, UNLIMITED) and not self.has("memory.swap.max"):
            return None  # what is not counted has no limit
        if limits.memory_swap is None and limits.memory not in (None, UNLIMITED):
            return "0"
        return _or_max(limits.memory_swap)

    def _weight_file(self) -> str:
        """Return the file for a disk weight: io.cost has one (io.weight), the scheduler bfq another."""
        return "io.bfq.weight" if self.has("io.bfq.weight") and not self.has("io.weight") else "io.weight"

    def stats(self) -> Found:
        """Return the numbers that this folder has, by the names of Stats."""
        cpu = self.numbers("cpu.stat")
        found: Found = {name: cpu.get(name) for name in _CPU}
        if "memory" in self.controllers:
            memory = self.numbers("memory.events")
            found.update(
                memory_current=self.number("memory.current"),
                memory_peak=self.number("memory.peak"),
                memory_max=self.number("memory.max"),
                memory_swap_current=self.number("memory.swap.current"),
                memory_max_hits=memory.get("max"),
                memory_high_hits=memory.get("high"),
                oom_kills=memory.get("oom_kill"),
            )
        if "pids" in self.controllers:
            found.update(self._pids())
        return found


class V1(_Folder):
    """A folder in one of the many trees of version 1."""

    version = 1
    KILLS = "memory.oom_control"

    def file(self, name: str) -> str:
        if name in _NEAR and not self.has(name):
            raise Unsupported(f"{name} is a file of cgroup v2; here {self.path} is v1", f"v1 has {_NEAR[name]}")
        return _TO_V1.get(name, name)

    def prepare(self) -> None:
        """Make the folder fit for processes: a v1 cpuset is born empty, and nothing may enter it then."""
        if "cpuset" in self.controllers:
            for name in ("cpuset.cpus", "cpuset.mems"):
                _inherit(self.path, name)

    def plan(self, limits: Limits) -> list[tuple[str, str]]:
        """Return the (file, text) to write for what `limits` sets. Raise Unsupported for what only v2 has."""
        steps: list[_Step] = []
        if "memory" in self.controllers:
            steps += self._plan_memory(limits)
        if "cpu" in self.controllers:
            steps += self._plan_cpu(limits)
        if "cpuset" in self.controllers:
            steps.append(("cpuset.cpus", limits.cpuset_cpus))
        if "pids" in self.controllers:
            steps.append(("pids.max", _or_max(limits.pids)))
        if "io" in self.controllers:
            steps += self._plan_io(limits)
        return _said(steps)

    def _plan_memory(self, limits: Limits) -> list[_Step]:
        for value, file in ((limits.memory_high, "memory.high"), (limits.oom_group, "memory.oom.group")):
            if value is not None:
                self.file(file)
        low = ("memory.soft_limit_in_bytes", _text(limits.memory_low))
        if limits.memory is None:
            return [low]
        steps = [("memory.limit_in_bytes", _text(limits.memory))]
        both = _both(limits.memory, limits.memory_swap)
        if limits.memory_swap not in (None, UNLIMITED) or self.has("memory.memsw.limit_in_bytes"):
            steps.append(("memory.memsw.limit_in_bytes", _text(both)))
        # Memory alone may never be above memory and swap together: raise the outer
        # limit first, lower the inner one first.
        now = self.number("memory.memsw.limit_in_bytes") or 0
        return [low, *(reversed(steps) if both == UNLIMITED or both > now else steps)]

    def _plan_cpu(self, limits: Limits) -> list[_Step]:
        steps: list[_Step] = []
        if limits.cpu_weight is not None:
            steps.append(("cpu.shares", str(round(limits.cpu_weight * PER_SHARE))))
        if limits.cpu_quota is not None:
            if self.number("cpu.cfs_burst_us"):
                steps.append(("cpu.cfs_burst_us", "0"))
            both = [("cpu.cfs_quota_us", str(limits.cpu_quota)), ("cpu.cfs_period_us", str(limits.period))]
            # Between the two writes the share must not pass the parent's: what
            # makes it smaller goes first. Without a quota the period is free to change.
            now = self.number("cpu.cfs_quota_us") or UNLIMITED
            shrinks = now != UNLIMITED and UNLIMITED < limits.cpu_quota < now
            steps += both if shrinks else reversed(both)
        steps.append(("cpu.cfs_burst_us", _text(limits.cpu_burst)))
        return steps

    def _plan_io(self, limits: Limits) -> list[_Step]:
        names = {"rbps": "read_bps", "wbps": "write_bps", "riops": "read_iops", "wiops": "write_iops"}
        steps: list[_Step] = [
            (f"blkio.throttle.{names[name]}_device", f"{limit.device} {max(0, value)}")  # 0 is none
            for limit in limits.io
            for name, value in limit.rates().items()
        ]
        weight = "blkio.bfq.weight" if self.has("blkio.bfq.weight") else "blkio.weight"
        steps.append((weight, _text(limits.io_weight)))
        return steps

    def stats(self) -> Found:
        """Return the numbers that this folder has, by the names of Stats."""
        found: Found = {}
        if "cpuacct" in self.controllers:
            found.update(
                usage_usec=_usec(self.number("cpuacct.usage")),
                user_usec=_usec(self.number("cpuacct.usage_user")),
                system_usec=_usec(self.number("cpuacct.usage_sys")),
            )
        if "cpu" in self.controllers:
            cpu = self.numbers("cpu.stat")
            found.update(
                nr_periods=cpu.get("nr_periods"),
                nr_throttled=cpu.get("nr_throttled"),
                throttled_usec=_usec(cpu.get("throttled_time")),
                nr_bursts=cpu.get("nr_bursts"),
                burst_usec=_usec(cpu.get("burst_time")),
            )
        if "memory" in self.controllers:
            limit, used = self.number("memory.limit_in_bytes"), self.number("memory.usage_in_bytes")
            found.update(
                memory_current=used,
                memory_peak=self.number("memory.max_usage_in_bytes"),
                # v1 has no word for "no limit": it shows the largest number of whole pages.
                memory_max=None if limit is None or limit > 1 << 62 else limit,
                memory_max_hits=self._max_hits(),
                oom_kills=self.oom_kills(),
            )
            if (both := self.number("memory.memsw.usage_in_bytes")) is not None:
                found["memory_swap_current"] = max(0, both - (used or 0))
        if "pids" in self.controllers:
            found.update(self._pids())
        return found

    def _max_hits(self) -> int | None:
        """Return how often the limit was run into, None if this kernel does not count it (6.18 does not)."""
        # What may not pass the limit on both together is not tried on memory alone.
        hits = sum(self.number(f"memory.{which}failcnt") or 0 for which in ("", "memsw."))
        peak, limit = self.number("memory.max_usage_in_bytes"), self.number("memory.limit_in_bytes")
        return None if hits == 0 and peak is not None and limit is not None and peak >= limit else hits


def _inherit(folder: Path, name: str) -> str:
    """Return what a cpuset's file says; if that is nothing, it is given what the folder above has."""
    text = proc.read_plain(folder / name)
    if not text.strip():
        text = _inherit(folder.parent, name)
        proc.write_plain(folder / name, text)
    return text


Folder = V1 | V2


def _said(steps: Iterable[_Step]) -> list[tuple[str, str]]:
    return [(file, text) for file, text in steps if text is not None]


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)


def _or_max(value: int | None) -> str | None:
    return "max" if value == UNLIMITED else _text(value)


def _usec(nanoseconds: int | None) -> int | None:
    return None if nanoseconds is None else nanoseconds // 1000


def _both(memory: int, swap: int | None) -> int:
    """Return memory and swap together, as v1 counts them."""
    if UNLIMITED in (memory, swap):
        return UNLIMITED
    return memory + (swap or 0)
