"""The comparison that judges all other tests must itself see every kind of leftover."""

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import hosts
import pytest

from labkit.cgroups import hierarchies
from labkit.ground import state, syscalls
from labkit.ground.child import in_child

REPO = Path(__file__).parent.parent


def left_by(act, about, **options):
    """Return the lines of what `act` leaves that name `about`: others may be at work on this host."""
    before = hosts.Host.snapshot()
    act()
    return [line for line in before.difference(hosts.Host.snapshot(), **options) if str(about) in line]


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def undo():
    """Commands to run when the test ends, the last first."""
    commands = []
    yield commands
    for command in reversed(commands):
        run(*command)


def test_a_mount_that_stays_is_seen(tmp_path, undo):
    undo.append(("umount", tmp_path))
    assert left_by(lambda: run("mount", "-t", "tmpfs", "lab", tmp_path), tmp_path) == [
        f"left: mount {tmp_path} tmpfs lab"
    ]


@pytest.mark.skipif("autofs" not in Path("/proc/filesystems").read_text(), reason="this kernel has no autofs")
def test_what_an_automount_brings_is_no_news(tmp_path, undo):
    ours, theirs = os.pipe()
    options = f"fd={theirs},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
    undo.append(("umount", "-l", tmp_path))
    syscalls.mount("automatic", tmp_path, "autofs", 0, options)
    undo.append(("umount", tmp_path))
    # The pipe's reader is in our process group, and so is not made to wait for itself.
    assert left_by(lambda: run("mount", "-t", "tmpfs", "lab", tmp_path), f"{tmp_path} tmpfs") == []
    os.close(ours)
    os.close(theirs)


def test_a_mount_on_a_mount_is_seen(tmp_path, undo):
    undo += [("umount", tmp_path)] * 2
    run("mount", "-t", "tmpfs", "lab", tmp_path)
    assert left_by(lambda: run("mount", "-t", "tmpfs", "lab", tmp_path), tmp_path) == [
        f"left: mount {tmp_path} tmpfs lab"
    ]


def test_a_mount_that_goes_is_seen(tmp_path):
    run("mount", "-t", "tmpfs", "lab", tmp_path)
    assert left_by(lambda: run("umount", tmp_path), tmp_path) == [f"gone: mount {tmp_path} tmpfs lab"]


@pytest.mark.requires("cgroup v2")
def test_a_cgroup_that_stays_is_seen(undo):
    folder = hierarchies.unified().mount / f"{state.label()}-left"
    undo.append(("rmdir", folder))
    assert left_by(folder.mkdir, folder) == [f"left: cgroup {folder}"]


@pytest.mark.requires("veth")
def test_a_link_that_stays_is_seen(undo):
    undo.append(("ip", "link", "del", "lab-left"))
    found = left_by(lambda: run("ip", "link", "add", "lab-left", "type", "bridge"), "lab-left")
    assert found == ["left: link lab-left"]


@pytest.mark.requires("nftables NAT")
def test_a_firewall_table_that_stays_is_seen(undo):
    undo.append(("nft", "delete", "table", "ip", "lab_left"))
    assert left_by(lambda: run("nft", "add", "table", "ip", "lab_left"), "lab_left") == ["left: nft table ip lab_left"]


@pytest.mark.requires("loop devices")
def test_a_loop_device_that_stays_is_seen(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    found = left_by(lambda: run("losetup", "--find", disk), disk)
    device = run_output("losetup", "--associated", disk, "--noheadings", "--output", "NAME").strip()
    run("losetup", "--detach", device)
    assert found == [f"left: {Path(device).name} {disk}"]


def run_output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_child_that_stays_is_seen():
    child = None

    def act():
        nonlocal child
        child = subprocess.Popen(["sleep", "60"])

    (found,) = left_by(act, "sleep 60")
    child.kill()
    child.wait()
    assert found == f"left: process {child.pid} sleep: sleep 60"


def test_an_orphan_that_stays_is_seen():
    # setsid in the background: its parent, the shell, is gone at once.
    (found,) = left_by(lambda: run("sh", "-c", "setsid sleep 61 >/dev/null 2>&1 &"), "sleep 61")
    os.kill(int(found.split()[2]), 9)


def test_an_fd_that_stays_open_is_seen():
    one, other = os.pipe()
    os.close(one), os.close(other)
    pipes = []
    assert left_by(lambda: pipes.extend(os.pipe()), "fd pipe") == ["left: fd pipe:[N] (2 of them)"]
    for fd in pipes:
        os.close(fd)


def test_a_netlink_socket_that_stays_open_is_seen():
    sockets = []
    (found,) = left_by(lambda: sockets.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)), "fd socket")
    sockets[0].close()
    assert found == "left: fd socket:[N]"


def test_what_another_run_makes_is_none_of_ours(tmp_path, undo):
    theirs = tmp_path / "labkit-0123abcd"
    theirs.mkdir()
    undo.append(("umount", theirs))
    assert left_by(lambda: run("mount", "-t", "tmpfs", "lab", theirs), theirs) == []


def test_what_carries_our_label_is_ours(tmp_path, undo):
    ours = tmp_path / state.label()
    ours.mkdir()
    undo.append(("umount", ours))
    assert len(left_by(lambda: run("mount", "-t", "tmpfs", "lab", ours), ours)) == 1


def test_an_ignored_pattern_is_ignored(tmp_path, undo):
    undo.append(("umount", tmp_path))
    assert left_by(lambda: run("mount", "-t", "tmpfs", "lab", tmp_path), tmp_path, ignore=[str(tmp_path)]) == []


def test_unchanged_waits_for_a_process_on_its_way_out():
    with hosts.unchanged():
        child = subprocess.Popen(["sleep", "0.2"])
        # Nobody waits for it inside the block: zombie and all, it is gone a moment later.
        threading.Timer(0.3, child.wait).start()


def test_unchanged_says_what_is_left(tmp_path, undo):
    undo.append(("umount", tmp_path))
    with pytest.raises(AssertionError, match=f"left: mount {tmp_path}"), hosts.unchanged(patience=0):
        run("mount", "-t", "tmpfs", "lab", tmp_path)


def test_a_setting_that_was_turned_is_seen():
    """As Docker and Podman turn forwarding on, if they are let into the host's own network namespace."""

    def apart():
        syscalls.unshare(syscalls.CLONE_NEWNET)
        forward = Path("/proc/sys/net/ipv4/ip_forward")
        was = forward.read_text().strip()
        new = "01"[was == "0"]
        return new, was, left_by(lambda: forward.write_text(new), "setting net/ipv4/ip_forward")

    new, was, found = in_child(apart)
    assert found == [f"gone: setting net/ipv4/ip_forward {was}", f"left: setting net/ipv4/ip_forward {new}"]


def test_a_run_of_passing_tests_that_leaves_something_fails(tmp_path):
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent("""
            import os
            def test_passes():
                global pipe
                pipe = os.pipe()
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.whole_run", "--rootdir", tmp_path, "test_it.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{REPO}:{REPO}/tests"},
        capture_output=True,
        text=True,
    )
    assert "1 passed" in done.stdout
    assert "left: fd pipe:[N]" in done.stdout
    assert done.returncode == 1


def test_a_snapshot_is_quick():
    started = time.perf_counter()
    hosts.Host.snapshot()
    assert time.perf_counter() - started < 1
