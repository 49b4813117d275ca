"""What the kernel says of a process, read from /proc and never remembered.

Each function opens one file of /proc and returns it as numbers and small
dataclasses. A process may end between two reads: then these raise NotFound, and
a caller that scans many processes goes on to the next.
See proc(5), proc_pid_status(5), proc_pid_mountinfo(5), namespaces(7).
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterable, Iterator

from labkit.ground.dataclass import dataclass
from labkit.ground.errors import NotFound, from_oserror
from labkit.ground.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NAMESPACES = ("mnt", "uts", "ipc", "pid", "net", "user", "cgroup", "time")


def read(path: str | Path) -> str:
    """Return the text of a file below /proc or /sys; NotFound if it is gone."""
    try:
        return read_plain(path)
    except (FileNotFoundError, ProcessLookupError):
        raise NotFound(f"{path} is not there", "the process has ended, or this kernel has no such file") from None
    except OSError as error:
        raise from_oserror(error, f"reading {path}") from None


def read_plain(path: str | Path) -> str:
    """Return the text of a file of the kernel's. Raises OSError. See read(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        blocks = []
        while block := os.read(fd, 1 << 16):
            blocks.append(block)
        return os.fsdecode(b"".join(blocks))
    finally:
        os.close(fd)


def write_plain(path: str | Path, *texts: str) -> None:
    """Write to a file of the kernel's, each text by one write(2), which is how it takes them. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for text in texts:
            os.write(fd, os.fsencode(text))
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Process:
    """One process as its /proc/PID/status and stat have it."""

    pid: int  # as this PID namespace counts
    ppid: int
    nspid: tuple[int, ...]  # its number in each PID namespace it is in, the outermost first
    name: str
    state: str
    uid: int
    gid: int
    threads: int
    cap_eff: int
    cap_bnd: int
    no_new_privs: bool
    seccomp: int
    start_ticks: int  # clock ticks from boot to its start
    cpu_ticks: int  # clock ticks of CPU used, in user and kernel mode

    def __repr__(self) -> str:
        inside = "" if len(self.nspid) < 2 else f", {self.nspid[-1]} inside"
        return f"<{self.name!r} pid {self.pid}{inside}, {self.state}>"


def process(pid: int | str) -> Process:
    """Return the Process `pid`. Raise NotFound if it has ended."""
    status = dict(line.split(":\t", 1) for line in read(f"/proc/{pid}/status").splitlines() if ":\t" in line)
    fields = stat_fields(pid)
    return Process(
        pid=int(status["Pid"]),
        ppid=int(status["PPid"]),
        nspid=tuple(int(number) for number in status["NSpid"].split()),
        name=status["Name"],
        state=status["State"],
        uid=int(status["Uid"].split()[1]),
        gid=int(status["Gid"].split()[1]),
        threads=int(status["Threads"]),
        cap_eff=int(status["CapEff"], 16),
        cap_bnd=int(status["CapBnd"], 16),
        no_new_privs=status["NoNewPrivs"] == "1",
        seccomp=int(status["Seccomp"]),
        start_ticks=int(fields[19]),
        cpu_ticks=int(fields[11]) + int(fields[12]),
    )


def stat_fields(pid: int | str) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on (the third; index 0 here).

    The name before them is in brackets and may hold spaces and brackets itself.
    """
    return read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def cmdline(pid: int | str) -> list[str]:
    """Return the argument list of a process; a kernel thread or zombie has none."""
    return [word for word in read(f"/proc/{pid}/cmdline").split("\0") if word]


def pids() -> list[int]:
    """Return every process id in /proc, in order."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def children(pid: int) -> list[int]:
    """Return the ids of the children of a process."""
    found = []
    for candidate in pids():
        try:
            if int(stat_fields(candidate)[1]) == pid:
                found.append(candidate)
        except NotFound:
            continue
    return found


def start_ticks(pid: int | str) -> int | None:
    """Return when `pid` started, in clock ticks since boot, or None if there is no such process.

    A process id alone is not a name: the kernel gives it out again. The pair
    (pid, start_ticks) never comes twice within one boot.
    """
    try:
        return int(stat_fields(pid)[19])
    except NotFound:
        return None


def is_running(pid: int | str, ticks: int | None) -> bool:
    """Tell whether the process that started at `ticks` still runs (a zombie does not)."""
    try:
        fields = stat_fields(pid)
    except NotFound:
        return False
    return int(fields[19]) == ticks and fields[0] not in "ZX"


@contextlib.contextmanager
def pinned(pid: int, ticks: int | None) -> Iterator[int]:
    """Yield a pidfd of the process that started at `ticks`. Raise NotFound if the number is another's, or nobody's."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise NotFound(f"process {pid} has ended") from None
    try:
        # Asked when the pidfd holds the number: before, it could still go to a stranger.
        if start_ticks(pid) != ticks:
            raise NotFound(f"process {pid} has ended, and another has its number")
        yield pidfd
    finally:
        os.close(pidfd)


def boot_id() -> str:
    """Return the random id the kernel gave this boot."""
    return read("/proc/sys/kernel/random/boot_id").strip()


def namespace(pid: int | str, kind: str) -> int | None:
    """Return the inode number of one namespace of a process: its identity. See namespaces(7)."""
    return namespaces(pid, (kind,)).get(kind)


def namespaces(pid: int | str = "self", kinds: Iterable[str] = NAMESPACES) -> dict[str, int]:
    """Return {kind: inode number} of the namespaces a process is in."""
    found = {}
    for kind in kinds:
        try:
            found[kind] = int(os.readlink(f"/proc/{pid}/ns/{kind}").partition("[")[2].rstrip("]"))
        except (FileNotFoundError, ProcessLookupError):
            if not os.path.exists(f"/proc/{pid}"):
                raise NotFound(f"process {pid} has ended") from None
        except OSError as error:
            raise from_oserror(error, f"reading the {kind} namespace of process {pid}") from None
    return found


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. See proc_pid_mountinfo(5)."""

    id: int
    parent: int
    device: str  # major:minor
    root: str  # which folder of the filesystem is mounted
    target: str  # where
    options: tuple[str, ...]  # of this mount
    propagation: tuple[str, ...]  # shared:N, master:N, unbindable; empty is private
    type: str
    source: str
    super_options: tuple[str, ...]  # of the filesystem, whoever mounts it

    def __repr__(self) -> str:
        spread = " ".join(self.propagation) or "private"
        return f"<{self.type} on {self.target} ({','.join(self.options)}; {spread})>"


def mounts(pid: int | str = "self") -> list[Mount]:
    """Return every Mount that a process sees, in mount order."""
    return parse_mounts(read(f"/proc/{pid}/mountinfo"))


def on_its_filesystem(path: str) -> tuple[str, str]:
    """Return the filesystem that a folder is on, and its path from that filesystem's own root.

    The two paths differ where this process sees a part of the filesystem only: after pivot_root, on a subvolume.
    """
    above = max(
        (mount for mount in mounts() if f"{path}/".startswith(f"{mount.target.rstrip('/')}/")),
        key=lambda mount: (len(mount.target), mount.id),
    )
    return above.device, above.root.rstrip("/") + path[len(above.target.rstrip("/")) :]


def parse_mounts(text: str) -> list[Mount]:
    """Return the Mounts of a mountinfo file's text, in mount order."""
    return [_mount(line) for line in text.splitlines()]


# The file is read anew each time; a line that was there before means the same.
@functools.lru_cache(512)
def _mount(line: str) -> Mount:
    left, right = line.split(" - ", 1)
    number, parent, device, root, target, options, *propagation = left.split(" ")
    kind, source, super_options = right.split(" ", 2)
    return Mount(
        int(number),
        int(parent),
        device,
        unescape(root),
        unescape(target),
        tuple(options.split(",")),
        tuple(propagation),
        kind,
        unescape(source),
        # An overlay's lowerdir may hold an escaped comma: split only at bare ones.
        tuple(unescape(option) for option in re.split(r"(?<!\\),", super_options)),
    )


def unescape(text: str) -> str:
    """Undo the octal escapes that the kernel writes for space, tab, newline and backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text) if "\\" in text else text


def cgroups(pid: int | str = "self") -> dict[str, str]:
    """Return {controller: path} of a process; the v2 tree's key is ''. See cgroups(7)."""
    found: dict[str, str] = {}
    for line in read(f"/proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def id_map(pid: int | str, which: str = "uid") -> list[tuple[int, ...]]:
    """Return [(inside, outside, length)] of a process's user namespace. See user_namespaces(7)."""
    text = read(f"/proc/{pid}/{which}_map")
    return [tuple(int(number) for number in line.split()) for line in text.splitlines()]
