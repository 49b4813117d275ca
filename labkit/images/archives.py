"""An image in one file: `save` and `load`.

Two formats are in use. Docker's own has a `manifest.json` that names a config and
layer tars; the OCI's is an image layout in a tar. Since Docker 25 its `save` writes
both at once, into the same files, and so do we: whoever reads one of the two finds
what it needs. `load` reads either, from any tool.

An archive comes from a stranger like any layer. Its files go under names of our own
into a scratch folder; what it calls them is only looked up, never used as a path.
See the OCI image specification, image-layout.md, and docker-save(1).
"""

import contextlib
import io
import json
import os
import posixpath
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from labkit.ground import ledger, named_file, state
from labkit.ground.errors import BadArchive, BadValue, LabError, NotFound, Unsupported, from_oserror
from labkit.ground.typed import IO, Any
from labkit.images import catalog, digests, layout, rootdir, tarread
from labkit.images.catalog import Image
from labkit.images.layout import Layout

Target = str | os.PathLike[str] | IO[bytes]
_DEPTH = 3  # indexes in indexes


def save(refs: str | Image | Iterable[str | Image], target: Target) -> None:
    """Write images with all their layers into a tar file: a path (see named_file), or a binary stream. Reproducible."""
    listed = [refs] if isinstance(refs, str | Image) else list(refs)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(catalog.locked(shared=True))
        found = dict(catalog.find_in(store, getattr(ref, "name", ref)) for ref in listed)
        if isinstance(target, str | os.PathLike):
            target = stack.enter_context(named_file.writing(target))
        # As a stream: a pipe can't be gone back in.
        tar = stack.enter_context(tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT))
        _write(tar, store, found)


def _write(tar: tarfile.TarFile, store: Layout, found: dict[str, str]) -> None:
    index, docker = [], []
    for name, digest in sorted(found.items()):
        manifest, _ = catalog.read(store, digest)
        entry = {"mediaType": layout.MANIFEST, "digest": digest, "size": store.path(digest).stat().st_size}
        # ref.name is the OCI's, and by its letter only a tag; containerd and Docker look for the other.
        index.append(entry | {"annotations": {layout.REF_NAME: name, "io.containerd.image.name": _full(name)}})
        config, parts = manifest["config"]["digest"], [part["digest"] for part in manifest["layers"]]
        docker.append({"Config": _blob(config), "RepoTags": [name], "Layers": [_blob(part) for part in parts]})
    for digest in sorted(store.reachable(found.values())):
        with open(store.path(digest), "rb") as blob:
            _add(tar, _blob(digest), os.fstat(blob.fileno()).st_size, blob)
    whole = {"schemaVersion": 2, "mediaType": layout.INDEX, "manifests": index}
    for name, value in (
        ("index.json", whole),
        ("manifest.json", docker),
        ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
    ):
        data = json.dumps(value, sort_keys=True).encode()
        _add(tar, name, len(data), io.BytesIO(data))


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digests.hex_of(digest)}"


def _full(name: str) -> str:
    """Return an image's name with the registry that docker means when none is said."""
    first, slash, _ = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def _add(tar: tarfile.TarFile, name: str, size: int, stream: IO[bytes]) -> None:
    entry = tarfile.TarInfo(name)  # owner 0, time 0: the same images make the same bytes
    entry.size, entry.mode = size, 0o644
    tar.addfile(entry, stream)


def load(source: Target, name: str | None = None, progress: Callable[[int, int], object] | None = None) -> list[Image]:
    """Read every image in an archive, a path or a binary stream, into the store; return them.

    `name` is for an archive that has none. `progress` is called with (bytes read, bytes
    in all). Raises BadArchive: then no name means anything it did not before.
    """
    name = layout.normal(name) if name else None
    with contextlib.ExitStack() as stack:
        path = "what was piped in"
        if isinstance(source, str | os.PathLike):
            path = os.fspath(source)
            try:
                source = stack.enter_context(open(path, "rb"))
            except OSError as error:
                raise NotFound(f"there is no archive {path}", f"{error.strerror}: check the path") from None
        total = os.fstat(source.fileno()).st_size if progress else 0
        step = (lambda done: progress(done, total)) if progress else None
        store = stack.enter_context(catalog.locked(shared=True))
        archive = stack.enter_context(_Archive(path, source, step))
        if archive.has("index.json"):
            found = archive.from_oci(store)
        elif archive.has("manifest.json"):
            found = archive.from_docker(store)
        else:
            raise BadArchive(f"{path} holds no image", "it has neither index.json nor manifest.json: is it a layer?")
        names = [(known or name, digest) for known, digest in found]
        if not names or any(known is None for known, _ in names):
            hint = "`lab load --name NAME`, or load(path, name=…)"
            raise BadValue(f"{path} does not say what its image is called", hint)
        checked = [(_named(str(known)), digest) for known, digest in names]
        for _, digest in checked:  # all are looked through before the first gets its name
            catalog.adopt_unnamed(store, digest)
        return [catalog.adopt(store, known, digest) for known, digest in checked]


def _named(name: str) -> str:
    try:
        return layout.normal(str(name).removeprefix("docker.io/library/").removeprefix("docker.io/"))
    except BadValue as error:
        raise BadArchive(
            f"the archive names an image {error.message}", "`lab load --name NAME`, or load(path, name=…)"
        ) from None


class _Archive:
    """The files of an archive in a scratch folder, by the names the archive gives them."""

    def __init__(self, path: str, source: IO[bytes], progress: Callable[[int], object] | None) -> None:
        self.path, self._source, self._progress = path, source, progress
        self._files: dict[str, Path] = {}
        self._links: dict[str, str] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "_Archive":
        folder = state.lib_dir("images") / f".load-{state.new_id()}"
        self._stack.enter_context(ledger.made("folder", path=str(folder)))
        try:
            folder.mkdir(0o700)
            self._read(folder)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _read(self, folder: Path) -> None:
        try:
            stream = digests.TarStream(self._source, progress=self._progress)
            reader = tarread.Reader(stream, digests.Limits())
            for entry in reader:
                inside = "/".join(rootdir.normal(entry.name))
                if entry.isreg():
                    self._files[inside] = folder / str(len(self._files))
                    with open(self._files[inside], "wb") as out:
                        shutil.copyfileobj(reader.data(entry), out, digests.BLOCK)
                elif entry.issym() or entry.islnk():
                    # Older dockers write a layer that two images share once, and links to it.
                    base = posixpath.dirname(inside) if entry.issym() else ""
                    self._links[inside] = posixpath.normpath(posixpath.join(base, entry.linkname)).lstrip("/")
            stream.finish()
        except LabError:
            raise
        except tarread.DAMAGE as error:
            raise BadArchive(f"{self.path} is not a sound tar: {error}", "it is damaged: fetch it again") from None
        except OSError as error:
            raise from_oserror(error, f"reading {self.path}") from None

    def has(self, name: str) -> bool:
        return name in self._files

    def file(self, name: object) -> Path:
        """Return where the file of this name is, through the archive's own links."""
        seen = name = posixpath.normpath(str(name))
        for _ in range(8):
            if seen in self._files:
                return self._files[seen]
            seen = self._links.get(seen, seen)
        raise BadArchive(
            f"{self.path} names {rootdir.shown(name)} and does not have it", "it is damaged: fetch it again"
        )

    def json(self, name: object) -> Any:
        with open(self.file(name), "rb") as file:
            data = file.read(8 << 20)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise BadArchive(
                f"{rootdir.shown(name)} in {self.path} is not JSON", "it is damaged: fetch it again"
            ) from None

    # The OCI's format

    def from_oci(self, store: Layout) -> list[tuple[str | None, str]]:
        """Take in what index.json lists; return [(name or None, manifest digest)]."""
        named: dict[Any, list[dict[str, Any]]] = {}
        for entry in layout.entries(self.json("index.json"), f"the index of {self.path}"):
            said = entry.get("annotations")
            said = said if isinstance(said, dict) else {}
            name = said.get("io.containerd.image.name") or said.get(layout.REF_NAME)
            named.setdefault(name if isinstance(name, str) else None, []).append(entry)
        found = []
        for name, several in named.items():
            # One name for several: the same image for other processors, and what is said about it.
            one_image = len(several) > 1 and any("platform" in entry for entry in several)
            for entry in [self._choose(several)] if one_image else several:
                found.append((name, self._take_manifest(store, digests.check_archived(entry.get("digest")))))
        return found

    def _choose(self, several: list[dict[str, Any]], depth: int = 0) -> dict[str, Any]:
        """Return the entry for this machine; one that says no platform is looked into."""
        wanted = catalog.wanted_platform()
        with contextlib.suppress(Unsupported):
            return layout.choose(several, wanted)
        for entry in several:
            with contextlib.suppress(LabError, KeyError, TypeError):
                if "platform" not in entry and self._suits(self.json(_blob(entry["digest"])), wanted, depth):
                    return entry
        return layout.choose(several, wanted)

    def _suits(self, manifest: dict[str, Any], wanted: tuple[str, str], depth: int) -> bool:
        """Tell whether a manifest is for a platform by its config, or is an index that has one which is."""
        if "manifests" in manifest:
            return depth < _DEPTH and bool(self._choose(layout.entries(manifest, self.path), depth + 1))
        config = self.json(_blob(manifest["config"]["digest"]))
        return (config["os"], config["architecture"]) == wanted

    def _take_manifest(self, store: Layout, digest: str, depth: int = 0) -> str:
        manifest = self.json(_blob(digest))
        if not isinstance(manifest, dict) or depth > _DEPTH:
            raise BadArchive(f"{digest} in {self.path} is no manifest", "it is damaged: fetch it again")
        if "manifests" in manifest:  # one image for each processor
            entry = self._choose(layout.entries(manifest, digest))
            return self._take_manifest(store, digests.check_archived(entry.get("digest")), depth + 1)
        parts = manifest.get("layers")
        for part in [manifest.get("config"), *(parts if isinstance(parts, list) else [None])]:
            part = part if isinstance(part, dict) else {}
            self._take(store, part)
        self._take(store, {"digest": digest, "size": os.path.getsize(self.file(_blob(digest)))})
        return digest

    def _take(self, store: Layout, part: dict[str, Any]) -> None:
        digest, size, urls = digests.check_archived(part.get("digest")), part.get("size"), part.get("urls")
        if not store.has(digest, size if isinstance(size, int) else None):
            if urls and not self.has(_blob(digest)):
                raise Unsupported(f"the layer {digest} is not in {self.path}", f"it is kept at {str(urls)[:200]} only")
            with open(self.file(_blob(digest)), "rb") as blob:
                store.add_stream(blob, digest)

    # Docker's format

    def from_docker(self, store: Layout) -> list[tuple[str | None, str]]:
        """Take in what manifest.json lists; return [(name or None, manifest digest)]."""
        found = []
        listed = self.json("manifest.json")
        for entry in listed if isinstance(listed, list) else [None]:
            if not isinstance(entry, dict) or not isinstance(entry.get("Layers"), list) or not entry.get("Config"):
                raise BadArchive(f"the manifest.json of {self.path} is broken", "it is damaged: fetch it again")
            with open(self.file(entry["Config"]), "rb") as file:
                config, config_size = store.add_stream(file)
            manifest, _ = store.add_json(
                {
                    "schemaVersion": 2,
                    "mediaType": layout.MANIFEST,
                    # The config is docker's own, to the byte: so the image's id stays what docker calls it.
                    "config": {"mediaType": layout.CONFIG, "digest": config, "size": config_size},
                    "layers": [self._take_layer(store, name) for name in entry["Layers"]],
                }
            )
            tags = entry.get("RepoTags") or [None]
            found += [(tag, manifest) for tag in tags]
        return found

    def _take_layer(self, store: Layout, name: object) -> dict[str, Any]:
        with open(self.file(name), "rb") as file:
            start = file.read(6)
            file.seek(0)
            kind = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}.get(start[:2], "")
            # A manifest has no word for a layer in bzip2 or xz: such a one is kept plain.
            digest, size = store.add_stream(digests.TarStream(file) if digests.has_no_word(start) else file)
        return {"mediaType": layout.LAYER + kind, "digest": digest, "size": size}
