"""Killed in the middle of anything, at any moment: the store is still sound, and the next call works."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tars import entry, folder, tar
from timing import until
from trees import differences, snapshot

from labkit.build import builder
from labkit.ground import ledger, proc, state
from labkit.images import archives, catalog, layers
from labkit.storage import garbage
from tests.images.test_images import add_image

pytestmark = pytest.mark.usefixtures("needs_root", "own_root")
REPO = state.REPO


def begun(work):
    """Start Python in a session of its own; return when it has imported what it needs and begins this work."""
    module, _, _ = work.partition(".")
    code = f"from labkit.{PLACES[module]} import {module}\nprint('go', flush=True)\n{work}"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPO, start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    return process


PLACES = {"archives": "images", "builder": "build", "garbage": "storage", "registry": "images"}


def kill_in_the_middle(work, after):
    """Begin some work, kill it after so many seconds and wait for all that it started; tell whether it was killed."""
    with begun(work) as process:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
    # Its children die with it (PDEATHSIG), or notice that it is gone.
    until(lambda: not any(session_of(pid) == process.pid for pid in proc.pids()), 30, "its children's end")
    return process.returncode == -signal.SIGKILL


def session_of(pid):
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid)


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


def moments(work, count=10):
    """Return moments of the time that this work takes when nobody kills it: one in each part of it, in seconds."""
    with begun(work) as process:
        started = time.monotonic()
    assert process.returncode == 0
    whole, chance = time.monotonic() - started, random.Random(work)
    return [whole * (part + chance.random()) / count for part in range(count)]


@pytest.mark.slow
def test_load_killed_at_10_moments(tmp_path):
    big = tar(folder("."), *(entry(f"f{number}", data=os.urandom(20_000)) for number in range(400)))
    add_image(catalog.store(), "big:1", big, tar(folder("."), entry("small", data=b"x")))
    archives.save("big:1", tmp_path / "big.tar")
    garbage.remove("big:1")
    killed = 0
    work = f"archives.load({str(tmp_path / 'big.tar')!r})"
    when = moments(work)
    garbage.remove("big:1")
    for number, after in enumerate(when):
        killed += kill_in_the_middle(work, after)
        if number % 2:
            archives.load(tmp_path / "big.tar")  # the next call finds what was left
        assert_sound()
        if catalog.store().names():
            garbage.remove("big:1")
        garbage.collect()
    assert killed >= 3, "too quick to be killed: make the image bigger"
    assert archives.load(tmp_path / "big.tar")[0].layers
    assert_sound()


@pytest.mark.slow
def test_build_killed_at_10_moments(tmp_path):
    context = tmp_path / "context"
    context.mkdir()
    (context / "f").write_bytes(os.urandom(2 << 20))
    (context / "Dockerfile").write_text(
        "FROM busybox\nCOPY f /f\nRUN cp /f /g && rm /bin/ls\nWORKDIR /w\nRUN echo x > x\n"
    )
    killed = 0
    work = f"builder.build({str(context)!r}, 'killed:1', say=lambda line: None, cache=False)"
    for after in moments(work):
        killed += kill_in_the_middle(work, after)
        assert_sound()
    assert killed >= 3
    image = builder.build(context, "killed:1", say=lambda line: None)
    assert len(image.layers) == 5
    assert_sound()


@pytest.mark.slow
def test_removing_killed_at_10_moments(tmp_path):
    data = tar(folder("."), *(entry(f"f{number}", data=b"x" * 100) for number in range(400)))
    keep = tar(folder("."), entry("kept", data=b"kept"))
    add_image(catalog.store(), "keep:1", keep)
    catalog.get("keep:1")
    work, killed = "garbage.remove('gone:1')", 0
    add_image(catalog.store(), "gone:1", keep, data)
    catalog.get("gone:1")
    for after in moments(work):
        add_image(catalog.store(), "gone:1", keep, data)
        catalog.get("gone:1")
        killed += kill_in_the_middle(work, after)
        assert_sound()
        assert Path(catalog.get("keep:1").layers[0], "kept").read_text() == "kept"
    assert killed >= 3
    if "gone:1" in catalog.store().names():
        garbage.remove("gone:1")
    garbage.collect()
    assert len(os.listdir(state.lib_dir("layers"))) == 1
