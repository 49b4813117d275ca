"""Killed in the middle of anything, at any moment: the store is still sound, and the next call works."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tars import entry, folder, tar
from trees import differences, snapshot

from labkit.build import builder
from labkit.ground import ledger, state
from labkit.images import archives, catalog, layers
from labkit.storage import garbage
from tests.images.test_images import add_image

pytestmark = pytest.mark.usefixtures("needs_root", "own_root")
REPO = state.REPO


def kill_in_the_middle(code, after):
    """Run Python code in a session of its own, kill it after so many seconds; tell whether it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPO, start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        return True
    finally:
        # Its children die with it (PDEATHSIG); give the kernel the moment that takes.
        process.wait()
        time.sleep(0.02)


def assert_sound():
    """Every name leads to a whole image, each layer is what its blob says, nothing half-made stays."""
    ledger.clean()
    assert [str(one) for one in ledger.entries()] == []
    store = catalog.store()
    for name, digest in store.names().items():
        catalog.read(store, digest)
        image = catalog.get(name)
        parts = catalog.read(store, digest)[0]["layers"]
        for path, diff_id, part in zip(image.layers, image.diff_ids, parts, strict=True):
            again = state.lib_dir("chapters") / state.new_id()
            layers.apply(store.path(part["digest"]), again, diff_id=diff_id)
            assert differences(_timeless(snapshot(again)), _timeless(snapshot(path))) == [], "the folder is whole"
            ledger.remove_tree(again)
    garbage.collect()
    for path in state.lib_dir("images").rglob("*"):
        assert ".tmp" not in path.name and ".load" not in path.name, path
    for path in state.lib_dir("layers").rglob(".*.tmp"):
        raise AssertionError(path)


def _timeless(tree):
    """A whiteout is a mark: when it was made says nothing."""
    for said in tree.values():
        if said.get("device") == (0, 0):
            del said["time"]
    return tree


def moments(seed, count, most):
    chance = random.Random(seed)
    return [chance.uniform(min(0.15, most / 2), most) for _ in range(count)]


def time_of(code):
    """Return the seconds that a piece of work takes on this machine when nobody kills it."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.monotonic() - started


@pytest.mark.slow
def test_load_killed_at_20_moments(tmp_path):
    big = tar(folder("."), *(entry(f"f{number}", data=os.urandom(20_000)) for number in range(400)))
    add_image(catalog.store(), "big:1", big, tar(folder("."), entry("small", data=b"x")))
    archives.save("big:1", tmp_path / "big.tar")
    garbage.remove("big:1")
    killed = 0
    code = f"from labkit.images import archives; archives.load({str(tmp_path / 'big.tar')!r})"
    whole = time_of(code)
    garbage.remove("big:1")
    for after in moments("load", 20, whole):
        killed += kill_in_the_middle(code, after)
        assert_sound()
        if catalog.store().names():
            garbage.remove("big:1")
        garbage.collect()
    assert killed >= 5, "too quick to be killed: make the image bigger"
    assert archives.load(tmp_path / "big.tar")[0].layers
    assert_sound()


@pytest.mark.slow
def test_build_killed_at_20_moments(tmp_path):
    context = tmp_path / "context"
    context.mkdir()
    (context / "f").write_bytes(os.urandom(2 << 20))
    (context / "Dockerfile").write_text(
        "FROM busybox\nCOPY f /f\nRUN cp /f /g && rm /bin/ls\nWORKDIR /w\nRUN echo x > x\n"
    )
    killed = 0
    code = f"from labkit.build import builder as build; build.build({str(context)!r}, 'killed:1', cache=False)"
    for after in moments("build", 20, time_of(code)):
        killed += kill_in_the_middle(code, after)
        time.sleep(0.3)  # the spawner notices that its client is gone
        assert_sound()
    assert killed >= 5
    image = builder.build(context, "killed:1", say=lambda line: None)
    assert len(image.layers) == 5
    assert_sound()


@pytest.mark.slow
def test_removing_killed_at_20_moments(tmp_path):
    data = tar(folder("."), *(entry(f"f{number}", data=b"x" * 100) for number in range(400)))
    keep = tar(folder("."), entry("kept", data=b"kept"))
    add_image(catalog.store(), "keep:1", keep)
    catalog.get("keep:1")
    code, killed = "from labkit.storage import garbage; garbage.remove('gone:1')", 0
    add_image(catalog.store(), "gone:1", keep, data)
    catalog.get("gone:1")
    for after in moments("remove", 20, time_of(code)):
        add_image(catalog.store(), "gone:1", keep, data)
        catalog.get("gone:1")
        killed += kill_in_the_middle(code, after)
        assert_sound()
        assert Path(catalog.get("keep:1").layers[0], "kept").read_text() == "kept"
    assert killed >= 5
    if "gone:1" in catalog.store().names():
        garbage.remove("gone:1")
    garbage.collect()
    assert len(os.listdir(state.lib_dir("layers"))) == 1
    assert signal.SIGKILL == 9
