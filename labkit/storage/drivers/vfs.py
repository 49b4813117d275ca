"""Full copies: each container gets all the image's files as its own.

Nothing is shared and nothing is clever, so it works on any file system and a write
costs only itself. It is what the others are measured against: a container of a 1 GB
image takes 1 GB, and the time to write it, before its first process runs.
"""

import contextlib
import os
from pathlib import Path

from labkit.ground import ledger, state, synced
from labkit.ground.typed import TYPE_CHECKING
from labkit.storage import roots
from labkit.storage.drivers import flat

if TYPE_CHECKING:
    from labkit.images.catalog import Image


class Vfs(roots.Driver[flat.FlatRootfs]):
    """Copies of an image's files, one for each container."""

    name = "vfs"

    def _rootfs(self, image: "Image | roots.Stack", container_id: str, home: Path, userxattr: bool) -> flat.FlatRootfs:
        base = state.lib_dir("flat") / flat.chain(image.diff_ids)
        return flat.FlatRootfs(self.name, container_id, image.layers, "", "", str(home / "merged"), (), str(base))

    def _make(self, rootfs: flat.FlatRootfs, home: Path) -> None:
        _base(rootfs)
        os.mkdir(rootfs.merged, 0o755)
        roots.copy_tree(rootfs.base, rootfs.merged)


def _base(rootfs: flat.FlatRootfs) -> None:
    """Make the image's files once, in a folder that gets its name when all are there."""
    base = Path(rootfs.base)
    with state.lock(f"flat-{base.name[:16]}"):
        if base.exists():
            return
        scratch = base.with_name(f".{base.name}.tmp")
        with ledger.made("folder", path=str(scratch)), ledger.group(""):
            with contextlib.suppress(FileNotFoundError):
                ledger.remove_tree(scratch)
            scratch.mkdir(0o755)
            flat.flatten(rootfs.lowerdirs, scratch)
            synced.tree(scratch)
            scratch.rename(base)
