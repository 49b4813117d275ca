"""A registry is a shelf of blobs behind HTTP: `pull` and `push`, by skopeo.

A registry knows manifests by name and blobs by digest, and nothing of containers. To
pull is to fetch a manifest, then each blob it lists that is not here yet. That needs
TLS, logins, mirrors and retries, which skopeo has had for years; here it copies into
our own store's folder of blobs, and what arrived is looked through, unpacked and
checked before it gets a name.

A registry that speaks Docker's older manifest has its image rewritten in the OCI's
words on the way: the layers stay the same to the bit, the digest of the manifest not.
See skopeo-copy(1) and the OCI distribution specification.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from labkit.ground import ledger, state, syscalls
from labkit.ground.errors import BadArchive, LabError, NotFound, Unsupported
from labkit.images import catalog, digests, layout
from labkit.images.catalog import Image

_LOCAL = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?/")

# What skopeo says: (a pattern, the kind of error, what to do)
_SAYS = """\
connection refused|LabError|nothing listens there: is the registry running, the port right?
no such host|LabError|no such host: is the name right, is there a network?
server misbehaving|LabError|no such host: is the name right, is there a network?
manifest unknown|NotFound|the registry has no such image: check name and tag
name unknown|NotFound|the registry has no such image: check name and tag
unauthorized|LabError|it needs a login, or does not exist: `skopeo login HOST`
denied|LabError|it needs a login, or does not exist: `skopeo login HOST`
http response to https|LabError|that registry speaks plain HTTP: only one on this machine's loopback may
no image found in|Unsupported|that image is not made for this processor
digest|BadArchive|what arrived is not what was promised: try again
no space left|LabError|there is no room left on the disk: df -h
"""
_KINDS = {kind.__name__: kind for kind in (LabError, NotFound, Unsupported, BadArchive)}


def pull(name: str, progress: Callable[[int, int], object] | None = None) -> Image:
    """Fetch an image from a registry into the store; return the Image.

    `progress` is called with (bytes here, bytes in all) while layers arrive. Layers
    that are here already are not fetched again. Raises NotFound, BadArchive, LabError.
    """
    name = layout.normal(name)
    with catalog.locked(shared=True) as store, _scratch() as scratch:
        sizes, total = _size(name) if progress else ({}, 0)
        source, target = f"docker://{name}", f"oci:{scratch}:it"

        def watch() -> None:
            if progress:
                progress(min(total, _arrived(store, scratch, sizes)), total)

        _skopeo(
            "copy",
            *_tls("src", name),
            "--dest-shared-blob-dir",
            str(store.folder / "blobs"),
            source,
            target,
            doing=f"pulling {name}",
            watch=watch if progress else None,
        )
        digest = layout.Layout(scratch).names()["it"]
        image = catalog.adopt(store, name, digest)
    if progress:
        progress(total, total)
    return image


def push(ref: str, name: str | None = None) -> str:
    """Send an image to a registry, under another name if given; return the manifest's digest there.

    The name says where to: `localhost:5000/mine:1`. Layers the registry has are not sent;
    plain ones are sent as gzip, so the manifest that names them is not the one here.
    """
    with catalog.locked(shared=True) as store, _scratch() as scratch:
        found, digest = catalog.find_in(store, ref)
        name = layout.normal(name or found)
        only = layout.Layout(scratch).create()
        os.rmdir(only.folder / "blobs/sha256")
        os.rmdir(only.folder / "blobs")
        os.symlink(store.folder / "blobs", only.folder / "blobs")
        only.set_name("it", digest)
        told = scratch / "digest"
        _skopeo(
            "copy",
            *_tls("dest", name),
            "--digestfile",
            str(told),
            f"oci:{scratch}:it",
            f"docker://{name}",
            doing=f"pushing {name}",
        )
        return digests.check(told.read_text().strip())


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    path = state.lib_dir("images") / f".skopeo-{state.new_id()}"
    with ledger.made("folder", path=str(path)):
        path.mkdir(0o700)
        yield path


def _tls(side: str, name: str) -> list[str]:
    return [f"--{side}-tls-verify=false"] if _LOCAL.match(name) else []


def _size(name: str) -> tuple[dict[str, int], int]:
    """Return ({digest: size} of the blobs of a remote image, their sum)."""
    tls = ["--tls-verify=false"] if _LOCAL.match(name) else []
    text = _skopeo("inspect", "--raw", *tls, f"docker://{name}", doing=f"looking up {name}")
    manifest = layout.parse_object(text, f"the manifest of {name}")
    if "manifests" in manifest:  # one image a processor: the sizes are in ours
        chosen = layout.choose(layout.entries(manifest, name), catalog.wanted_platform())["digest"]
        text = _skopeo(
            "inspect",
            "--raw",
            *tls,
            f"docker://{name.rpartition(':')[0]}@{chosen}",
            doing=f"looking up {name}",
        )
        manifest = layout.parse_object(text, f"the manifest of {name}")
    parts = manifest.get("layers")
    sizes = {part["digest"]: int(part["size"]) for part in parts or () if isinstance(part, dict)}
    return sizes, sum(sizes.values())


def _arrived(store: layout.Layout, scratch: Path, sizes: dict[str, int]) -> int:
    """Return how many bytes of those blobs are here: whole ones, and those on their way."""
    whole = sum(size for digest, size in sizes.items() if store.has(digests.check(digest)))
    with contextlib.suppress(FileNotFoundError):
        whole += sum(path.stat().st_size for path in Path(scratch).rglob("oci-put-blob*"))
    return whole


def _skopeo(command: str, *arguments: str, doing: str, watch: Callable[[], object] | None = None) -> bytes:
    """Run skopeo; return what it prints. Its errors become ours. It dies with us."""
    if not shutil.which("skopeo"):
        raise Unsupported("skopeo is not here", "apt-get install skopeo (`lab up` does)")
    process = subprocess.Popen(
        ["skopeo", "--insecure-policy", command, *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=_die_with_parent,
    )  # fmt: skip
    try:
        while True:
            try:
                output, errors = process.communicate(timeout=0.1 if watch else None)
                break
            except subprocess.TimeoutExpired:
                assert watch is not None
                watch()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise _reason(doing, errors.decode(errors="replace"))
    return output


def _die_with_parent() -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)


def _reason(doing: str, text: str) -> LabError:
    # level=fatal msg="…": the innermost reason comes last.
    messages = re.findall(r'msg="((?:[^"\\]|\\.)*)"', text) or [text.strip()]
    said = messages[-1].replace('\\"', '"')[-400:]
    for line in _SAYS.splitlines():
        words, kind, hint = line.split("|")
        if words in said.lower():
            return _KINDS[kind](f"{doing} failed: {said}", hint)
    return LabError(f"{doing} failed: {said}", "`skopeo inspect docker://NAME` shows more")
