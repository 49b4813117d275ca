"""Checks of chapter 02: numbers, signals, zombies."""

import time

from labkit.container.life import Container
from labkit.ground import proc
from labkit.ground.errors import LabError, NotFound
from labkit.lessons.checks import Requirements, exercise, running
from labkit.lessons.watch.measuring import until


@exercise
def outside_number(box: Container, answer: object, inside: int = 3) -> Requirements:
    """Find what the host calls a process that has another number in its container."""
    yield running(box)
    yield isinstance(answer, int), "the answer is a number", "an int, not a text"
    yield (
        any(process.pid == answer for process in box.top()),
        "the answer is a process of this container",
        "box.top() returns the container's processes",
        "each Process in box.top() has .pid, the host's number, and .nspid, all its numbers",
    )
    yield (
        proc.process(answer).nspid[-1] == inside,
        f"inside, it is number {inside}",
        "the last number in .nspid is the innermost",
        f"take the .pid of the one whose .nspid[-1] is {inside}",
    )


@exercise
def ends_when_asked(box: Container, seconds: float = 2) -> Requirements:
    """Give PID 1 a handler for SIGTERM, so that its container ends at once and says 0.

    Ends the container.
    """
    import signal

    yield running(box)
    yield (
        _catches(box.pid, signal.SIGTERM, within=3),
        "PID 1 has a handler for SIGTERM",
        "the kernel drops a signal that PID 1 has no handler for: give it one",
        "in a shell: trap 'exit 0' TERM",
    )
    box.kill(signal.SIGTERM)
    ended = box.wait(timeout=seconds) is not None
    if not ended:
        box.kill()
    yield (
        ended,
        f"it ended within {seconds} s of SIGTERM",
        "the handler must end the shell, and a shell runs it only between two commands",
        "trap 'exit 0' TERM; while true; do sleep 0.1; done",
    )
    yield box.wait() == 0, "its exit status is 0", "`exit 0` in the handler: it ended because it was told to"


def _catches(pid: int, number: int, within: float) -> bool:
    """Tell whether a process has, or soon gets, a handler for a signal: SigCgt in /proc/PID/status."""

    def caught() -> bool:
        lines = dict(line.split(":\t") for line in proc.read(f"/proc/{pid}/status").splitlines() if ":\t" in line)
        return bool(int(lines["SigCgt"], 16) >> (number - 1) & 1)

    return until(caught, within)


def zombies(pid: int) -> list[proc.Process]:
    """Return the dead children of `pid` that nobody has waited for."""
    found = []
    for child in proc.children(pid):
        try:
            process = proc.process(child)
        except NotFound:
            continue
        if process.state.startswith("Z"):
            found.append(process)
    return found


@exercise
def reaps_orphans(box: Container, orphans: int = 5, seconds: float = 2) -> Requirements:
    """Start a container in which orphans don't stay zombies."""
    yield running(box)
    before = proc.start_ticks(box.pid)
    try:
        box.exec(["sh", "-c", f"for n in $(seq {orphans}); do (true &); done"])
    except LabError as error:
        yield False, "processes can be made in it", f"{error.message}"
    time.sleep(0.3)
    yield (
        until(lambda: not zombies(box.pid), seconds - 0.3),
        f"{orphans} orphans were made, and none is left as a zombie",
        "something must call wait(2) in PID 1: which program does?",
        "start it with init=True, or let PID 1 be a shell that waits: sleep 1000 & wait",
    )
    yield proc.is_running(box.pid, before), "PID 1 is still the same process", "it must go on living"
