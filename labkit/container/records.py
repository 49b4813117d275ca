"""What other processes know of a container: one folder in /run for each, and one file for each name.

    /run/labkit/containers/ID/state.json    what it is, its pid, how it ended
    /run/labkit/containers/ID/exit          its exit status, once it has one
    /run/labkit/containers/ID/log           what it printed, see output
    /run/labkit/names/NAME                  holds its ID

`lab ps` in another terminal reads these and asks nobody. Who was first is decided by
the kernel: mkdir(2) fails for the second who wants an id, a lock covers the names.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator

from labkit.ground import ledger, proc, state
from labkit.ground.errors import Damaged, InUse, LabError, NotFound
from labkit.ground.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

# A Spec in JSON, which has lists for tuples and objects for dataclasses. Not read off the Spec itself:
# `lab ps` reads records and starts nothing, and to load what a Spec is made of would take most of its time.
_SPEC = {
    "image": str,
    **dict.fromkeys(("command", "env", "namespaces", "capabilities"), [str]),
    **dict.fromkeys(("name", "hostname", "workdir", "user"), str | None),
    **dict.fromkeys(("read_only", "tty", "interactive", "rm", "init"), bool),
    **dict.fromkeys(("network", "seccomp", "storage"), str),
    **dict.fromkeys(("volumes", "ports"), list),
    **dict.fromkeys(("userns", "clock_offsets"), list | None),
    "limits": dict,
}
_CONFIG = {"env": [str], "entrypoint": [str], "cmd": [str], "workdir": str, "user": str, "stop_signal": str}
CONTAINER = state.kind(
    "run/containers/*/state.json",
    {
        "id": str,
        "status": str,
        "created": int | float,
        "keeper": [int | str],
        "spec": _SPEC,
        "config": _CONFIG,
    },
)
NAME = state.kind("run/names/*", re.compile("[0-9a-f]{12}"), json=False)


def folder(number: str) -> "Path":
    """Return the folder of the container with that id; it may not be there."""
    return state.run_dir("containers") / number


def _file(number: str, name: str) -> str:
    return state.place("containers", number, name)


def claim_id(number: str) -> None:
    """Make a container's folder, in the ledger first. Raise InUse for all but the first who tries."""
    path = folder(number)
    entry = ledger.write("folder", path=str(path))
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        ledger.strike(entry)
        raise InUse(f"there is a container {number} already") from None
    # As long as it will ever be: in a file that is there, a full disk takes a number too.
    state.write_atomic(path / "exit", _EXIT % b"", sync=False)


def claim_name(name: str, number: str) -> None:
    """Give a name to a container, in the ledger first. Raise InUse if it is taken."""
    path = state.run_dir("names") / name
    with state.lock("names"):
        holder = state.read(path, NAME)
        if holder is not None and _half_made(holder):
            ledger.undo_group(holder)
        elif holder is not None:
            raise InUse(f"the name {name!r} is taken by container {holder}", f"lab rm {name}, or choose another name")
        ledger.write("file", path=str(path))
        state.write_atomic(path, number, sync=False)


def _half_made(number: str) -> bool:
    """Tell whether a container's keeper was killed in the middle of its start: nobody will miss it."""
    with contextlib.suppress(NotFound):
        record = read(number)
        return record["status"] == "created" and not proc.is_running(*record["keeper"][:2])
    # Not even a record: whoever answers for the name is who was to write it.
    owners = [entry.owner_lives() for entry in ledger.entries(number)]
    return bool(owners) and not any(owners)


def read(number: str) -> dict[str, Any]:
    """Return what is written about a container. Raise NotFound if it is gone, or not quite there yet."""
    record: dict[str, Any] | None = state.read(_file(number, "state.json"), CONTAINER)
    if record is None:
        raise NotFound(f"the container {number} is gone")
    if record["status"] == "running":
        # The disk may have been too full for a whole new record.
        with contextlib.suppress(NotFound), ending(number) as told:
            record |= {} if (code := told()) is None else {"status": "exited", "code": code}
    return record


def read_all(damaged: list[LabError] | None = None) -> list[dict[str, Any]]:
    """Return what is written about every container, the newest first; `damaged` gets what hides one, see `state`."""
    found = []
    for number in ids():
        try:
            found.append(read(number))
        except Damaged as error:
            damaged.append(error) if damaged is not None else None
        except NotFound:  # another process removes it just now
            continue
    return sorted(found, key=lambda record: (record["created"], record["id"]), reverse=True)


def status(record: dict[str, Any]) -> str:
    """Return one of created, running, paused, exited, dead (its keeper was killed), seen by who is not its keeper."""
    if record["status"] != "running":
        return str(record["status"])
    if proc.is_running(record["pid"], record["start_ticks"]):
        return "paused" if record.get("paused") else "running"
    pid, ticks, boot = record["keeper"]
    return "exited" if boot == proc.boot_id() and proc.is_running(pid, ticks) else "dead"


def write(number: str, record: dict[str, Any]) -> None:
    """Write down what is known of a container, whole or not at all."""
    state.write_json(_file(number, "state.json"), record, sync=False)


_EXIT = b"%4s\n"


def tell_end(number: str, code: int) -> None:
    """Write down the exit status, for who has `ending` open: last of all, what follows is its removal."""
    with contextlib.suppress(OSError), open(_file(number, "exit"), "r+b", 0) as file:
        file.write(_EXIT % str(code).encode())


@contextlib.contextmanager
def ending(number: str) -> Iterator[Callable[[], int | None]]:
    """Give a function that returns a container's exit status, None as yet; it knows it although the container is gone.

    Raises NotFound if there is no such container.
    """
    try:
        fd = os.open(_file(number, "exit"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise NotFound(f"the container {number} is gone") from None

    def code() -> int | None:
        with contextlib.suppress(OSError):  # it was made a folder, or a pipe
            text = os.pread(fd, 8, 0).strip()
            return int(text) if text.isdigit() else None
        return None

    try:
        yield code
    finally:
        os.close(fd)


def ids() -> list[str]:
    """Return the id of every container that there is."""
    try:
        return sorted(os.listdir(state.place("containers")))
    except FileNotFoundError:  # there has never been one
        return []


def find(reference: str) -> str:
    """Return the id that a name, an id or the beginning of one means. Raise NotFound."""
    reference = state.check_name(reference, "container")
    named = state.read(state.run_dir("names") / reference, NAME)
    there = ids()
    wanted = [named] if named else [number for number in there if number.startswith(reference)]
    if len(wanted) > 1:
        raise NotFound(f"{reference!r} begins {len(wanted)} container ids", "write more of it")
    if not wanted or wanted[0] not in there:
        raise NotFound(f"no container {reference!r}", "`lab ps -a` shows all containers")
    return wanted[0]
