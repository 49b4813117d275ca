"""Created, but not started: a finished container that waits at a gate.

Whoever manages containers wants two moments apart. `create` makes everything: the
namespaces, the root, the cgroup; then a network can be brought into it, and only
`start` lets its program run. Two processes that never meet must agree on that, so
the gate is a pair of named pipes in the container's folder:

    exec.fifo      the container's process reads: it sleeps until `start` writes a byte
    exec.result    `start` reads: an errno if the program can't be executed, or the
                   end of the file, because exec closes the other side

Both are opened read-write by the process that waits, before it changes its root: an
open for both never blocks, and keeps the pipe alive while nobody else has it open.
See fifo(7).
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Sequence

from labkit.ground.errors import CommandError, InUse, LabError, NotFound, from_plain
from labkit.ground.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_WAIT, _RESULT = "exec.fifo", "exec.result"


def make(folder: str | Path) -> None:
    """Make both pipes in `folder`."""
    for name in (_WAIT, _RESULT):
        os.mkfifo(os.path.join(folder, name), 0o600)


def is_shut(folder: str | Path) -> bool:
    """Tell whether a process still waits, or could: nobody has opened the gate yet."""
    return os.path.exists(os.path.join(folder, _WAIT))


def come_to(folder: str | Path) -> tuple[int, int]:
    """Open both pipes as the one who will wait; return their fds."""
    wait_fd, result = (os.open(os.path.join(folder, name), os.O_RDWR | os.O_CLOEXEC) for name in (_WAIT, _RESULT))
    return wait_fd, result


def wait(fd: int) -> None:
    """Sleep until the gate is opened."""
    while os.read(fd, 1) != b"1":
        pass


def open_for(folder: str | Path, argv: Sequence[str], seconds: float = 10) -> None:
    """Open the gate; return once the program runs. Raises what stopped it.

    Raises InUse if it was opened before, NotFound if the process that waited is gone.
    """
    result = os.open(os.path.join(folder, _RESULT), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        try:
            fd = os.open(os.path.join(folder, _WAIT), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise InUse("cannot start a container that has been started already") from None
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            raise NotFound("the container's process ended before it was started", "delete it") from None
        os.write(fd, b"1")
        os.close(fd)
        os.unlink(os.path.join(folder, _WAIT))
        _await_exec(result, argv, seconds)
    finally:
        os.close(result)


def _await_exec(result: int, argv: Sequence[str], seconds: float) -> None:
    while True:
        if not select.select([result], [], [], seconds)[0]:
            raise LabError(
                f"{argv[0]!r} was let go, and is not running after {seconds} s", "a startContainer hook may hang"
            )
        try:
            message = os.read(result, 1 << 16)
        except BlockingIOError:
            continue
        if not message:
            return
        from labkit.container.channel import read

        kind, value = read(message)
        raise CommandError(argv[0], value) if kind == "errno" and isinstance(value, int) else from_plain(value)
