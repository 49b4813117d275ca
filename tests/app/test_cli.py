"""The `lab` command as a person uses it: words, statuses, terminals, signals."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import hosts
import pytest
from timing import late_by

from labkit.cgroups import cgroup
from labkit.ground import ledger, proc, state
from labkit.lessons.watch.measuring import ahead, cpu_share

pytestmark = pytest.mark.usefixtures("needs_root")
LAB = [sys.executable, "-m", "labkit"]


def lab(*words, stdin=None, **more):
    return subprocess.run([*LAB, *words], capture_output=True, text=True, input=stdin, timeout=60, **more)


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    _, _, failed = ledger.clean(everything=True)  # as `lab clean --all`
    assert not failed
    deadline = time.monotonic() + 30
    # The keeper of a container that is being removed may be at it still.
    while ledger.entries() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ledger.entries() == []


def test_run_shows_sh_as_one_and_top_shows_the_same_process_on_the_host():
    done = lab("run", "--rm", "busybox", "sh", "-c", "ps -ef")
    assert re.search(r"^ +1 root .*sh -c ps -ef$", done.stdout, re.M), done
    number = lab("run", "-d", "--name", "web", "busybox", "sleep", "60").stdout.strip()
    head, row = lab("top", "web").stdout.splitlines()
    fields = dict(zip(head.split(), row.split(None, 5), strict=True))
    assert fields["INSIDE"] == "1" and fields["CMD"] == "sleep 60"
    assert proc.cmdline(int(fields["PID"])) == ["sleep", "60"]
    assert number in lab("ps", "-q").stdout


def test_what_vagrant_lab_starts_without_packages_says_all_that_it_has_to_say():
    words = [sys.executable, "-P", "-S", str(state.REPO / "labkit" / "__main__.py"), "ps"]
    env = os.environ | {"PYTHONUNBUFFERED": ""}
    assert subprocess.run(words, capture_output=True, text=True, env=env).stdout.startswith("CONTAINER ID")
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    assert done.returncode == 125 and "ENOSPC" in done.stderr


@pytest.mark.parametrize(
    "words, status, says",
    [
        (["run", "no-such-image"], 125, "no image"),
        (["run", "--memory", "1", "busybox", "true"], 125, "minimum"),
        (["run", "--memory", "banana", "busybox", "true"], 125, "banana"),
        (["run", "--memory", "-5", "busybox", "true"], 125, "-5"),
        (["run", "--cpus", "-1", "busybox", "true"], 125, "range of CPUs"),
        (["run", "--cpus", "many", "busybox", "true"], 125, "many"),
        (["run", "--pids-limit", "x", "busybox", "true"], 125, "pids"),
        (["run", "busybox", "no-such-command"], 127, "no-such-command"),
        (["run", "busybox", "/etc/passwd"], 126, "EACCES"),
        (["run", "-e", "PATH=/:/bin", "busybox", "etc"], 127, "PATH"),
        (["run", "busybox", ""], 127, "PATH"),
        (["run", "--name", "a/b", "busybox", "true"], 125, "a/b"),
        (["run", "-v", "/no/such:/x", "busybox", "true"], 125, "/no/such"),
        (["run", "--no-such-flag", "busybox", "true"], 125, "no-such-flag"),
        (["run"], 125, "image"),
        (["run", "../../etc/passwd", "true"], 125, ""),
        (["frobnicate"], 125, "no command"),
        (["stop", "nobody"], 1, "no container"),
        (["exec", "nobody", "true"], 125, "no container"),
        (["logs", "../x"], 125, "can't be used"),
        (["run", "-it", "busybox", "true"], 125, "not a TTY"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_right_status_and_changes_nothing(words, status, says):
    lab("images")
    with hosts.unchanged():
        done = lab(*words)
    assert done.returncode == status, done
    assert says in done.stderr and "Traceback" not in done.stderr
    assert ledger.entries() == []
    assert os.listdir(state.run_dir("containers")) == []


def test_a_name_already_taken_is_refused_and_the_holder_lives_on():
    lab("run", "-d", "--name", "web", "busybox", "sleep", "60")
    done = lab("run", "--name", "web", "busybox", "true")
    assert done.returncode == 125 and "taken" in done.stderr
    assert "running" in lab("ps").stdout


def test_statuses_are_the_commands_own():
    assert lab("run", "--rm", "busybox", "sh", "-c", "exit 42").returncode == 42
    assert lab("run", "--rm", "busybox", "sh", "-c", "sh -c 'kill -KILL $$'; exit $?").returncode == 137
    over = lab("run", "--rm", "--memory", "32m", "busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
    assert over.returncode == 137


def test_output_and_errors_stay_apart_and_input_comes_in_with_i():
    done = lab("run", "--rm", "-i", "busybox", "sh", "-c", "cat; echo oops >&2", stdin="hello\n" * 20000)
    assert (done.stdout, done.stderr) == ("hello\n" * 20000, "oops\n")
    assert lab("run", "--rm", "busybox", "cat", stdin="not for it").stdout == ""


def test_a_pipe_that_closes_early_is_no_error():
    command = " ".join(LAB) + " run --rm busybox sh -c 'yes | head -100000' | head -1"
    assert subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60).stdout == "y\n"


def test_a_spinner_at_half_a_cpu_gets_half_a_cpu():
    number = lab("run", "-d", "--cpus", "0.5", "busybox", "sh", "-c", "while :; do :; done").stdout.strip()
    group = cgroup.Cgroup.open(number)
    # The best of five: a busy machine can give it less, nothing can give it more.
    with ahead():
        share = min((cpu_share(group) for _ in range(5)), key=lambda got: abs(got - 0.5))
        least = 0.45 if share >= 0.45 else 0.45 * (1 - min(0.5, late_by(0.1)))
    assert least <= share <= 0.55
    assert group.stats().nr_throttled > 0


def test_a_detached_container_is_listed_entered_stopped_and_removed():
    script = "echo up; trap 'echo bye; exit 0' TERM; while :; do sleep 0.1; done"
    lab("run", "-d", "--name", "web", "-e", "A=1", "busybox", "sh", "-c", script)
    assert lab("exec", "web", "sh", "-c", "echo $A; exit 3").returncode == 3
    assert lab("exec", "-i", "web", "cat", stdin="in\n").stdout == "in\n"
    assert lab("rm", "web").returncode == 1
    assert lab("stop", "web").returncode == 0
    assert lab("logs", "web").stdout == "up\nbye\n"
    assert "exited (0)" in lab("ps", "-a").stdout and "web" not in lab("ps").stdout
    assert lab("rm", "web").returncode == 0
    assert lab("logs", "web").returncode == 125


def test_the_keeper_holds_nothing_of_the_shell_that_called_it():
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    lab("run", "-d", "busybox", "sleep", "60", close_fds=True)
    os.close(write_end)
    assert select.select([read_end], [], [], 30)[0], "the pipe is still open somewhere"
    os.close(read_end)


def test_kill_9_of_the_keeper_then_clean_leaves_nothing():
    with hosts.unchanged():
        number = lab("run", "-d", "busybox", "sleep", "60").stdout.strip()
        record = state.read_json(state.run_dir("containers") / number / "state.json")
        os.kill(record["keeper"][0], signal.SIGKILL)
        deadline = time.monotonic() + 30
        while proc.is_running(record["pid"], record["start_ticks"]) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not proc.is_running(record["pid"], record["start_ticks"])
        assert "dead" in lab("ps", "-a").stdout
        assert "gave back" in lab("clean").stdout


def test_clean_keeps_what_lives_and_all_takes_it():
    with hosts.unchanged():
        lab("run", "-d", "busybox", "sleep", "60")
        assert "kept" in lab("clean").stdout and "running" in lab("ps").stdout
        lab("clean", "--all")
        assert lab("ps", "-aq").stdout == ""


# ---- terminals ----


class Terminal:
    """A person at a terminal: types, and reads what it shows."""

    def __init__(self, *words, rows=24, columns=80):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(LAB[0], [*LAB, *words])
        self.resize(rows, columns)
        self.seen = ""

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.fd, text.encode())

    def wait_for(self, text, seconds=30):
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.seen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.fd, 65536).decode()
        before, _, self.seen = self.seen.partition(text)
        return before

    def status(self):
        with contextlib.suppress(OSError):
            while select.select([self.fd], [], [], 30)[0] and os.read(self.fd, 65536):
                pass
        os.close(self.fd)  # which ends what has not ended: it has lost its terminal
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_with_it_there_is_a_real_terminal_with_a_size_that_follows():
    screen = Terminal("run", "--rm", "-it", "busybox", "sh", rows=33, columns=101)
    screen.wait_for("# ")
    screen.type("stty size; tty; readlink /proc/self/fd/0\n")
    screen.wait_for("\r\n33 101\r\n/dev/pts/0\r\n/dev/pts/0\r\n")
    screen.resize(10, 40)
    screen.type("sleep 0.3; stty size\n")
    screen.wait_for("\r\n10 40\r\n")
    screen.type("exit 5\n")
    assert screen.status() == 5


def test_ctrl_c_reaches_what_runs_in_the_terminal_and_not_the_shell():
    screen = Terminal("run", "--rm", "-it", "busybox", "sh")
    screen.wait_for("# ")
    screen.type("echo now; sleep 60; echo status=$?\n")
    screen.wait_for("\r\nnow\r\n")
    time.sleep(0.5)
    screen.type("\x03")
    screen.wait_for("# ")
    screen.type("echo still here\n")
    screen.wait_for("\r\nstill here\r\n")
    screen.wait_for("# ")  # before it, the shell has the terminal in another mode, and would miss it
    screen.type("\x04")
    assert screen.status() == 0


def test_ones_own_terminal_is_as_before_afterwards():
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    subprocess.run([*LAB, "run", "--rm", "-it", "busybox", "stty"], stdin=slave, stdout=slave, stderr=slave, timeout=60)
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_exec_it_gives_a_second_terminal():
    lab("run", "-d", "--name", "web", "busybox", "sleep", "60")
    screen = Terminal("exec", "-it", "web", "sh", rows=20, columns=50)
    screen.wait_for("# ")
    screen.type("stty size; ps\n")
    screen.wait_for("\r\n20 50\r\n")
    screen.wait_for("1 root     sleep 60")
    screen.type("exit 4\n")
    assert screen.status() == 4


def test_a_signal_to_lab_run_goes_on_to_the_container():
    script = "trap 'echo got it; exit 9' TERM; echo up; while :; do sleep 0.1; done"
    process = subprocess.Popen([*LAB, "run", "--rm", "busybox", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "got it\n" and process.returncode == 9


def test_the_third_ctrl_c_ends_a_container_that_ignores_them():
    process = subprocess.Popen(
        [*LAB, "run", "--rm", "busybox", "sh", "-c", "trap '' INT; echo up; sleep 60; true"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert process.wait(timeout=30) == 137
    process.stdout.close()
