"""Overlayfs as a program: the same four folders, merged by a process and not by the kernel.

Before Linux 5.11 a user without root could not mount an overlay. FUSE lets a process
serve a file system: the kernel hands it every open, read and write, and it answers
from the lowerdirs and the upperdir. It understands the same whiteouts. It costs two
switches to that process and back for a call, and it is one process more that can die.
See fuse-overlayfs(1), fuse(4).
"""

import os
import shutil
import subprocess
from pathlib import Path

from labkit.ground import ledger
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import LabError, Unsupported
from labkit.ground.typed import TYPE_CHECKING, BinaryIO
from labkit.images import diff, whiteouts
from labkit.isolation import mounts
from labkit.storage import roots

if TYPE_CHECKING:
    from labkit.images.catalog import Image
_ESCAPED = str.maketrans({letter: "\\" + letter for letter in "\\:,"})


@dataclass(frozen=True)
class FuseRootfs(roots.Rootfs):
    """Four folders; `merged` is mounted already, by the process that serves it."""

    def step(self) -> mounts.BindRoot:
        """Return the mount step that shows this root: `merged`, bound onto itself."""
        return mounts.BindRoot(self.merged, self.merged)

    def changes(self) -> list[diff.Change]:
        """Return what the container has changed, as `docker diff` lists it.

        Of a file with several names (a hard link) this driver may copy up one more name
        than was changed.
        """
        return diff.changes(self.upperdir, self.lowerdirs, whiteouts.FUSE_MARKS)

    def diff(self, out: BinaryIO, compression: str | None = None) -> tuple[str, str, int]:
        """Write what the container has changed as a layer; return (diff_id, digest, size)."""
        return diff.diff(self.upperdir, out, compression, marks=whiteouts.FUSE_MARKS)


class FuseOverlayfs(roots.Overlay):
    """An overlay that a process serves: mounted when it is prepared, and served until it is removed."""

    name = "fuse-overlayfs"

    def check(self) -> None:
        """Raise Unsupported without the program, or /dev/fuse."""
        if not shutil.which("fuse-overlayfs"):
            raise Unsupported("fuse-overlayfs is not here", "apt-get install fuse-overlayfs")
        if not os.path.exists("/dev/fuse"):
            raise Unsupported("this kernel has no FUSE: /dev/fuse is not there", "modprobe fuse")

    def _rootfs(self, image: "Image | roots.Stack", container_id: str, home: Path, userxattr: bool) -> FuseRootfs:
        upper, work, merged = (str(home / name) for name in ("diff", "work", "merged"))
        return FuseRootfs(self.name, container_id, roots.seen(image.layers), upper, work, merged, ())

    def _make(self, rootfs: roots.Rootfs, home: Path) -> None:
        self._folders(rootfs, home)
        ledger.write("mount", target=rootfs.merged)
        tops = dict.fromkeys(reversed(rootfs.lowerdirs))
        options = ":".join(lower.translate(_ESCAPED) for lower in tops)
        upper, work = (path.translate(_ESCAPED) for path in (rootfs.upperdir, rootfs.workdir))
        served = subprocess.run(
            ["fuse-overlayfs", "-o", f"lowerdir={options},upperdir={upper},workdir={work}", rootfs.merged],
            capture_output=True,
            text=True,
            start_new_session=True,
        )
        if served.returncode:
            raise LabError(f"fuse-overlayfs failed: {served.stderr.strip()[:300]}", "--storage overlay needs no FUSE")

    def _unmake(self, container_id: str, home: Path) -> None:
        for entry in reversed(ledger.entries()):
            if entry.kind == "mount" and entry.what.get("target") == str(home / "merged"):
                ledger.undo(entry)  # and the process, which serves nothing now, ends
