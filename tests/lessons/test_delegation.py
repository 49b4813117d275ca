"""What a user may do with a part of the tree that was given away, and what v1 does not keep.

The v2 promises are asked of the v2 tree also where it has no controllers (v1 has
them): a folder's own limit is then cgroup.max.descendants.
"""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from labkit.cgroups import hierarchies
from labkit.cgroups.cgroup import Cgroup, Limits
from labkit.ground import child
from labkit.ground.errors import BadValue, Unsupported
from labkit.lessons.scenes import delegation

pytestmark = pytest.mark.usefixtures("needs_root")
USER = 65534


@pytest.fixture
def both():
    """Two groups, in all trees, each with a limit of its own."""
    limits = Limits(pids=50)
    with Cgroup.create("given", limits) as first, Cgroup.create("given-too", limits) as second:
        yield first, second


def of_version(group, version):
    """Return the part of a group that is in trees of one version."""
    paths = [str(folder.path) for folder in group.folders if folder.version == version]
    if not paths:
        pytest.skip(f"no cgroup v{version} tree is mounted here")
    return Cgroup.of_paths(paths)


@pytest.fixture
def v2(both):
    parts = [of_version(group, 2) for group in both]
    for part in parts:
        part.write("cgroup.max.descendants", 7)
        delegation.delegate(part, USER)
    return [part.folders[0].path for part in parts]


@pytest.fixture
def v1(both):
    """The two, given away on v1; return their pids folders."""
    parts = [of_version(group, 1) for group in both]
    if any("pids" not in [name for folder in part.folders for name in folder.controllers] for part in parts):
        pytest.skip("pids is no v1 controller here")
    for part in parts:
        delegation.delegate(part, USER, v1=True)
    return [part.path("pids") for part in parts]


@pytest.fixture
def sleeper():
    """A process of the user's, in no group of ours."""
    process = subprocess.Popen(["sleep", "60"], user=USER, group=USER, extra_groups=[])
    yield process.pid
    process.kill()
    process.wait()


def as_user(act):
    """Do it as the user; return what it returns, or the name of the errno."""

    def body():
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        try:
            return act()
        except OSError as error:
            return errno.errorcode[error.errno]

    return child.in_child(body)


def put(pid, folder):
    (folder / "cgroup.procs").write_text(str(pid))


def pids_in(folder):
    return [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]


def make_and_move(folder, pid):
    os.mkdir(folder / "mine")
    put(pid, folder / "mine")
    return pids_in(folder / "mine")


# Version 2


def test_a_delegate_makes_a_folder_and_moves_its_process_into_it(v2, sleeper):
    put(sleeper, v2[0])
    assert as_user(lambda: make_and_move(v2[0], sleeper)) == [sleeper]
    assert as_user(lambda: put(sleeper, v2[0])) is None  # and back
    assert as_user(lambda: os.rmdir(v2[0] / "mine")) is None


def test_a_delegate_can_not_raise_its_own_limit(v2):
    for name in ("cgroup.max.descendants", "pids.max", "memory.max", "cpu.max"):
        file = v2[0] / name
        if not file.exists():  # where v1 has the controllers, v2's folder has only its own limits
            assert name != "cgroup.max.descendants"
            continue
        before = file.read_text()
        assert as_user(lambda file=file: file.write_text("max")) == "EACCES", name
        assert file.read_text() == before


def test_what_a_delegate_makes_counts_against_the_limit_that_it_can_not_raise(v2):
    def fill():
        for number in range(20):
            os.mkdir(v2[0] / f"c{number}")

    assert as_user(fill) == "EAGAIN"
    assert len([path for path in v2[0].iterdir() if path.is_dir()]) == 7


@pytest.mark.parametrize("where", ["the folder above", "another that is the user's too", "the root"])
def test_a_delegate_can_not_move_a_process_out(v2, sleeper, where):
    put(sleeper, v2[0])
    out = {"the folder above": v2[0].parent, "the root": hierarchies.unified().mount}.get(where, v2[1])
    assert as_user(lambda: put(sleeper, out)) == "EACCES"
    assert sleeper in pids_in(v2[0])


def test_a_delegate_can_not_pull_in_its_own_process_from_elsewhere(v2, sleeper):
    assert as_user(lambda: put(sleeper, v2[0])) == "EACCES"
    assert not pids_in(v2[0])


def test_a_delegate_divides_what_it_was_given_with_limits_of_its_own(v2, sleeper):
    if "pids" not in hierarchies.unified().controllers:
        pytest.skip("pids is in a v1 tree here: the v2 tree has no controller to hand down")
    put(sleeper, v2[0])

    def divide():
        make_and_move(v2[0], sleeper)  # v2 hands nothing down from a folder that has processes
        (v2[0] / "cgroup.subtree_control").write_text("+pids")
        (v2[0] / "mine" / "pids.max").write_text("100000")
        return (v2[0] / "mine" / "pids.max").read_text()

    assert as_user(divide) == "100000\n"
    assert (v2[0] / "pids.max").read_text() == "50\n"  # which holds all the same


def test_only_what_the_kernel_lists_is_given(both):
    part = of_version(both[0], 2)
    given = delegation.delegate(part, USER)
    folder = part.folders[0].path
    listed = {folder / name for name in Path("/sys/kernel/cgroup/delegate").read_text().split()}
    theirs = {path for path in (folder, *folder.iterdir()) if path.stat().st_uid == USER}
    assert theirs == set(given) and theirs - {folder} <= listed
    assert {"cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} <= {path.name for path in theirs}


# Version 1


def test_v1_is_refused_unless_it_is_asked_for_and_nothing_is_given(both):
    part = of_version(both[0], 1)
    with pytest.raises(Unsupported, match="cgroup v1"):
        delegation.delegate(both[0], USER)
    assert {folder.path.stat().st_uid for folder in (*part.folders, *both[0].folders)} == {0}


def test_on_v1_a_delegate_makes_a_folder_moves_its_process_and_can_not_raise_its_own_limit(v1, sleeper):
    put(sleeper, v1[0])
    assert as_user(lambda: make_and_move(v1[0], sleeper)) == [sleeper]
    assert as_user(lambda: (v1[0] / "mine" / "pids.max").write_text("100000")) == 6
    assert as_user(lambda: (v1[0] / "pids.max").write_text("100000")) == "EACCES"
    assert (v1[0] / "pids.max").read_text() == "50\n"
    assert as_user(lambda: put(sleeper, v1[0].parent)) == "EACCES"


def test_what_v1_does_not_keep_a_delegate_moves_between_its_two_and_pulls_in_from_elsewhere(v1, sleeper):
    assert as_user(lambda: put(sleeper, v1[0])) is None
    assert as_user(lambda: put(sleeper, v1[1])) is None
    assert pids_in(v1[1]) == [sleeper]


def test_on_v1_a_delegate_can_not_pull_in_somebody_elses_process(v1):
    assert as_user(lambda: put(os.getppid(), v1[0])) == "EACCES"


# Both


@pytest.mark.parametrize("uid", [0, -1, 2**32 - 1, "nobody", None, True, 1.5])
def test_what_is_no_user_is_refused_and_nothing_is_given(both, uid):
    with pytest.raises(BadValue):
        delegation.delegate(both[0], uid, v1=True)
    assert {folder.path.stat().st_uid for folder in both[0].folders} == {0}


def test_root_takes_it_away_with_all_that_the_delegate_made(both, sleeper):
    delegation.delegate(both[0], USER, v1=True)
    both[0].add(sleeper)
    for folder in both[0].folders:
        assert as_user(lambda folder=folder: os.mkdir(folder.path / "mine")) is None
    paths = [folder.path for folder in both[0].folders]
    both[0].kill()
    both[0].remove()
    assert not any(path.exists() for path in paths)
    both[0].folders.clear()
