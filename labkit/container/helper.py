"""A small clean process that clones for a large one: a notebook's spawner.

It is started at the first container, is sent Jobs, and gives back a pid, a pidfd and
perhaps a terminal:

    notebook  ──Job, three fds──▶  helper  ──clone3──▶  container's first process
              ◀──pid, pidfd─────           ◀──error or exec────

It is the parent of what it clones: it reaps it and remembers how it ended. When the
notebook dies, the socket between them closes, and the helper kills its children and
ends. Nothing has to go right in the notebook for that.
"""

import contextlib
import gc
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from labkit.container.channel import Spawned
from labkit.container.launch import Job
from labkit.container.spawner import reap, spawn
from labkit.ground import state
from labkit.ground import syscalls as sc
from labkit.ground.errors import KernelError, LabError, NotFound, from_oserror


class Helper:
    """It, as the notebook knows it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = f"import sys; sys.path.insert(0, {str(state.REPO)!r}); from labkit.container import helper; "
        code += f"helper.serve({theirs.fileno()})"
        with theirs:
            self.process = subprocess.Popen(
                # -S -E: nothing of site-packages; a small process forks fast.
                [sys.executable, "-S", "-E", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Ctrl-C in the notebook's terminal is not for the containers.
                start_new_session=True,
            )
        self.channel = ours
        self.mutex = threading.Lock()

    def lives(self) -> bool:
        """Tell whether it can be asked: it may have been killed."""
        return self.process.poll() is None

    def _ask(self, request: tuple[str, Any], fds: Iterable[int] = ()) -> tuple[Any, list[int]]:
        with self.mutex:
            try:
                # In a file: a message on a socket has an end, and a command may have 60,000 words.
                with open(os.memfd_create("request"), "w+b") as body:
                    pickle.dump(request, body)
                    body.flush()
                    socket.send_fds(self.channel, [b"request"], [body.fileno(), *fds])
                message, fds, _, _ = socket.recv_fds(self.channel, 1 << 18, 2)
            except OSError as error:
                raise from_oserror(error, "talking to the spawner") from None
        if not message:
            raise LabError("the spawner process has ended", "restart the notebook's kernel, then `lab clean`")
        succeeded, value = pickle.loads(message)
        if not succeeded:
            raise value
        return value, fds

    def spawn(self, job: Job, stdio: Sequence[int]) -> Spawned:
        """See `spawn`; done in the helper."""
        pid, fds = self._ask(("spawn", job), stdio)
        return Spawned(pid, *fds)

    def status(self, spawned: Spawned) -> int:
        """Wait for a process; return its exit status, once."""
        select.select([spawned.pidfd], [], [])
        return int(self._ask(("status", spawned.pid))[0])

    def owner(self) -> int:
        """Return the process that is the parent of what is cloned."""
        return self.process.pid

    def close(self) -> None:
        """End the helper, and with it every process that it is the parent of."""
        self.channel.close()
        self.process.wait()


def serve(fd: int) -> None:
    """Be the spawner: answer requests on the socket `fd` until its other end closes."""
    channel = socket.socket(fileno=fd)
    channel.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # a child that collects garbage would look at all that is here, and so copy it
    running: dict[int, int] = {}  # pidfd: pid
    ended: dict[int, int] = {}  # pid: exit status
    while True:
        ready, _, _ = select.select([channel.fileno(), *running], [], [])
        for pidfd in set(ready) & set(running):
            ended[running.pop(pidfd)] = reap(pidfd)
            os.close(pidfd)
        if channel.fileno() in ready:
            message, fds, _, _ = socket.recv_fds(channel, 64, 4)
            if not message:
                break
            reply: tuple[bool, int | LabError]
            give: list[int] = []
            try:
                with open(fds.pop(0), "rb") as body:
                    body.seek(0)
                    kind, value = pickle.load(body)
                answer, give = _answer(kind, value, fds, running, ended)
                reply = (True, answer)
            except LabError as error:
                reply = (False, error)
            for stdio in fds:
                os.close(stdio)
            socket.send_fds(channel, [pickle.dumps(reply)], give)
            # The terminal is the notebook's alone; the pidfd is kept, to reap by.
            for terminal in give[1:]:
                os.close(terminal)
    for pidfd in running:
        with contextlib.suppress(KernelError):
            sc.pidfd_send_signal(pidfd, signal.SIGKILL)
        reap(pidfd)


def _answer(
    kind: str, value: Any, stdio: list[int], running: dict[int, int], ended: dict[int, int]
) -> tuple[int, list[int]]:
    if kind == "spawn":
        spawned = spawn(value, stdio)
        running[spawned.pidfd] = spawned.pid
        terminal = [] if spawned.terminal is None else [spawned.terminal]
        return spawned.pid, [spawned.pidfd, *terminal]
    for pidfd, pid in list(running.items()):
        if pid == value and select.select([pidfd], [], [], 0)[0]:
            ended[running.pop(pidfd)] = reap(pidfd)
            os.close(pidfd)
    if value not in ended:
        raise NotFound(f"process {value} has not ended, or was not started here")
    return ended.pop(value), []
