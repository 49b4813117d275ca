"""From a shell: what `import labkit` takes, and `lab run busybox true`, line by line.

The account is read from clocks: this process notes when it starts Python and when that
has ended, the child when its first line runs, when all modules are there that the
command will need, and when the command is done. All clocks are one, CLOCK_MONOTONIC.
"""

import os
import re
import statistics
import subprocess
import sys
import time

import contestants
import peers
from contestants import command_succeeds, ratio
from report import Report
from start import runtime

from labkit.ground import state
from labkit.ground.errors import LabError
from labkit.images import catalog

PYTHON = [sys.executable, "-P", "-S"]  # as vagrant/lab starts it
LAB = state.REPO / "vagrant" / "lab"
# Unasked, labkit plugs a container into its bridge; crun's has a network namespace and no cable.
RUN = ["run", "--rm", "busybox", "true"]
UNPLUGGED = ["run", "--rm", "--network=none", "busybox", "true"]
# argv[1] is the fd to tell; then the modules to import before the command is run, `--`, the command.
ACCOUNT = """
import time
told = [time.monotonic()]
import importlib, os, sys
from labkit.app import cli
told.append(time.monotonic())
split = sys.argv.index("--")
for name in sys.argv[2:split]:
    importlib.import_module(name)
told.append(time.monotonic())
before = set(sys.modules)
status = cli.main(sys.argv[split + 1 :])
told.append(time.monotonic())
text = " ".join(map(str, told)) + "\\n" + " ".join(sorted(set(sys.modules) - before))
os.write(int(sys.argv[1]), text.encode())
sys.exit(status)
"""
IMPORT = "import time; began = time.perf_counter(); {}; print((time.perf_counter() - began) * 1000)"
# -X importtime does not see what importlib.import_module loads, and through that goes `from labkit import …`.
SEEN = """
import importlib, sys
importlib.import_module = lambda name: __import__(name) and sys.modules[name]
from labkit.app import cli
sys.exit(cli.main(sys.argv[1:]))
"""
LINES = (
    "Python starts, to the first line",
    "import labkit.app.cli",
    "import what `run` needs",
    "the container, start to exit and gone",
    "Python ends",
)


def account(words, modules=()):
    """Run a lab command once; return (ms of each of LINES, what it imported on the way)."""
    ours, theirs = os.pipe()
    began = time.monotonic()
    try:
        command_succeeds([*PYTHON, "-c", ACCOUNT, str(theirs), *modules, "--", *words], pass_fds=[theirs])
        ended = time.monotonic()
    finally:
        os.close(theirs)
    with os.fdopen(ours) as answer:
        times, late = answer.read().split("\n")
    clock = [began, *map(float, times.split()), ended]
    return [(to - at) * 1000 for at, to in zip(clock, clock[1:], strict=False)], late.split()


def import_times(words):
    """Return [(module, ms of its own, ms with what it imports)] of a Python command, the dearest first."""
    done = subprocess.run(
        [*PYTHON, "-X", "importtime", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise LabError(f"{words} failed: {done.stderr.strip()[-300:]}")
    found = re.findall(r"^import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)$", done.stderr, re.MULTILINE)
    return sorted(((name, int(own) / 1000, int(both) / 1000) for own, both, name in found), key=lambda row: -row[1])


def measure(options):
    """Yield the Reports."""
    catalog.get("busybox")
    with peers.scene() as scene:
        times = contestants.race(
            {
                "Python alone": contestants.shell(lambda _: [sys.executable, "-S", "-E", "-c", "pass"]),
                "lab ps": contestants.shell(lambda _: [LAB, "ps"]),
                "lab run": contestants.shell(lambda _: [LAB, *RUN]),
                "lab run --network=none": contestants.shell(lambda _: [LAB, *UNPLUGGED]),
                "crun run": runtime("crun", scene),
            },
            options.rounds,
        )
    yield Report(
        "busybox's `true` from a shell",
        f"{options.rounds} rounds, milliseconds",
        ("min", "median", "p99"),
        [contestants.row(name, spent) for name, spent in times.items()],
        ratios=[
            ("lab ps", "Python alone", ratio(times, "lab ps", "Python alone")),
            *((name, "crun run", ratio(times, name, "crun run")) for name in ("lab run", "lab run --network=none")),
        ],
        shown=(1, "median [ms]"),
        raw=times,
    )
    yield _imports(options.rounds)
    yield _lines(options.rounds)
    rows = import_times(["-c", SEEN, *RUN])
    yield Report(
        "the ten dearest imports of `lab run`",
        "milliseconds",
        ("its own", "with what it imports"),
        rows[:10],
        notes=[
            f"all {len(rows)} of them: {sum(row[1] for row in rows):.1f}",
            "by python -X importtime, which itself makes each import slower",
        ],
        shown=(0, "its own [ms]"),
        ours=True,
        raw={name: own for name, own, _ in rows},
    )


def _imports(rounds):
    lines = ("import labkit", "from labkit import Container")
    times = {
        line: [float(command_succeeds([*PYTHON, "-c", IMPORT.format(line)])) for _ in range(rounds)] for line in lines
    }
    loaded = command_succeeds([*PYTHON, "-c", "import labkit, sys; print('matplotlib' in sys.modules)"]).strip()
    middle = statistics.median(times["import labkit"])
    return Report(
        "imports",
        f"{rounds} rounds, milliseconds",
        ("min", "median", "p99"),
        [contestants.row(line, spent) for line, spent in times.items()],
        notes=[
            f"import labkit: {middle:.1f} ms",
            "matplotlib comes with it: NOT as it should be" if loaded == "True" else "matplotlib does not come with it",
        ],
        shown=(1, "median [ms]"),
        ours=True,
        raw=times,
    )


def _lines(rounds):
    spent = {}
    for name, words in (("lab run", RUN), ("--network=none", UNPLUGGED)):
        _, modules = account(words)
        spent[name] = list(zip(*(account(words, modules)[0] for _ in range(rounds)), strict=True))
    middles = [[statistics.median(line) for line in lines] for lines in spent.values()]
    return Report(
        "`lab run busybox true`, line by line",
        f"{rounds} rounds, milliseconds",
        tuple(spent),
        [*zip(LINES, *middles, strict=True), ("together", *map(sum, middles))],
        shown=(0, "median [ms]"),
        ours=True,
        raw=spent,
    )
