"""What happens when something dies, fails or fills up at the worst moment: a clear error, and nothing left."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hosts
import pytest
import worlds

from labkit import in_child
from labkit.cgroups import cgroup, devices
from labkit.container import spawner, steps
from labkit.container.life import Container, all_containers, find, run
from labkit.ground import ledger, proc, state
from labkit.ground import syscalls as sc
from labkit.ground.errors import InUse, KernelError, LabError
from labkit.isolation import mounts, seccomp, security
from labkit.network import bridge
from labkit.storage import roots

pytestmark = pytest.mark.usefixtures("needs_root")
LAB = [sys.executable, "-m", "labkit"]


def lab(*words, **more):
    return subprocess.run([*LAB, *words], capture_output=True, text=True, timeout=120, **more)


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = ledger.entries()
    yield
    left, boxes = ledger.entries(), all_containers()
    ledger.clean(everything=True)  # one test's failure is not to be the next one's
    assert left == before, "left in the ledger"
    assert boxes == []


@pytest.fixture
def cloned_here(monkeypatch):
    """Containers are cloned from this very process: what a test changes in labkit is changed in the child too."""
    monkeypatch.setattr(spawner, "_current", (os.getpid(), spawner.Here()))


# ---- every step of a start fails once ----


def _plan_length():
    from labkit.container.spec import Spec
    from labkit.images import catalog

    job = Spec.make("busybox", "true").job(catalog.get("busybox").config, mounts.BindRoot("/", "/"), "x")
    (plan,) = (step.plan for step in job.steps if isinstance(step, steps.MakeMounts))
    return 1 + len(plan.steps)  # the root, then the rest


@pytest.mark.slow
@pytest.mark.parametrize("way", ["refused by the kernel", "killed"])
def test_a_failure_at_every_step_of_the_plan_leaves_nothing(way, cloned_here, monkeypatch):
    real, length = mounts._do, _plan_length()
    run("busybox", "true", show=False)
    with hosts.unchanged(ignore=["^process"]):
        for number in range(length):
            done = []

            def failing(step, *arguments, number=number, done=done):
                done.append(step)
                if len(done) == number + 1:
                    if way == "killed":
                        os._exit(137)  # as if: to PID 1 nobody inside, itself neither, can send SIGKILL
                    raise KernelError("injected(2)", 5, step.describe())
                return real(step, *arguments)

            monkeypatch.setattr(mounts, "_do", failing)
            if way == "killed":
                with Container("busybox", "true").start() as box:
                    assert box.wait(30) == 137
            else:
                with pytest.raises(KernelError, match="injected"):
                    Container("busybox", "true").start()
            assert ledger.entries() == [], number
        monkeypatch.setattr(mounts, "_do", real)
        assert run("busybox", "echo fine", show=False).output == "fine\n"


PARTS = [
    (roots.Overlay, "prepare") if hasattr(roots, "Overlay") else (roots, "driver"),
    (cgroup.Cgroup, "set"),
    (cgroup.Cgroup, "create"),
    (devices, "allow_only"),
    (seccomp, "program"),
    (seccomp, "install"),
    (security, "limit_bounding_set"),
    (security, "set_sets"),
    (security, "no_new_privs"),
    (mounts, "make_private"),
    (mounts, "pivot"),
    (steps.LoopbackUp, "execute"),
    (steps, "find_user"),
    (steps.GoTo, "execute"),
    (steps.ResetSignals, "execute"),
    (steps.Exec, "execute"),
    (spawner, "let_go"),
    (sc, "clone3"),
    (sc, "sethostname"),
    (sc, "unshare"),
    (sc, "close_range"),
]


@pytest.mark.parametrize("owner, name", PARTS, ids=lambda part: part if isinstance(part, str) else "")
@pytest.mark.parametrize(
    "error",
    [
        KernelError("injected(2)", 5),
        OSError(5, "injected"),
        RuntimeError("injected"),
        MemoryError("injected"),
    ],
    ids=repr,
)
def test_a_failure_in_every_other_part_leaves_nothing(owner, name, error, cloned_here, monkeypatch):
    real = getattr(owner, name)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(owner, name, fail)
    inside = [] if not isinstance(error, RuntimeError | MemoryError) else [RuntimeError, MemoryError]
    with pytest.raises((LabError, OSError, *inside), match="injected|Input/output"):
        Container("busybox", "true", name="fault").start()
    monkeypatch.setattr(owner, name, real)
    assert ledger.entries() == []
    assert run("busybox", "echo fine", name="fault", show=False).output == "fine\n"


# ---- somebody dies ----


def _left_processes(mark):
    return [pid for pid in proc.pids() if mark in " ".join(_words(pid))]


def _words(pid):
    with contextlib.suppress(LabError):
        return proc.cmdline(pid)
    return []


@pytest.mark.parametrize("after", [0.02, 0.1, 0.2, 0.3, 0.45, 0.7, 1.2])
def test_a_killed_lab_run_is_cleaned_up_whenever_it_is_killed(after):
    mark = f"7{os.getpid()}{int(after * 100):03}"
    with hosts.unchanged(ignore=["^process"]):
        lab_run = subprocess.Popen(
            [*LAB, "run", "--network", "none", "busybox", "sleep", mark],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(after)
        lab_run.kill()
        lab_run.wait()
        deadline = time.monotonic() + 30
        while _left_processes(mark) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert _left_processes(mark) == [], "the container outlives who answers for it"
        done = lab("clean")
        assert done.returncode == 0, done.stderr


def test_a_process_whose_parent_is_killed_before_its_go_ends():
    code = (
        "import os, signal, sys\n"
        "from labkit.container import spawner\n"
        "from labkit.container.launch import Job, inside\n"
        "spawner.let_go = lambda job, channel, pid: (print(pid, flush=True), signal.pause())\n"
        "spawner.spawn(Job(inside(('true',))), (0, 1, 2))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        ticks = proc.start_ticks(pid)
        parent.kill()
    deadline = time.monotonic() + 10
    while proc.is_running(pid, ticks):
        assert time.monotonic() < deadline, "it waits for a parent that is gone"
        time.sleep(0.01)


def test_a_killed_keeper_takes_the_container_along_and_it_shows_as_dead():
    done = lab("run", "-d", "--name", "orphan", "--network", "none", "busybox", "sleep", "600")
    assert done.returncode == 0, done.stderr
    box = find("orphan")
    keeper, pid = box.record()["keeper"][0], box.pid
    ticks = proc.start_ticks(pid)
    os.kill(keeper, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while proc.is_running(pid, ticks) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not proc.is_running(pid, ticks)
    assert find("orphan").status == "dead"
    assert "dead" in lab("ps", "-a").stdout
    assert "gave back" in lab("clean").stdout


def test_a_killed_spawner_takes_its_containers_along_and_the_next_one_gets_a_new_spawner(monkeypatch):
    helper = spawner.Helper()
    monkeypatch.setattr(spawner, "Here", spawner.Helper)
    monkeypatch.setattr(spawner, "_current", (os.getpid(), helper))
    box = Container("busybox", "sleep 600").start()
    pid, ticks = box.pid, proc.start_ticks(box.pid)
    helper.process.kill()
    helper.process.wait()
    deadline = time.monotonic() + 30
    while proc.is_running(pid, ticks) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not proc.is_running(pid, ticks)
    assert run("busybox", "echo fine", show=False).output == "fine\n"
    assert spawner.current() is not helper
    assert box.wait() == 137
    box.delete()
    spawner.current().close()


def test_a_killed_notebook_leaves_what_clean_gives_back():
    code = (
        "import threading, signal; threading.Thread(target=signal.pause, daemon=True).start()\n"
        "from labkit.container.life import Container\n"
        "boxes = [Container('busybox', 'sleep 600').start() for _ in range(3)]\n"
        "print('up', flush=True); signal.pause()"
    )
    with hosts.unchanged(ignore=["^process"]):
        notebook = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        with notebook.stdout as pipe:
            assert pipe.readline() == b"up\n"
        pids = [(box.pid, proc.start_ticks(box.pid)) for box in all_containers()]
        assert len(pids) == 3
        notebook.kill()
        notebook.wait()
        deadline = time.monotonic() + 30
        while any(proc.is_running(*one) for one in pids) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(proc.is_running(*one) for one in pids)
        assert lab("clean").returncode == 0


# ---- somebody wants too much ----


def test_a_fork_bomb_gets_its_limit_and_dies_at_once():
    with Container("busybox", ["sh", "-c", "f() { f | f & }; f; sleep 60"], pids_limit=40).start() as box:
        deadline = time.monotonic() + 3
        most = 0
        while time.monotonic() < deadline and most < 40:
            most = max(most, len(box.top()))
        assert 1 < most <= 40
        started = time.monotonic()
        box.kill()
        assert box.wait(30) == 137
        assert time.monotonic() - started < 5


def test_a_memory_bomb_is_killed_and_the_host_lives():
    with Container("busybox", ["tail", "/dev/zero"], memory="32m").start() as box:
        assert box.wait(60) == 137
        assert box.oom_killed


def test_a_frozen_container_can_be_killed_and_removed():
    for end in (lambda box: (box.kill(), box.wait()), lambda box: box.stop(1), lambda box: None):
        box = Container("busybox", "sleep 600").start()
        box.pause()
        assert box.status == "paused"
        end(box)
        box.delete()
        assert box.status == "gone"


def test_a_frozen_container_is_removed_by_another_process():
    assert lab("run", "-d", "--name", "ice", "--network", "none", "busybox", "sleep", "600").returncode == 0
    assert lab("pause", "ice").returncode == 0
    assert lab("rm", "-f", "ice").returncode == 0


# ---- many at once ----


def test_one_name_many_at_once_has_one_winner():
    words = ["run", "-d", "--name", "one", "--network", "none", "busybox", "sleep", "600"]
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: lab(*words), range(6)))
    assert sorted(one.returncode for one in done) == [0] + [125] * 5
    assert all("'one' is taken" in one.stderr for one in done if one.returncode)
    assert len(all_containers()) == 1
    assert lab("rm", "-f", "one").returncode == 0


def test_one_id_twice_has_one_winner():
    first = Container("busybox", "sleep 600").start()
    with first:
        second = Container.of(first.spec, first.id)
        with pytest.raises(InUse, match=first.id):
            second.start()
        assert first.exec("echo still here").output == "still here\n"


@pytest.mark.slow
def test_fifty_containers_at_once():
    def work(world):
        before = len(ledger.entries())
        with contextlib.ExitStack() as stack:
            boxes = [
                stack.enter_context(Container("busybox", "sleep 600", network="bridge").start()) for _ in range(50)
            ]
            addresses = {box.record()["address"] for box in boxes}
            pids = {box.pid for box in boxes}
            assert len(addresses) == len(pids) == 50 and all(box.status == "running" for box in boxes)
            assert boxes[0].exec(["ping", "-c", "1", "-W", "2", boxes[-1].record()["address"]]).code == 0
        assert len(ledger.entries()) == before and bridge.all_networks() == []
        return True

    assert worlds.inside(work)


# ---- no room ----


@contextlib.contextmanager
def _small_disk(size):
    """Put a disk of some bytes at a folder, seen by this process alone; yield the folder. Call it in a child."""
    folder = Path(state.run_dir("small"))
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    sc.mount("tmpfs", folder, "tmpfs", 0, f"size={size}")
    os.environ["LABKIT_ROOT"] = str(folder / "root")
    spawner._current = (os.getpid(), spawner.Here())
    yield folder


def _fill(folder):
    with open(folder / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 65536):
            pass
    with open(folder / "ballast2", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 512):
            pass


def test_a_full_disk_while_the_image_is_made_is_said_and_with_room_it_works():
    def work():
        with _small_disk("1m") as folder:
            try:
                run("busybox", "true", show=False)
                said = "nothing"
            except (LabError, OSError) as error:
                said = f"{type(error).__name__}: {error}"
            sc.mount(None, folder, None, sc.MS_REMOUNT, "size=64m")
            return said, run("busybox", "echo fine", show=False).output

    said, then = in_child(work)
    assert "ENOSPC" in said and said.startswith("KernelError"), said
    assert then == "fine\n"


def test_a_full_disk_while_starting_is_said_and_nothing_is_left():
    def work():
        with _small_disk("64m") as folder:
            run("busybox", "true", show=False)
            _fill(folder)
            try:
                Container("busybox", "true").start()
                said = "nothing"
            except (LabError, OSError) as error:
                said = f"{type(error).__name__}: {error}"
            (folder / "ballast").unlink()
            (folder / "ballast2").unlink()
            ledger.clean()
            return said, run("busybox", "echo fine", show=False).output, len(ledger.entries())

    said, then, left = in_child(work)
    assert "ENOSPC" in said and said.startswith("KernelError"), said
    assert (then, left) == ("fine\n", 0)


def test_a_full_disk_while_copying_up_is_the_programs_error_and_the_store_stays_sound():
    def work():
        with _small_disk("64m"):
            script = "dd if=/dev/zero of=/big bs=1M count=100 2>&1; echo x >> /bin/busybox; echo copy-up $?; ls /bin/sh"
            read_end, write_end = os.pipe()  # the log is on the full disk too
            with Container("busybox", ["sh", "-c", script]).start((0, write_end, write_end)) as box:
                box.wait(30)
            os.close(write_end)
            with os.fdopen(read_end) as pipe:
                text = pipe.read()
            return text, run("busybox", "echo fine", show=False).output

    text, then = in_child(work)
    assert "No space left on device" in text and then == "fine\n", text


@pytest.mark.parametrize("room_for_the_run", [False, True], ids=["in RUN", "in making its layer"])
def test_a_full_disk_while_building_is_said_and_the_store_stays_sound(room_for_the_run, tmp_path):
    size = 20 if room_for_the_run else 100  # MB: the file fits, the layer made of it does not
    (tmp_path / "Dockerfile").write_text(f"FROM busybox\nRUN dd if=/dev/urandom of=/big bs=1M count={size}\n")

    def work():
        from labkit.build import builder
        from labkit.images import catalog
        from labkit.storage import garbage

        with _small_disk("32m"):
            run("busybox", "true", show=False)
            try:
                builder.build(tmp_path, "big", say=lambda _: None)
                said = "nothing"
            except LabError as error:
                said = str(error)
            named = [image.name for image in catalog.all()]
            ledger.clean()
            garbage.collect()
            return said, named, run("busybox", "echo fine", show=False).output, len(ledger.entries())

    said, named, then, left = in_child(work)
    assert "ENOSPC" in said, said
    assert (named, then, left) == (["busybox:latest"], "fine\n", 0)
