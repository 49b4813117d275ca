"""`lab bench`: how long a container takes here, against others, in one run.

Every figure is a ratio of two things measured in turn, pair by pair, on this
machine, now. Absolute times are printed to make the ratios readable and mean
nothing elsewhere. No number here passes or fails a test.

A contestant is a process of its own that answers on a pipe: it is told to start
one container, and says how many milliseconds that took, start to exit. Two of
them are Python processes with threads that hold 60 MB and 400 MB, as a notebook
kernel does; the rest start a command.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import peers

from labkit import mounts, security, spawner
from labkit.container import Container
from labkit.errors import LabError
from labkit.launch import Job

LIMITS = {"memory": peers.MEMORY, "cpu_quota": peers.QUOTA, "cpu_period": 100_000, "pids_limit": peers.PIDS}


# ---- contestants: a function that starts one container and waits for its end ----


def notebook(megabytes, prepare):
    """Return a contestant that is a process with threads holding so much memory."""

    def make():
        ballast = bytearray(megabytes << 20)
        for page in range(0, len(ballast), 4096):
            ballast[page] = 1
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        once = prepare()
        return lambda number, _ballast=ballast: once(number)

    return make


def whole_container():
    """Prepare labkit's container with everything: overlay, three limits, six namespaces, seccomp."""

    def once(_number):
        with Container("busybox", ["true"], **LIMITS).start() as box:
            if box.wait():
                raise LabError("the container failed")

    return once


def namespaces_only(scene):
    """Prepare labkit's clone with what bwrap does: six namespaces, a root, /proc and /dev."""
    from labkit import rootfs

    def prepare():
        steps = [step for step in rootfs.kernel_filesystems() if getattr(step, "target", "").startswith(("/proc", "/dev"))]
        job = Job(
            argv=("true",),
            env=("PATH=/bin:/usr/bin",),
            namespaces=("mnt", "uts", "ipc", "pid", "net", "cgroup"),
            plan=mounts.Plan(mounts.BindRoot(scene["rootfs"], scene["rootfs"]), tuple(steps)).sorted(),
            capabilities=security.choose(),
        )
        keeper = spawner.current()

        def once(_number):
            spawned = keeper.spawn(job, (0, 1, 2))
            wait_for(spawned.pidfd)
            if keeper.status(spawned):
                raise LabError("the container failed")
            os.close(spawned.pidfd)

        return once

    return prepare


def wait_for(pidfd):
    import select

    select.select([pidfd], [], [])


def shell(command, hidden=False):
    """Return a contestant that starts a command; `command(number)` is its words."""

    def make():
        if hidden:
            peers.hide_unified()

        def once(number):
            done = subprocess.run(command(number), stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode:
                raise LabError(f"{command(number)[0]} failed: {done.stderr.strip()[-300:]}")

        return once

    return make


class Contestant:
    """A process that measures one way of starting a container when it is asked to."""

    def __init__(self, name, make, others=()):
        self.name = name
        self.ours, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            # A copy of another's pipe would keep it from ever seeing its end.
            for one in (self, *others):
                one.ours.close()
            _serve(make, theirs)
        theirs.close()

    def measure(self, number):
        """Return the milliseconds of one container."""
        self.ours.send(number)
        answer = self.ours.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        """End it."""
        self.ours.close()
        os.waitpid(self.pid, 0)


def _serve(make, pipe):
    status = 0
    try:
        once = make()
        while True:
            number = pipe.recv()
            started = time.perf_counter()
            once(number)
            pipe.send((time.perf_counter() - started) * 1000)
    except EOFError:
        spawner.close()
    except BaseException as error:
        pipe.send(error if isinstance(error, LabError) else LabError(repr(error)))
        status = 1
    finally:
        os._exit(status)


def race(contestants, rounds):
    """Return {name: [ms]}: every contestant once a round, in turn, after two rounds to warm up."""
    times = {one.name: [] for one in contestants}
    for number in range(rounds + 2):
        for one in contestants:
            spent = one.measure(number)
            if number >= 2:
                times[one.name].append(spent)
    return times


# ---- the benchmarks ----


def start(rounds):
    """Start to exit of `true`."""
    with peers.scene() as scene:
        everything = {
            "labkit, from 400 MB": notebook(400, whole_container),
            "labkit, from 60 MB": notebook(60, whole_container),
            "C, only the syscalls": shell(
                lambda n: [scene["floor"], scene["lowerdir"], f"{scene['folder']}/c{n}", f"c{n}",
                           f"{scene['folder']}/bases", f"{scene['folder']}/filter", "true"]  # fmt: skip
            ),
            "crun": shell(lambda n: peers.runtime("crun", scene, n), hidden=True),
            "runc": shell(lambda n: peers.runtime("runc", scene, n), hidden=True),
        }
        bare = {
            "labkit, namespaces only": notebook(400, namespaces_only(scene)),
            "bwrap": shell(lambda _: peers.bwrap(scene)),
        }
        return _raced(everything, rounds), _raced(bare, rounds)


def _raced(makers, rounds):
    contestants = []
    try:
        for name, make in makers.items():
            contestants.append(Contestant(name, make, contestants))
        return race(contestants, rounds)
    finally:
        for one in contestants:
            one.close()


GOALS = (
    ("labkit, from 400 MB", "crun", 0.6),
    ("labkit, from 400 MB", "runc", 0.2),
    ("labkit, from 400 MB", "C, only the syscalls", 2.5),
    ("labkit, from 400 MB", "labkit, from 60 MB", 1.1),
    ("labkit, namespaces only", "bwrap", 0.8),
)


def ratio(times, a, b):
    """Return the median of a/b, pair by pair."""
    return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))


def main(argv):
    parser = argparse.ArgumentParser(prog="lab bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", help="write every single time to this file")
    options = parser.parse_args(argv)
    print("peers:", ", ".join(f"{name} {version}" for name, version in peers.versions().items()))
    print(f"{os.cpu_count()} CPUs, kernel {os.uname().release}, load {os.getloadavg()[0]:.1f}\n")
    everything, bare = start(options.rounds)
    times = everything | bare
    print(f"start to exit of `true`, {options.rounds} rounds, milliseconds")
    print(f"  {'':26}{'min':>8}{'median':>8}{'p99':>8}")
    for name, spent in times.items():
        spent = sorted(spent)
        print(f"  {name:26}{spent[0]:8.1f}{statistics.median(spent):8.1f}{spent[int(len(spent) * 0.99)]:8.1f}")
    print("\nratios, pair by pair, the median")
    for a, b, goal in GOALS:
        found = ratio(times, a, b)
        print(f"  {a} / {b}: {found:.2f} (goal: under {goal}) {'' if found < goal else ' NOT reached'}")
    if options.json:
        Path(options.json).write_text(json.dumps(times))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
