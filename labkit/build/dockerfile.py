"""A Dockerfile read: lines become instructions. What their variables hold is filled in later, by `words`.

    FROM busybox AS build            word, then what it is about
    COPY --from=build /a /b          flags begin with two dashes
    RUN ["echo", "hi"]               a JSON list is executed as it is,
    RUN echo hi                      anything else by a shell

Three steps, each on what the one before gives: comments at the very top may be
directives (`# escape=`); a line that ends in the escape sign goes on in the next, past
comments and empty lines; a line with `<<EOF` in it takes the lines up to EOF as a
here-document. Nothing is done here: reading changes nothing. See Docker's Dockerfile
reference.
"""

import json
import re
from collections.abc import Mapping

from labkit.build import words
from labkit.ground.dataclass import dataclass, field
from labkit.ground.errors import BadValue

# Each instruction and the flags that it may have.
FLAGS = {
    "FROM": {"platform"},
    "RUN": {"network", "mount", "security"},
    "COPY": {"from", "chown", "chmod", "link", "exclude"},
    "ADD": {"chown", "chmod", "link", "exclude"},
    "HEALTHCHECK": {"interval", "timeout", "start-period", "start-interval", "retries"},
    **{
        word: set()
        for word in (
            "ENV WORKDIR USER ENTRYPOINT CMD EXPOSE VOLUME LABEL ARG SHELL STOPSIGNAL MAINTAINER ONBUILD"
        ).split()
    },
}
_SEVERAL = ("mount", "exclude")  # may be there more than once: their values are lines
_BLANKS = re.compile(r"[ \t\v\f\r]+")
_WHOLE = r"<<-?\s*(['\"]?)[\w.-]+\1"
_REFERENCE = "see Docker's Dockerfile reference"


@dataclass(frozen=True)
class Heredoc:
    """A here-document: its name, its lines, whether variables in it are filled in."""

    name: str
    body: str
    expands: bool


@dataclass(frozen=True)
class Instruction:
    """One instruction: where it stands, its word, flags, and text or list."""

    line: int
    word: str
    text: str  # after the flags, as it stands
    flags: Mapping[str, str] = field(default_factory=dict)
    heredocs: tuple[Heredoc, ...] = ()
    escape: str = "\\"

    def __str__(self) -> str:
        flags = "".join(f"--{key}={value} " for key, values in self.flags.items() for value in values.split("\n"))
        return f"{self.word} {flags}{self.text}"

    def refuse(self, why: str, hint: str | None = None) -> BadValue:
        """Return the BadValue that says why this instruction can't be meant."""
        return BadValue(f"Dockerfile, line {self.line}: {self.word}: {why}", hint or _REFERENCE)

    def expand(self, text: str, variables: Mapping[str, str]) -> str:
        """Return the one word that `text` means here."""
        try:
            return words.expand(text, variables, self.escape)
        except BadValue as error:
            raise self.refuse(error.message, error.hint) from None

    def one(self, variables: Mapping[str, str]) -> str:
        """Return the whole text as one word: of WORKDIR, USER, STOPSIGNAL."""
        return self.expand(self.text, variables)

    def each(self, variables: Mapping[str, str]) -> list[str]:
        """Return the words of ADD, COPY, FROM or VOLUME: a JSON list, or what spaces part; each filled in."""
        listed = self.list()
        parts = listed if listed is not None else _BLANKS.split(self.text)
        return [self.expand(part, variables) for part in parts]

    def parted(self, variables: Mapping[str, str]) -> list[str]:
        """Return the words of EXPOSE: a variable may hold several."""
        try:
            return words.expand_words(self.text, variables, self.escape)
        except BadValue as error:
            raise self.refuse(error.message, error.hint) from None

    def pairs(self, variables: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return [(name, value)] of ENV or LABEL: `A=1 B="2 3"`, or the old `A 1`."""
        parts = words.split(self.text, self.escape)
        if "=" not in parts[0]:
            name, *rest = _BLANKS.split(self.text, maxsplit=1)
            if not rest:
                raise self.refuse(f"{name} has no value", f"{self.word} {name}=value")
            return [(self.expand(name, variables), self.expand(rest[0], variables))]
        found = []
        for part in parts:
            name, equals, value = part.partition("=")
            if not name or not equals:
                raise self.refuse(f"{part!r} is no pair", f"{self.word} NAME=value NAME2=value2")
            found.append((self.expand(name, variables), self.expand(value, variables)))
        return found

    def list(self) -> tuple[str, ...] | None:
        """Return the JSON list of strings that the text is, or None if it is none."""
        if not self.text.startswith("["):
            return None
        try:
            parts = json.loads(self.text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(parts, list):
            return None
        if not all(isinstance(part, str) for part in parts):
            raise self.refuse(f"{self.text!r:.60} is a list of more than strings")
        return tuple(parts)

    def command(self, shell: tuple[str, ...]) -> tuple[str, ...]:
        """Return what RUN, CMD or ENTRYPOINT execute: the list, or the text by a shell."""
        if self.heredocs:
            return self._script(shell)
        listed = self.list()
        return listed if listed is not None else (*shell, self.text)

    def _script(self, shell: tuple[str, ...]) -> tuple[str, ...]:
        """Return the command of a RUN with here-documents: the one is the script, or the shell reads all of it."""
        first = self.heredocs[0]
        if not re.fullmatch(_WHOLE, self.text):
            documents = "".join(f"{one.body}{one.name}\n" for one in self.heredocs)
            return (*shell, f"{self.text}\n{documents}")
        return (*shell, f"/dev/pipes/{first.name}" if self.is_script() else first.body)

    def is_script(self) -> bool:
        """Tell whether a here-document is all of a RUN, and begins with #!, which the kernel reads in files only."""
        whole = self.word == "RUN" and self.heredocs and re.fullmatch(_WHOLE, self.text)
        return bool(whole) and self.heredocs[0].body.startswith("#!")


def parse(text: str) -> list[Instruction]:
    """Return the Instructions of a Dockerfile. Raises BadValue with the line."""
    if "\0" in text or text.startswith("\ufffd"):
        raise BadValue("the Dockerfile is not text in UTF-8", "save it as UTF-8: a Windows editor may have used UTF-16")
    # Only a newline ends a line: str.splitlines knows eight other signs.
    lines = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
    found = _Lines(lines, _escape(lines)).instructions()
    first = next((one for one in found if one.word != "ARG"), None)
    if first is None or first.word != "FROM":
        raise BadValue("the Dockerfile does not begin with FROM", "FROM busybox, or FROM scratch")
    return found


def parse_one(text: str, line: int = 0) -> Instruction:
    """Return the Instruction that one line is: an image's ONBUILD."""
    (one,) = _Lines(text.split("\n"), "\\").instructions() or (None,)
    if one is None:
        raise BadValue("an ONBUILD of nothing")
    return one


def _escape(lines: list[str]) -> str:
    """Return the escape sign: a directive names it, among those comments at the very top that look like one."""
    found: dict[str, str] = {}
    for line in lines:
        directive = re.fullmatch(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+)", line.strip())
        name = directive[1].lower() if directive else ""
        if not directive or name not in ("escape", "syntax", "check"):
            break
        if name in found:
            raise BadValue(f"Dockerfile: a second {name}= at the top", "one of each kind")
        found[name] = directive[2]
    if found.get("escape", "`") not in ("\\", "`"):
        raise BadValue(f"Dockerfile: escape={found['escape']} is no escape sign", "\\ or `")
    reader = found.get("syntax", "docker/dockerfile")
    if not re.match(r"(docker\.io/)?docker/dockerfile(-upstream)?([:@ ]|$)", reader):
        raise BadValue(
            f"Dockerfile: syntax={reader} is an image that reads Dockerfiles, and a build here fetches nothing",
            "syntax=docker/dockerfile:1, or none",
        )
    return found.get("escape", "\\")


class _Lines:
    """The lines of a Dockerfile, taken from the front."""

    def __init__(self, lines: list[str], escape: str) -> None:
        self.lines, self.escape, self.at = lines, escape, 0
        sign = re.escape(escape)
        self._goes_on = re.compile(rf"(?:(?<!{sign})|^){sign}[ \t]*$")

    def instructions(self) -> list[Instruction]:
        """Return all that they hold."""
        found = []
        while self.at < len(self.lines):
            number, joined = self._joined()
            if joined.strip():
                found.append(self._instruction(number, joined.strip()))
        return found

    def _joined(self) -> tuple[int, str]:
        """Take one instruction's lines; return (the number of the first, all as one)."""
        joined, number, begun = "", self.at + 1, False
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            if line.lstrip().startswith("#") or not line.strip():
                if begun:
                    continue  # also in the middle of one that goes on
                return number, ""
            begun = True
            shorter = self._goes_on.sub("", line)
            joined += shorter
            if shorter == line:
                break
        return number, joined

    def _instruction(self, number: int, text: str) -> Instruction:
        name, *rest = _BLANKS.split(text, maxsplit=1)
        word, text = name.upper(), (rest[0] if rest else "")
        if word not in FLAGS:
            raise BadValue(f"Dockerfile, line {number}: {name!r:.40} is no instruction", f"one of {', '.join(FLAGS)}")
        flags, text = self._flags(number, word, text)
        one = Instruction(number, word, text.strip(), flags, escape=self.escape)
        for flag in flags:
            if flag not in FLAGS[word]:
                known = ", ".join(f"--{name}" for name in sorted(FLAGS[word])) or "none"
                raise one.refuse(f"labkit has no flag --{flag} for it", f"flags of {word}: {known}")
        if not one.text and (word not in ("CMD", "ENTRYPOINT")):
            raise one.refuse("of what?")
        return self._with_heredocs(one)

    def _flags(self, number: int, word: str, text: str) -> tuple[dict[str, str], str]:
        """Take the flags off the front; return them and what is left."""
        flags: dict[str, str] = {}
        while match := re.match(r"--([a-zA-Z][\w-]*)?", text):
            if match[1] is None:  # `--` alone ends them
                return flags, text[2:].lstrip()
            parts = words.split(text, self.escape)
            whole = parts[0]
            text = text[text.index(whole) + len(whole) :].lstrip()
            name, equals, value = whole[2:].partition("=")
            value = words.expand(value.replace("$", f"{self.escape}$"), {}, self.escape) if equals else "true"
            if name in flags and name not in _SEVERAL:
                raise BadValue(f"Dockerfile, line {number}: {word}: --{name} is there twice", _REFERENCE)
            flags[name] = f"{flags[name]}\n{value}" if name in flags else value
        return flags, text

    def _with_heredocs(self, one: Instruction) -> Instruction:
        if one.word not in ("RUN", "COPY", "ADD") or "<<" not in one.text or one.list() is not None:
            return one
        found = []
        joined = re.sub(r"<<(-?)[ \t]+(?=['\"]?[A-Za-z_])", r"<<\1", one.text)  # `<< EOF` is one word
        for part in words.split(joined, self.escape):
            match = re.fullmatch(r"\d*<<(-?)((['\"]?)([\w.-]+)\3)(?:[>|&;)].*)?", part)
            if match:
                body = self._body(one, match[4], bool(match[1]))
                found.append(Heredoc(match[4], body, expands=not match[3]))
        return Instruction(one.line, one.word, one.text, one.flags, tuple(found), self.escape)

    def _body(self, one: Instruction, name: str, strips: bool) -> str:
        taken: list[str] = []
        while self.at < len(self.lines):
            line = self.lines[self.at].lstrip("\t") if strips else self.lines[self.at]
            self.at += 1
            if line == name:
                return "".join(f"{line}\n" for line in taken)
            taken.append(line)
        raise one.refuse(f"the here-document <<{name} does not end", f"a line {name}")
