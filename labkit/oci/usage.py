"""What a container has used, in the words of `runc events`: numbers that are all in files of its cgroup.

The two versions of cgroups keep the same counts under different names; where v1 has a
file for each number, v2 often has one line in a file of several. A number that this
kernel does not keep is left out. Times are nanoseconds, sizes are bytes.
See Documentation/admin-guide/cgroup-v1/, Documentation/admin-guide/cgroup-v2.rst.
"""

from collections.abc import Iterator

from labkit.cgroups import events, quantities
from labkit.cgroups.cgroup import Cgroup
from labkit.ground.errors import KernelError, NotFound, Unsupported
from labkit.ground.typed import Any

_NO_LIMIT = (1 << 63) - (1 << 12)  # as v1 shows it: the largest number of whole pages


def stats(group: Cgroup) -> dict[str, Any]:
    """Return the `data` of an event of the type stats."""
    used = group.stats()
    return {
        "cpu": {
            "usage": {
                "total": (used.usage_usec or 0) * 1000,
                **_numbers(group, {"percpu": "cpuacct.usage_percpu"}, lambda text: [*map(int, text.split())]),
                "kernel": (used.system_usec or 0) * 1000,
                "user": (used.user_usec or 0) * 1000,
            },
            "throttling": {
                "periods": used.nr_periods or 0,
                "throttledPeriods": used.nr_throttled or 0,
                "throttledTime": (used.throttled_usec or 0) * 1000,
            },
            **_pressure(group, "cpu"),
        },
        "cpuset": _numbers(group, {"cpus": "cpuset.cpus", "mems": "cpuset.mems"}, _listed)
        | _numbers(group, {name: f"cpuset.{name}" for name in _CPUSET}),
        "memory": _memory(group) | _pressure(group, "memory"),
        "pids": {"current": used.pids_current or 0, "limit": used.pids_max or 0},
        "blkio": {name: list(entries) for name, entries in _io(group)} | _pressure(group, "io"),
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": None,
    }


_CPUSET = (
    "cpu_exclusive mem_exclusive mem_hardwall memory_migrate memory_spread_page memory_spread_slab memory_pressure "
    "sched_load_balance sched_relax_domain_level"
).split()


def _text(group: Cgroup, name: str) -> str:
    try:
        return group.read(name)
    except (Unsupported, KernelError):
        return ""


def _numbers(group: Cgroup, names: dict[str, str], made: Any = int) -> dict[str, Any]:
    """Return what `made` makes of the files' texts, under these names; without those that are not here."""
    texts = {name: _text(group, file).strip() for name, file in names.items()}
    return {name: _NO_LIMIT if text == "max" else made(text) for name, text in texts.items() if text}


def _listed(text: str) -> list[int]:
    return sorted(quantities.parse_list("a list of a cpuset", text))


def _pressure(group: Cgroup, resource: str) -> dict[str, Any]:
    found = {}
    for line in _text(group, f"{resource}.pressure").splitlines():
        kind, *words = line.split()
        found[kind] = {name: float(value) for name, value in (word.split("=") for word in words)}
        found[kind]["total"] = int(found[kind]["total"])
    return {"psi": found} if found else {}


def _memory(group: Cgroup) -> dict[str, Any]:
    raw = events.flat(_text(group, "memory.stat"))
    if group.version("memory") == 2:
        usage = {"limit": "memory.max", "usage": "memory.current", "max": "memory.peak"}
        swap = {"limit": "memory.swap.max", "usage": "memory.swap.current", "max": "memory.swap.peak"}
        alone = _numbers(group, usage)
        both = {
            name: min(_NO_LIMIT, alone[name] + value) for name, value in _numbers(group, swap).items()
        }  # as v1 counts
        return {"cache": raw.get("file", 0), "usage": alone, "swap": both, "raw": raw}
    found = {
        name: _numbers(
            group,
            {
                "limit": f"memory.{word}limit_in_bytes",
                "usage": f"memory.{word}usage_in_bytes",
                "max": f"memory.{word}max_usage_in_bytes",
                "failcnt": f"memory.{word}failcnt",
            },
        )
        for name, word in (("usage", ""), ("swap", "memsw."), ("kernel", "kmem."), ("kernelTCP", "kmem.tcp."))
    }
    return {"cache": raw.get("cache", 0), **found, "raw": raw}


def _io(group: Cgroup) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    for name, file, words in (
        ("ioServiceBytesRecursive", "blkio.throttle.io_service_bytes_recursive", {"rbytes": "Read", "wbytes": "Write"}),
        ("ioServicedRecursive", "blkio.throttle.io_serviced_recursive", {"rios": "Read", "wios": "Write"}),
    ):
        yield name, _entries(_text(group, file), _text(group, "io.stat"), words)


def _entries(v1: str, v2: str, words: dict[str, str]) -> Iterator[dict[str, Any]]:
    found = [line.split() for line in v1.splitlines()]
    for line in v2.splitlines():
        device, *counts = line.split()
        found += [
            [device, words[key], value] for key, _, value in (one.partition("=") for one in counts) if key in words
        ]
    for device, operation, value in (words for words in found if len(words) == 3):  # v1 ends with a sum of all
        major, minor = map(int, device.split(":"))
        yield {"major": major, "minor": minor, "op": operation, "value": int(value)}


def watched(group: Cgroup, seconds: float) -> Iterator[dict[str, Any] | None]:
    """Yield its stats each time that `seconds` have passed, and None each time that it was out of memory.

    Ends with the cgroup.
    """
    try:
        with events.Watch(group, "oom_kill") as watch:
            while True:
                if watch.wait(seconds):
                    yield None
                elif group.procs():
                    yield stats(group)
                else:
                    return
    except (NotFound, KernelError):  # it was removed meanwhile
        return
