"""What goes between a terminal and a container: bytes both ways, sizes, signals.

Without `-t` the container writes to pipes, and what comes out is copied to one's
own output and to the log. With `-t` it has a pseudo-terminal, and one's own
terminal is made raw: every key, Ctrl-C too, goes in as a byte, and the kernel's
line discipline on the container's side makes a signal of it there. The container
never holds an fd of one's own terminal: it could type into it.
See pty(7), termios(3), TIOCSWINSZ in ioctl_tty(2).
"""

import contextlib
import fcntl
import os
import select
import signal
import termios
import tty

from labkit.ground import syscalls
from labkit.ground.errors import KernelError

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def pump(pidfd, routes, on_signal=None, wakeup=None):
    """Copy bytes along `routes` until the process behind `pidfd` ends and its output is drained.

    `routes` is {fd read from: [fds written to]}. An fd to be closed at the end of
    its source is given as a negative number: ~fd.
    """
    routes = dict(routes)
    ended = False
    while True:
        sources = [*routes, *([] if ended else [pidfd]), *([wakeup] if wakeup is not None else [])]
        # After the end only what is already in the pipes is wanted: a process that
        # was left behind may hold them open for ever.
        ready, _, _ = select.select(sources, [], [], 0 if ended else None)
        if wakeup in ready:
            for number in os.read(wakeup, 64):
                on_signal(number)
        moved = False
        for fd in ready:
            if fd in routes and not _copy(fd, routes[fd]):
                for sink in routes.pop(fd):
                    if sink < 0:
                        os.close(~sink)
            elif fd in routes:
                moved = True
        if ended and not moved:
            return
        ended = ended or pidfd in ready


def _copy(source, sinks):
    try:
        data = os.read(source, 65536)
    except OSError:  # EIO: every slave of the terminal is closed
        return False
    for sink in sinks:
        rest = memoryview(data)
        with contextlib.suppress(BrokenPipeError):
            while rest:
                rest = rest[os.write(~sink if sink < 0 else sink, rest) :]
    return bool(data)


@contextlib.contextmanager
def raw(fd):
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


def copy_size(source, target):
    """Give a terminal the rows and columns of another. The kernel sends SIGWINCH to who is on it."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(target, termios.TIOCSWINSZ, fcntl.ioctl(source, termios.TIOCGWINSZ, b"\0" * 8))


def foreground(spawned, pipes, log, interactive, kill):
    """Be in front of a container until it ends: own fds 0, 1, 2, its pipes or terminal, and the log.

    `pipes` are (stdin to write, stdout to read, stderr to read), each may be None;
    `kill` is called when the third Ctrl-C comes, since PID 1 may ignore all.
    """
    interrupts = 0

    def on_signal(number):
        nonlocal interrupts
        if number == signal.SIGWINCH:
            if spawned.terminal is not None:
                copy_size(0, spawned.terminal)
            return
        interrupts += number == signal.SIGINT
        if interrupts >= 3:
            kill()
        with contextlib.suppress(KernelError):
            syscalls.pidfd_send_signal(spawned.pidfd, number)

    # The log's fd is None for `lab exec`.
    logs = [] if log is None else [log]
    with caught() as wakeup:
        if spawned.terminal is not None:
            copy_size(0, spawned.terminal)
            routes = {spawned.terminal: [1, *logs]}
            if interactive:
                routes[0] = [spawned.terminal]
            with raw(0) if interactive else contextlib.nullcontext():
                pump(spawned.pidfd, routes, on_signal, wakeup)
        else:
            stdin, stdout, stderr = pipes
            routes = {stdout: [1, *logs], stderr: [2, *logs]}
            if stdin is not None:
                routes[0] = [~stdin]
            pump(spawned.pidfd, routes, on_signal, wakeup)


def pump_signals(spawned, wakeup):
    """Hand on `caught` signals to a process that has one's own fds already, until it ends."""

    def on_signal(number):
        if number != signal.SIGWINCH:
            with contextlib.suppress(KernelError):
                syscalls.pidfd_send_signal(spawned.pidfd, number)

    pump(spawned.pidfd, {}, on_signal, wakeup)


@contextlib.contextmanager
def caught():
    """Turn signals into bytes on an fd, so that one select waits for everything."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {number: signal.signal(number, lambda *_: None) for number in (*_FORWARDED, signal.SIGWINCH)}
    old = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_end)
        os.close(write_end)
