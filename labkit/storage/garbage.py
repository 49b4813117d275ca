"""What nothing needs any more: names taken away, then blobs and layer folders collected.

Removing an image takes away a name, no more. What is then needed is found by walking
from what is alive: each name leads to a manifest, that to a config and layers; each
container's note (rootfs.json) lists the layers its root stands on. All else goes.

The store is held alone meanwhile. Whoever adds to it, or stands a container on a
layer, holds it shared, so no layer is taken between being found and being used.

A power cut leaves more: the ledger is in /run, and gone. What it would have given back
is found by where it lies: a folder for one use, older than this boot, that nobody knows.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from labkit.ground import ledger, state
from labkit.ground.errors import BadValue, Damaged, InUse, LabError
from labkit.ground.typed import Any
from labkit.images import catalog
from labkit.images.layout import Layout
from labkit.storage import roots
from labkit.storage.drivers import flat

# What is in the ledger while it is used, below /var/lib/labkit.
_FOR_ONE_USE = (
    "containers/*", "build/*", "chapters/*", "engines/*", "neighbours/*", "rivals-*", "btrfs/pool.*",
    "images/.skopeo-*", "images/.load-*", "layers/*/.*.tmp", "flat/.*.tmp",
)  # fmt: skip


def layers_in_use() -> dict[str, str]:
    """Return {folder of a layer: id of a container whose root stands on it}."""
    return {folder: container for container, note in _notes() for folder in note["layers"]}


def _notes() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in state.lib_dir("containers").glob("*/rootfs.json"):
        with contextlib.suppress(BadValue):  # half on disk after a power cut: its container is no more
            note = state.read(path, roots.NOTE)
            if note:
                yield path.parent.name, note


def remove(ref: str, force: bool = False) -> int:
    """Take a name from an image, and remove what then has no name; return the bytes given back.

    Raises InUse while a container stands on its layers, unless forced: then the name
    goes, and the layers stay as long as the container does.
    """
    with catalog.locked() as layout:
        name, _ = catalog.find_in(layout, ref)
        if not force:
            used, kept = layers_in_use(), _folders(layout, without=name)
            for folder in _folders(layout, only=name):
                if folder in used and folder not in kept:
                    container = used[folder]
                    raise InUse(f"the image {name} is in use by container {container}", f"`lab rm -f {container}`")
        layout.drop_name(name)
        return _collect(layout)


def collect() -> int:
    """Remove blobs and layer folders that no name and no container needs; return the bytes given back."""
    with catalog.locked() as layout:
        return _collect(layout)


def left_by_an_earlier_boot() -> list[Path]:
    """Return the paths that a power cut or a reboot left: in no ledger, and not touched since this boot."""
    lib = state.lib_dir()
    found = [path for pattern in _FOR_ONE_USE for path in lib.glob(pattern)]  # before the ledger is read
    known = {str(value) for entry in ledger.entries() for value in entry.what.values()}
    booted = time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)
    lost = []
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            if not {str(path), str(path.with_suffix(""))} & known and path.lstat().st_mtime < booted:
                lost.append(path)
    return lost


def reclaim() -> list[Path]:
    """Remove what an earlier boot left, and what was needed for that only; return the paths removed."""
    removed = []
    for path in left_by_an_earlier_boot():
        with contextlib.suppress(LabError):  # a mount is in it: then somebody has it after all
            ledger.undo(ledger.write("folder" if path.is_dir() else "file", path=str(path)))
            removed.append(path)
    if removed:
        collect()
    return removed


def drop_broken_names() -> list[tuple[str, str, str]]:
    """Take the names from images whose manifest or config is damaged; return [(name, path, where that is kept)]."""
    dropped = []
    with catalog.locked() as layout:
        for name, digest in layout.names().items():
            with contextlib.suppress(LabError):
                catalog.read(layout, digest)
                continue
            layout.drop_name(name)
            path = layout.path(digest)
            with contextlib.suppress(LabError):  # the manifest is right: then it is the config
                path = layout.path(layout.read_json(digest)["config"]["digest"])
            aside = state.set_aside(Damaged(path, "")) if path.exists() else "nothing"
            dropped.append((name, str(path), aside))
    return dropped


def _stacks(layout: Layout, without: str | None = None, only: str | None = None) -> Iterator[list[str]]:
    """Yield the diffIDs of each image's layers."""
    for name, digest in layout.names().items():
        if name != without and only in (None, name):
            yield catalog.read(layout, digest)[1]["rootfs"]["diff_ids"]


def _folders(layout: Layout, **which: str) -> set[str]:
    return {str(catalog.layer_folder(diff_id)) for stack in _stacks(layout, **which) for diff_id in stack}


def _collect(layout: Layout) -> int:
    freed: int = layout.collect(layout.reachable(layout.names().values()))
    needed = _folders(layout) | set(layers_in_use())
    for folder in state.lib_dir("layers").iterdir():
        if str(folder / "diff") not in needed:
            freed += _remove(folder)
    stacks = [*_stacks(layout), *(note.get("diff_ids", ()) for _, note in _notes())]
    chains = {flat.chain(stack) for stack in stacks}
    for folder in state.lib_dir("flat").iterdir():
        # `.NAME.tmp` is one that is just being made.
        if folder.name.removeprefix(".").removesuffix(".tmp") not in chains:
            freed += _remove(folder)
    return freed


def _remove(folder: Path) -> int:
    freed = roots.usage(folder).allocated
    # First its name, in one step: a half-removed layer must not look whole.
    doomed = Path(f"{folder}.removed")
    entry = ledger.write("folder", path=str(doomed))
    if not folder.name.endswith(".removed"):
        os.rename(folder, doomed)
    else:
        ledger.remove_tree(folder)
    ledger.undo(entry)
    return freed
