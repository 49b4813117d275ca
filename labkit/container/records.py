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
from collections.abc import Callable, Iterator

from labkit.ground import ledger, state
from labkit.ground.errors import InUse, NotFound


def folder(number):
    """Return the folder of the container with that id; it may not be there."""
    return state.run_dir("containers") / number


def claim_id(number):
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


def claim_name(name, number):
    """Give a name to a container, in the ledger first. Raise InUse if it is taken."""
    path = state.run_dir("names") / name
    with state.lock("names"):
        try:
            holder = path.read_text()
        except FileNotFoundError:
            holder = None
        if holder is not None:
            raise InUse(f"the name {name!r} is taken by container {holder}", f"lab rm {name}, or choose another name")
        ledger.write("file", path=str(path))
        state.write_atomic(path, number, sync=False)


def read(number):
    """Return what is written about a container. Raise NotFound if it is gone, or not quite there yet."""
    record = state.read_json(folder(number) / "state.json") if folder(number).exists() else None
    if record is None:
        raise NotFound(f"the container {number} is gone")
    if record["status"] == "running":
        # The disk may have been too full for a whole new record.
        with contextlib.suppress(NotFound), ending(number) as told:
            record |= {} if (code := told()) is None else {"status": "exited", "code": code}
    return record


def write(number, record):
    """Write down what is known of a container, whole or not at all."""
    state.write_json(folder(number) / "state.json", record, sync=False)


_EXIT = b"%4s\n"


def tell_end(number: str, code: int) -> None:
    """Write down the exit status, for who has `ending` open: last of all, what follows is its removal."""
    with contextlib.suppress(OSError), open(folder(number) / "exit", "r+b", 0) as file:
        file.write(_EXIT % str(code).encode())


@contextlib.contextmanager
def ending(number: str) -> Iterator[Callable[[], int | None]]:
    """Give a function that returns a container's exit status, None as yet; it knows it although the container is gone.

    Raises NotFound if there is no such container.
    """
    try:
        file = open(folder(number) / "exit", "rb", 0)  # noqa: SIM115 - held below
    except OSError:
        raise NotFound(f"the container {number} is gone") from None

    def code() -> int | None:
        text = os.pread(file.fileno(), 8, 0).strip()
        return int(text) if text.isdigit() else None

    with file:
        yield code


def ids():
    """Return the id of every container that there is."""
    return sorted(os.listdir(state.run_dir("containers")))


def find(reference):
    """Return the id that a name, an id or the beginning of one means. Raise NotFound."""
    reference = state.check_name(reference, "container")
    named = state.run_dir("names") / reference
    there = ids()
    wanted = [named.read_text()] if named.exists() else [number for number in there if number.startswith(reference)]
    if len(wanted) > 1:
        raise NotFound(f"{reference!r} begins {len(wanted)} container ids", "write more of it")
    if not wanted or wanted[0] not in there:
        raise NotFound(f"no container {reference!r}", "`lab ps -a` shows all containers")
    return wanted[0]
