"""Volumes: they outlive containers, are shared by them, and hide nothing of the image."""

import os
import subprocess
import threading

import pytest
from trees import differences, snapshot

from labkit.ground import state
from labkit.ground.errors import BadValue, InUse, NotFound
from labkit.images import catalog
from labkit.storage import roots, volumes

pytestmark = pytest.mark.usefixtures("needs_root")


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / "root"))


def test_volume_is_made_once_and_keeps_what_is_in_it():
    made = volumes.create("data")
    with open(f"{made.path}/f", "w") as file:
        file.write("kept")
    assert volumes.create("data") == made == volumes.get("data")
    assert str(volumes.path("data")) == made.path
    assert volumes.all() == [made] and made.usage().files == 1


def test_many_who_make_it_at_once_get_one():
    found = []
    threads = [threading.Thread(target=lambda: found.append(volumes.create("data").path)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    assert os.listdir(os.path.dirname(found[0])) == ["_data"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "-v", "a b", None, "a\0b"])
def test_name_that_is_none_never_becomes_a_path(name):
    for call in (volumes.create, volumes.get, volumes.remove):
        with pytest.raises(BadValue):
            call(name)


def test_unknown_volume_is_told_with_those_there_are():
    volumes.create("here")
    with pytest.raises(NotFound, match="here: here"):
        volumes.get("nope")
    with pytest.raises(NotFound):
        volumes.remove("nope")


def test_removed_volume_is_gone_with_its_files():
    made = volumes.create("data")
    open(f"{made.path}/f", "w").close()
    volumes.remove("data")
    assert volumes.all() == [] and os.listdir(state.lib_dir("volumes")) == []


def test_volume_that_is_mounted_somewhere_is_not_removed(tmp_path):
    made = volumes.create("data")
    (tmp_path / "at").mkdir()
    # In a mount namespace of its own, where our mountinfo does not show it.
    holder = subprocess.Popen(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            f"mount --bind '{made.path}' '{tmp_path}/at' && echo ready && exec cat",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "ready\n"
        assert volumes.user_of(made) == holder.pid
        with pytest.raises(InUse, match=str(holder.pid)):
            volumes.remove("data")
        assert os.path.isdir(made.path)
    finally:
        holder.communicate("")
    volumes.remove("data")


def test_empty_volume_is_filled_from_the_image_and_a_full_one_is_not():
    rootfs = roots.driver().prepare(catalog.get("busybox"), "test-fill")
    fd = os.open(rootfs.lowerdirs[0], os.O_PATH | os.O_DIRECTORY)
    try:
        assert volumes.fill("data", fd, "/etc")
        found = snapshot(volumes.path("data"))
        assert differences(found, snapshot(f"{rootfs.lowerdirs[0]}/etc")) == []
        (volumes.path("data") / "passwd").write_text("mine")
        assert not volumes.fill("data", fd, "/etc")
        assert (volumes.path("data") / "passwd").read_text() == "mine"
        assert not volumes.fill("other", fd, "/not/there")
    finally:
        os.close(fd)
        roots.driver().remove("test-fill")


def test_link_in_the_image_can_not_fill_a_volume_from_the_host(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/secret").write_text("secret")
    (tmp_path / "image").mkdir()
    os.symlink("../victim", tmp_path / "image/data")
    os.symlink(tmp_path / "victim", tmp_path / "image/abs")
    fd = os.open(tmp_path / "image", os.O_PATH | os.O_DIRECTORY)
    try:
        assert not volumes.fill("data", fd, "/data") and not volumes.fill("data", fd, "/abs")
    finally:
        os.close(fd)
    assert os.listdir(volumes.path("data")) == []
