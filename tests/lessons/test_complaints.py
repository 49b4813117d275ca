"""What a foreign program complains of on stderr is no part of its answer: some machines make it complain, others do not."""

import os

import pytest

from labkit.app import probing
from labkit.ground.errors import LabError, Unsupported
from labkit.lessons.beside import engine
from labkit.lessons.checks import promises
from labkit.lessons.scenes.netrooms import Room
from labkit.lessons.scenes.workbench import Box

WARNING = "WARNING: IPv4 forwarding is disabled. Networking will not work."


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Return a function that makes a command which answers, warns and ends with a status; it comes first on PATH."""

    def make(name, answer, status=0):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{WARNING}' >&2\nprintf '{answer}'\nexit {status}\n")
        path.chmod(0o755)
        return path

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(engine, "_PATH", f"{tmp_path}:{engine._PATH}")
    return make


def test_dockers_warning_is_not_in_its_answer_and_is_in_its_error(program, tmp_path):
    docker = engine.Engine(tmp_path)
    program("docker", "web\\n")
    assert docker("inspect", "x") == "web\n"
    done = docker.ask("inspect", "x")
    assert (done.returncode, done.stdout, done.stderr) == (0, "web\n", WARNING + "\n")
    program("docker", "web\\n", status=1)
    with pytest.raises(LabError, match="forwarding is disabled"):
        docker("inspect", "x")


def test_a_promise_is_kept_by_what_is_printed_alone(program):
    run = promises.runner([program("mine", "mycontainer\\n")])
    assert run([]) == (0, "mycontainer\n", WARNING + "\n")
    assert promises.has_a_name(run) == ""
    said = promises.has_a_name(promises.runner([program("mine", "", status=1)]))
    assert WARNING in said, "who printed nothing reads why"


@pytest.mark.parametrize("where", [Room("here", os.getpid()), Box(os.getpid(), os.getpid())], ids=["room", "bench"])
def test_a_chapter_shows_the_answer_and_a_complaint_only_of_what_failed(needs_root, program, capfd, where):
    where.run([program("says", "up\\n")]) if isinstance(where, Room) else where.run(program("says", "up\\n"))
    assert capfd.readouterr() == ("up\n", "")
    where.run([program("says", "up\\n", 1)]) if isinstance(where, Room) else where.run(program("says", "up\\n", 1))
    assert capfd.readouterr() == (f"up\n{WARNING}\n", "")


def test_ip_in_a_room_prints_its_answer_and_fails_with_its_complaint(needs_root, program, capfd):
    program("ip", "1: lo\\n")
    Room("here", os.getpid()).ip("link")
    assert capfd.readouterr() == ("1: lo\n", "")
    program("ip", "", status=1)
    with pytest.raises(LabError, match=r"ip link: WARNING: IPv4"):
        Room("here", os.getpid()).ip("link")


def test_the_doctor_reads_a_version_from_the_answer(program):
    path = program("tool", "version 7.1\\n")
    assert probing.run(path) == "version 7.1"
    assert probing.run(program("tool", "")) == "", "a warning's number is no version"
    with pytest.raises(Unsupported, match="forwarding"):
        probing.run(program("tool", "", status=1))
