"""Cgroup folders: made where the kernel lets them be, emptied, and taken away.

A folder of a cgroup tree is no ordinary folder. mkdir fills it with files; rmdir
takes it although it is full of them, but only when no process and no folder is
in it. So there are three acts, and each has its catch:

    make      the marked folder above (`labkit`) is shared, and who empties it
              removes it: between our two mkdirs it may vanish, so try again
    empty     kill all members in one stroke (v2's cgroup.kill), or freeze them
              first (v1), for a fork bomb makes new ones faster than a loop kills
    remove    the deepest first, and not before the last member has gone

`cgroup` builds on this. `remove_folder` is what the ledger calls when the
process that made a cgroup is dead. See cgroups(7).
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from labkit.cgroups import events, hierarchies
from labkit.cgroups.hierarchies import Hierarchy
from labkit.cgroups.versions import V1, V2, Folder
from labkit.ground import ledger, proc, state, syscalls
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


def remove_tree(path: str | Path) -> None:
    """Remove a cgroup folder and those below it, the deepest first; then the marked folder above, if it is empty."""
    for folder, _, _ in os.walk(path, topdown=False):
        _rmdir(folder)
    _give_back_parent(path)


def removed(path: str | Path) -> bool:
    """Remove a folder that has nothing in it; tell whether it is gone. Nothing is waited for."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError:  # EBUSY: a process or a folder is in it
        return False
    _give_back_parent(path)
    return True


def _give_back_parent(path: str | Path) -> None:
    """Remove the marked folder above, unless others have theirs in it."""
    above = os.path.dirname(path)
    if os.path.basename(above) == state.label():
        with contextlib.suppress(OSError):
            os.rmdir(above)


def _rmdir(folder: str, timeout: float = 2) -> None:
    """rmdir, and again for a moment while it is busy: a process leaves its cgroup a little after its end is seen."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return os.rmdir(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise from_oserror(error, f"removing the cgroup {folder}") from None
            time.sleep(0.001)


def members(paths: Iterable[str]) -> list[int]:
    """Return the ids of the processes in these folders and below them."""
    found: set[int] = set()
    for path in paths:
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):  # removed, or a v2 threaded folder (EOPNOTSUPP)
                found.update(int(pid) for pid in proc.read_plain(f"{folder}/cgroup.procs").split())
    return sorted(found)


# What stops a folder's processes where they are: file, text to stop, text to go on.
_BRAKES = (("cgroup.freeze", "1", "0"), ("freezer.state", "FROZEN", "THAWED"))


def kill(paths: Sequence[str]) -> None:
    """Kill all members. cgroup.kill does it in one stroke; without it they are frozen first."""
    for path in paths:
        _try_write(f"{path}/cgroup.kill", "1")
    if not members(paths):
        return
    brakes = [
        (f"{path}/{name}", stop, go) for path in paths for name, stop, go in _BRAKES if os.path.exists(f"{path}/{name}")
    ]
    if not any(os.path.exists(f"{path}/cgroup.kill") for path in paths):
        for file, stop, _ in brakes:
            _try_write(file, stop)
    for pid in members(paths):
        _kill_one(pid, paths)
    for file, _, go in brakes:  # v1: a frozen process dies when it is thawed
        _try_write(file, go)


def _try_write(path: str, text: str) -> None:
    """Write if there is such a file: the folder may be gone, or the kernel too old for it."""
    with contextlib.suppress(OSError):
        proc.write_plain(path, text)


def _kill_one(pid: int, paths: Sequence[str]) -> None:
    """Kill `pid` if it is still a member once a pidfd pins it."""
    with contextlib.suppress(NotFound, KernelError), proc.pinned(pid, proc.start_ticks(pid)) as pidfd:
        if pid in members(paths):
            syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)


def free_killed(paths: Sequence[str]) -> None:
    """Take members that were killed out of a v1 freezer that is somebody else's: a process frozen there can't end.

    See Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst.
    """
    tree = next(
        (one.mount for one in hierarchies.hierarchies() if one.version == 1 and "freezer" in one.controllers), None
    )
    for pid in members(paths) if tree else ():
        with contextlib.suppress(NotFound, KernelError, OSError, KeyError):
            place = f"{tree}{proc.cgroups(pid)['freezer'].rstrip('/')}"
            if _is_killed(pid) and proc.read(f"{place}/freezer.state").strip() != "THAWED":
                proc.write_plain(f"{tree}/cgroup.procs", str(pid))


def _is_killed(pid: int) -> bool:
    words = dict(line.split(":", 1) for line in proc.read(f"/proc/{pid}/status").splitlines())
    pending = int(words["SigPnd"], 16) | int(words["ShdPnd"], 16)
    return bool(pending >> signal.SIGKILL - 1 & 1)


def wait_empty(paths: Sequence[str], timeout: float) -> bool:
    """Wait until no process is in any of the folders: by poll on v2's cgroup.events, else by looking."""
    deadline = time.monotonic() + timeout
    for path in paths:
        if os.path.exists(f"{path}/cgroup.events"):
            events.wait_for(f"{path}/cgroup.events", lambda text: events.flat(text).get("populated") == 0, timeout)
    # v1 tells nobody (but a program named in release_agent, one for the whole machine).
    while inside := members(paths):
        if time.monotonic() > deadline:
            return False
        if all(not proc.is_running(pid, proc.start_ticks(pid)) for pid in inside):
            return True  # zombies only: they hold no folder
        time.sleep(0.002)
    return True
