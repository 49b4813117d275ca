"""An image store as the OCI laid it out: files named by their own hash, and one list of names.

    images/
      oci-layout                 says that this is one
      index.json                 names: `busybox:latest` → the digest of a manifest
      blobs/sha256/<digest>      everything else, each file named by its sha256

A manifest lists a config and layers by digest; the config says what to run and
lists the layers' diffIDs. So from a name everything below is fixed, to the byte,
and what two images share is one file. Blobs are added first and the name last: a
crash leaves blobs that nothing names, which `collect` removes, and never a name
that leads nowhere; a power cut neither (see synced). Any tool that reads this layout
can read ours: `skopeo inspect oci:/var/lib/labkit/images:busybox:latest`.
See the OCI image specification, image-layout.md and manifest.md.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from labkit.ground import ledger, state, synced
from labkit.ground.errors import BadArchive, BadValue, Damaged, NotFound, Unsupported, from_oserror
from labkit.ground.typed import Any, BinaryIO
from labkit.images import digests

REF_NAME = "org.opencontainers.image.ref.name"
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"  # then nothing, +gzip or +zstd
BLOB = state.kind("lib/images/blobs/sha256/*", None, json=False)
INDEX_FILE = state.kind("lib/images/index.json", {"manifests": [{"digest": re.compile(r"sha256:[0-9a-f]{64}")}]})
_MAX_JSON = 8 << 20  # bytes of a manifest or config; real ones have some kilobytes

# The grammar of github.com/distribution/reference, without its digest part.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:localhost|[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)+|[a-zA-Z0-9-]+(?=:\d))(?::\d{1,5})?"
_REFERENCE = re.compile(rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?P<tag>:\w[\w.-]{{0,127}})?", re.ASCII)


def normal(name: object) -> str:
    """Return an image's name with its tag: `busybox` is `busybox:latest`. Raises BadValue."""
    match = _REFERENCE.fullmatch(name) if isinstance(name, str) and len(name) <= 255 else None
    if not match or not isinstance(name, str):
        raise BadValue(
            f"{name!r} is not the name of an image",
            "name, name:tag or host:port/path/name:tag, the name in lower case",
        )
    return name if match["tag"] else name + ":latest"


class Layout:
    """An OCI image layout in a folder: the store's own, or one being saved or loaded."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def create(self) -> "Layout":
        """Make the layout's folders and files where they are missing; return self."""
        (self.folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        if not (self.folder / "oci-layout").exists():
            state.write_atomic(self.folder / "oci-layout", '{"imageLayoutVersion":"1.0.0"}', 0o644)
        if not (self.folder / "index.json").exists():
            self._write_index([])
        return self

    # Blobs

    def path(self, digest: str) -> Path:
        """Return where the blob of this digest is, or would be."""
        return self.folder / "blobs/sha256" / digests.hex_of(digest)

    def has(self, digest: str, size: int | None = None) -> bool:
        """Tell whether the blob is here, an ordinary file, and of this size in bytes if it is known."""
        path = self.path(digest)
        return path.is_file() and size in (None, path.stat().st_size)

    def add(self, data: bytes) -> str:
        """Store some bytes; return their digest. A damaged blob of that name is replaced."""
        digest = digests.digest(data)
        if not self.has(digest, len(data)) or self.path(digest).read_bytes() != data:
            state.write_atomic(self.path(digest), data, 0o644)
        return digest

    def add_json(self, value: object) -> tuple[str, int]:
        """Store a value as JSON; return (digest, size). The same value has the same digest."""
        data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        return self.add(data), len(data)

    @contextlib.contextmanager
    def adding(self) -> Iterator[tuple[BinaryIO, Callable[[str], None]]]:
        """Give (stream, keep): what was written is a blob once `keep(digest)` is called."""
        scratch = self.folder / "blobs" / f".{os.urandom(6).hex()}.tmp"
        with ledger.made("file", path=str(scratch)):
            try:
                with open(scratch, "xb") as stream:

                    def keep(digest: str) -> None:
                        stream.flush()
                        os.fsync(stream.fileno())
                        os.rename(scratch, self.path(digest))

                    yield stream, keep
            except OSError as error:
                raise from_oserror(error, "storing a blob") from None

    def add_stream(
        self, source: Any, digest: str | None = None, progress: digests.Progress | None = None
    ) -> tuple[str, int]:
        """Store all that a binary stream gives; return (digest, size). Raises BadArchive."""
        with self.adding() as (out, keep):
            hashed = digests.Hashed(out, progress)
            while block := source.read(digests.BLOCK):
                hashed.write(block)
            if digest is not None and hashed.digest != digest:
                raise BadArchive(
                    f"a blob has digest {hashed.digest}, but {digest} was promised",
                    "it was damaged or exchanged on the way: fetch it again",
                )
            keep(hashed.digest)
        return hashed.digest, hashed.size

    def set_aside_if_damaged(self, digest: str) -> None:
        """Put a blob whose contents are not those of its name where nobody reads it: it can be fetched again."""
        path = self.path(digest)
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != path.name:
                state.set_aside(Damaged(path, "it has other contents than its name says"))

    def read(self, digest: str) -> bytes:
        """Return a small blob's bytes, checked against its digest."""
        data = state.read_plain(self.path(digest), _MAX_JSON + 1)
        if data is None:
            raise NotFound(f"the store has no blob {digest}", "an image names it: pull or load that again")
        if len(data) > _MAX_JSON or digests.digest(data) != digest:
            raise BadArchive(
                f"the blob {digest} has other contents than its name says",
                "damaged: `lab clean`, then pull, load or build its image again",
            )
        return data

    def read_json(self, digest: str) -> dict[str, Any]:
        """Return a blob of JSON that holds an object."""
        return parse_object(self.read(digest), f"the blob {digest}")

    # Names

    def index(self) -> list[dict[str, Any]]:
        """Return the list of {digest, size, annotations …} in index.json."""
        index = state.read(self.folder / "index.json", INDEX_FILE)
        return index["manifests"] if index else []

    def names(self) -> dict[str, str]:
        """Return {name: digest of its manifest}."""
        return {name: digests.check(entry.get("digest")) for entry in self.index() if (name := _name_of(entry))}

    def set_name(self, name: str, digest: str) -> None:
        """Let a name mean this manifest, whatever it meant before; both are on the disk when this returns."""
        new = {
            "mediaType": MANIFEST,
            "digest": digest,
            "size": self.path(digest).stat().st_size,
            "annotations": {REF_NAME: name},
        }
        try:
            synced.folder(self.folder / "blobs/sha256")  # first what the name leads to
            with self._changing():
                self._write_index([*(entry for entry in self.index() if _name_of(entry) != name), new])
            synced.folder(self.folder)
        except OSError as error:
            raise from_oserror(error, f"naming the image {name}") from None

    def drop_name(self, name: str) -> None:
        """Forget a name; its blobs stay until `collect`."""
        with self._changing():
            self._write_index([entry for entry in self.index() if _name_of(entry) != name])

    def _changing(self) -> contextlib.AbstractContextManager[None]:
        """Hold the list of names: two who change it at once would each forget the other's change."""
        return state.lock("index-" + hashlib.sha256(str(self.folder).encode()).hexdigest()[:16])

    def _write_index(self, listed: list[dict[str, Any]]) -> None:
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
        state.write_atomic(self.folder / "index.json", json.dumps(index, indent=1, sort_keys=True) + "\n", 0o644)

    # Garbage

    def reachable(self, roots: Iterable[str]) -> set[str]:
        """Return every digest that these manifests lead to, themselves included."""
        found = set()
        for digest in roots:
            found.add(digest)
            manifest = self.read_json(digest)
            found |= {part["digest"] for part in [manifest["config"], *manifest["layers"]]}
        return found

    def collect(self, keep: set[str]) -> int:
        """Remove every blob that is not in `keep`; return bytes given back. Caller holds the store alone."""
        freed = 0
        for path in (*self.folder.glob(".*.tmp"), *self.folder.glob("blobs/**/.*.tmp")):
            path.unlink(missing_ok=True)  # whoever was writing it was killed: nobody else holds the store
        for path in (self.folder / "blobs/sha256").iterdir():
            if f"sha256:{path.name}" not in keep:
                freed += path.stat().st_size
                path.unlink()
        return freed


def entries(index: object, what: str) -> list[dict[str, Any]]:
    """Return the list of objects in an index. Raises BadArchive."""
    found = index.get("manifests") if isinstance(index, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise BadArchive(f"{what} has no list of manifests", "it is damaged: fetch it again")
    return found


def choose(several: list[dict[str, Any]], platform: tuple[str, str]) -> dict[str, Any]:
    """Return the entry for a platform (os, architecture) among those of an index."""
    wanted = dict(zip(("os", "architecture"), platform, strict=True))
    for entry in several:
        said = entry.get("platform")
        if isinstance(said, dict) and wanted.items() <= said.items():
            return entry
    raise Unsupported(f"that image is not made for {'/'.join(platform)}", "choose another, or another machine")


def _name_of(entry: dict[str, Any]) -> str | None:
    annotations = entry.get("annotations")
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in some bytes. Raises BadArchive."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadArchive(f"{what} is not a JSON object", "damaged, or not an image: fetch it again")
    return value
