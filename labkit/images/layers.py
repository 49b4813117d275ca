"""A layer is a tar of what changed; applying it makes the folder that overlayfs stacks.

    layers.apply("layer.tar.gz", folder)      tar → folder, whole or not at all
    layers.diff(upperdir, out)                folder → tar, reproducible
    layers.changes(upperdir, lowerdirs)       folder → what `docker diff` lists

The tar comes from a stranger. It must not write outside its folder (rootdir), must
not ask for more than a layer may (tarread, digests), must not smuggle in overlayfs's
own marks (unpack), must end, and must be what its digest promised. It is unpacked
into a scratch folder, which gets its name only when all of that has been checked: a
layer is there whole, or not at all.
See the OCI image specification, layer.md.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from labkit.ground import ledger, synced
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadArchive, InUse, LabError, from_oserror
from labkit.ground.typed import IO
from labkit.images import digests, rootdir, tarread, unpack
from labkit.images.diff import changes, diff  # noqa: F401 - the other direction, read from here too

Source = str | os.PathLike[str] | IO[bytes]


@dataclass(frozen=True)
class Applied:
    """What was in a layer: both its names, and how much."""

    digest: str  # of the blob as stored
    diff_id: str  # of the plain tar
    size: int  # bytes of plain tar
    entries: int

    def __repr__(self) -> str:
        return f"<layer {self.diff_id[7:19]}: {self.entries} entries, {self.size} bytes of tar>"


def apply(
    source: Source,
    target: str | os.PathLike[str],
    *,
    digest: str | None = None,
    diff_id: str | None = None,
    devices: bool = False,
    userxattr: bool = False,
    limits: digests.Limits | None = None,
    progress: digests.Progress | None = None,
    sync: bool = False,
) -> Applied:
    """Unpack a layer's tar into the new folder `target`, whiteouts as overlayfs has them; return Applied.

    `source` is a path or a binary stream: plain, gzip or zstd. `digest` and `diff_id`
    are checked if given; `progress` is called with the number of stored bytes read.
    With `sync` the layer is whole after a power cut too, if it is there at all.
    Raises BadArchive (nothing is kept), InUse if `target` exists.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InUse(f"{target} is there already", "a layer is unpacked into a new folder")
    scratch = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    with _scratch(scratch):
        applied = apply_onto(
            source,
            scratch,
            digest=digest,
            diff_id=diff_id,
            devices=devices,
            userxattr=userxattr,
            limits=limits,
            progress=progress,
        )
        try:
            if sync:
                synced.tree(scratch)
            os.rename(scratch, target)
        except OSError as error:
            raise from_oserror(error, f"naming the unpacked layer {target}") from None
    return applied


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[None]:
    """Make a folder that is gone after the block, unless the block has renamed it."""
    with ledger.made("folder", path=str(path)):
        path.mkdir()
        path.chmod(0o755)  # whatever the umask: it becomes the container's `/`
        yield


def apply_onto(
    source: Source,
    folder: str | os.PathLike[str],
    *,
    flat: bool = False,
    digest: str | None = None,
    diff_id: str | None = None,
    devices: bool = False,
    userxattr: bool = False,
    limits: digests.Limits | None = None,
    progress: digests.Progress | None = None,
    owner: tuple[int, int] | None = None,
) -> Applied:
    """Unpack a layer's tar into an existing folder, which the caller gives up if this raises.

    `flat=True` is for drivers without a kernel that merges: the folder holds all
    the layers below already, and a whiteout deletes instead of marking. `owner`
    (uid, gid) is whose all of it shall be, whatever the tar says.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, (str, os.PathLike)):
            try:
                source = stack.enter_context(open(source, "rb"))
            except OSError as error:
                raise from_oserror(error, f"opening the layer {source}") from None
        stream = digests.TarStream(source, limits, progress)
        root = stack.enter_context(rootdir.RootDir(folder))
        reader = tarread.Reader(stream, limits or digests.Limits())
        unpacker = unpack.Unpacker(root, flat, devices, userxattr, owner)
        try:
            unpacker.all_of(reader)
            stream.finish(digest, diff_id)
        except LabError:
            raise
        except RecursionError:
            raise BadArchive("the layer's tar has headers of headers without end", "a bomb: don't use it") from None
        except tarread.DAMAGE as error:
            raise BadArchive(f"the layer is not a sound tar: {error}", "it is damaged: fetch it again") from None
        except OSError as error:
            raise from_oserror(error, f"unpacking {unpacker.at}") from None
        if not reader.whole and digest is None and diff_id is None:
            raise BadArchive("the layer's tar has no end mark", "it was cut short: fetch it again")
    return Applied(stream.digest, stream.diff_id, stream.size, reader.entries)


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file is a tar with at least one entry, plain or compressed: what ADD unpacks."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False  # a pipe would wait that somebody writes to it
    with open(path, "rb") as file:
        try:
            return next(iter(tarread.Reader(digests.TarStream(file), digests.Limits())), None) is not None
        except (LabError, *tarread.DAMAGE):
            return False
