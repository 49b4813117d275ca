"""The last exec goes through a stranger, so that no program of the host is ever left to find.

Until its exec the child runs the host's Python, and /proc/self/exe is a door to
that file: not a name, the file itself. An image whose program is `/proc/self/exe`,
or a script that begins with `#!/proc/self/exe`, makes the kernel walk through that
door at the very moment of exec; the host's Python then runs in the container, and
its file can be written to (CVE-2019-5736 did it to runc).

So the child first execs a program of some 90 bytes, in memory that is sealed: it
can't be written to, by anyone, ever. That one execs the container's program.
/proc/self/exe is then the little program; whoever follows it finds 90 bytes, sealed.
In C it would be:

    int main(int argc, char **argv) {
        if (fcntl(3, F_SETFD, FD_CLOEXEC) == 0)   // 3: the channel to the parent
            execve(argv[0], argv + 1, environ);
        write(3, &errno, 4);
        _exit(127);
    }

See memfd_create(2), F_ADD_SEALS in fcntl(2), execveat(2), elf(5).
"""

import fcntl
import os
import struct
from collections.abc import Callable

from labkit.ground.errors import Unsupported
from labkit.ground.syscalls import MACHINE

CHANNEL = 3  # the fd that the little program reports on

# The C above, assembled: `objdump -D -b binary -m i386:x86-64` (or -m aarch64) reads it back.
_CODE = {
    "x86_64": (
        62,  # elf.h: EM_X86_64
        "b848000000bf03000000be02000000ba010000000f0585c0781a488b7c2408488d742410488b0c24488d54cc10"
        "b83b0000000f05f7d850bf030000004889e6ba04000000b8010000000f05bf7f000000b8e70000000f05",
    ),
    "aarch64": (
        183,  # elf.h: EM_AARCH64
        "600080d2410080d2220080d2280380d2010000d4e000f837e30340f9e00740f9e1430091220c038ba81b80d2010000d4"
        "e003004be00f1fb8600080d2e1030091820080d2080880d2010000d4e00f80d2c80b80d2010000d4",
    ),
}

# The instruction that names the channel, twice in there: `mov edi, 3`, `mov x0, #3`.
_MOVE: dict[str, Callable[[int], bytes]] = {
    "x86_64": lambda fd: struct.pack("<BI", 0xBF, fd),
    "aarch64": lambda fd: struct.pack("<I", 0xD2800000 | fd << 5),
}


def elf(machine: str | None = None, channel: int = CHANNEL) -> bytes:
    """Return the little program as an ELF file: a header, one segment, the code."""
    machine = machine or MACHINE
    if machine not in _CODE:
        raise Unsupported(f"labkit has no last step for {machine}", "the lab runs on x86-64 and arm64")
    number, digits = _CODE[machine]
    move = _MOVE[machine]
    code = bytes.fromhex(digits).replace(move(CHANNEL), move(channel))
    address, headers = 0x400000, 64 + 56
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, number, 1, address + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = headers + len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, address, address, size, size, 0x1000)
    return ident + header + segment + code


MFD_EXEC = 0x10  # linux/memfd.h


def program(channel: int = CHANNEL) -> int:
    """Return an fd of a new sealed program.

    New each time: who holds one open for writing can't write, but keeps the kernel
    from executing it (ETXTBSY). That may be his own, and not the next container's.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("labkit-last-step", flags | MFD_EXEC)
    except OSError:  # before Linux 6.3 every memfd may be executed, and there is no such flag
        fd = os.memfd_create("labkit-last-step", flags)
    os.write(fd, elf(channel=channel))
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd
