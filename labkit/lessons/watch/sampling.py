"""What a cgroup said, 250 times a second, beside a running workload.

A counter read once says how much; read at a fixed rate it says when. The numbers
have the names of `Stats`, whatever version and file they come from:

    with Sampler(group, ("usage_usec", "nr_throttled")) as sampler:
        time.sleep(1)
    trace = sampler.trace()
    trace.time, trace["nr_throttled"]            numpy arrays, one row a sample
    trace.late.max(), trace.cost                 how late, and what it took of a core

The reading is done by a small process of its own (see `reader`), which ends with
this one. `sampler.trace()` works while it runs too: panels draw from it.
See Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/cgroup-v1/.
"""

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy

from labkit.cgroups.cgroup import Cgroup
from labkit.ground import ledger, proc
from labkit.ground.dataclass import dataclass, field
from labkit.ground.errors import BadValue, LabError, Unsupported, from_oserror
from labkit.lessons.watch import reader

Source = tuple[str, re.Pattern[bytes], float]  # file, what to look for, and what makes v2's unit of it
MOST_RATE = 1000  # samples a second
# Pressure files are read at most so often, whatever the rate; between two reads the
# value stays. To read one is to have it added up, a CPU's share of it counted in whole
# clock ticks (kernel/sched/psi.c, collect_percpu_times()): read every 4 ms, at 250 ticks
# a second, a group that waits all of the time seems to wait for two thirds of it.
MOST_PRESSURE_RATE = 20


def _counter(file: str, key: str, scale: float = 1.0) -> Source:
    return (file, re.compile(rf"^{key} (\d+)$".encode(), re.MULTILINE), scale)


def _only(file: str, scale: float = 1.0) -> Source:
    return (file, re.compile(rb"\A(\d+)\s*\Z"), scale)


def _all(file: str, pattern: bytes) -> Source:
    return (file, re.compile(pattern, re.MULTILINE), 1.0)


# Where each number is found: file, what to look for in it (summed over all matches),
# and what makes v2's unit of it. The first that this machine has is taken.
SOURCES = {
    "usage_usec": (_only("cpuacct.usage", 1e-3), _counter("cpu.stat", "usage_usec")),
    "nr_periods": (_counter("cpu.stat", "nr_periods"),),
    "nr_throttled": (_counter("cpu.stat", "nr_throttled"),),
    "throttled_usec": (_counter("cpu.stat", "throttled_usec"), _counter("cpu.stat", "throttled_time", 1e-3)),
    "memory_current": (_only("memory.current"),),
    "memory_anon": (_counter("memory.stat", "anon"), _counter("memory.stat", "rss")),
    "memory_file": (_counter("memory.stat", "file"), _counter("memory.stat", "cache")),
    "memory_max_hits": (_counter("memory.events", "max"),),
    "memory_high_hits": (_counter("memory.events", "high"),),
    "oom_kills": (_counter("memory.events", "oom_kill"), _counter("memory.oom_control", "oom_kill")),
    "pids_current": (_only("pids.current"),),
    "pids_denied": (_counter("pids.events", "max"),),
    "read_bytes": (
        _all("io.stat", rb"rbytes=(\d+)"),
        _all("blkio.throttle.io_service_bytes", rb"^\d+:\d+ Read (\d+)$"),
    ),
    "write_bytes": (
        _all("io.stat", rb"wbytes=(\d+)"),
        _all("blkio.throttle.io_service_bytes", rb"^\d+:\d+ Write (\d+)$"),
    ),
    "frozen": (_counter("cgroup.events", "frozen"), _only("freezer.self_freezing")),
    "cpu_pressure_usec": (_all("cpu.pressure", rb"^some .*total=(\d+)$"),),
    "memory_pressure_usec": (_all("memory.pressure", rb"^some .*total=(\d+)$"),),
    "io_pressure_usec": (_all("io.pressure", rb"^some .*total=(\d+)$"),),
}


# No line means none yet: a device gets one with its first transfer. On v1, and a newer
# kernel (6.18 is one), a disk is counted only once somebody has set a limit on it.
_MAY_BE_ABSENT = ("read_bytes", "write_bytes")


@dataclass
class Trace:
    """Samples over time. `trace[name]` is an array as long as `time`; nan where the file had no number."""

    time: numpy.ndarray  # s since the sampler began
    late: numpy.ndarray  # s, each sample after it was due
    values: dict
    rate: float  # samples a second that were asked for
    cost: float  # share of one core that the reading took
    marks: list = field(default_factory=list)  # (s, text)

    @classmethod
    def without_samples(cls, names: Iterable[str]) -> "Trace":
        """Return the Trace of before the first sample."""
        return cls(numpy.empty(0), numpy.empty(0), {name: numpy.empty(0) for name in names}, 0, 0)

    def __getitem__(self, name: str) -> numpy.ndarray:
        return self.values[name]

    def __len__(self) -> int:
        return len(self.time)

    @property
    def until(self) -> float:
        """When the last sample was, in s; before there is one, how long a picture's time axis may be."""
        return float(self.time[-1]) if len(self) > 1 else 5.0

    def total(self, name: str) -> float:
        """Return by how much a counter grew in all."""
        return float(self[name][-1] - self[name][0]) if len(self) else 0.0

    def __repr__(self) -> str:
        if not len(self):
            return "<Trace without samples>"
        late = numpy.percentile(self.late, 99) * 1e3
        return f"<Trace of {len(self)} samples in {self.time[-1]:.2f} s, 99 % at most {late:.2f} ms late>"

    def growth(self, name: str, window: float) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Return (time, growth a second) of a counter over windows of `window` seconds, placed at their ends.

        Of usage_usec, divided by 1e6, that is the number of CPUs in use.
        """
        if len(self) < 2:
            return numpy.array([]), numpy.array([])
        ends = numpy.arange(self.time[0] + window, self.time[-1] + 1e-9, window)
        edges = numpy.concatenate(([ends[0] - window] if len(ends) else [], ends))
        return ends, numpy.diff(numpy.interp(edges, self.time, self[name])) / window

    def steps(self, name: str, window: float) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Return `growth` to be drawn in steps "pre": also the first window has a beginning."""
        ends, rate = self.growth(name, window)
        return numpy.concatenate((ends[:1] - window, ends)), numpy.concatenate((rate[:1], rate))


class Sampler:
    """Reads numbers of one cgroup, or of several ({label: cgroup}), at a fixed rate. A context manager.

    `names` are keys of SOURCES. With several cgroups the values are called
    "label.name". Raises Unsupported, and names the file, for a number that this
    kernel does not keep. `rate` is in samples a second, 1000 at most; the
    `…_pressure_usec` change 20 times a second at most.
    """

    def __init__(
        self,
        cgroup: Cgroup | dict[str, Cgroup],
        names: str | Iterable[str] = ("usage_usec", "nr_throttled", "throttled_usec"),
        rate: float = 250,
    ) -> None:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 1 <= rate <= MOST_RATE:
            raise BadValue(f"rate {rate!r} is not in 1..{MOST_RATE} samples a second")
        names = (names,) if isinstance(names, str) else tuple(names)
        if unknown := [name for name in names if name not in SOURCES]:
            raise BadValue(f"nothing called {unknown[0]!r} can be sampled", "there is: " + ", ".join(SOURCES))
        groups = cgroup if isinstance(cgroup, dict) else {"": cgroup}
        self.rate = rate
        self.marks: list[tuple[float, str]] = []
        self._columns: dict[str, tuple[int, re.Pattern[bytes], float]] = {}  # name: (index of the file, pattern, scale)
        self._paths: list[Path] = []
        for label, group in groups.items():
            for name in names:
                path, pattern, scale = _source(group, name)
                if path not in self._paths:
                    self._paths.append(path)
                self._columns[f"{label}.{name}" if label else name] = (self._paths.index(path), pattern, scale)
        self.process: Any = None  # the reader's Popen, while it runs
        self._entry: Any = None
        self._out = -1
        self._began, self._ran_before, self._ran = math.nan, math.nan, 0.0
        self._rows: dict[str, list[float]] = {name: [] for name in self._columns}
        self._times: list[tuple[float, float]] = []
        self._offset = 0

    def __enter__(self) -> "Sampler":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> "Sampler":
        """Start reading; return when the first sample is there."""
        if self.process:
            raise LabError("this sampler runs already")
        self._out = os.memfd_create("labkit-samples")
        try:
            self._spawn()
            deadline = time.monotonic() + 5
            while not os.fstat(self._out).st_size:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise LabError("the sampling process did not start", f"try it: {sys.executable} {reader.__file__}")
                time.sleep(0.001)
        except BaseException:
            self.stop()
            raise
        self._began, self._ran_before = time.monotonic(), self._runtime()
        return self

    def _spawn(self) -> None:
        fds = []
        try:
            for path in self._paths:
                fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            words = [str(word) for word in (os.getpid(), self.rate, self._out)]
            for fd, path in zip(fds, self._paths, strict=True):
                words.append(f"{fd}@{MOST_PRESSURE_RATE}" if path.name.endswith(".pressure") else str(fd))
            # -I -S: no site-packages, a start in about 10 ms and 6 MB.
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", reader.__file__, *words],
                stdin=subprocess.PIPE, pass_fds=(self._out, *fds),
            )  # fmt: skip
        except OSError as error:
            raise from_oserror(error, "starting the sampling process") from None
        finally:
            for fd in fds:
                os.close(fd)
        # It waits for the `g` until its line is in the ledger, and ends if we die before that.
        pid = self.process.pid
        self._entry = ledger.write("process", pid=pid, ticks=proc.start_ticks(pid))
        self.process.stdin.write(b"g")
        self.process.stdin.flush()

    def stop(self) -> None:
        """Stop reading; what was read stays in `trace()`."""
        if self.process:
            self._drain()
            self._ran = self._cost()
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self._drain()
            self.process = None
        if self._entry:
            ledger.strike(self._entry)
            self._entry = None
        if self._out >= 0:
            os.close(self._out)
            self._out = -1

    def seconds(self) -> float:
        """Return how long ago the first sample was, in s: now, on the trace's time axis."""
        self._drain()
        return time.monotonic() - self._times[0][1]

    def mark(self, text: str) -> None:
        """Remember that something happens now."""
        self.marks.append((time.monotonic(), text))

    def trace(self) -> Trace:
        """Return the Trace of all that was read so far, also while it runs."""
        if self.process:
            self._drain()
            self._ran = self._cost()
        times = numpy.array(self._times, float).reshape(-1, 2)
        zero = times[0, 1] if len(times) else 0.0
        return Trace(
            time=times[:, 1] - zero,
            late=times[:, 1] - times[:, 0],
            values={name: numpy.array(row, float) for name, row in self._rows.items()},
            rate=self.rate,
            cost=self._ran,
            marks=[(when - zero, text) for when, text in self.marks],
        )

    def _runtime(self) -> float:
        """Return the seconds of CPU that the reader has used. See proc_pid_schedstat(5)."""
        try:
            return int(proc.read(f"/proc/{self.process.pid}/schedstat").split()[0]) / 1e9
        except LabError:
            return math.nan

    def _cost(self) -> float:
        return (self._runtime() - self._ran_before) / (time.monotonic() - self._began)

    def _drain(self) -> None:
        """Turn new records into rows. A record that is half written waits for the next call."""
        block = os.pread(self._out, reader.MOST + 65536, self._offset)
        position = 0
        while position + reader.HEAD.size <= len(block):
            length, due, now = reader.HEAD.unpack_from(block, position)
            end = position + reader.HEAD.size + length
            if end > len(block):
                break
            texts, at = [], position + reader.HEAD.size
            while at < end:
                (size,) = reader.LENGTH.unpack_from(block, at)
                texts.append(block[at + reader.LENGTH.size : at + reader.LENGTH.size + size])
                at += reader.LENGTH.size + size
            self._times.append((due, now))
            for name, (index, pattern, scale) in self._columns.items():
                found = pattern.findall(texts[index])
                absent = 0.0 if name.rpartition(".")[2] in _MAY_BE_ABSENT else math.nan
                self._rows[name].append(scale * sum(map(int, found)) if found else absent)
            position = end
        self._offset += position


def _source(cgroup: Cgroup, name: str) -> tuple[Path, re.Pattern[bytes], float]:
    """Return (path, pattern, scale) of the first source of a number that this cgroup has."""
    missing = []
    for file, pattern, scale in SOURCES[name]:
        try:
            path = cgroup.file(file)
            # A file without the line is another version's or an older kernel's.
            text = path.read_bytes()
        except Unsupported as error:
            missing.append(error.message)
            continue
        if pattern.search(text) or name in _MAY_BE_ABSENT or pattern.pattern.startswith(b"\\A"):
            return path, pattern, scale
        missing.append(f"{path} has no {pattern.pattern.decode()}")
    raise Unsupported(f"this kernel does not keep {name}: " + "; ".join(missing))
