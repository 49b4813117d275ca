"""Who clones: this process, if it is small and alone, else a helper of it.

clone3(2) copies the caller. From a notebook kernel that is dear (hundreds of
megabytes of page tables) and wrong (threads hold locks that the copy would wait
for, for ever): a notebook has a helper, see there. The `lab` command is small and
has one thread: it clones by itself. Whoever clones is the parent, and reaps.
"""

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from labkit.container.channel import Spawned, read
from labkit.container.launch import Job, become
from labkit.ground import proc
from labkit.ground import syscalls as sc
from labkit.ground.errors import KernelError, LabError, from_oserror, from_plain

if TYPE_CHECKING:
    from labkit.container.helper import Helper


def spawn(job: Job, stdio: Sequence[int]) -> Spawned:
    """Clone a process for `job` with `stdio` as its fds 0, 1 and 2; return when its program runs.

    Or when a step has spoken that is its parent's last. Raises what stopped it,
    CommandError if only the last step, exec, failed. The caller must have one thread.
    See clone3(2).
    """
    with job.gathered() as ready:
        return _spawn(ready, stdio)


def _spawn(job: Job, stdio: Sequence[int]) -> Spawned:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    spawned = None
    try:
        pid, pidfd = job.clone()
        if pidfd is None:
            ours.close()  # or it would wait for ever for a parent that was killed
            become(job, theirs, stdio)
        theirs.close()
        spawned = Spawned(pid, pidfd)
        let_go(job, ours, pid)
        follow(job, ours, spawned)
        return spawned
    except OSError as error:
        _abandon(spawned)
        raise from_oserror(error, "starting a process in the container") from None
    except BaseException:
        _abandon(spawned)
        raise
    finally:
        ours.close()
        theirs.close()


def let_go(job: Job, channel: socket.socket, pid: int) -> None:
    """Do for the waiting child what only its parent may, then let it go on."""
    handed = [fd for step in job.parent if (fd := step.execute(pid)) is not None]
    try:
        socket.send_fds(channel, [b"go"], handed)
    finally:
        for fd in handed:
            os.close(fd)


def follow(job: Job, channel: socket.socket, spawned: Spawned) -> None:
    """Answer the child's messages until exec closes its end of the channel. Raises what it reports.

    They are read as from a stranger: in the end it is one, and in a container that
    runs already others may have got at it before. So each step speaks once at most.
    """
    expected = {step.says: step for step in job.steps if step.says}
    while message := _next(channel, spawned, "pid" in expected):
        kind, value, fds = message
        step = expected.pop(kind, None)
        if step is None or not step.answer(spawned, value, fds):
            raise from_plain(value)
        if step.waits:
            channel.send(b"go")
        if step.last:
            return
    # The channel also closes when the child is killed before exec, by the OOM killer
    # for one: then it was labkit's code that died, and the exit status tells.
    if any(step.last for step in expected.values()):
        raise LabError(
            "the container's process was killed before it was ready",
            "by the kernel, if its memory limit is less than some 6 MiB: `dmesg` says so",
        )


def _next(channel: socket.socket, spawned: Spawned, joining: bool) -> tuple[str, object, list[int]] | None:
    """Return the child's next message and the fds with it, None at the end."""
    if joining and channel.fileno() not in select.select([channel.fileno(), spawned.pidfd], [], [])[0]:
        raise LabError("the process that was to enter the container was killed", "`dmesg` may say by whom")
    try:
        message, fds, _, _ = socket.recv_fds(channel, 1 << 18, 1)
    except ConnectionResetError:  # it died with our `go` unread
        return None
    return (*read(message), fds) if message else None


def _abandon(spawned: Spawned | None) -> None:
    if spawned is None:
        return
    with contextlib.suppress(KernelError):
        sc.pidfd_send_signal(spawned.pidfd, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED | WALL)
    os.close(spawned.pidfd)
    if spawned.terminal is not None:
        os.close(spawned.terminal)


def reap(pidfd: int) -> int:
    """Wait for a child; return its exit status as a shell has it: 128+n for signal n."""
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | WALL)
    assert result is not None  # that is with WNOHANG only
    return result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status


# linux/wait.h. A child made with exit signal 0 (`lab exec`) is waited for only with it.
WALL = 0x40000000


class Here:
    """Clone from this process itself."""

    def spawn(self, job: Job, stdio: Sequence[int]) -> Spawned:
        """See `spawn`."""
        return spawn(job, stdio)

    def status(self, spawned: Spawned) -> int:
        """Return the exit status of an ended process, once."""
        return reap(spawned.pidfd)

    def lives(self) -> bool:
        """Tell whether it can be asked."""
        return True

    def owner(self) -> int:
        """Return the process that is the parent of what is cloned."""
        return os.getpid()


_current: "tuple[int, Helper] | None" = None  # (the process that it is of, it)


def close() -> None:
    """End this process's helper, if it has one."""
    global _current
    if _current is not None and _current[0] == os.getpid():
        _current[1].close()
    _current = None


def current() -> "Here | Helper":
    """Return who clones for this process: itself if it has one thread and is no notebook, else a Helper."""
    global _current
    if _current is not None and _current[0] == os.getpid() and _current[1].lives():
        return _current[1]
    alone = int(proc.stat_fields("self")[17]) == 1 and "ipykernel" not in sys.modules
    if alone:
        return Here()
    from labkit.container.helper import Helper  # a command does without

    _current = (os.getpid(), Helper())
    return _current[1]
