"""What a container may use at most: docker's words, checked, as the kernel's numbers.

A limit is a number in a file. Before a file is touched, the number is made: "32m"
becomes 33554432 bytes, half a CPU becomes 50000 µs of every 100000 µs. What can't
be meant is refused here, so a wrong value changes nothing on the machine:

    --memory 32m   →  Limits(memory=33554432)
    --cpus 0.5     →  Limits(cpu_quota=50000, cpu_period=100000)

Nothing in this module writes; `versions` says which files a Limits ends up in,
and `cgroup` writes them. `Limits.describe()` names the files of both versions.
See cgroups(7), docker-run(1), Documentation/admin-guide/cgroup-v2.rst.
"""

import os
import re
from collections.abc import Mapping

from labkit.cgroups.quantities import (
    MAX_BYTES,
    UNLIMITED,
    device_number,
    parse_count,
    parse_list,
    parse_size,
    whole,
)
from labkit.ground import proc
from labkit.ground.dataclass import dataclass, fields
from labkit.ground.errors import BadValue
from labkit.ground.typed import Any

DEFAULT_PERIOD = 100_000  # µs, kernel/sched/fair.c
MIN_QUOTA = MIN_PERIOD = 1_000  # µs, kernel/sched/core.c: min_cfs_quota_period
MAX_PERIOD = 1_000_000  # µs
MIN_MEMORY = 6 << 20  # bytes; docker's, below it a container can't even start
DEFAULT_WEIGHT = 100  # v2's; v1 calls the same 1024 shares
PER_SHARE = 1024 / DEFAULT_WEIGHT  # kernel/sched/core.c, cpu_weight_write_u64()
MAX_PIDS = 4 << 20  # include/linux/threads.h, PID_MAX_LIMIT


@dataclass(frozen=True)
class IoLimit:
    """How fast one block device may be read and written: bytes and operations a second.

    None leaves it as it is; UNLIMITED lifts it.
    """

    device: str  # major:minor
    rbps: int | None = None
    wbps: int | None = None
    riops: int | None = None
    wiops: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not re.fullmatch(r"\d+:\d+", self.device, re.ASCII):
            raise BadValue(f"device {self.device!r} is not major:minor", "`lsblk` lists both numbers")
        for name, rate in self.rates().items():
            whole(f"{name} of device {self.device}", rate, 1, MAX_BYTES, unlimited=True)

    def rates(self) -> dict[str, int]:
        """Return what is said of it, by the names above."""
        return {name: rate for name, rate in vars(self).items() if name != "device" and rate is not None}

    def __str__(self) -> str:
        told = (
            f"{name} {'without a limit' if rate == UNLIMITED else f'{rate} a second at most'}"
            for name, rate in self.rates().items()
        )
        return f"{self.device}: {', '.join(told)}"


@dataclass(frozen=True)
class Limits:
    """What a cgroup may use at most. None leaves the kernel's default; UNLIMITED (-1) lifts a limit.

    Raises BadValue for a number that can't be meant. See Documentation/admin-guide/cgroup-v2.rst.
    """

    memory: int | None = None  # bytes of memory, page cache included
    memory_swap: int | None = None  # bytes of swap beyond `memory`; None with a memory limit means 0
    memory_high: int | None = None  # bytes from where it is slowed down and made to give back (v2)
    memory_low: int | None = None  # bytes left alone while others have more (v1: the soft limit)
    oom_group: bool | None = None  # out of memory: kill all of it, not one process (v2)
    cpu_quota: int | None = None  # µs of CPU in each period
    cpu_period: int | None = None  # µs; DEFAULT_PERIOD if there is a quota
    cpu_burst: int | None = None  # µs saved up from periods that used less
    cpu_weight: int | None = None  # 1..10000, against its siblings; the default is 100
    cpuset_cpus: str | None = None  # "0-1,3": the only CPUs it runs on
    pids: int | None = None  # processes and threads
    io: tuple[IoLimit, ...] = ()  # one a device
    io_weight: int | None = None  # 1..10000, against its siblings; the default is 100

    def __post_init__(self) -> None:
        for name in ("memory", "memory_swap", "memory_high", "memory_low"):
            whole(name, getattr(self, name), 0, MAX_BYTES, unlimited=True)
        whole("cpu_quota", self.cpu_quota, MIN_QUOTA, MAX_BYTES // 1000, unlimited=True)
        whole("cpu_period", self.cpu_period, MIN_PERIOD, MAX_PERIOD)
        whole("cpu_burst", self.cpu_burst, 0, MAX_BYTES // 1000)
        whole("cpu_weight", self.cpu_weight, 1, 10_000)
        whole("io_weight", self.io_weight, 1, 10_000)
        whole("pids", self.pids, 1, MAX_PIDS, unlimited=True)
        if self.memory_swap is not None and self.memory is None:
            raise BadValue("memory_swap without memory", "swap is what comes beyond a memory limit: set both")
        if self.cpu_period is not None and self.cpu_quota is None:
            raise BadValue("cpu_period without a quota", "a period alone limits nothing: set cpu_quota or cpus too")
        if self.cpu_burst and self.cpu_burst > (self.cpu_quota or 0):
            raise BadValue(f"cpu_burst {self.cpu_burst} µs is more than the quota", "a burst is at most one quota")
        if self.cpuset_cpus is not None:
            parse_list("cpuset_cpus", self.cpuset_cpus)

    @property
    def period(self) -> int:
        """Return the period that goes with the quota, in µs."""
        return self.cpu_period or DEFAULT_PERIOD

    @classmethod
    def parse(cls, **words: Any) -> "Limits":
        """Return the Limits that docker's words mean: memory="32m", cpus="0.5", pids_limit=20, …

        Text or numbers; None is as good as not said. Raises BadValue and names the word.
        See docker-run(1) for each: memory, memory_swap (total of both, as docker has
        it), memory_reservation, cpus, cpu_quota, cpu_period, cpu_shares, cpuset_cpus,
        pids_limit, device_read_bps, device_write_bps, device_read_iops,
        device_write_iops, blkio_weight; v2's own: memory_high, oom_group, cpu_weight,
        cpu_burst. A limit above what the machine has is allowed, as with docker.
        """
        words = {word: value for word, value in words.items() if value is not None}
        unknown = sorted(set(words) - _WORDS)
        if unknown:
            raise BadValue(f"there is no limit called {unknown[0]!r}", "there is: " + ", ".join(sorted(_WORDS)))
        found: dict[str, Any] = {}
        for word, name in (("memory_high", "memory_high"), ("memory_reservation", "memory_low")):
            if word in words:
                found[name] = parse_size(word, words[word])
        if "memory" in words and (size := parse_size("memory", words["memory"])):  # docker: 0 is no limit
            if size != UNLIMITED and size < MIN_MEMORY:
                raise BadValue(
                    f"memory {words['memory']!r} is {size} bytes: the minimum is 6m ({MIN_MEMORY} bytes)",
                    "with less the container's first process could not start",
                )
            found["memory"] = size
        if "memory_swap" in words:
            found["memory_swap"] = _swap_beyond(words["memory_swap"], found.get("memory"))
        found.update(_cpu(words))
        if "cpuset_cpus" in words:
            found["cpuset_cpus"] = _present_cpus(str(words["cpuset_cpus"]))
        if "pids_limit" in words and (pids := parse_count("pids_limit", words["pids_limit"])) != 0:
            found["pids"] = pids  # 0 and -1 are docker's "no limit"
        if "blkio_weight" in words and (weight := parse_count("blkio_weight", words["blkio_weight"])):
            found["io_weight"] = whole("blkio_weight", weight, 10, 1000)
        if "oom_group" in words:
            found["oom_group"] = bool(words["oom_group"])
        found["io"] = _io(words)
        return cls(**found)

    def describe(self) -> list[str]:
        """Return one line a limit: what it means, and the file it is written to in v1 and in v2."""
        lines = []
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if value is None or value == () or name == "cpu_period":
                continue
            text, v1, v2 = DESCRIBED[name]
            if value == UNLIMITED:
                text = name.replace("_", " ") + " without a limit"
            for one in value if name == "io" else (value,):
                lines.append(f"{text.format(value=one, period=self.period)}: {v1} (v1) / {v2} (v2)")
        return lines


# One row a limit: what it means, v1's file, v2's file.
DESCRIBED = {
    "memory": ("memory at most {value} bytes", "memory.limit_in_bytes", "memory.max"),
    "memory_swap": ("swap at most {value} bytes", "memory.memsw.limit_in_bytes", "memory.swap.max"),
    "memory_high": ("slowed down above {value} bytes", "v1 has none", "memory.high"),
    "memory_low": (
        "{value} bytes left alone if others have more",
        "memory.soft_limit_in_bytes",
        "memory.low",
    ),
    "oom_group": ("out of memory kills all of it: {value}", "v1 has none", "memory.oom.group"),
    "cpu_quota": (
        "{value} µs of CPU in every {period} µs",
        "cpu.cfs_quota_us, cpu.cfs_period_us",
        "cpu.max",
    ),
    "cpu_burst": ("up to {value} µs of CPU saved up", "cpu.cfs_burst_us", "cpu.max.burst"),
    "cpu_weight": ("weight {value} against its siblings (100 is usual)", "cpu.shares", "cpu.weight"),
    "cpuset_cpus": ("only on CPUs {value}", "cpuset.cpus", "cpuset.cpus"),
    "pids": ("at most {value} processes and threads", "pids.max", "pids.max"),
    "io": ("device {value}", "blkio.throttle.*_device", "io.max"),
    "io_weight": ("disk weight {value} against its siblings", "blkio.bfq.weight", "io.weight"),
}

# Which controller keeps which limit.
CONTROLLER_OF = {name: "memory" if name == "oom_group" else name.partition("_")[0] for name in DESCRIBED}

_IO_WORDS = {
    "device_read_bps": "rbps",
    "device_write_bps": "wbps",
    "device_read_iops": "riops",
    "device_write_iops": "wiops",
}
_WORDS = {
    "memory", "memory_swap", "memory_reservation", "memory_high", "oom_group",
    "cpus", "cpu_quota", "cpu_period", "cpu_shares", "cpu_weight", "cpu_burst", "cpuset_cpus",
    "pids_limit", "blkio_weight", *_IO_WORDS,
}  # fmt: skip


def _present_cpus(value: str) -> str:
    online = proc.read("/sys/devices/system/cpu/online").strip()
    missing = parse_list("cpuset_cpus", value) - parse_list("online", online)
    if missing:
        # v2 would take it in silence and run on every CPU instead.
        raise BadValue(f"cpuset_cpus {value!r}: there is no CPU {min(missing)}", f"this machine has {online}")
    return value


def _swap_beyond(value: object, memory: int | None) -> int | None:
    """Docker's --memory-swap is memory and swap together; return the swap alone."""
    total = parse_size("memory_swap", value)
    if total == UNLIMITED or total == 0:
        return UNLIMITED if total else None
    if memory is None or memory == UNLIMITED:
        raise BadValue(f"memory_swap {value!r} without memory", "it is the total of both: set memory too")
    if total < memory:
        raise BadValue(
            f"memory_swap {value!r} is less than memory ({memory} bytes)",
            "it is the total of memory and swap; the same number as memory means no swap",
        )
    return total - memory


def _cpu(words: Mapping[str, Any]) -> dict[str, int]:
    found = {}
    for word in ("cpu_quota", "cpu_period", "cpu_burst", "cpu_weight"):
        if word in words:
            found[word] = parse_count(word, words[word])
    if "cpus" in words and not re.fullmatch(r"0+\.?0*|\.0+", str(words["cpus"])):  # docker: 0 is no limit
        if "cpu_quota" in words:
            raise BadValue("cpus and cpu_quota are two words for one limit", "say one of them")
        found["cpu_quota"] = _quota(words["cpus"], found.get("cpu_period", DEFAULT_PERIOD))
    if "cpu_shares" in words and (shares := parse_count("cpu_shares", words["cpu_shares"])):
        whole("cpu_shares", shares, 2, 262_144)
        found["cpu_weight"] = max(1, min(10_000, round(shares / PER_SHARE)))
    return found


def _quota(cpus: object, period: int) -> int:
    from decimal import Decimal  # only who has such a limit waits for it

    text, count = str(cpus).strip(), os.cpu_count() or 1
    usable = re.fullmatch(r"\d{1,6}(\.\d{1,9})?|\.\d{1,9}", text, re.ASCII) and not isinstance(cpus, bool)
    if not usable or not Decimal("0.01") <= Decimal(text) <= count:
        raise BadValue(
            f"cpus {cpus!r}: the range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available"
        )
    whole("cpu_period", period, MIN_PERIOD, MAX_PERIOD)
    quota = int(Decimal(text) * period)
    if quota < MIN_QUOTA:
        raise BadValue(
            f"cpus {cpus!r} of a period of {period} µs is a quota of {quota} µs: the kernel's minimum is {MIN_QUOTA}",
            "a longer period",
        )
    return quota


def _io(words: Mapping[str, Any]) -> tuple[IoLimit, ...]:
    """Gather the four --device words into one IoLimit a device."""
    by_device: dict[str, dict[str, int]] = {}
    for word, name in _IO_WORDS.items():
        values = words.get(word, ())
        for text in values if isinstance(values, list | tuple) else (values,):
            path, colon, rate = str(text).rpartition(":")
            if not colon:
                raise BadValue(f"{word} {text!r} is not DEVICE:RATE", "like /dev/vda:1m")
            parse = parse_size if name.endswith("bps") else parse_count
            number = parse(word, rate)
            if number in (0, UNLIMITED):  # nothing is there yet that could be lifted
                raise BadValue(f"{word} {text!r} is no rate", "without the word there is no limit")
            by_device.setdefault(device_number(path), {})[name] = number
    return tuple(IoLimit(device, **rates) for device, rates in by_device.items())
