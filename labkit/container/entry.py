"""How a process gets into its cgroup: born in v2's, by its own hand into v1's.

    v2    clone3(2) with CLONE_INTO_CGROUP: there is no moment at which it is elsewhere
    v1    the child writes itself into `tasks` of each hierarchy, before anything else

A thread that moves itself (0 in `tasks`) is cheap. To move a process by its number
the kernel stops all forks on the machine, and waits some 10 ms for that.
On a hybrid machine both are done. See cgroups(7), clone(2).
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from labkit.container.channel import Child, Step
from labkit.ground import proc
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import from_oserror


@dataclass(frozen=True)
class Entry(Step):
    """The way into one cgroup; without folders there is none to enter."""

    v2: str | None = None
    v1: tuple[str, ...] = ()

    @classmethod
    def into(cls, folders: Iterable[tuple[int, Path | str]], beside: int | None = None) -> "Entry":
        """Return the way into a cgroup that is these (version, folder), one a hierarchy.

        With `beside`, the pid of its first process: if that has moved to a folder below, and made
        of its cgroup one that hands controllers down (as systemd does in a container), to there.
        """
        places = [(version, _holding(version, str(folder), beside)) for version, folder in folders]
        born = next((folder for version, folder in places if version == 2), None)
        return cls(born, tuple(folder for version, folder in places if version == 1))

    @contextlib.contextmanager
    def birthplace(self) -> Iterator[int | None]:
        """Yield v2's folder as an fd for clone3, or None."""
        if self.v2 is None:
            yield None
            return
        fd = os.open(self.v2, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def describe(self) -> list[str]:
        return ["enter the cgroup of each v1 hierarchy"] if self.v1 else []

    def execute(self, child: Child) -> None:
        for folder in self.v1:
            path = f"{folder}/tasks"
            try:
                proc.write_plain(path, "0")
            except OSError as error:
                found = from_oserror(error, f"entering the cgroup of {path}")
                if error.errno == errno.ENOSPC:
                    found.hint = f"{folder}/cpuset.cpus or cpuset.mems is empty: write to both first"
                raise found from None


def _holding(version: int, folder: str, pid: int | None) -> str:
    """Return the folder, or the one below it that holds `pid`: else EBUSY. See "No Internal Process Constraint"."""
    try:
        if pid is None or version == 1 or not proc.read_plain(f"{folder}/cgroup.subtree_control").strip():
            return folder
        for place, _, _ in os.walk(folder):
            if str(pid) in proc.read_plain(f"{place}/cgroup.procs").split():
                return place
    except OSError as error:
        raise from_oserror(error, f"looking for the process {pid} below {folder}") from None
    return folder
