"""A container's life, from Python: what it isolates is in test_isolation, what it limits in test_cgroups."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import hosts
import pytest
from timing import until

from labkit.container import life, spawner
from labkit.container.channel import Child
from labkit.container.life import Container, run
from labkit.container.spec import Spec
from labkit.ground import ledger, proc, state
from labkit.ground.child import in_child
from labkit.ground.errors import BadValue, CommandError, InUse, KernelError, LabError, NotFound
from labkit.isolation import users

pytestmark = pytest.mark.usefixtures("needs_root")


def test_sh_is_one_inside_and_another_number_outside():
    with Container("busybox", ["sh", "-c", "echo $$; sleep 60; true"]).start() as box:
        until(box.logs, 30, "its first words")
        assert box.logs() == "1\n"
        first = min(box.top(), key=lambda process: process.nspid[-1])
        assert first.nspid == (box.pid, 1) and first.name == "sh"


def test_it_has_six_namespaces_of_its_own_and_shares_the_rest():
    with Container("busybox", "sleep 60").start() as box:
        ours, its = proc.namespaces(), proc.namespaces(box.pid)
        assert {kind for kind in ours if ours[kind] != its[kind]} == {"mnt", "uts", "ipc", "pid", "net", "cgroup"}


def test_the_old_root_is_gone():
    with Container("busybox", "sleep 60").start() as box:
        mounts = proc.mounts(box.pid)
        assert mounts[0].target == "/" and mounts[0].type == "overlay"
        host = {mount.device for mount in proc.mounts() if mount.target == "/"}
        # /etc/hosts and its like are files bound from the host's disk; no folder of it may be there.
        assert [m.target for m in mounts if m.device in host] == ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]


def test_the_same_name_twice_has_one_winner():
    results = []

    def attempt():
        try:
            results.append(Container("busybox", "sleep 60", name="only").start())
        except InUse as error:
            results.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [result for result in results if isinstance(result, Container)]
    assert len(winners) == 1 and len(results) == 6
    winners[0].delete()


@pytest.mark.parametrize(
    "words, kind",
    [
        ({"command": ["no-such-command"]}, CommandError),
        ({"command": ["/etc/passwd"]}, CommandError),
        ({"command": ["sh"], "user": "nobody-here"}, NotFound),
        ({"command": ["sh"], "workdir": "/etc/passwd"}, LabError),
        ({"command": [], "image": "no-such-image"}, NotFound),
    ],
)
def test_a_start_that_fails_leaves_nothing(words, kind):
    spawner.current()  # who clones stays
    with hosts.unchanged(), pytest.raises(kind):
        Container(**words).start()
    assert ledger.entries() == []
    assert os.listdir(state.run_dir("containers")) == []


@pytest.mark.parametrize(
    "words",
    [
        {"volumes": ["/no/such/folder:/x"]},
        {"volumes": ["/tmp:relative"]},
        {"volumes": ["/tmp:/"]},
        {"volumes": ["/tmp:/proc/x"]},
        {"volumes": ["/tmp:/a/../../x"]},
        {"volumes": ["/tmp:/x:rx"]},
        {"volumes": ["tmp"]},
        {"volumes": ["/tmp:/x:ro,rw"]},
        {"volumes": ["/tmp:/x", "v:/x/"]},
        {"volumes": ["a b:/x"]},
        {"volumes": ["/dev/ptmx:/x"]},
        {"env": ["=x"]},
        {"env": ["A=\0"]},
        {"hostname": "a b"},
        {"hostname": "a\nb"},
        {"hostname": "x" * 65},
        {"name": "../x"},
        {"workdir": "etc"},
        {"network": "token ring"},
        {"network": "none", "publish": ["80:80"]},
        {"memory": "banana"},
        {"cap_add": ["NOT_A_CAP"]},
        {"command": ["a\0b"]},
    ],
)
def test_a_word_that_cannot_be_meant_is_refused_before_anything_is_made(words):
    with hosts.unchanged(), pytest.raises(BadValue):
        Spec.make(**{"command": ["true"], **words})


def test_exit_statuses_are_a_shells_own():
    assert run("busybox", "true").code == 0
    assert run("busybox", ["sh", "-c", "exit 42"]).code == 42
    assert run("busybox", ["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"], show=False).code == 143


def test_a_container_over_its_memory_limit_is_killed_and_says_so():
    ended = run("busybox", "dd if=/dev/zero of=/dev/null bs=64M count=1", memory="32m", show=False)
    assert (ended.code, ended.oom_killed) == (137, True)
    ended = run("busybox", "dd if=/dev/zero of=/dev/null bs=8M count=1", memory="32m", show=False)
    assert (ended.code, ended.oom_killed) == (0, False)


def test_pids_limit_holds_a_fork_bomb():
    # Each round tries to fork twice as many; the count can never pass the limit.
    with Container("busybox", ["sh", "-c", "bomb() { bomb | bomb & }; bomb; sleep 60"], pids_limit=20).start() as box:
        deadline = time.monotonic() + 30
        while box.stats().pids_denied in (0, None) and time.monotonic() < deadline:
            assert len(box.cgroup.procs()) <= 20
            time.sleep(0.01)
        assert box.stats().pids_denied > 0


def test_env_hostname_workdir_and_user_are_what_was_said():
    script = 'echo "$A|$HOSTNAME|$(hostname)|$(pwd)|$(id -u):$(id -g)|$HOME|$PATH"'
    ended = run("busybox", ["sh", "-c", script], env={"A": "b=c d"}, hostname="box", workdir="/srv/x", user="1000:2000")
    assert (
        ended.output
        == "b=c d|box|box|/srv/x|1000:2000|/|/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    )


def test_a_user_of_the_image_is_found_by_name_and_has_no_capabilities():
    ended = run("busybox", ["sh", "-c", "id -un; grep -E 'Cap(Eff|Prm)' /proc/self/status"], user="nobody", show=False)
    assert ended.output == "nobody\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"


def test_a_pipe_in_the_place_of_etc_passwd_holds_nobody_up(tmp_path):
    def look():
        os.chroot(tmp_path)
        return users.find_user("0")

    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    os.mkfifo(tmp_path / "etc/group")
    assert in_child(look, timeout=10) == (0, 0, (0,), "/")


def test_what_it_writes_goes_with_it_and_the_image_stays_clean():
    with Container("busybox", ["sh", "-c", "echo x > /etc/new; rm /etc/passwd; sleep 60"]).start() as box:
        until(lambda: {"/etc/new", "/etc/passwd"} <= {change.path for change in box.changes()}, 30, "the two changes")
        kinds = {change.path: change.kind for change in box.changes()}
        assert (kinds["/etc/new"], kinds["/etc/passwd"]) == ("A", "D")
        upperdir = box.rootfs.upperdir
    assert not os.path.exists(upperdir)
    assert run("busybox", ["sh", "-c", "ls /etc/passwd; ls /etc/new"], show=False).output.startswith("/etc/passwd\n")


def test_a_read_only_root_refuses_every_write_and_tmp_volumes_still_take_them(tmp_path):
    script = "touch /x; touch /etc/x; touch /dev/shm/ok && touch /v/ok && echo fine"
    ended = run("busybox", ["sh", "-c", script], read_only=True, volumes=[f"{tmp_path}:/v"], show=False)
    assert ended.output.count("Read-only file system") == 2 and ended.output.endswith("fine\n")
    assert (tmp_path / "ok").exists()


def test_a_read_only_volume_is_read_and_not_written(tmp_path):
    (tmp_path / "a").write_text("hello\n")
    ended = run("busybox", ["sh", "-c", "cat /v/a; touch /v/b"], volumes=[f"{tmp_path}:/v:ro"], show=False)
    assert ended.output.startswith("hello\n") and "Read-only" in ended.output
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(("source", "target", "said"), [("file", "/bin", "folder"), ("", "/etc/passwd", "file")])
def test_a_folder_over_a_file_is_told_as_that(source, target, said, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KernelError, match=f"can't bind .* to {target}.*\n.*there is a {said}"):
        run("busybox", "true", volumes=[f"{tmp_path / source}:{target}"])


def test_a_harmless_device_as_a_volume_is_one_and_hides_a_file(tmp_path):
    os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    script = "wc -c </etc/passwd; echo x >/etc/passwd && echo written; wc -c </new/null"
    volumes = ["/dev/null:/etc/passwd", f"{tmp_path}/null:/new/null:ro"]
    assert run("busybox", ["sh", "-c", script], volumes=volumes, show=False).output == "0\nwritten\n0\n"


def test_a_named_volume_begins_with_what_the_image_has_there_and_outlives_the_container():
    from labkit.storage import volumes

    try:
        assert "root:x:0" in run("busybox", ["cat", "/etc/passwd"], volumes=["settings:/etc"], show=False).output
        run("busybox", ["sh", "-c", "echo mine > /etc/passwd"], volumes=["settings:/etc"])
        assert run("busybox", ["cat", "/etc/passwd"], volumes=["settings:/etc"], show=False).output == "mine\n"
    finally:
        volumes.remove("settings")


def test_exec_is_in_all_its_namespaces_and_in_its_cgroup():
    with Container("busybox", "sleep 60", memory="64m").start() as box:
        kinds = ("mnt", "uts", "ipc", "pid", "net", "cgroup")
        ended = box.exec(["sh", "-c", f"cd /proc/self/ns; for kind in {' '.join(kinds)}; do readlink $kind; done"])
        assert ended.output.split() == [f"{kind}:[{proc.namespace(box.pid, kind)}]" for kind in kinds]
        assert box.exec("sh -c 'exit 9'").code == 9
        with pytest.raises(CommandError):
            box.exec("no-such-command")
        # A second process, counted in the same cgroup.
        assert box.exec(["dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1"]).code == 137


def test_a_command_that_fails_at_once_is_waited_for_although_its_parent_is_slow(monkeypatch):
    def slowly(child, kind, *words):
        time.sleep(0.3)
        say(child, kind, *words)

    monkeypatch.setattr(spawner, "current", spawner.Here)
    # Who is not waited for stays a zombie in the container, and its PID 1 can't end before all others.
    with Container("busybox", "sleep 60").start() as box:
        say = Child.say
        monkeypatch.setattr(Child, "say", slowly)
        with pytest.raises(CommandError):
            box.exec("no-such-command")
        box.kill()
        assert box.wait(timeout=30) == 137


def test_exec_goes_where_its_first_process_has_moved_to_if_nobody_may_stay_above():
    with Container("busybox", ["sleep", "60"]).start() as box:
        folder = next((one.path for one in box.cgroup.folders if one.version == 2), None)
        if not folder or "pids" not in (folder / "cgroup.controllers").read_text():
            pytest.skip(
                "only a v2 folder that hands controllers down may not hold processes; pids is in a v1 tree here"
            )
        (folder / "init").mkdir()
        (folder / "init/cgroup.procs").write_text(str(box.pid))
        (folder / "cgroup.subtree_control").write_text("+pids")
        assert box.exec("cat /proc/self/cgroup").output.strip().endswith("/init")


def test_exec_gets_the_environment_and_the_powers_of_the_container():
    with Container("busybox", "sleep 60", env=["A=1"], cap_drop=["ALL"], cap_add=["CHOWN"]).start() as box:
        ended = box.exec(["sh", "-c", "echo $A $B; grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status"], env=["B=2"])
        assert ended.output == "1 2\nCapEff:\t0000000000000001\nCapBnd:\t0000000000000001\nNoNewPrivs:\t1\n"


def test_stop_asks_first_and_kills_after_its_time():
    polite = ["sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done"]
    with Container("busybox", polite).start() as box:
        until(box.logs, 30, "its first words")
        assert box.stop(timeout=10) == 3
    # sleep as PID 1 has no handler for SIGTERM, so the kernel does not deliver it.
    with Container("busybox", "sleep 60").start() as box:
        assert box.stop(timeout=0.2) == 137


def test_a_frozen_container_can_be_killed():
    with Container("busybox", "sleep 60").start() as box:
        box.pause()
        assert box.status == "paused"
        box.kill()
        assert box.wait(timeout=30) == 137


def test_a_container_is_found_from_another_process_by_name_and_by_the_start_of_its_id():
    with Container("busybox", "sleep 60", name="web").start() as box:
        code = (
            "from labkit.container.life import find\n"
            f"a, b = find('web'), find('{box.id[:6]}')\n"
            "print(a.id == b.id, a.status, a.pid, len(a.top()), a.exec('echo hi').output.strip())"
        )
        printed = subprocess.check_output([sys.executable, "-c", code], text=True)
        assert printed == f"True running {box.pid} 1 hi\n"
    with pytest.raises(NotFound):
        life.find("web")


def test_a_container_started_from_a_thread_outlives_the_thread():
    boxes = []
    thread = threading.Thread(target=lambda: boxes.append(Container("busybox", "sleep 60").start()))
    thread.start()
    thread.join()
    time.sleep(0.2)
    with boxes[0] as box:
        assert box.status == "running"
        # The thread made this process one with threads: a helper clones for it.
        assert proc.process(box.pid).ppid != os.getpid()


def test_the_same_job_ends_alike_in_the_helper_and_here():
    helper, here = spawner.Helper(), spawner.Here()
    try:
        from labkit.container.launch import Job, inside

        for keeper in (helper, here):
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            spawned = keeper.spawn(
                Job(inside(("sh", "-c", "echo $$ >&2; exit 7"), ("PATH=/bin:/usr/bin",))), (0, 1, write_end)
            )
            os.close(write_end)
            with os.fdopen(read_end) as pipe:
                assert pipe.read() == f"{spawned.pid}\n"
            assert keeper.status(spawned) == 7
            os.close(spawned.pidfd)
    finally:
        helper.close()


def test_the_helper_ends_with_its_notebook_and_takes_the_container_along():
    code = (
        "import os, signal, threading\n"
        "threading.Thread(target=signal.pause, daemon=True).start()\n"
        "from labkit.container.life import Container\n"
        "box = Container('busybox', 'sleep 60').start()\n"
        "print(box.pid, flush=True)\n"
        "signal.pause()\n"
    )
    with hosts.unchanged():
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as notebook:
            pid = int(notebook.stdout.readline())
            ticks = proc.start_ticks(pid)
            notebook.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 30
        while proc.is_running(pid, ticks) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not proc.is_running(pid, ticks)
        _, kept, failed = ledger.clean()
        assert kept == failed == []


def test_a_container_leaves_no_fd_and_nothing_on_the_host():
    run("busybox", "true")
    before = sorted(os.listdir("/proc/self/fd"))
    with hosts.unchanged():
        for _ in range(3):
            run("busybox", "true")
        with Container("busybox", "sleep 60").start() as box:
            box.exec("true")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_no_fd_of_ours_is_open_inside():
    with open("/etc/passwd") as secret:
        os.set_inheritable(secret.fileno(), True)
        ended = run("busybox", ["sh", "-c", "ls /proc/self/fd"], show=False)
    # ls itself opens 3 to read the folder.
    assert ended.output.split() == ["0", "1", "2", "3"]


def test_the_plan_that_is_printed_is_the_plan_that_is_done():
    box = Container("busybox", "true", memory="32m")
    lines = box.describe()
    assert lines[-1] == "exec true" and lines[0].startswith("new cgroup, memory at most 33554432 bytes")
    with Container("busybox", "sleep 60").start() as box:
        seen = {mount.target for mount in proc.mounts(box.pid)}
        said = {line.split()[3] for line in lines if line.startswith("mount ") and " on /" in line}
        assert said and said <= seen


def test_state_is_json_that_anybody_can_read():
    with Container("busybox", "sleep 60", name="web").start() as box:
        record = json.loads(Path(state.run_dir("containers"), box.id, "state.json").read_text())
        assert record["pid"] == box.pid and record["spec"]["name"] == "web"
