"""Chapter 00's virtual machine: it starts, tells what it sees, and is gone afterwards, whatever happens."""

import os
import signal
import subprocess
import sys
import time

import hosts
import pytest

from labkit.container.life import Container
from labkit.ground import ledger, proc, state
from labkit.ground.errors import LabError, Unsupported
from labkit.lessons.beside import vm
from labkit.lessons.checks import start as check

pytestmark = pytest.mark.usefixtures("needs_root")


@pytest.fixture
def needs_qemu():
    if reason := vm.missing():
        pytest.skip(f"no virtual machine here: {reason}")


def of_guests():
    """Return what the ledger has of guests: nothing, when all have ended."""
    return [entry for entry in ledger.entries() if "/vm-" in str(entry.what.get("path", ""))]


@pytest.mark.slow
def test_a_guest_has_a_kernel_of_its_own_and_leaves_nothing(needs_qemu):
    with hosts.unchanged(ignore=(".*(?<!qemu).*",)), vm.start(seconds=240) as guest:
        assert guest.said["first"] == "1"
        assert guest.said["boot"] != proc.boot_id()
        assert guest.accelerator in ("kvm", "tcg") and guest.seconds > 0
        assert guest.memory > 20e6 and guest.disk > 1e6
        assert check.is_the_guest(guest, guest.pid)
        for wrong in (..., 1, os.getpid(), 2**22 + 1):
            assert not check.is_the_guest(guest, wrong)
        assert check.proves_one_kernel(proc.boot_id() + "\n", guest)
        for wrong in ("", os.uname().release, guest.said["boot"]):
            assert not check.proves_one_kernel(wrong, guest)
    assert of_guests() == [] and proc.start_ticks(guest.pid) is None


@pytest.mark.slow
def test_clean_ends_a_guest_whose_starter_was_killed(needs_qemu):
    code = "from labkit.lessons.beside import vm; from labkit.ground import child\nwith vm.start('tcg', 240) as guest:\n print(guest.pid, flush=True)\n import time; time.sleep(100)"
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(starter.stdout.readline())
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    ledger.clean()
    deadline = time.monotonic() + 30
    while (ticks := proc.start_ticks(pid)) and proc.is_running(pid, ticks):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert of_guests() == []


def test_a_guest_that_says_nothing_is_ended(needs_qemu):
    with pytest.raises(LabError, match="said nothing"), vm.start("tcg", 0.3):
        pass
    assert of_guests() == []


def test_without_qemu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(Unsupported, match="apt-get install"), vm.start("tcg"):
        pass


def test_the_initramfs_is_an_archive_that_the_busybox_cpio_reads(tmp_path):
    archive = vm.initramfs()
    done = subprocess.run(f"zcat {archive} | busybox cpio -t", shell=True, capture_output=True, text=True, check=True)
    assert {"init", "bin/busybox", "bin/sh", "proc"} <= set(done.stdout.split())
    assert archive.parent == state.lib_dir("vm")
    assert vm.initramfs().read_bytes() == archive.read_bytes()


def test_check_all_run_wants_that_many_containers():
    with Container("busybox", "sleep 60").start() as one, Container("busybox", "true").start() as ended:
        ended.wait()
        assert check.all_run([one], 1)
        assert not check.all_run([one], 2)
        assert not check.all_run([one, one], 2)
        assert not check.all_run([one, ended], 2)
