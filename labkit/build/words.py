"""Words of a Dockerfile: quotes, backslashes and variables, read once and together.

Quotes are read before variables are filled in, and what a variable holds is never read
again: `B='$A'` is a dollar and an A, and a value with a quote in it opens none.

    $NAME ${NAME}            the variable; nothing, if there is none
    ${NAME:-else}            … or else, if it is empty too; without the colon only if unset
    ${NAME:+then}            then, if it is set
    ${NAME:?why}             or the build ends
    ${NAME#pattern} ${NAME%pattern}    without what matches in front, or at the end; ## %% the most of it
    ${NAME/pattern/new}      the first match replaced; // each

See "Environment replacement" in Docker's Dockerfile reference.
"""

import re
from collections.abc import Mapping

from labkit.ground.errors import BadValue

_SPECIAL = "@*#?-$!0"  # $@, $?, …: a shell's own, and nothing here


def expand(text: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """Return the one word that `text` means. Raises BadValue for a quote or brace without its other half."""
    return _Reader(text, variables, escape).until(None)


def expand_words(text: str, variables: Mapping[str, str], escape: str = "\\") -> list[str]:
    """Return the words that `text` means: spaces part them, those in an unquoted variable too."""
    reader = _Reader(text, variables, escape)
    reader.until(None)
    return reader.words()


def split(text: str, escape: str = "\\") -> list[str]:
    """Return the words of `text` as they stand, quotes and all; a quoted or escaped space parts nothing."""
    words, word, quote, at = [], "", "", 0
    while at < len(text):
        letter = text[at]
        if quote:
            if letter == quote:
                quote = ""
            elif letter == escape and quote == '"' and at + 1 < len(text):
                word += letter
                at += 1
                letter = text[at]
        elif letter.isspace():
            words += [word] if word else []
            word, letter = "", ""
        elif letter in "'\"":
            quote = letter
        elif letter == escape and at + 1 < len(text):
            word += letter
            at += 1
            letter = text[at]
        word += letter
        at += 1
    return [*words, word] if word else words


class _Reader:
    """One pass over a text. Keeps beside the word itself where unquoted spaces would part it."""

    def __init__(self, text: str, variables: Mapping[str, str], escape: str) -> None:
        self.text, self.variables, self.escape, self.at = text, variables, escape, 0
        self._words: list[str] = []
        self._word: str | None = None

    def words(self) -> list[str]:
        """Return what spaces have parted so far."""
        return self._words + ([self._word] if self._word is not None else [])

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _next(self) -> str:
        letter = self._peek()
        self.at += 1
        return letter

    def _keep(self, text: str) -> None:
        self._word = (self._word or "") + text

    def _keep_parted(self, text: str) -> None:
        for letter in text:
            if not letter.isspace():
                self._keep(letter)
            elif self._word is not None:
                self._words.append(self._word)
                self._word = None

    def until(self, stop: str | None, raw: bool = False) -> str:
        """Read up to the letter `stop`, or to the end; return what it means. `raw` keeps backslashes, for a pattern."""
        result = ""
        while self.at < len(self.text):
            letter = self._next()
            if letter == stop:
                return result
            if letter == "'":
                part = self._single()
                self._keep(part)
            elif letter == '"':
                part = self._double(raw)
                self._keep(part)
            elif letter == "$":
                part = self._variable()
                self._keep_parted(part)
            elif letter == self.escape:
                if self.at >= len(self.text):
                    part = letter if raw else ""
                else:
                    part = (letter if raw else "") + self._next()
                self._keep(part)
            else:
                part = letter
                self._keep_parted(part)
            result += part
        if stop is not None:
            raise self._unfinished(stop)
        return result

    def _single(self) -> str:
        end = self.text.find("'", self.at)
        if end < 0:
            raise self._unfinished("'")
        inside, self.at = self.text[self.at : end], end + 1
        return inside

    def _double(self, raw: bool) -> str:
        result = ""
        while self.at < len(self.text):
            letter = self._next()
            if letter == '"':
                return result
            if letter == "$":
                result += self._variable()
            elif letter == self.escape and self._peek() in ('"', "$", self.escape) and self._peek():
                result += (letter if raw else "") + self._next()
            else:  # every other backslash is only that
                result += letter
        raise self._unfinished('"')

    def _unfinished(self, what: str) -> BadValue:
        return BadValue(f"{self.text!r:.80} has no {what} that ends what it began", "quote it, or end it")

    # Variables

    def _variable(self) -> str:
        if self._peek() != "{":
            name = self._name()
            return self.variables.get(name, "") if name else "$"
        self._next()
        if self._peek() in ("{", "}", ":", ""):
            raise BadValue(f"{self.text!r:.80} has a ${{ without a name", "${NAME}")
        name, letter = self._name(), self._next()
        if letter == "}":
            return self.variables.get(name, "")
        if letter == "/":
            return self._replaced(name)
        empty_is_unset = letter == ":"
        if empty_is_unset:
            letter = self._next()
        if letter not in ("+-?" if empty_is_unset else "+-?#%") or not letter:
            raise BadValue(f"{self.text!r:.80}: ${{{name}{letter}…}} is no substitution", "${NAME:-else}")
        # In a reader of its own: where its spaces are is no matter of the word around it.
        inner = _Reader(self.text, self.variables, self.escape)
        inner.at = self.at
        word = inner.until("}", raw=letter in "#%")
        self.at = inner.at
        return self._substituted(name, letter, word, empty_is_unset)

    def _substituted(self, name: str, operator: str, word: str, empty_is_unset: bool) -> str:
        value = self.variables.get(name)
        is_set = bool(value) if empty_is_unset else value is not None
        if operator == "-":
            return (value or "") if is_set else word
        if operator == "+":
            return word if is_set else ""
        if operator == "?":
            if is_set:
                return value or ""
            why = word or f"is not allowed to be {'unset' if value is None else 'empty'}"
            raise BadValue(f"{name}: {why}", f"--build-arg {name}=…, or ENV {name}=…")
        longest = word.startswith(operator)
        return _trimmed(value or "", word[longest:], longest, at_end=operator == "%")

    def _replaced(self, name: str) -> str:
        each = self._peek() == "/"
        if each:
            self._next()
        inner = _Reader(self.text, self.variables, self.escape)
        inner.at = self.at
        pattern, new = inner.until("/", raw=True), inner.until("}")
        self.at = inner.at
        value = self.variables.get(name, "")
        return re.sub(glob(pattern), lambda _: new, value, count=0 if each else 1) if pattern else value

    def _name(self) -> str:
        """Read a variable's name: letters, digits, _; or digits alone, or one of a shell's own signs."""
        match = re.compile(r"[0-9]+|[^\W\d]\w*").match(self.text, self.at)
        if match is None and self._peek() and self._peek() in _SPECIAL:
            return self._next()
        if match is None:
            return ""
        self.at = match.end()
        return match[0]


def glob(pattern: str, lazy: bool = False) -> str:
    """Return the regular expression of a shell's pattern: `*`, `?`, and a backslash that takes their meaning away."""
    parts = []
    for match in re.finditer(r"\\(.)|(.)", pattern, re.S):
        star = ".*?" if lazy else ".*"
        parts.append({"*": star, "?": "."}.get(match[2]) or re.escape(match[1] or match[2]))
    return "(?s:" + "".join(parts) + ")"


def _trimmed(value: str, pattern: str, longest: bool, at_end: bool) -> str:
    """Return a value without the shortest or longest piece at one end that matches."""
    cuts = range(len(value) + 1)
    for cut in reversed(cuts) if longest != at_end else cuts:
        piece, rest = (value[cut:], value[:cut]) if at_end else (value[:cut], value[cut:])
        if re.fullmatch(glob(pattern), piece):
            return rest
    return value
