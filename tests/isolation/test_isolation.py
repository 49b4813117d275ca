"""What each of the eight namespaces keeps from a container, tried in both directions where there are two."""

import ctypes
import os
import re
import socket
import tempfile
import time
from pathlib import Path

import pytest

from labkit.container.life import Container, run
from labkit.ground import proc
from labkit.ground import syscalls as sc
from labkit.ground.child import in_child
from labkit.isolation import namespaces

pytestmark = pytest.mark.usefixtures("needs_root")

libc = ctypes.CDLL(None, use_errno=True)


def inside(command, **words):
    """Run a shell line in a container; return what it printed."""
    return run("busybox", ["sh", "-c", command], show=False, **words).output


# ---- uts ----


def test_container_does_not_see_the_hosts_name():
    assert inside("hostname", hostname="the-inside").strip() == "the-inside" != os.uname().nodename


def test_a_name_set_inside_stays_inside():
    before = os.uname().nodename
    said = inside("hostname changed && hostname", cap_add=["SYS_ADMIN"])
    assert said.strip() == "changed"
    assert os.uname().nodename == before


# ---- ipc ----


@pytest.fixture
def shared_memory():
    """A System V shared memory segment of the host's, removed afterwards."""
    IPC_PRIVATE, IPC_CREAT, IPC_RMID = 0, 0o1000, 0
    number = libc.shmget(IPC_PRIVATE, ctypes.c_size_t(4096), IPC_CREAT | 0o600)
    assert number >= 0
    yield number
    libc.shmctl(number, IPC_RMID, None)


def _segments(text):
    return {int(line.split()[1]) for line in text.splitlines()[1:]}


def test_container_does_not_see_the_hosts_shared_memory(shared_memory):
    assert shared_memory in _segments(Path("/proc/sysvipc/shm").read_text())
    assert _segments(inside("cat /proc/sysvipc/shm")) == set()


def test_container_does_not_see_the_hosts_message_queues():
    name = f"/labkit-{os.getpid()}".encode()
    rt = ctypes.CDLL("librt.so.1", use_errno=True)
    queue = rt.mq_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, None)
    assert queue >= 0, os.strerror(ctypes.get_errno())
    try:
        # Its own mqueue is mounted there, and the name can be given again in it.
        assert inside("ls /dev/mqueue; touch /dev/mqueue/mine; ls /dev/mqueue") == "mine\n"
    finally:
        os.close(queue)
        rt.mq_unlink(name)


# ---- mnt ----


def test_container_sees_none_of_the_hosts_mounts(tmp_path):
    def outside():
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        sc.mount("bait", tmp_path, "tmpfs", 0)
        return inside("cat /proc/self/mountinfo; ls /")

    said = in_child(outside)
    assert "bait" not in said and str(tmp_path) not in said
    hosts = {mount.target for mount in proc.mounts()} - {"/"}
    assert not hosts & {line.split()[4] for line in said.splitlines() if " - " in line} - {
        "/proc", "/dev", "/sys", "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/hugepages", "/etc/hosts", "/etc/hostname",
    } - {mount.target for mount in proc.mounts() if mount.target.startswith(("/sys/fs/cgroup", "/proc/", "/sys/"))}  # fmt: skip


def test_a_mount_made_inside_is_not_seen_outside():
    script = "mount -t tmpfs bait /mnt && echo mounted && sleep 60"
    with Container("busybox", ["sh", "-c", script], cap_add=["SYS_ADMIN"]).start() as box:
        _until(lambda: box.logs())
        assert box.logs() == "mounted\n"
        assert any(mount.source == "bait" for mount in proc.mounts(box.pid))
        assert not any(mount.source == "bait" for mount in proc.mounts())


def _until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


# ---- net ----


def test_container_does_not_see_the_hosts_links():
    hosts = set(os.listdir("/sys/class/net")) - {"lo"}
    its = set(inside("ls /sys/class/net").split())
    # The kernel gives each namespace its fallback tunnels of the same names; a real link is in one only.
    fallback = {"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}
    assert "lo" in its and not its & hosts - fallback


def test_container_does_not_reach_what_listens_on_the_hosts_loopback():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = f"timeout 0.5 nc 127.0.0.1 {port}; echo $?"
        assert inside(command, network="host").splitlines()[-1] == "143"  # connected until it was ended
        assert inside(command).splitlines()[-1] == "1"


def test_a_port_taken_outside_is_free_inside():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = f"timeout 0.3 httpd -f -p 127.0.0.1:{port}; echo $?"
        assert inside(command).splitlines()[-1] == "143"  # it listened until it was ended
        assert inside(command, network="host").splitlines()[-1] == "1"


# ---- pid ----


def test_container_sees_no_process_but_its_own():
    said = inside("ls /proc; true")
    assert sorted(int(name) for name in said.split() if name.isdigit()) == [1, 2]


def test_container_cannot_signal_a_process_of_the_host():
    said = inside(f"kill -0 {os.getpid()} 2>&1; for n in $(seq 2 200); do kill -0 $n 2>/dev/null && echo $n; done")
    assert "No such process" in said
    assert not re.search(r"^\d+$", said, re.MULTILINE)


# ---- cgroup ----


def test_container_does_not_see_where_in_the_tree_it_is():
    with Container("busybox", "sleep 60").start() as box:
        outside = proc.cgroups(box.pid)
        assert any(box.id in path for path in outside.values())
        said = box.exec("cat /proc/1/cgroup").output
        assert box.id not in said
        ours = [line.split(":")[2] for line in said.splitlines() if _has_a_folder_of_ours(line, outside, box.id)]
        assert ours and set(ours) == {"/"}


def _has_a_folder_of_ours(line, outside, name):
    return name in outside[line.split(":")[1].split(",")[0]]


def test_what_is_mounted_as_the_cgroup_tree_begins_at_the_container():
    script = "cat /sys/fs/cgroup/pids/cgroup.procs 2>/dev/null || cat /sys/fs/cgroup/cgroup.procs"
    numbers = inside(f"{script}; true").split()
    assert numbers and set(numbers) <= {"1", "2", "3"}  # sh, and one cat or two


# ---- user ----


@pytest.fixture
def secret():
    """A file that only the host's root may read, in a folder that all may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "secret")
        path.write_text("for root only")
        path.chmod(0o600)
        yield path


def test_root_of_a_user_namespace_is_nobody_to_the_rest(secret):

    def become_root():
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        sc.prctl(sc.PR_SET_DUMPABLE, 1)
        sc.unshare(sc.CLONE_NEWUSER)
        namespaces.map_ids("self", [(0, 65534, 1)], [])
        assert os.getuid() == 0 and sc.capget()[0]
        seen = os.stat(secret).st_uid
        try:
            secret.read_text()
        except PermissionError:
            return seen
        return "read it"

    assert in_child(become_root) == 65534  # the real root has no number in there


# ---- time ----


@pytest.mark.requires("time namespace")
def test_container_with_an_offset_has_other_clocks():
    day = 86400
    host = float(Path("/proc/uptime").read_text().split()[0])
    assert abs(float(inside("cat /proc/uptime", time_offset=day).split()[0]) - host - day) < 60
    assert abs(float(inside("cat /proc/uptime").split()[0]) - host) < 60
    assert abs(float(Path("/proc/uptime").read_text().split()[0]) - host) < 60


# ---- all ----


@pytest.mark.parametrize("kind", namespaces.KINDS)
def test_unshare_changes_that_namespace_and_no_other(kind):
    def change():
        before = proc.namespaces()
        sc.unshare(namespaces.KINDS[kind][0])
        after = proc.namespaces()
        name = {"pid": "pid_for_children", "time": "time_for_children"}.get(kind, kind)
        children = os.readlink(f"/proc/self/ns/{name}") if kind in ("pid", "time") and kind == "time" else ""
        return before, after, children

    before, after, children = in_child(change)
    changed = {name for name in before if before[name] != after[name]}
    if kind in ("pid", "time"):  # these take children only
        assert changed == set()
        assert kind == "pid" or str(before["time"]) not in children
    else:
        assert changed == {kind}
