"""The lab's two long commands: `lab up`, which serves the chapters, and `lab test`.

`lab up` gives the participant copies of the chapters (see `lessons`) and starts one
JupyterLab for them, on the loopback and behind a token. It waits until that really
answers, prints its URL, and stays in front of it until Ctrl-C. Whoever calls it a
second time gets the URL of the one that runs.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from labkit.app import server
from labkit.ground import state
from labkit.ground.typed import Any
from labkit.lessons import coursework
from labkit.lessons.coursework import REPO, chapters

# ---- lab up ------------------------------------------------------------------


def up(argv: list[str]) -> int:
    """Serve the chapters in JupyterLab until Ctrl-C; return the exit status."""
    options = _up_options(argv)
    if "JUPYTERHUB_SERVICE_URL" in os.environ:
        coursework.copy_all()
        server.become_hubs()
    with state.lock("jupyter"):
        record = server.running()
        if record:
            print("the lab is up already:", *_addresses(record), sep="\n", flush=True)
            return 0
        for line in coursework.copy_all():
            print(line, flush=True)
        process, record = server.start(options.ip, options.port)
    print("the lab is up, until you press Ctrl-C here:", *_addresses(record), sep="\n", flush=True)
    return _stay(process)


def _up_options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("lab up", description="Serve the chapters in JupyterLab until Ctrl-C.")
    parser.add_argument("--port", type=int, default=8888, help="on which port (8888)")
    parser.add_argument(
        "--ip",
        default="127.0.0.1",
        help="on which address; others than this machine's loopback let the network in (127.0.0.1)",
    )
    return parser.parse_args(argv)


def _addresses(record: server.Record) -> tuple[str, ...]:
    """Return the lines to print: the URL of the first chapter, and that of it beside a terminal."""
    first = next(iter(chapters()), None)
    page = f"/tree/{first.name}" if first else ""
    lab, token = f"http://{record['host']}:{record['port']}/lab", f"?token={record['token']}"
    return f"{lab}{page}{token}", "with a terminal beside it:", f"{lab}/workspaces/{server.BESIDE}{page}{token}"


def _stay(process: server.Process) -> int:
    """Wait for the server to end, or for a signal to end it; return the exit status."""

    def asked_to_stop(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(number)

    signal.signal(signal.SIGTERM, asked_to_stop)
    try:
        process.wait()
        print(f"JupyterLab ended by itself; what it said is in {server.log()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopping the lab", flush=True)
        return 0
    finally:
        server.stop(process)


# ---- lab test ----------------------------------------------------------------


def test(argv: list[str]) -> int:
    """Run the tests and the chapters; return the exit status.

    Arguments narrow it: a file, a chapter's number, any of pytest's own. They go to one pytest,
    which runs one test after the other. Without any, several pytests run side by side.
    """
    import pytest

    # Tests make a LABKIT_ROOT of their own, never the user's: see tests/whole_run.py.
    os.environ.pop("LABKIT_ROOT", None)
    os.chdir(REPO)
    counts = _Counts()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as reports:
        os.environ.setdefault("LAB_TEST_REPORTS", reports)
        statuses = [] if argv else _side_by_side(counts)
        if argv := argv or _afterwards():
            statuses.append(int(pytest.main(_pytest_arguments(argv), plugins=[counts])))
    print(*counts.lost, sep="\n", end="\n" * bool(counts.lost))
    status = max((one for one in statuses if one != NOTHING), default=NOTHING) or int(counts.failed > 0)
    print(counts.sentence(status, time.monotonic() - started), flush=True)
    return status


NOTHING = 5  # pytest's exit status for no tests
# What other tests beside it would disturb, or it them: it wants its samples on time, or makes what carries no label.
ALONE = ["tests/lessons/test_live.py", "tests/lessons/test_sampling.py", "tests/test_hosts.py"]


def _side_by_side(counts: "_Counts") -> list[int]:
    """Run every group in a pytest of its own, print what each said when it is done; return the exit statuses.

    A test waits for its container more than it computes, so one group more than there are CPUs runs at once.
    A group that did not end well runs once more, alone: what only its neighbours disturbed passes then.
    """
    again: list[list[str]] = []
    with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        running = {pool.submit(_apart, group): group for group in _groups()}
        try:
            for one in as_completed(running):
                if not counts.add(_told(one.result())):
                    again.append(running[one])
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    statuses = [0] if running else []
    for group in again:
        print("once more, alone:", *group, flush=True)
        _report(group).unlink(missing_ok=True)
        done = _told(_apart(group))
        statuses.append(0 if counts.add(done, group) else done.returncode or 1)
    return statuses


def _told(done: "subprocess.CompletedProcess[str]") -> "subprocess.CompletedProcess[str]":
    print(re.sub("(?m)^-+ generated xml file.*\n", "", done.stdout), flush=True)
    return done


def _report(group: list[str]) -> Path:
    return Path(os.environ["LAB_TEST_REPORTS"], group[0].replace("/", "-") + ".xml")


def _apart(group: list[str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "labkit", "test", *group, f"--junitxml={_report(group)}"]
    # The group in its environment tells its processes from another's, see tests/hosts.py.
    env = os.environ | {"LAB_TEST_GROUP": group[0]}
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)


def _groups() -> list[list[str]]:
    """Return the tests folder by folder, that with the most text first, then the chapters, which fill the gaps."""
    folders: dict[Path, list[Path]] = {}
    for path in sorted(Path("tests").rglob("test_*.py")):
        if str(path) not in ALONE:
            folders.setdefault(path.parent, []).append(path)
    groups = sorted(folders.values(), key=lambda files: -sum(path.stat().st_size for path in files))
    return [[str(path) for path in group] for group in [*groups, *([chapter] for chapter in _chapters())]]


def _afterwards() -> list[str]:
    """Return what runs after all others, and alone."""
    return [*(path for path in ALONE if Path(path).exists()), *_in_a_vm(os.environ.get("LAB_TEST_VM", ""))]


def _pytest_arguments(argv: list[str]) -> list[str]:
    flags = ["-rsfE", "--nbval", "--nbval-current-env", "--nbval-sanitize-with", "tests/nbval-sanitize.cfg"]
    flags += ["--durations=20", "--durations-min=5"]  # what ran longest, in seconds; a --durations of one's own wins
    words = [str(place) for word in argv for place in _places_named(word)]
    places = [word for word in words if Path(word.partition("::")[0]).exists()]
    return flags + words + ([] if places else _everything())


def _everything() -> list[str]:
    """Return all that is tested, in order. Not the folder `tests`: pytest takes nothing of a folder by name as well."""
    return [
        *sorted(map(str, Path("tests").rglob("test_*.py"))),
        "notebooks",
        *_in_a_vm(os.environ.get("LAB_TEST_VM", "")),
    ]


def _places_named(word: str) -> Sequence[str | Path]:
    """Return the chapters that a number means, what `vm` means, or the word itself."""
    if word == "vm":
        return _in_a_vm("all")
    if re.fullmatch("[0-9]{2}", word):
        return [path for path in _chapters() if path.name.startswith(word)] or [word]
    return [word]


def _chapters() -> list[Path]:
    return [path.relative_to(REPO) for path in chapters()]


def _in_a_vm(which: str) -> list[str]:
    """Return the tests that make virtual machines: all, or with any other word the suite on cgroup v2, or none.

    pytest finds them only by name, since they take long.
    """
    pattern = {"": "none", "all": "vm_*.py"}.get(which, "vm_suite.py")
    return sorted(str(path.relative_to(REPO)) for path in (REPO / "tests" / "vm").glob(pattern))


class _Counts:
    """A pytest plugin that counts, for a last line without pytest's vocabulary."""

    def __init__(self) -> None:
        self.passed = self.failed = self.skipped = 0
        self.lost: list[str] = []  # what failed or was left in another pytest, a line each

    def add(self, done: "subprocess.CompletedProcess[str]", at_last: Sequence[str] = ()) -> bool:
        """Add what another `lab test` counted, by the sentence it ends with, if all was well; tell whether it was.

        Without such a sentence it broke off. What was not well counts `at_last`, when it is known of which group.
        """
        end = r"(\d+) passed, (\d+) failed, (\d+) skipped, in \d+ s\n$|nothing was tested\n$"
        found = re.search(end, done.stdout)
        well = bool(found) and done.returncode in (0, NOTHING)
        if well or at_last:
            passed, failed, skipped = (int(one or 0) for one in found.groups()) if found else (0, 1, 0)
            self.passed, self.failed, self.skipped = self.passed + passed, self.failed + failed, self.skipped + skipped
            self.lost += re.findall(r"^(?:FAILED|ERROR|left:|gone:) .*", done.stdout, re.MULTILINE)
            self.lost += [] if found else [f"ERROR {' '.join(at_last)}: broken off"]
        return well

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed += report.failed
        self.skipped += report.skipped
        self.passed += report.passed and report.when == "call"

    def pytest_collectreport(self, report: Any) -> None:
        self.failed += report.failed

    def sentence(self, status: int, seconds: float) -> str:
        if status == 5:
            return "lab test: nothing was tested"
        verdict = "all is well" if status == 0 else "NOT all is well, see above"
        return (
            f"lab test: {verdict}: {self.passed} passed, {self.failed} failed, "
            f"{self.skipped} skipped, in {seconds:.0f} s"
        )
