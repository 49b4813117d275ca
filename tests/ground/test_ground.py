"""The ground: errors, state, syscalls, proc, child. Each test is one promise."""

import ast
import ctypes
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import labkit
from labkit import in_child
from labkit.ground import child, proc, state, syscalls
from labkit.ground.errors import BadValue, CommandError, KernelError, LabError, NotFound


def test_a_failed_syscall_names_the_call_the_path_and_the_errno():
    with pytest.raises(KernelError, match=r"mount\(2\) failed on /nowhere: ENOENT") as caught:
        in_child(lambda: syscalls.mount("/nope", "/nowhere", None, syscalls.MS_BIND))
    assert caught.value.errno == 2 and caught.value.on == "/nowhere"


@pytest.mark.parametrize(
    "error",
    [KernelError("mount(2)", 1, "/x"), CommandError("sh", 2), LabError("a", "b"), BadValue("a"), NotFound("x", "y")],
)
def test_an_error_is_the_same_after_it_crossed_a_pipe(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.exit_status) == (type(error), str(error), error.exit_status)
    assert copy.__dict__ == error.__dict__


def test_command_errors_have_the_shells_own_statuses():
    assert CommandError("x", 2).exit_status == 127
    assert CommandError("x", 13).exit_status == 126
    assert LabError("x").exit_status == 125


def test_a_lab_error_is_shown_in_a_notebook_without_a_traceback():
    assert LabError("no", "do this")._render_traceback_() == ["LabError: no\n  → do this"]


def test_syscall_numbers_are_the_kernel_headers_own():
    header = Path("/usr/include/asm-generic/unistd.h")
    names = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("the kernel's headers are not here: apt-get install linux-libc-dev")
    if not names.exists():
        pytest.skip("the kernel's headers are for another processor here")
    for file, machine in ((names, "x86_64"), (header, "aarch64")):
        # asm-generic/unistd.h is what arm64 uses; __NR3264_ marks calls whose name differs on 32 bits.
        found = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", file.read_text()))
        for name in {**syscalls._OLD, **syscalls._NEW}:
            if name in found:
                assert syscalls.number(name, machine) == int(found[name]), (name, machine)


def test_an_unknown_processor_is_refused_by_name():
    with pytest.raises(LabError, match="riscv64"):
        syscalls.number("mount", "riscv64")


def test_clone3_gives_a_child_its_own_namespaces_and_a_pidfd():
    def body():
        pid, pidfd = syscalls.clone3(syscalls.CLONE_PIDFD | syscalls.CLONE_NEWUTS, signal.SIGCHLD)
        if pid == 0:
            syscalls.sethostname("inside")
            os._exit(7 if os.uname().nodename == "inside" else 1)
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED).si_status, os.uname().nodename

    assert in_child(body) == (7, os.uname().nodename)


def test_openat2_does_not_follow_a_link_out_of_the_root(tmp_path):
    (tmp_path / "passwd").symlink_to("/etc/passwd")
    root = os.open(tmp_path, os.O_PATH)
    with pytest.raises(KernelError, match="ENOENT"):
        syscalls.openat2(root, "passwd", os.O_RDONLY, resolve=syscalls.RESOLVE_IN_ROOT)
    os.close(root)


def test_capget_agrees_with_proc():
    effective, _, _ = syscalls.capget()
    assert effective == proc.process(os.getpid()).cap_eff


def test_a_changed_argument_type_would_not_go_unseen():
    # A c_int given where the kernel reads 64 bits loses the upper half: CLONE_INTO_CGROUP is bit 33.
    assert ctypes.sizeof(syscalls.clone_args) == 88
    assert ctypes.sizeof(syscalls.mount_attr) == 32
    assert ctypes.sizeof(syscalls.open_how) == 24


# ---- child ----


def test_the_notebook_keeps_its_namespaces_when_a_child_leaves_its_own(needs_root):
    before = proc.namespaces()
    inside = in_child(lambda: (syscalls.unshare(syscalls.CLONE_NEWUTS), proc.namespaces())[1])
    assert inside["uts"] != before["uts"] and proc.namespaces() == before


def test_what_a_child_prints_is_printed_here(capsys):
    def talk():
        print("from python ✓")
        os.system("echo from a shell; echo and stderr >&2")

    in_child(talk)
    assert capsys.readouterr().out == "from python ✓\nfrom a shell\nand stderr\n"


def test_a_childs_exception_is_raised_here_with_its_own_type():
    with pytest.raises(ZeroDivisionError):
        in_child(lambda: 1 / 0)
    with pytest.raises(KernelError, match="ENOENT"):
        in_child(lambda: os.open("/no/such/file", os.O_RDONLY))


def test_a_large_answer_comes_back_whole():
    assert len(in_child(lambda: b"x" * 5_000_000)) == 5_000_000


def test_an_answer_that_cannot_be_sent_is_said_so():
    with pytest.raises(LabError, match="can't be sent back"):
        in_child(lambda: threading.Lock())


def test_a_killed_child_and_an_exiting_one_are_told_apart():
    with pytest.raises(child.ChildDied, match="SIGKILL"):
        in_child(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(child.ChildDied, match="exited with 3"):
        in_child(lambda: os._exit(3))


def test_a_child_that_hangs_is_killed_after_its_time():
    before, started = proc.children(os.getpid()), time.monotonic()
    with pytest.raises(LabError, match="too long"):
        in_child(lambda: time.sleep(60), timeout=0.2)
    assert time.monotonic() - started < 10
    assert proc.children(os.getpid()) == before


def test_a_grandchild_that_stays_does_not_hold_the_answer_up():
    def body():
        if (pid := os.fork()) == 0:
            time.sleep(30)
            os._exit(0)
        return pid

    started = time.monotonic()
    grandchild = in_child(body)
    assert time.monotonic() - started < 10
    os.kill(grandchild, signal.SIGKILL)


def test_a_child_leaves_no_fd_behind():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        in_child(lambda: None)
    assert len(os.listdir("/proc/self/fd")) == before


# ---- state ----


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-rf", "a b", "a\n", "é", "x" * 129, "/abs", "a\0", None, 3])
def test_a_name_that_could_be_a_path_is_refused(name):
    with pytest.raises(BadValue):
        state.check_name(name)


def test_a_file_is_replaced_whole_and_leaves_no_scratch(tmp_path):
    target = tmp_path / "x.json"
    state.write_json(target, {"a": 1})
    state.write_json(target, {"a": 2})
    assert state.read_json(target) == {"a": 2} and os.listdir(tmp_path) == ["x.json"]
    assert state.read_json(tmp_path / "none") is None
    target.write_text("{")
    with pytest.raises(BadValue, match="not JSON"):
        state.read_json(target)


def test_two_states_never_share_a_mark(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / "a"))
    first = state.label()
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / "b"))
    assert state.label() != first
    monkeypatch.delenv("LABKIT_ROOT")
    assert state.label() == "labkit"


def test_a_lock_dies_with_its_holder():
    code = "import os, signal\nfrom labkit.ground import state\nwith state.lock('t'):\n print('held', flush=True)\n signal.pause()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with state.lock("t"):
        pass


# ---- proc ----


def test_a_process_is_read_as_the_kernel_has_it():
    me = proc.process(os.getpid())
    assert (me.pid, me.ppid, me.uid) == (os.getpid(), os.getppid(), os.geteuid())
    assert proc.is_running(me.pid, me.start_ticks) and not proc.is_running(me.pid, me.start_ticks + 1)


def test_a_process_name_with_brackets_and_spaces_is_read_right():
    def body():
        syscalls.prctl(syscalls.PR_SET_NAME, b"a) R (b c\0")
        return proc.stat_fields("self")[0], int(proc.stat_fields("self")[1])

    assert in_child(body) == ("R", os.getpid())


def test_an_ended_process_is_not_found():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    for look in (proc.process, proc.namespaces, proc.cmdline):
        with pytest.raises(NotFound):
            look(pid)
    assert proc.start_ticks(pid) is None


def test_a_mount_point_with_a_space_and_a_backslash_is_read_right(tmp_path, needs_root):
    odd = tmp_path / "a b\\c"
    odd.mkdir()

    def body():
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("t", odd, "tmpfs", 0)
        return [mount.type for mount in proc.mounts() if mount.target == str(odd)]

    assert in_child(body) == ["tmpfs"]


def test_importing_labkit_loads_neither_matplotlib_nor_numpy():
    code = "import labkit, labkit.app.cli, sys; print(sorted({'numpy','matplotlib','IPython'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


ROOMS = re.findall(r"^    (\w+)  +\S.*$", labkit.__doc__, re.M)


def _names_of_labkit(file):
    """Yield each dotted name below labkit that a file imports, wherever it does, or says in a text."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "labkit":
            yield from (f"labkit.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\blabkit\.[a-z_.]+", node.value)


def upward(folder, rooms=ROOMS):
    """Return (file, name) of whatever a room takes from one above it: at the top, in a function, or by a text."""
    found = []
    for number, room in enumerate(rooms):
        for file in sorted((folder / room).rglob("*.py")):
            for name in _names_of_labkit(file):
                head, *rest = name.split(".")
                if (
                    head == "labkit"
                    and rest
                    and rest[0] in rooms[number + 1 :]
                    or head == "labkit"
                    and (not rest or rest[0] in labkit._HOME)
                    and room not in ("lessons", "app")
                ):
                    found.append((str(file.relative_to(folder)), name))
    return found


def test_a_room_takes_nothing_from_those_above_it():
    folder = state.REPO / "labkit"
    assert set(ROOMS) == {path.parent.name for path in folder.glob("*/__init__.py")}
    assert upward(folder) == []


@pytest.mark.parametrize(
    "line",
    [
        "from labkit.container import life",
        "def late():\n    from labkit.container.life import run",
        "import labkit.container.life",
        'UNDOER = "labkit.container.life:forget"',
        "from labkit import Container",
    ],
)
def test_an_import_upwards_is_found_however_it_is_written(line, tmp_path):
    (tmp_path / "ground").mkdir()
    (tmp_path / "ground" / "state.py").write_text(line)
    assert [file for file, _ in upward(tmp_path)] == ["ground/state.py"]


def test_every_room_is_small_enough_to_be_looked_at_and_says_in_which_order():
    for guide in (state.REPO / "labkit").rglob("__init__.py"):
        if guide.parent.name in ("labkit", "drivers", "figures", "panels", "checks"):
            continue
        files = {path.stem for path in guide.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
        files -= {"__init__", "__pycache__"}
        assert len(files) <= 16, guide
        missing = [
            name for name in files if not re.search(rf"\b{name}\b", ast.get_docstring(ast.parse(guide.read_text())))
        ]
        assert not missing, f"{guide} leaves out {missing}"
