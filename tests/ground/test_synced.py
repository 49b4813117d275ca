"""After a power cut no name leads to what is not whole: contents go to the disk first, the name then.

No test can cut the power. What can be tested is the order of what is asked of the kernel, as strace sees it.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tars import entry, folder, tar

from labkit.ground import ledger, state
from labkit.images import archives, catalog, registry
from labkit.storage import garbage, roots, volumes
from labkit.storage.drivers import flat
from tests.images.test_images import add_image
from tests.images.test_registry import host  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("needs_root", "own_root")
REPO = state.REPO


def order(code, tmp_path):
    """Run Python code; return [(what, path)] of its syncs, and of its renames by the new name, in order."""
    if not shutil.which("strace"):
        pytest.fail("strace is not installed: it is in vagrant/packages")
    out = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,syncfs,?rename,?renameat,renameat2"
    subprocess.run(
        ["strace", "-f", "-y", "-s", "300", "-e", calls, "-e", "signal=none", "-o", out,
         sys.executable, "-c", code],
        cwd=REPO, check=True, timeout=120, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    found = []
    for line in out.read_text().splitlines():
        # A call that another process interrupts is written in two halves; the first has the arguments.
        if match := re.match(r"\d+ +(fsync|fdatasync|syncfs)\(\d+<([^>]*)>", line):
            found.append((match[1].replace("fdatasync", "fsync"), match[2]))
        elif match := re.match(r'\d+ +rename\w*\(.*?"([^"]*)".*?"([^"]*)"', line):
            found.append((f"rename {match[1]}", match[2]))
    return found


def assert_in_order(calls, layers=1):
    """Each blob is synced, then named; each layer too; the blobs' names before the image's, and that."""
    store = state.lib_dir("images")
    what = [path for _, path in calls]
    blobs = [at for at, path in enumerate(what) if path.startswith(f"{store}/blobs/sha256/")]
    named = [at for at, (call, path) in enumerate(calls) if call.startswith("rename") and at in blobs]
    assert named, calls
    for at in named:
        scratch = calls[at][0].removeprefix("rename ")
        assert ("fsync", scratch) in calls[:at], f"{scratch} is on the disk before it is {what[at]}"
    index = max(at for at, (call, path) in enumerate(calls) if path == f"{store}/index.json")
    folders = [at for at, call in enumerate(calls) if call == ("fsync", f"{store}/blobs/sha256")]
    assert any(max(named) < at < index for at in folders), "the blobs' names before the image's"
    assert ("fsync", str(store)) in calls[index:], "the image's name before the call returns"
    unpacked = [at for at, (call, path) in enumerate(calls) if "rename" in call and path.endswith("/diff")]
    assert len(unpacked) == layers
    for at in unpacked:
        scratch = calls[at][0].removeprefix("rename ")
        assert calls[at - 1] == ("syncfs", scratch), "a layer's files before its name"


def two_layers(name):
    layers = [tar(folder("."), entry(file, data=b"x")) for file in "ab"]
    add_image(catalog.store(), name, *layers)


def test_loaded_image_is_on_the_disk_before_it_has_a_name(tmp_path):
    two_layers("two:1")
    archives.save("two:1", tmp_path / "two.tar")
    garbage.remove("two:1")
    code = f"from labkit.images import archives; archives.load({str(tmp_path / 'two.tar')!r})"
    assert_in_order(order(code, tmp_path), layers=2)
    assert catalog.get("two:1").layers


def test_pulled_image_is_on_the_disk_before_it_has_a_name(tmp_path, host):  # noqa: F811
    """Here skopeo writes the blobs: it syncs them, and the folder they are in is left to us."""
    two_layers(f"{host}/two:1")
    registry.push(f"{host}/two:1")
    garbage.remove(f"{host}/two:1")
    code = f"from labkit.images import registry; registry.pull('{host}/two:1')"
    assert_in_order(order(code, tmp_path), layers=2)


def test_built_image_is_on_the_disk_before_it_has_a_name(tmp_path):
    catalog.get("busybox")
    (tmp_path / "context").mkdir()
    (tmp_path / "context/Dockerfile").write_text("FROM busybox\nCOPY Dockerfile /\nENV A=b\n")
    code = f"from labkit.build import builder as build; build.build({str(tmp_path / 'context')!r}, 'built:1')"
    assert_in_order(order(code, tmp_path))


def test_saved_archive_is_on_the_disk_before_it_has_its_name(tmp_path):
    catalog.get("busybox")
    path = tmp_path / "saved.tar"
    calls = order(f"from labkit.images import archives; archives.save('busybox', {str(path)!r})", tmp_path)
    (at,) = (at for at, (call, new) in enumerate(calls) if new == str(path))
    assert calls[at - 1] == ("fsync", calls[at][0].removeprefix("rename "))
    assert calls[at + 1] == ("fsync", str(tmp_path))


@pytest.mark.parametrize("driver", ["overlay", "vfs"])
def test_start_of_a_container_waits_for_no_disk(driver, tmp_path):
    """Not for its layers: they are there. Its own root is nobody's promise."""
    start = f"from labkit import Container; Container('busybox', ['true'], storage={driver!r}).start().wait()"
    first = [call for call, _ in order(start, tmp_path)]
    assert first.count("syncfs") == (1 if driver == "overlay" else 2), "the first one unpacks"
    assert not [path for call, path in order(start, tmp_path) if call == "syncfs" or "/images" in path]


# What is left after the reboot


@pytest.fixture
def reboot(monkeypatch):
    """Forget /run, as a reboot does, and make all that is there older than this boot."""

    def reboot():
        run = state.run_dir()
        shutil.rmtree(run)
        for path in state.lib_dir().rglob("*"):
            os.utime(path, (0, 0), follow_symlinks=False)

    return reboot


def test_reboot_leaves_nothing_that_is_never_given_back(reboot):
    """A container's folder, a half pulled image, a half unpacked layer: no ledger knows of them any more."""
    image = catalog.get("busybox")
    roots.driver("overlay").prepare(image, "lost")
    roots.driver("vfs").prepare(image, "copied")
    lib, layer = state.lib_dir(), Path(image.layers[0]).parent
    for scratch in ("images/.skopeo-1", "images/.load-2", layer / ".diff.3.tmp", "flat/.4.tmp"):
        (lib / scratch / "inside").mkdir(parents=True)
    (lib / "btrfs").mkdir()
    (lib / "btrfs/pool.img").write_bytes(b"disk")
    volumes.create("mine")
    reboot()

    new = roots.driver("overlay").prepare(image, "new")
    assert len(garbage.reclaim()) == 7
    assert [path.name for path in (lib / "containers").iterdir()] == ["new"], "of this boot"
    assert sorted(path.name for path in lib.rglob(".*")) == [] and list((lib / "btrfs").iterdir()) == []
    assert catalog.get("busybox").layers == image.layers and Path(new.lowerdirs[0], "bin/sh").exists()
    assert volumes.get("mine"), "a volume outlives everything"
    assert garbage.reclaim() == []
    roots.driver("overlay").remove("new")


def test_what_is_in_use_is_not_taken_for_an_earlier_boots(reboot):
    """Not what the ledger knows, however old; not what is new, though the ledger is gone."""
    roots.driver("overlay").prepare(catalog.get("busybox"), "old")
    ledger.write("cgroup", path="/sys/fs/cgroup/none", also=["/sys/fs/cgroup/none"])
    for path in state.lib_dir().rglob("*"):
        os.utime(path, (0, 0), follow_symlinks=False)
    assert garbage.left_by_an_earlier_boot() == []
    shutil.rmtree(state.run_dir())
    os.utime(state.lib_dir("containers") / "old")
    assert garbage.left_by_an_earlier_boot() == []


def test_copy_that_is_just_being_made_is_no_garbage():
    """Its image is here; the name it will have is in its name."""
    image = catalog.get("busybox")
    making = state.lib_dir("flat") / f".{flat.chain(image.diff_ids)}.tmp"
    other = state.lib_dir("flat") / f".{'0' * 64}.tmp"
    for path in (making, other):
        (path / "inside").mkdir(parents=True)
    garbage.collect()
    assert making.exists() and not other.exists()
