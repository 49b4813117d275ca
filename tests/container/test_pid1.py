"""Chapter 02's promises: numbers, signals to PID 1, reaping, the real docker top, and checks that refuse wrong work."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from timing import until

from labkit.app.cli import main
from labkit.container import launch, spawner
from labkit.container.launch import Job
from labkit.container.life import Container, run
from labkit.ground import proc
from labkit.ground.errors import LabError, NotFound
from labkit.lessons.beside import engine
from labkit.lessons.checks import pid1 as check

pytestmark = pytest.mark.usefixtures("needs_root")
TWO = ["sh", "-c", "sleep 60 & sleep 60 & wait"]


def _settle(box, count):
    until(lambda: [process.name for process in box.top()].count("sleep") >= count, 30, f"{count} that sleep")


def test_init_is_one_and_leaves_no_zombie_among_a_thousand_orphans():
    script = "for n in $(seq 1000); do (true &); done; echo done; exec sleep 60"
    with Container("busybox", ["sh", "-c", script], init=True).start() as box:
        until(box.logs, 30, "its first words")
        time.sleep(0.1)
        numbers = [process.nspid[-1] for process in box.top()]
        assert numbers == [1, 2] and check.zombies(box.pid) == []


def test_without_init_orphans_stay_zombies():
    with Container("busybox", ["sleep", "60"]).start() as box:
        box.exec(["sh", "-c", "for n in $(seq 30); do (true &); done"])
        time.sleep(0.1)
        assert len(check.zombies(box.pid)) == 30


def test_init_hands_signals_on_and_passes_the_exit_status():
    script = "trap 'exit 7' TERM; echo ready; while true; do sleep 0.05; done"
    with Container("busybox", ["sh", "-c", script], init=True).start() as box:
        until(box.logs, 30, "its first words")
        begin = time.monotonic()
        assert box.stop(timeout=5) == 7
        assert time.monotonic() - begin < 2


def test_what_whoever_starts_it_ignores_is_not_ignored_in_it():
    """A job in a shell's background ignores SIGINT, and so would everything in its containers, for ever."""
    ignore = "trap '' INT QUIT HUP TERM USR1; exec"
    command = f"{sys.executable} -m labkit run --rm --network none busybox grep SigIgn /proc/self/status"
    done = subprocess.run(["sh", "-c", f"{ignore} {command}"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["SigIgn:", "0" * 16]
    helper = spawner.Helper()
    try:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        with open(os.devnull) as null:
            job = Job(launch.inside(("grep", "SigIgn", "/proc/self/status"), (), "/", "0", (), None, ()))
            spawned = helper.spawn(job, (null.fileno(), write_end, write_end))
            os.close(write_end)
            assert helper.status(spawned) == 0
            os.close(spawned.pidfd)
        with open(read_end) as output:
            assert output.read().split() == ["SigIgn:", "0" * 16]
    finally:
        helper.close()


def test_init_works_with_a_sealed_root_and_for_an_unknown_command():
    assert run("busybox", ["true"], init=True, read_only=True, show=False).code == 0
    assert run("busybox", ["no-such-thing"], init=True, show=False).code == 127


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "KILL", "STOP"])
def test_pid_1_is_not_ended_or_stopped_from_inside(name):
    with Container("busybox", ["sleep", "60"]).start() as box:
        box.exec(["kill", f"-{name}", "1"])
        assert box.status == "running" and proc.process(box.pid).state[0] == "S"


def test_from_outside_only_kill_ends_a_pid_1_without_a_handler():
    with Container("busybox", ["sleep", "60"]).start() as box:
        box.kill(signal.SIGTERM)
        assert box.wait(timeout=0.2) is None
        assert box.stop(timeout=0.1) == 137


def test_when_pid_1_ends_all_in_its_namespace_are_killed():
    # A pipe that nobody writes to holds it: its stdin is empty, and ends at once.
    script = "mkfifo /pipe; setsid sleep 60 & sleep 60 & read line </pipe; exit 5"
    with Container("busybox", ["sh", "-c", script]).start() as box:
        _settle(box, 2)
        pids = [process.pid for process in box.top()]
        assert len(pids) == 3 and box.wait(timeout=0.1) is None
        box.exec(["sh", "-c", "echo go >/pipe"])
        assert box.wait(timeout=30) == 5
        for pid in pids:
            with contextlib.suppress(NotFound):
                assert proc.process(pid).state[0] in "ZX"


# ---- the real docker top ----


def _shape(rows):
    """Return [(command, which row is its parent)] of rows (pid, ppid, command): what can be compared."""
    order = {pid: number for number, (pid, _, _) in enumerate(rows)}
    return [(command, order.get(ppid)) for _, ppid, command in rows]


def test_lab_top_shows_what_docker_top_shows(capsys):
    if reason := engine.missing():
        pytest.skip(f"no real Docker to compare with: {reason}")
    with Container("busybox", TWO).start() as box:
        _settle(box, 2)
        assert main(["top", box.id]) == 0
        head, *lines = capsys.readouterr().out.splitlines()
        assert head.split() == ["UID", "PID", "PPID", "INSIDE", "TIME", "CMD"]
        ours = [line.split(maxsplit=5) for line in lines]
    with engine.private() as docker:
        docker("run", "-d", "--name", "theirs", "busybox", *TWO)
        time.sleep(0.3)
        theirs = [line.split(maxsplit=7) for line in docker("top", "theirs").splitlines()[1:]]
        # Docker's PID column, too, is the host's: the kernel says the same of it.
        assert int(theirs[0][1]) == docker.pid("theirs")
        assert [proc.process(int(row[1])).nspid[-1] for row in theirs][0] == 1
    assert _shape([(row[1], row[2], row[5]) for row in ours]) == _shape([(row[1], row[2], row[7]) for row in theirs])


def test_docker_and_labkit_show_the_posts_picture():
    """`sh` is 1 in both. `ps` comes next in ours; runc's threads have used up some numbers in Docker's."""
    ours = run("busybox", ["sh", "-c", "ps -o pid,comm; true"], show=False).output
    assert [line.split() for line in ours.splitlines()[1:]] == [["1", "sh"], ["2", "ps"]]
    if reason := engine.missing():
        pytest.skip(f"no real Docker to compare with: {reason}")
    with engine.private() as docker:
        theirs = docker("run", "--rm", "busybox", "sh", "-c", "ps -o pid,comm; true")
    (_, first), (number, second) = [line.split() for line in theirs.splitlines()[1:]]
    assert (first, second) == ("sh", "ps") and 3 <= int(number) <= 15


# ---- the checks ----


@pytest.fixture
def box():
    with Container("busybox", TWO).start() as box:
        _settle(box, 2)
        yield box


def test_check_outside_number_takes_only_the_right_one(box):
    by_inside = {process.nspid[-1]: process.pid for process in box.top()}
    assert check.outside_number(box, by_inside[3], inside=3)
    for wrong in (..., 3, by_inside[1], by_inside[2], 1):
        assert not check.outside_number(box, wrong, inside=3)


def test_a_second_failure_gets_a_bigger_hint(box):
    assert check.outside_number(box, next(p.pid for p in box.top() if p.nspid[-1] == 3))  # counts from here
    first, second = (check.outside_number(box, 1) for _ in range(2))
    assert first.hint != second.hint and "not yet" in repr(first) and "right" in repr(first)


@pytest.mark.parametrize(
    "script",
    ["sleep 60; true", "trap '' TERM; sleep 60; true", "trap 'exit 0' TERM; sleep 60; true",
     "trap 'exit 3' TERM; while true; do sleep 0.1; done", "trap 'echo no' TERM; while true; do sleep 0.1; done"],
)  # fmt: skip
def test_check_ends_when_asked_refuses(script):
    with Container("busybox", ["sh", "-c", script]).start() as box:
        assert not check.ends_when_asked(box, seconds=1)


def test_check_ends_when_asked_accepts():
    with Container("busybox", ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.1; done"]).start() as box:
        assert check.ends_when_asked(box)


@pytest.mark.parametrize("command", [["sleep", "60"], ["sh", "-c", "while true; do read x </dev/zero; done"]])
def test_check_reaps_orphans_refuses(command):
    with Container("busybox", command).start() as box:
        assert not check.reaps_orphans(box, seconds=0.5)


def test_check_reaps_orphans_accepts_more_than_one_way():
    for command, words in ((["sleep", "60"], {"init": True}), (["sh", "-c", "sleep 60 & wait"], {})):
        with Container("busybox", command, **words).start() as box:
            assert check.reaps_orphans(box)


def test_checks_of_a_container_that_has_ended_say_so():
    with Container("busybox", ["true"]).start() as box:
        box.wait()
        for result in (check.outside_number(box, 1), check.ends_when_asked(box), check.reaps_orphans(box)):
            assert not result and "runs" in result.missing


def test_an_engine_leaves_nothing_and_says_what_docker_says():
    if reason := engine.missing():
        pytest.skip(f"no real Docker to compare with: {reason}")
    with engine.private() as docker, pytest.raises(LabError, match="No such image|not found|denied|Unable to find"):
        docker("run", "no-such-image:none")
