"""Waiting for a cgroup to say something, without asking again and again.

A loop that reads a file every millisecond costs CPU and still comes late. The
kernel offers better, and each kind of news has its own door:

    v2   memory.events, pids.events, cgroup.events wake a poll(2) when they change
    v1   an eventfd, handed in through cgroup.event_control (memory only)
    PSI  a threshold written into a .pressure file, then poll(2) on it

Two kinds have no door. "Was throttled" is counted in cpu.stat and told to nobody:
a PSI threshold on cpu.pressure comes nearest. And v1's pids.events can be polled
but never wakes anyone (measured on 6.18): that one is looked at 20 times a second.
See poll(2), eventfd(2), Documentation/admin-guide/cgroup-v1/memory.rst (9. Event control),
Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import errno
import math
import os
import select
import time
from collections.abc import Callable

from labkit.ground.errors import BadValue, KernelError, NotFound
from labkit.ground.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from labkit.cgroups.cgroup import Cgroup


def flat(text: str) -> dict[str, int]:
    """Return the lines `name number` of a cgroup file as a dict."""
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def wait_for(path: str | Path, condition: Callable[[str], bool], timeout: float) -> str | None:
    """Return the text of a cgroup file once `condition(text)` holds, or None after `timeout` seconds.

    Sleeps in poll(2) until the kernel marks the file as changed. A folder that is
    gone counts as an empty text. See Documentation/admin-guide/cgroup-v2.rst, "File modified events".
    """
    deadline = time.monotonic() + timeout
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        while True:
            # Read before each wait: reading is what arms the next wake-up.
            try:
                text = os.pread(fd, 65536, 0).decode()
            except OSError:  # ENODEV: the folder was removed while we held the file
                return ""
            if condition(text):
                return text
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            poll.poll(left * 1000)
    finally:
        os.close(fd)


# Kind of news: v2's file and the number in it; where v1 counts the same, if it does.
_NEWS: dict[str, tuple[str, str, tuple[str, str] | None]] = {
    "oom_kill": ("memory.events", "oom_kill", ("memory.oom_control", "oom_kill")),
    "oom": ("memory.events", "oom", ("memory.oom_control", "oom_kill")),
    "max": ("memory.events", "max", None),
    "high": ("memory.events", "high", None),
    "pids_max": ("pids.events", "max", ("pids.events", "max")),
    "throttled": ("cpu.stat", "nr_throttled", ("cpu.stat", "nr_throttled")),
}
_LOOK_AGAIN = 0.05  # s; only where the kernel has no door


class Watch:
    """Waits for one kind of news from a cgroup: oom_kill, oom, max, high, pids_max or throttled.

    It begins to listen when it is made, so what happens between making it and
    `wait` is not lost. Raises Unsupported for news that this kernel does not tell.
    A context manager: it holds open files.
    """

    def __init__(self, cgroup: Cgroup, kind: str) -> None:
        if kind not in _NEWS:
            raise BadValue(f"no event is called {kind!r}", "there is: " + ", ".join(_NEWS))
        self.cgroup, self.kind = cgroup, kind
        file, self._key, v1 = _NEWS[kind]
        self._fds: list[int] = []
        self._longest = math.inf  # s to sleep before looking again
        controller = file.partition(".")[0]
        old = cgroup.version(controller) == 1
        if old and v1:
            file, self._key = v1
        elif old:
            cgroup.file(file)  # raises Unsupported, and says what v1 has instead
        self._poll = select.poll()
        try:
            self._counter = self._open(cgroup.file(file), os.O_RDONLY)
            if kind == "throttled":
                # 10 ms of 2 s in which something in it wanted to run and could not.
                self._register(pressure_trigger(cgroup, "cpu", "some", 10_000, 2_000_000), select.POLLPRI)
            elif old and controller == "memory":
                self._register(self._eventfd(cgroup), select.POLLIN)
            elif old:
                self._longest = _LOOK_AGAIN
            else:
                self._poll.register(self._counter, select.POLLPRI)
            self._seen = self.count()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        while self._fds:
            os.close(self._fds.pop())

    def count(self) -> int:
        """Return how often it has happened so far, as the kernel counts it. Raise NotFound if the cgroup is gone."""
        try:
            return flat(os.pread(self._counter, 65536, 0).decode()).get(self._key, 0)
        except OSError:  # ENODEV
            raise NotFound(f"{self.cgroup.name} was removed while it was watched") from None

    def wait(self, timeout: float) -> int:
        """Return how often it has happened since the last wait: 0 if not within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (new := self.count() - self._seen) <= 0:
            left = deadline - time.monotonic()
            if left <= 0:
                return 0
            for fd, mask in self._poll.poll(1000 * min(left, self._longest)):
                if mask & select.POLLIN:
                    # v1's eventfd tells of the OOM; the kill is counted a moment later.
                    os.read(fd, 8)
                    self._longest = _LOOK_AGAIN
        self._seen += new
        return new

    def _open(self, path: Path, flags: int) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC)
        self._fds.append(fd)
        return fd

    def _register(self, fd: int, mask: int) -> None:
        self._fds.append(fd)
        self._poll.register(fd, mask)

    def _eventfd(self, cgroup: Cgroup) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        path = cgroup.path("memory") / "cgroup.event_control"
        try:
            path.write_text(f"{fd} {self._counter}")
        except OSError as error:
            os.close(fd)
            raise KernelError("asking for an eventfd", error.errno, path) from None
        return fd


def pressure_trigger(cgroup: Cgroup, resource: str, which: str, stall_usec: int, window_usec: int) -> int:
    """Return an fd that polls POLLPRI when tasks lost `stall_usec` of a window to a resource (cpu, memory, io).

    `which` is `some` (at least one task waited) or `full` (all did). Windows are
    500000..10000000 µs; without CAP_SYS_RESOURCE only whole multiples of 2 s, and
    the news comes up to 2 s late. Raises KernelError. See Documentation/accounting/psi.rst.
    """
    path = cgroup.file(f"{resource}.pressure")
    text = f"{which} {stall_usec} {window_usec}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode() + b"\0")
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        hint = "without CAP_SYS_RESOURCE the window must be a multiple of 2000000 µs"
        if error.errno == errno.EOPNOTSUPP:
            hint = "this kernel was started without pressure accounting: psi=1 on its command line"
        raise KernelError(f"asking for {text!r}", error.errno, path, hint) from None
    return fd
