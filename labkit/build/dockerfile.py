"""A Dockerfile read: its lines as instructions, its variables filled in.

    FROM busybox AS build            word, then what it is about
    COPY --from=build /a /b          flags begin with two dashes
    RUN ["echo", "hi"]               a JSON list is executed as it is,
    RUN echo hi                      anything else by a shell

A line that ends in a backslash goes on in the next; a line that begins with `#` is a
comment, even in the middle of one that goes on. `RUN <<EOF` takes the lines up to EOF
as a script. Nothing is done here: reading changes nothing. See Docker's Dockerfile
reference.
"""

import json
import re
from dataclasses import dataclass, field

from labkit.ground.errors import BadValue

WORDS = [
    "FROM",
    "RUN",
    "COPY",
    "ADD",
    "ENV",
    "WORKDIR",
    "USER",
    "ENTRYPOINT",
    "CMD",
    "EXPOSE",
    "VOLUME",
    "LABEL",
    "ARG",
    "SHELL",
    "STOPSIGNAL",
    "MAINTAINER",
]
# Docker's own additions: the OCI's image config has no place for them.
_DOCKERS = {
    "HEALTHCHECK": "leave it out: the image runs the same, only nobody asks it whether it is well",
    "ONBUILD": "write the line where it is to happen: in the Dockerfile that builds on this image",
}
_EXPANDED = {
    "FROM",
    "COPY",
    "ADD",
    "ENV",
    "WORKDIR",
    "USER",
    "EXPOSE",
    "VOLUME",
    "LABEL",
    "ARG",
    "STOPSIGNAL",
}


@dataclass(frozen=True)
class Instruction:
    """One instruction: where it stands, its word, flags, and text or list."""

    line: int
    word: str
    text: str  # after the flags, not yet expanded
    flags: dict = field(default_factory=dict)
    script: str | None = None  # of a heredoc

    def __str__(self):
        flags = "".join(f"--{key}={value} " for key, value in self.flags.items())
        return f"{self.word} {flags}{self.text}"

    def refuse(self, why, hint=None):
        """Return the BadValue that says why this instruction can't be meant."""
        return BadValue(
            f"Dockerfile, line {self.line}: {self.word}: {why}", hint or "see Docker's Dockerfile reference"
        )

    def expanded(self, variables):
        """Return this instruction with its variables filled in, where its word has them filled in."""
        if self.word not in _EXPANDED:
            return self
        flags = {key: expand(value, variables) for key, value in self.flags.items()}
        try:
            return Instruction(self.line, self.word, expand(self.text, variables), flags, self.script)
        except BadValue as error:
            raise self.refuse(error.message) from None

    def command(self, shell):
        """Return what RUN, CMD or ENTRYPOINT execute: the list, or the text by a shell."""
        if self.script is not None:
            return (*shell, self.script)
        words = self.list()
        return words if words is not None else (*shell, self.text)

    def list(self):
        """Return the JSON list of strings that the text is, or None if it is none."""
        if not self.text.startswith("["):
            return None
        try:
            words = json.loads(self.text)
        except (ValueError, RecursionError):
            return None
        return tuple(words) if isinstance(words, list) and all(isinstance(word, str) for word in words) else None

    def words(self):
        """Return the text's words: the JSON list, or what quotes and spaces separate."""
        return self.list() or tuple(split(self.text))

    def pairs(self):
        """Return [(name, value)] of ENV or LABEL: `A=1 B="2 3"`, or the old `A 1`."""
        words = split(self.text, keep_quotes=True)
        if words and "=" not in words[0]:
            name, _, value = self.text.partition(" ")
            if not value:
                raise self.refuse(f"{name} has no value", f"{self.word} {name}=value")
            return [(name, unquote(value.strip()))]
        pairs = [tuple(map(unquote, word.partition("=")[::2])) for word in words]
        if not pairs or any(not name for name, _ in pairs) or any("=" not in word for word in words):
            raise self.refuse(f"{self.text!r} are no pairs", f"{self.word} NAME=value NAME2=value2")
        return pairs


def parse(text):
    """Return the Instructions of a Dockerfile. Raises BadValue with the line."""
    lines = text.splitlines()
    escape = "\\"
    directive = re.match(r"\s*#\s*escape\s*=\s*([\\`])\s*$", lines[0], re.I) if lines else None
    if directive:
        escape = directive[1]
    found, at = [], 0
    while at < len(lines):
        first, joined = at, ""
        while at < len(lines):
            line = lines[at]
            at += 1
            if line.lstrip().startswith("#") or (joined and not line.strip()):
                if not joined:
                    first = at
                continue
            stripped = line.rstrip()
            goes_on = stripped.endswith(escape)
            joined += stripped[:-1] if goes_on else stripped
            if not goes_on:
                break
        if joined.strip():
            instruction = _instruction(first + 1, joined.strip())
            instruction, at = _heredoc(instruction, lines, at)
            found.append(instruction)
        elif at >= len(lines):
            break
    first = next((one for one in found if one.word != "ARG"), None)
    if first is None or first.word != "FROM":
        raise BadValue("the Dockerfile does not begin with FROM", "FROM busybox, or FROM scratch")
    return found


def _instruction(line, text):
    word, _, rest = text.partition(" ")
    word, rest, flags = word.upper(), rest.strip(), {}
    if word in _DOCKERS:
        raise BadValue(f"Dockerfile, line {line}: {word} is Docker's own, and not built here", _DOCKERS[word])
    if word not in WORDS:
        raise BadValue(f"Dockerfile, line {line}: {word!r:.40} is no instruction", f"one of {', '.join(WORDS)}")
    while match := re.match(r"--([a-z-]+)(?:=(\S*))?\s+", rest):
        flags[match[1]] = match[2] or ""
        rest = rest[match.end() :]
    if not rest:
        raise BadValue(f"Dockerfile, line {line}: {word} of what?", "see Docker's Dockerfile reference")
    return Instruction(line, word, rest, flags)


def _heredoc(instruction, lines, at):
    match = re.fullmatch(r"<<(-?)(['\"]?)(\w+)\2", instruction.text) if instruction.word == "RUN" else None
    if not match:
        return instruction, at
    body = []
    for number in range(at, len(lines)):
        line = lines[number].lstrip("\t") if match[1] else lines[number]
        if line == match[3]:
            script = "\n".join(body) + "\n"
            return Instruction(instruction.line, "RUN", instruction.text, instruction.flags, script), number + 1
        body.append(line)
    raise instruction.refuse(f"the script that {instruction.text} begins does not end", f"a line {match[3]}")


_VARIABLE = re.compile(r"\\(.)|\$(?:(\w+)|\{(\w+)(?:(:?[-+])([^}]*))?\}|\{)")


def expand(text, variables):
    r"""Fill in `$NAME`, `${NAME}`, `${NAME:-else}`, `${NAME:+then}`; `\$` stays a dollar. Raises BadValue."""

    def fill(match):
        if match[1] is not None:
            return "$" if match[1] == "$" else match[0]
        name = match[2] or match[3]
        if name is None:
            raise BadValue(f"{text!r:.60} has a ${{ that no }} ends", "${NAME}")
        value, operator = variables.get(name, ""), (match[4] or "")
        is_set = bool(value) if operator.startswith(":") else name in variables
        if operator.endswith("-"):
            return value if is_set else match[5]
        if operator.endswith("+"):
            return match[5] if is_set else ""
        return value

    return _VARIABLE.sub(fill, text)


def split(text, keep_quotes=False):
    """Return the words of a text; quotes hold one together, a backslash keeps a space."""
    words = re.findall(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+""", text)
    return words if keep_quotes else [unquote(word) for word in words]


def unquote(word):
    """Take the quotes and backslashes of a word away."""
    return re.sub(
        r""""((?:[^"\\]|\\.)*)"|'([^']*)'|\\(.)""",
        lambda m: re.sub(r"\\(.)", r"\1", m[1]) if m[1] is not None else m[2] if m[2] is not None else m[3],
        word,
    )
