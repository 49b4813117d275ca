"""Checks of chapter 02: numbers, signals, zombies."""

import time

from labkit.ground import proc
from labkit.ground.errors import LabError, NotFound
from labkit.lessons.checks import exercise


@exercise
def outside_number(box, answer, inside=3):
    """The answer is what the host calls the process that is number `inside` in the container."""
    yield box.status == "running", "the container runs", "start it again: run the cell above"
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
def ends_when_asked(box, seconds=2):
    """PID 1 of the container handles SIGTERM, ends soon after it, and says 0. Ends the container."""
    import signal

    yield box.status == "running", "the container runs", "start it again: run the cell above"
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


def _catches(pid, number, within):
    """Tell whether a process has, or soon gets, a handler for a signal: SigCgt in /proc/PID/status."""
    deadline = time.monotonic() + within
    while True:
        lines = dict(line.split(":\t") for line in proc.read(f"/proc/{pid}/status").splitlines() if ":\t" in line)
        if int(lines["SigCgt"], 16) >> (number - 1) & 1:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


def zombies(pid):
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
def reaps_orphans(box, orphans=5, seconds=2):
    """PID 1 of the container waits for orphans: `orphans` are made in it, and none stays a zombie."""
    yield box.status == "running", "the container runs", "start it again: run the cell above"
    before = proc.start_ticks(box.pid)
    try:
        box.exec(["sh", "-c", f"for n in $(seq {orphans}); do (true &); done"])
    except LabError as error:
        yield False, "processes can be made in it", f"{error.message}"
    deadline = time.monotonic() + seconds
    time.sleep(0.3)
    while zombies(box.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield (
        not zombies(box.pid),
        f"{orphans} orphans were made, and none is left as a zombie",
        "something must call wait(2) in PID 1: which program does?",
        "start it with init=True, or let PID 1 be a shell that waits: sleep 1000 & wait",
    )
    yield proc.is_running(box.pid, before), "PID 1 is still the same process", "it must go on living"
