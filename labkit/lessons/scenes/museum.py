"""A museum of escapes: each one is tried for real, with its lock off and with its lock on.

Everything here got somebody out of a container once. An exhibit starts a container
of its own with one lock left off (see `unlocked`), does what the
attacker did, and looks whether it worked; then it does the same with all locks on.

    museum.visit("double chroot")      one exhibit, both ways
    museum.ALL                         all of them

An exhibit touches only bait that the museum made: a file with a random word, a disk
that is a file, a process that sleeps. Where the real attack would write to the host
(sysrq, core_pattern) opening for writing is proof enough, and nothing is written.
The attacker's tool is the host's own Python, lent to the container read-only.
"""

import contextlib
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

from labkit.container import spawner
from labkit.ground import ledger, state
from labkit.ground.child import in_child
from labkit.ground.errors import NotFound
from labkit.lessons.scenes.unlocked import Unlocked

ALL = {}


@dataclass(frozen=True)
class Exhibit:
    """One escape: what it does, the locks that hold it, and how to try it."""

    name: str
    locks: tuple
    story: str
    attempt: object  # (unlocked) -> what the attacker got, "" for nothing


@dataclass(frozen=True)
class Visit:
    """What an attacker got: with the locks left off, and with all on."""

    exhibit: Exhibit
    off: str
    on: str

    def __repr__(self):
        lines = [f"{self.exhibit.name}: {self.exhibit.story}"]
        for word, got in (
            (f"without {' and '.join(self.exhibit.locks)}", self.off),
            ("all locks on", self.on),
        ):
            lines.append(f"  {word + ':':36} {'ESCAPES, ' + got if got else 'holds'}")
        return "\n".join(lines)


def exhibit(name, *locks):
    """Make a function (unlocked) -> text into an exhibit; its docstring is the story."""

    def hang(attempt):
        ALL[name] = Exhibit(name, locks, attempt.__doc__.strip(), attempt)
        return attempt

    return hang


def visit(name):
    """Try one escape with its locks off and then with all on; return the Visit."""
    if name not in ALL:
        raise NotFound(f"the museum has no {name!r}", "it has: " + ", ".join(ALL))
    one = ALL[name]
    return Visit(one, one.attempt(one.locks), one.attempt(()))


# ---- the attacker's things, and the bait ----

closed_by_the_kernel = "nothing: this kernel closes that way itself"

PYTHON = ("/usr/bin/python3", "-SEc")
LENT = tuple(f"{folder}:{folder}:ro" for folder in ("/usr", "/lib", "/lib64") if os.path.exists(folder))


@contextlib.contextmanager
def bait():
    """Make a folder on the host with a file `secret` in it; yield (folder, the secret)."""
    folder = tempfile.mkdtemp(prefix=f"{state.label()}-bait-", dir="/var/tmp")
    with ledger.made("folder", path=folder):
        word = secrets.token_hex(8)
        Path(folder, "secret").write_text(word)
        yield Path(folder), word


def sh(script, unlocked, **words):
    """Run a shell script in a container of one's own; return what it printed."""
    return printed(["sh", "-c", script], unlocked, **words)


def python(code, unlocked, *arguments, volumes=(), **words):
    """Run Python code in one, with the Python lent to it; return what it printed."""
    return printed([*PYTHON, code, *map(str, arguments)], unlocked, volumes=[*LENT, *volumes], **words)


def printed(command, unlocked, **words):
    """Run a command in one; return what it printed."""
    with Unlocked("busybox", command, unlocked=unlocked, **words).start() as box:
        box.wait(30)
        return box.logs()


def alone(function, *arguments):
    """Call it in a child that clones containers itself: they inherit what the child has."""

    def work():
        spawner._current = (os.getpid(), spawner.Here())
        return function(*arguments)

    return in_child(work)


from labkit.lessons.scenes import exhibits  # noqa: E402, F401 - they hang themselves up in ALL, by the decorator above
