"""What a container changed is what is in its upperdir: read it, list it, or write it as a layer.

Overlayfs copies a file up before it is first written, and makes a whiteout for one
that is deleted. So the upperdir is the difference, already taken: nothing needs to
be compared. `changes` lists it as `docker diff` does; `diff` writes it as a tar that
`layers.apply` turns back into the same folder.

The tar is reproducible: entries in the order of their names, no times but the
files' own, no names of users. The same folder gives the same bytes, and so the
same digest, wherever and whenever it is written.
"""

import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, NotFound, Unsupported, from_oserror
from labkit.ground.typed import IO
from labkit.images import digests, whiteouts

PathLike = str | os.PathLike[str]
SKIP = ("security.selinux", "security.ima", "security.evm", *whiteouts.XATTRS)


@dataclass(frozen=True)
class Change:
    """One path of a container: A added, C changed or copied up, D deleted."""

    path: str
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


def changes(upperdir: PathLike, lowerdirs: Sequence[PathLike] = (), marks: Sequence[str] = ()) -> list[Change]:
    """Return the Changes that an upperdir holds, in path order, as `docker diff` lists them.

    `lowerdirs` (the lowest first) tell what was there before: a file found in none of
    them was added. A folder is C when something in it changed. `marks` are names of
    files that are the driver's own, not the container's (see whiteouts.FUSE_MARKS).
    """
    found = []
    upperdir = Path(upperdir)
    for path, status in _walk(upperdir, marks):
        inside = path.relative_to(upperdir)
        shown = f"/{inside}"
        if whiteouts.is_whiteout(status, path):
            found.append(Change(shown, "D"))
            continue
        found.append(Change(shown, "C" if _visible(inside, lowerdirs) else "A"))
        if stat.S_ISDIR(status.st_mode) and whiteouts.is_opaque(path, marks):
            hidden = _names_below(inside, lowerdirs) - set(os.listdir(path))
            found += [Change(f"{shown}/{name}", "D") for name in hidden]
    return sorted(found, key=lambda one: one.path)


def _visible(inside: Path, lowerdirs: Sequence[PathLike]) -> bool:
    """Tell whether the merged lowerdirs show a path: the first that has it, or hides it, decides."""
    for lower in reversed(lowerdirs):
        for depth in range(1, len(inside.parts) + 1):
            path = Path(lower, *inside.parts[:depth])
            try:
                status = path.lstat()
            except OSError:
                break
            if whiteouts.is_whiteout(status, path):
                return False
            if depth == len(inside.parts):
                return True
            if not stat.S_ISDIR(status.st_mode) or (
                whiteouts.is_opaque(path) and not os.path.lexists(Path(lower, *inside.parts[: depth + 1]))
            ):
                return False
    return False


def _names_below(inside: Path, lowerdirs: Sequence[PathLike]) -> set[str]:
    names = set()
    for lower in lowerdirs:
        folder = Path(lower, inside)
        if folder.is_dir() and not folder.is_symlink():
            names |= {name for name in os.listdir(folder)}
    return {name for name in names if _visible(inside / name, lowerdirs)}


def _walk(folder: Path, marks: Sequence[str] = ()) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield (path, lstat) of all below a folder, names in byte order, each folder before what is in it."""
    levels = [_sorted(folder)]  # not by calling itself: Python ends that at a thousand
    try:
        while levels:
            entry = next(levels[-1], None)
            if entry is None:
                levels.pop()
            elif entry.name not in marks:
                path, status = Path(entry.path), entry.stat(follow_symlinks=False)
                yield path, status
                if stat.S_ISDIR(status.st_mode):
                    levels.append(_sorted(path))
    except OSError as error:  # a path ends at 4,096 bytes, folders in folders don't
        raise from_oserror(error, "reading what was changed") from None


def _sorted(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: os.fsencode(entry.name)))


def diff(
    upperdir: PathLike,
    out: IO[bytes],
    compression: str | None = None,
    clamp: int | None = None,
    marks: Sequence[str] = (),
) -> tuple[str, str, int]:
    """Write an upperdir as a layer's tar into the binary stream `out`; return (diff_id, digest, size).

    `compression` is None, "gzip" or "zstd"; `clamp` a time in seconds that no file's
    may be later than (SOURCE_DATE_EPOCH). Raises Unsupported if the upperdir holds
    files whose data is elsewhere (mounted with metacopy or redirect_dir).
    """
    if not os.path.isdir(upperdir):
        raise NotFound(f"there is no folder {upperdir}", "an upperdir is made by storage.driver().prepare(…)")
    stored = digests.Hashed(out)
    try:
        with digests.compressed(stored, compression) as stream:
            plain = digests.Hashed(stream)
            tar = tarfile.open(  # type: ignore[call-overload]  # noqa: SIM115 - closed below, after all is written
                fileobj=plain,
                mode="w",
                format=tarfile.PAX_FORMAT,
                encoding="utf-8",
                errors="surrogateescape",
                copybufsize=digests.BLOCK,
            )
            _Packer(tar, Path(upperdir), clamp, marks).all()
            tar.close()
    except OSError as error:
        raise from_oserror(error, f"writing a layer of {upperdir}") from None
    return plain.digest, stored.digest, stored.size


class _Packer:
    def __init__(self, tar: tarfile.TarFile, root: Path, clamp: int | None, marks: Sequence[str]) -> None:
        self.tar, self.root, self.clamp, self.marks = tar, root, clamp, marks
        self._first: dict[tuple[int, int], str] = {}  # inode → the first name it was written under

    def all(self) -> None:
        self._add(self.root, os.lstat(self.root))
        for path, status in _walk(self.root, self.marks):
            if not stat.S_ISSOCK(status.st_mode):  # a socket is the process's that listens: no tar can hold one
                self._add(path, status)

    def _add(self, path: Path, status: os.stat_result) -> None:
        inside = str(path.relative_to(self.root))
        if path.name.startswith(whiteouts.PREFIX) and path != self.root:
            raise BadValue(
                f"{path} can't be in a layer", f"names that begin with {whiteouts.PREFIX} are whiteouts there"
            )
        if whiteouts.is_whiteout(status, path):
            self._whiteout(str(Path(inside).with_name(whiteouts.PREFIX + path.name)))
            return
        for mark in ("metacopy", "redirect"):
            if whiteouts.mark(path, mark) is not None:
                what = "data" if mark == "metacopy" else "files"
                raise Unsupported(
                    f"{path} has its {what} in another layer (overlay.{mark})",
                    "a layer can only be taken of an upperdir mounted with metacopy=off,redirect_dir=off",
                )
        entry = self._entry(path, inside, status)
        if status.st_nlink > 1 and not entry.isdir():
            first = self._first.setdefault((status.st_dev, status.st_ino), inside)
            if first != inside:
                # A name for an inode that is in the tar already: no data, no xattrs again.
                entry.type, entry.linkname, entry.size = tarfile.LNKTYPE, first, 0
                entry.pax_headers = {}
        if entry.isreg():
            with open(path, "rb") as file:
                self.tar.addfile(entry, file)
        else:
            self.tar.addfile(entry)
        if entry.isdir() and whiteouts.is_opaque(path, self.marks):
            self._whiteout(os.path.join(inside, whiteouts.OPAQUE))

    def _whiteout(self, name: str) -> None:
        entry = tarfile.TarInfo(os.path.normpath(name))
        entry.mode = 0o600
        self.tar.addfile(entry)

    def _entry(self, path: Path, inside: str, status: os.stat_result) -> tarfile.TarInfo:
        entry = tarfile.TarInfo(inside)
        entry.mode = stat.S_IMODE(status.st_mode)
        entry.uid, entry.gid = status.st_uid, status.st_gid
        self._time(entry, status.st_mtime_ns)
        kind = stat.S_IFMT(status.st_mode)
        entry.type = {
            stat.S_IFREG: tarfile.REGTYPE,
            stat.S_IFDIR: tarfile.DIRTYPE,
            stat.S_IFLNK: tarfile.SYMTYPE,
            stat.S_IFIFO: tarfile.FIFOTYPE,
            stat.S_IFCHR: tarfile.CHRTYPE,
            stat.S_IFBLK: tarfile.BLKTYPE,
        }[kind]
        if entry.isreg():
            entry.size = status.st_size
        elif entry.issym():
            entry.linkname = os.readlink(path)
        elif entry.ischr() or entry.isblk():
            entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        for name in sorted(os.listxattr(path, follow_symlinks=False)):
            if not name.startswith(SKIP):
                value = os.getxattr(path, name, follow_symlinks=False)
                text = value.decode("utf-8", "surrogateescape")
                entry.pax_headers = {**entry.pax_headers, f"SCHILY.xattr.{name}": text}
        return entry

    def _time(self, entry: tarfile.TarInfo, nanoseconds: int) -> None:
        if self.clamp is not None:
            nanoseconds = min(nanoseconds, self.clamp * 1_000_000_000)
        seconds, rest = divmod(nanoseconds, 1_000_000_000)
        entry.mtime = seconds
        if rest:
            entry.pax_headers = {**entry.pax_headers, "mtime": _decimal(nanoseconds)}


def _decimal(nanoseconds: int) -> str:
    """Write nanoseconds as pax's decimal seconds; before 1970 they are negative."""
    sign, whole = ("-" if nanoseconds < 0 else ""), abs(nanoseconds)
    return f"{sign}{whole // 1_000_000_000}.{whole % 1_000_000_000:09d}".rstrip("0")
