"""Many containers: at once, one after the other, what they leave, and what each costs labkit.

"At once" is: nobody waits for the end of one before the next is started. A runtime
is a command for each container, so as many processes as the machine likes run side by
side. labkit is one notebook: from one thread, which starts them one after the other
and then waits for all, and from eight.
"""

import gc
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import contestants
import peers
from contestants import notebook, ratio
from report import Report
from start import LIMITS, floor, runtime, whole_container

from labkit.container import records, spawner
from labkit.container.life import Container
from labkit.ground.errors import LabError

sys.path.insert(0, str(Path(__file__).parent.parent))

import hosts  # noqa: E402 - from the folder above, tests/

SLEEPERS = 100


def at_once(threads):
    """Prepare a notebook that starts so many and then waits for all."""

    def prepare():
        pool = ThreadPoolExecutor(threads) if threads > 1 else None
        over = pool.map if pool else map

        def once(count):
            boxes = list(over(lambda _: Container("busybox", ["true"], **LIMITS).start(), range(count)))
            statuses = list(over(_end, boxes))
            if any(statuses):
                raise LabError(f"{sum(map(bool, statuses))} of {count} containers failed")

        return once

    return prepare


def _end(box):
    with box:
        return box.wait()


def runtime_at_once(name, scene, count):
    """Return the contestant that starts so many of an OCI runtime, each with a bundle of its own."""
    bundles = [peers.bundle(scene, f"{name}-{number}", scene["rootfs"]) for number in range(count)]

    def make():
        peers.hide_unified()

        def once(_):
            running = [
                subprocess.Popen(
                    peers.runtime(name, scene, f"-{name}-{number}", path),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )  # fmt: skip
                for number, path in enumerate(bundles)
            ]
            said = [one.communicate()[1].decode(errors="replace").strip() for one in running]
            failed = [words for words, one in zip(said, running, strict=True) if one.returncode]
            if failed:
                raise LabError(f"{len(failed)} of {len(running)} failed: {failed[0][-200:]}")

        return once

    return make


def _together(scene, options):
    count = 100
    makers = {
        "labkit, one thread": notebook(60, at_once(1)),
        "labkit, eight threads": notebook(60, at_once(8)),
        "crun": runtime_at_once("crun", scene, count),
    }
    times = {name: [] for name in makers}
    with contestants.lined_up(makers) as line:
        for number in range(-1, 3 if options.full else 1):
            for name, one in line.items():
                spent, _ = one.ask(2 if number < 0 else count)  # the first round only warms up
                if number >= 0:
                    times[name].append(spent)
    return count, times


def _in_a_row(scene, options):
    """Race in batches: in turn, so that all meet the same machine, but each in a row as a loop would."""
    count, batches = (1000, 20) if options.full else (200, 5)

    def row(makers):
        return {name: _batch(make, count // batches) for name, make in makers.items()}

    times = contestants_in_batches(
        row(
            {
                "labkit": notebook(60, whole_container),
                "crun": runtime("crun", scene),
                "C, only the syscalls": floor(scene),
            }
        ),
        batches,
    )
    return count, times


def _batch(make, size):
    """Return a contestant that does another's thing `size` times; it returns each one's milliseconds."""

    def made():
        once = make()

        def batch(number):
            spent = []
            for each in range(size):
                began = time.perf_counter()
                once(f"{number}-{each}")
                spent.append((time.perf_counter() - began) * 1000)
            return spent

        return batch

    return made


def contestants_in_batches(makers, batches):
    """Return ({name: [ms of each batch]}, {name: [ms of each single one]})."""
    whole, single = {name: [] for name in makers}, {name: [] for name in makers}
    with contestants.lined_up(makers) as line:
        for number in range(batches):
            for name, one in line.items():
                spent, each = one.ask(number)
                whole[name].append(spent)
                single[name] += each
    return whole, single


def memory():
    """Prepare a notebook that tells what so many sleeping containers cost labkit, and each of themselves."""

    def once(count):
        with Container("busybox", ["true"], **LIMITS).start() as first:  # what is loaded once is no container's
            first.wait()
        ours = {"keeper": "self", "spawner": spawner.current().owner()}
        before = {name: _pss(pid) for name, pid in ours.items()}
        boxes = []
        try:
            for _ in range(count):
                boxes.append(Container("busybox", ["sleep", "1000"], **LIMITS).start())
            after = {name: _pss(pid) for name, pid in ours.items()}
            sleep = statistics.median(_pss(box.pid) for box in boxes)
        finally:
            for box in boxes:
                box.delete()
        return before, {name: (after[name] - before[name]) / count for name in ours}, sleep

    return once


def _pss(pid):
    """Return the proportional set size of a process in kB. See proc_pid_smaps(5)."""
    gc.collect()
    return int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])


def measure(options):
    """Yield the Reports."""
    before, there = hosts.Host.snapshot(), set(records.ids())
    with peers.scene() as scene:
        count, together = _together(scene, options)
        total, (batches, single) = _in_a_row(scene, options)
    with contestants.lined_up({"labkit": notebook(60, memory)}) as line:
        (own, each, sleep) = line["labkit"].ask(SLEEPERS)[1]
    left = hosts.settled_difference(before, patience=5)
    left += [f"left: the container {number}" for number in set(records.ids()) - there]

    yield Report(
        f"{count} at once",
        "start to exit of `true`",
        ("a second", "all, ms"),
        [(name, count / statistics.median(spent) * 1000, statistics.median(spent)) for name, spent in together.items()],
        ratios=[(f"{name}: time", "crun's", ratio(together, name, "crun")) for name in list(together)[:2]],
        shown=(0, "containers a second"),
        raw=together,
    )
    yield Report(
        f"{total} in a row",
        "start to exit of `true`, in turn in batches",
        ("a second", "median, ms", "p99, ms", "longest, ms"),
        [
            (
                name,
                total / sum(batches[name]) * 1000,
                statistics.median(spent),
                contestants.p99(spent),
                max(spent),
            )
            for name, spent in single.items()
        ],
        ratios=[("labkit's time", "crun's", ratio(batches, "labkit", "crun"))],
        notes=[
            "left on this host by all of them: " + ("nothing" if not left else f"{len(left)} things"),
            *left[:8],
        ],
        shown=(0, "containers a second"),
        raw=single,
    )
    yield Report(
        "memory of labkit's own processes",
        f"with {SLEEPERS} sleeping containers",
        ("before, kB", "a container, kB"),
        [
            *((name, before, each[name]) for name, before in own.items()),
            ("the container's own `sleep`", None, sleep),
        ],
        notes=["PSS; the keeper is a notebook process that holds 60 MB more than it needs"],
        shown=(1, "a container [kB]"),
        ours=True,
        raw={"before": own, "each": each},
    )
