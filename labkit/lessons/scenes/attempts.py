"""What an exhibit of the museum is made of: its label, the attacker's tools, and the bait."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from labkit.container import spawner
from labkit.ground import ledger, state
from labkit.ground.child import in_child
from labkit.ground.dataclass import dataclass
from labkit.lessons.scenes.unlocked import Unlocked

Locks = tuple[str, ...]  # the names of those that are left off
Attempt = Callable[[Locks], str]  # returns what the attacker got, "" for nothing
ALL: dict[str, "Exhibit"] = {}


@dataclass(frozen=True)
class Exhibit:
    """One escape: what it does, the locks that hold it, and how to try it."""

    name: str
    locks: Locks
    story: str
    attempt: Attempt


def exhibit(name: str, *locks: str) -> Callable[[Attempt], Attempt]:
    """Make a function (unlocked) -> text into an exhibit; its docstring is the story."""

    def hang(attempt: Attempt) -> Attempt:
        ALL[name] = Exhibit(name, locks, (attempt.__doc__ or "").strip(), attempt)
        return attempt

    return hang


closed_by_the_kernel = "nothing: this kernel closes that way itself"

PYTHON = ("/usr/bin/python3", "-SEc")
LENT = tuple(f"{folder}:{folder}:ro" for folder in ("/usr", "/lib", "/lib64") if os.path.exists(folder))


@contextlib.contextmanager
def bait() -> Iterator[tuple[Path, str]]:
    """Make a folder on the host with a file `secret` in it; yield (folder, the secret)."""
    folder = tempfile.mkdtemp(prefix=f"{state.label()}-bait-", dir="/var/tmp")
    with ledger.made("folder", path=folder):
        word = secrets.token_hex(8)
        Path(folder, "secret").write_text(word)
        yield Path(folder), word


def sh(script: str, unlocked: Locks, **words: Any) -> str:
    """Run a shell script in a container of one's own; return what it printed."""
    return printed(["sh", "-c", script], unlocked, **words)


def python(code: str, unlocked: Locks, *arguments: object, volumes: Iterable[str] = (), **words: Any) -> str:
    """Run Python code in one, with the Python lent to it; return what it printed."""
    return printed([*PYTHON, code, *map(str, arguments)], unlocked, volumes=[*LENT, *volumes], **words)


def printed(command: list[str], unlocked: Locks, **words: Any) -> str:
    """Run a command in one; return what it printed."""
    with Unlocked("busybox", command, unlocked=unlocked, **words).start() as box:
        box.wait(30)
        return box.logs()


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a child that clones containers itself: they inherit what the child has."""

    def work() -> Any:
        spawner._current = (os.getpid(), spawner.Here())  # type: ignore[assignment]
        return function(*arguments)

    return in_child(work)
