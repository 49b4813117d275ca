"""The process that clones: here if this process is small and alone, else in a helper.

clone3(2) copies the caller. From a notebook kernel that is dear (hundreds of
megabytes of page tables) and wrong (threads hold locks that the copy would wait
for, for ever). So a notebook starts one small clean process, the spawner, sends
it Jobs, and gets back a pid, a pidfd and perhaps a terminal:

    notebook  ──Job, three fds──▶  spawner  ──clone3──▶  container's first process
              ◀──pid, pidfd──────           ◀──error or exec────

Could the clone not share the memory until exec, by CLONE_VM | CLONE_VFORK? That copies
nothing, and C programs do it. But between clone and exec our child runs Python, and in
the parent's memory it would leave behind a Python that stands in the middle of the
child's code: tried, the parent went on with `SystemError: unknown opcode`. Nor could a
parent that sleeps until exec map ids for the child meanwhile.

The spawner is the parent of what it clones: it reaps it and remembers how it
ended. When the notebook dies, the socket between them closes, and the spawner
kills its children and ends. Nothing has to go right in the notebook for that.
The `lab` command is small and has one thread: it clones by itself.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable, Sequence

from labkit.container.channel import Spawned, read
from labkit.container.launch import Job, become
from labkit.ground import proc, state
from labkit.ground import syscalls as sc
from labkit.ground.errors import KernelError, LabError, NotFound, from_oserror, from_plain
from labkit.ground.later import Later
from labkit.ground.typed import Any

pickle, subprocess, threading = map(Later, ("pickle", "subprocess", "threading"))  # a command does without


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


class Helper:
    """A spawner process of one's own, started at the first job."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = f"import sys; sys.path.insert(0, {str(state.REPO)!r}); from labkit.container import spawner; "
        code += f"spawner.serve({theirs.fileno()})"
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


_current: tuple[int, Helper] | None = None  # (the process that it is of, it)


def close() -> None:
    """End this process's helper, if it has one."""
    global _current
    if _current is not None and _current[0] == os.getpid():
        _current[1].close()
    _current = None


def current() -> Here | Helper:
    """Return who clones for this process: itself if it has one thread and is no notebook, else a Helper."""
    global _current
    if _current is not None and _current[0] == os.getpid() and _current[1].lives():
        return _current[1]
    alone = int(proc.stat_fields("self")[17]) == 1 and "ipykernel" not in sys.modules
    if alone:
        return Here()
    _current = (os.getpid(), Helper())
    return _current[1]
