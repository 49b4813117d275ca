"""Checks of chapter 09: a blob under its own name, an image without ballast, a build that remembers."""

import hashlib
import os
import re
from pathlib import Path

from labkit.images import catalog
from labkit.lessons.checks import Requirements, exercise

_HEX = re.compile(r"[0-9a-f]{64}")


@exercise
def stored_by_name(folder: str | Path, data: bytes) -> Requirements:
    """Store bytes under the name that they give themselves."""
    files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    yield (
        data in files.values(),
        "a file with these bytes is there",
        "write them: (shelf / NAME).write_bytes(…)",
        "to the bit: no newline more or less",
    )
    yield (
        all(_HEX.fullmatch(name) for name in files),
        "each name is a SHA-256 in hexadecimal",
        "64 digits, without `sha256:` before them: hashlib.sha256(…).hexdigest()",
    )
    lies = [name for name, found in files.items() if hashlib.sha256(found).hexdigest() != name]
    yield (
        not lies,
        "hashed again, each file is what its name says",
        "one is not. What did you hash: the bytes, or something else?",
        "hashlib.sha256(note).hexdigest(), and the same `note` written; remove what you tried before",
    )


@exercise
def without_ballast(name: str, kept: str, ballast: str, limit: int) -> Requirements:
    """Build an image that has the result, and in no layer what was needed for a moment only.

    All layers but the base's take less than `limit` bytes.
    """
    image = catalog.get(name)
    base = catalog.get("busybox")
    yield (
        image.diff_ids[: len(base.diff_ids)] == base.diff_ids and len(image.layers) > len(base.layers),
        "the image stands on busybox",
        "begin with FROM busybox, and build it under the same name",
    )
    yield (
        any(_HEX.match(_text(layer, kept)) for layer in image.layers),
        f"{kept} is in it, with a SHA-256",
        f"the work must still be done: sha256sum … > {kept}",
    )
    yield (
        not any(Path(layer, ballast.lstrip("/")).is_file() for layer in image.layers),
        f"no layer has {ballast}",
        "a later line can't take a file out of an earlier layer: it only adds a whiteout",
        "what one RUN makes and deletes again is in no layer: join the lines with &&",
    )
    added = image.size - base.size
    yield added < limit, f"the image is less than {limit >> 10} KB larger than busybox", "what else was left behind?"


@exercise
def remembered(before: str, after: str, source: str, made: str) -> Requirements:
    """Order the lines of a Dockerfile so that a new build makes only the last layer again."""
    old, new = catalog.get(before), catalog.get(after)
    yield (
        len(old.layers) == len(new.layers) >= 3,
        "both have the base, the slow layer and the program",
        "FROM, RUN and COPY: each is needed",
    )
    yield (
        any(_exists(layer, made) for layer in new.layers[:-1]),
        f"a layer below the uppermost one has {made}",
        "the slow RUN must come before what changes often",
        "FROM, then RUN, then COPY",
    )
    yield (
        _exists(new.layers[-1], source) and _text(new.layers[-1], source) != _text(old.layers[-1], source),
        f"the uppermost layer brings {source}, and it has changed",
        "COPY it last; and change the program between the two builds",
    )
    yield (
        old.diff_ids[:-1] == new.diff_ids[:-1],
        "all other layers are the same in both builds: nothing was made again",
        "a layer is remembered as long as all before it is the same: what comes before the slow one?",
    )


def _exists(layer: str, path: str) -> bool:
    return os.path.lexists(Path(layer, path.lstrip("/")))


def _text(layer: str, path: str) -> str:
    found = Path(layer, path.lstrip("/"))
    return found.read_text(errors="replace") if found.is_file() else ""
