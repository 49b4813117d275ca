"""Chapter 01's checks take right work and refuse wrong work; its map has every family once."""

import contextlib
import os
import subprocess

import pytest

from labkit.container.life import Container
from labkit.ground import proc
from labkit.lessons.checks import views as check
from labkit.lessons.figures import namespaces as drawn

pytestmark = pytest.mark.usefixtures("needs_root")


@contextlib.contextmanager
def process(*command):
    one = subprocess.Popen([*command, "sleep", "60"])
    try:
        yield one.pid
    finally:
        one.kill()
        one.wait()


def test_has_its_own_takes_exactly_these():
    with process("unshare", "--uts", "--ipc") as pid:
        assert check.has_its_own(pid, {"uts", "ipc"})


@pytest.mark.parametrize("words", [[], ["--uts"], ["--uts", "--ipc", "--net"], ["--mount"]])
def test_has_its_own_refuses_less_and_more(words):
    with process(*(["unshare", *words] if words else ["env"])) as pid:
        assert not check.has_its_own(pid, {"uts", "ipc"})


def test_has_its_own_refuses_the_notebook_and_no_number():
    assert not check.has_its_own(os.getpid(), {"uts"})
    assert not check.has_its_own(..., {"uts"})


@pytest.fixture
def box():
    with Container("busybox", "sleep 60").start() as box:
        yield box


def test_is_with_takes_only_the_one_kind(box):
    with process("nsenter", "--target", str(box.pid), "--net") as pid:
        assert check.is_with(pid, box.pid, {"net"})
    for words in (["--net", "--uts"], ["--uts"], ["--ipc"]):
        with process("nsenter", "--target", str(box.pid), *words) as pid:
            assert not check.is_with(pid, box.pid, {"net"}), words
    assert not check.is_with(box.pid, box.pid, {"net"})
    with process("env") as pid:
        assert not check.is_with(pid, box.pid, {"net"})


def test_owner_of_asks_the_kernel(box):
    right = proc.namespace("self", "user")
    assert check.owner_of(box.pid, "net", right)
    for wrong in (..., proc.namespace(box.pid, "net"), right + 1, 0):
        assert not check.owner_of(box.pid, "net", wrong)


def test_the_map_has_a_family_for_each_way_to_live(box):
    found = drawn.families([os.getpid(), box.pid])
    assert sorted(found.values()) == sorted([[os.getpid()], [box.pid]])
    assert drawn.map_of({box.pid: "box"}, most=3)
