"""Chapter 08's checks take right work and refuse wrong work, on every driver that is here."""

import os
import shutil

import pytest

from labkit.container.life import Container
from labkit.ground.errors import Unsupported
from labkit.images import catalog, commit
from labkit.lessons.checks import storage as check
from labkit.storage import roots, volumes

pytestmark = pytest.mark.usefixtures("needs_root")

IMAGE = "checks:big"
CHANGE = ["sh", "-c", "printf x | dd of=/big bs=1 conv=notrunc"]


@pytest.fixture
def image():
    with Container("busybox", "sleep 60").start() as box:
        box.exec(["dd", "if=/dev/urandom", "of=/big", "bs=1M", "count=2"])
        return commit.commit(catalog.get("busybox"), box.rootfs, IMAGE)


@pytest.fixture
def start(image):
    """Return a function that starts a container on a driver; all are deleted at the end."""
    boxes = []

    def started(driver="overlay", **words):
        try:
            roots.driver(driver)
        except Unsupported as error:
            pytest.skip(f"{driver}: {error}")
        boxes.append(Container(IMAGE, "sleep 60", storage=driver, **words).start())
        return boxes[-1]

    yield started
    for box in boxes:
        box.delete()


@pytest.mark.parametrize("driver", roots.NAMES)
def test_driver_is_read_from_the_kernel(start, driver):
    assert check.driver_of(start(driver)) == driver


def test_told_apart_takes_only_the_right_names_in_order(start):
    boxes = [start("overlay"), start("vfs")]
    assert check.told_apart(boxes, ["overlay", "vfs"])
    for wrong in (..., ["overlay"], ["vfs", "overlay"], ["overlay", "overlay"], ["overlay", "zfs"]):
        assert not check.told_apart(boxes, wrong), wrong


def test_changed_for_a_block_takes_a_snapshot(start):
    box = start("btrfs")
    assert not check.changed_for_a_block(box, "/big")  # nothing changed yet
    box.exec(CHANGE)
    assert check.changed_for_a_block(box, "/big")
    assert not check.changed_for_a_block(box, "/etc/passwd")  # not changed, and too small to tell
    box.exec(["dd", "if=/dev/urandom", "of=/big", "bs=1M", "count=2"])
    assert not check.changed_for_a_block(box, "/big")  # all of it is new


@pytest.mark.parametrize("driver", ["overlay", "vfs", "fuse-overlayfs"])
def test_changed_for_a_block_refuses_whole_files(start, driver):
    box = start(driver)
    box.exec(CHANGE)
    result = check.changed_for_a_block(box, "/big")
    assert not result and "less than 1 MB" in result.missing


def test_changed_for_a_block_refuses_a_volume(start):
    box = start("overlay", volumes=["checks:/data"])
    box.exec(["cp", "/big", "/data/big"])
    assert "not in a volume" in check.changed_for_a_block(box, "/data/big").missing
    box.delete()
    volumes.remove("checks")


def test_own_disk_on_btrfs_is_what_was_written(start):
    box = start("btrfs")
    assert check.disk_of_its_own(box) < 1 << 18
    box.exec(["dd", "if=/dev/urandom", "of=/new", "bs=1M", "count=1"])
    assert 1 << 20 <= check.disk_of_its_own(box) < 1.5 * (1 << 20)


@pytest.fixture
def two(tmp_path):
    """Return two layers, (low, high): the high one changes b, takes c away and brings d."""
    low, high = tmp_path / "low", tmp_path / "high"
    for folder, names in ((low, "abc"), (high, "bd")):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(folder.name)
    os.mknod(high / "c", 0o20000, 0)
    return low, high


def flatten(layers, flat, copy=shutil.copy2):
    flat.mkdir()
    for layer in layers:
        for path in layer.iterdir():
            (flat / path.name).unlink(missing_ok=True)
            if path.is_file():
                copy(path, flat / path.name)
    return flat


def test_flattened_takes_copies_also_while_a_container_runs(two, tmp_path, start):
    start()
    assert check.flattened(flatten(two, tmp_path / "flat"), two)


def test_flattened_refuses_what_an_overlay_would_not_show(two, tmp_path):
    low, high = two
    assert not check.flattened(tmp_path / "nothing", two)
    assert not check.flattened(flatten((high, low), tmp_path / "upside-down"), two)
    assert not check.flattened(flatten((low,), tmp_path / "half"), two)
    assert not check.flattened(flatten(two, tmp_path / "links", os.link), two)
    whiteout = flatten(two, tmp_path / "whiteout")
    os.mknod(whiteout / "c", 0o20000, 0)
    assert not check.flattened(whiteout, two)
    more = flatten(two, tmp_path / "more")
    (more / "c").write_text("low")
    assert not check.flattened(more, two)
