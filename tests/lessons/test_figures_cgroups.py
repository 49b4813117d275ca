"""The pictures of chapters 04 and 05: drawn from a real trace, with limit, units and nothing empty."""

import time

import numpy
import pytest
from timing import emulated

from labkit.cgroups import hierarchies
from labkit.container.life import Container
from labkit.lessons.figures import cpu, memory, png
from labkit.lessons.panels import cpu as cpu_panels
from labkit.lessons.panels import disk as disk_panels
from labkit.lessons.panels import memory as memory_panels
from labkit.lessons.watch import workloads
from labkit.lessons.watch.sampling import SOURCES, Sampler, Trace

pytestmark = pytest.mark.usefixtures("needs_root")
PATIENCE = 8 if emulated() else 1  # an emulated CPU draws a picture in seconds


def made(seconds=2.0, step=0.004, **values):
    """Return a Trace with these functions of time."""
    at = numpy.arange(0, seconds, step)
    return Trace(at, numpy.zeros_like(at), {name: function(at) for name, function in values.items()}, 250, 0.01)


def throttled(quota, period):
    """Return the trace of an ideal spinner: full speed to the quota, then nothing until the period ends."""
    q, p = quota / 1e6, period / 1e6
    return made(
        usage_usec=lambda t: 1e6 * (q * (t // p) + numpy.minimum(t % p, q)),
        nr_periods=lambda t: t // p,
        nr_throttled=lambda t: t // p,
        throttled_usec=lambda t: 1e6 * ((p - q) * (t // p)),
    )


def axes_of(figure):
    assert png(figure)[:4] == b"\x89PNG"
    for axes in figure.axes:
        if axes.axison:
            assert axes.get_ylabel() or axes.get_xlabel()
    return figure.axes


def values_at(axes, colour="black"):
    """Return the heights of the dashed lines: limits."""
    return [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]


def test_each_period_rises_to_the_quota_line():
    (axes,) = axes_of(cpu.periods(throttled(30_000, 100_000), 30_000, 100_000))
    assert values_at(axes) == [30.0]
    assert "[ms]" in axes.get_xlabel() and "[ms]" in axes.get_ylabel()
    tops = [line.get_ydata().max() for line in axes.lines if line.get_linestyle() == "-" and len(line.get_ydata())]
    assert tops == pytest.approx([30.0] * 8, abs=4.1)


def test_use_and_throttled_time_share_one_time_axis_with_the_limit():
    above, below = axes_of(cpu.throttling(throttled(30_000, 100_000), 30_000, 100_000))
    assert above.get_shared_x_axes().joined(above, below)
    assert values_at(above) == [0.3]
    used = next(line for line in above.lines if line.get_label() == "used").get_ydata()
    assert used == pytest.approx([0.3] * len(used), abs=0.05)


def test_a_limit_that_was_turned_is_drawn_as_steps():
    trace = throttled(30_000, 100_000)
    above, _ = axes_of(cpu.throttling(trace, [(0, 30_000), (1, 60_000)], [(0, 100_000), (1, 100_000)]))
    limit = next(line for line in above.lines if line.get_linestyle() == "--")
    assert list(limit.get_ydata()) == [0.3, 0.6, 0.6]


def test_contention_has_a_dashed_line_for_each_ideal_share():
    trace = made(
        **{
            "a.usage_usec": lambda t: 1e6 * t / 7,
            "b.usage_usec": lambda t: 2e6 * t / 7,
            "c.usage_usec": lambda t: 4e6 * t / 7,
        }
    )
    left, right = axes_of(cpu.contention(trace, {"a": 100, "b": 200, "c": 400}))
    assert values_at(left) == pytest.approx([100 / 7, 200 / 7, 400 / 7])
    assert [bar.get_width() for bar in right.patches] == pytest.approx([100 / 7, 200 / 7, 400 / 7])


def test_every_tree_of_this_machine_is_in_the_picture_of_hierarchies():
    (axes,) = axes_of(cpu.hierarchies(hierarchies.hierarchies()))
    words = {text.get_text() for text in axes.texts}
    for tree in hierarchies.hierarchies():
        if tree.controllers:
            assert {str(tree.mount), *tree.controllers} <= words


def test_a_kill_is_marked_where_the_counter_grew():
    trace = made(memory_current=lambda t: numpy.minimum(t, 1) * 48 * (1 << 20), oom_kills=lambda t: (t >= 1.5) * 1.0)
    (axes,) = axes_of(memory.growth(trace, 48 << 20))
    assert memory.kills(trace) == pytest.approx([1.5], abs=0.01)
    assert values_at(axes) == [48.0] and "killed" in {text.get_text() for text in axes.texts}


@pytest.mark.parametrize("samples", [0, 1, 2, 30])
def test_a_live_picture_can_be_drawn_from_the_first_samples_on(samples):
    trace = throttled(30_000, 100_000)
    short = Trace(
        trace.time[:samples],
        trace.late[:samples],
        {k: v[:samples] for k, v in trace.values.items()},
        250,
        0.01,
    )
    assert png(cpu.throttling(short, 30_000, 100_000))


def test_a_real_kill_a_real_bomb_and_a_real_freeze_are_seen():
    trace = memory_panels.memory(limit=24, wants=64, seconds=3 * PATIENCE)
    assert memory.kills(trace) and 0.95 * 24 * (1 << 20) <= trace["memory_current"].max() <= 24 * (1 << 20)
    axes_of(memory.growth(trace, 24 << 20))
    trace = memory_panels.processes(limit=12, seconds=2 * PATIENCE)
    assert trace["pids_current"].max() == 12 and trace["pids_denied"][-1] > 0
    axes_of(memory.processes(trace, 12))
    trace = memory_panels.freeze(seconds=1.2)
    frozen = trace["frozen"] > 0
    assert frozen.any() and not frozen[0] and not frozen[-1]
    used = trace["usage_usec"][frozen]
    assert used[-1] - used[2] < 2000
    axes_of(memory.freezing(trace))


def test_a_disk_limit_that_was_turned_is_drawn_as_steps():
    trace, mib = made(write_bytes=lambda t: 4 * (1 << 20) * t), 1 << 20
    (axes,) = axes_of(memory.bandwidth(trace, [(0, 8 * mib), (1, 4 * mib)]))
    limit = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert list(limit.get_ydata()) == [8, 4, 4] and list(limit.get_xdata())[:2] == [0, 1]


def test_a_real_writer_is_held_at_the_limit_that_a_knob_sets():
    needs_a_disk()
    panel = disk_panels.disk_panel(limit=4)
    panel.start()
    try:
        assert panel.running, panel.message.value
        panel.knobs["limit"].value = 8
        group, disk = panel.experiment.box.cgroup, panel.experiment.disk
        v1 = group.version("io") == 1
        assert f"{8 << 20}" in group.read("blkio.throttle.write_bps_device" if v1 else "io.max")
        for _ in range(4):  # a busy machine takes away, never adds
            before = panel.experiment.trace()["write_bytes"][-1]
            time.sleep(2)
            written = panel.experiment.trace()["write_bytes"][-1] - before
            if written == pytest.approx(16 << 20, rel=0.2):
                break
        assert written == pytest.approx(16 << 20, rel=0.2)
        assert disk in group.read("blkio.throttle.io_service_bytes" if v1 else "io.stat")
    finally:
        panel.close()


def needs_a_disk():
    from labkit.cgroups.quantities import disk_of
    from labkit.ground import state
    from labkit.ground.errors import Unsupported

    try:
        disk_of(state.lib_dir())
    except Unsupported as error:
        pytest.skip(error.message)


def test_bandwidth_and_pressure_are_drawn_from_what_there_is():
    axes_of(memory.bandwidth(made(write_bytes=lambda t: 4 * (1 << 20) * t), 4 << 20))
    axes_of(memory.pressures(made(cpu_pressure_usec=lambda t: 5e5 * t)))
    assert {"cpu_pressure_usec", "io_pressure_usec"} <= set(SOURCES)


# Panels


@pytest.mark.parametrize("make", [cpu_panels.quota_panel, cpu_panels.weights_panel, memory_panels.memory_panel,
                                  memory_panels.processes_panel, memory_panels.freeze_panel,
                                  disk_panels.disk_panel])  # fmt: skip
def test_a_panel_runs_twice_is_live_and_leaves_nothing(make, capsys):
    from labkit.ground import ledger

    if make is disk_panels.disk_panel:
        needs_a_disk()
    before = ledger.entries()
    for _ in range(2):  # the second one replaces the first, as when a cell is run again
        panel = make()
        panel.seconds *= PATIENCE
        panel.button.value = True
        assert panel.running, panel.message.value
        pictures = set()
        deadline = time.monotonic() + 15 * PATIENCE
        while len(pictures) < 3 and time.monotonic() < deadline:
            pictures.add(bytes(panel.picture.value))
            time.sleep(0.1)
        assert len(pictures) >= 3, "the picture did not change while it ran"
    panel.button.value = False
    assert not panel.running and panel.button.description == "Start"
    panel.close()
    assert ledger.entries() == before
    assert capsys.readouterr() == ("", "")


def test_a_knob_turned_while_it_runs_reaches_the_kernel():
    panel = cpu_panels.quota_panel(cpus=0.5)
    panel.start()
    panel.knobs["cpus"].value = 0.2
    group = panel.experiment.box.cgroup
    text = group.read("cpu.max") if group.version("cpu") == 2 else group.read("cpu.cfs_quota_us")
    assert text.split()[0] == "20000"
    panel.close()


def test_a_panel_stops_by_itself():
    panel = cpu_panels.quota_panel()
    panel.seconds = 1
    panel.start()
    deadline = time.monotonic() + 10 * PATIENCE
    while panel.running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not panel.running and panel.experiment.box is None


def test_a_fork_bomb_goes_on_and_follows_its_limit_up_and_down():
    panel = memory_panels.processes_panel(limit=10)
    panel.seconds *= PATIENCE
    panel.start()
    try:
        for limit in (10, 30, 15):
            panel.knobs["limit"].value = limit
            time.sleep(1 * PATIENCE)  # so that those above a lower limit have ended
            before = len(panel.experiment.trace())
            time.sleep(1.5 * PATIENCE)
            trace = panel.experiment.trace()
            assert trace["pids_current"][before:].max() == limit
            assert trace["pids_denied"][-1] > trace["pids_denied"][before]
        assert {limit for _, limit in panel.experiment.limits} == {10, 30, 15}
    finally:
        panel.close()


def test_what_the_kernel_refuses_is_said_on_the_panel(monkeypatch):
    panel = cpu_panels.quota_panel()
    monkeypatch.setattr(cpu_panels, "workloads", type("None", (), {"spin": staticmethod(lambda: ["no-such-program"])}))
    panel.start()
    assert not panel.running and "CommandError" in panel.message.value and "no-such-program" in panel.message.value
    panel.close()


def test_its_text_is_the_same_every_time_it_is_displayed():
    texts = {make()._repr_mimebundle_()["text/plain"] for make in [cpu_panels.quota_panel] * 2}
    assert texts == {"<panel quota: cpus, period>"}


def test_a_panels_container_dies_with_a_notebook_that_is_killed():
    import subprocess
    import sys

    code = (
        "import os, signal, time\nfrom labkit.lessons.panels import cpu\n"
        "panel = cpu.quota_panel(); panel.start(); print(panel.experiment.box.id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    out = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout.strip()
    from labkit.ground import ledger

    _, _, failed = ledger.clean()
    assert not failed
    assert not [entry for entry in ledger.entries() if out in str(entry.what)]


# Chapter 04's checks


def test_checks_see_a_right_limit_and_refuse_wrong_ones():
    from labkit.cgroups.cgroup import Limits
    from labkit.lessons.checks import cpu as check

    with Container("busybox", workloads.spin(), cpus=0.3).start() as box:
        assert not check.quota(box, cpus=0.3, period=20_000)  # the period is wrong
        box.cgroup.set(Limits(cpu_quota=30_000, cpu_period=20_000))
        assert not check.quota(box, cpus=0.3, period=20_000)  # the quota is wrong
        box.cgroup.set(Limits(cpu_quota=-1))
        assert not check.quota(box, cpus=0.3, period=100_000)  # there is none
        box.cgroup.set(Limits(cpu_quota=6_000, cpu_period=20_000))
        assert check.quota(box, cpus=0.3, period=20_000)
    with Container("busybox", ["sleep", "1000"], limits=Limits(cpu_quota=6_000, cpu_period=20_000)).start() as box:
        assert not check.quota(box, cpus=0.3, period=20_000)  # nothing wants CPU


def test_checks_see_shares_by_weight_and_refuse_other_ways():
    from labkit.cgroups.cgroup import Limits
    from labkit.lessons.checks import cpu as check

    def three(*limits):
        return [Container("busybox", workloads.spin(), limits=one).start() for one in limits]

    def result(boxes):
        try:
            return check.shares(boxes, wanted=[0.5, 0.25, 0.25], tries=3)
        finally:
            for box in boxes:
                box.delete()

    pinned = {"cpuset_cpus": "0"}
    assert result(three(*(Limits(cpu_weight=w, **pinned) for w in (200, 100, 100))))
    assert not result(three(*(Limits(cpu_weight=w, **pinned) for w in (100, 100, 100))))
    assert not result(three(Limits(**pinned), *(Limits(cpu_quota=25_000, **pinned) for _ in range(2))))
    assert not result(
        three(*(Limits(cpu_weight=w) for w in (200, 100, 100)))
    )  # on different CPUs, if there are several


def test_checks_see_a_pinned_container_and_refuse_a_roaming_one():
    import os

    from labkit.cgroups.cgroup import Limits
    from labkit.lessons.checks import cpu as check

    if os.cpu_count() < 2:
        pytest.skip("this machine has one CPU: everybody is on it")
    with Container("busybox", workloads.spin(2)).start() as box:
        assert not check.pinned(box, cpu=0)
        box.cgroup.set(Limits(cpuset_cpus="1"))
        assert not check.pinned(box, cpu=0)
        box.cgroup.set(Limits(cpuset_cpus="0"))
        assert check.pinned(box, cpu=0)


def test_cgls_draws_our_containers_on_every_controllers_tree():
    from labkit.cgroups import cgls

    with Container("busybox", ["sleep", "1000"]).start() as box:
        for name in ("cpu", "cpuset", "memory"):
            text = cgls.tree(name)
            assert box.id in text and f"{box.pid} sleep 1000" in text
        assert box.id in cgls.tree("cpu", everything=True)
        with Sampler(box.cgroup):  # reading beside it changes nothing
            assert cgls.tree("cpu", numbers=False).endswith("sleep 1000")
