"""The resources of a config.json, as limits, device rules and the few files that have no other word.

Most of it is what `limits` knows: the specification counts in the same units as the
kernel, so here is only a change of names. Three things differ:

    memory.swap    is memory and swap together; Limits has what comes beyond memory, and 0 if it is not said
    cpu.shares     1024 is the default; as a weight that is 100. v1 takes them as they are
    a number of 0  means "not said", but for those where Docker never says it so

A limit that this machine has no controller for is refused by its name. See
"Control groups" in the runtime specification, config-linux.md.
"""

import contextlib
import re
from collections.abc import Iterable

from labkit.cgroups import cgroupfs, devices
from labkit.cgroups.cgroup import Cgroup
from labkit.cgroups.limits import PER_SHARE, UNLIMITED, IoLimit, Limits
from labkit.cgroups.versions import Folder
from labkit.ground import proc
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, Unsupported
from labkit.ground.typed import Any

_KNOWN = {
    "memory": "limit reservation swap kernel kernelTCP swappiness disableOOMKiller useHierarchy checkBeforeUpdate",
    "cpu": "shares quota burst period realtimeRuntime realtimePeriod cpus mems idle",
    "pids": "limit",
    "blockIO": "weight leafWeight weightDevice throttleReadBpsDevice throttleWriteBpsDevice "
    "throttleReadIOPSDevice throttleWriteIOPSDevice",
}
# What labkit has no place for, and why. A zero or an empty list of them asks for nothing.
_NOT_HERE = {
    "blockIO.leafWeight": "only an I/O scheduler of old had it (cfq)",
    "network": "labkit marks no packets by cgroup (net_cls, net_prio)",
    "vtpms": "labkit has no virtual TPM",
}


# The specification's own NOT RECOMMENDED: what asks for it goes on without.
_IGNORED = {
    "kernel": "the kernel has given up a limit for its own memory",
    "kernelTCP": "a socket's memory is counted with all other, but where v1 has a limit of its own for it",
}


_ZERO_COUNTS = ("burst", "idle", "swappiness")
# What the kernel judges by each other is told to it together.
_TOGETHER = (("memory", ("limit", "swap")), ("cpu", ("quota", "period", "burst")))


def ignored(words: dict[str, Any] | None) -> list[str]:
    """Return a warning for each limit that is let pass, and for each word that is not the specification's."""
    words = words or {}
    memory = words.get("memory") or {}
    found = [f"linux.resources.memory.{name} is ignored: {why}" for name, why in _IGNORED.items() if memory.get(name)]
    strange = [
        name for name in words if name not in (*_KNOWN, *_NOT_HERE, "devices", "unified", "hugepageLimits", "rdma")
    ]
    strange += [
        f"{part}.{name}" for part in _KNOWN for name in words.get(part) or () if name not in _KNOWN[part].split()
    ]
    return found + [f"linux.resources.{name} is no word of the specification, and is ignored" for name in strange]


def merge(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (what to tell a cgroup now, all that holds then) for `new` words where `old` ones hold."""
    now = {
        part: {name: value for name, value in words.items() if value or (value == 0 and name in _ZERO_COUNTS)}
        if isinstance(words, dict)
        else words
        for part, words in new.items()
    }
    whole = old | {
        part: (old.get(part) or {}) | words if isinstance(words, dict) else words for part, words in now.items()
    }
    if now.get("memory", {}).get("limit") == UNLIMITED and "swap" not in now["memory"]:
        whole["memory"].pop("swap", None)  # the limit on both goes with it
    for part, names in _TOGETHER:
        if set(names) & set(now.get(part, ())):
            now[part] = {name: whole[part][name] for name in names if name in whole[part]} | now[part]
    return now, whole


@dataclass(frozen=True)
class Resources:
    """What a cgroup is to be told."""

    limits: Limits = Limits()
    rules: tuple[devices.Rule, ...] | None = devices.DEFAULT  # None: all devices
    files: tuple[tuple[str, Any, str], ...] = ()  # name, value, as the config calls it
    realtime: tuple[int | None, int | None] = (None, None)  # runtime and period, µs
    disk_weights: tuple[str, ...] = ()  # "major:minor weight"
    huge: tuple[tuple[str, int], ...] = ()  # a page size, bytes
    rdma: tuple[str, ...] = ()  # lines of rdma.max
    tcp: int | None = None  # bytes of sockets' buffers

    def apply(self, group: Cgroup, rules: bool = True) -> None:
        """Write it all. Raises Unsupported, by name, for what this machine has no file for."""
        group.set(self.limits)
        _give_realtime(group, *self.realtime)
        for line in self.disk_weights:
            group.write(_disk_weight_file(group), line)
        for name, value, word in self.files:
            try:
                group.write(name, value)
            except Unsupported as error:
                raise Unsupported(f"linux.resources.{word}: {error.message}", error.hint) from None
        with contextlib.suppress(Unsupported):  # v2 has none: that was said
            if self.tcp:
                group.write("memory.kmem.tcp.limit_in_bytes", self.tcp)
        _give_huge_pages(group, self.huge)
        for line in self.rdma:
            _write_rare(group, "rdma.max", line, "rdma")
        if rules and self.rules is not None:
            devices.allow_only(group, self.rules)


def _disk_weight_file(group: Cgroup) -> str:
    """Return the file that takes the weight of one disk. The scheduler bfq has one of its own."""
    names = ("blkio.bfq.weight_device", "blkio.weight_device", "io.bfq.weight", "io.weight")
    for name in names[:2] if group.version("io") == 1 else names[2:]:
        with contextlib.suppress(Unsupported):
            return group.file(name).name
    raise Unsupported("linux.resources.blockIO.weightDevice: no disk is weighed here", "the I/O scheduler bfq does it")


def _give_realtime(group: Cgroup, runtime: int | None, period: int | None) -> None:
    """Write the share of time for real-time processes, first above: a group has no more than its parent, at first 0."""
    if runtime is None and period is None:
        return
    if group.version("cpu") == 2:
        raise Unsupported("linux.resources.cpu.realtimeRuntime, realtimePeriod: cgroup v2 has no such limit")
    path = group.path("cpu")
    tree = next(folder.tree for folder in group.folders if folder.path == path)
    for above in reversed(path.parents):
        folder = cgroupfs.folder_at(above, tree) if tree.mount in above.parents else None
        if folder and folder.number("cpu.rt_runtime_us") == 0:
            _give_realtime(Cgroup(str(above), [folder]), runtime, period)
    steps = [("cpu.rt_period_us", period), ("cpu.rt_runtime_us", runtime)]
    # Between the two writes the share must not pass the parent's.
    if runtime is not None and runtime < int(group.read("cpu.rt_runtime_us")):
        steps.reverse()
    for name, value in steps:
        if value is not None:
            group.write(name, value)


def _give_huge_pages(group: Cgroup, huge: Iterable[tuple[str, int]]) -> None:
    """Limit huge pages in use, and where the kernel counts them, those set aside too."""
    for size, limit in huge:
        word = f"hugepageLimits {size}"
        name = {1: "limit_in_bytes", 2: "max"}[_rare(group, "hugetlb", word).version]
        _write_rare(group, f"hugetlb.{size}.{name}", limit, word)
        if _rare(group, "hugetlb", word).has(f"hugetlb.{size}.rsvd.{name}"):
            _write_rare(group, f"hugetlb.{size}.rsvd.{name}", limit, word)


def _rare(group: Cgroup, controller: str, word: str) -> Folder:
    try:
        return group.handed(controller)
    except Unsupported as error:
        raise Unsupported(f"linux.resources.{word}: {error.message}", "leave it out") from None


def _write_rare(group: Cgroup, name: str, value: object, word: str) -> None:
    """Write a file of a controller that labkit's own containers go without."""
    folder = _rare(group, name.partition(".")[0], word)
    if not folder.has(name):
        raise Unsupported(f"linux.resources.{word}: there is no {folder.path}/{name}", "leave it out")
    try:
        proc.write_plain(folder.path / name, str(value))
    except OSError as error:
        raise cgroupfs.refused(str(value), folder.path / name, error) from None


def read(words: dict[str, Any] | None, v1_cpu: bool = False) -> Resources:
    """Return the Resources of a config's linux.resources. Raises BadValue or Unsupported, and names the word.

    `v1_cpu` says that the cpu controller is version 1's, which takes shares as they are.
    """
    words = {name: value for name, value in (words or {}).items() if value}
    for name, value in words.items():
        if name in _NOT_HERE:
            raise Unsupported(f"linux.resources.{name}: {_NOT_HERE[name]}", "leave it out")
        for inner in value if name in _KNOWN else ():
            if f"{name}.{inner}" in _NOT_HERE and value[inner]:
                raise Unsupported(f"linux.resources.{name}.{inner}: {_NOT_HERE[f'{name}.{inner}']}", "leave it out")
    memory, cpu, block = (words.get(name, {}) for name in ("memory", "cpu", "blockIO"))
    files: list[tuple[str, Any, str]] = []
    if cpu.get("shares") and v1_cpu:
        files.append(("cpu.shares", cpu["shares"], "cpu.shares"))
    for name, word, value in (
        ("cpuset.mems", "cpu.mems", cpu.get("mems")),
        ("cpu.idle", "cpu.idle", cpu.get("idle")),
        ("memory.swappiness", "memory.swappiness", memory.get("swappiness")),
        ("memory.oom_control", "memory.disableOOMKiller", 1 if memory.get("disableOOMKiller") else None),
    ):
        if value or (value == 0 and word.endswith(_ZERO_COUNTS)):
            files.append((name, value, word))
    for name, value in words.get("unified", {}).items():
        if "/" in name or "." not in name or not isinstance(value, str):
            raise BadValue(f"linux.resources.unified: {name!r} is no file of a cgroup")
        files.append((name, value, f"unified.{name}: invalid configuration"))
    limits = Limits(
        **_memory(memory),
        **_cpu(cpu),
        pids=_pids(words.get("pids", {}).get("limit")),
        io=_io(block),
        io_weight=block.get("weight") or None,
    )
    realtime = cpu.get("realtimeRuntime") or None, cpu.get("realtimePeriod") or None
    disks = [
        f"{one['major']}:{one['minor']} {one['weight']}" for one in block.get("weightDevice") or () if one.get("weight")
    ]
    huge = tuple(map(_huge_page, words.get("hugepageLimits", ())))
    rdma = tuple(_rdma(device, counts) for device, counts in words.get("rdma", {}).items())
    tcp = memory.get("kernelTCP")
    return Resources(limits, _rules(words.get("devices", ())), tuple(files), realtime, tuple(disks), huge, rdma, tcp)


def _huge_page(words: dict[str, Any]) -> tuple[str, int]:
    size, limit = words["pageSize"], words["limit"]
    if not isinstance(size, str) or not re.fullmatch(r"[1-9]\d*[KMG]B", size, re.ASCII):
        raise BadValue(f"linux.resources.hugepageLimits: pageSize {size!r}", "like 2MB or 1GB")
    return size, _count(f"hugepageLimits {size}: limit", limit)


def _rdma(device: str, words: dict[str, Any]) -> str:
    if not device or set(device) & set(" \n"):
        raise BadValue(f"linux.resources.rdma: {device!r} is no device's name", "/sys/class/infiniband has them")
    counts = {
        ours: words[name]
        for name, ours in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
        if name in words
    }
    if not counts:
        raise BadValue(f"linux.resources.rdma {device}: neither hcaHandles nor hcaObjects")
    return " ".join([device, *(f"{name}={_count(f'rdma {device} {name}', value)}" for name, value in counts.items())])


def _count(what: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise BadValue(f"linux.resources.{what} {value!r} is no number of 0 or more")
    return value


def _memory(words: dict[str, Any]) -> dict[str, Any]:
    limit, swap = words.get("limit") or None, words.get("swap") or None
    beyond = None
    if swap == UNLIMITED and limit is None:
        limit = UNLIMITED
    if swap is not None:
        if limit is None:
            raise BadValue(
                "linux.resources.memory.swap without a memory limit", "it is memory and swap together: set both"
            )
        if UNLIMITED not in (limit, swap) and swap < limit:
            raise BadValue(
                f"linux.resources.memory.swap {swap} is less than the memory limit", "it is memory and swap together"
            )
    if limit is not None:
        # Not said is no limit: by this Docker and Podman have `--memory-swap -1`.
        beyond = UNLIMITED if swap is None or UNLIMITED in (limit, swap) else swap - limit
    return {"memory": limit, "memory_swap": beyond, "memory_low": words.get("reservation") or None}


def _cpu(words: dict[str, Any]) -> dict[str, Any]:
    quota, period, shares = (words.get(name) or None for name in ("quota", "period", "shares"))
    if period and quota is None:
        quota = UNLIMITED
    return {
        "cpu_quota": quota,
        "cpu_period": period,
        "cpu_burst": words.get("burst"),
        "cpu_weight": max(1, min(10_000, round(shares / PER_SHARE))) if shares else None,
        "cpuset_cpus": words.get("cpus") or None,
    }


def _pids(number: int | None) -> int | None:
    if not number:  # Docker writes 0 into each config that says nothing of it
        return None
    return number if number > 0 else UNLIMITED


def _io(words: dict[str, Any]) -> tuple[IoLimit, ...]:
    rates: dict[str, dict[str, int]] = {}
    for word, name in (
        ("throttleReadBpsDevice", "rbps"),
        ("throttleWriteBpsDevice", "wbps"),
        ("throttleReadIOPSDevice", "riops"),
        ("throttleWriteIOPSDevice", "wiops"),
    ):
        for one in words.get(word) or ():
            rates.setdefault(f"{one['major']}:{one['minor']}", {})[name] = (
                one["rate"] or UNLIMITED
            )  # 0 lifts a limit, as runc has it
    return tuple(IoLimit(device, **found) for device, found in rates.items())


def _rules(words: Iterable[dict[str, Any]]) -> tuple[devices.Rule, ...] | None:
    """Return the devices allowed in the end; what every container has is among them. None: all devices."""
    allowed: list[devices.Rule] = []
    everything = False
    for word in words:
        kind = word.get("type") or "a"
        major, minor = (None if word.get(name) in (None, -1) else word[name] for name in ("major", "minor"))
        access = word.get("access") or "rwm"
        whole = kind == "a" and major is None and minor is None and set(access) == set("rwm")
        if whole:
            allowed, everything = [], bool(word["allow"])
            continue
        # The kernel's v1 takes any "a" for every device there is; what is said is less: those of both types.
        for one in ("c", "b") if kind == "a" else (kind,):
            if word["allow"]:
                allowed.append(devices.Rule(one, major, minor, access))
            elif everything or any(_overlaps(rule, one, major, minor) for rule in allowed):
                raise Unsupported(
                    f"linux.resources.devices: {word} takes back a part of what is allowed",
                    "begin with a rule that denies all, then allow what is wanted",
                )
    return None if everything else (*allowed, *devices.DEFAULT)


def _overlaps(rule: devices.Rule, kind: str, major: int | None, minor: int | None) -> bool:
    return rule.kind == kind and all(
        here is None or there is None or here == there for here, there in ((rule.major, major), (rule.minor, minor))
    )
