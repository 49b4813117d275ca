"""Cgroup folders: made where the kernel lets them be, and taken away.

A folder of a cgroup tree is no ordinary folder. mkdir fills it with files; rmdir
takes it although it is full of them, but only when no process and no folder is
in it. So there are two acts, and each has its catch:

    make      the marked folder above (`labkit`) is shared, and who empties it
              removes it: between our two mkdirs it may vanish, so try again
    take away kill what is in it, wait, remove: see `emptying`

`cgroup` builds on this. `remove_folder` is what the ledger calls when the
process that made a cgroup is dead. See cgroups(7).
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from labkit.cgroups import hierarchies
from labkit.cgroups.emptying import kill, members, remove_tree, wait_empty
from labkit.cgroups.hierarchies import Hierarchy
from labkit.cgroups.versions import V1, V2, Folder
from labkit.ground import ledger, proc, state
from labkit.ground.errors import BadValue, InUse, KernelError, LabError, NotFound, from_oserror

_ATTEMPTS = 50  # at making a folder whose empty parent others may remove meanwhile


# What an errno means when it comes from one of these files; "" stands for the rest.
_HINTS = {
    (errno.EBUSY, "memory"): "it uses more than that now and can't give it back: stop something in it first",
    (errno.EBUSY, "cgroup"): "v2: a folder with processes in it can't hand controllers down, nor the other way round",
    (errno.EINVAL, "cpu"): "a child's quota can't be more than its parent's; a period is 1000..1000000 µs",
    (errno.EINVAL, ""): "the kernel does not take this value here",
    (errno.ENODEV, ""): "no such device: `lsblk` lists the major:minor that there are",
    (errno.ENOSPC, "cgroup"): "this cpuset has no CPUs or no memory nodes yet: fill cpuset.cpus and cpuset.mems first",
    (errno.ERANGE, "cpuset"): "this machine has no such CPU: /sys/devices/system/cpu/online lists them",
    (errno.EACCES, "cpuset"): "a child's CPUs must be among its parent's",
    (errno.ESRCH, "cgroup"): "no such process: it has ended",
    (errno.EOPNOTSUPP, "blkio"): "this disk's I/O scheduler weighs nothing: bfq does (/sys/block/…/queue/scheduler)",
    (errno.EOPNOTSUPP, "io"): "this disk's I/O scheduler weighs nothing: bfq does (/sys/block/…/queue/scheduler)",
    (errno.EOPNOTSUPP, "cgroup"): "this folder's cgroup.type is not `domain`",
}


def refused(text: str, path: Path, error: OSError) -> KernelError:
    """Return the KernelError for a write that the kernel refused."""
    number = error.errno or 0
    hint = _HINTS.get((number, path.name.partition(".")[0])) or _HINTS.get((number, ""))
    return KernelError(f"writing {text!r}", number, path, hint)


def trees() -> list[Hierarchy]:
    """Return the trees in which a Cgroup has a folder: those with a controller of ours, and the v2 tree."""
    found = hierarchies.hierarchies()
    if found[-1].version == 2:
        # v1's freezer is not needed beside it: cgroup.freeze does the same, and
        # what it has frozen can still be killed.
        found = [tree for tree in found if tree.controllers != ("freezer",)]
    return [tree for tree in found if tree.controllers or tree.version == 2]


def with_trees(paths: Iterable[str]) -> Iterator[tuple[str, Hierarchy]]:
    """Yield each path with the tree that it is in. Raise BadValue if it is in none."""
    trees: list[Hierarchy] = []
    for path in paths:
        trees = trees or hierarchies.hierarchies()
        tree = next((tree for tree in trees if tree.mount in Path(path).parents), None)
        if tree is None:
            raise BadValue(f"{path} is not below a cgroup mount", "`findmnt -t cgroup,cgroup2` lists them")
        yield path, tree


def folder_at(path: str | Path, tree: Hierarchy) -> Folder:
    """Return an existing folder as a V1 or V2."""
    return (V1 if tree.version == 1 else V2)(path, tree)


def make_folder(tree: Hierarchy, path: Path) -> Folder:
    """Make `path`, and the marked folder above it if need be; return it as V1 or V2.

    On v2 the controllers are handed down to it. The folder above is shared, and whoever
    empties it removes it. It may go between the two mkdirs, so a missing parent means: again.
    """
    for _ in range(_ATTEMPTS):
        try:
            # Not mkdir(exist_ok=True): that looks again, and raises if it went meanwhile.
            with contextlib.suppress(FileExistsError):
                os.mkdir(path.parent)
            if tree.version == 1 and "cpuset" in tree.controllers:
                V1(path.parent, tree).prepare()
            if tree.version == 2:
                hierarchies.enable(tree, path.parent)
            path.mkdir()
            return folder_at(path, tree)
        except FileNotFoundError:
            continue
        except FileExistsError:
            raise InUse(f"a cgroup {path} is there already", "another name, or `lab clean`") from None
        except OSError as error:
            if error.errno == errno.ENODEV:  # v2: removed while one of its files was open
                continue
            raise from_oserror(error, f"making the cgroup {path}") from None
    raise LabError(f"{path.parent} is removed again and again", "another program removes it: find out which")


def place(tree: Hierarchy, path: str | Path) -> Path:
    """Return where a cgroup path leads in a tree, from its root or from this process. Raise BadValue for `..`."""
    if ".." in Path(path).parts:
        raise BadValue(f"cgroup path {path!r} has `..` in it")
    return (tree.mount if str(path).startswith("/") else tree.own) / str(path).lstrip("/")


def make_parents(tree: Hierarchy, path: Path) -> None:
    """Make the folders above `path` that are missing."""
    for above in reversed(path.parents):
        if tree.mount in above.parents and not above.exists():
            with contextlib.suppress(InUse):  # somebody else was faster
                make_folder(tree, above)


def frozen_above(tree: Hierarchy, path: Path) -> Path | None:
    """Return the folder by which who enters `path` is frozen at once: it, or one above it. None if there is none."""
    name = "cgroup.freeze" if tree.version == 2 else "freezer.self_freezing"
    for folder in (path, *path.parents):
        if tree.mount not in folder.parents:
            return None
        with contextlib.suppress(NotFound):
            if proc.read(folder / name).strip() == "1":
                return folder
    return None


@ledger.undoes("cgroup")
def remove_folder(path: str | Path, also: Iterable[str] = ()) -> None:
    """Undo a ledger entry of kind `cgroup`: kill what is in these folders, remove them and what is nested.

    Fine if they are gone. Raise BadValue, and touch nothing, for a path that is
    not below a cgroup mount or that does not have labkit's mark in it.
    """
    paths = [str(path), *also]
    for candidate, tree in with_trees(paths):
        if ".." in Path(candidate).parts or state.label() not in Path(candidate).relative_to(tree.mount).parts:
            what = f"{candidate} was not made by labkit: {state.label()!r} is not in it"
            raise BadValue(what, "look at it, then rmdir it")
    kill(paths)
    if not wait_empty(paths, 5):
        hint = "they hang in the kernel: `ps -eo pid,stat,wchan`"
        raise InUse(f"{path} still has processes: {members(paths)}", hint)
    for candidate in reversed(paths):
        remove_tree(candidate)
