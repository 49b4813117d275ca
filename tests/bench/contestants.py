"""A contestant is a process of its own that answers on a pipe.

It is told to do its thing once, does it, and says how many milliseconds that took.
Some are Python processes with threads that hold 60 MB or 400 MB, as a notebook
kernel does; the rest start a command. They are asked in turn, pair by pair, so what
else the machine does meanwhile meets all of them.
"""

import contextlib
import multiprocessing
import os
import statistics
import subprocess
import threading
import time

import peers

from labkit.container import spawner
from labkit.ground.errors import LabError

WARM_UP = 2  # rounds that don't count


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


def shell(command, apart=False, around=None):
    """Return a contestant that starts a command; `command(number)` is its words.

    `apart`: in a mount namespace of its own without the v2 tree of a hybrid machine.
    `around(number)` is a context manager that is timed with the command.
    """

    def make():
        if apart:
            peers.hide_unified()

        def once(number):
            with around(number) if around else contextlib.nullcontext():
                command_succeeds(command(number))

        return once

    return make


def command_succeeds(words, **more):
    """Run a command to its end; return its output. Raises LabError with its own complaint."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", **more)
    if done.returncode:
        raise LabError(f"{words[0]} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


class Contestant:
    """A process that does one thing when it is asked to, and measures it."""

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

    def ask(self, number):
        """Have it done once; return (milliseconds, what it returned)."""
        self.ours.send(number)
        answer = self.ours.recv()
        if isinstance(answer, Exception):
            raise LabError(f"{self.name}: {answer}")
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
            answer = once(number)
            pipe.send(((time.perf_counter() - started) * 1000, answer))
    except EOFError:
        spawner.close()
    except BaseException as error:
        status = 1
        with contextlib.suppress(OSError):  # who asked is gone
            pipe.send(error if isinstance(error, LabError) else LabError(repr(error)))
    finally:
        os._exit(status)


@contextlib.contextmanager
def lined_up(makers):
    """Start a contestant for each {name: make}; yield {name: Contestant}; end them."""
    line = {}
    try:
        for name, make in makers.items():
            line[name] = Contestant(name, make, line.values())
        yield line
    finally:
        for one in line.values():
            one.close()


def race(makers, rounds, warm_up=WARM_UP):
    """Return {name: [ms]}: every contestant once a round, in turn, after some rounds to warm up."""
    times = {name: [] for name in makers}
    with lined_up(makers) as line:
        for number in range(rounds + warm_up):
            for name, one in line.items():
                spent, _ = one.ask(number)
                if number >= warm_up:
                    times[name].append(spent)
    return times


def ratio(times, a, b):
    """Return the median of a/b, pair by pair."""
    return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))


def row(name, spent):
    """Return a table's row of many times of one thing: its name, the shortest, the median, p99."""
    return (name, min(spent), statistics.median(spent), p99(spent))


def p99(spent):
    """Return the time that one in a hundred takes longer than; of a few, the longest."""
    return sorted(spent)[int(len(spent) * 0.99)]
