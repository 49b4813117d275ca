"""The table of chapter 01: other engines on the same files, read from /proc, and gone afterwards."""

import os

import pytest

from labkit.container.life import Container
from labkit.ground import ledger, proc
from labkit.ground.errors import LabError
from labkit.images import catalog
from labkit.isolation import security
from labkit.lessons.beside import engine, neighbours
from labkit.storage import roots

pytestmark = pytest.mark.usefixtures("needs_root")
COMMAND = ["/bin/sleep", "60"]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    roots.copy_tree(catalog.get("busybox").layers[0], root)
    return root


@pytest.mark.parametrize(("start", "program"), [("lxc", "lxc-start"), ("nspawn", "systemd-nspawn")])
def test_a_neighbour_runs_on_our_files_and_leaves_nothing(root, start, program):
    if reason := neighbours.missing(program):
        pytest.skip(f"nothing to compare with: {reason}")
    with getattr(neighbours, start)(root, COMMAND) as pid:
        look = neighbours.look(pid)
        assert {"mnt", "uts", "ipc", "pid", "net"} <= set(look["namespaces of its own"].split())
        assert os.path.exists(f"/proc/{pid}/root/bin/busybox") and proc.process(pid).nspid[-1] == 1
    assert proc.start_ticks(pid) is None
    assert not [mount.target for mount in proc.mounts() if str(root) in mount.target]
    assert not [e for e in ledger.entries() if start in str(e.what.get("path", ""))]
    for path in ("/sys/fs/cgroup", "/run/lxc"):
        assert not [name for name in (os.listdir(path) if os.path.isdir(path) else []) if start in name]


def test_a_neighbour_that_cannot_start_says_so_and_leaves_nothing(root):
    if reason := neighbours.missing("systemd-nspawn"):
        pytest.skip(f"nothing to compare with: {reason}")
    with pytest.raises(LabError, match="started nothing"), neighbours.nspawn(root, ["/no/such/thing"]):
        pass
    assert not [e for e in ledger.entries() if "nspawn" in str(e.what.get("path", ""))]


def test_look_says_of_ours_what_the_spec_says():
    with Container("busybox", "sleep 60").start() as box:
        look = neighbours.look(box.pid)
        assert set(look["namespaces of its own"].split()) == set(box.spec.namespaces)
        assert look["capabilities kept"].startswith(f"{len(box.spec.capabilities)} of ")
        assert (look["seccomp filter"], look["no_new_privs"], look["root"]) == ("yes", "yes", "overlay")
        assert look["mounts"] == str(len(proc.mounts(box.pid)))


def test_docker_keeps_the_capabilities_that_ours_keep():
    if reason := engine.missing():
        pytest.skip(f"no real Docker to compare with: {reason}")
    with engine.private() as docker, Container("busybox", "sleep 60").start() as box:
        docker("run", "-d", "--name", "theirs", "--network", "none", "busybox", "sleep", "60")
        theirs, ours = proc.process(docker.pid("theirs")), proc.process(box.pid)
        assert security.names(theirs.cap_bnd) == security.names(ours.cap_bnd)


def test_the_table_has_a_line_for_each_question(capsys):
    neighbours.side_by_side(
        {"one": {"a": "x", "b": "a very long answer that takes two lines"}, "two": {"a": "y", "b": "-"}}
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["one", "two"] and lines[1].split() == ["a", "x", "y"] and len(lines) > 3


def test_a_private_docker_leaves_the_machines_own_bridge_alone():
    import subprocess

    from labkit import in_child
    from labkit.ground import syscalls as sc
    from labkit.lessons.beside import engine

    if reason := engine.missing():
        pytest.skip(f"no real Docker: {reason}")

    def body():
        sc.unshare(sc.CLONE_NEWNET)  # a machine's links to try it on: ours alone
        subprocess.run(["ip", "link", "add", "docker0", "type", "bridge"], check=True)
        with engine.private(images=()):
            pass
        return subprocess.run(["ip", "link", "show", "docker0"], capture_output=True).returncode

    assert in_child(body, timeout=100) == 0
