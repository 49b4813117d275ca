"""Numbers of one container a second, and what they cost: labkit's sampler, the same in C, and `docker stats`.

All three read the CPU time of a container that spins a little. The cost is CPU time of
whoever reads, in percent of one core: for docker that is its client and its engine,
less what the engine takes with nobody asking.
"""

import contextlib
import os
import subprocess
import time
from pathlib import Path

import numpy
import peers
from contestants import command_succeeds
from report import Report

from labkit.container.life import Container
from labkit.ground import proc
from labkit.ground.errors import LabError
from labkit.lessons.beside import engine
from labkit.lessons.watch.sampling import Sampler, _source

RATES = (100, 250, 1000)
NAMES = ("usage_usec", "nr_throttled", "throttled_usec")
WORK = ["sh", "-c", "while true; do sleep 0.05; done"]


def by_labkit(group, rate, seconds):
    """Return (samples a second, cost in %, latest in ms)."""
    with Sampler(group, NAMES, rate=rate) as sampler:
        time.sleep(seconds)
    trace = sampler.trace()
    return (len(trace) - 1) / float(trace.time[-1]), 100 * trace.cost, 1000 * float(numpy.max(trace.late))


def by_c(program, group, rate, seconds):
    """Return the same of the C program."""
    paths = {str(_source(group, name)[0]) for name in NAMES}
    words = command_succeeds([program, str(seconds), str(rate), *sorted(paths)]).split()
    samples, took, used, late = map(float, words)
    return samples / took, 100 * used / took, late


def by_docker(seconds):
    """Return (samples a second, cost in %) of `docker stats`. Raises Unsupported without Docker."""
    with engine.private() as docker:
        box = docker("run", "-d", "--network=none", "busybox", *WORK).strip()
        idle, _ = _engine_cpu(docker, box, lambda: time.sleep(seconds))
        busy, (count, client) = _engine_cpu(docker, box, lambda: _stats(docker, box, seconds))
        docker("rm", "-f", box)
    return count / seconds, 100 * (client + max(0, busy - idle)) / seconds


def _stats(docker, box, seconds):
    """Let `docker stats` run; return (different numbers that it printed, seconds of CPU that it took)."""
    words = ["docker", "-H", f"unix://{docker.socket}", "stats", "--format", "{{.CPUPerc}}", box]
    env = {
        "PATH": "/usr/bin:/bin:/usr/local/bin",
        "HOME": str(docker.folder),
        "DOCKER_CONFIG": str(docker.folder),
    }
    with subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
        time.sleep(seconds)
        used = _cpu(client.pid)
        client.terminate()
        said = [line for line in client.stdout.read().splitlines() if b"%" in line]
    # It prints twice what it heard once.
    return sum(one != before for before, one in zip([None, *said], said, strict=False)), used


def _engine_cpu(docker, box, block):
    """Return the seconds of CPU that dockerd and containerd take meanwhile, and what `block` returned."""
    inside = {docker.pid(box)}
    pids = [pid for pid in _descendants(docker.process.pid) if not inside & {pid, *_parents(pid)}]
    before = sum(map(_cpu, pids))
    result = block()
    return sum(map(_cpu, pids)) - before, result


def _cpu(pid):
    """Return the seconds of CPU of all threads of a process. See proc_pid_schedstat(5)."""
    spent = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            spent += int(file.read_text().split()[0])
    return spent / 1e9


def _parents(pid):
    """Yield the process that started this one, the one that started that, and so on."""
    with contextlib.suppress(LabError):
        while pid > 1:
            pid = int(proc.stat_fields(pid)[1])
            yield pid


def _descendants(ancestor):
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if pid == ancestor or ancestor in _parents(pid)]


def measure(options):
    """Yield the Report."""
    seconds = 5 if options.full else 1.5
    rows, raw = [], {}
    with peers.scratch() as folder, Container("busybox", WORK).start() as box:
        program = peers.compiled("reader", folder)
        for rate in RATES:
            for name, found in (
                (f"labkit, {rate} a second", by_labkit(box.cgroup, rate, seconds)),
                (f"C, {rate} a second", by_c(program, box.cgroup, rate, seconds)),
            ):
                raw[name] = found
                rows.append((name, *found))
    notes = ["cost: CPU time of who reads, in % of one core; latest: the sample that came last after it was due"]
    try:
        raw["docker stats"] = by_docker(4 * seconds)
        rows.append(("docker stats", *raw["docker stats"], None))
    except LabError as error:
        notes.append(f"docker stats is not measured: {error}")
    per = {name: found[1] / found[0] for name, found in raw.items()}
    yield Report(
        "samples of a container's CPU time",
        f"{seconds} s each",
        ("a second", "cost, % of a core", "latest, ms"),
        rows,
        ratios=[
            (
                f"cost of a sample: labkit, {rate} a second",
                other,
                per[f"labkit, {rate} a second"] / per[other],
            )
            for rate in RATES
            for other in (f"C, {rate} a second", "docker stats")
            if per.get(other)
        ],
        notes=notes,
        shown=(1, "cost [% of one core]"),
        raw=raw,
    )
