"""The sampler is on time, cheap, right, and gone with its owner."""

import os
import signal
import subprocess
import sys
import time

import numpy
import pytest
from timing import emulated, until

from labkit.cgroups.cgroup import Cgroup, Limits
from labkit.ground import ledger, proc
from labkit.ground.errors import BadValue, Unsupported
from labkit.lessons.watch import sampling, workloads
from labkit.lessons.watch.sampling import SOURCES, Sampler

pytestmark = pytest.mark.usefixtures("needs_root")


@pytest.fixture
def group():
    with Cgroup.create("sampled") as group:
        yield group


@pytest.fixture
def spinner(group):
    group.set(Limits(cpu_quota=5_000, cpu_period=10_000))
    process = subprocess.Popen(workloads.spin())
    group.add(process.pid)
    yield group
    process.kill()
    process.wait()


def test_200_samples_a_second_for_less_than_a_twentieth_of_a_core(spinner):
    if emulated():
        pytest.skip("this CPU is emulated (QEMU TCG): a sample costs ten times as much")
    for _ in range(4):  # others' work on this machine may take our time
        with Sampler(spinner) as sampler:
            time.sleep(2)
        trace = sampler.trace()
        achieved = len(trace) / trace.time[-1]
        if achieved >= 200 and trace.cost < 0.05 and numpy.median(trace.late) < 1e-3:
            break
    assert achieved >= 200
    assert trace.cost < 0.05
    assert numpy.median(trace.late) < 1e-3


def test_the_samples_are_the_kernels_numbers(spinner):
    before = spinner.stats()
    with Sampler(spinner, ("usage_usec", "nr_throttled", "throttled_usec", "pids_current")) as sampler:
        begin = spinner.stats().nr_throttled
        until(lambda: spinner.stats().nr_throttled > begin + 10)
    after, trace = spinner.stats(), sampler.trace()
    for name in ("usage_usec", "nr_throttled", "throttled_usec"):
        assert (
            getattr(before, name) <= trace[name][0] <= trace[name][-1] < getattr(after, name) + 1
        )  # stats are whole µs
        assert (numpy.diff(trace[name]) >= 0).all()
    assert (trace["pids_current"] == 1).all()
    assert trace["nr_throttled"][-1] > trace["nr_throttled"][0]


def test_growth_is_the_share_of_the_cpu(spinner):
    spinner.set(Limits(cpu_quota=30_000, cpu_period=100_000))
    with Sampler(spinner) as sampler:
        time.sleep(1.05)
    _, growth = sampler.trace().growth("usage_usec", 0.5)
    assert len(growth) == 2 and (growth <= 0.45e6).all()


def test_who_waits_all_of_the_time_is_seen_to_wait_all_of_it_at_any_rate(group):
    group.set(Limits(cpuset_cpus="0"))  # two who want the same CPU: one waits, always
    spinners = [subprocess.Popen(workloads.spin()) for _ in range(2)]
    try:
        for process in spinners:
            group.add(process.pid)
        with Sampler(group, ("cpu_pressure_usec", "usage_usec"), rate=500) as sampler:
            time.sleep(1.5)
    except Unsupported as error:
        pytest.skip(f"this kernel keeps no pressure: {error}")
    finally:
        for process in spinners:
            process.kill()
            process.wait()
    trace = sampler.trace()
    changes = numpy.flatnonzero(numpy.diff(trace["cpu_pressure_usec"])) + 1
    waited = numpy.diff(trace["cpu_pressure_usec"][changes][[0, -1]])[0] / 1e6
    assert waited == pytest.approx(trace.time[changes[-1]] - trace.time[changes[0]], rel=0.1)
    assert len(changes) <= 1 + sampling.MOST_PRESSURE_RATE * trace.time[-1]
    assert len(numpy.unique(trace["usage_usec"])) > 3 * len(changes)  # the others come as asked


def test_a_late_sample_does_not_make_the_next_one_late(group):
    with Sampler(group, ("usage_usec",), rate=100) as sampler:
        time.sleep(0.2)
        os.kill(sampler.process.pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(sampler.process.pid, signal.SIGCONT)
        time.sleep(0.3)
    trace = sampler.trace()
    assert trace.late.max() > 0.2  # it is told
    assert numpy.median(trace.late[-10:]) < 0.005
    steps = numpy.round((trace.time - trace.late) * 100, 3)
    assert numpy.allclose(steps - steps[0], numpy.round(steps - steps[0]), atol=0.01)


def test_it_can_be_looked_at_while_it_runs(group):
    with Sampler(group) as sampler:
        lengths = []
        for _ in range(4):
            time.sleep(0.1)
            lengths.append(len(sampler.trace()))
        assert lengths == sorted(set(lengths))


def test_several_cgroups_are_read_at_the_same_moments(group):
    with (
        Cgroup.create("second") as second,
        Sampler({"a": group, "b": second}, ("usage_usec", "memory_current")) as sampler,
    ):
        time.sleep(0.1)
    trace = sampler.trace()
    assert set(trace.values) == {"a.usage_usec", "a.memory_current", "b.usage_usec", "b.memory_current"}
    assert len(trace["a.usage_usec"]) == len(trace["b.memory_current"]) == len(trace)


def test_it_ends_when_the_cgroup_is_removed_and_keeps_what_it_read():
    with Cgroup.create("short") as group:
        sampler = Sampler(group)
        sampler.start()
        time.sleep(0.1)
    sampler.process.wait(30)
    sampler.stop()
    assert len(sampler.trace()) > 5


def test_every_number_is_there_or_unsupported_by_its_file(group):
    for name in SOURCES:
        try:
            with Sampler(group, name) as sampler:
                time.sleep(0.02)
            assert len(sampler.trace()[name])
        except Unsupported as error:
            assert name in str(error) and SOURCES[name][0][0] in str(error)


@pytest.mark.parametrize("rate", [0, -1, 1001, "fast", None, float("nan"), True])
def test_a_rate_that_can_not_be_meant_is_refused(group, rate):
    with pytest.raises(BadValue):
        Sampler(group, rate=rate)


def test_an_unknown_number_is_refused(group):
    with pytest.raises(BadValue, match="banana"):
        Sampler(group, ("usage_usec", "banana"))


def test_its_process_is_in_the_ledger_and_struck_out_after(group):
    with Sampler(group) as sampler:
        pid = sampler.process.pid
        assert any(entry.kind == "process" and entry.what["pid"] == pid for entry in ledger.entries())
    assert not any(entry.kind == "process" for entry in ledger.entries())
    assert proc.start_ticks(pid) is None


def test_its_process_dies_with_its_parent(group):
    code = (
        "import os, signal\nfrom labkit.cgroups.cgroup import Cgroup\nfrom labkit.lessons.watch.sampling import Sampler\n"
        "sampler = Sampler(Cgroup.open('sampled')); sampler.start()\n"
        "print(sampler.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    out = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout
    deadline = time.monotonic() + 30
    while proc.start_ticks(int(out)) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ledger.clean()


def test_a_process_that_is_not_told_to_go_reads_nothing():
    memory = os.memfd_create("out")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", sampling.reader.__file__, str(os.getpid()), "100", str(memory)],
        stdin=subprocess.DEVNULL, pass_fds=[memory],
    )  # fmt: skip
    assert process.wait(30) == 0 and os.fstat(memory).st_size == 0
    os.close(memory)
