"""create, start and delete, each a process of its own as Docker's shim calls them: labkit-runtime, runc, crun.

One bundle, one root, the same limits. That `true` ends between start and delete is not timed.
"""

import os
import select
import statistics
import subprocess
import time

import contestants
import peers
from contestants import ratio
from report import Report

from labkit.ground import state
from labkit.ground.errors import LabError

PROGRAMS = {"labkit-runtime": str(state.REPO / "vagrant" / "labkit-runtime"), "runc": "runc", "crun": "crun"}
STEPS = ("create", "start", "delete")


def three_commands(name, scene):
    """Return the contestant that does the three, and answers with the milliseconds of each."""
    bundle, folder = peers.bundle(scene, f"three-{name}", scene["rootfs"]), scene["folder"]

    def call(step, number, *words):
        words = [PROGRAMS[name], "--root", f"{folder}/three-{name}-state", step, *words, f"three{number}"]
        with open(f"{folder}/three-{name}-err", "w+") as told:  # no pipe: the container keeps it open
            began = time.perf_counter()
            done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=told)
            spent = time.perf_counter() - began
            told.seek(0)
            if done.returncode:
                raise LabError(f"{' '.join(words)} failed: {told.read()[-300:]}")
        return spent * 1000

    def once(number):
        file = f"{folder}/three-{name}-pid"
        spent = [call("create", number, "--bundle", bundle, "--pid-file", file)]
        with open(file) as pid:
            pidfd = os.pidfd_open(int(pid.read()))
        spent.append(call("start", number))
        select.select([pidfd], [], [])
        os.close(pidfd)
        return [*spent, call("delete", number)]

    def make():
        peers.hide_unified()
        return once

    return make


def measure(options):
    """Yield the Report."""
    peers.need("runc", "crun")
    with peers.scene() as scene, contestants.lined_up({name: three_commands(name, scene) for name in PROGRAMS}) as line:
        rounds = [{name: one.ask(number)[1] for name, one in line.items()} for number in range(options.rounds + 2)][2:]
    times = {name: [sum(one[name]) for one in rounds] for name in PROGRAMS}
    yield Report(
        "create, start and delete, three commands",
        f"{options.rounds} rounds, milliseconds, medians",
        ("together", *STEPS),
        [
            (
                name,
                statistics.median(times[name]),
                *map(statistics.median, zip(*(one[name] for one in rounds), strict=True)),
            )
            for name in PROGRAMS
        ],
        ratios=[("labkit-runtime", other, ratio(times, "labkit-runtime", other)) for other in ("runc", "crun")],
        shown=(0, "median [ms]"),
        raw={name: [one[name] for one in rounds] for name in PROGRAMS},
    )
