"""RUN --mount: what one RUN sees in its root, and no layer ever holds.

    type=bind      files of the build's folder, or of another stage (from=): a copy, which it may spoil
    type=cache     a folder that the next build finds again: a volume (`lab volume ls`)
    type=tmpfs     an empty folder
    type=secret    a file that the builder hands in: lab build --secret id=NAME,src=FILE

The copy of `bind` is made by the rules of COPY, so `.dockerignore` leaves out here too
what it leaves out there. See RUN --mount in Docker's Dockerfile reference.
"""

import contextlib
import csv
import hashlib
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from labkit.build import context
from labkit.build.copying import Copier, Tree
from labkit.container.spec import Volume
from labkit.ground.dataclass import dataclass, field
from labkit.ground.errors import BadValue, NotFound
from labkit.ground.typed import Any
from labkit.storage import volumes

_KEYS = {
    "bind": ("from", "source", "target", "readonly", "readwrite"),
    "cache": ("id", "target", "sharing", "readonly", "readwrite", "mode", "uid", "gid"),
    "tmpfs": ("target",),
    "secret": ("id", "source", "target", "required", "mode", "uid", "gid", "env"),
}
_SAME = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}


@dataclass(frozen=True)
class Mounts:
    """What one RUN is given: volumes, variables, and what of it makes another layer of the same command."""

    volumes: tuple[Volume, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    made_of: tuple[Any, ...] = ()


def parse(text: str, fill: Callable[[str], str] = str) -> dict[str, str]:
    """Return the words of one --mount by name, variables filled in by `fill`. Raises BadValue."""
    found = {"type": "bind"}
    for part in next(csv.reader([text]), []):
        key, equals, value = part.partition("=")
        key = _SAME.get(key.lower(), key.lower())
        if not equals and key not in ("readonly", "readwrite", "required"):
            raise BadValue(f"--mount={text}: {part!r} has no value", "type=bind,source=file,target=/file")
        found[key] = fill(value) if equals else "true"
    kind = found["type"] = found["type"].lower()
    if kind not in _KEYS:
        raise BadValue(f"--mount={text}: there is no mount of type {kind} here", f"one of {', '.join(_KEYS)}")
    for key in found.keys() - {"type", *_KEYS[kind]}:
        raise BadValue(f"--mount={text}: a mount of type {kind} has no {key}", f"it has {', '.join(_KEYS[kind])}")
    return found


def stages(text: str) -> Iterator[str]:
    """Yield what --mount flags, one a line, are from: names of stages or images. Raises BadValue."""
    for line in text.splitlines():
        if "from" in (words := parse(line)):
            yield words["from"]


@contextlib.contextmanager
def made(
    text: str,
    workdir: str,
    fill: Callable[[str], str],
    source: Callable[[str | None], contextlib.AbstractContextManager[Tree]],
    secrets: Mapping[str, bytes],
) -> Iterator[Mounts]:
    """Make ready for the block what --mount flags, one a line, ask for; `source` gives the files of a from=."""
    found: list[Volume] = []
    env: dict[str, str] = {}
    made_of: list[tuple[str, str]] = []
    with contextlib.ExitStack() as stack:
        for line in text.splitlines():
            words = parse(line, fill)
            if words["type"] == "secret" and not _is_given(words, line, secrets):
                continue
            if "env" in words:
                env[words["env"] or _id(words)] = secrets[_id(words)].decode(errors="surrogateescape")
                if "target" not in words:
                    continue
            target = _target(words, workdir, line)
            where = _cache(words, target) if words["type"] == "cache" else stack.enter_context(context.scratch("mount"))
            if words["type"] == "bind":
                with source(words.get("from")) as tree:
                    made_of.append((target, tree.fingerprint(words.get("source", ""))))
                    Copier(str(where)).copy(tree, words.get("source", ""), "/it")
                where = where / "it"
            elif words["type"] == "secret":
                where = where / "it"
                where.write_bytes(secrets[_id(words)])
                _permit(where, words, 0o400)
            made_of.append((words["type"], target))
            found.append(Volume(str(where), target, _is_read_only(words)))
        yield Mounts(tuple(found), env, tuple(made_of))


def _id(words: Mapping[str, str]) -> str:
    return words.get("id") or words.get("source") or posixpath.basename(words.get("target", ""))


def _is_given(words: Mapping[str, str], text: str, secrets: Mapping[str, bytes]) -> bool:
    if _id(words) not in secrets and words.get("required", "false") != "false":
        raise NotFound(f"--mount={text}: nobody gave that secret", f"lab build --secret id={_id(words)},src=FILE")
    return _id(words) in secrets


def _target(words: Mapping[str, str], workdir: str, text: str) -> str:
    named = words.get("target") or (f"/run/secrets/{_id(words)}" if words["type"] == "secret" else "")
    target = posixpath.normpath(posixpath.join("/", workdir, named))
    if not named or target == "/" or target.split("/")[1] in ("proc", "sys"):
        raise BadValue(f"--mount={text}: the target can't be {named or 'left out'}", "target=/some/folder")
    return target


def _is_read_only(words: Mapping[str, str]) -> bool:
    if "readwrite" in words:
        return words["readwrite"].lower() == "false"
    return words.get("readonly", str(words["type"] in ("bind", "secret"))).lower() != "false"


def _cache(words: Mapping[str, str], target: str) -> Path:
    if words.get("sharing", "shared") not in ("shared", "private", "locked"):
        raise BadValue(f"sharing={words['sharing']}", "shared, private or locked")
    name = "build-cache-" + hashlib.sha256(words.get("id", target).encode()).hexdigest()[:12]
    path = Path(volumes.path(name))
    _permit(path, words, 0o755)
    return path


def _permit(path: Path, words: Mapping[str, str], mode: int) -> None:
    """Give a folder or file the owner and mode that a mount says."""
    said = {key: words.get(key, other) for key, other in (("uid", "0"), ("gid", "0"), ("mode", f"{mode:o}"))}
    for key, text in said.items():
        if not re.fullmatch("[0-7]{1,4}" if key == "mode" else "[0-9]{1,9}", text):
            raise BadValue(f"{key}={text} is no number", "uid=1000,gid=1000,mode=0400")
    os.chown(path, int(said["uid"]), int(said["gid"]))
    path.chmod(int(said["mode"], 8))
