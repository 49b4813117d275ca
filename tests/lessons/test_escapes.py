"""Every escape of the museum: with its lock off it is seen to work, with all locks on it does not."""

import subprocess
import sys

import pytest

from labkit.container.life import Container
from labkit.ground import ledger
from labkit.ground.errors import BadValue
from labkit.lessons.scenes import museum
from labkit.lessons.scenes.unlocked import LOCKS, Unlocked


@pytest.fixture(autouse=True)
def _root(needs_root):
    pass


@pytest.mark.parametrize("name", museum.ALL)
def test_the_lock_holds_and_is_what_holds(name):
    before = ledger.entries()
    seen = museum.visit(name)
    assert ledger.entries() == before
    if seen.off == museum.closed_by_the_kernel:
        pytest.skip(f"{name}: {seen.off}")
    assert seen.off, f"{name}: with {seen.exhibit.locks} off nothing escapes, so this test proves nothing"
    assert not seen.on, f"{name} escapes: {seen.on}"


TWO_LOCKS = [
    ("mknod of the disk", "nodev"),
    ("mknod of the disk", "devices"),
    ("the kernel's keyring", "keyring"),
    ("the kernel's keyring", "seccomp"),
    ("raising one's own limit", "cgroup_namespace"),
    ("a console of another's making", "terminal_fd"),
    ("a console of another's making", "masks_first"),
]


@pytest.mark.parametrize("name, off", TWO_LOCKS)
def test_where_there_are_two_locks_one_is_enough(name, off):
    assert not museum.ALL[name].attempt((off,))


def test_every_lock_is_in_the_museum_or_the_chapter_shows_it():
    shown = {lock for exhibit in museum.ALL.values() for lock in exhibit.locks}
    assert set(LOCKS) - shown == {"masks"}


def test_a_masked_file_is_empty_and_without_the_lock_it_speaks():

    def sizes(**words):
        with Unlocked("busybox", ["sh", "-c", "wc -c < /proc/interrupts"], **words).start() as box:
            box.wait(30)
            return int(box.logs())

    assert sizes() == 0
    assert sizes(unlocked=("masks",)) > 0


def test_an_unknown_lock_is_refused_by_name():
    with pytest.raises(BadValue, match="no lock 'door'"):
        Unlocked("busybox", "true", unlocked=("door",))


def test_the_command_line_leaves_no_lock_off():
    for words in (["--unlocked", "seccomp"], ["--unlocked=seccomp"]):
        command = [sys.executable, "-m", "labkit", "run", *words, "busybox", "true"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 125 and "--unlocked" in done.stderr


def test_what_was_left_off_is_said():
    lines = Unlocked("busybox", "true", unlocked=("pivot_root", "no_new_privs")).describe()
    assert "chroot only: the old root stays mounted" in lines
    assert any(line.startswith("LEFT OFF: no_new_privs") for line in lines)
    assert not any(line.startswith("LEFT OFF") for line in Container("busybox", "true").describe())
