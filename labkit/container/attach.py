"""What goes between a terminal and a container: bytes both ways, sizes, signals.

Without `-t` the container writes to pipes, and what comes out is copied to one's
own output and to the log. With `-t` it has a pseudo-terminal, and one's own
terminal is made raw: every key, Ctrl-C too, goes in as a byte, and the kernel's
line discipline on the container's side makes a signal of it there. The container
never holds an fd of one's own terminal: it could type into it.

Each direction is a Flow with a buffer of its own, and no write waits: a container
that does not read its input still has its output read. Signals are handed on by
their handlers, so no pipe that is full can hold one up.
See pty(7), termios(3), TIOCSWINSZ in ioctl_tty(2), pipe(7).
"""

import contextlib
import errno
import fcntl
import os
import select
import signal
import struct
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from types import FrameType

from labkit.container.spawner import Spawned
from labkit.ground import syscalls
from labkit.ground.errors import KernelError
from labkit.ground.signals import Interrupted

_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_FORWARDED = {*_ENDING, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGWINCH}

Keep = Callable[[bytes], None]


class Flow:
    """Bytes on their way from one fd to another, no more of them waiting than one read brought."""

    def __init__(
        self,
        source: FileIO,
        sink: FileIO | None,
        keep: Keep | None = None,
        inward: bool = False,
        unread: Callable[[], None] | None = None,
    ) -> None:
        self.source, self.sink, self.keep = source, sink, keep
        self.inward = inward  # into the container: the sink is closed at the end of the source
        self.unread = unread or source.close  # called when nobody reads any more: whoever writes is to learn it
        self.waiting = memoryview(b"")
        self.open = True  # more may come
        self.error: OSError | None = None  # what the sink said, if it took no more

    def read(self) -> None:
        """Take in what there is; the end of the source is the sink's too."""
        try:
            data = self.source.read(65536)
        except OSError:  # EIO: every slave of the terminal is closed
            data = b""
        if data is None:
            return
        self.open = bool(data)
        if data and self.keep:
            self.keep(data)
        if self.sink:
            self.waiting = memoryview(data)
        self._end()

    def write(self) -> None:
        """Hand on what a pipe that poll(2) calls writable takes without waiting."""
        assert self.sink
        try:
            self.waiting = self.waiting[self.sink.write(self.waiting[: select.PIPE_BUF]) or 0 :]
        except OSError as error:
            self.error, self.waiting = error, memoryview(b"")
            if self.inward or error.errno == errno.EPIPE:
                self.open = False
                self.sink.close() if self.inward else self.unread()
            self.sink = None
        self._end()

    def _end(self) -> None:
        if self.inward and self.sink and not self.open and not self.waiting:
            self.sink.close()
            self.sink = None


def pump(pidfd: int, flows: Sequence[Flow]) -> None:
    """Let `flows` run until the process behind `pidfd` ends and what it wrote is handed on."""
    ended = False
    while True:
        poll = select.poll()
        # After the end only what is already in the pipes is wanted: a process that was left
        # behind may hold them open for ever.
        flows = [flow for flow in flows if flow.waiting or (flow.open and not (ended and flow.inward))]
        wanted: dict[int, int] = {} if ended else {pidfd: select.POLLIN}
        for flow in flows:
            fd = flow.sink.fileno() if flow.waiting and flow.sink else flow.source.fileno()
            wanted[fd] = wanted.get(fd, 0) | (select.POLLOUT if flow.waiting else select.POLLIN)
        for fd, mask in wanted.items():
            poll.register(fd, mask)
        full = any(flow.waiting for flow in flows)
        ready = dict(poll.poll(0 if ended and not full else None))
        if ended and not ready:
            return
        for flow in flows:
            if flow.waiting and flow.sink and _may(ready.get(flow.sink.fileno(), 0), select.POLLOUT):
                flow.write()
            elif not flow.waiting and _may(ready.get(flow.source.fileno(), 0), select.POLLIN):
                flow.read()
        if pidfd in ready:
            ended = True
            flows = [flow for flow in flows if not flow.inward]


def _may(events: int, wanted: int) -> bool:
    # An error or a hangup is learnt by trying.
    return bool(events & (wanted | select.POLLHUP | select.POLLERR | select.POLLNVAL))


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Make a terminal hand over every key as it is, and give it back as it was."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def size_of(fd: int) -> tuple[int, int] | None:
    """Return the rows and columns of a terminal; None for what is none."""
    with contextlib.suppress(OSError):
        rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))
        return rows, columns
    return None


def copy_size(source: int, target: int) -> None:
    """Give a terminal the rows and columns of another. The kernel sends SIGWINCH to who is on it."""
    if size := size_of(source):
        with contextlib.suppress(OSError):
            fcntl.ioctl(target, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))


def foreground(
    spawned: Spawned,
    pipes: Sequence[FileIO | None],
    keep: Sequence[Keep | None],
    interactive: bool,
    kill: Callable[[], None],
    signals: "Signals | None" = None,
) -> OSError | None:
    """Be in front of a container until it ends: own fds 0, 1, 2, its pipes or terminal, and the log.

    `pipes` are (stdin to write, stdout to read, stderr to read), each may be None; `keep`
    are called with what came from stdout and from stderr. `kill` is called when the third
    Ctrl-C comes, since PID 1 may ignore all. Returns why some of the output could not be
    written, if so: a reader who left is no such reason.
    """
    with contextlib.ExitStack() as stack:
        signals = signals or stack.enter_context(caught())
        signals.hand_to(_sender(spawned, kill))
        if spawned.terminal is not None:
            copy_size(0, spawned.terminal)
            if interactive:
                stack.enter_context(raw(0))
            flows = _terminal_flows(spawned.terminal, keep[0], interactive, kill)
        else:
            stdin, stdout, stderr = pipes
            assert stdout and stderr
            flows = [Flow(stdout, _own(1), keep[0]), Flow(stderr, _own(2), keep[1])]
            if stdin:
                os.set_blocking(stdin.fileno(), False)
                flows.append(Flow(_own(0), stdin, inward=True))
        pump(spawned.pidfd, flows)
        signals.hand_to(lambda number: None)  # its pidfd is closed next
    lost = [flow.error for flow in flows if flow.error and not flow.inward and flow.error.errno != errno.EPIPE]
    return lost[0] if lost else None


def _terminal_flows(fd: int, keep: Keep | None, interactive: bool, kill: Callable[[], None]) -> list[Flow]:
    os.set_blocking(fd, False)
    terminal = FileIO(fd, "r+b", closefd=False)
    # A terminal that nobody reads has no SIGPIPE, and its hangup is nothing to PID 1.
    flows = [Flow(terminal, _own(1), keep, unread=kill)]
    if interactive:
        flows.append(Flow(_own(0), FileIO(fd, "r+b", closefd=False), inward=True))
    return flows


def _own(fd: int) -> FileIO:
    return FileIO(fd, "wb" if fd else "rb", closefd=False)


def _sender(spawned: Spawned, kill: Callable[[], None]) -> Callable[[int], None]:
    """Return what hands a signal on to a process that was started."""
    interrupts = 0

    def send(number: int) -> None:
        nonlocal interrupts
        if number == signal.SIGWINCH and spawned.terminal is not None:
            copy_size(0, spawned.terminal)
            return
        interrupts += number == signal.SIGINT
        if interrupts >= 3:
            kill()
        # It has ended, and what it wrote goes to somebody who does not read it.
        if number in _ENDING and select.select([spawned.pidfd], [], [], 0)[0]:
            raise Interrupted(number)
        with contextlib.suppress(KernelError):
            syscalls.pidfd_send_signal(spawned.pidfd, number)

    return send


def behind(spawned: Spawned, pipes: Sequence[FileIO | None], keep: Sequence[Keep]) -> None:
    """Keep what a container writes until it ends, with nobody in front of it."""
    if spawned.terminal is not None:
        os.set_blocking(spawned.terminal, False)
        sources: list[FileIO | None] = [FileIO(spawned.terminal, "r+b", closefd=False)]
    else:
        sources = list(pipes[1:])
    pump(spawned.pidfd, [Flow(source, None, each) for source, each in zip(sources, keep, strict=False) if source])


def pump_signals(spawned: Spawned, signals: "Signals") -> None:
    """Hand on `caught` signals to a process that has one's own fds already, until it ends."""
    signals.hand_to(_sender(spawned, lambda: None))
    pump(spawned.pidfd, [])


class Signals:
    """What signals come to this process: kept until there is somebody to hand them on to."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self._to: Callable[[int], None] = self._keep

    def _keep(self, number: int) -> None:
        # Whoever sends a second one may be waiting for a lock that never comes free.
        if number in _ENDING and _ENDING & set(self.kept):
            self._to = self.kept.append  # once: what has to be taken back is not interrupted again
            raise Interrupted(number)
        self.kept.append(number)

    def hand_to(self, function: Callable[[int], None]) -> None:
        """Call `function` with each signal from now on, first with those that were kept."""
        self._to, kept, self.kept = function, self.kept, []
        for number in kept:
            function(number)

    def check(self) -> None:
        """Raise Interrupted if one was kept that asks this process to end."""
        for number in self.kept:
            if number in _ENDING:
                self._to = self.kept.append
                raise Interrupted(number)

    def handler(self, number: int, frame: FrameType | None) -> None:
        """Be what the kernel calls, see signal(7)."""
        self._to(number)


@contextlib.contextmanager
def caught() -> Iterator[Signals]:
    """Keep signals from ending this process, and hand them to whoever is told by the Signals given."""
    signals = Signals()
    # nohup(1) means what it says; a shell's `&` also has SIGINT ignored, and that nobody meant.
    wanted = _FORWARDED - ({signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set())
    before = {number: signal.signal(number, signals.handler) for number in wanted}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
