"""A workbench: a half-built container is put on it, stopped where it is, to be looked at.

Whoever builds a container changes the process that they are. So each piece is
tried in a child, which then waits while one looks:

    notebook  ──fork──▶  bench  ──the participant's clone──▶  box: the pieces, then wait

    with workbench.bench(new_namespaces, name_it) as box:
        box.run("hostname")

A mistake on it harms nobody. The bench has a host name, links and a mount table of
its own. The mounts are a copy of the host's, shared, as systemd has them on most
machines: what leaks out of the box leaks onto the bench and no further, the same
everywhere. The box dies with the bench, the bench with the notebook. And the
notebook itself only forks and looks.
See mount_namespaces(7), PR_SET_PDEATHSIG in prctl(2), nsenter(1).
"""

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from labkit.ground import syscalls as sc
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import LabError, from_oserror


@dataclass(frozen=True)
class Box:
    """A half-built container that waits: its process, and that of the bench it is on."""

    pid: int  # as the host counts
    outside: int  # the bench's; the same process if nothing was cloned

    def run(self, *words: str, show: bool = True) -> str:
        """Run a command in all its namespaces with nsenter(1); print and return its stdout, print why it failed."""
        command = ["nsenter", "--all", "--target", str(self.pid), "--", *words]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, text=True)
        if show:
            print(done.stdout, end="")
            print(done.stderr if done.returncode else "", end="")  # a warning is no answer, and not every machine's
        return done.stdout


@contextlib.contextmanager
def bench(clone: Callable[[], int], *steps: Callable[[], object], timeout: float = 60) -> Iterator[Box]:
    """Call `clone`, and in the child that it makes the `steps` in turn; yield the Box while that child waits.

    `clone` returns 0 in its child and the child's pid in its parent, as fork(2)
    does. What the steps print is printed, what they raise is raised here. If
    `clone` makes no child, the steps are done all the same, in no box at all.
    Raises LabError if it takes more than `timeout` seconds. All is gone afterwards.
    """
    report, report_write = os.pipe2(os.O_CLOEXEC)
    words = os.memfd_create("words")
    sys.stdout.flush()
    bench_pid = os.fork()
    if bench_pid == 0:
        _be_the_bench(clone, steps, report_write, words)
    os.close(report_write)
    box_fd = None
    try:
        answer = _read_until_closed(report, time.monotonic() + timeout)
        print(os.pread(words, 1 << 20, 0).decode(errors="replace"), end="")
        if not answer:
            raise LabError("the box ended before it could be looked at", "a piece of it called exec or exit?")
        pid, error = pickle.loads(answer)
        if error:
            raise error
        box_fd = os.pidfd_open(pid)
        yield Box(pid, bench_pid)
    finally:
        os.kill(bench_pid, signal.SIGKILL)
        os.waitpid(bench_pid, 0)
        # Its parent's death kills the box, a moment later.
        for fd in filter(None, (box_fd, report, words)):
            if fd == box_fd:
                select.select([fd], [], [], 5)
            os.close(fd)


def _read_until_closed(fd: int, deadline: float) -> bytes:
    text = bytearray()
    while True:
        if not select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]:
            raise LabError("the pieces took too long and were stopped", "does one of them wait for something?")
        block = os.read(fd, 65536)
        if not block:
            return bytes(text)
        text += block


def _be_the_bench(
    clone: Callable[[], int], steps: tuple[Callable[[], object], ...], report: int, words: int
) -> NoReturn:
    """Cut the bench off from the host, clone, and wait to be killed. Never returns."""
    try:
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        for fd in (1, 2):
            os.dup2(words, fd)
        sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - lives as long as we do
        sc.unshare(sc.CLONE_NEWNS | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC | sc.CLONE_NEWNET)
        # Private first: else "shared" would keep the copy in the host's peer groups.
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_SHARED)
        pid = clone()
        if not pid:
            _be_the_box(steps, report)
        os.close(report)
        os.waitpid(pid, 0)
        signal.pause()
    except BaseException as error:  # noqa: BLE001 - whatever it was, the notebook raises it
        _send(report, 0, error)
    finally:
        os._exit(0)


def _be_the_box(steps: tuple[Callable[[], object], ...], report: int) -> NoReturn:
    pid = int(os.readlink("/proc/self"))  # still the host's /proc, so the host's number
    error = None
    try:
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        sc.prctl(sc.PR_SET_NAME, b"mycontainer")
        for step in steps:
            step()
    except BaseException as problem:  # noqa: BLE001
        error = problem
    _send(report, pid, error)
    while not error:
        signal.pause()
    os._exit(1)


def _where(error: BaseException) -> str:
    """Return the participant's own line that an error came from: os.mknod, for one, names no path."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/lib/python" not in frame.filename] or frames
    return f"`{own[-1].line}` in {own[-1].name}"


def _send(report: int, pid: int, error: BaseException | None) -> None:
    if isinstance(error, OSError):
        error = from_oserror(error, _where(error))
    try:
        answer = pickle.dumps((pid, error))
    except Exception:  # noqa: BLE001 - pickle raises many kinds
        answer = pickle.dumps((pid, LabError(f"a piece raised {error!r}")))
    sys.stdout.flush()
    view = memoryview(answer)
    while view:
        view = view[os.write(report, view) :]
    os.close(report)
