"""Who goes first when a processor, a disk or memory nodes are shared out: three words of a config.json.

    process.scheduler    the policy for processor time    sched_setattr(2), sched(7)
    process.ioPriority   the place in a disk's queue      ioprio_set(2)
    linux.memoryPolicy   the nodes that pages come from   set_mempolicy(2)

A container's own cgroup says how much all of it gets; these say it of the process, and
its children inherit it. Times of the scheduler are nanoseconds.
See config.md and config-linux.md of the runtime specification.
"""

import struct

from labkit.ground import syscalls as sc
from labkit.ground.errors import BadValue, KernelError
from labkit.ground.typed import Any

# linux/sched.h, linux/ioprio.h, linux/mempolicy.h
POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MODE_FLAGS = {"MPOL_F_NUMA_BALANCING": 1 << 13, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_STATIC_NODES": 1 << 15}


def _number(table: dict[str, int], word: object, what: str) -> int:
    if not isinstance(word, str) or word not in table:
        raise BadValue(f"{what} {word!r}", "one of " + ", ".join(table))
    return table[word]


def _within(words: dict[str, Any], name: str, low: int, high: int, what: str) -> int:
    number = words.get(name, 0)
    if not isinstance(number, int) or not low <= number <= high:
        raise BadValue(f"{what}.{name} {number!r} must be between {low} and {high}")
    return number


def scheduler(words: dict[str, Any] | None) -> bytes | None:
    """Return the struct sched_attr of a `process.scheduler`, None if nothing is asked. Raises BadValue by name."""
    if not words:
        return None
    what = "process.scheduler"
    policy = _number(POLICIES, words.get("policy"), f"{what}.policy")
    flags = 0
    for word in words.get("flags") or ():
        flags |= _number(SCHED_FLAGS, word, f"{what}.flags")
    # The kernel takes a priority of 0 for real time as an error; the others have none.
    priority = _within(words, "priority", *((1, 99) if policy in (1, 2) else (0, 0)), what)
    nice = _within(words, "nice", -20, 19, what)
    times = [_within(words, name, 0, 2**64 - 1, what) for name in ("runtime", "deadline", "period")]
    if words.get("policy") == "SCHED_DEADLINE":
        _check_deadline(words, *times)
    elif any(times):
        raise BadValue(f"{what}: runtime, deadline and period are SCHED_DEADLINE's only")
    return struct.pack("<IIQiIQQQ", 48, policy, flags, nice, priority, *times)


def _check_deadline(words: dict[str, Any], runtime: int, deadline: int, period: int) -> None:
    """Say which of the three numbers is wrong, where the kernel has one EINVAL for all. In crun's words."""
    what = "process.scheduler: sched_setattr: `SCHED_DEADLINE`"
    for name in ("runtime", "deadline"):
        if words.get(name) is None:
            raise BadValue(f"{what} requires `{name}`", "nanoseconds")
    if runtime <= 0:
        raise BadValue(f"{what} runtime must be greater than 0")
    if not 1024 <= runtime < 2**63:
        raise BadValue(f"{what} runtime {runtime} must be between 1024 and {2**63 - 1}", "nanoseconds")
    if runtime > deadline:
        raise BadValue(f"{what} runtime {runtime} must be <= deadline {deadline}")
    if period and deadline > period:
        raise BadValue(f"{what} deadline {deadline} must be <= period {period}")


def io_priority(words: dict[str, Any] | None) -> int | None:
    """Return the number that ioprio_set(2) takes for a `process.ioPriority`, None if nothing is asked."""
    if not words:
        return None
    kind = _number(IO_CLASSES, words.get("class"), "process.ioPriority.class")
    return kind << 13 | _within(words, "priority", 0, 7, "process.ioPriority")


def memory_policy(words: dict[str, Any] | None) -> tuple[int, int] | None:
    """Return the (mode and flags, mask of nodes) of a `linux.memoryPolicy`, None if there is none. Raises BadValue."""
    if words is None:
        return None
    mode = _number(MODES, words.get("mode"), "invalid memory policy mode: linux.memoryPolicy.mode")
    for word in words.get("flags") or ():
        mode |= _number(MODE_FLAGS, word, "invalid memory policy flag: linux.memoryPolicy.flags")
    nodes = _nodes(words.get("nodes") or "")
    count = nodes.bit_count()
    if words["mode"] in ("MPOL_DEFAULT", "MPOL_LOCAL") and nodes:
        raise BadValue(f"linux.memoryPolicy: {words['mode']} mode requires 0 nodes but got {count}")
    if words["mode"] not in ("MPOL_DEFAULT", "MPOL_LOCAL", "MPOL_PREFERRED") and not nodes:
        raise BadValue(f"linux.memoryPolicy: {words['mode']} mode requires at least 1 node", 'nodes: "0"')
    return mode, nodes


def _nodes(text: str) -> int:
    mask = 0
    for part in text.split(",") if text else ():
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        # 64: more than one mask of the kernel's has no machine here.
        if not first.isdecimal() or not last.isdecimal() or not int(first) <= int(last) < 64:
            raise BadValue(f"invalid memory policy node: linux.memoryPolicy.nodes {text!r}", 'like "0-3,7", below 64')
        mask |= (1 << int(last) + 1) - (1 << int(first))
    return mask


def take_on(attributes: bytes | None, ioprio: int | None, policy: tuple[int, int] | None) -> None:
    """Take them on, as the calling process. Raises KernelError."""
    if policy is not None:
        sc.set_mempolicy(*policy)
    if ioprio is not None:
        sc.ioprio_set(1, 0, ioprio)  # IOPRIO_WHO_PROCESS
    if attributes is None:
        return
    try:
        sc.sched_setattr(0, attributes)
    except KernelError as error:
        error.hint = (
            "process scheduler can't be used together with AllowedCPUs: SCHED_DEADLINE wants all CPUs "
            "(linux.resources.cpu.cpus), real time CAP_SYS_NICE and time of its cgroup's own (cpu.rt_runtime_us)"
        )
        raise
