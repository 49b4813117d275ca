"""What chapters say of the kernel, and no cell of theirs shows: held here, chapter by chapter."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labkit import in_child
from labkit.cgroups import hierarchies
from labkit.cgroups.cgroup import Cgroup, Limits
from labkit.cgroups.limits import IoLimit
from labkit.cgroups.quantities import disk_of
from labkit.container import standard_mounts
from labkit.container.life import Container, run
from labkit.ground import proc
from labkit.ground import syscalls as sc
from labkit.ground.errors import LabError
from labkit.isolation import last_exec, namespaces, security
from labkit.lessons.checks.pid1 import zombies
from labkit.lessons.watch import workloads
from labkit.lessons.watch.measuring import ahead, until
from labkit.storage import roots

pytestmark = pytest.mark.usefixtures("needs_root")
MIB = 1 << 20


@pytest.fixture
def group():
    with Cgroup.create("sentence") as group:
        yield group


@contextlib.contextmanager
def inside(group, *command):
    """Run a command that is in the group before it begins."""
    script = "".join(f"echo $$ > {path}; " for path in group.procs_files) + 'exec "$@"'
    process = subprocess.Popen(
        ["sh", "-c", script, "sh", *command],
        stdin=subprocess.PIPE,  # of ours there may be no more
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def refused(action):
    """Return the errno with which the kernel refuses, 0 if it does not."""
    try:
        action()
    except (LabError, OSError) as error:
        return error.errno
    return 0


# ---- 01: views ----


def test_01_a_new_mount_namespace_begins_as_a_copy():
    def look():
        before = sorted(mount.target for mount in proc.mounts())
        sc.unshare(sc.CLONE_NEWNS)
        return before, sorted(mount.target for mount in proc.mounts())

    before, after = in_child(look)
    assert before == after


def test_01_users_are_mapped_once():
    def twice():
        sc.unshare(sc.CLONE_NEWUSER)
        namespaces.map_ids("self", [(0, 0, 1)], [])
        return refused(lambda: Path("/proc/self/uid_map").write_text("0 0 1\n"))

    assert in_child(twice) == errno.EPERM


def test_01_a_time_namespace_takes_children_only_and_leaves_the_date():
    def shifted():
        sc.unshare(sc.CLONE_NEWTIME)
        Path("/proc/self/timens_offsets").write_text("boottime 604800 0")
        up, date = time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
        (child_up, child_date) = in_child(lambda: (time.clock_gettime(time.CLOCK_BOOTTIME), time.time()))
        late = refused(lambda: Path("/proc/self/timens_offsets").write_text("boottime 1 0"))
        return up, child_up - up, child_date - date, late

    up, ahead_by, date_by, late = in_child(shifted)
    assert up < time.clock_gettime(time.CLOCK_BOOTTIME) < up + 3600  # its maker's own clock stays
    assert 604800 <= ahead_by < 604800 + 3600 and 0 <= date_by < 3600
    assert late == errno.EACCES, "an offset is written before the first child is there"


def test_01_an_open_file_keeps_a_namespace():
    with subprocess.Popen(
        ["unshare", "--uts", "sh", "-c", "hostname kept; echo up; exec sleep 60"], stdout=subprocess.PIPE
    ) as one:
        assert one.stdout.readline() == b"up\n"
        fd = os.open(f"/proc/{one.pid}/ns/uts", os.O_RDONLY)
        one.kill()

    def name():
        sc.setns(fd, sc.CLONE_NEWUTS)
        return os.uname().nodename

    try:
        assert in_child(name) == "kept"
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", namespaces.KINDS)
def test_01_only_pid_and_user_namespaces_are_nested(kind):
    fd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY)
    try:
        # EPERM: there is one around it, or could be, and it is not ours to know.
        nested = refused(lambda: os.close(fcntl.ioctl(fd, sc.NS_GET_PARENT))) != errno.EINVAL
    finally:
        os.close(fd)
    assert nested == (kind in ("pid", "user"))


# ---- 02: number 1 ----


def test_02_a_zombie_holds_a_number_and_no_memory():
    with Container("busybox", ["sleep", "60"]).start() as box:
        box.exec(["sh", "-c", "(sleep 0.01 &)"])
        assert until(lambda: zombies(box.pid))
        (dead,) = zombies(box.pid)
        assert "VmRSS" not in proc.read(f"/proc/{dead.pid}/status") and dead.nspid[-1] > 1


def test_02_a_signal_that_pid_1_has_a_handler_for_ends_it_from_inside_too():
    with Container("busybox", ["sh", "-c", "sleep 60 & wait"]).start() as box:
        assert until(lambda: len(box.top()) == 2)
        box.exec(["kill", "-INT", "1"])
        assert box.wait(timeout=30) == 128 + signal.SIGINT


def test_02_the_small_init_is_tini():
    words = [standard_mounts.init().source, "--version"]
    assert subprocess.run(words, capture_output=True, text=True).stdout.startswith("tini version")


def test_02_no_file_is_copied_for_a_container_whose_users_are_others_outside():
    with Container("busybox", "sleep 60", userns="remap").start() as box:
        assert box.exec(["stat", "-c", "%u", "/bin/busybox"]).output == "0\n"
        assert box.rootfs.usage().allocated == 0


# ---- 03: a root ----


def test_03_pivot_root_wants_a_mount(tmp_path):
    def pivot(bind):
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        if bind:
            sc.mount(str(tmp_path), str(tmp_path), None, sc.MS_BIND)
        os.chdir(tmp_path)
        return refused(lambda: sc.pivot_root(".", "."))

    # EBUSY: it would be the mount that is the root already.
    assert in_child(pivot, False) in (errno.EINVAL, errno.EBUSY) and in_child(pivot, True) == 0


def test_03_an_open_folder_outside_is_a_way_out_of_a_chroot(tmp_path):
    def walk():
        fd = os.open("/", os.O_RDONLY)
        os.chroot(tmp_path)
        os.chdir("/")
        locked = os.path.exists("/proc/self")
        os.fchdir(fd)
        os.chroot(".")
        return locked, os.path.exists("/proc/self")

    assert in_child(walk) == (False, True)


# ---- 04: CPU ----


def test_04_a_new_group_has_the_usual_period_and_weight(group):
    old = group.version("cpu") == 1
    period, weight = ("cpu.cfs_period_us", "cpu.shares") if old else ("cpu.max", "cpu.weight")
    assert group.read(period).split()[-1] == "100000"
    assert group.read(weight).strip() == ("1024" if old else "100")


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one CPU: two can't run at once")
def test_04_two_spinners_use_up_one_quota_together(group):
    group.set(Limits(cpu_quota=100_000, cpu_period=100_000))
    with ahead(), inside(group, *workloads.spin(2)):
        assert until(lambda: group.stats().nr_throttled >= 3), "both together never used up one CPU's quota"
        stats = group.stats()
    assert stats.usage_usec <= 1.1 * 100_000 * (stats.nr_periods + 1), "each had a quota of its own"


# ---- 05: memory, processes, I/O ----


def test_05_memory_is_taken_when_it_is_touched_and_not_when_it_is_asked_for(group):
    group.set(Limits(memory=48 * MIB))
    code = "import mmap; held = mmap.mmap(-1, 256 << 20); print('asked', flush=True); input()"
    with inside(group, sys.executable, "-SEc", code) as process:
        assert process.stdout.readline() == b"asked\n"
        assert group.stats().memory_current < 32 * MIB and process.poll() is None
    code = "import mmap; held = mmap.mmap(-1, 256 << 20)\nfor at in range(0, len(held), 4096): held[at] = 1"
    with inside(group, sys.executable, "-SEc", code) as process:
        assert process.wait(30) == -signal.SIGKILL


def test_05_who_is_killed_for_memory_says_nothing_and_leaves_the_rest_alone():
    with Container("busybox", "sleep 60", memory="32m").start() as box:
        ended = box.exec(workloads.grow(64, every=0))
        assert (ended.code, ended.output) == (137, "") and box.status == "running"


def test_05_files_in_ram_are_not_given_back():
    write = "dd if=/dev/zero of={} bs=1M count=48"
    assert run("busybox", write.format("/dev/shm/file"), memory="32m", show=False).oom_killed
    assert run("busybox", write.format("/tmp/file"), memory="32m", show=False).code == 0


def test_05_threads_count_as_processes(group):
    group.set(Limits(pids=5))
    code = (
        "import threading, time\nfor number in range(30):\n"
        "    try: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "    except RuntimeError: print(number, flush=True); break\ninput()"
    )
    with inside(group, sys.executable, "-SEc", code) as process:
        assert process.stdout.readline() == b"4\n"  # and the first


def test_05_v1_does_not_hold_what_goes_through_the_page_cache(group, tmp_path):
    if hierarchies.home("io").version == 2:
        pytest.skip("io is in the v2 tree here, which knows whose pages they are")
    group.set(Limits(io=(IoLimit(disk_of(tmp_path), wbps=MIB // 4),)))
    begun = time.monotonic()
    with inside(group, "dd", "if=/dev/zero", f"of={tmp_path}/file", "bs=1M", "count=16") as process:
        assert process.wait(120) == 0
    assert time.monotonic() - begun < 16 * MIB / (MIB // 4) / 4, "a limit that held would take four times as long"


# ---- 06, 07: layers ----


def test_06_without_sys_admin_an_opaque_mark_is_neither_seen_nor_taken_away(tmp_path):
    mark = "trusted.overlay.opaque"
    os.setxattr(tmp_path, mark, b"y")

    def as_root_in_a_container():
        security.set_capabilities(security.DEFAULT)
        return mark in os.listxattr(tmp_path), refused(lambda: os.removexattr(tmp_path, mark))

    assert mark in os.listxattr(tmp_path)
    assert in_child(as_root_in_a_container) == (False, errno.EPERM)


def test_07_an_index_lies_in_the_workdir_and_binds_the_upperdir(tmp_path):
    lower, other, upper, work, merged, second = (
        tmp_path / name for name in ("lower", "other", "upper", "work", "merged", "second")
    )
    for folder in (lower, other, upper, work, merged, second):
        folder.mkdir()
    (lower / "a").write_text("old")
    os.link(lower / "a", lower / "b")
    with roots.mounted(lower, upper, work, merged, options=("index=on",)):
        (merged / "a").write_text("new")
        assert len(os.listdir(work / "index")) == 1
        assert refused(lambda: roots.mount(lower, upper, work, second, options=("index=on",))) == errno.EBUSY
    assert refused(lambda: roots.mount(other, upper, work, merged, options=("index=on",))) == errno.ESTALE


# ---- 11: locks ----


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_11_the_last_program_is_some_90_bytes_behind_its_headers(machine):
    assert 80 <= len(last_exec.elf(machine)) - 64 - 56 <= 100
