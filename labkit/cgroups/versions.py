"""The same limit in two dialects: V1 and V2 turn a Limits into files and text.

Both versions know a memory limit, a CPU quota, a weight. They differ in the
names, in the units (v1 counts throttled time in ns, v2 in µs) and in what one
file holds: v2's `cpu.max` is quota and period together, v1 has a file for each.
So there is one small class a version, with the same three methods:

    plan(limits)    [(file, text), …] in the order in which the kernel takes them
    file(name)      this version's file for a name of the other
    stats()         the numbers, in named units

Order matters more than it seems. v1 checks limits against each other at every
write: memory alone may never exceed memory and swap together, and a child's
quota may never pass its parent's, not even for the moment between two writes.
See Documentation/admin-guide/cgroup-v1/memory.rst, Documentation/scheduler/sched-bwc.rst,
Documentation/admin-guide/cgroup-v2.rst.
"""

import os
from pathlib import Path

from labkit.cgroups.events import flat
from labkit.cgroups.limits import PER_SHARE, UNLIMITED
from labkit.ground import proc
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


class _Folder:
    """One folder in one tree."""

    def __init__(self, path, tree):
        self.path = path if isinstance(path, Path) else Path(path)
        self.controllers = tree.controllers

    def __repr__(self):
        return f"<v{self.version} {self.path}>"

    def has(self, name):
        return os.path.exists(f"{self.path}/{name}")

    def number(self, name):
        """Return the number in a file; None if it says `max` or there is no such file."""
        text = self.text(name).strip()
        return int(text) if text.lstrip("-").isdigit() else None

    def numbers(self, name):
        return flat(self.text(name))

    def text(self, name):
        try:
            return proc.read_plain(f"{self.path}/{name}")
        except OSError:
            return ""

    def _pids(self):
        return {
            "pids_current": self.number("pids.current"),
            "pids_peak": self.number("pids.peak"),
            "pids_max": self.number("pids.max"),
            "pids_denied": self.numbers("pids.events").get("max"),
        }


class V2(_Folder):
    """A folder in the one tree of version 2."""

    version = 2

    def file(self, name):
        return _TO_V2.get(name, name)

    def prepare(self):
        """Make the folder fit for processes: nothing to do."""

    def plan(self, limits):
        """Return the (file, text) to write for what `limits` sets."""
        steps = [
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
            rates = " ".join(f"{name}={_or_max(value)}" for name, value in _rates(limit))
            steps.append(("io.max", f"{limit.device} {rates}"))
        return [(file, text) for file, text in steps if text is not None]

    def _swap(self, limits):
        """A memory limit alone means no swap, where this kernel counts it."""
        if limits.memory_swap is None and limits.memory not in (None, UNLIMITED):
            return "0" if self.has("memory.swap.max") else None
        return _or_max(limits.memory_swap)

    def _weight_file(self):
        """Return the file for a disk weight: io.cost has one (io.weight), the scheduler bfq another."""
        return "io.bfq.weight" if self.has("io.bfq.weight") and not self.has("io.weight") else "io.weight"

    def stats(self):
        """Return the numbers that this folder has, by the names of Stats."""
        cpu, memory = self.numbers("cpu.stat"), self.numbers("memory.events")
        found = {"usage_usec": cpu.get("usage_usec")}
        for name in (
            "user_usec",
            "system_usec",
            "nr_periods",
            "nr_throttled",
            "throttled_usec",
            "nr_bursts",
            "burst_usec",
        ):
            found[name] = cpu.get(name)
        if "memory" in self.controllers:
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

    def oom_kills(self):
        """Return how many of its processes were killed for want of memory."""
        return self.numbers("memory.events").get("oom_kill")


class V1(_Folder):
    """A folder in one of the many trees of version 1."""

    version = 1

    def file(self, name):
        if name in _NEAR and not self.has(name):
            raise Unsupported(f"{name} is a file of cgroup v2; here {self.path} is v1", f"v1 has {_NEAR[name]}")
        return _TO_V1.get(name, name)

    def prepare(self):
        """Make the folder fit for processes: a v1 cpuset is born empty, and nothing may enter it then."""
        if "cpuset" in self.controllers:
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not self.text(name).strip():
                    proc.write_plain(self.path / name, proc.read_plain(self.path.parent / name))

    def plan(self, limits):
        """Return the (file, text) to write for what `limits` sets. Raise Unsupported for what only v2 has."""
        for name, file in (("memory_high", "memory.high"), ("oom_group", "memory.oom.group")):
            if getattr(limits, name) is not None and "memory" in self.controllers:
                self.file(file)
        steps = []
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
        return [(file, text) for file, text in steps if text is not None]

    def _plan_memory(self, limits):
        steps = [("memory.soft_limit_in_bytes", _text(limits.memory_low))]
        if limits.memory is None:
            return steps
        steps.append(("memory.limit_in_bytes", _text(limits.memory)))
        both = _both(limits.memory, limits.memory_swap)
        if limits.memory_swap is not None or self.has("memory.memsw.limit_in_bytes"):
            steps.append(("memory.memsw.limit_in_bytes", _text(both)))
        # Memory alone may never be above memory and swap together: raise the outer
        # limit first, lower the inner one first.
        now = self.number("memory.memsw.limit_in_bytes") or 0
        return [steps[0], *reversed(steps[1:])] if both == UNLIMITED or both > now else steps

    def _plan_cpu(self, limits):
        steps = []
        if limits.cpu_weight is not None:
            steps.append(("cpu.shares", str(round(limits.cpu_weight * PER_SHARE))))
        if limits.cpu_quota is not None:
            if self.number("cpu.cfs_burst_us"):
                steps.append(("cpu.cfs_burst_us", "0"))
            both = [("cpu.cfs_quota_us", str(limits.cpu_quota)), ("cpu.cfs_period_us", str(limits.period))]
            # Between the two writes the share must not pass the parent's: what
            # makes it smaller goes first. Without a quota the period is free to change.
            now = self.number("cpu.cfs_quota_us")
            shrinks = now != UNLIMITED and UNLIMITED < limits.cpu_quota < now
            steps += both if shrinks else reversed(both)
        steps.append(("cpu.cfs_burst_us", _text(limits.cpu_burst)))
        return steps

    def _plan_io(self, limits):
        names = {"rbps": "read_bps", "wbps": "write_bps", "riops": "read_iops", "wiops": "write_iops"}
        steps = [
            (f"blkio.throttle.{names[name]}_device", f"{limit.device} {max(0, value)}")  # 0 is none
            for limit in limits.io
            for name, value in _rates(limit)
        ]
        weight = "blkio.bfq.weight" if self.has("blkio.bfq.weight") else "blkio.weight"
        steps.append((weight, _text(limits.io_weight)))
        return steps

    def stats(self):
        """Return the numbers that this folder has, by the names of Stats."""
        found = {}
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
            limit = self.number("memory.limit_in_bytes")
            found.update(
                memory_current=self.number("memory.usage_in_bytes"),
                memory_peak=self.number("memory.max_usage_in_bytes"),
                # v1 has no word for "no limit": it shows the largest number of whole pages.
                memory_max=None if limit is None or limit > 1 << 62 else limit,
                memory_max_hits=self._max_hits(),
                oom_kills=self.oom_kills(),
            )
            if (both := self.number("memory.memsw.usage_in_bytes")) is not None:
                found["memory_swap_current"] = max(0, both - found["memory_current"])
        if "pids" in self.controllers:
            found.update(self._pids())
        return found

    def oom_kills(self):
        """Return how many of its processes were killed for want of memory."""
        return self.numbers("memory.oom_control").get("oom_kill")

    def _max_hits(self):
        """Return how often the limit was run into, None if this kernel does not count it (6.18 does not)."""
        # What may not pass the limit on both together is not tried on memory alone.
        hits = sum(self.number(f"memory.{which}failcnt") or 0 for which in ("", "memsw."))
        full = self.number("memory.max_usage_in_bytes") >= self.number("memory.limit_in_bytes")
        return None if full and hits == 0 else hits


def _text(value):
    return None if value is None else str(value)


def _or_max(value):
    return "max" if value == UNLIMITED else _text(value)


def _usec(nanoseconds):
    return None if nanoseconds is None else nanoseconds // 1000


def _both(memory, swap):
    """v1 counts memory and swap together."""
    if UNLIMITED in (memory, swap):
        return UNLIMITED
    return memory + (swap or 0)


def _rates(limit):
    return [(name, value) for name in ("rbps", "wbps", "riops", "wiops") if (value := getattr(limit, name))]
