"""An image: a name, a config that says what to run, and a stack of layers.

    >>> image = images.get("busybox")
    >>> image.config.cmd, image.layers
    (('sh',), ('/var/lib/labkit/layers/6ae1…/diff',))

The store keeps layers as blobs (see layout), named by digest. To be stacked they must
be folders: each is unpacked once, into a folder named by its diffID, whichever images
it is in. Those folders are the lowerdirs of every container; nothing ever writes there.

`busybox` is made from the machine's own static busybox when first asked for; `pull`,
`load` and `build` bring others.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from labkit.ground import state
from labkit.ground.dataclass import dataclass, field
from labkit.ground.errors import BadArchive, BadValue, NotFound
from labkit.ground.typed import Any
from labkit.images import digests
from labkit.images.layout import Layout, normal

BUSYBOX = "busybox:latest"  # is made where it is not


@dataclass(frozen=True)
class ImageConfig:
    """What an image says about the container to be made of it. See the OCI image specification, config.md."""

    env: tuple[str, ...] = ()  # "NAME=value", …
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    workdir: str = "/"
    user: str = ""  # user, uid, user:group, uid:gid; empty is root
    exposed_ports: tuple[str, ...] = ()  # "80/tcp", …
    volumes: tuple[str, ...] = ()  # paths that want a volume
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    stop_signal: str = "SIGTERM"
    shell: tuple[str, ...] = ()  # what a build runs text by, if not by /bin/sh -c
    on_build: tuple[str, ...] = ()  # instructions for who builds on it
    others: dict[str, Any] = field(default_factory=dict, hash=False)  # what other tools read, Healthcheck too


@dataclass(frozen=True)
class Image:
    """An image that is here, its layers unpacked."""

    name: str  # "busybox:latest"
    digest: str  # the manifest's: what a registry calls it
    id: str  # the config's: what `docker images` shows
    config: ImageConfig
    layers: tuple[str, ...]  # folders, the lowest first
    diff_ids: tuple[str, ...]  # the layers' names, in the same order
    size: int  # bytes of its blobs as stored

    def __repr__(self) -> str:
        layers = "1 layer" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        return f"<image {self.name} {self.id[7:19]}: {layers}, {self.size / 1e6:.1f} MB>"


def store() -> Layout:
    """Return the Layout that holds all images."""
    return Layout(state.lib_dir("images")).create()


@contextlib.contextmanager
def locked(shared: bool = False) -> Iterator[Layout]:
    """Hold the store: shared while something is added, alone while garbage is collected."""
    with state.lock("images", shared):
        yield store()


def get(ref: str | Image) -> Image:
    """Return the Image of a name, a digest or the first digits of an id, its layers unpacked.

    Raises NotFound with the names that are here.
    """
    if isinstance(ref, Image):
        return ref
    with locked(shared=True) as layout:
        name, digest = find_in(layout, ref)
        return _image(layout, name, digest, unpack=True)


def all() -> list[Image]:
    """Return every Image by name; layers not yet unpacked stay so."""
    with locked(shared=True) as layout:
        return [_image(layout, name, digest, unpack=False) for name, digest in sorted(layout.names().items())]


def find(ref: str) -> tuple[str, str]:
    """Return (name, manifest digest) of what `ref` means here. Raises NotFound."""
    with locked(shared=True) as layout:
        return find_in(layout, ref)


def find_in(layout: Layout, ref: object) -> tuple[str, str]:
    """Return (name, manifest digest) of what `ref` means in a held store."""
    names = layout.names()
    if not isinstance(ref, str):
        raise BadValue(f"{ref!r} is not the name of an image", "a string like 'busybox' or 'busybox:latest'")
    if re.fullmatch(r"(sha256:)?[0-9a-f]{6,64}", ref):
        for name, digest in names.items():
            manifest = layout.read_json(digest)
            if any(
                text.removeprefix("sha256:").startswith(ref.removeprefix("sha256:"))
                for text in (digest, manifest["config"]["digest"])
            ):
                return name, digest
        if ref.startswith("sha256:"):
            # Half-built images have no name yet; whoever knows the whole digest may have them.
            if len(ref) == 71 and layout.has(ref):
                return ref, ref
            raise _not_found(ref, names)
    if "@" in ref:
        return _pinned(layout, ref, names)
    name = normal(ref)
    if name in names:
        return name, names[name]
    if name == BUSYBOX:
        from labkit.images import busybox

        with state.lock("base"):  # of two who ask at once, one makes it
            return name, layout.names().get(name) or busybox.make(layout)
    raise _not_found(name, names)


def _pinned(layout: Layout, ref: str, names: Mapping[str, str]) -> tuple[str, str]:
    """Return what `NAME@sha256:…` means: the manifest of that digest and no other, whatever its name is by now."""
    name, _, digest = ref.partition("@")
    name = normal(name)
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise BadValue(f"{digest!r} is no digest", "sha256: and 64 hexadecimal digits")
    if digest in names.values():
        return name if names.get(name) == digest else next(one for one in names if names[one] == digest), digest
    raise NotFound(f"there is no image of {digest} here", f"`lab pull {name}` fetches what that is by now")


def _not_found(name: str, names: Mapping[str, str]) -> NotFound:
    there = ", ".join(sorted({*names, BUSYBOX}))
    return NotFound(f"there is no image {name} here", f"here: {there}; `lab pull {name}` fetches it from a registry")


def _image(layout: Layout, name: str, digest: str, unpack: bool) -> Image:
    manifest, config = read(layout, digest)
    diff_ids = tuple(config["rootfs"]["diff_ids"])
    folders = tuple(
        unpacked(layout, layer["digest"], diff_id) if unpack else str(layer_folder(diff_id))
        for layer, diff_id in zip(manifest["layers"], diff_ids, strict=True)
    )
    size = sum(part["size"] for part in [manifest["config"], *manifest["layers"]])
    return Image(name, digest, manifest["config"]["digest"], parse_config(config), folders, diff_ids, size)


def read(layout: Layout, digest: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (manifest, config) as dicts, looked through before use. Raises BadArchive."""
    manifest = layout.read_json(digest)
    listed = manifest.get("layers")
    parts = [manifest.get("config"), *(listed if isinstance(listed, list) else [None])]
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("size"), int) or part["size"] < 0:
            raise BadArchive(f"{digest} is not the manifest of an image", "an index, or damaged: pull or load it again")
        digests.check_archived(part.get("digest"))
    config = layout.read_json(manifest["config"]["digest"])
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or len(diff_ids) != len(manifest["layers"]):
        raise BadArchive(f"the config of {digest} does not name each layer's diffID", "damaged: pull or load it again")
    for diff_id in diff_ids:
        digests.check_archived(diff_id)
    return manifest, config


def parse_config(config: dict[str, Any]) -> ImageConfig:
    """Return the ImageConfig in an image's config. Raises BadArchive where it is not one."""
    inner = config.get("config") or {}
    if not isinstance(inner, dict):
        raise BadArchive("the image's config is not an object", "damaged: pull or load it again")

    def field_of(key: str, kind: type, inside: type | None = str) -> Any:
        value = inner.get(key)
        if value is None:
            return kind()
        if not isinstance(value, kind) or not all_are(value, inside):
            raise BadArchive(
                f"the image's config has {key} = {str(value)[:60]!r}", "not what an image's config may hold"
            )
        return value

    def all_are(value: Any, inside: type | None) -> bool:
        items = [*value, *value.values()] if isinstance(value, dict) and inside else value
        return not any(not isinstance(item, str) or "\0" in item for item in items)

    return ImageConfig(
        # A word without a value is no variable: dockerd drops it too.
        env=tuple(pair for pair in field_of("Env", list) if pair.partition("=")[0] and "=" in pair),
        entrypoint=tuple(field_of("Entrypoint", list)),
        cmd=tuple(field_of("Cmd", list)),
        workdir=field_of("WorkingDir", str) or "/",
        user=field_of("User", str),
        exposed_ports=tuple(sorted(field_of("ExposedPorts", dict, None))),
        volumes=tuple(sorted(field_of("Volumes", dict, None))),
        labels=dict(field_of("Labels", dict)),
        stop_signal=field_of("StopSignal", str) or "SIGTERM",
        shell=tuple(field_of("Shell", list)),
        on_build=tuple(field_of("OnBuild", list)),
        others={key: value for key, value in inner.items() if key not in KNOWN and value},
    )


# What of an image's config is a field of ImageConfig.
KNOWN = set("Env Entrypoint Cmd WorkingDir User ExposedPorts Volumes Labels StopSignal Shell OnBuild".split())


# Layers as folders


def layer_folder(diff_id: str) -> Path:
    """Return where a layer is unpacked, or would be."""
    return state.lib_dir("layers") / digests.hex_of(diff_id) / "diff"


def unpacked(layout: Layout, digest: str, diff_id: str) -> str:
    """Return the folder of a layer, unpacking its blob if nobody has yet. Raises BadArchive.

    The folder `<diffID>/diff` gets its name when all in it has been checked and is on the disk.
    """
    folder = layer_folder(diff_id)
    if folder.exists():
        return str(folder)
    with state.lock(f"layer-{digests.hex_of(diff_id)[:16]}"):  # of two who want it, one unpacks
        from labkit.images import layers

        if not folder.exists():
            if not layout.has(digest):
                raise NotFound(f"the store has no blob {digest}", "an image names it: pull or load that again")
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                layers.apply(layout.path(digest), folder, digest=digest, diff_id=diff_id, devices=True, sync=True)
            except BadArchive:
                layout.set_aside_if_damaged(digest)
                raise
    return str(folder)


# Names


def tag(ref: str, name: str) -> Image:
    """Give an image another name; return the Image."""
    name = normal(name)
    with locked(shared=True) as layout:
        layout.set_name(name, find_in(layout, ref)[1])
    return get(name)


def adopt(layout: Layout, name: str, digest: str) -> Image:
    """Name an image whose blobs are in the store, after looking it through and unpacking it; return it.

    Caller holds the store, shared. Raises BadArchive: then nothing has the name that had not before.
    """
    image = _image(layout, normal(name), digest, unpack=True)
    layout.set_name(image.name, digest)
    return image


def adopt_unnamed(layout: Layout, digest: str) -> Image:
    """Look an image through and unpack it, as yet without a name; return it. Caller holds the store."""
    return _image(layout, "", digest, unpack=True)


def wanted_platform() -> tuple[str, str]:
    """Return (os, architecture) of this machine in OCI's words: linux, amd64 or arm64."""
    machine = os.uname().machine
    return "linux", {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
