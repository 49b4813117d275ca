"""One entry of a layer's tar becomes one thing on disk.

First the parent folder, by descriptor (see rootdir). Then the thing itself, by name in
that folder, never following a symlink that is there already. Then owner, mode, xattrs
and time, in that order: chown(2) clears setuid and file capabilities, and making a
file in a folder changes the folder's time, so the folders' times come last of all.

Some entries are refused whatever they are for: `trusted.overlay.redirect=/etc` would
make overlayfs show another folder's files as the layer's own, a character device 0:0
would hide a file that no whiteout names, a device node may be the host's disk.
See the OCI image specification, layer.md, and overlayfs(5).
"""

import errno
import os
import stat
import tarfile

from labkit.ground.errors import BadArchive, Unsupported
from labkit.ground.typed import IO
from labkit.images import digests, rootdir, tarread, whiteouts
from labkit.images.rootdir import RootDir, shown

_LAST_ID = 2**32 - 2  # the one after it, -1, tells chown(2) to leave the owner as it is


class Unpacker:
    """What one layer becomes below one RootDir. `at` says which entry it is at, for messages."""

    def __init__(
        self, root: RootDir, flat: bool, devices: bool, userxattr: bool, owner: tuple[int, int] | None = None
    ) -> None:
        self.root, self.flat, self.devices, self.userxattr = root, flat, devices, userxattr
        self.owner = owner  # instead of the tar's own
        self.at = root.path  # what is being unpacked, for messages
        self._times: dict[tuple[str, ...], int] = {}  # of folders, set at the end: (component, …) → nanoseconds
        self._gone: set[tuple[str, ...]] = set()  # what this layer whites out
        self._ours: set[tuple[str, ...]] = set()  # flat: what this layer made, which its own whiteouts spare

    def all_of(self, reader: tarread.Reader) -> None:
        """Unpack every entry."""
        for entry in reader:
            self.at = f"{shown(entry.name)} of the layer"
            self._one(reader, entry)
        if self.root.lstat([whiteouts.LINKS]):
            self.root.remove([whiteouts.LINKS])  # its files have their other names now
        for parts, when in sorted(self._times.items(), reverse=True):
            self._set_time(parts, when)

    def _one(self, reader: tarread.Reader, entry: tarfile.TarInfo) -> None:
        parts = rootdir.normal(entry.name)
        if len(parts) > rootdir.DEPTH:
            raise BadArchive(f"{self.at} is deeper than {rootdir.DEPTH} folders", "made to break what walks it")
        if whiteouts.is_book(parts):
            if len(parts) == 2 and parts[0] == whiteouts.LINKS and entry.isreg():
                self._make(reader, entry, parts)
            return
        meaning, hidden = whiteouts.read_name(parts[-1]) if parts else ("file", "")
        if any(part.startswith(whiteouts.PREFIX) for part in parts[:-1]):
            raise BadArchive(f"{self.at} is inside a whiteout", "a whiteout is a mark, not a folder")
        if away := self._away(parts):
            if meaning != "file":
                return  # nothing is left in there to be hidden
            self._bring_back(away)
        if meaning == "file":
            self._make(reader, entry, parts)
        elif meaning == "whiteout":
            self._white_out([*parts[:-1], hidden])
        elif meaning == "opaque":
            self._hide_below(parts[:-1])

    # What a whiteout does

    def _away(self, parts: list[str]) -> list[str]:
        """Return the folder above a path that this layer has taken away and not made again; else nothing."""
        for depth in range(1, len(parts)) if self._gone else ():
            if tuple(parts[:depth]) in self._gone:
                there = self.root.lstat(parts[:depth])
                if there is None or whiteouts.is_whiteout(there):
                    return parts[:depth]
        return []

    def _bring_back(self, parts: list[str]) -> None:
        """Make a folder that this layer took away, and now has something in: nothing from below is in it."""
        if not self.flat:
            self.root.remove(parts)
            self._hide_below([*parts])

    def _white_out(self, parts: list[str]) -> None:
        there = self.root.lstat(parts) if self._parent(parts) is not None else None
        self._gone.add(tuple(parts))
        if there is None:
            if not self.flat:
                whiteouts.make(parts[-1], self._parent(parts))
        elif self.flat and tuple(parts) not in self._ours:
            self.root.remove(parts)
        # Else this layer itself has put something in its place: that stays, and of a
        # folder only what the layers below had in it goes.
        elif stat.S_ISDIR(there.st_mode):
            self._hide_below(parts)

    def _hide_below(self, parts: list[str]) -> None:
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
            elif (there := self.root.lstat([*parts, name])) and stat.S_ISDIR(there.st_mode):
                self._hide_below([*parts, name])

    # Making one entry

    def _make(self, reader: tarread.Reader, entry: tarfile.TarInfo, parts: list[str]) -> None:
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
            self._write(reader.data(entry), entry, parent, name)
        else:
            kind = stat.S_IFIFO if entry.isfifo() else stat.S_IFCHR if entry.ischr() else stat.S_IFBLK
            device = 0 if entry.isfifo() else os.makedev(entry.devmajor, entry.devminor)
            os.mknod(name, kind | 0o600, device, dir_fd=parent)
        self._attributes(entry, parts)

    def _check(self, entry: tarfile.TarInfo, parts: list[str]) -> None:
        """Refuse an entry before anything is made of it."""
        if entry.type not in tarfile.SUPPORTED_TYPES:
            raise BadArchive(f"{self.at} is of the unknown type {entry.type!r}", "not a layer's tar")
        if entry.isdev() and not entry.isfifo():
            if not self.devices:
                raise BadArchive(
                    f"{self.at} is a device node", "it could reach the host's disks; devices=True allows it"
                )
            if entry.ischr() and (entry.devmajor, entry.devminor) == (0, 0):
                raise BadArchive(f"{self.at} is overlayfs's own mark for a deleted file", "in a tar that is `.wh.NAME`")
        if not parts and not entry.isdir():
            raise BadArchive(f"{self.at} would replace the layer's root", "only a folder can be a root")
        if not (0 <= entry.uid <= _LAST_ID and 0 <= entry.gid <= _LAST_ID):
            raise BadArchive(f"{self.at} has owner {entry.uid}:{entry.gid}", f"0 to {_LAST_ID}")
        if entry.issym() and not 0 < len(os.fsencode(entry.linkname)) < 4096:
            raise BadArchive(f"{self.at} is a symlink to nothing, or too far", "1 to 4095 bytes")
        for name in tarread.xattrs(entry):
            if name.startswith(whiteouts.XATTRS):
                raise BadArchive(
                    f"{self.at} carries {name}",
                    "overlayfs would obey it and show files that aren't the layer's",
                )

    def _parent(self, parts: list[str]) -> int:
        return self.root.parent(parts, self._imply)

    def _imply(self, parts: list[str], above: int) -> None:
        """Make a folder that the tar names files in but does not list: root's, 0755, as docker does."""
        os.mkdir(parts[-1], 0o755, dir_fd=above)
        fd = os.open(parts[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            os.fchmod(fd, 0o755)
        finally:
            os.close(fd)
        if self.flat:
            self._ours.add(tuple(parts))

    def _was_gone(self, parts: list[str]) -> None:
        # Removed and made again in one layer: nothing from below may shine through.
        if not self.flat and tuple(parts) in self._gone:
            self._hide_below(parts)

    def _hard_link(self, entry: tarfile.TarInfo, parent: int, name: str) -> None:
        target = rootdir.normal(entry.linkname, "a hard link to")
        parent = os.dup(parent)
        try:
            there = self.root.lstat(target) if target else None
            if there is None:
                raise BadArchive(
                    f"{self.at} is a hard link to {shown(entry.linkname)}, which this layer does not have",
                    "it must come earlier in the same layer",
                )
            if stat.S_ISDIR(there.st_mode) or whiteouts.is_whiteout(there):
                raise BadArchive(f"{self.at} is a hard link to {shown(entry.linkname)}, which is no file", "broken")
            from_dir = self.root.parent(target)
            os.link(target[-1], name, src_dir_fd=from_dir, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)
            self.root.forget()

    def _write(self, data: IO[bytes], entry: tarfile.TarInfo, parent: int, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o600, dir_fd=parent), "wb", buffering=0) as file:
            left = entry.size
            while left:
                block = data.read(min(left, digests.BLOCK))
                if not block:
                    raise BadArchive(f"{self.at} ends early", "it was cut short: fetch it again")
                left -= len(block)
                write_sparse(file.fileno(), block)
            os.ftruncate(file.fileno(), entry.size)

    def _attributes(self, entry: tarfile.TarInfo, parts: list[str]) -> None:
        """Owner, then mode, then xattrs, then time: each by the descriptor of the thing itself."""
        parent, name = (self._parent(parts), parts[-1]) if parts else (self.root.fd, ".")
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        itself = f"/proc/self/fd/{fd}"
        try:
            if stat.S_ISLNK(os.stat(fd).st_mode) != entry.issym():
                raise BadArchive(f"{self.at} was exchanged while it was unpacked", "someone else writes in there")
            os.chown(name, *(self.owner or (entry.uid, entry.gid)), dir_fd=parent, follow_symlinks=False)
            if not entry.issym():
                os.chmod(itself, entry.mode & 0o7777)
            for attribute, value in tarread.xattrs(entry).items():
                self._set_xattr(itself, attribute, value)
            if entry.isdir():
                # An older folder of that name keeps what is in it, not what was said of it.
                for attribute in set(os.listxattr(itself)) - tarread.xattrs(entry).keys():
                    if not attribute.startswith(whiteouts.XATTRS) and not tarread.is_label(attribute):
                        os.removexattr(itself, attribute)
                self._times[tuple(parts)] = tarread.nanoseconds(entry)
            else:
                when = tarread.nanoseconds(entry)
                os.utime(name, ns=(when, when), dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(fd)

    def _set_xattr(self, itself: str, attribute: str, value: bytes) -> None:
        try:
            os.setxattr(itself, attribute, value)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
                raise Unsupported(
                    f"{self.at} needs the xattr {attribute}", "this file system or user can't set it"
                ) from None
            raise

    def _open_folder(self, parts: list[str]) -> int:
        if not parts:
            return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.root.fd)
        inside = [*parts, "."]
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._parent(inside))

    def _set_time(self, parts: tuple[str, ...], when: int) -> None:
        there = self.root.lstat(list(parts))
        if there and stat.S_ISDIR(there.st_mode):  # else a later entry has replaced it
            name, parent = (parts[-1], self.root.parent(parts)) if parts else (".", self.root.fd)
            os.utime(name, ns=(when, when), dir_fd=parent, follow_symlinks=False)


_PAGE = 4096
_ZEROS = bytes(_PAGE)


def write_sparse(fd: int, block: bytes) -> None:
    """Write a block at the file's position, but leave a hole where a page is all zeros."""
    view, start = memoryview(block), 0
    for at in range(0, len(block), _PAGE):
        # Most pages begin with something, and need not be compared.
        if not block[at] and _ZEROS.startswith(page := block[at : at + _PAGE]):
            _write_all(fd, view[start:at])
            os.lseek(fd, len(page), os.SEEK_CUR)
            start = at + len(page)
    _write_all(fd, view[start:])


def _write_all(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]
