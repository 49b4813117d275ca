"""The real Docker and the real Podman run containers by labkit-runtime, and nothing is left of them."""

import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from labkit.cgroups import hierarchies
from labkit.ground import state
from labkit.lessons.beside import engine
from tests.bundles import RUNTIME, make_rootfs

pytestmark = pytest.mark.usefixtures("needs_root")


@pytest.fixture(scope="module")
def docker():
    if reason := engine.missing():
        pytest.skip(f"no real Docker here: {reason}")
    with engine.private(runtimes={"labkit": RUNTIME}, default="labkit", network=True) as made:
        yield made
        # Whatever a test left, it goes while the engine can still say what it was.
        left = made("ps", "-aq").split()
        if left:
            made("rm", "-f", *left)


def run(docker, *words, image="busybox"):
    *options, command = words
    return docker("run", "--rm", *options, image, "sh", "-c", command)


def complaint(docker, *words):
    """Return what a container says on its stderr."""
    *options, command = words
    return docker.ask("run", "--rm", *options, "busybox", "sh", "-c", command).stderr


@contextlib.contextmanager
def running(docker, *options, command="while :; do echo tick; sleep .2; done", image="busybox"):
    number = docker("run", "-d", *options, image, "sh", "-c", command).strip()
    try:
        yield number
    finally:
        docker("rm", "-f", number)


def inside(docker, *words):
    """Run a command in the engine's own network namespace."""
    pid = (docker.folder / "pid").read_text().strip()
    return subprocess.run(["nsenter", "-t", pid, "-n", *map(str, words)], capture_output=True, text=True, timeout=30)


def wait_for(look, seconds=15):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)
    return found


# ---- Docker ----


def test_it_is_labkit_that_made_the_container(docker):
    assert json.loads(docker("info", "--format", "{{json .DefaultRuntime}}")) == "labkit"
    with running(docker) as number:
        assert docker("inspect", "--format", "{{.HostConfig.Runtime}}", number).strip() == "labkit"
        states = list(Path(docker.folder, "exec").glob(f"runtime-*/moby/{number}/state.json"))
        assert json.loads(states[0].read_text())["pid"] == docker.pid(number)


def test_docker_run_prints_and_hands_on_the_status(docker):
    assert "    1 root     sh -c ps" in run(docker, "ps; true")
    done = _client(docker, "run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def _client(docker, *words, **more):
    words = [shutil.which("docker", path="/usr/bin"), "-H", f"unix://{docker.socket}", *words]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, **more)


@pytest.mark.parametrize("command, status", [("nonsense", 127), ("/etc/passwd", 126)])
def test_command_that_can_not_start_has_dockers_own_status(docker, command, status):
    done = _client(docker, "run", "--rm", "busybox", command)
    assert done.returncode == status
    assert command in done.stderr


def test_a_file_mounted_on_a_folder_is_what_docker_explains(docker, tmp_path):
    (tmp_path / "f").touch()
    ours, theirs = (
        _client(docker, "run", "--rm", "--runtime", runtime, "-v", f"{tmp_path}/f:/etc", "busybox", "true")
        for runtime in ("labkit", "runc")
    )
    assert ours.returncode == theirs.returncode
    assert all("Are you trying to mount a directory onto a file" in done.stderr for done in (ours, theirs))


def test_a_container_by_runc_is_the_same_from_inside(docker):
    # Of v1's mounts two differ: labkit's tmpfs is read-only like all that is in it, and a
    # tree without a controller (systemd's own) is not shown.
    look = """
    for f in CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp; do grep ^$f: /proc/self/status; done
    id; pwd; umask; ulimit -n; env | grep -v HOSTNAME | sort; ls /dev | sort | tr '\\n' ' '
    cut -d' ' -f5,6 /proc/self/mountinfo | sed 's/,.*//; s#^/sys/fs/cgroup r.#/sys/fs/cgroup#' | grep -v -e '^/dev/' -e /systemd | sort
    cat /proc/sys/net/ipv4/ping_group_range; head -c 1 /proc/keys | wc -c; ls /proc/self/fd | wc -l
    """
    ours, theirs = run(docker, look), run(docker, "--runtime", "runc", look)
    assert ours == theirs


def test_exec_top_logs_stats(docker):
    with running(docker, "-m", "32m") as number:
        assert docker("exec", number, "readlink", "/proc/1/ns/pid") == docker(
            "exec", number, "readlink", "/proc/self/ns/pid"
        )
        assert _client(docker, "exec", number, "sh", "-c", "exit 5").returncode == 5
        assert _client(docker, "exec", number, "nonsense").returncode in (126, 127)
        assert docker(
            "exec", "-u", "1000", "-w", "/tmp", "-e", "A=b", number, "sh", "-c", "id -u; pwd; echo $A"
        ).split() == ["1000", "/tmp", "b"]
        rows = docker("top", number).splitlines()
        assert int(rows[1].split()[1]) == docker.pid(number)
        assert "tick" in docker("logs", number)
        stats = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", number))
        assert stats["MemUsage"].endswith("/ 32MiB") and stats["PIDs"] in ("1", "2", "3")


def test_stop_kill_restart_and_what_they_say_of_the_end(docker):
    script = "trap 'exit 3' TERM; echo up; while :; do sleep .1; done"
    with running(docker, command=script) as number:

        def code():
            return docker("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", number).strip()

        wait_for(lambda: "up" in docker("logs", number))
        docker("stop", "-t", "5", number)
        assert code() == "exited 3"
        docker("start", number)
        docker("kill", number)
        wait_for(lambda: code() == "exited 137")
        docker("restart", "-t", "1", number)
        assert code() == "running 0"


def test_pause_and_update(docker):
    with running(docker, "--pids-limit", "50") as number:
        docker("pause", number)
        assert docker("inspect", "--format", "{{.State.Status}}", number).strip() == "paused"
        docker("unpause", number)
        docker("update", "--pids-limit", "60", number)
        assert _file_of(docker, number, "pids.max") == "60"


def _file_of(docker, number, name):
    """Return the text of a file of a container's cgroup, whichever version it is."""
    controller = name.partition(".")[0]
    places = dict(
        (part, path) for _, parts, path in (line.split(":", 2) for line in Path(f"/proc/{docker.pid(number)}/cgroup").read_text().splitlines())
        for part in parts.split(",")
    )  # fmt: skip
    tree = hierarchies.home(controller)
    return (tree.mount / places["" if tree.version == 2 else controller].lstrip("/") / name).read_text().strip()


def test_limits_hold(docker):
    with running(
        docker,
        "-m",
        "32m",
        "--memory-swap",
        "32m",
        "--cpus",
        "0.5",
        "--cpuset-cpus",
        "0",
        command="while :; do :; done",
    ) as number:
        v1 = hierarchies.home("memory").version == 1
        assert _file_of(docker, number, "memory.limit_in_bytes" if v1 else "memory.max") == str(32 << 20)
        used = "cpuacct.usage" if v1 else "cpu.stat"

        def seconds():
            text = _file_of(docker, number, used)
            return int(text) / 1e9 if v1 else int(re.search(r"usage_usec (\d+)", text)[1]) / 1e6

        begin, at = seconds(), time.monotonic()
        time.sleep(2)
        share = (seconds() - begin) / (time.monotonic() - at)
        assert share < 0.56, "a busy machine gives less than the quota, never more"
    # Docker's own word for it, OOMKilled, comes by an event that may be late for the end.
    assert (
        _client(
            docker, "run", "--rm", "-m", "32m", "--memory-swap", "32m", "busybox", "tail", "-c", "200m", "/dev/zero"
        ).returncode
        == 137
    )
    assert "can't fork" in complaint(docker, "--pids-limit", "5", "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait")


def test_swap_without_limit_beside_a_memory_limit(docker):
    with running(docker, "-m", "32m", "--memory-swap", "-1") as number:
        v1 = hierarchies.home("memory").version == 1
        swap = _file_of(docker, number, "memory.memsw.limit_in_bytes" if v1 else "memory.swap.max")
        assert swap == "max" or int(swap) > 1 << 50


def test_a_device_rule_for_both_types_opens_those_devices_only(docker):
    script = (
        "mknod /k c 1 11; mknod /l c 10 237; (: >> /k) && echo opened; (: < /k) || echo shut; (: < /l) || echo shut"
    )
    assert run(docker, "--device-cgroup-rule", "a 1:11 w", script).split() == ["opened", "shut", "shut"]


def test_published_port_answers(docker):
    script = "while :; do echo hello | nc -l -p 80; done"
    with running(docker, "-p", "18080:80", command=script):
        assert wait_for(lambda: inside(docker, "busybox", "nc", "-w", "2", "127.0.0.1", "18080").stdout) == "hello\n"


def test_a_second_container_shares_the_firsts_namespaces(docker):
    with running(docker, "--ipc", "shareable") as number:
        shared = [f"--{kind}=container:{number}" for kind in ("net", "pid", "ipc")]
        lines = run(
            docker, *shared, "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid"
        ).split()
        pid = docker.pid(number)
        assert lines == [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("net", "ipc", "pid")]


def test_volumes_users_capabilities_and_a_read_only_root(docker, tmp_path):
    (tmp_path / "f").write_text("from outside\n")
    assert run(docker, "-v", f"{tmp_path}:/d", "cat /d/f; echo inside > /d/g") == "from outside\n"
    assert (tmp_path / "g").read_text() == "inside\n"
    assert "Read-only" in complaint(docker, "-v", f"{tmp_path}:/d:ro", "touch /d/h")
    assert "Read-only" in complaint(docker, "--read-only", "touch /h")
    assert run(docker, "--user", "1000:7", "id -u; id -g; echo ok > /proc/self/fd/1").split() == ["1000", "7", "ok"]
    bits = run(docker, "--cap-drop", "ALL", "--cap-add", "CHOWN", "grep CapEff /proc/self/status").split()[1]
    assert int(bits, 16) == 1
    assert run(
        docker, "--tmpfs", "/t:size=1m", "--shm-size", "2m", "df -k /t /dev/shm | tr -s ' ' | cut -d' ' -f2"
    ).split() == ["1K-blocks", "1024", "2048"]
    assert run(docker, "--sysctl", "net.ipv4.ip_default_ttl=33", "--ulimit", "nofile=100:200", "--init", "--oom-score-adj", "321",
               "cat /proc/sys/net/ipv4/ip_default_ttl; ulimit -n; cat /proc/self/oom_score_adj").split() == ["33", "100", "321"]  # fmt: skip


def test_terminal_resizes_and_hands_on_keys(docker):
    import pexpect

    client = shutil.which("docker", path="/usr/bin")
    words = ["-H", f"unix://{docker.socket}", "run", "--rm", "-it", "busybox", "sh"]
    shell = pexpect.spawn(client, words, encoding="utf-8", timeout=30, dimensions=(31, 91))
    try:
        shell.expect("/ # ")
        shell.sendline("tty; sleep .5; stty size")
        shell.expect("/dev/pts/0")
        shell.expect("31 91")
        shell.setwinsize(40, 100)
        time.sleep(1)
        shell.sendline("stty size")
        shell.expect("40 100")
        shell.sendline("sleep 100; echo interrupted $?")
        time.sleep(0.5)
        shell.sendcontrol("c")
        shell.expect("/ # ")
        shell.sendline("exit 9")
        shell.expect(pexpect.EOF)
        shell.close()
        assert shell.exitstatus == 9
    finally:
        shell.close(force=True)


def test_docker_build_runs_its_instructions(docker, tmp_path):
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nRUN echo made by $(id -u) > /made && chmod 600 /made\nENV A=b\nWORKDIR /w\nRUN pwd > where; echo $A >> where\nUSER 1000\nRUN id -u > /tmp/me\n"
    )
    docker("build", "-t", "built", tmp_path)
    try:
        assert run(docker, "--user", "0", "cat /made where /tmp/me", image="built").split() == [
            "made",
            "by",
            "0",
            "/w",
            "b",
            "1000",
        ]
    finally:
        docker("rmi", "-f", "built")


def test_a_hundred_containers_leave_nothing(docker):
    def left():
        dockerd = (docker.folder / "pid").read_text().strip()
        mounts = [line.split()[4] for line in Path(f"/proc/{dockerd}/mountinfo").read_text().splitlines()]
        boxes = [
            path
            for tree in hierarchies.hierarchies()
            for path in tree.own.glob(f"{state.label()}/{docker.folder.name}/boxes/*")
            if path.is_dir()
        ]
        states = list(Path(docker.folder, "exec").glob("runtime-*/moby/*"))
        return sorted(mounts), sorted(map(str, boxes)), sorted(map(str, states)), docker("ps", "-aq").split()

    before = left()

    def one(number):
        return docker("run", "--rm", "--network", "none", "busybox", "echo", number).strip()

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(one, range(100))) == list(map(str, range(100)))
    wait_for(lambda: left() == before)


# ---- Podman ----


@pytest.fixture(scope="module")
def podman(tmp_path_factory):
    if not shutil.which("podman"):
        pytest.fail("podman is not installed: it is in vagrant/packages")
    folder = tmp_path_factory.mktemp("podman")
    made = Podman(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Podman:
    """Podman with folders of its own, in a mount namespace of its own: what it leaves on a host goes with that."""

    def __init__(self, folder, runtime=RUNTIME):
        self.folder, self.runtime = folder, folder / "runtime"
        # Podman 5 hands its own environment to `create` only.
        root = os.environ.get("LABKIT_ROOT", "")
        self.runtime.write_text(f'#!/bin/sh\nexport LABKIT_ROOT={root}\nexec {runtime} "$@"\n')
        self.runtime.chmod(0o755)
        self.parent = f"/{state.label()}-podman"

    def start(self):
        script = "set -e; mount -t tmpfs t /run; mount -t tmpfs t /dev/shm; mkdir -p /var/lib/containers; mount -t tmpfs t /var/lib/containers; echo up; exec sleep infinity"
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
        assert self.holder.stdout.readline() == "up\n"
        root = make_rootfs(self.folder / "image")
        tar = self.folder / "image.tar"
        subprocess.run(["tar", "-C", root, "-cf", tar, "."], check=True)
        self("import", tar, "busybox")

    def __call__(self, *words, check=True):
        command = [
            "nsenter", "-t", str(self.holder.pid), "-m", "podman", "--root", f"{self.folder}/root", "--runroot", "/run/p", "--tmpdir", "/run/t",
            "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--storage-driver", "vfs", "--runtime", str(self.runtime), *map(str, words),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout if check else done

    def run(self, *words, check=True):
        # Podman asks for more open files than a root without CAP_SYS_RESOURCE may have.
        limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
        return self("run", "--network", "none", "--cgroup-parent", self.parent, *limits, *words, check=check)

    def stop(self):
        self("rm", "-af", check=False)
        self.holder.kill()
        self.holder.wait()
        self.holder.stdout.close()
        for tree in hierarchies.hierarchies():
            for folder, _, _ in os.walk(f"{tree.mount}{self.parent}", topdown=False):
                os.rmdir(folder)


def test_podman_run_and_its_status(podman):
    assert "    1 root     ps" in podman.run("--rm", "busybox", "ps")
    assert podman.run("--rm", "busybox", "sh", "-c", "exit 7", check=False).returncode == 7


@pytest.mark.parametrize("command, status", [("nonsense", 127), ("/no/such", 127), ("/etc/passwd", 126), ("/etc", 126)])
def test_command_that_can_not_start_has_podmans_own_status(podman, command, status):
    # What fails as late as `start` is 126 for Podman, whatever it was.
    done = podman.run("--rm", "busybox", command, check=False)
    assert done.returncode == status
    assert command in done.stderr and " start " not in done.stderr


def test_podman_life(podman):
    podman.run(
        "-d",
        "--name",
        "one",
        "-m",
        "32m",
        "--cpus",
        "0.5",
        "busybox",
        "sh",
        "-c",
        "trap 'exit 3' TERM; while :; do echo tick; sleep .1; done",
    )
    wait_for(lambda: "tick" in podman("logs", "one"))
    assert podman("exec", "one", "id", "-u").strip() == "0"
    assert podman("exec", "--user", "1000", "one", "id", "-u").strip() == "1000"
    assert podman("exec", "one", "nonsense", check=False).returncode == 127
    assert "sleep" in podman("top", "one") or "sh -c" in podman("top", "one")
    assert podman("stats", "--no-stream", "--format", "{{.MemUsage}}", "one").strip().endswith("33.55MB")
    podman("pause", "one")
    assert podman("inspect", "--format", "{{.State.Status}}", "one").strip() == "paused"
    podman("unpause", "one")
    podman("stop", "-t", "5", "one")
    assert podman("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "one").strip() == "exited 3"
    podman("start", "one")
    podman("kill", "one")
    podman("rm", "-f", "one")


def test_podman_options(podman, tmp_path):
    assert podman.run("--rm", "--read-only", "--tmpfs", "/t", "--cap-drop", "ALL", "--user", "1000", "busybox", "sh", "-c",
                      "id -u; grep CapEff /proc/self/status; touch /t/x && echo t; touch /x 2>/dev/null || echo ro").split() == [
        "1000", "CapEff:", "0000000000000000", "t", "ro"]  # fmt: skip


def test_podman_ids_are_mapped(podman):
    for path in (podman.folder, *podman.folder.parents):
        if path.owner() == "root" and not path.stat().st_mode & 0o001 and str(path).startswith(("/tmp", "/var/tmp")):
            path.chmod(path.stat().st_mode | 0o011)
    lines = podman.run(
        "--rm",
        "--uidmap",
        "0:100000:1000",
        "--gidmap",
        "0:100000:1000",
        "busybox",
        "sh",
        "-c",
        "id -u; cat /proc/self/uid_map",
    ).split()
    assert lines == ["0", "0", "100000", "1000"]
