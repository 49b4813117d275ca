"""Who gives memory back, when two groups share one limit and each would fill it.

A group is promised `memory.low`: as long as others below the same limit have
something to take, what it holds up to there is left alone. To see that it takes
two groups in one, and pages that can be taken:

    limit ─┬─ first    has read a file once, and sleeps: its page cache is old
           └─ second   reads a larger file again and again

Without a promise the kernel takes the oldest pages, so the first loses nearly all.
On v1 there is `memory.soft_limit_in_bytes` in memory.low's place, and that is no
promise: it is looked at only when the whole machine runs short (mm/memcontrol-v1.c),
never for a limit above. The same two groups show it.
See Documentation/admin-guide/cgroup-v2.rst, "memory.low".
"""

import contextlib
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from labkit.cgroups.cgroup import Cgroup
from labkit.cgroups.limits import Limits
from labkit.ground import state
from labkit.lessons import scratch
from labkit.lessons.watch.measuring import until
from labkit.lessons.watch.sampling import Sampler, Trace

MIB = 1 << 20


def rivals(limit: int = 64, low: int = 32, seconds: float = 2.5) -> Trace:
    """Let two groups want the same `limit` MiB, the first with `low` of them promised; return the Trace.

    It has first.memory_file and second.memory_file, and a mark where the second begins.
    """
    with contextlib.ExitStack() as stack:
        name = f"rivals-{state.new_id()}"
        folder = stack.enter_context(scratch.folder(state.lib_dir(), name))
        shared = stack.enter_context(Cgroup.create(name, Limits(memory=limit * MIB)))
        first = shared.nested("first", Limits(memory_low=low * MIB))
        second = shared.nested("second")
        # Files of holes: pages of them are page cache as any others, and cost no disk.
        size = limit * 5 // 8  # of what the first reads: more than it is promised, less than the limit
        once, often = _holes(folder / "once", size), _holes(folder / "often", 2 * limit)
        sampler = stack.enter_context(Sampler({"first": first, "second": second}, "memory_file", rate=100))
        stack.enter_context(_running(first, f"cat {once} > /dev/null; exec sleep 1000"))
        # An emulated machine reads slowly. What did not come is seen in the trace.
        until(lambda: sampler.trace()["first.memory_file"][-1] >= size * MIB)
        time.sleep(0.5)
        sampler.mark("the second one begins to read")
        stack.enter_context(_running(second, f"while :; do cat {often} > /dev/null; sleep 0.05; done"))
        until(lambda: sampler.trace()["second.memory_file"][-1] > 0)
        time.sleep(seconds)
        return sampler.trace()


def _holes(path: Path, megabytes: int) -> str:
    with open(path, "wb") as file:
        file.truncate(megabytes * MIB)
    return shlex.quote(str(path))


@contextlib.contextmanager
def _running(group: Cgroup, script: str) -> Iterator[None]:
    """Run a shell script that is in the group before it begins; kill it, and what it started, at the end."""
    enter = "".join(f"echo $$ > {shlex.quote(str(path))}; " for path in group.procs_files)
    process = subprocess.Popen(["sh", "-c", enter + script], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        group.kill()
        process.kill()
        process.wait()
