"""A part of the tree for a user who is not root: who gets it may divide it, and not enlarge it.

On v2 that is a matter of file owners, and meant to be. The user gets the folder, so
that mkdir works in it, and the few files that arrange what is inside:

    cgroup.procs             move processes
    cgroup.threads           move threads
    cgroup.subtree_control   hand controllers down to the folders in it
    …                        /sys/kernel/cgroup/delegate lists what this kernel gives away

Not memory.max and its like: in this folder they say how much of what is *above* is
theirs. In the folders that the user makes they are the user's own. And a process
moves only if the user may write cgroup.procs of the folder above both places, so
nothing leaves the part that was given away, and nothing is pulled into it. The first
process has to be put there by root.

On v1 the same chown works, and the rule is missing: the kernel asks whose the
process is, not where it comes from. Who was given two parts moves processes from one
to the other; who was given one pulls in what root had limited elsewhere. Nothing
limits how many folders are made (v2: cgroup.max.descendants), and each tree has to
be given away by itself. So v1 is refused here unless it is asked for by name.
See cgroups(7), Documentation/admin-guide/cgroup-v2.rst, "Delegation".
"""

import os
from pathlib import Path
from typing import Any

from labkit.cgroups.cgroup import Cgroup
from labkit.cgroups.quantities import whole
from labkit.ground.errors import BadValue, Unsupported, from_oserror

LIST = Path("/sys/kernel/cgroup/delegate")
BEFORE_THE_LIST = "cgroup.procs cgroup.threads cgroup.subtree_control"  # kernels older than 4.15
V1_FILES = ("cgroup.procs", "tasks")
MOST = 2**32 - 2  # 2**32 - 1 means "leave it" to chown(2)


def delegate(cgroup: Cgroup, uid: int, gid: int | None = None, v1: bool = False) -> list[Path]:
    """Give a cgroup's inside to the user `uid` (and group `gid`, the same number if not said).

    Returns the paths that are theirs now. Its own limits stay root's. Raises BadValue
    for a number that is no user; Unsupported, before anything is changed, if a
    controller of it is on v1 and `v1` is not True; KernelError with the path. See chown(2).
    """
    for name, number in (("uid", uid), ("gid", uid if gid is None else gid)):
        if whole(name, number, 1, MOST) is None:
            raise BadValue(f"{name} is None", "a number: `id -u NAME` tells it")
    old = [folder for folder in cgroup.folders if folder.version == 1]
    if old and v1 is not True:
        raise Unsupported(
            f"{old[0].path} is cgroup v1: who has it can pull in processes that are limited elsewhere",
            "a machine with version 2, or v1=True if you can live with it",
        )
    given = [path for folder in cgroup.folders for path in _to_give(folder)]
    for path in given:
        try:
            os.chown(path, uid, uid if gid is None else gid, follow_symlinks=False)
        except OSError as error:
            raise from_oserror(error, "chown(2)") from None
    return given


def _to_give(folder: Any) -> list[Path]:
    """Return those of a folder's files that go with it, and last the folder: a half given one is no use."""
    if folder.version == 1:
        names = list(V1_FILES)
    else:
        names = (LIST.read_text() if LIST.exists() else BEFORE_THE_LIST).split()
    # The list is of all controllers; a folder has the files of those that are enabled for it.
    return [*(folder.path / name for name in names if folder.has(name)), folder.path]
