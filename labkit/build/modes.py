"""--chmod's words: `755`, or as chmod(1) has them, `u=rwX,go=rX`.

who     u, g, o, or a for all; left out it is all
what    + adds, - takes away, = gives these and no others
which   r w x; X is x, if it is a folder or somebody may execute it; s, t; or u, g, o: what that one has
"""

import re

from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue

_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)")
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)")
_SHIFT = {"u": 6, "g": 3, "o": 0}
_PLAIN = {"r": 4, "w": 2, "x": 1, "X": 0, "s": 0, "t": 0}
_SPECIAL = {"us": 0o4000, "gs": 0o2000, "ot": 0o1000}


@dataclass(frozen=True)
class Mode:
    """What --chmod says, applied to one file after another."""

    text: str

    @classmethod
    def parse(cls, text: str) -> "Mode":
        """Return the Mode that a text means. Raises BadValue."""
        if not re.fullmatch("[0-7]{1,4}", text) and not all(map(_CLAUSE.fullmatch, text.split(","))):
            raise BadValue(f"{text} is no mode", "755, or u=rwX,go=rX: see chmod(1)")
        return cls(text)

    def of(self, before: int, folder: bool) -> int:
        """Return the mode of a file or folder that has the mode `before`."""
        if self.text.isdecimal():
            return int(self.text, 8)
        mode = before
        for clause in self.text.split(","):
            who, actions = re.findall(_CLAUSE, clause)[0]
            who = "ugo" if not who or "a" in who else who
            for action, which in re.findall(_ACTION, actions):
                bits = _bits(who, which, mode, folder)
                if action == "=":
                    mode &= ~sum(7 << _SHIFT[one] for one in set(who))
                    kept = "ug" if folder else ""  # a folder keeps its s
                    mode &= ~sum(bit for key, bit in _SPECIAL.items() if key[0] in who and key[0] not in kept)
                mode = mode & ~bits if action == "-" else mode | bits
        return mode


def _bits(who: str, which: str, mode: int, folder: bool) -> int:
    special = sum(bit for key, bit in _SPECIAL.items() if key[0] in who and key[1] in which)
    if which in _SHIFT:
        plain = mode >> _SHIFT[which] & 7
    else:
        plain = sum(_PLAIN[letter] for letter in set(which))
        if "X" in which and (folder or mode & 0o111):
            plain |= 1
    return special | sum(plain << _SHIFT[one] for one in set(who))
