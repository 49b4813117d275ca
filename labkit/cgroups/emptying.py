"""A cgroup's folders, emptied and taken away: whoever made them, and by their paths alone.

    empty     kill all members in one stroke (v2's cgroup.kill), or freeze them
              first (v1), for a fork bomb makes new ones faster than a loop kills
    remove    the deepest first, and not before the last member has gone

A command that only takes away loads no more than this. See cgroups(7).
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Sequence

from labkit.ground import proc, state
from labkit.ground.errors import InUse, KernelError, NotFound, from_oserror
from labkit.ground.later import Later
from labkit.ground.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

events, signal = Later("labkit.cgroups.events"), Later("signal")  # mostly there is nobody left
syscalls, hierarchies = Later("labkit.ground.syscalls"), Later("labkit.cgroups.hierarchies")


def end(paths: Sequence[str]) -> None:
    """Remove a cgroup's folders, one a tree; kill what is in them, if anything is. Those gone are left out.

    A path that is no cgroup's is not touched.
    """
    paths = [path for path in paths if os.path.exists(f"{path}/cgroup.procs")]
    # Who is in a cgroup is in it in every tree: the first rmdir tells whether it has ended, as it mostly has.
    if not all(map(removed, reversed(paths))):
        kill(paths)
        remove(paths)


def remove(paths: Sequence[str], timeout: float = 5, name: str = "") -> None:
    """Remove a cgroup's folders, one a tree, and what is nested in them. Raise InUse if one isn't empty by then."""
    soon = min(timeout, 0.5)
    empty = wait_empty(paths, soon)
    if not empty and timeout > soon:
        free_killed(paths)
        empty = wait_empty(paths, timeout - soon)
    if not empty:
        raise InUse(f"{name or paths[0]} still has processes: {members(paths)}", "kill() it first, or wait for them")
    for path in reversed(paths):
        remove_tree(path)


def remove_tree(path: "str | Path") -> None:
    """Remove a cgroup folder and those below it, the deepest first; then the marked folder above, if it is empty."""
    for folder in reversed(_folders(path)):
        _rmdir(folder)
    _give_back_parent(path)


def removed(path: "str | Path") -> bool:
    """Remove a folder that has nothing in it; tell whether it is gone. Nothing is waited for."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError:  # EBUSY: a process or a folder is in it
        return False
    _give_back_parent(path)
    return True


def _give_back_parent(path: "str | Path") -> None:
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


def _folders(path: "str | Path") -> list[str]:
    """Return a folder and those below it, the deepest last. What is gone is left out."""
    found = [str(path)]
    for folder in found:  # which grows meanwhile
        with contextlib.suppress(OSError):
            # A folder has a link from each one in it, beside its own two: most are not looked through.
            if os.stat(folder).st_nlink != 2:
                found += [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    return found


def members(paths: Iterable[str]) -> list[int]:
    """Return the ids of the processes in these folders and below them."""
    found: set[int] = set()
    for path in paths:
        for folder in _folders(path):
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
    trees = hierarchies.hierarchies()
    tree = next((one.mount for one in trees if one.version == 1 and "freezer" in one.controllers), None)
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
