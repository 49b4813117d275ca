"""Checks of chapter 05: a limit that fits, a cache that fills, forks refused, a disk held back, a freeze."""

import time

from labkit.cgroups.events import flat
from labkit.ground.errors import LabError
from labkit.lessons.checks import exercise

MIB = 1 << 20


def _until(condition, seconds=15):
    """Return whether a condition comes true within `seconds`; a cgroup that is gone meanwhile is a no."""
    deadline = time.monotonic() + seconds
    try:
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
    except LabError:
        return False
    return True


def _parts(cgroup):
    """Return (what programs hold, page cache) in bytes.

    Files in RAM (tmpfs) are no page cache: they can't be given back.
    """
    stat = flat(cgroup.read("memory.stat"))
    anon, file = ("anon", "file") if cgroup.version("memory") == 2 else ("rss", "cache")
    return stat[anon] + stat["shmem"], stat[file] - stat["shmem"]


def _runs(box):
    killed = getattr(box, "oom_killed", False)
    return (
        box.status == "running",
        "the container runs",
        "it was killed at its memory limit" if killed else "start it again: run the cell above",
        "exit status 137 is 128 + 9: SIGKILL",
    )


@exercise
def fits(box, least, most):
    """The container's program holds the `least` bytes that it wants, under a limit of `most` bytes at most."""
    enough = _until(lambda: _parts(box.cgroup)[0] >= least or box.status != "running")
    yield _runs(box)
    stats = box.stats()
    yield stats.memory_max is not None, "it has a memory limit", 'memory="…m" is one'
    yield (
        stats.memory_max <= most,
        f"its limit is at most {most // MIB} MiB",
        f"it is {stats.memory_max // MIB} MiB now: others want some too",
    )
    yield (
        enough,
        f"its programs hold {least // MIB} MiB or more",
        f"they hold {_parts(box.cgroup)[0] // MIB} MiB now",
        "is it the program that the exercise asks for?",
    )
    yield stats.oom_kills == 0, "nothing in it was killed", "a process in it was: the limit is too low"


@exercise
def full_of_cache(box, limit):
    """The container is full to its limit of `limit` bytes, with page cache, and nothing was killed."""
    full = _until(lambda: _parts(box.cgroup)[1] >= 0.8 * limit or box.status != "running")
    yield _runs(box)
    stats = box.stats()
    yield (
        stats.memory_max == limit,
        f"its limit is {limit // MIB} MiB",
        f'memory="{limit // MIB}m"',
    )
    held, cache = _parts(box.cgroup)
    yield (
        full,
        "at least four fifths of the limit are page cache",
        f"now {held // MIB} MiB are held and {cache // MIB} MiB are page cache: what fills it?",
        "a file on disk that is larger than the limit, written or read; a folder in RAM, as /dev/shm, is held",
    )
    yield stats.oom_kills == 0, "nothing in it was killed", "cache is given back, what a program holds is not"


@exercise
def held(box, most):
    """The container may have `most` processes, has no more, and was refused a further one."""
    yield _runs(box)
    limit = box.stats().pids_max
    yield (
        limit == most,
        f"its pids.max is {most}",
        f"it is {'max: no limit' if limit is None else limit} now",
        f"pids_limit={most}",
    )
    has = box.stats().pids_current
    yield (
        has <= most,
        f"it has no more than {most} processes",
        f"it has {has}: a limit refuses forks, it does not kill who is there",
        "set the limit before they start",
    )
    denied = _until(lambda: box.stats().pids_denied > 0)
    yield (
        denied,
        "the kernel refused it a fork",
        "something in it must want more processes than it may have",
        f"workloads.fork({3 * most})",
    )


@exercise
def slow_writes(box, device, wbps):
    """The container writes to `device` (major:minor), and with no more than `wbps` bytes a second."""
    yield _runs(box)
    found = _write_limit(box.cgroup, device)
    yield (
        found is not None,
        "writing to the disk has a limit",
        "IoLimit(device, …) in Limits(io=(…,)): reading and writing have a word each",
        "wbps=, in bytes a second",
    )
    yield (
        found == wbps,
        f"the limit is {wbps} bytes a second",
        f"it is {found} now",
        f"{wbps // MIB} MiB are {wbps // MIB} << 20 bytes",
    )
    time.sleep(0.5)  # what was on its way before the limit
    before, start = _written(box.cgroup, device), time.monotonic()
    _until(lambda: _written(box.cgroup, device) > before and time.monotonic() > start + 2)
    rate = (_written(box.cgroup, device) - before) / (time.monotonic() - start)
    yield rate > 0, "something in it writes", "run something that writes past the page cache: workloads.write()"
    yield rate <= 1.2 * wbps, "it writes no faster", f"it wrote {rate / MIB:.1f} MiB a second: the right device?"


def _write_limit(cgroup, device):
    """Return the kernel's limit for writing to a device in bytes a second, or None."""
    if cgroup.version("io") == 2:
        for line in cgroup.read("io.max").splitlines():
            number, *pairs = line.split()
            value = dict(pair.split("=") for pair in pairs).get("wbps", "max")
            if number == device and value != "max":
                return int(value)
        return None
    lines = cgroup.read("blkio.throttle.write_bps_device").splitlines()
    return next((int(line.split()[1]) for line in lines if line.split()[0] == device), None)


def _written(cgroup, device):
    """Return how many bytes were written to a device so far; a device has no line before its first transfer."""
    if cgroup.version("io") == 2:
        lines = [line for line in cgroup.read("io.stat").splitlines() if line.startswith(f"{device} ")]
        pairs = dict(pair.split("=") for line in lines for pair in line.split()[1:] if "=" in pair)
        return int(pairs.get("wbytes", 0))
    lines = cgroup.read("blkio.throttle.io_service_bytes").splitlines()
    return sum(int(line.split()[2]) for line in lines if line.startswith(f"{device} Write "))


@exercise
def frozen(box):
    """The container's processes are all there, none runs, and it is the cgroup that holds them."""
    yield (
        box.status in ("running", "paused"),
        "the container was not ended",
        "a process that was killed is not frozen: start it again",
    )
    before = box.stats().usage_usec
    time.sleep(0.3)
    yield (
        box.cgroup.is_frozen(),
        "its cgroup is frozen",
        "a signal stops one process, and another signal from anybody starts it again: freeze the group",
        "box.cgroup has a method for it",
    )
    yield box.stats().usage_usec - before < 5000, "it uses no CPU", "it ran in the last 0.3 s"
    yield bool(box.top()), "its processes are still there", "run something in it: workloads.spin()"
