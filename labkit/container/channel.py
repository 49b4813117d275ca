"""What a child and its parent say to each other, from clone to exec.

A socket between them carries the parent's `go`, and the child's words: a kind and
plain JSON, perhaps with fds. The parent reads them as from a stranger, for at the
end the child is one. Each step of the child says at most one thing, once, and knows
itself what its parent is to answer:

    parent                      child
      ── go ────────────────▶     may begin: its cgroups and ids are set
      ◀──────────────── kind      pid, terminal, error, or a step's own word
      ── go ────────────────▶     if the step waits for an answer
      ◀─────────── the end        exec has closed it

See unix(7), SCM_RIGHTS.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence

from labkit.ground.dataclass import dataclass, field
from labkit.ground.errors import LabError, to_plain
from labkit.ground.typed import ClassVar


@dataclass
class Child:
    """The process between its clone and its exec, and what its steps leave to those after them."""

    channel: socket.socket
    stdio: Sequence[int]
    report_to: int  # the fd that is told what went wrong
    handed: list[int] = field(default_factory=list)  # fds that came with the parent's `go`
    root: int = -1  # the new root, until it is /
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"
    path: str = ""  # of the command
    program: int = -1  # the sealed one that is executed before it
    fds: dict[str, int] = field(default_factory=dict)  # what else a step has opened for a later one

    def await_go(self) -> list[int]:
        """Wait for the parent's `go`, return the fds that come with it; end if the parent is gone."""
        message, fds, _, _ = socket.recv_fds(self.channel, 8, 1)
        if message != b"go":
            os._exit(1)
        return fds

    def say(self, kind: str, value: object = None, fds: Sequence[int] = ()) -> None:
        """Send a message to the parent: its kind and plain data, perhaps fds with it."""
        socket.send_fds(self.channel, [_message(kind, value)], list(fds))

    def ask(self, kind: str, value: object = None) -> None:
        """Have the parent do what only it may, and wait until it has."""
        self.say(kind, value)
        self.await_go()

    def report(self, error: LabError) -> None:
        """Say what went wrong to who waits for it."""
        os.write(self.report_to, _message("error", to_plain(error)))


def _message(kind: str, value: object) -> bytes:
    return json.dumps([kind, value]).encode(errors="replace")


def read(message: bytes) -> tuple[str, object]:
    """Return the kind and the value of a message; one that has neither is `unreadable`."""
    if len(message) == 4:  # the last step's errno, see last_exec
        return "errno", int.from_bytes(message, sys.byteorder)
    try:
        match json.loads(message):
            case [str(kind), value]:
                return kind, value
    except (ValueError, RecursionError):
        pass
    return "unreadable", message[:200]


@dataclass
class Spawned:
    """A process that is to run a job's program, or does."""

    pid: int
    pidfd: int
    terminal: int | None = None  # the master side, if the job asked for one


class Step:
    """One thing that a process does to itself on its way from clone to exec."""

    says: ClassVar[str] = ""  # the kind of the one message that it sends, if it sends one
    waits: ClassVar[bool] = False  # for a `go` after that
    last: ClassVar[bool] = False  # the parent follows it no further

    def describe(self) -> str | list[str]:
        """Return what it does, in a line or several."""
        raise NotImplementedError

    def execute(self, child: Child) -> None:
        """Do it, in the child. Raises LabError or OSError."""
        raise NotImplementedError

    def answer(self, spawned: Spawned, value: object, fds: list[int]) -> bool:
        """Do what its message asks for, in the parent; tell whether the message can be meant."""
        return False
