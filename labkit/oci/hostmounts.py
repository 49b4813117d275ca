"""A container without a mount namespace: what is mounted for it, the host has in its own table.

The specification allows that. pivot_root(2) is out of the question then, for it would
change everybody's root; chroot(2) is left, and root in there can leave it again
(chapter 03). And no namespace's end takes the mounts along. So all of them hang below
one, that of the root, which is private: taken off, it takes the others with it.
See config-linux.md of the runtime specification, "Namespaces".
"""

import os

from labkit.container.channel import Child, Step
from labkit.ground import proc
from labkit.ground import syscalls as sc
from labkit.ground.dataclass import dataclass
from labkit.isolation import mounts

WARNING = (
    "no mount namespace in linux.namespaces: its mounts are the host's until it is deleted, and a chroot holds no root"
)


@dataclass(frozen=True)
class RootForAll(mounts.BindRoot):
    """The root, for everybody to see; shared with nobody, or each mount in it would be made in its source too."""

    def execute(self) -> None:
        """Bind `source` to the host path `target`, where all of the host sees it."""
        super().execute()
        # On a shared mount it became shared itself.
        sc.mount_setattr(sc.AT_FDCWD, self.target, sc.AT_RECURSIVE, propagation=sc.MS_PRIVATE)


@dataclass(frozen=True)
class Chroot(Step):
    """The host's files stay where they are; only its paths begin elsewhere."""

    def describe(self) -> str:
        return "chroot: its paths begin at the root"

    def execute(self, child: Child) -> None:
        _begin_at(child.root)


@dataclass(frozen=True)
class ChrootLike(Step):
    """A further process: no namespace that it joins has the root of the first one."""

    pid: int

    def describe(self) -> str:
        return f"chroot: where the paths of process {self.pid} begin"

    def execute(self, child: Child) -> None:
        _begin_at(os.open(f"/proc/{self.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))


def _begin_at(root: int) -> None:
    os.fchdir(root)
    os.chroot(".")
    os.close(root)


def on_top(path: str) -> int:
    """Return the id of the mount that is seen at a path, 0 if that is no mount point. See proc_pid_mountinfo(5)."""
    target = os.path.realpath(path)
    return next((mount.id for mount in reversed(proc.mounts()) if mount.target == target), 0)


def take_away(path: str, before: int) -> None:
    """Unmount the root and all that hangs below it, unless `before` is what is seen there: then it was never made."""
    if on_top(path) != before:
        sc.umount2(os.path.realpath(path), sc.MNT_DETACH)
