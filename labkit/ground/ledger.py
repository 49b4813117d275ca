"""What labkit made and must give back, written down before it is made.

A notebook kernel can be killed at any moment, and then no `finally` runs. So the
intent goes to disk first:

    entry = ledger.write("mount", target="/x")    1. on disk
    syscalls.mount(…)                             2. made
    …                                             3. used
    ledger.undo(entry)                            4. taken away, then struck out

A crash between any two steps leaves an entry whose thing may or may not exist.
Undoing copes with both: each kind below looks before it takes, and what is
already gone counts as given back. `lab clean` undoes the entries whose owner is
dead, the newest first: a mount goes before the folder it is on.

An owner is a process named by (pid, start time, boot id); a process id alone
comes back. After a reboot every kernel object is gone with the kernel, and
only folders are left to remove.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import functools
import os
import re
import stat
import time
from collections.abc import Callable, Iterator

from labkit.ground import proc, state, trees
from labkit.ground.dataclass import dataclass, field
from labkit.ground.errors import BadValue, Damaged, KernelError, LabError, NotFound
from labkit.ground.later import Later
from labkit.ground.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

signal, syscalls = Later("signal"), Later("labkit.ground.syscalls")  # most entries need neither

Owner = tuple[int, int | None, str]  # pid, start ticks, boot id


@dataclass(frozen=True)
class Entry:
    """One thing that labkit made: its kind, what names it, who answers for it."""

    number: int
    kind: str
    what: dict[str, Any]
    owner: Owner
    group: str = ""  # the container it belongs to
    scope: str = ""  # the chapter or panel that made it
    undoer: str = ""  # the module that knows how to take it away
    file: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.kind} " + " ".join(str(value) for value in self.what.values())

    def owner_lives(self) -> bool:
        """Tell whether the process that answers for this still runs."""
        pid, ticks, boot = self.owner
        return boot == proc.boot_id() and proc.is_running(pid, ticks)


_ON_DISK = state.kind(
    "run/ledger/*.json",
    {"number": int, "kind": str, "what": dict, "owner": [int | str], "group": str, "scope": str, "undoer": str},
)

Undoer = Callable[..., None]
_UNDOERS: dict[str, Undoer] = {}  # kind: the function that takes one away


def undoes(kind: str) -> Callable[[Undoer], Undoer]:
    """Register the decorated function as what takes a `kind` away.

    It gets what `write` was told, and is quiet if the thing is gone.

    The module that makes a kind of thing holds its undoer too. The entry names that module,
    so that `lab clean`, another process, finds it without a list of all there are.
    """

    def register(function: Undoer) -> Undoer:
        _UNDOERS[kind] = function
        return function

    return register


_group = contextvars.ContextVar("group", default="")
_scope = contextvars.ContextVar("scope", default="")
# A notebook's cells don't share a context: this is for all of them, and for the commands they start.
_CHAPTER = "LABKIT_CHAPTER"


def _folder() -> Path:
    return state.run_dir("ledger")


def me() -> Owner:
    """Return this process as an owner."""
    return _owner(os.getpid())


@functools.cache
def _owner(pid: int) -> Owner:
    return (pid, proc.start_ticks(pid), proc.boot_id())


def write(kind: str, owner: Owner | None = None, **what: object) -> Entry:
    """Write down that a `kind` named by `what` is about to be made; return the Entry."""
    if kind not in _UNDOERS:
        raise BadValue(f"nothing that is imported knows how to take a {kind!r} away", "import the module that makes it")
    number = _next_number()
    group = _group.get()
    path = f"{_folder()}/{number:020d}-{os.urandom(4).hex()}.{group}.json"
    entry = Entry(number, kind, what, owner or me(), group, current_scope(), _UNDOERS[kind].__module__, path)
    record = dict(vars(entry))
    del record["file"]
    # No sync: the entry must outlive this process, not the kernel that holds the thing.
    state.write_json(path, record, sync=False)
    return entry


_last = 0


def _next_number() -> int:
    """Return the time in ns, but never twice the same: what is newer is taken away first."""
    global _last
    _last = max(time.time_ns(), _last + 1)
    return _last


def entries(group: str = "") -> list[Entry]:
    """Return every Entry on disk, oldest first; with `group` those that are parts of it."""
    found = []
    folder = str(_folder())
    for name in sorted(os.listdir(folder)):
        told = name.removesuffix(".json").partition(".")[2]
        # A name that tells another group need not be read; not every name tells one.
        if not name.endswith(".json") or (group and told not in ("", group)):
            continue
        try:
            record = state.read(f"{folder}/{name}", _ON_DISK)
        except Damaged:  # it hides no other; `lab clean` names it
            continue
        if record is not None:  # struck out since it was listed
            record["owner"] = tuple(record["owner"])
            known = {key: record[key] for key in _ON_DISK.shape}
            found.append(Entry(**known, file=f"{folder}/{name}"))
    return [entry for entry in found if not group or entry.group == group]


def strike(entry: Entry) -> None:
    """Cross an entry out: the thing is gone, or someone else answers for it."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(entry.file)


def undo(entry: Entry) -> None:
    """Take the thing away if it is there, then strike the entry. Raises LabError if it can't be."""
    if entry.kind not in _UNDOERS and re.fullmatch(r"labkit(\.[a-z_]+)+", entry.undoer):
        with contextlib.suppress(ImportError):
            __import__(entry.undoer)  # which registers it, as it did where the thing was made
    if entry.kind not in _UNDOERS:
        raise LabError(f"the ledger has an entry of the unknown kind {entry.kind!r}", "a newer labkit wrote it")
    _UNDOERS[entry.kind](**entry.what)
    strike(entry)


@contextlib.contextmanager
def made(kind: str, **what: object) -> Iterator[Entry]:
    """Answer for a thing while the block runs: written before, undone after, whatever happens."""
    entry = write(kind, None, **what)
    try:
        yield entry
    finally:
        undo(entry)


@contextlib.contextmanager
def group(name: str) -> Iterator[None]:
    """Mark what is made in this block as parts of one thing, the container `name`."""
    token = _group.set(name)
    try:
        yield
    finally:
        _group.reset(token)


def undo_group(name: str) -> None:
    """Take away all parts of `name`, the newest first. Raises the first LabError, after trying all."""
    errors = []
    for entry in reversed(entries(name)):
        try:
            undo(entry)
        except LabError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@contextlib.contextmanager
def scope(name: str) -> Iterator[None]:
    """Mark what is made in this block as made by the chapter or panel `name`, for `clean(scope=name)`."""
    token = _scope.set(name)
    try:
        yield
    finally:
        _scope.reset(token)


def current_scope() -> str:
    """Return the chapter or panel that what is made now belongs to, or nothing."""
    return _scope.get() or os.environ.get(_CHAPTER, "")


def begin(chapter: str) -> None:
    """Give back what an earlier run of `chapter` left; mark as its own what is made from now on, here or by a child."""
    _, _, failed = clean(scope=chapter)
    if failed:
        raise failed[0][1]
    os.environ[_CHAPTER] = chapter


def clean(
    everything: bool = False, scope: str | None = None
) -> tuple[list[Entry], list[Entry], list[tuple[Entry, LabError]]]:
    """Give back what dead owners left; return (undone, kept, failed).

    `everything` takes also what a living process still answers for. With `scope`
    only what that chapter or panel made is looked at, and what this process made
    of it counts as left behind too. `failed` is a list of (Entry, LabError): those
    stay in the ledger for the next call.
    """
    undone, kept, failed = [], [], []
    mine = me()
    with state.lock("ledger"):
        for entry in reversed(entries()):
            if scope is not None and entry.scope != scope:
                continue
            left = not entry.owner_lives() or (scope is not None and entry.owner == mine)
            if not (everything or left):
                kept.append(entry)
                continue
            try:
                undo(entry)
                undone.append(entry)
            except LabError as error:
                failed.append((entry, error))
    return undone, kept, failed


# Each function below takes away one kind of thing, and returns quietly if it is gone.


@undoes("process")
def _undo_process(pid: int, ticks: int) -> None:
    with contextlib.suppress(NotFound), proc.pinned(pid, ticks) as pidfd:
        with contextlib.suppress(KernelError):
            syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
        _wait_until(lambda: not proc.is_running(pid, ticks), f"process {pid} to end")


@undoes("mount")
def _undo_mount(target: str) -> None:
    while any(mount.target == target for mount in proc.mounts()):
        syscalls.umount2(target, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)


@undoes("folder")
def _undo_folder(path: str) -> None:
    remove_tree(path)


@undoes("file")
def _undo_file(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _wait_until(condition: Callable[[], bool], what: str, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds} s for {what}", "it may hang in the kernel: `ps -eo pid,stat,wchan,comm`")
        time.sleep(0.01)


def remove_tree(path: str | Path) -> None:
    """Remove a folder and all in it, but refuse to go through a mount.

    A mount left inside would have its contents deleted, and they may be the host's.
    """
    path = str(path)
    inside = [mount.target for mount in proc.mounts() if (mount.target + "/").startswith(path + "/")]
    if inside:
        raise LabError(f"{path} still has a mount at {inside[0]}", f"umount {inside[0]}")
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        raise LabError(f"{path} is not a folder", "labkit did not make it; look at it, then remove it by hand")
    for _ in range(100):
        try:
            trees.remove(path)
        except FileNotFoundError:  # another process removes it too
            if not os.path.lexists(path):
                return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        else:
            return
        time.sleep(0.01)  # its keeper was just writing there
    raise LabError(f"{path} fills again while it is removed", "`lab clean`, when what writes there has ended")
