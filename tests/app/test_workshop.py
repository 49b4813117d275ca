"""`lab up` serves the chapters, to whom has the token, and ends without a trace; `lab test` runs everything.

Both run in a small clone of the lab with two tests and two chapters of its own.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import hosts
import nbformat
import pytest

from labkit.ground import state

REPO = state.REPO
ONLY_PROCESSES = ["^(?!process )"]


class Clone:
    """A clone of the lab, a home and a LABKIT_ROOT."""

    def __init__(self, folder):
        self.folder = folder / "clone"
        self.home = folder / "home"
        self.root = folder / "root"
        self.home.mkdir(parents=True)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPO / "labkit", self.folder / "labkit", ignore=ignore)
        shutil.copy(REPO / "pyproject.toml", self.folder)
        (self.folder / "tests").mkdir()
        for name in ("conftest.py", "hosts.py", "whole_run.py", "nbval-sanitize.cfg"):
            shutil.copy(REPO / "tests" / name, self.folder / "tests")
        (self.folder / "vagrant").mkdir()
        shutil.copy(REPO / "vagrant" / "lab", self.folder / "vagrant")
        self.chapter("01-second.ipynb", "print(2)", "2\n")
        self.chapter("00-first.ipynb", "print(1)", "1\n")

    def chapter(self, name, source, output, kernel="python3"):
        printed = nbformat.v4.new_output("stream", text=output)
        cell = nbformat.v4.new_code_cell(source, execution_count=1, outputs=[printed])
        notebook = nbformat.v4.new_notebook(cells=[cell])
        notebook.metadata["kernelspec"] = {
            "name": kernel,
            "language": "python",
            "display_name": "Python 3",
        }
        (self.folder / "notebooks").mkdir(exist_ok=True)
        nbformat.write(notebook, self.folder / "notebooks" / name)

    def start(self, *arguments, before=(), **changes):
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": str(self.folder),
            "LABKIT_ROOT": str(self.root),
            # Others may be at work on this host; test_hosts.py tests the comparison.
            "LAB_TEST_IGNORE": ".",
            **changes,
        }
        return subprocess.Popen(
            [*before, sys.executable, "-P", "-m", "labkit", *arguments],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, **options):
        """Run a lab command; return (exit status, stdout, stderr)."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err


class Up:
    """A `lab up` that is up."""

    def __init__(self, clone):
        self.clone = clone
        self.port = free_port()
        self.process = clone.start("up", "--port", str(self.port))
        words, self.url = self.process.stdout.readline(), self.process.stdout.readline().strip()
        assert "the lab is up" in words, words + self.process.stderr.read()
        self.token = self.url.partition("token=")[2]
        self.record = json.loads((clone.root / "run" / "jupyter" / "server.json").read_text())

    def get(self, path, token="", data=None):
        """Ask for a path; return (HTTP status, body)."""
        headers = {"Authorization": f"token {token}"} if token else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    def end(self, number):
        """End it by a signal; return its exit status and the seconds that took."""
        started = time.monotonic()
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return self.process.returncode, time.monotonic() - started


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return Clone(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def up(clone):
    """One `lab up` for all tests that only look at it."""
    # Left by a lab that crashed, its process number given to somebody else since.
    record = clone.root / "run" / "jupyter" / "server.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"host": "127.0.0.1", "port": 9, "token": "x", "pid": os.getpid(), "ticks": 1}))
    one = Up(clone)
    yield one
    one.end(signal.SIGTERM)


# ---- lab up ---------------------------------------------------------------------


def test_up_serves_the_first_chapter_at_the_url_it_prints(up):
    assert up.url == f"http://127.0.0.1:{up.port}/lab/tree/00-first.ipynb?token={up.token}"
    with urllib.request.urlopen(up.url, timeout=20) as page:
        assert page.status == 200
    status, body = up.get("/api/contents/00-first.ipynb", up.token)
    assert status == 200 and "print(1)" in body


def test_up_serves_nothing_without_the_token(up):
    assert up.get("/api/contents/00-first.ipynb")[0] == 403
    assert up.get("/api/contents/00-first.ipynb", "wrong" + up.token)[0] == 403


def test_up_serves_the_loopback_only(up):
    table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    assert re.findall(rf"\b([0-9A-F]+):{up.port:04X} \S+ 0A", table) == ["0100007F"]


def test_the_token_is_long_and_only_root_reads_it(up):
    assert len(up.token) >= 40
    for file in ("run/jupyter/server.json", "lib/jupyter/jupyter_server_config.json"):
        path = up.clone.root / file
        assert up.token in path.read_text()
        assert path.stat().st_mode & 0o077 == 0
    assert up.token not in Path(f"/proc/{up.record['pid']}/cmdline").read_text()


def test_a_second_up_prints_the_url_of_the_first(up):
    status, out, _ = up.clone.run("up")
    assert status == 0
    assert up.url in out.splitlines()


def test_a_terminal_finds_the_lab_command(up):
    assert up.get("/api/terminals", up.token, data=b"")[0] == 200
    children = Path(f"/proc/{up.record['pid']}/task/{up.record['pid']}/children").read_text().split()
    shell = next(pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "bash\n")
    # A login shell would read /etc/profile, which forgets this PATH.
    assert Path(f"/proc/{shell}/cmdline").read_text() == "/bin/bash\0"
    environment = dict(line.split("=", 1) for line in Path(f"/proc/{shell}/environ").read_text().split("\0") if line)
    found = shutil.which("lab", path=environment["PATH"])
    assert Path(found).resolve() == up.clone.folder / "vagrant" / "lab"


def test_jupyterlab_asks_nobody_about_news(up):
    _, page = up.get("/lab", up.token)
    settings = json.loads(re.search(r'id="jupyter-config-data"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
    assert "@jupyterlab/apputils-extension:announcements" in json.dumps(settings["disabledExtensions"])


def test_the_users_own_jupyter_files_are_left_alone(up):
    up.get("/lab", up.token)
    assert list(up.clone.home.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_up_ends_with_its_kernels_and_leaves_no_process(tmp_path, number):
    with hosts.unchanged(ONLY_PROCESSES):
        up = Up(Clone(tmp_path))
        assert up.get("/api/kernels", up.token, data=b"{}")[0] == 201
        status, seconds = up.end(number)
    assert status == 0
    assert seconds < 15  # then it would be force
    assert not (up.clone.root / "run" / "jupyter" / "server.json").exists()


def test_jupyterlab_ends_when_up_is_killed(tmp_path):
    with hosts.unchanged(ONLY_PROCESSES, patience=10):
        Up(Clone(tmp_path)).end(signal.SIGKILL)


def test_a_taken_port_is_told_with_the_name_of_who_has_it(clone, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, out, err = clone.run("up", "--port", str(port), LABKIT_ROOT=str(tmp_path))
    assert status != 0 and out == ""
    name = Path("/proc/self/comm").read_text().strip()
    assert f"port {port} is taken by {name} (pid {os.getpid()})" in err
    assert f"lab up --port {port + 1}" in err
    assert "Traceback" not in err


def test_a_port_that_no_machine_has_is_refused(clone, tmp_path):
    status, _, err = clone.run("up", "--port", "88888", LABKIT_ROOT=str(tmp_path))
    assert status != 0 and "no port 88888" in err and "Traceback" not in err


def test_a_jupyterlab_that_does_not_start_is_quoted(clone, tmp_path):
    (tmp_path / "jupyterlab").mkdir()
    (tmp_path / "jupyterlab" / "__init__.py").write_text("raise SystemExit('no tea today')")
    status, _, err = clone.run(
        "up", "--port", str(free_port()), LABKIT_ROOT=str(tmp_path), PYTHONPATH=f"{tmp_path}:{clone.folder}"
    )
    assert status != 0
    assert "no tea today" in err and str(tmp_path / "run" / "jupyter" / "log") in err


def test_chapters_that_can_not_be_saved_are_told_before(clone, tmp_path, needs_root):
    folder = tmp_path / "lib" / "notebooks"
    folder.mkdir(parents=True)
    script = f'mount --bind {folder} {folder}; mount -o remount,ro,bind {folder}; exec "$0" "$@"'
    before = ("unshare", "--mount", "sh", "-c", script)
    status, _, err = clone.run("up", "--port", str(free_port()), before=before, LABKIT_ROOT=str(tmp_path))
    assert status != 0
    assert f"{folder} can't be written to" in err


def test_up_serves_copies_with_the_gaps_open_and_keeps_what_was_written_into_them(tmp_path):
    clone = Clone(tmp_path)
    path = clone.folder / "notebooks" / "00-first.ipynb"
    solved = json.loads(path.read_text())
    solved["cells"][0] |= {
        "source": "# >>> your turn: say 1\nprint(1)\n# <<<",
        "metadata": {"tags": ["solution"]},
    }
    path.write_text(json.dumps(solved))
    for mine in ("# your turn: say 1\n...", "print('mine')"):
        up = Up(clone)
        status, body = up.get("/api/contents/00-first.ipynb", up.token)
        notebook = json.loads(body)["content"]
        assert status == 200 and notebook["cells"][0]["source"] == mine
        copy = clone.root / "lib" / "notebooks" / "00-first.ipynb"
        text = json.loads(copy.read_text())
        text["cells"][0]["source"] = "print('mine')"
        copy.write_text(json.dumps(text))
        up.end(signal.SIGTERM)


def test_without_a_root_of_ones_own_the_copies_are_in_the_repo_where_a_vm_shares_them(tmp_path, needs_root):
    clone = Clone(tmp_path)
    # The user's own places, /run and /var/lib, but empty ones that only this lab up sees.
    script = 'mount -t tmpfs none /run; mount -t tmpfs none /var/lib; unset LABKIT_ROOT; exec "$0" "$@"'
    port = free_port()
    process = clone.start("up", "--port", str(port), before=("unshare", "--mount", "sh", "-c", script))
    try:
        process.stdout.readline()
        address = process.stdout.readline().strip()
        path, token = "/api/contents/00-first.ipynb", address.partition("token=")[2]
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"token {token}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert json.load(answer)["name"] == "00-first.ipynb"
        assert (clone.folder / ".participant" / "00-first.ipynb").exists()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def test_reset_and_room_work_from_the_terminal(clone, up):
    status, out, err = clone.run("reset", "01")
    assert (status, err) == (0, "") and "01-second.before-1.ipynb" in out
    status, out, err = clone.run("reset", "77")
    assert status == 125 and "no chapter 77" in err
    status, out, err = clone.run("room", up.url, f"http://127.0.0.1:{up.port}/?token=wrong")
    assert status == 0, err
    assert "nothing tried yet" in out and "the token is not right" in out


# ---- lab test --------------------------------------------------------------------


def test_test_runs_tests_and_chapters_in_roots_of_their_own(tmp_path):
    clone = Clone(tmp_path)
    (clone.folder / "tests" / "test_it.py").write_text(
        "import os, pytest\n"
        f"def test_root(): assert os.environ['LABKIT_ROOT'] != {str(clone.root)!r}\n"
        "def test_skipped(): pytest.skip('for want of a nail')\n"
    )
    clone.chapter(
        "02-python.ipynb",
        f"import os, sys, labkit; print(sys.executable == {sys.executable!r}, "
        f"os.environ['LABKIT_ROOT'] != {str(clone.root)!r})",
        "True True\n",
        kernel="somebody-elses",
    )
    status, out, err = clone.run("test")
    assert status == 0, out + err
    assert all(name in out for name in ("test_it.py", "00-first.ipynb", "01-second.ipynb", "for want of a nail"))
    summary = out.splitlines()[-1]
    assert re.fullmatch(r"lab test: all is well: 4 passed, 0 failed, 1 skipped, in \d+ s", summary)
    roots = re.findall(r"files of this run: ([^;]+)", out)
    assert len(set(roots)) == 4 and not any(Path(root).exists() for root in roots)


def test_a_skip_for_want_of_a_package_is_a_failure_where_lab_test_installs_them(clone):
    (clone.folder / "tests" / "test_two.py").write_text(
        "import pytest\n"
        "@pytest.mark.skipif(True, reason='no docker here (apt-get install docker.io)')\n"
        "def test_marked(): pass\n"
        "def test_skipped(): pytest.skip('no strace: apt-get install strace')\n"
        "def test_kernel(): pytest.skip('this kernel has none')\n"
    )
    status, out, _ = clone.run("test", "tests/test_two.py")
    assert (status, "0 passed, 2 failed, 1 skipped" in out.splitlines()[-1]) == (1, True), out
    assert "apt-get install docker.io" in out and "apt-get install strace" in out
    status, out, _ = clone.run("test", "tests/test_two.py", LAB_NO_APT="1")
    assert "0 failed, 3 skipped" in out.splitlines()[-1], out


def test_test_of_a_chapter_fails_where_its_output_changed(tmp_path):
    clone = Clone(tmp_path)
    clone.chapter("01-second.ipynb", "print(3)", "2\n")
    status, out, _ = clone.run("test", "01")
    assert status == 1
    assert "00-first" not in out
    assert "NOT all is well, see above: 0 passed, 1 failed" in out.splitlines()[-1]


def test_test_hands_pytests_own_words_on(clone):
    (clone.folder / "tests" / "test_two.py").write_text("def test_a(): pass\ndef test_b(): assert False\n")
    status, out, _ = clone.run("test", "tests/test_two.py", "-k", "test_a")
    assert (status, "1 passed, 0 failed" in out.splitlines()[-1]) == (0, True)
    status, out, _ = clone.run("test", "tests/test_two.py::test_b")
    assert (status, "0 passed, 1 failed" in out.splitlines()[-1]) == (1, True)


def test_what_failed_in_any_of_the_runs_side_by_side_is_said_last(tmp_path):
    clone = Clone(tmp_path)
    shutil.rmtree(clone.folder / "notebooks")
    for name, text in {
        "a/test_bad.py": "def test_bad(): assert 0",
        "b/test_gone.py": "import os\ndef test_gone(): os._exit(0)",
        "c/test_good.py": "def test_good(): pass",
    }.items():
        (clone.folder / "tests" / name).parent.mkdir()
        (clone.folder / "tests" / name).write_text(text)
    status, out, _ = clone.run("test")
    *_, one, other, summary = out.splitlines()
    lost = ["ERROR tests/b/test_gone.py: broken off", "FAILED tests/a/test_bad.py::test_bad - assert 0"]
    assert status == 1 and sorted([one, other]) == lost, out
    assert "NOT all is well, see above: 1 passed, 2 failed" in summary
    (clone.folder / "tests/a/test_bad.py").unlink()
    assert clone.run("test")[0] == 1, "one that broke off is enough"


def test_what_failed_beside_others_and_passes_alone_is_well(tmp_path):
    clone = Clone(tmp_path)
    shutil.rmtree(clone.folder / "notebooks")
    once = "import pathlib\ndef test_twice():\n    mark = pathlib.Path('mark')\n    was = mark.exists()\n    mark.touch()\n"
    (clone.folder / "tests" / "test_it.py").write_text(once + "    assert was\ndef test_other(): pass\n")
    status, out, _ = clone.run("test")
    assert status == 0 and "all is well: 2 passed, 0 failed" in out.splitlines()[-1], out
    assert "once more, alone: tests/test_it.py" in out


def test_the_virtual_machine_comes_last_where_it_is_asked_for(tmp_path):
    clone = Clone(tmp_path)
    shutil.rmtree(clone.folder / "notebooks")
    for name in ("test_a.py", "browser/test_b.py", "vm/vm_suite.py", "vm/vm_other.py"):
        (clone.folder / "tests" / name).parent.mkdir(exist_ok=True)
        (clone.folder / "tests" / name).write_text("def test(): pass\n")
    for which, last in (("", []), ("1", ["vm/vm_suite.py"]), ("all", ["vm/vm_other.py", "vm/vm_suite.py"])):
        status, out, _ = clone.run("test", LAB_TEST_VM=which)
        assert status == 0, out
        seen = re.findall(r"^tests/(test_a.py|browser/test_b.py|vm/vm_.*?.py)", out, re.M)
        assert set(seen[:2]) == {"test_a.py", "browser/test_b.py"} and seen[2:] == last


def test_test_of_nothing_is_no_success(clone):
    status, out, _ = clone.run("test", "tests", "-k", "no_such_test")
    assert status != 0
    assert out.splitlines()[-1] == "lab test: nothing was tested"
