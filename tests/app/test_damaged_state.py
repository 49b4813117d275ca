"""Every file that the lab writes may be found cut short or garbled: it is named, hides no other, and `lab clean` mends it."""

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from labkit.app import cli
from labkit.ground import ledger, state
from labkit.ground.errors import Damaged

pytestmark = [pytest.mark.usefixtures("needs_root"), pytest.mark.slow]

DAMAGES = {
    "empty": lambda path, data: path.write_bytes(b""),
    "half": lambda path, data: path.write_bytes(data[: len(data) // 2]),
    "a list": lambda path, data: path.write_bytes(b"[]"),
    "another object": lambda path, data: path.write_bytes(b'{"id": 5}'),
    "binary": lambda path, data: path.write_bytes(bytes(range(256))),
    "a folder": lambda path, data: (path.unlink(), path.mkdir()),
    "a pipe": lambda path, data: (path.unlink(), os.mkfifo(path)),
}
# What may be lost without a word, since it is made anew or only read by people.
QUIET = ("seccomp", "log", "log.marks", "exit", "hosts", "hostname", "resolv.conf", "locks", "ledger", "oci-layout", "sha256", "build-cache", "jupyter", "notebooks")  # fmt: skip

RUN = ("run", "--rm", "--network", "net", "busybox", "true")


def lab(*words):
    """Call the command in a child; return (its status, what it said on stdout, on stderr)."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.stdout, sys.stderr = open(1, "w", 1), open(2, "w", 1)  # noqa: SIM115 - the process ends with them
            os._exit(cli.main(list(words)))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0), err.seek(0)
        return status, out.read(), err.read()


@pytest.fixture
def taken_away(own_root):
    yield
    lab("clean", "--all")


def world(folder):
    """Make one of everything that leaves a file: a container that runs, one that has ended, a network, a build."""
    assert lab("run", "-d", "--name", "lives", "--network", "net", "busybox", "sleep", "60")[0] == 0
    assert lab("run", "--name", "ended", "busybox", "echo", "hi")[0] == 0
    (folder / "Dockerfile").write_text("FROM busybox\nRUN echo >/file\n")
    assert lab("build", "-t", "built", str(folder))[0] == 0
    for place, text in (
        ("run/jupyter/server.json", '{"host": "h", "port": 1, "token": "t", "pid": 1, "ticks": 1}'),
        ("lib/notebooks/progress.json", '{"seat": "ab", "checks": {}, "last": null}'),
        ("lib/notebooks/.editions.json", "{}"),
    ):
        path = Path(os.environ["LABKIT_ROOT"], place)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def files():
    """Return every file of the lab's own, one of each place: not the layers' files, which are images'."""
    root = Path(os.environ["LABKIT_ROOT"])
    found = {}
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root)
        if path.is_file() and not {"diff", "upper", "damaged"} & set(place.parts) and path.stat().st_size < 1 << 19:
            alike = path.parent.name in ("ledger", "locks", "seccomp", "build-cache", "sha256")
            found.setdefault(_place(path) if alike else place, path)
    return list(found.values())


def test_a_damaged_file_is_named_hides_no_other_and_clean_mends_it(own_root, taken_away):
    (own_root / "context").mkdir()
    world(own_root / "context")
    done = []
    while left := [path for path in files() if _place(path) not in done]:
        how = list(DAMAGES)[len(done) % len(DAMAGES)]
        done.append(_place(left[0]))
        damage_and_mend(left[0], how)
        world(own_root / "context")
    assert len(done) > 25
    lab("clean", "--all")
    assert ledger.entries() == []
    assert [name for _, name in socket.if_nameindex() if name.startswith(state.label())] == []


def test_each_kind_of_file_is_read_as_from_a_stranger(own_root, taken_away):
    (own_root / "context").mkdir()
    world(own_root / "context")
    found = {}
    for path, kind in state._places():
        found.setdefault(kind.place, (path, kind))
    assert {kind.place for kind in state.KINDS} == set(found)  # the world has one of each
    for path, kind in found.values():
        data = path.read_bytes()
        for how, damage in DAMAGES.items():
            if kind.shape is None and how not in ("a folder", "a pipe"):
                continue  # a lock has nothing in it
            damage(path, data)
            with pytest.raises(Damaged, match=str(path)):
                state.read(path, kind)
            aside = state.set_aside(*[error for error in state.damaged() if error.path == str(path)])
            assert os.path.lexists(aside) and state.read(path, kind) is None
            path.write_bytes(data)
            assert state.damaged() == []


def _place(path):
    """Return the place of a file with what is random in it left out."""
    place = path.relative_to(os.environ["LABKIT_ROOT"])
    names = (state.run_dir("names") / name for name in ("lives", "ended"))
    known = {file.read_text(): file.name for file in names if file.is_file()}
    if path.parent.name in ("ledger", "locks", "seccomp", "build-cache"):
        return path.parent.name
    if path.parent.name == "sha256":  # a build makes new ones for ever: one of each kind
        data = path.read_bytes()
        return "layer" if data[:1] != b"{" else "config" if b"rootfs" in data else "manifest"
    return "/".join(known.get(part, part) for part in place.parts)


def damage_and_mend(path, how):
    DAMAGES[how](path, path.read_bytes())
    said = []
    for words in (("ps", "-a"), ("images",), RUN, ("diff", "ended"), ("diff", "lives")):
        status, out, err = lab(*words)
        said.append(err)
        assert status in (0, 1, 125) and "labkit itself" not in err and "Traceback" not in err, (path, how, words, err)
        if words[0] == "ps":
            seen = [name for name in ("lives", "ended") if name in out]
            assert len(seen) == 2 or (len(seen) == 1 and path.name == "state.json"), (path, how, out, err)
    quiet = {path.name, path.parent.name} & set(QUIET)
    assert quiet or any(str(path) in text and "lab clean" in text for text in said), (path, how, said)
    status, out, err = lab("clean")
    assert status == 0, (path, how, out, err)
    kept = [aside for aside in out.splitlines() if aside.startswith("set aside: ") and str(path) in aside]
    assert kept or quiet, (path, how, out)
    status, out, err = lab(*RUN)
    assert (status, err) == (0, ""), (path, how, err)
    status, out, err = lab("clean", "--all")
    assert status == 0, (path, how, err)
    if path.is_dir() or path.is_fifo():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
