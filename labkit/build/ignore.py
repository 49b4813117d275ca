"""`.dockerignore`: which files of the build's folder no COPY can see.

    *.log          in this folder; **/*.log in any
    dir            all that is in it
    !dir/keep      but not this: of the lines that match, the last decides
    # comment

Patterns are Go's: `*` and `?` stay between two slashes, `**` does not, `[a-c]` is a
class, a backslash takes the next sign's meaning away. The folder itself is never a match.
See "dockerignore files" in Docker's documentation, and path/filepath.Match of Go.
"""

import os
import posixpath
import re

from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue


@dataclass(frozen=True)
class Line:
    """One pattern: what it matches, and whether that is kept after all."""

    keeps: bool
    pattern: re.Pattern[str]


class Ignored:
    """The lines of a `.dockerignore`, asked for a path below the build's folder."""

    def __init__(self, text: str = "") -> None:
        self.lines = [line for line in map(_line, text.removeprefix("\ufeff").split("\n")) if line]
        self.keeps_something = any(line.keeps for line in self.lines)

    def __call__(self, path: str) -> bool:
        """Tell whether `path` is left out: the last line that matches it, or a folder above it, decides."""
        parts = path.split("/")
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        ignored = False
        for line in self.lines:
            # A line that could change nothing is not asked.
            if line.keeps == ignored and any(line.pattern.match(one) for one in above):
                ignored = not line.keeps
        return ignored

    def hides(self, root: str, path: str) -> bool:
        """Tell whether nothing of a path below `root` is there: it is left out, and so is all that is in it."""
        if not path or not self.lines or not self(path):
            return False
        where = os.path.join(root, path)
        if not self.keeps_something or os.path.islink(where) or not os.path.isdir(where):
            return True
        return all(self.hides(root, f"{path}/{name}") for name in os.listdir(where))


def _line(text: str) -> Line | None:
    if text.startswith("#"):
        return None
    text = text.strip()
    keeps = text.startswith("!")
    text = text[keeps:].strip()
    if not text:
        if keeps:
            raise BadValue(".dockerignore: a line is `!` and nothing else", "!PATTERN keeps what PATTERN matches")
        return None
    clean = _clean(text)
    if keeps and clean == "." and text.startswith("/"):
        raise BadValue(f".dockerignore: `!{text}` keeps nothing", "!PATTERN keeps what PATTERN matches")
    return None if clean == "." else Line(keeps, compiled(clean, ".dockerignore"))


def _clean(text: str) -> str:
    """Return the pattern without empty parts and `..`, from the folder on."""
    clean = posixpath.normpath(text)
    clean = re.sub(r"^/+", "", clean) if clean != "/" else "."
    return clean or "."


def compiled(pattern: str, where: str, deep: bool = True) -> re.Pattern[str]:
    """Return the regular expression of one of Go's patterns; without `deep` `**` is no more than `*`."""
    result, at = "", 0
    while at < len(pattern):
        letter = pattern[at]
        at += 1
        if letter == "*" and deep and pattern[at : at + 1] == "*":
            at += 1
            if pattern[at : at + 1] == "/":  # **/ is ** too
                at += 1
            result += "(?:.*/)?" if at < len(pattern) else ".*"
        elif letter == "*":
            result += "[^/]*"
        elif letter == "?":
            result += "[^/]"
        elif letter == "[":
            group, at = _class(pattern, at, where)
            result += group
        elif letter == "\\":
            if at >= len(pattern):
                raise BadValue(f"{where}: the pattern {pattern!r} ends in a backslash", "\\\\ is one")
            result += re.escape(pattern[at])
            at += 1
        else:
            result += re.escape(letter)
    return re.compile(rf"(?s:{result})\Z")


def _class(pattern: str, at: int, where: str) -> tuple[str, int]:
    """Read a class of characters from behind its `[`; return (a regular expression, where it ends)."""
    negated = pattern[at : at + 1] == "^"
    at += negated
    inside, first = "", True
    while at < len(pattern):
        letter = pattern[at]
        at += 1
        if letter == "]" and not first:
            return f"(?!/)[{'^' if negated else ''}{inside}]", at
        if letter == "\\" and at < len(pattern):
            letter = pattern[at]
            at += 1
            inside += re.escape(letter)
        elif letter == "-" and not first and pattern[at : at + 1] != "]":
            inside += "-"
        else:
            inside += re.escape(letter)
        first = False
    raise BadValue(f"{where}: the pattern {pattern!r} has a [ that no ] ends", "\\[ is the sign itself")
