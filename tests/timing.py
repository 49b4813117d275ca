"""Waiting, and what a clock is worth on this machine: a busy or an emulated one keeps its timers late.

A CPU quota is handed out by a timer, once a period. The kernel hands out one
period's quota however many have passed meanwhile, so on a machine whose timers
are late a group gets less than its quota, and no limit is to blame.
"""

import time
from pathlib import Path


def until(condition, seconds=60, what="it"):
    """Return what `condition()` says as soon as it says anything; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}, in vain"
        time.sleep(0.01)
    return answer


def late_by(seconds, tries=30):
    """Return how late a sleep of so many seconds ends, as a share of it: 0.5 is half as long again."""
    started = time.monotonic()
    for _ in range(tries):
        time.sleep(seconds)
    return (time.monotonic() - started) / (tries * seconds) - 1


def emulated():
    """Tell whether a program plays this machine's CPU: its clock runs on while the other machine does something else."""
    return "QEMU TCG" in Path("/proc/cpuinfo").read_text()
