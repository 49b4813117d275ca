"""Small programs that use one thing only, to be run inside a container.

To see a limit one needs something that runs into it, and into nothing else. Each
function here returns a command, as a list of words, of busybox's own tools: no
compiler, no Python, nothing to add to the image.

    run("busybox", *workloads.grow(64), memory="32m")

All run until they are killed, if not said otherwise. They are run with `exec`
where it matters, so that the process that uses the thing is the one that is
limited, killed or counted, and no shell beside it.
"""

from labkit.ground.errors import BadValue


def _whole(name, value, most):
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise BadValue(f"{name} {value!r} is not a whole number in 1..{most}")
    return value


def _sh(script):
    return ["sh", "-c", script]


def spin(processes=1):
    """Use as much CPU as there is, in so many processes, and no memory."""
    more = _whole("processes", processes, 256) - 1
    start = f"i=0; while [ $i -lt {more} ]; do (while :; do :; done) & i=$((i+1)); done; " if more else ""
    return _sh(start + "while :; do :; done")


def bursts(loops=40_000, rest=0.2):
    """Count to `loops`, sleep `rest` seconds, and again: an uneven load, as a web server's."""
    _whole("loops", loops, 10**9)
    return _sh(f"while :; do i=0; while [ $i -lt {loops} ]; do i=$((i+1)); done; sleep {float(rest)}; done")


def grow(megabytes, step=1, every=0.02):
    """Take `megabytes` MiB of anonymous memory, `step` MiB every `every` seconds (0: at once), then hold them.

    One awk process and its array: it is the one that the OOM killer finds.
    """
    _whole("megabytes", megabytes, 1 << 20), _whole("step", step, 1024)
    pause = f'system("sleep {float(every)}")' if every else ""
    return [
        "awk",
        f'BEGIN {{ block = sprintf("%{step << 20}s", ""); '
        f"while (n < {megabytes // step}) {{ kept[n++] = block; {pause} }} "
        'system("sleep 100000") }',
    ]


def touch_cache(megabytes, path="/tmp/cached"):
    """Write a file of `megabytes` MiB and read it again and again: page cache, which can be given back."""
    _whole("megabytes", megabytes, 1 << 20)
    return _sh(
        f"dd if=/dev/zero of={path} bs=1M count={megabytes} 2>/dev/null; "
        f"while :; do cat {path} > /dev/null; sleep 0.05; done"
    )


def fork(processes, every=0.02):
    """Start `processes` sleeping processes, one every `every` seconds, until all are there or one is refused."""
    _whole("processes", processes, 1 << 20)
    # ash ends when a fork of its is refused. So it tries in a child, and what
    # remains is an exec, which needs no fork.
    script = f"i=0; while [ $i -lt {processes} ]; do sleep 100000 & sleep {float(every)}; i=$((i+1)); done"
    return _sh(f"sh -c '{script}' 2>/dev/null; exec sleep 100000")


def bomb():
    """Two of each, and two of each of those: the fork bomb. Only with pids_limit!"""
    return _sh("bomb() { bomb | bomb & }; bomb 2>/dev/null; exec sleep 100000")


def write(kilobytes=64, path="/tmp/written"):
    """Write blocks of `kilobytes` KiB to the disk, past the page cache (O_DIRECT), over and over."""
    _whole("kilobytes", kilobytes, 1 << 16)
    return _sh(
        f"while :; do dd if=/dev/zero of={path} bs={kilobytes}k count=4096 oflag=direct conv=notrunc 2>/dev/null; done"
    )


def read(megabytes=64, kilobytes=64, path="/tmp/read"):
    """Make a file of `megabytes` MiB, then read it from the disk in blocks of `kilobytes` KiB, over and over."""
    _whole("megabytes", megabytes, 1 << 20), _whole("kilobytes", kilobytes, 1 << 16)
    return _sh(
        f"dd if=/dev/zero of={path} bs=1M count={megabytes} oflag=direct 2>/dev/null; "
        f"while :; do dd if={path} of=/dev/null bs={kilobytes}k iflag=direct 2>/dev/null; done"
    )
