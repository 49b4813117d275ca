"""Waiting for a cgroup to say something, without asking again and again.

A loop that reads a file every millisecond costs CPU and still comes late. The
kernel offers better, and each kind of news has its own door:

    v2   memory.events, pids.events, cgroup.events wake a poll(2) when they change
    v1   an eventfd, handed in through cgroup.event_control (memory only)
    PSI  a threshold written into a .pressure file, then poll(2) on it

No door exists for "was throttled": the kernel counts it in cpu.stat and tells
nobody. What comes nearest is a PSI threshold on cpu.pressure.
See poll(2), eventfd(2), Documentation/admin-guide/cgroup-v1/memory.rst (9. Event control),
Documentation/accounting/psi.rst.
"""

import os
import select
import time
from pathlib import Path

from labkit.errors import KernelError, LabError, Unsupported


def flat(text):
    """Return the lines `name number` of a cgroup file as a dict."""
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def wait_for(path, condition, timeout):
    """Return the text of a cgroup file once `condition(text)` holds, or None after `timeout` seconds.

    Sleeps in poll(2) until the kernel marks the file as changed. A folder that is
    gone counts as an empty text. See Documentation/admin-guide/cgroup-v2.rst, "File modified events".
    """
    deadline = time.monotonic() + timeout
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        while True:
            # Read before each wait: reading is what arms the next wake-up.
            try:
                text = os.pread(fd, 65536, 0).decode()
            except OSError:  # ENODEV: the folder was removed while we held the file
                return ""
            if condition(text):
                return text
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            poll.poll(left * 1000)
    finally:
        os.close(fd)
