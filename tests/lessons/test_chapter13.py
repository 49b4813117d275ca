"""Chapter 13's checks see wrong work; the two runtimes' syscalls are all taught or explained."""

import json
import os
import shutil
import signal
import time

import pytest

from labkit.images import catalog
from labkit.lessons import checks, figures
from labkit.lessons.beside import engine
from labkit.lessons.checks import runtime as check
from labkit.lessons.figures import runtimes, syscalls
from labkit.lessons.watch import taught, tracing
from labkit.oci import lifecycle, terms

pytestmark = pytest.mark.usefixtures("needs_root")


@pytest.fixture(autouse=True)
def _fresh_hints():
    checks.forget()


# ---- say it in config.json ----


def _right():
    words = terms.example()
    words["hostname"] = "web"
    words["linux"]["resources"].update(memory={"limit": 64 << 20}, pids={"limit": 20})
    return words


def test_a_right_config_passes():
    assert check.config(_right())


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda words: words.update(hostname="wep"), "'wep'"),
        (lambda words: words["linux"]["resources"].update(memory={"limit": 64}), "killed before it was ready"),
        (lambda words: words["linux"]["resources"].update(memory={"limit": "64m"}), "must be a whole number"),
        (lambda words: words["linux"]["resources"].update(memory={"limit": 65 << 20}), "limit is 67108864"),
        (lambda words: words["linux"]["resources"].pop("pids"), "pids limit is 20"),
        (lambda words: words["root"].update(readonly=False), "read-only"),
        (
            lambda words: words["linux"].update(
                namespaces=[{"type": kind} for kind in ("mount", "uts", "ipc", "network")]
            ),
            "process numbers",
        ),
        (lambda words: words.pop("root"), "no config any more"),
        (lambda words: words["process"].update(args=[]), "process.args"),
    ],
)
def test_a_wrong_config_is_seen(spoil, said):
    words = _right()
    spoil(words)
    result = check.config(words)
    assert not result
    assert said in repr(result), repr(result)


# ---- the gate ----


def _by_reading(path):
    with open(path) as pipe:
        pipe.read()


def _by_file_descriptor(path):
    fd = os.open(path, os.O_RDWR)
    assert os.read(fd, 1)


def _does_not_wait(path):
    os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def _keeps_a_core_busy(path):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    while not os.read(fd, 1):
        pass


def _sleeps_for_ever(path):
    os.open(path, os.O_RDWR)
    signal.pause()


def _waits_somewhere_else(path):
    time.sleep(60)


def _fails_when_woken(path):
    _by_reading(path)
    raise ValueError


@pytest.mark.parametrize("wait", [_by_reading, _by_file_descriptor])
def test_a_gate_that_holds_and_opens_passes(wait):
    assert check.gate(wait)


@pytest.mark.parametrize(
    "wait", [_does_not_wait, _keeps_a_core_busy, _sleeps_for_ever, _waits_somewhere_else, _fails_when_woken]
)
def test_a_gate_that_does_not_is_seen(wait):
    assert not check.gate(wait, seconds=0.5)


# ---- listen in ----


@pytest.fixture(scope="module")
def spying(tmp_path_factory):
    if reason := engine.missing():
        pytest.skip(f"no real Docker here: {reason}")
    folder = tmp_path_factory.mktemp("spy")
    spy = folder / "spy"
    spy.write_text("#!/bin/sh\nexit 1\n")
    spy.chmod(0o755)
    with engine.private(runtimes={"spy": spy}) as docker:
        yield docker, spy, folder / "log"


@pytest.mark.parametrize(
    "lines, passes",
    [
        ('echo "$@" >> {log}\nexec {program} "$@"', True),
        ('exec {program} "$@"', False),
        ('echo "$@" >> {log}', False),
        ('echo called >> {log}\nexec {program} "$@"', False),
        ('echo "$@" > {log}\nexec {program} "$@"', False),
    ],
)
def test_the_spy_has_to_listen_and_to_hand_on(spying, lines, passes):
    docker, spy, log = spying
    spy.write_text("#!/bin/sh\n" + lines.format(log=log, program=lifecycle.PROGRAM) + "\n")
    assert bool(check.listener(docker, log)) is passes


def test_what_dockers_client_warns_of_fails_no_right_answer(spying, tmp_path, monkeypatch):
    """As with net.ipv4.ip_forward=0, which a fresh machine has."""
    docker, spy, log = spying
    client = tmp_path / "docker"
    real = shutil.which("docker", path=engine._PATH)
    client.write_text(f'#!/bin/sh\necho "WARNING: IPv4 forwarding is disabled." >&2\nexec {real} "$@"\n')
    client.chmod(0o755)
    monkeypatch.setattr(engine, "_PATH", f"{tmp_path}:{engine._PATH}")
    spy.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {lifecycle.PROGRAM} "$@"\n')
    assert docker.ask("version").stderr.startswith("WARNING"), "this client does warn"
    result = check.listener(docker, log)
    assert result, repr(result)


# ---- the traces ----


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    if not shutil.which("strace") or not shutil.which("runc"):
        pytest.fail("strace or runc is not installed: both come with vagrant/packages")
    folder = tmp_path_factory.mktemp("traced")
    shutil.copytree(catalog.get("busybox").layers[0], folder / "rootfs", symlinks=True)
    config = terms.example()
    config["process"].update(terminal=False, args=["true"])
    (folder / "config.json").write_text(json.dumps(config))
    words = ("run", "--bundle", str(folder), "traced")
    return {
        name: taught.all_calls([program, "--root", str(folder / name), *words])
        for name, program in (("runc", "runc"), ("ours", str(lifecycle.PROGRAM)))
    }


def test_each_call_that_runc_makes_and_labkit_does_not_is_explained(traces):
    assert taught.unexplained(traces["runc"], traces["ours"]) == []
    assert {"setuid", "setgid", "capget"} <= set(taught.lacking(traces["runc"], traces["ours"]))


def test_a_call_that_nobody_knows_would_be_seen(traces):
    strange = tracing.Call(0.0, 1, "reboot", "", "0")
    assert taught.unexplained([*traces["runc"], strange], traces["ours"]) == ["reboot"]


def test_both_make_the_container_in_the_same_steps(traces):
    for calls in traces.values():
        made = taught.of_a_runtime(calls)
        assert made[-1].name == "execve" and '"true"' in made[-1].arguments
        kinds = [call.kind for call in made]
        assert set(kinds) == set(tracing.KINDS)
        assert kinds.index("cgroup") < kinds.index("namespaces") < [call.name for call in made].index("pivot_root")
        assert not [call for call in made if "CLONE_THREAD" in call.arguments]


def test_the_pictures_can_be_drawn(traces):
    made = {name: taught.of_a_runtime(calls) for name, calls in traces.items()}
    for figure in (
        syscalls.timelines(made),
        runtimes.beside(traces),
        runtimes.times({"a": [0.1, 0.2, 0.3], "b": [0.4, 0.5, 0.6]}),
    ):
        assert figures.png(figure).startswith(b"\x89PNG")
