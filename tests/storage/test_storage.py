"""Storage: each driver gives a container the same root, keeps what is its own apart, and gives all back."""

import io
import os
import stat
import time
from pathlib import Path

import hosts
import pytest
from timing import until
from trees import differences, snapshot

from labkit.ground import child, ledger, state
from labkit.ground.errors import BadValue, InUse, KernelError, LabError, NotFound, Unsupported
from labkit.images import catalog, layers
from labkit.isolation import mounts
from labkit.storage import roots
from labkit.storage.drivers import btrfs, flat, loop

pytestmark = pytest.mark.usefixtures("needs_root")

MARKS = ("trusted.overlay.opaque", "trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.uuid")


# Whoever makes a mount namespace beside us, and stays, keeps a copy of the pool's mount; its
# loop device then goes when they do. That is the kernel's business, and no file is left.
HELD = (r"^loop\d+ .*\(deleted\)$",)


@pytest.fixture(params=roots.NAMES)
def driver(request):
    try:
        return roots.driver(request.param)
    except Unsupported as error:
        pytest.skip(str(error))


@pytest.fixture
def image():
    return catalog.get("busybox")


@pytest.fixture
def rootfs(driver, image):
    made = driver.prepare(image, f"test-{state.new_id()}")
    yield made
    driver.remove(made.container_id)


class seen:
    """The root as a container sees it: its step executed, on the host, for the block."""

    def __init__(self, rootfs):
        self.rootfs = rootfs

    def __enter__(self):
        self.entry = ledger.write("mount", target=self.rootfs.merged)
        child.in_child(self.rootfs.step().execute)
        return Path(self.rootfs.merged)

    def __exit__(self, *_):
        # Only the mount of the step: fuse-overlayfs has its own below it.
        mounts.sc.umount2(self.rootfs.merged, mounts.sc.MNT_DETACH)
        ledger.strike(self.entry)


def test_root_holds_the_images_files_to_the_last_bit(rootfs, image):
    with seen(rootfs) as root:
        found = snapshot(root, ignore=MARKS)
    assert differences(found, snapshot(image.layers[0], ignore=MARKS)) == []


def work(root):
    """Change, add, delete, replace, rename: what containers do."""
    (root / "etc/passwd").write_text("changed")
    (root / "new").mkdir(mode=0o750)
    (root / "new/file").write_text("new")
    os.link(root / "new/file", root / "new/linked")
    os.symlink("file", root / "new/link")
    (root / "bin/ls").unlink()
    (root / "etc/hosts").rename(root / "etc/renamed")
    (root / "home").rmdir()
    (root / "home").write_text("now a file")
    (root / "etc/group").unlink()
    (root / "etc/group").mkdir()
    (root / "etc/group/in").write_text("in")
    os.chmod(root / "root", 0o755)
    os.chown(root / "srv", 12, 34)
    os.setxattr(root / "mnt", "trusted.mine", b"value")
    with open(root / "sparse", "wb") as file:
        file.truncate(1 << 20)


EXPECTED = set(
    """\
C /etc/passwd|A /new|A /new/file|A /new/linked|A /new/link|C /bin|D /bin/ls|D /etc/hosts|A /etc/renamed
C /home|C /etc/group|A /etc/group/in|C /root|C /srv|C /mnt|A /sparse|C /etc""".replace("\n", "|").split("|")
)


def test_changes_are_told_as_docker_diff_tells_them(rootfs):
    with seen(rootfs) as root:
        work(root)
    found = {str(change) for change in rootfs.changes()}
    if rootfs.driver == "fuse-overlayfs":
        # /bin/ls is one of 269 names of one file: deleting it copies another of them up.
        found -= {line for line in found - EXPECTED if line.startswith("C /bin/")}
    assert found == EXPECTED


def test_nothing_changed_is_no_change(rootfs):
    with seen(rootfs) as root:
        (root / "etc/passwd").read_text()
        os.listdir(root / "bin")
    assert rootfs.changes() == []


def test_layer_taken_of_a_container_makes_the_same_root_again(rootfs, image, tmp_path):
    with seen(rootfs) as root:
        work(root)
        after = snapshot(root, times=False, ignore=MARKS)
    out = io.BytesIO()
    diff_id, digest, size = rootfs.diff(out)
    out.seek(0)
    layers.apply(out, tmp_path / "layer", digest=digest, diff_id=diff_id)
    (tmp_path / "merged").mkdir()
    with roots.mounted([*image.layers, tmp_path / "layer"], None, None, tmp_path / "merged") as merged:
        found = differences(after, snapshot(merged, times=False, ignore=MARKS))
    if rootfs.driver == "fuse-overlayfs":
        # As above: one name of busybox that was copied up has become a file of its own.
        # And the kernel keeps the times of what FUSE serves: those on disk come a moment later.
        found = [line for line in found if not line.startswith("b'bin/") and ": time is" not in line]
    assert found == []


def test_image_is_untouched_by_what_containers_do(rootfs, image):
    before = snapshot(image.layers[0])
    with seen(rootfs) as root:
        work(root)
    assert differences(before, snapshot(image.layers[0])) == []


def test_two_containers_of_one_image_do_not_see_each_other(driver, image, rootfs):
    other = driver.prepare(image, f"test-{state.new_id()}")
    try:
        with seen(rootfs) as one, seen(other) as two:
            (one / "etc/passwd").write_text("one")
            (one / "only-one").write_text("")
            assert (two / "etc/passwd").read_text().startswith("root:")
            assert not (two / "only-one").exists()
    finally:
        driver.remove(other.container_id)


def test_root_that_is_taken_is_not_taken_again(driver, image, rootfs):
    before = snapshot(rootfs.merged, ignore=MARKS)
    with pytest.raises(InUse):
        driver.prepare(image, rootfs.container_id)
    assert differences(before, snapshot(rootfs.merged, ignore=MARKS)) == []


def test_root_is_found_again_by_the_containers_id(driver, image, rootfs):
    assert driver.get(rootfs.container_id) == rootfs == driver.preview(image, rootfs.container_id)
    with pytest.raises(NotFound):
        driver.get("no-such-container")


def test_removed_root_leaves_nothing(driver, image):
    with hosts.unchanged(HELD):
        entries = {entry.number for entry in ledger.entries()}
        made = driver.prepare(image, f"test-{state.new_id()}")
        with seen(made) as root:
            work(root)
        driver.remove(made.container_id)
        driver.remove(made.container_id)  # twice is once
        assert not os.path.exists(made.merged)
        assert {entry.number for entry in ledger.entries()} == entries


def test_ledger_alone_gives_a_root_back(driver, image):
    """A killed kernel runs no `remove`: what the ledger has in the container's group must be enough."""
    with hosts.unchanged(HELD):
        entries = {entry.number for entry in ledger.entries()}
        name = f"test-{state.new_id()}"
        with ledger.group(name):
            made = driver.prepare(image, name)
        (Path(made.merged) / "left").write_text("left")
        ledger.undo_group(name)
        assert not os.path.exists(made.merged)
        assert {entry.number for entry in ledger.entries()} == entries


def test_failure_in_the_middle_leaves_nothing(driver, image, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    real = type(driver)._make
    monkeypatch.setattr(type(driver), "_make", lambda self, rootfs, home: (real(self, rootfs, home), fail()))
    with hosts.unchanged(HELD):
        entries = {entry.number for entry in ledger.entries()}
        with pytest.raises(KernelError, match="ENOSPC"):
            driver.prepare(image, "test-fails")
        assert not (state.lib_dir("containers") / "test-fails").exists()
        assert {entry.number for entry in ledger.entries()} == entries


@pytest.mark.parametrize("name", ["../x", "", ".", "a/b", "-x", "a" * 200, None])
def test_container_id_that_is_no_name_never_becomes_a_path(driver, image, name):
    with pytest.raises(BadValue):
        driver.prepare(image, name)


def test_driver_that_does_not_exist_is_told_with_those_that_do():
    with pytest.raises(BadValue, match="overlay, vfs, btrfs, fuse-overlayfs"):
        roots.driver("zfs")


# The kernel's overlay


@pytest.fixture
def folders(tmp_path):
    def make(place=tmp_path, lowers=2):
        made = [
            place / name for name in (*(f"lower{number}" for number in range(1, lowers + 1)), "upper", "work", "merged")
        ]
        for folder in made:
            folder.mkdir(parents=True)
        return made[:-3], *made[-3:]

    return make


def test_upper_wins_over_lower_and_later_layers_over_earlier(folders):
    lowers, upper, work, merged = folders()
    for folder, names in ((lowers[0], "abc"), (lowers[1], "bc"), (upper, "c")):
        for name in names:
            (folder / name).write_text(folder.name)
    with roots.mounted(lowers, upper, work, merged):
        assert [(merged / name).read_text() for name in "abc"] == ["lower1", "lower2", "upper"]


def test_one_byte_written_copies_the_whole_file_up(folders):
    lowers, upper, work, merged = folders(lowers=1)
    size = 64 << 20
    with open(lowers[0] / "big", "wb") as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
    with roots.mounted(lowers, upper, work, merged):
        assert roots.usage(upper).files == 0
        with open(merged / "big", "r+b") as file:
            file.write(b"x")
    used = roots.usage(upper)
    assert (used.files, used.apparent) == (1, size)
    assert size <= used.allocated <= size * 1.01


def test_mode_alone_copies_no_data_up_with_metacopy(folders):
    lowers, upper, work, merged = folders(lowers=1)
    (lowers[0] / "big").write_bytes(os.urandom(4 << 20))
    with roots.mounted(lowers, upper, work, merged, options=("metacopy=on",)):
        (merged / "big").chmod(0o600)
        assert roots.usage(upper).apparent == 4 << 20
        assert roots.usage(upper).allocated < 64 << 10
        assert (merged / "big").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("odd", ["a:b", "a,b", "a\\b", "a b", "a\tb", 'a"b', "a\nb", "all:of,them\\at once é"])
def test_paths_with_signs_that_mount_options_use(folders, tmp_path, odd):
    lowers, upper, work, merged = folders(tmp_path / odd)
    (lowers[0] / "f").write_text("lower")
    with hosts.unchanged(HELD), roots.mounted(lowers, upper, work, merged):
        assert (merged / "f").read_text() == "lower"
        (merged / "f").write_text("upper")
    assert (upper / "f").read_text() == "upper"


@pytest.mark.parametrize("door", ["fsconfig", "mount"])
def test_more_layers_than_a_page_of_options_can_name(folders, tmp_path, monkeypatch, door):
    """Linux before 6.8 takes the lowerdirs in a string of one page: 200 paths of 100 bytes don't fit."""
    if door == "mount":
        monkeypatch.setattr(mounts, "takes_lowerdirs_one_by_one", lambda: False)
    lowers, upper, work, merged = folders(tmp_path / ("long" * 20), lowers=200)
    for number, lower in enumerate(lowers):
        (lower / f"f{number}").write_text("")
        (lower / "who").write_text(str(number))
    with hosts.unchanged(HELD), roots.mounted(lowers, upper, work, merged):
        assert len(os.listdir(merged)) == 201
        assert (merged / "who").read_text() == "199"


def test_folder_given_twice_counts_where_it_is_uppermost(folders):
    lowers, upper, work, merged = folders()
    (lowers[0] / "f").write_text("1")
    (lowers[1] / "f").write_text("2")
    with roots.mounted([lowers[0], lowers[1], lowers[0]], upper, work, merged):
        assert (merged / "f").read_text() == "1"


def test_overlay_without_upperdir_is_read_only(folders):
    lowers, _, _, merged = folders()
    with roots.mounted(lowers, None, None, merged), pytest.raises(OSError, match="Read-only"):
        (merged / "f").write_text("x")


def test_missing_folder_is_named(folders):
    lowers, upper, work, merged = folders()
    work.rmdir()
    with pytest.raises(NotFound, match="work"), roots.mounted(lowers, upper, work, merged):
        pass
    assert not any(entry.what.get("target") == str(merged) for entry in ledger.entries())


def test_notebook_process_itself_mounts_nothing_and_the_mount_goes_with_the_block(folders):
    lowers, upper, work, merged = folders()
    with (
        pytest.raises(ZeroDivisionError),
        hosts.unchanged(HELD),
        roots.mounted(lowers, upper, work, merged),
    ):
        raise ZeroDivisionError


def test_device_node_in_a_root_can_not_be_opened(rootfs):
    with seen(rootfs) as root:
        os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        with pytest.raises(PermissionError):
            open(root / "null")  # noqa: SIM115 - it must not open


# What is whose, and what it costs


def test_usage_counts_a_hard_link_once_and_a_hole_not_at_all(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 8192)
    os.link(tmp_path / "a", tmp_path / "b")
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 30)
    used = roots.usage(tmp_path)
    assert (used.files, used.apparent) == (2, 8192 + (1 << 30))
    assert used.allocated == 8192


def test_vfs_pays_at_the_start_and_overlay_at_the_first_write(image):
    used = {}
    for name in ("overlay", "vfs"):
        made = roots.driver(name).prepare(image, f"test-{name}")
        used[name] = made.usage().allocated
        roots.driver(name).remove(f"test-{name}")
    assert used["overlay"] == 0
    assert used["vfs"] >= 1_500_000


def test_tree_says_which_folder_is_what(rootfs, image):
    tree = rootfs.tree()
    assert tree["merged"] == rootfs.merged
    if rootfs.upperdir:
        assert tree["lowerdir 1"] == image.layers[0]


# btrfs


@pytest.fixture
def needs_btrfs():
    try:
        roots.driver("btrfs")
    except Unsupported as error:
        pytest.skip(str(error))


def test_pool_goes_with_its_last_container(needs_btrfs, image):
    driver = roots.driver("btrfs")
    with hosts.unchanged(HELD):
        driver.prepare(image, "test-one")
        driver.prepare(image, "test-two")
        assert btrfs.is_open() and len(loop.devices_of(btrfs.disk(), deleted=False)) == 1
        driver.remove("test-one")
        assert btrfs.is_open()
        driver.remove("test-two")
        assert not btrfs.is_open() and not btrfs.disk().exists()
        assert not loop.devices_of(btrfs.disk(), deleted=False)


def test_pool_that_someone_is_in_survives_a_clean(needs_btrfs, image):
    driver = roots.driver("btrfs")
    made = driver.prepare(image, "test-stays")
    try:
        for entry in ledger.entries():
            if entry.kind == "pool":
                ledger.undo(entry)
        assert btrfs.is_open() and os.path.exists(made.merged)
    finally:
        driver.remove("test-stays")
    assert not btrfs.is_open()


def test_one_byte_written_to_a_large_file_costs_btrfs_a_block_and_not_the_file(needs_btrfs, image):
    driver = roots.driver("btrfs")
    place = Path(driver.prepare(image, "test-big").merged)
    copy = place.with_name("test-copy")
    try:
        (place / "big").write_bytes(os.urandom(16 << 20))
        os.sync()
        before = free(place)
        btrfs.snapshot(place, copy)
        with open(copy / "big", "r+b") as file:
            file.write(b"x")
        os.sync()
        assert before - free(place) < 1 << 20
    finally:
        btrfs.destroy(copy)
        driver.remove("test-big")


def free(path):
    status = os.statvfs(path)
    return status.f_bfree * status.f_frsize


def test_loop_device_is_given_back_by_the_ledger_alone(tmp_path):
    file = tmp_path / "disk"
    file.write_bytes(bytes(1 << 20))
    entry = ledger.write("loop", file=str(file))
    _, fd = loop.attach(file)
    os.close(fd)
    ledger.undo(entry)
    assert loop.devices_of(file) == []
    with loop.attached(file) as device:
        assert loop.devices_of(file) == [device]
        assert os.stat(device).st_rdev != 0
    assert loop.devices_of(file) == []


def test_pool_is_made_anew_while_somebodys_namespace_still_holds_the_old_one(needs_btrfs, image):
    import subprocess

    driver = roots.driver("btrfs")
    driver.prepare(image, "test-old")
    # A mount namespace made now has a copy of every mount, the pool's too.
    holder = subprocess.Popen(["unshare", "-m", "sh", "-c", "echo ready; exec cat"], stdin=-1, stdout=-1, text=True)
    assert holder.stdout.readline() == "ready\n"
    began = time.monotonic()
    driver.remove("test-old")
    assert time.monotonic() - began < loop.PATIENCE - 1, "nobody waits for what is somebody else's"
    made = driver.prepare(image, "test-new")
    assert os.path.exists(f"{made.merged}/bin/sh") and not os.path.exists(f"{btrfs.pool()}/containers/test-old")
    driver.remove("test-new")
    holder.communicate("")
    until(lambda: not loop.devices_of(btrfs.disk(), deleted=False), 30, "the loop device to go")


def test_chain_names_a_stack_in_its_order():
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert flat.chain([one]) == "1" * 64
    assert len({flat.chain(stack) for stack in ([one, two], [two, one], [one], [two], [])}) == 5


def test_lab_errors_only(driver, image):
    """What a participant meets from this floor is a LabError, which says what to do."""
    for bad in (
        lambda: driver.get("nope"),
        lambda: driver.prepare(image, "a b"),
        lambda: roots.driver("x"),
    ):
        with pytest.raises(LabError) as caught:
            bad()
        assert caught.value.hint
