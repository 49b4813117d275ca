"""An exercise's check: it asks the kernel whether the thing is so, and never reads the answer's text.

    @exercise
    def outside_number(box, answer):
        yield isinstance(answer, int), "your answer is a number", "…", "…"
        yield box.pid == answer, "it is the number of …", "a hint", "a bigger hint"

A check is a generator of requirements: (holds, what is required, hint, bigger hint).
It is followed until the first that does not hold, so a later one may rely on the
earlier ones. The first failure shows the hint, the next the bigger one, and then where the solution is.
What comes back is a Result: true or false, and its repr is what to read. Tried in a
notebook, it counts for the participant's progress: see `lessons`.
"""

import functools
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

from labkit.container.life import Container
from labkit.ground import syscalls as sc
from labkit.ground.child import in_child
from labkit.ground.errors import LabError
from labkit.lessons import coursework

Requirements = Iterator[tuple[Any, ...]]  # (holds, what is required, hint, bigger hint)
_failures: dict[Callable[..., Requirements], int] = {}  # exercise: how often it was tried in vain


class Result:
    """What a check found: which requirements hold, and a hint for the first that does not."""

    def __init__(self, held: list[str], missing: str | None = None, hint: str | None = None) -> None:
        self.held = held
        self.missing = missing
        self.hint = hint

    @property
    def passed(self) -> bool:
        """Whether all holds."""
        return self.missing is None

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        lines = [f"  right    {text}" for text in self.held]
        if self.passed:
            return "\n".join([*lines, "Done."])
        return "\n".join([*lines, f"  not yet  {self.missing}", f"Hint: {self.hint}"])


def exercise(check: Callable[..., Requirements]) -> Callable[..., Result]:
    """Make a generator of requirements into a check that returns a Result."""

    def tried(*arguments: Any, **words: Any) -> Result:
        held: list[str] = []
        try:
            for holds, text, *hints in check(*arguments, **words):
                if not holds:
                    return _failed(check, held, text, hints)
                held.append(text)
        except LabError as error:
            return _failed(check, held, error.message, [error.hint or "look at the message above"])
        _failures.pop(check, None)
        return Result(held)

    def checked(*arguments: Any, **words: Any) -> Result:
        result = tried(*arguments, **words)
        if coursework.in_notebook():
            coursework.note(name, result.passed)
        return result

    name = f"{check.__module__.rpartition('.')[2]}.{check.__name__}"
    named: Any = functools.wraps(check)(checked)
    named.exercise = name
    return named


def running(box: Container) -> tuple[bool, str, str]:
    """Return the requirement that a container runs."""
    return box.status == "running", "the container runs", "start it again: run the cell above"


def forget() -> None:
    """Count what was tried in vain from the beginning: the next hint is a small one."""
    _failures.clear()


def forked(function: Callable[[Any], object], argument: Any, returned: int = 0, raised: int = 1) -> int:
    """Call a participant's function in a child that hears and says nothing; return the child's pid.

    It exits with `returned` or `raised`, and dies with this process.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = raised
        try:
            sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - a notebook's own go elsewhere
            function(argument)
            status = returned
        finally:
            os._exit(status)
    return pid


def hostname_in(pid: int) -> str:
    """Return the host name that a process sees."""

    def look() -> str:
        sc.setns(os.pidfd_open(pid), sc.CLONE_NEWUTS)
        return socket.gethostname()

    return in_child(look)


def _failed(check: Callable[..., Requirements], held: list[str], text: str, hints: list[str]) -> Result:
    tries = _failures[check] = _failures.get(check, 0) + 1
    hint = hints[min(tries, len(hints)) - 1] if hints else ""
    if tries > len(hints):  # it has been read before
        hint = f"{hint}; the solution is folded up below the cell".removeprefix("; ")
    return Result(held, text, hint)
