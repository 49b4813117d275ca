"""The ledger: whatever dies, and whenever, what was made can be given back."""

import os
import signal
import subprocess
import sys

import pytest

from labkit import in_child
from labkit.cgroups import cgroupfs, hierarchies  # noqa: F401 - importing cgroupfs registers how a cgroup is taken away
from labkit.ground import ledger, proc, state, syscalls, trees
from labkit.ground.errors import LabError
from labkit.storage import roots


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("LABKIT_CHAPTER", "")
    return tmp_path


def test_an_entry_is_on_disk_before_the_thing_is_made(folder):
    with ledger.made("folder", path=str(folder / "x")) as entry:
        assert [e.number for e in ledger.entries()] == [entry.number]
        (folder / "x").mkdir()
    assert not (folder / "x").exists() and ledger.entries() == []


def test_what_was_never_made_counts_as_given_back(folder):
    for kind, what in (
        ("folder", {"path": str(folder / "no")}),
        ("file", {"path": str(folder / "no")}),
        ("mount", {"target": str(folder / "no")}),
        ("process", {"pid": 2**22 - 1, "ticks": 1}),
        ("cgroup", {"path": str(hierarchies.hierarchies()[0].mount / state.label() / "x")}),
    ):
        ledger.undo(ledger.write(kind, **what))
    assert ledger.entries() == []


def test_things_are_given_back_the_newest_first(folder, needs_root):
    target = folder / "m"

    def body():
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        ledger.write("folder", path=str(target))
        target.mkdir()
        ledger.write("mount", target=str(target))
        syscalls.mount("t", target, "tmpfs", 0)
        undone, kept, failed = ledger.clean(everything=True)
        return [e.kind for e in undone], kept, failed, any(m.target == str(target) for m in proc.mounts())

    assert in_child(body) == (["mount", "folder"], [], [], False)


def test_a_folder_with_a_mount_in_it_is_not_removed(folder, needs_root):
    (folder / "d/m").mkdir(parents=True)
    (folder / "precious").mkdir()
    (folder / "precious/file").write_text("x")

    def body():
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount(folder / "precious", folder / "d/m", None, syscalls.MS_BIND)
        with pytest.raises(LabError, match="still has a mount"):
            ledger.remove_tree(folder / "d")

    in_child(body)
    assert (folder / "precious/file").exists()


@pytest.mark.parametrize("depth", [5, 5000])
def test_a_folder_is_removed_and_measured_however_deep_it_is(folder, depth):
    (folder / "d").mkdir()
    inside = os.open(folder / "d", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=inside)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=inside))
        os.symlink("/", "to-the-root", dir_fd=inside)
        below = os.open("d", os.O_RDONLY, dir_fd=inside)
        os.close(inside)
        inside = below
    os.close(inside)
    assert roots.usage(folder / "d").files == 2 * depth
    ledger.remove_tree(folder / "d")
    assert not (folder / "d").exists()


def test_what_a_link_in_a_folder_leads_to_is_neither_measured_nor_removed(folder):
    (folder / "d").mkdir()
    (folder / "precious/below").mkdir(parents=True)
    (folder / "precious/below/file").write_text("x")
    for name, where in (("up", "../precious"), ("whole", str(folder / "precious"))):
        (folder / "d" / name).symlink_to(where)
    assert roots.usage(folder / "d").files == 2
    ledger.remove_tree(folder / "d")
    assert (folder / "precious/below/file").read_text() == "x"


def test_a_folder_that_is_moved_while_it_is_read_leads_nobody_outside(folder):
    (folder / "d/a/b/c").mkdir(parents=True)
    inner = os.stat(folder / "d/a/b")
    with pytest.raises(LabError, match="moved while it was read"):
        for fd, _ in trees.walk(folder / "d"):
            if os.path.samestat(os.fstat(fd), inner):
                (folder / "d/a/b").rename(folder / "d/b")


DIES = """
import os, signal, sys
from labkit.ground import ledger
path = sys.argv[1]
ledger.write("folder", path=path)
os.mkdir(path)
print("made", flush=True)
signal.pause()
"""


def test_clean_takes_only_what_the_dead_left(folder):
    with subprocess.Popen([sys.executable, "-c", DIES, str(folder / "x")], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        undone, kept, _ = ledger.clean()
        assert undone == [] and len(kept) == 1 and (folder / "x").exists()
        process.send_signal(signal.SIGKILL)
    undone, kept, _ = ledger.clean()
    assert len(undone) == 1 and kept == [] and not (folder / "x").exists()


def test_an_owner_whose_number_came_back_is_dead(folder):
    entry = ledger.write("file", owner=(os.getpid(), 12345, proc.boot_id()), path=str(folder / "x"))
    assert not entry.owner_lives()
    entry = ledger.write("file", owner=(*ledger.me()[:2], "another boot"), path=str(folder / "x"))
    assert not entry.owner_lives()
    assert ledger.write("file", path=str(folder / "x")).owner_lives()


def test_a_half_written_entry_hides_no_other(folder):
    (state.run_dir("ledger") / "00000000000000000001.json").touch()
    entry = ledger.write("file", path=str(folder / "x"))
    assert ledger.entries() == [entry]
    ledger.undo(entry)
    assert [state.set_aside(error) for error in state.damaged()] != [] == os.listdir(state.run_dir("ledger"))


def test_a_process_is_killed_only_if_it_is_the_one(folder):
    with subprocess.Popen(["sleep", "60"]) as process:
        ticks = proc.start_ticks(process.pid)
        ledger.undo(ledger.write("process", pid=process.pid, ticks=ticks + 1))
        assert process.poll() is None
        ledger.undo(ledger.write("process", pid=process.pid, ticks=ticks))
        assert process.wait() == -signal.SIGKILL


def test_what_cannot_be_given_back_stays_in_the_ledger(folder):
    (folder / "file").touch()
    ledger.write("folder", path=str(folder / "file"))
    _, _, failed = ledger.clean(everything=True)
    assert "is not a folder" in str(failed[0][1]) and len(ledger.entries()) == 1


def test_a_chapter_gives_back_its_own_earlier_run_and_no_others(folder):
    for chapter in ("02", "04"):
        ledger.begin(chapter)
        ledger.write("folder", path=str(folder / chapter))
        (folder / chapter).mkdir()
    ledger.begin("02")
    assert sorted(os.listdir(folder)) == ["04", "root"]


def test_what_a_command_of_a_chapter_left_is_given_back_by_the_chapters_next_run(folder):
    ledger.begin("02")
    code = f"from labkit.ground import ledger; ledger.write('folder', path={str(folder / 'left')!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    (folder / "left").mkdir()
    assert [entry.scope for entry in ledger.entries()] == ["02"]
    ledger.begin("02")
    assert not (folder / "left").exists()
