"""Copy-up: what chapter 07 says of it, held against this kernel; and checks that see wrong work."""

import os
import shutil
import stat
import tarfile
import time

import hosts
import pytest
from tars import entry, tar

from labkit.container.life import Container
from labkit.ground import child, ledger
from labkit.ground.errors import BadValue
from labkit.images import catalog, commit
from labkit.lessons.checks import layers as check
from labkit.lessons.figures import png
from labkit.lessons.figures import storage as draw
from labkit.lessons.panels import storage as panels
from labkit.lessons.watch import copyup, listing
from labkit.storage import garbage, roots, volumes

pytestmark = pytest.mark.usefixtures("needs_root")
MIB = 1 << 20


@pytest.mark.parametrize("size", [1, 4096, 100_000, 5 * MIB])
def test_one_byte_and_mode_alone_cost_the_whole_file(size):
    for change in (copyup.one_byte, copyup.mode_only):
        assert size <= change(size).upper <= size * 1.01 + 4096


def test_metacopy_sparse_and_volume_cost_next_to_nothing():
    assert copyup.mode_only(5 * MIB, metacopy=True).upper <= 8192
    assert copyup.sparse(64 * MIB).upper <= 2 * MIB
    assert copyup.volume(5 * MIB).upper == 0


def test_many_files_cost_their_sum():
    assert 40 * 4096 <= copyup.many(40, 4096).upper <= 41 * 4096


def test_measuring_leaves_nothing():
    with hosts.unchanged():
        before = len(ledger.entries())
        copyup.one_byte(4096)
        copyup.volume(4096)
        with pytest.raises(BadValue):
            copyup.one_byte(0)
        assert len(ledger.entries()) == before


def test_best_is_the_quickest():
    costs = [copyup.Cost(1, seconds, 0) for seconds in (3.0, 1.0, 2.0)]
    assert copyup.best(lambda: costs.pop()).seconds == 1.0


# The checks: wrong answers first


@pytest.fixture
def folders(tmp_path):
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / "lower" / name).write_text(name)
    (tmp_path / "lower/conf").mkdir()
    (tmp_path / "lower/conf/old").write_text("old")
    return tmp_path / "lower", tmp_path / "upper", tmp_path / "work", tmp_path / "merged"


def whiteout(path):
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def test_hides_fails_on_wrong_work(folders):
    lower, upper, *_ = folders
    assert not check.hides([lower], upper, "b")  # nothing done
    (upper / "b").write_text("")  # an empty file is a file
    assert not check.hides([lower], upper, "b")
    (upper / "b").unlink()
    (upper / ".wh.b").write_text("")  # that is how a tar says it
    assert not check.hides([lower], upper, "b")
    (upper / ".wh.b").unlink()
    os.mknod(upper / "b", stat.S_IFCHR, os.makedev(1, 3))  # a device, but not this one
    assert not check.hides([lower], upper, "b")
    (upper / "b").unlink()
    whiteout(upper / "b")
    whiteout(upper / "a")  # too much
    assert not check.hides([lower], upper, "b")
    (upper / "a").unlink()
    assert check.hides([lower], upper, "b")
    (lower / "b").unlink()  # the lowerdir was not to be touched
    assert not check.hides([lower], upper, "b")


def test_shows_only_fails_on_wrong_work(folders):
    lower, upper, *_ = folders
    assert not check.shows_only([lower], upper, "conf", ["new"])
    (upper / "conf").mkdir()
    assert not check.shows_only([lower], upper, "conf", ["new"])
    (upper / "conf/new").write_text("new")
    assert not check.shows_only([lower], upper, "conf", ["new"])  # the old one still shines through
    os.setxattr(upper / "conf", "user.overlay.opaque", b"y")  # not for root's overlays
    assert not check.shows_only([lower], upper, "conf", ["new"])
    os.setxattr(upper / "conf", "trusted.overlay.opaque", b"y")
    assert check.shows_only([lower], upper, "conf", ["new"])
    (lower / "conf/old").unlink()
    assert not check.shows_only([lower], upper, "conf", ["new"])


def test_layer_by_hand_fails_on_wrong_work(folders, tmp_path):
    lower, *_ = folders
    low, high = lower, tmp_path / "high"
    high.mkdir()
    (high / "d").write_text("high")
    path = tmp_path / "mine.tar"

    def tried(*members):
        path.write_bytes(tar(*members))
        return check.layer_by_hand([low, high], path, gone="d", brings="e", text="mine")

    mine = entry("e", data=b"mine")
    assert not check.layer_by_hand([low, high], path, gone="d", brings="e", text="mine")  # no file
    path.write_bytes(b"no tar at all" * 100)
    assert not check.layer_by_hand([low, high], path, gone="d", brings="e", text="mine")
    assert not tried(mine)  # d is still there
    assert not tried(mine, entry("d"))  # an empty file is a file
    assert not tried(mine, entry(".wh.a"))  # another name
    assert not tried(mine, entry("d", type=tarfile.CHRTYPE))  # as overlayfs has it, not as a tar has it
    assert not tried(mine, entry(".wh..wh..opq"))  # too much
    assert not tried(entry(".wh.d"))  # e is missing
    assert not tried(entry(".wh.d"), entry("e", data=b"theirs"))
    assert tried(entry(".wh.d"), mine)
    assert (high / "d").read_text() == "high"
    (high / "d").unlink()  # the lowerdirs were not to be touched
    assert not tried(entry(".wh.d"), mine)


def test_still_one_file_fails_on_wrong_work(folders):
    lower, upper, work, merged = folders
    os.link(lower / "a", lower / "same")

    def tried():
        return check.still_one_file(merged, upper, "a", "same", "new")

    assert not tried()  # not mounted
    with roots.mounted(lower, upper, work, merged):
        assert not tried()  # not written
        (merged / "a").write_text("new")
        assert not tried()  # two files now
        (merged / "same").write_text("new")
        assert "not two alike" in tried().missing
        (merged / "same").unlink()
        os.link(merged / "a", merged / "same")
        assert "index" in tried().missing  # one file again, but made by hand
    for folder in (upper, work):
        shutil.rmtree(folder)
        folder.mkdir()
    with roots.mounted(lower, upper, work, merged, options=("index=on",)):
        assert not tried()
        (merged / "a").write_text("new")
        assert tried()


def test_only_sizes_that_the_disk_holds_are_measured(monkeypatch):
    disk = os.statvfs_result((4096, 4096, 0, 0, 10 << 18, 0, 0, 0, 0, 255))  # 10 GiB free
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    assert copyup.affordable([1 << 20, 1 << 30, 2 << 30, 3 << 30]) == [1 << 20, 1 << 30, 2 << 30]
    assert copyup.affordable([1 << 30, 3 << 30], times=10) == []


def test_changed_for_less_fails_on_wrong_work(folders):
    lower, upper, work, merged = folders
    copyup.write_file(lower / "big", 4 * MIB)
    assert not check.changed_for_less(merged, upper, "big", 0o600)  # not mounted
    with roots.mounted(lower, upper, work, merged):
        assert not check.changed_for_less(merged, upper, "big", 0o600)  # not changed
        (merged / "big").chmod(0o600)
        assert not check.changed_for_less(merged, upper, "big", 0o600)  # 4 MB copied up
    (upper / "big").unlink()
    with roots.mounted(lower, upper, work, merged, options=("metacopy=on",)):
        (merged / "big").chmod(0o640)
        assert not check.changed_for_less(merged, upper, "big", 0o600)  # another mode
        (merged / "big").chmod(0o600)
        assert check.changed_for_less(merged, upper, "big", 0o600)


def test_kept_outside_fails_on_wrong_work():
    fill = ["sh", "-c", "mkdir -p /data; dd if=/dev/zero of=/data/db bs=1M count=1"]
    try:
        with Container("busybox", ["sleep", "1000"]).start() as box:
            assert not check.kept_outside(box, "/data/db", volumes.path("test-thin"), MIB)  # not written
            box.exec(fill)
            assert not check.kept_outside(box, "/data/db", volumes.path("test-thin"), MIB)  # in the upperdir
        with Container("busybox", ["sleep", "1000"], volumes=["test-thin:/data"]).start() as box:
            box.exec(fill)
            assert check.kept_outside(box, "/data/db", volumes.path("test-thin"), MIB)
            assert not check.kept_outside(box, "/data/db", volumes.path("test-thin"), 2 * MIB)  # another size
    finally:
        volumes.remove("test-thin")


# The panel


def test_panel_measures_what_its_knobs_say_and_leaves_nothing():
    def turn_the_knobs():  # in a child: matplotlib keeps its fonts open
        panel = panels.copy_up_panel(size=1 << 12, seconds=5)
        panel.start()
        assert panel.running
        panel.knobs["change"].value = "chmod only, metacopy"
        panel.knobs["size"].value = 1 << 16
        deadline = time.monotonic() + 20
        while 1 << 16 not in panel.experiment.found.get("chmod only, metacopy", {}):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        panel.stop()
        return panel.experiment.found["chmod only, metacopy"][1 << 16].upper, bytes(panel.picture.value)[:4]

    with hosts.unchanged():
        upper, picture = child.in_child(turn_the_knobs)
    assert upper <= 8192 and picture == b"\x89PNG"


def test_panels_function_refuses_what_it_does_not_know():
    assert panels.copy_up("chmod only", size=4096).upper == 4096
    with pytest.raises(BadValue, match="one byte written"):
        panels.copy_up("banana")


# What the chapters use besides


def test_listing_says_what_the_kernel_takes_each_thing_for(folders, capsys):
    _, upper, *_ = folders
    whiteout(upper / "gone")
    (upper / "conf").mkdir()
    os.setxattr(upper / "conf", "trusted.overlay.opaque", b"y")
    (upper / "conf/f").write_text("text")
    os.symlink("f", upper / "conf/l")
    (upper / "big").write_bytes(bytes(100))
    assert listing.lines(upper) == [
        "big  100 bytes",
        "conf/  [opaque: trusted.overlay.opaque=y]",
        "  f  'text'",
        "  l -> f",
        "gone  [whiteout: character device 0:0]",
    ]
    listing.show(upper)
    assert capsys.readouterr().out.startswith("upper/\n    big")


def test_figures_are_drawn_of_what_is_there(folders):
    lower, upper, *_ = folders
    whiteout(upper / "a")
    costs = {"x": [copyup.Cost(1024, 0.1, 4096)], "y": [copyup.Cost(1024, 0.1, 0)]}

    def drawn():  # in a child: matplotlib keeps its fonts open
        return [
            png(figure)[:4]
            for figure in (
                draw.stack([lower], upper),
                draw.copy_up(costs),
                draw.pieces([copyup.Cost(1024, 0.1, 4096, 1), copyup.Cost(1024, 0.2, 4096, 4)]),
                draw.containers({"overlay": [(1, 0, 0.1)], "vfs": [(1, MIB, 0.5)]}, MIB),
            )
        ]

    assert child.in_child(drawn) == [b"\x89PNG"] * 4


def test_what_a_container_did_becomes_a_layer_of_a_new_image():
    base = catalog.get("busybox")
    with Container("busybox", ["sleep", "1000"]).start() as box:
        box.exec(["sh", "-c", "echo mine > /root/note; rm /bin/ls"])
        made = commit.commit(base, box.rootfs, "test-commit:1", cmd=("cat", "/root/note"), env=("A=1",))
        same = commit.commit(base, None, "test-commit:2", workdir="/tmp")
    try:
        assert made.layers[:-1] == base.layers and len(made.layers) == 2
        assert same.layers == base.layers, "nothing changed: no layer"
        assert made.config.cmd == ("cat", "/root/note") and same.config.workdir == "/tmp"
        with Container("test-commit:1").start() as box:
            assert box.wait() == 0 and box.logs() == "mine\n"
    finally:
        garbage.remove("test-commit:1")
        garbage.remove("test-commit:2")
    assert os.path.exists(base.layers[0])
