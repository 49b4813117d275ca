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

from labkit.ground.dataclass import dataclass
from labkit.ground.errors import NotFound
from labkit.lessons.scenes import exhibits  # noqa: F401 - they hang themselves up in ALL
from labkit.lessons.scenes.attempts import ALL, Exhibit, closed_by_the_kernel  # noqa: F401 - chapters and tests
from labkit.lessons.scenes.unlocked import Unlocked  # noqa: F401 - the same


@dataclass(frozen=True)
class Visit:
    """What an attacker got: with the locks left off, and with all on."""

    exhibit: Exhibit
    off: str
    on: str

    def __repr__(self) -> str:
        lines = [f"{self.exhibit.name}: {self.exhibit.story}"]
        for word, got in ((f"without {' and '.join(self.exhibit.locks)}", self.off), ("all locks on", self.on)):
            lines.append(f"  {word + ':':36} {'ESCAPES, ' + got if got else 'holds'}")
        return "\n".join(lines)


def visit(name: str) -> Visit:
    """Try one escape with its locks off and then with all on; return the Visit."""
    if name not in ALL:
        raise NotFound(f"the museum has no {name!r}", "it has: " + ", ".join(ALL))
    one = ALL[name]
    return Visit(one, one.attempt(one.locks), one.attempt(()))
