"""A container with a user namespace: root inside is nobody special outside, and the image's files are still its own."""

import os
import time
from pathlib import Path

import pytest

from labkit.app.cli import main
from labkit.container.life import Container, run
from labkit.container.spec import Spec
from labkit.ground import proc, state
from labkit.ground.child import in_child
from labkit.ground.errors import BadValue, Unsupported
from labkit.images import catalog
from labkit.isolation import idmap, mounts

pytestmark = pytest.mark.usefixtures("needs_root")
FIRST = idmap.FIRST


def inside(command, **words):
    return run("busybox", ["sh", "-c", command], show=False, userns="remap", **words)


def test_root_inside_is_another_user_outside():
    with Container("busybox", "sleep 60", userns="remap").start() as box:
        process = proc.process(box.pid)
        assert (process.uid, process.gid) == (FIRST, FIRST)
        assert proc.id_map(box.pid) == [(0, FIRST, idmap.COUNT)]
        assert "user" in {k for k, v in proc.namespaces().items() if proc.namespaces(box.pid)[k] != v}
        assert box.exec("id -u").output == "0\n"
        assert {proc.process(p.pid).uid for p in box.top()} == {FIRST}


def test_the_images_files_belong_to_the_containers_root():
    said = inside("ls -ln /bin/busybox /etc/passwd | while read mode links uid gid rest; do echo $uid $gid; done")
    assert said.output.split() == ["0", "0"] * 2


def test_what_it_writes_lies_outside_under_the_outer_ids():
    with Container(
        "busybox", ["sh", "-c", "touch /mine; chown 33 /etc/passwd; sleep 60"], userns="remap"
    ).start() as box:
        deadline = time.monotonic() + 30
        upper = Path(box.rootfs.upperdir)
        while not (upper / "etc/passwd").exists() or os.stat(upper / "etc/passwd").st_uid != FIRST + 33:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert os.stat(upper / "mine").st_uid == FIRST
        assert os.stat(Path(catalog.get("busybox").layers[0], "etc/passwd")).st_uid == 0


def test_it_cannot_write_what_belongs_to_the_hosts_root(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("for root only")
    secret.chmod(0o600)
    tmp_path.chmod(0o777)
    command = "cat /data/secret; echo $?; ls -ln /data/secret; touch /data/new"
    said = inside(command, volumes=[f"{tmp_path}:/data"]).output
    assert "Permission denied" in said and "for root only" not in said and "65534" in said
    assert os.stat(tmp_path / "new").st_uid == FIRST
    assert "for root only" in run("busybox", ["cat", "/data/secret"], show=False, volumes=[f"{tmp_path}:/data"]).output


def test_a_user_of_the_image_is_mapped_too():
    said = inside("id -u; touch /tmp/x; ls -ln /tmp/x", user="www-data")
    assert said.output.split()[0] == "33" and " 33 " in said.output


@pytest.mark.parametrize(
    "words",
    [{"read_only": True}, {"init": True}, {"memory": "64m"}, {"pids_limit": 30}, {"hostname": "other"}],
)
def test_it_goes_together_with(words):
    result = inside("echo works", **words)
    assert result.output.strip() == "works" and result.code == 0


def test_it_goes_together_with_a_terminal(capfd):
    assert (
        main(
            ["run", "-t", "--rm", "--network", "none", "--userns", "remap", "busybox", "sh", "-c", "test -t 0 && id -u"]
        )
        == 0
    )
    assert capfd.readouterr().out.split() == ["0"]


@pytest.mark.requires("time namespace")
def test_it_goes_together_with_a_clock_offset():
    said = float(inside("cat /proc/uptime", time_offset=86400).output.split()[0])
    assert said > 86400


def test_without_capabilities_over_the_host_its_root_cannot_make_devices_or_set_the_clock():
    said = inside("mknod /dev/disk b 8 0; date -s 2000-01-01; mount -o remount,rw /sys", cap_add=["MKNOD", "SYS_ADMIN"])
    assert said.output.count("not permitted") + said.output.count("denied") >= 2


def test_a_range_of_ones_own():
    with Container("busybox", "sleep 60", userns="700000:1000").start() as box:
        assert proc.id_map(box.pid) == [(0, 700000, 1000)]


@pytest.mark.parametrize("text", ["banana", "0", "0:65536", "5:", "-1", "1000:0", "4294967290:100", "1000:2:3"])
def test_ids_that_cannot_be_given_away_are_refused_and_nothing_is_made(text):
    with pytest.raises(BadValue):
        Spec.make("busybox", userns=text)
    assert main(["run", "--userns", text, "busybox", "true"]) == 125


def test_a_filesystem_that_cannot_translate_is_named(tmp_path):
    folders = [tmp_path / name for name in ("upper", "work", "merged")]
    for folder in folders:
        folder.mkdir()
    step = mounts.Overlay(("/sys/kernel",), *map(str, folders))
    refused = pytest.raises(Unsupported, match="under the container's ids")
    with Container("busybox", "sleep 60", userns="remap").start() as box, refused:
        in_child(idmap.root, step, box.pid)


def test_nothing_is_left_of_the_place_where_the_layers_were_translated():
    inside("true")
    assert not [mount.target for mount in proc.mounts() if mount.target.startswith(str(state.lib_dir()))]
