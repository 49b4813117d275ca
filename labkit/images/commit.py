"""What a container changed becomes one more layer: that is all an image is built of.

    image = commit.commit(base, rootfs, "mine:1")

The upperdir is written as a layer (see layer_diff), and a new manifest lists the old
image's layers and this one. The old layers are named, not copied: both images have
them by the same digest. A Dockerfile's `RUN` is this, once for each line.
"""

from labkit.ground.dataclass import replace
from labkit.ground.typed import IO, Any, Protocol
from labkit.images import catalog, layout
from labkit.images.catalog import Image, ImageConfig
from labkit.images.diff import Change
from labkit.images.layout import Layout

Layer = tuple[str, str, int]  # diff_id, digest, size


class Root(Protocol):
    """What is asked of a container's root: see storage.roots."""

    def changes(self) -> list[Change]: ...  # noqa: D102
    def diff(self, out: IO[bytes]) -> Layer: ...  # noqa: D102


def commit(
    base: Image, rootfs: "Root | None", name: str | None, created_by: str = "labkit commit", **config: Any
) -> Image:
    """Make an image of another one and what a container changed in it; return the Image.

    `config` are fields of ImageConfig that shall be different. An unchanged root adds no
    layer. `name` may be None: then the caller names it, or it is garbage.
    """
    with catalog.locked(shared=True) as store:
        layer = _add_layer(store, rootfs) if rootfs is not None else None
        return add(store, base, layer, name, replace(base.config, **config), created_by)


def _add_layer(store: Layout, rootfs: "Root") -> Layer | None:
    """Store what a root's container changed; return (diff_id, digest, size), or None if it is nothing."""
    if not rootfs.changes():
        return None
    with store.adding() as (out, keep):
        diff_id, digest, size = rootfs.diff(out)
        keep(digest)
    return diff_id, digest, size


def add(
    store: Layout,
    base: Image | None,
    layer: Layer | None,
    name: str | None,
    config: ImageConfig,
    created_by: str,
) -> Image:
    """Write manifest and config of `base` (an Image, or None) with one more layer. Caller holds the store."""
    parts, diff_ids, history = [], [], []
    if base is not None:
        manifest, old = catalog.read(store, base.digest)
        parts, diff_ids = list(manifest["layers"]), list(old["rootfs"]["diff_ids"])
        history = list(old.get("history") or ())
    if layer is not None:
        diff_id, digest, size = layer
        parts.append({"mediaType": layout.LAYER, "digest": digest, "size": size})
        diff_ids.append(diff_id)
    history.append({"created_by": created_by} | ({} if layer is not None else {"empty_layer": True}))
    system, machine = catalog.wanted_platform()
    made, made_size = store.add_json(
        {
            "architecture": machine,
            "os": system,
            "config": in_docker_words(config),
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        }
    )
    digest, _ = store.add_json(
        {
            "schemaVersion": 2,
            "mediaType": layout.MANIFEST,
            "config": {"mediaType": layout.CONFIG, "digest": made, "size": made_size},
            "layers": parts,
        }
    )
    if name is None:
        return catalog.adopt_unnamed(store, digest)
    return catalog.adopt(store, name, digest)


def in_docker_words(config: ImageConfig) -> dict[str, Any]:
    """Return an ImageConfig as an image's config has it; what is empty is left out."""
    said = {
        "Env": list(config.env),
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.cmd),
        "WorkingDir": config.workdir if config.workdir != ImageConfig.workdir else "",
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Volumes": {path: {} for path in config.volumes},
        "Labels": dict(config.labels),
        "StopSignal": config.stop_signal if config.stop_signal != ImageConfig.stop_signal else "",
        "Shell": list(config.shell),
        "OnBuild": list(config.on_build),
        **config.others,
    }
    return {key: value for key, value in said.items() if value}
