"""`lab run` and its siblings as people really type them, and what a pipeline, a script or a full disk does to them."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from timing import until

from labkit.container import records
from labkit.ground import ledger, state
from labkit.network import firewall

pytestmark = [pytest.mark.usefixtures("needs_root", "own_root")]
LAB = [sys.executable, "-m", "labkit"]


def lab(*words, **more):
    """Call the command; return what subprocess.run does, its output as bytes."""
    return subprocess.run([*LAB, *words], **{"capture_output": True, "timeout": 60} | more)


@pytest.fixture(autouse=True)
def nothing_left(own_root):
    yield
    _, _, failed = ledger.clean(everything=True)  # as `lab clean --all`
    assert not failed
    assert ledger.entries() == []


def shell(script, **more):
    """Call a shell script in which `lab` is the command."""
    words = f'lab() {{ "{sys.executable}" -m labkit "$@"; }}\n'
    return subprocess.run(["sh", "-c", words + script], capture_output=True, text=True, timeout=60, **more)


# ---- pipes and signals ----


@pytest.mark.parametrize("how", ["run --rm -i --network none busybox", "exec -i web"])
def test_much_in_and_three_times_as_much_out_goes_through(how):
    lab("run", "-d", "--name", "web", "--network", "none", "busybox", "sleep", "60")
    done = lab(*how.split(), "od", "-An", "-v", "-tx1", input=bytes(3_000_000))
    assert len(done.stdout) == 9_187_500 and done.stdout.count(b"00") == 3_000_000


def test_a_signal_reaches_the_container_whatever_its_pipes_do():
    script = "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done"
    command = [*LAB, "run", "--rm", "-i", "--network", "none", "busybox", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        os.set_blocking(process.stdin.fileno(), False)
        with contextlib.suppress(BlockingIOError):  # nobody reads it, inside either
            while True:
                os.write(process.stdin.fileno(), bytes(65536))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 5
        process.stdin.close()


def test_who_writes_for_nobody_learns_it():
    assert shell("lab run --rm --network none busybox yes | head -1").stdout == "y\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_in_the_middle_of_a_start_leaves_no_name_taken(number, monkeypatch, tmp_path):
    # A start that waits: somebody holds the store, and it has its name already.
    with state.lock("images"):
        process = subprocess.Popen([*LAB, "run", "--name", "web", "--network", "none", "busybox", "true"])
        until(lambda: waits_for_a_lock(process.pid))
        process.send_signal(number)
        until(lambda: process.poll() is not None or not pending(process.pid))
        process.send_signal(number)  # the second one is for who waits for a lock
        assert process.wait(30) in (128 + number, -number)
    assert lab("run", "--rm", "--name", "web", "--network", "none", "busybox", "echo", "again").stdout == b"again\n"


def waits_for_a_lock(pid):
    return re.search(rf"-> FLOCK .* {pid} ", Path("/proc/locks").read_text())


def pending(pid):
    """Tell whether a signal is still on its way to a process."""
    return int(re.search(r"ShdPnd:\s(\w+)", Path(f"/proc/{pid}/status").read_text())[1], 16)


def test_a_name_whose_keeper_was_killed_in_the_middle_of_a_start_is_free():
    with ledger.group("0" * 12):
        entry = ledger.write("folder", path=str(records.folder("0" * 12)))
    records.claim_id("1" * 12)
    with ledger.group("1" * 12):
        records.claim_name("web", "1" * 12)
    for one in ledger.entries("1" * 12):  # as if this process had died just now
        with open(one.file) as file:
            told = json.load(file)
        state.write_json(one.file, told | {"owner": [1, 0, "another boot"]})
    done = lab("run", "--rm", "--name", "web", "--network", "none", "busybox", "echo", "mine")
    assert done.stdout == b"mine\n", done
    ledger.undo(entry)


def test_detached_with_i_its_input_stays_open():
    lab("run", "-d", "-i", "--name", "with", "--network", "none", "busybox", "cat")
    lab("run", "-d", "--name", "without", "--network", "none", "busybox", "cat")
    lab("wait", "without")
    names = [line.split()[-1] for line in lab("ps").stdout.decode().splitlines()[1:]]
    assert names == ["with"]


# ---- stdio ----


@pytest.mark.parametrize("words", [["-u", "1000"], ["--userns", "100000:65536"], ["-u", "0"]])
def test_dev_stdout_is_opened_by_whoever_runs(words):
    script = "echo out >/dev/stdout; echo err >/dev/stderr"
    done = lab("run", "--rm", "--network", "none", *words, "busybox", "sh", "-c", script)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    lab("run", "-d", "--name", "web", "--network", "none", *words, "busybox", "sleep", "60")
    done = lab("exec", "web", "sh", "-c", script)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_what_is_written_to_dev_stdout_does_not_take_away_what_was_there():
    lab("run", "-d", "--name", "web", "--network", "none", "busybox", "sh", "-c", "echo 1; echo 2 >/dev/stdout; echo 3")
    lab("wait", "web")
    assert lab("logs", "web").stdout == b"1\n2\n3\n"


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_fd_is_as_dev_null(closed):
    done = shell(f"lab run --name web --network none busybox sh -c 'echo hi; exit 3' {closed}")
    assert done.returncode == 3 and done.stderr == ""
    assert done.stdout == ("" if ">&- " in closed + " " and closed != "2>&-" else "hi\n")
    assert lab("logs", "web").stdout == b"hi\n"


def test_output_that_finds_no_room_is_told_in_a_sentence_and_hides_no_status():
    for script, status in (("echo hi", 125), ("echo hi; exit 3", 3)):
        done = shell(f"lab run --rm --network none busybox sh -c '{script}' >/dev/full")
        assert done.returncode == status and "ENOSPC" in done.stderr and "Traceback" not in done.stderr
    done = shell("lab ps >/dev/full")
    assert done.returncode == 125 and "ENOSPC" in done.stderr and "Traceback" not in done.stderr
    assert shell("lab no-such-command 2>/dev/full").returncode == 125


def test_a_terminal_has_its_size_from_the_first_moment():
    script = 'stty rows 33 cols 77; exec "$0" -m labkit run --rm -it --network none busybox stty size'
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp("sh", ["sh", "-c", script, sys.executable])
    seen = b""
    with contextlib.suppress(OSError):
        while select.select([fd], [], [], 30)[0]:
            seen += os.read(fd, 4096)
    os.waitpid(pid, 0)
    os.close(fd)
    assert seen.split() == [b"33", b"77"]


# ---- names that move, several names ----


def test_a_container_keeps_what_it_was_started_with(tmp_path):
    def build(text):
        (tmp_path / "Dockerfile").write_text("FROM busybox\n" + text)
        assert lab("build", "-t", "it", str(tmp_path)).returncode == 0

    build("ENV A=old\nUSER 1000\nWORKDIR /tmp\nSTOPSIGNAL SIGINT\n")
    script = "trap 'exit 7' INT; while :; do sleep 0.1; done"
    lab("run", "-d", "--name", "web", "--network", "none", "it", "sh", "-c", script)
    build("ENV A=new\n")
    asked = ("exec", "web", "sh", "-c", "echo $A $(id -u) $(pwd)")
    assert lab(*asked).stdout == b"old 1000 /tmp\n"
    lab("rmi", "-f", "it")
    assert lab(*asked).stdout == b"old 1000 /tmp\n"
    lab("stop", "web")
    assert lab("wait", "web").stdout == b"7\n"  # it was asked by the image's own signal


def test_wait_and_stop_know_how_a_container_ended_that_is_gone_at_once():
    for _ in range(3):
        lab("run", "-d", "--rm", "--name", "web", "--network", "none", "busybox", "sh", "-c", "sleep 2; exit 4")
        assert lab("wait", "web").stdout == b"4\n"
        lab("run", "-d", "--rm", "--name", "web", "--network", "none", "busybox", "sleep", "60")
        done = lab("stop", "-t", "0", "web")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"web\n", b"")


@pytest.mark.parametrize("words", ["rm -f", "stop -t 0", "kill", "wait", "pause", "unpause"])
def test_of_several_names_one_that_is_not_there_keeps_no_other_back(words):
    lab("run", "-d", "--name", "web", "--network", "none", "busybox", "sh", "-c", "sleep 1; sleep 60")
    if words == "wait":
        lab("kill", "web")
    if words == "unpause":
        lab("pause", "web")
    before = lab("ps", "-a").stdout
    done = lab(*words.split(), "nobody", "web", "nobody2")
    assert done.returncode == (0 if words == "rm -f" else 1)
    assert done.stderr.count(b"no container") == 2
    after = lab("ps", "-a").stdout
    assert words == "wait" or after.split()[-3:] != before.split()[-3:] or after.count(b"\n") != before.count(b"\n")
    if words in ("pause", "unpause"):  # what is so already is told, as docker does
        again = lab(words, "web")
        assert done.stdout == b"web\n" and (again.returncode, again.stdout) == (1, b"") and again.stderr


# ---- what is printed ----


def test_logs_are_what_was_printed_and_stderr_is_apart():
    script = r"printf 'a\rb\r\n\377'; sleep 0.2; echo oops >&2"
    for words in ([], ["-d"]):
        name = "web" + "".join(words)
        lab("run", *words, "--name", name, "--network", "none", "busybox", "sh", "-c", script)
        lab("wait", name)
        done = lab("logs", name)
        assert (done.stdout, done.stderr) == (b"a\rb\r\n\xff", b"oops\n")


def test_logs_follow_until_the_end():
    lab("run", "-d", "--name", "web", "--network", "none", "busybox", "sh", "-c", "echo 1; sleep 1; echo 2")
    assert lab("logs", "-f", "web").stdout == b"1\n2\n"


def test_what_a_container_is_called_does_not_steer_a_terminal():
    lab("run", "-d", "--name", "web", "--network", "none", "busybox", "sh", "-c", "\x1b[2J\n\xff sleep 60 || sleep 60")
    for done in (lab("ps"), lab("top", "web"), lab("run", "\x1b[2J"), lab("\x1b[2J"), lab("exec", "web", "\x1b[2J")):
        assert b"\x1b" not in done.stdout and b"\x1b" not in done.stderr and b"Traceback" not in done.stderr
    assert lab("ps").stdout.count(b"\n") == 2


def test_a_mistake_of_ours_is_a_sentence_too(monkeypatch, capsys):
    from labkit.app import cli, commands

    monkeypatch.setitem(commands.COMMANDS, "ps", (lambda argv: 1 // 0, ""))
    assert cli.main(["ps"]) == 125
    assert "ZeroDivisionError" in capsys.readouterr().err


# ---- words and numbers ----


@pytest.mark.parametrize(
    "words, said",
    [
        (["-v", "a:/x", "-v", "b:/x"], "two volumes on /x"),
        (["-v", "/tmp:/x:bogus"], "bogus"),
        (["--mem", "64m"], "--mem"),
        (["--privileged"], "--privileged"),
        (["-p", "80:８０"], "can't be read"),
        (["-w", "tmp"], "absolute"),
        (["--hostname", "x" * 65], "host name"),
    ],
)
def test_what_has_no_effect_is_refused_by_name(words, said):
    done = lab("run", "--rm", "--network", "bridge", *words, "busybox", "true")
    assert done.returncode == 125 and said in done.stderr.decode()


@pytest.mark.parametrize(
    "words, command, printed",
    [
        (["-h", "my_host"], "hostname", "my_host"),
        (["--name", "", "--hostname", "", "--workdir", ""], "pwd", "/"),
        (["-u", ":1000"], "id -u; id -g", "0\n1000"),
        (["--cpus", "0"], "echo up", "up"),
        (["-v", "./data:/x:z"], "cat /x/file", "in data"),
        (["--read-only", "--network", "host"], "hostname", os.uname().nodename),
        (["-e", "PATH", "-e", "NOT_SET"], "echo ${NOT_SET-unset}", "unset"),
        (["-u", "1000"], "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ],
)
def test_words_mean_what_they_mean_to_docker(words, command, printed, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("in data\n")
    network = [] if "--network" in words else ["--network", "none"]
    done = lab(
        "run", "--rm", *network, *words, "busybox", "/bin/sh", "-c", command, cwd=tmp_path, env=_found_from_anywhere()
    )
    assert done.stdout.decode() == printed + "\n", done


def _found_from_anywhere():
    return os.environ | {"PYTHONPATH": str(state.REPO)}


def test_a_volume_with_nocopy_stays_empty():
    assert lab("run", "--rm", "--network", "none", "-v", "v:/etc:nocopy", "busybox", "ls", "/etc").stdout == (
        b"hostname\nhosts\nresolv.conf\n"  # what the lab binds there itself
    )


def test_stop_takes_docker_s_times_and_refuses_what_is_none():
    script = "trap 'exit 3' TERM; while :; do sleep 0.1; done"
    lab("run", "-d", "--name", "web", "--network", "none", "busybox", "sh", "-c", script)
    for odd in ("nan", "inf", "x", "1e3", "-2"):
        done = lab("stop", "-t", odd, "web")
        assert done.returncode == 125 and b"Traceback" not in done.stderr
    assert lab("stop", "-t", "-1", "web").returncode == 0 and lab("wait", "web").stdout == b"3\n"


def test_kill_knows_real_time_signals_and_top_a_paused_container():
    lab("run", "-d", "--name", "web", "--network", "none", "busybox", "sleep", "60")
    assert lab("kill", "-s", "SIGRTMIN+3", "web").returncode == 0
    assert lab("kill", "-s", "RTMAX+1", "web").returncode == 125
    lab("pause", "web")
    assert b"sleep 60" in lab("top", "web").stdout


@pytest.mark.requires("bridge", "veth", "nftables NAT")
def test_a_published_port_answers_from_its_own_network_and_from_another():
    port = firewall.free_port()
    serve = "echo ok >/tmp/i; httpd -f -p 80 -h /tmp"
    lab("run", "-d", "--name", "web", "--network", "one", "-p", f"0.0.0.0:{port}:80", "busybox", "sh", "-c", serve)
    gateway = lab("exec", "web", "sh", "-c", "ip route | awk '/default/{print $3}'").stdout.decode().strip()
    # By nc: Debian's static busybox crashes in wget.
    ask = ("sh", "-c", f"sleep 1; printf 'GET /i HTTP/1.0\\r\\n\\r\\n' | timeout 5 nc {gateway} {port}")
    assert lab("exec", "web", *ask).stdout.endswith(b"\r\n\r\nok\n")
    for network in ("one", "two"):
        assert lab("run", "--rm", "--network", network, "busybox", *ask).stdout.endswith(b"\r\n\r\nok\n"), network


def test_a_full_disk_changes_no_exit_status(tmp_path):
    script = f"""
    mount -t tmpfs -o size=24m none {tmp_path} && export LABKIT_ROOT={tmp_path}/root && lab images >/dev/null
    lab run -d --name away --network none busybox sh -c 'sleep 4; exit 6' >/dev/null
    (sleep 1; head -c 100m /dev/zero >{tmp_path}/fill 2>/dev/null) &
    lab run --name web --network none busybox sh -c 'sleep 3; echo hi; exit 5'; echo $?
    lab wait away web
    rm {tmp_path}/fill; lab clean --all >/dev/null; umount {tmp_path}
    """
    words = f'lab() {{ "{sys.executable}" -m labkit "$@"; }}\n'
    done = subprocess.run(["unshare", "-m", "sh", "-c", words + script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "hi\n5\n6\n5\n" and "ENOSPC" in done.stderr and "Traceback" not in done.stderr
