"""`lab bench`: how long things take here, against others, in one run.

    lab bench                         all of it, in small rounds
    lab bench start many              these only
    lab bench --full --figure b.png   as many and as large as the issue has it, and a picture

Every figure is a ratio of two things measured in turn, pair by pair, on this
machine, now. Absolute times are printed to make the ratios readable and mean
nothing elsewhere. No number here passes or fails a test. One module a theme; each
yields Reports. What can't be measured on this machine is said by name.
"""

import argparse
import contextlib
import fcntl
import importlib
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import peers
import report

from labkit.container import spawner
from labkit.ground import ledger, state
from labkit.ground.errors import LabError

THEMES = {
    "start": "start to exit of `true`, against crun, runc, bwrap and C",
    "runtime": "create, start and delete of one bundle, as Docker's shim calls them, against runc and crun",
    "many": "100 at once, many in a row, what is left, memory a container",
    "layers": "start against the number of layers and the size of the image",
    "unpack": "an image's layer unpacked, against umoci, tar and skopeo",
    "build": "a build with and without cache, against buildah",
    "sampler": "samples a second and their cost, against C and docker stats",
    "cli": "`import labkit`, and `lab run` from a shell, line by line",
    "chapters": "the chapters under nbval, from a report of such a run (--chapters)",
}


def main(argv):
    parser = argparse.ArgumentParser(
        prog="lab bench",
        description="; ".join(f"{name}: {what}" for name, what in THEMES.items()),
    )
    parser.add_argument("themes", nargs="*", metavar="THEME", help=" ".join(THEMES))
    parser.add_argument("--rounds", type=int, default=20, help="times that each thing is done")
    parser.add_argument("--full", action="store_true", help="1,000 in a row, an image of 500 MB")
    parser.add_argument("--chapters", metavar="FILE", help="junit xml, or pytest's --durations=0, of a run under nbval")
    parser.add_argument("--figure", metavar="FILE", help="draw all of it as a PNG file")
    parser.add_argument("--json", metavar="FILE", help="write every single time to this file")
    options = parser.parse_args(argv)
    if unknown := set(options.themes) - set(THEMES):
        parser.error(f"there is no theme {unknown.pop()!r}: {' '.join(THEMES)}")
    if options.rounds < 1:
        parser.error("--rounds: 1 at least")
    chosen = options.themes or [name for name in THEMES if name != "chapters" or options.chapters]
    head = f"{os.cpu_count()} CPUs, kernel {os.uname().release}, load {os.getloadavg()[0]:.1f}, {python()}"
    print("peers:", ", ".join(f"{name} {version}" for name, version in peers.versions().items()))
    print(head, flush=True)
    # A machine that keeps no compiled modules compiles them at each start: that is no command's own time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # told to end, it cleans up first
    with own_state():
        reports, failed = run(chosen, options)
    if options.json:
        Path(options.json).write_text(json.dumps({one.title: one.raw for one in reports}))
    if options.figure and reports:
        from labkit.lessons import figures

        Path(options.figure).write_bytes(figures.png(report.figure(reports, head)))
        print(f"\nfigure: {options.figure}")
    return int(failed)


def python():
    """Say which Python it is: one that somebody built by hand may be a tenth slower than a distribution's."""
    return f"Python {sys.version.split()[0]} of {sys.base_prefix}"


@contextlib.contextmanager
def own_state():
    """Have images, containers and cgroups apart from those of the lab, and take them all away again.

    What an earlier run left that was killed is given back first.
    """
    root, before = state.lib_dir() / "bench", os.environ.get("LABKIT_ROOT")
    with _alone(), ledger.made("folder", path=str(root)):
        os.environ["LABKIT_ROOT"] = str(root)
        try:
            _give_back()
            yield
        finally:
            spawner.close()
            _give_back()
            if before is None:
                del os.environ["LABKIT_ROOT"]
            else:
                os.environ["LABKIT_ROOT"] = before


@contextlib.contextmanager
def _alone():
    """Hold a lock: two at once would measure each other."""
    with open(state.run_dir("locks") / "bench", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another `lab bench` runs: waiting for its end", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _give_back():
    _, _, failed = ledger.clean()
    if failed:
        raise failed[0][1]


def run(chosen, options):
    """Measure these themes one after the other; return ([Report], whether one could not be measured)."""
    reports, failed = [], False
    for name in chosen:
        try:
            for one in importlib.import_module(name).measure(options):
                one.print()
                sys.stdout.flush()
                reports.append(one)
        except LabError as error:
            print(f"\n{name}: not measured: {error}", flush=True)
            failed = True
    return reports, failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
