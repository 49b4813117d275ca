"""Chapter 05's checks take right work and refuse wrong work, on either cgroup version."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from labkit.cgroups.cgroup import Limits
from labkit.cgroups.limits import IoLimit
from labkit.container.life import Container
from labkit.ground import state
from labkit.lessons import checks
from labkit.lessons.checks import memory as check
from labkit.lessons.watch import workloads

pytestmark = pytest.mark.usefixtures("needs_root")
MIB = 1 << 20


@pytest.fixture(autouse=True)
def first_try(monkeypatch):
    """Every check is tried for the first time, and waits less long for wrong work."""
    checks.forget()
    monkeypatch.setattr(check, "PATIENCE", 4)


def cache(megabytes, path="/tmp/file"):
    return ["sh", "-c", f"dd if=/dev/zero of={path} bs=1M count={megabytes} 2>/dev/null; exec sleep 1000"]


def boxed(command, **limits):
    return Container("busybox", command, **limits).start()


@contextlib.contextmanager
def ended(command, **limits):
    with boxed(command, **limits) as box:
        box.wait(30)
        yield box


def test_fits_takes_a_program_that_lives_under_its_limit():
    with boxed(workloads.grow(20, every=0), memory="28m") as box:
        assert check.fits(box, 20 * MIB, 32 * MIB)


@pytest.mark.parametrize(
    ("command", "limits", "missing"),
    [
        (workloads.grow(20, every=0), {}, "it has a memory limit"),
        (workloads.grow(20, every=0), {"memory": "64m"}, "at most 32 MiB"),
        (workloads.grow(4, every=0), {"memory": "28m"}, "20 MiB or more"),
        (cache(24), {"memory": "28m"}, "20 MiB or more"),
    ],
)
def test_fits_refuses_no_limit_a_large_one_and_another_program(command, limits, missing):
    with boxed(command, **limits) as box:
        result = check.fits(box, 20 * MIB, 32 * MIB)
        assert not result and missing in result.missing


def test_fits_refuses_what_was_killed_and_says_so():
    with ended(workloads.grow(20, every=0), memory="12m") as box:
        result = check.fits(box, 20 * MIB, 32 * MIB)
        assert not result and "killed" in result.hint


def test_full_of_cache_takes_a_file_larger_than_the_limit():
    with boxed(cache(48), memory="24m") as box:
        assert check.full_of_cache(box, 24 * MIB)


@pytest.mark.parametrize(
    ("command", "limit", "missing"),
    [
        (workloads.grow(20, every=0), "24m", "page cache"),
        (cache(4), "24m", "page cache"),
        (cache(20, "/dev/shm/file"), "24m", "page cache"),
        (cache(48), "32m", "limit is 24 MiB"),
        (cache(48), None, "limit is 24 MiB"),
    ],
)
def test_full_of_cache_refuses_what_is_held_too_small_a_file_and_another_limit(command, limit, missing):
    with boxed(command, memory=limit) as box:
        result = check.full_of_cache(box, 24 * MIB)
        assert not result and missing in result.missing


def test_held_takes_a_limit_that_was_run_into():
    with boxed(workloads.fork(40, 0), pids_limit=12) as box:
        assert check.held(box, 12)


def test_held_refuses_other_limits_and_nothing_that_forks():
    for command, limit in ((workloads.fork(20, 0), None), (workloads.fork(20, 0), 13), ("sleep 1000", 12)):
        with boxed(command, pids_limit=limit) as box:
            assert not check.held(box, 12), (command, limit)


def test_held_refuses_a_limit_set_too_late():
    with boxed(workloads.fork(30, 0)) as box:
        deadline = time.monotonic() + 30
        while box.stats().pids_current < 31 and time.monotonic() < deadline:
            time.sleep(0.02)
        box.cgroup.set(Limits(pids=12))
        assert "no more than 12" in check.held(box, 12).missing


@pytest.fixture
def disk():
    number = os.stat(state.lib_dir()).st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    if not (device / "dev").exists():
        pytest.skip(f"{state.lib_dir()} is on no block device, and only those can be limited")
    return ((device.parent if (device / "partition").exists() else device) / "dev").read_text().strip()


def test_slow_writes_takes_the_limit_and_refuses_others(disk):
    with boxed(workloads.write()) as box:
        box.cgroup.set(Limits(io=(IoLimit(disk, wbps=4 * MIB),)))
        assert check.slow_writes(box, disk, 4 * MIB)
        refused = check.slow_writes(box, disk, 2 * MIB)
        assert not refused and "2097152 bytes" in refused.missing
    with boxed("sleep 1000") as box:
        box.cgroup.set(Limits(io=(IoLimit(disk, rbps=4 * MIB),)))
        assert "has a limit" in check.slow_writes(box, disk, 4 * MIB).missing
        box.cgroup.set(Limits(io=(IoLimit(disk, wbps=4 * MIB),)))
        assert "writes" in check.slow_writes(box, disk, 4 * MIB).missing


def test_frozen_takes_a_freeze_from_either_word():
    with boxed(workloads.spin(2), cpus=0.5) as box:
        for freeze, thaw in ((box.cgroup.freeze, box.cgroup.thaw), (box.pause, box.unpause)):
            freeze()
            assert check.frozen(box)
            thaw()
            assert not check.frozen(box)


def test_frozen_refuses_stopped_by_a_signal_and_killed():
    with boxed(workloads.spin(2), cpus=0.5) as box:
        for process in box.top():
            os.kill(process.pid, signal.SIGSTOP)
        assert "cgroup is frozen" in check.frozen(box).missing
        box.kill()
        box.wait()
        assert "not ended" in check.frozen(box).missing
