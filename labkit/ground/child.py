"""Where kernel work is done: in a child, never in the notebook's own process.

A notebook kernel has threads and much memory. unshare(2) and setns(2) change one
thread only, several namespaces refuse a process with threads, and a mistake would
leave the notebook itself in the wrong place. So a cell hands a function to
`in_child`: a forked copy calls it, and what it returns, prints or raises comes
back through pipes. Then the copy is gone, and with it every namespace, mount and
working directory it had changed.
"""

import codecs
import io
import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Callable

from labkit.ground import syscalls
from labkit.ground.errors import LabError, from_oserror
from labkit.ground.typed import Any, NoReturn, TypeVar, cast

T = TypeVar("T")


class ChildDied(LabError):
    """The child ended without an answer: killed, or it called exec or exit itself."""

    def __init__(self, code: int) -> None:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        super().__init__(f"the child {how} before it could answer")
        self.code = code


def in_child(function: Callable[..., T], *arguments: Any, timeout: float = 60) -> T:
    """Call `function(*arguments)` in a forked child; print what it prints, return what it returns.

    An exception in the child is raised here. What is returned must be picklable.
    The child is killed when its parent dies, and after `timeout` seconds. Raises
    ChildDied if it ends without an answer. See fork(2).
    """
    answer, answer_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    output, output_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _be_the_child(function, arguments, answer_write, output_write)
    os.close(answer_write)
    os.close(output_write)
    pidfd = os.pidfd_open(pid)
    try:
        pickled = _listen(pidfd, answer, output, time.monotonic() + timeout)
    finally:
        # Also when the wait above is interrupted: no child is left behind. A child
        # that has answered is on its way out already.
        if not select.select([pidfd], [], [], 1)[0]:
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for fd in (pidfd, answer, output):
            os.close(fd)
    if not pickled:
        raise ChildDied(code)
    succeeded, value = pickle.loads(pickled)
    if succeeded:
        return cast(T, value)
    raise value


def _listen(pidfd: int, answer: int, output: int, deadline: float) -> bytearray:
    """Print the child's output as it comes; return its whole answer.

    Ends when the child does, not when the pipes do: a grandchild that outlives it
    holds copies of both.
    """
    received = {answer: bytearray(), output: bytearray()}
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    waiting = {pidfd, answer, output}
    while pidfd in waiting:
        ready, _, _ = select.select(waiting, [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise LabError("the child took too long and was killed", "a larger timeout= gives it more time")
        for fd in received:
            if fd in waiting and _drain(fd, received[fd]):
                waiting.discard(fd)
        waiting -= {pidfd} & set(ready)
        sys.stdout.write(decode(bytes(received[output])))
        received[output].clear()
    return received[answer]


def _drain(fd: int, into: bytearray) -> bool:
    """Read what is there; return True at the end of the pipe."""
    try:
        while block := os.read(fd, 65536):
            into += block
    except BlockingIOError:
        return False
    return True


def _be_the_child(function: Callable[..., object], arguments: tuple[Any, ...], answer: int, output: int) -> NoReturn:
    """Run the function with fds 1 and 2 on a pipe, answer, and never return."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        for fd in (answer, output):
            os.set_blocking(fd, True)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(1, "wb", 0, closefd=False), write_through=True)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        view = memoryview(_reply(function, arguments))
        while view:
            view = view[os.write(answer, view) :]
    finally:
        # _exit, not exit: the parent's atexit handlers and open files are not ours.
        os._exit(0)


def _reply(function: Callable[..., object], arguments: tuple[Any, ...]) -> bytes:
    reply: tuple[bool, object]
    try:
        reply = (True, function(*arguments))
    except LabError as error:
        reply = (False, error)
    except OSError as error:
        reply = (False, from_oserror(error, "a call in the child"))
    except BaseException as error:  # noqa: BLE001 - whatever it was, the parent raises it
        reply = (False, error)
    try:
        return pickle.dumps(reply)
    except Exception as error:  # noqa: BLE001 - pickle raises many kinds
        return pickle.dumps((False, LabError(f"the child's answer can't be sent back: {error}")))
