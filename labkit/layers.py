"""A layer is a tar of what changed; applying it makes the folder that overlayfs stacks.

Entry by entry: find the parent folder by descriptor (see rootdir), make the thing,
then its owner, mode, xattrs and times, in that order: chown(2) clears setuid and
file capabilities, and making a file in a folder changes the folder's time, so the
folders' times come last of all.

The tar comes from a stranger. It must not write outside its folder, must not smuggle
in overlayfs's own marks (`trusted.overlay.redirect=/etc` would show another folder's
files as its own), must end, and must be what its digest promised. It is unpacked
into a scratch folder, which gets its name only when all of that has been checked:
a layer is there whole, or not at all.
See the OCI image specification, layer.md, and pax(1).
"""

import contextlib
import errno
import os
import secrets
import stat
import tarfile
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from labkit import digests, ledger, rootdir, whiteouts
from labkit.errors import BadArchive, InUse, LabError, Unsupported, from_oserror
from labkit.layer_diff import changes, diff  # noqa: F401 - the other direction, read from here too
from labkit.rootdir import shown

_XATTR = "SCHILY.xattr."  # where pax headers keep them: star's key, which docker and all others took over
_HEADER = 1 << 20  # bytes one extended header may have: Linux's own limits need 64 KiB of xattrs
_LABELS = ("security.selinux", "security.ima", "security.evm")  # the host's policy, not the image's


@dataclass(frozen=True)
class Applied:
    """What was in a layer: both its names, and how much."""

    digest: str  # of the blob as stored
    diff_id: str  # of the plain tar
    size: int  # bytes of plain tar
    entries: int

    def __repr__(self):
        return f"<layer {self.diff_id[7:19]}: {self.entries} entries, {self.size} bytes of tar>"


def apply(source, target, *, digest=None, diff_id=None, devices=False, userxattr=False, limits=None, progress=None):
    """Unpack a layer's tar into the new folder `target`, whiteouts as overlayfs has them; return Applied.

    `source` is a path or a binary stream: plain, gzip or zstd. `digest` and `diff_id`
    are checked if given; `progress` is called with the number of stored bytes read.
    Raises BadArchive (nothing is kept), InUse if `target` exists.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InUse(f"{target} is there already", "a layer is unpacked into a new folder")
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with _scratch(scratch):
        applied = apply_onto(
            source, scratch, digest=digest, diff_id=diff_id, devices=devices, userxattr=userxattr,
            limits=limits, progress=progress,
        )  # fmt: skip
        try:
            os.rename(scratch, target)
        except OSError as error:
            raise from_oserror(error, f"naming the unpacked layer {target}") from None
    return applied


@contextlib.contextmanager
def _scratch(path):
    """Make a folder that is gone after the block, unless the block has renamed it."""
    with ledger.made("folder", path=str(path)):
        path.mkdir()
        path.chmod(0o755)  # whatever the umask: it becomes the container's `/`
        yield


def apply_onto(
    source, folder, *, flat=False, digest=None, diff_id=None, devices=False, userxattr=False, limits=None, progress=None
):
    """Unpack a layer's tar into an existing folder, which the caller gives up if this raises.

    `flat=True` is for drivers without a kernel that merges: the folder holds all
    the layers below already, and a whiteout deletes instead of marking.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, (str, os.PathLike)):
            try:
                source = stack.enter_context(open(source, "rb"))
            except OSError as error:
                raise from_oserror(error, f"opening the layer {source}") from None
        stream = digests.TarStream(source, limits, progress)
        root = stack.enter_context(rootdir.RootDir(folder))
        unpacker = _Unpacker(root, flat, devices, userxattr, limits or digests.Limits())
        try:
            whole = unpacker.all_of(stream)
            stream.finish(digest, diff_id)
        except LabError:
            raise
        except (tarfile.TarError, ValueError, LookupError, OverflowError, ArithmeticError, RecursionError) as error:
            raise BadArchive(f"the layer is not a sound tar: {error}", "it is damaged: fetch it again") from None
        except OSError as error:
            raise from_oserror(error, f"unpacking {unpacker.at}") from None
        if not whole and digest is None and diff_id is None:
            raise BadArchive("the layer's tar has no end mark", "it was cut short: fetch it again")
    return Applied(stream.digest, stream.diff_id, stream.size, unpacker.entries)


class _Entry(tarfile.TarInfo):
    """tarfile's reader, with a limit on what a header may ask it to hold in memory."""

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # a block of zeros
            tar.fileobj.fileobj.whole = True
            raise
        except tarfile.TruncatedHeaderError:
            raise BadArchive("the layer's tar stops in the middle of a header", "it was cut short: fetch it again") from None

    def _proc_member(self, tar):
        extended = self.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *b"xgX".decode())
        extended = extended or self.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if self.size < 0 or (extended and self.size > _HEADER):
            raise BadArchive(f"the layer's tar has a header of {self.size} bytes", "a bomb: don't use it")
        return super()._proc_member(tar)


class _Source:
    """What tarfile reads from: while it reads headers, it gets only so much."""

    def __init__(self, stream):
        self._stream = stream
        self.whole = False
        self.left = None

    def read(self, size):
        if self.left is not None:
            self.left -= size
            if self.left < 0:
                raise BadArchive("the layer's tar has an endless header", "a bomb: don't use it")
        return self._stream.read(size)

    def headers(self):
        self.left = 4 * _HEADER

    def data(self):
        self.left = None


class _Unpacker:
    def __init__(self, root, flat, devices, userxattr, limits):
        self.root, self.flat, self.devices, self.userxattr, self.limits = root, flat, devices, userxattr, limits
        self.at = root.path  # what is being unpacked, for messages
        self.entries = 0
        self._bytes = 0
        self._times = {}  # of folders, set at the end: (component, …) → nanoseconds
        self._gone = set()  # what this layer whites out
        self._ours = set()  # flat: what this layer made, which its own whiteouts spare

    def all_of(self, stream):
        """Unpack every entry; tell whether the tar had its end mark."""
        source = _Source(stream)
        source.headers()
        tar = tarfile.open(  # noqa: SIM115 - nothing to close: the stream is the caller's
            fileobj=source, mode="r|", bufsize=1 << 16, tarinfo=_Entry, encoding="utf-8", errors="surrogateescape"
        )
        entry = tar.firstmember
        while entry is not None:
            source.data()
            self._one(tar, entry)
            tar.members.clear()  # tarfile keeps each entry; a layer may have a million
            source.headers()
            entry = tar.next()
        source.data()
        for parts, when in sorted(self._times.items(), reverse=True):
            self._set_time(parts, when)
        return source.whole

    def _one(self, tar, entry):
        self.at = f"{shown(entry.name)} of the layer"
        self.entries += 1
        self._bytes += entry.size
        if self.entries > self.limits.entries:
            raise BadArchive(f"the layer has more than {self.limits.entries} entries", "a bomb, or Limits(entries=…)")
        if self._bytes > self.limits.size:
            raise BadArchive(f"the layer's files come to more than {self.limits.size} bytes", "a bomb, or Limits(size=…)")
        parts = rootdir.normal(entry.name)
        if len(parts) > rootdir.DEPTH:
            raise BadArchive(f"{self.at} is deeper than {rootdir.DEPTH} folders", "made to break what walks it")
        meaning, hidden = whiteouts.read_name(parts[-1]) if parts else ("file", "")
        if any(part.startswith(whiteouts.PREFIX) for part in parts[:-1]):
            raise BadArchive(f"{self.at} is inside a whiteout", "a whiteout is a mark, not a folder")
        if meaning == "file":
            self._make(tar, entry, parts)
        elif meaning == "whiteout":
            self._white_out([*parts[:-1], hidden])
        elif meaning == "opaque":
            self._hide_below(parts[:-1])

    # What a whiteout does

    def _white_out(self, parts):
        there = self.root.lstat(parts) if self._parent(parts) is not None else None
        self._gone.add(tuple(parts))
        if self.flat:
            if there and tuple(parts) not in self._ours:
                self.root.remove(parts)
        elif there is None:  # else this layer itself has put something in its place
            whiteouts.make(parts[-1], self._parent(parts))
        elif stat.S_ISDIR(there.st_mode):
            self._hide_below(parts)

    def _hide_below(self, parts):
        """Make a folder opaque; flat: empty it of what the layers below had in it."""
        fd = self._open_folder(parts)
        try:
            if not self.flat:
                whiteouts.set_opaque(fd, self.userxattr)
                return
            inside = os.listdir(fd)
        finally:
            os.close(fd)
        for name in inside:
            if (*parts, name) not in self._ours:
                self.root.remove([*parts, name])
            elif stat.S_ISDIR(self.root.lstat([*parts, name]).st_mode):
                self._hide_below([*parts, name])

    # Making one entry

    def _make(self, tar, entry, parts):
        self._check(entry, parts)
        if not parts:
            self._attributes(entry, parts)
            return
        parent, name = self._parent(parts), parts[-1]
        there = self.root.lstat(parts)
        keep = there and entry.isdir() and stat.S_ISDIR(there.st_mode)
        if there and not keep:
            self.root.remove(parts)
            parent = self._parent(parts)
        if self.flat:
            self._ours.add(tuple(parts))
        if entry.islnk():
            self._hard_link(entry, parent, name)
            return  # an inode has one owner, mode and time: the first name's
        if entry.isdir():
            if not keep:
                os.mkdir(name, 0o700, dir_fd=parent)
                self._was_gone(parts)
        elif entry.issym():
            os.symlink(entry.linkname, name, dir_fd=parent)
        elif entry.isreg():
            self._write(tar, entry, parent, name)
        else:
            kind = stat.S_IFIFO if entry.isfifo() else stat.S_IFCHR if entry.ischr() else stat.S_IFBLK
            device = 0 if entry.isfifo() else os.makedev(entry.devmajor, entry.devminor)
            os.mknod(name, kind | 0o600, device, dir_fd=parent)
        self._attributes(entry, parts)

    def _check(self, entry, parts):
        """Refuse an entry before anything is made of it."""
        if entry.type not in tarfile.SUPPORTED_TYPES:
            raise BadArchive(f"{self.at} is of the unknown type {entry.type!r}", "not a layer's tar")
        if entry.isdev() and not entry.isfifo():
            if not self.devices:
                raise BadArchive(f"{self.at} is a device node", "it could reach the host's disks; devices=True allows it")
            if entry.ischr() and (entry.devmajor, entry.devminor) == (0, 0):
                raise BadArchive(f"{self.at} is overlayfs's own mark for a deleted file", "in a tar that is `.wh.NAME`")
        if not parts and not entry.isdir():
            raise BadArchive(f"{self.at} would replace the layer's root", "only a folder can be a root")
        if entry.issym() and not 0 < len(os.fsencode(entry.linkname)) < 4096:
            raise BadArchive(f"{self.at} is a symlink to nothing, or too far", "1 to 4095 bytes")
        for name in self._xattrs(entry):
            if name.startswith(whiteouts.XATTRS):
                raise BadArchive(
                    f"{self.at} carries {name}", "overlayfs would obey it and show files that aren't the layer's"
                )

    def _parent(self, parts):
        return self.root.parent(parts, self._imply)

    def _imply(self, parts, above):
        """Make a folder that the tar names files in but does not list: root's, 0755, as docker does."""
        os.mkdir(parts[-1], 0o755, dir_fd=above)
        fd = os.open(parts[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            os.fchmod(fd, 0o755)
        finally:
            os.close(fd)
        if self.flat:
            self._ours.add(tuple(parts))

    def _was_gone(self, parts):
        # Removed and made again in one layer: nothing from below may shine through.
        if not self.flat and tuple(parts) in self._gone:
            self._hide_below(parts)

    def _hard_link(self, entry, parent, name):
        target = rootdir.normal(entry.linkname, "a hard link to")
        parent = os.dup(parent)
        try:
            there = self.root.lstat(target) if target else None
            if there is None:
                raise BadArchive(f"{self.at} is a hard link to {shown(entry.linkname)}, which this layer does not have",
                                 "it must come earlier in the same layer")  # fmt: skip
            if stat.S_ISDIR(there.st_mode) or whiteouts.is_whiteout(there):
                raise BadArchive(f"{self.at} is a hard link to {shown(entry.linkname)}, which is no file", "broken")
            from_dir = self.root.parent(target)
            os.link(target[-1], name, src_dir_fd=from_dir, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)
            self.root.forget()

    def _write(self, tar, entry, parent, name):
        data = tar.extractfile(entry)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o600, dir_fd=parent), "wb", buffering=0) as file:
            left = entry.size
            while left:
                block = data.read(min(left, digests.BLOCK))
                if not block:
                    raise BadArchive(f"{self.at} ends early", "it was cut short: fetch it again")
                left -= len(block)
                _write_sparse(file.fileno(), block)
            os.ftruncate(file.fileno(), entry.size)

    def _attributes(self, entry, parts):
        """Owner, then mode, then xattrs, then time: each by the descriptor of the thing itself."""
        parent, name = (self._parent(parts), parts[-1]) if parts else (self.root.fd, ".")
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        itself = f"/proc/self/fd/{fd}"
        try:
            if stat.S_ISLNK(os.stat(fd).st_mode) != entry.issym():
                raise BadArchive(f"{self.at} was exchanged while it was unpacked", "someone else writes in there")
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
            if not entry.issym():
                os.chmod(itself, entry.mode & 0o7777)
            for attribute, value in self._xattrs(entry).items():
                self._set_xattr(itself, attribute, value)
            if entry.isdir():
                self._times[tuple(parts)] = _nanoseconds(entry)
            else:
                when = _nanoseconds(entry)
                os.utime(name, ns=(when, when), dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(fd)

    def _xattrs(self, entry):
        return {
            key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
            for key, value in entry.pax_headers.items()
            if key.startswith(_XATTR) and key.removeprefix(_XATTR) not in _LABELS
        }

    def _set_xattr(self, itself, attribute, value):
        try:
            os.setxattr(itself, attribute, value)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
                raise Unsupported(f"{self.at} needs the xattr {attribute}", "this file system or user can't set it") from None
            raise

    def _open_folder(self, parts):
        if not parts:
            return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.root.fd)
        inside = [*parts, "."]
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._parent(inside))

    def _set_time(self, parts, when):
        there = self.root.lstat(list(parts))
        if there and stat.S_ISDIR(there.st_mode):  # else a later entry has replaced it
            name, parent = (parts[-1], self.root.parent(parts)) if parts else (".", self.root.fd)
            os.utime(name, ns=(when, when), dir_fd=parent, follow_symlinks=False)


def _nanoseconds(entry):
    return int(Decimal(entry.pax_headers.get("mtime", entry.mtime)) * 1_000_000_000)


_PAGE = 4096
_ZEROS = bytes(_PAGE)


def _write_sparse(fd, block):
    """Write a block at the file's position, but leave a hole where a page is all zeros."""
    if not block.strip(b"\0"):
        os.lseek(fd, len(block), os.SEEK_CUR)
        return
    view, start = memoryview(block), 0
    for at in range(0, len(block), _PAGE):
        if block[at : at + _PAGE] == _ZEROS:
            _write_all(fd, view[start:at])
            os.lseek(fd, _PAGE, os.SEEK_CUR)
            start = at + _PAGE
    _write_all(fd, view[start:])


def _write_all(fd, view):
    while view:
        view = view[os.write(fd, view) :]
