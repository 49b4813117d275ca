"""The small process that reads cgroup files at a fixed rate. `sampling` starts it.

A thread of the notebook would share Python's one lock with whatever the notebook
does, and come late. So this is a process of its own, and does next to nothing:
open fds come in from the parent, each is read with one pread(2), the bytes go out
as they are. Numbers are made of them later, where it costs the workload nothing.

    python -I -S reader.py PARENT RATE OUT FD[@MOST]…

A file that is disturbed by being read often is read at most MOST times a second, and
in between its last text goes out again.

It sleeps until an absolute time, so a late sample does not make the next one
late too. It ends when its parent is gone, or when a file is.
"""

import contextlib
import os
import struct
import sys
import time

MOST = 64 << 20  # bytes written at most: a forgotten reader must not fill memory
HEAD = struct.Struct("=Idd")  # bytes that follow, when it was due, when it was read (s, CLOCK_MONOTONIC)
LENGTH = struct.Struct("=I")


def read_on(parent, rate, out, fds):
    """Read every (fd, most a second) `rate` times a second and append one record a time to `out`."""
    period = 1 / rate
    texts = {}  # fd: what was read last
    again = {fd: 0.0 for fd, _ in fds}  # fd: when it may be read next
    due = time.monotonic()
    written = 0
    while written < MOST and os.getppid() == parent:
        now = time.monotonic()
        parts = []
        for fd, most in fds:
            if due >= again[fd]:
                try:
                    texts[fd] = os.pread(fd, 16384, 0)
                except OSError:  # ENODEV: the cgroup has been removed
                    return
                if most:
                    again[fd] = due + 1 / most - 1e-3  # not a whole period later for a rounding
            parts += (LENGTH.pack(len(texts[fd])), texts[fd])
        body = b"".join(parts)
        written += os.write(out, HEAD.pack(len(body), due, now) + body)
        due += period
        left = due - time.monotonic()
        if left < 0:  # more than a period late: those samples are lost, the next is on time again
            due += period * int(1 - left / period)
            left = due - time.monotonic()
        time.sleep(max(0, left))


def main(arguments):
    parent, rate, out, *fds = arguments
    with contextlib.suppress(OSError):
        os.nice(-10)  # it runs 1 % of the time, but that when it is due
    if sys.stdin.buffer.read(1) == b"g":  # go: the parent has written us in its ledger
        read_on(int(parent), float(rate), int(out), [_fd_and_most(word) for word in fds])


def _fd_and_most(word):
    fd, _, most = word.partition("@")
    return int(fd), float(most) if most else None


if __name__ == "__main__":
    main(sys.argv[1:])
