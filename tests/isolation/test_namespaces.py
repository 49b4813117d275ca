"""namespaces: the survey says what util-linux says; pins hold; joining arrives; hostile words change nothing."""

import json
import os
import shutil
import subprocess
import time

import hosts
import pytest

from labkit.app.cli import main
from labkit.container.life import Container
from labkit.ground import proc
from labkit.ground import syscalls as sc
from labkit.ground.child import in_child
from labkit.ground.errors import BadValue, LabError, NotFound, Unsupported
from labkit.isolation import namespaces
from labkit.lessons.watch import lsns

pytestmark = pytest.mark.usefixtures("needs_root")


def _lsns():
    command = ["lsns", "--json", "-o", "NS,TYPE,NPROCS,PID,PNS,ONS"]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["namespaces"]
    return {
        (row["type"], int(row["ns"])): tuple(int(row[name] or 0) for name in ("nprocs", "pid", "pns", "ons"))
        for row in rows
    }


def _survey():
    return {
        (one.kind, one.inode): (one.processes, one.pid or 0, one.parent or 0, one.owner or 0)
        for one in lsns.survey()
        if one.processes
    }


def test_survey_agrees_with_lsns_of_util_linux():
    assert shutil.which("lsns")
    with Container("busybox", ["sh", "-c", "sleep 60 & sleep 60; true"]).start() as box:
        time.sleep(0.2)
        mine = {
            (kind, inode) for kind, inode in proc.namespaces(box.pid).items() if inode != proc.namespace("self", kind)
        }
        for _ in range(20):  # elsewhere on this machine namespaces come and go between two looks
            before, theirs, after = _survey(), _lsns(), _survey()
            lasting = {key: values for key, values in before.items() if after.get(key) == values}
            strangers = theirs.keys() - before.keys() - after.keys()
            if not strangers and all(_same(key, values, theirs.get(key)) for key, values in lasting.items()):
                break
        else:
            raise AssertionError(f"{lasting}\n{theirs}")
    assert mine <= lasting.keys() and all(lasting[key][0] == 3 for key in mine)
    ours = proc.namespace("self", "pid")
    assert {lasting[key][2] for key in mine if key[0] == "pid"} == {ours}, "a pid namespace has a parent"


def _same(key, ours, theirs):
    kind, inode = key
    itself = proc.namespace("self", kind) == inode  # lsns was there too, and counts itself
    # Where many are, others may have come since.
    others = (ours[0] > 20) * 5
    return theirs is not None and ours[1:] == theirs[1:] and abs(theirs[0] - itself - ours[0]) <= others


def _become_root_in_a_user_namespace():
    sc.unshare(sc.CLONE_NEWUSER)
    namespaces.map_ids("self", [(0, 0, 1)], [(0, 0, 1)])
    return proc.namespace("self", "user")


def test_survey_sees_who_owns_what_and_finds_one_that_only_its_child_holds():
    child_waits, release = os.pipe()
    read, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            middle = _become_root_in_a_user_namespace()
            inner = _become_root_in_a_user_namespace()
            sc.unshare(sc.CLONE_NEWUTS)
            os.write(say, f"{middle} {inner}".encode())
            os.close(release)
            os.read(child_waits, 1)
        finally:
            os._exit(0)
    try:
        os.close(say)
        middle, inner = map(int, os.read(read, 100).split())
        found = {(one.kind, one.inode): one for one in lsns.survey()}
        assert found["uts", proc.namespace(pid, "uts")].owner == inner
        assert found["user", inner].parent == found["user", inner].owner == middle
        assert found["user", middle].processes == 0
        assert found["user", middle].parent == proc.namespace("self", "user")
    finally:
        os.close(release)
        os.waitpid(pid, 0)
        os.close(child_waits)
        os.close(read)


@pytest.mark.parametrize("kind", [kind for kind in namespaces.KINDS if kind not in ("user", "time")])
def test_a_pin_keeps_a_namespace_after_its_last_process(kind):
    try:
        _pinned_and_found(kind)
    except Unsupported as error:
        pytest.skip(str(error))


def _pinned_and_found(kind):
    with hosts.unchanged(ignore=("^(?!mount .*/pins/)",)):
        with Container("busybox", "sleep 60").start() as box:
            inode = proc.namespace(box.pid, kind)
            with lsns.pin(box.pid, kind) as path:
                box.delete()
                found = [one for one in lsns.survey() if (one.kind, one.inode) == (kind, inode)]
                assert [(one.processes, one.command) for one in found] == [(0, str(path))]

                def arrive(path=path):
                    namespaces.join(path, kind)
                    name = "pid_for_children" if kind == "pid" else kind
                    return os.readlink(f"/proc/{os.getpid()}/ns/{name}") if kind != "mnt" else None

                if kind == "pid" or kind != "mnt":  # its PID 1 is gone for good: nothing can be born in it again
                    assert str(inode) in in_child(arrive)
        # The kernel may have given the inode's number to somebody else by now.
        assert not [one for one in lsns.survey() if one.command == str(path)]


def test_pin_and_join_refuse_what_is_not_there(tmp_path):
    with hosts.unchanged(ignore=("^(?!mount .*/pins/)",)):
        with pytest.raises(BadValue), lsns.pin(os.getpid(), "planet"):
            pass
        with pytest.raises(NotFound), lsns.pin(2**22 + 1, "net"):
            pass
        with pytest.raises(LabError):
            namespaces.join(tmp_path / "none", "net")
        (tmp_path / "file").touch()
        with pytest.raises(LabError):
            in_child(namespaces.join, tmp_path / "file", "net")


def test_lab_lsns_prints_a_row_for_each(capsys):
    with Container("busybox", "sleep 60").start() as box:
        assert main(["lsns", "-t", "pid"]) == 0
        lines = capsys.readouterr().out.splitlines()
        inode = str(proc.namespace(box.pid, "pid"))
        (row,) = [line.split() for line in lines if line.startswith(inode)]
        assert row[:4] == [inode, "pid", "1", str(box.pid)]
    assert main(["lsns", "-t", "planet"]) == 125
