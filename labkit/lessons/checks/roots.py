"""Checks of chapter 03: what is a process's root, and which mounts can it still reach.

Each takes the participant's function, calls it in a half-built container on a
workbench, and looks at the process that it leaves there.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from labkit.ground import proc
from labkit.ground import syscalls as sc
from labkit.lessons.checks import Requirements, exercise
from labkit.lessons.scenes import workbench


def _in_new_mount_namespace() -> int:
    return sc.clone3(sc.CLONE_NEWNS, signal.SIGCHLD)[0]


def _same(one: str | Path, other: str | Path) -> bool:
    return os.path.samestat(os.stat(one), os.stat(other))


@exercise
def walks_out(function: Callable[..., object], cage: str | Path) -> Requirements:
    """Walk out of a folder that chroot made the root."""
    with workbench.bench(os.fork, lambda: function(str(cage))) as box:
        root = f"/proc/{box.pid}/root"
        yield (
            not _same(root, cage),
            "its root is no longer the cage",
            "after the second chroot the working directory is above the root: go up from there",
            "os.chdir('..') many times, then os.chroot('.')",
        )
        yield (
            _same(root, "/"),
            "its root is the root of the machine",
            "go up further: `..` of the topmost folder is itself, so too often does no harm",
            "for _ in range(64): os.chdir('..')",
        )


@exercise
def root_is_alone(function: Callable[..., object], folder: str | Path) -> Requirements:
    """Make a folder the root, and leave no other mount of the machine behind."""
    with workbench.bench(_in_new_mount_namespace, lambda: function(str(folder))) as box:
        root = f"/proc/{box.pid}/root"
        yield _same(root, folder), "its root is the folder", "pivot_root('.', '.') in the folder, which must be a mount"
        left = [mount.target for mount in proc.mounts(box.pid) if mount.target != "/"]
        tops = [mount for mount in proc.mounts(box.pid) if mount.target == "/"]
        yield (
            not left and len(tops) == 1,
            "no other mount can be reached",
            f"{len(left) + len(tops) - 1} mounts are left, the old root too: it lies on top of the new one, at '.'",
            "sc.umount2('.', sc.MNT_DETACH), then os.chdir('/')",
        )
        yield _same(f"/proc/{box.pid}/cwd", root), "its working directory is the root", "os.chdir('/')"


@exercise
def only_receives(function: Callable[..., object]) -> Requirements:
    """Receive the mounts that are made on the machine, and give none back."""
    with workbench.bench(_in_new_mount_namespace, function) as box:
        top = next(mount for mount in proc.mounts(box.pid) if mount.target == "/")
        yield (
            any(word.startswith("master:") for word in top.propagation),
            "its root has a master: it receives",
            "which of shared, slave, private gets and does not give?",
            "sc.mount(None, '/', None, sc.MS_REC | sc.MS_SLAVE)",
        )
        yield (
            not any(word.startswith("shared:") for word in top.propagation),
            "its root is in no peer group: it gives nothing",
            "it is shared still: what is mounted here shows up there",
            "MS_SLAVE alone; a slave that is made shared again gives to its own peers",
        )
        rest = [
            mount for mount in proc.mounts(box.pid) if any(word.startswith("shared:") for word in mount.propagation)
        ]
        yield not rest, "and so have all mounts below", "MS_REC does it for the whole tree"
