"""The words of fstab, as the kernel's bits: `rbind,ro,nosuid,rslave,size=64m`.

One comma-separated list holds four different things, and the kernel takes each by a
different door:

    nosuid ro noatime …     of this mount only: mount_setattr(2), fsmount(2)
    rro rnosuid …           the same, of every mount below it too
    private rslave …        whether later mounts come through: mount_namespaces(7)
    size=64m mode=755 …     of the filesystem itself: fsconfig(2)

A word that takes back (`rw`, `suid`) undoes an earlier word of the same list; it
never takes a lock off what is bound. The filesystem's own words mean nothing for a bind.
See mount(8), and "Mounts" in the runtime specification.
"""

import operator
import os
import stat
from collections.abc import Callable, Iterable

from labkit.ground import syscalls as sc
from labkit.ground.dataclass import dataclass, replace
from labkit.ground.errors import BadValue, KernelError, Unsupported, from_oserror
from labkit.ground.typed import Any
from labkit.isolation import idmap, inroot, mounts, namespaces

# linux/mount.h; RELATIME is 0: the kernel's default
_ATIME_MASK, _NOATIME, _STRICTATIME, _NODIRATIME, _NOSYMFOLLOW = 0x70, 0x10, 0x20, 0x80, 0x200000

_ATTRIBUTES = (  # the word, what takes it back, the bit
    ("ro", "rw", mounts.RDONLY),
    ("nosuid", "suid", mounts.NOSUID),
    ("nodev", "dev", mounts.NODEV),
    ("noexec", "exec", mounts.NOEXEC),
    ("nodiratime", "diratime", _NODIRATIME),
    ("nosymfollow", "symfollow", _NOSYMFOLLOW),
)
_ATIME = {"noatime": _NOATIME, "strictatime": _STRICTATIME} | dict.fromkeys(
    ("relatime", "atime", "norelatime", "nostrictatime"), 0
)
_SPREAD = {"private": sc.MS_PRIVATE, "slave": sc.MS_SLAVE, "shared": sc.MS_SHARED, "unbindable": sc.MS_UNBINDABLE}
_OF_FILESYSTEM = {"sync", "async", "dirsync", "mand", "nomand", "lazytime", "nolazytime"}
_NOT_HERE = {
    "remount": "a new mount has nothing to change",
}


@dataclass(frozen=True)
class Options:
    """A list of words, read. Made by `parse`."""

    attrs: int = 0
    below: int = 0  # attributes for every mount of the tree
    atime: int | None = None
    atime_below: int | None = None  # for every mount of the tree
    spread: tuple[int, bool] | None = None  # (MS_…, whether the whole tree)
    bind: bool = False
    recursive: bool = False
    copy_up: bool = False
    idmap: int | None = None  # 0, or AT_RECURSIVE: under other ids
    data: tuple[str, ...] = ()  # for the filesystem itself


Change = tuple[str, Callable[[Any, Any], Any], Any]  # the field, what makes its new value of the old one and of this


def _put(_old: object, new: object) -> object:
    return new


def _table() -> dict[str, tuple[Change, ...]]:
    """Return {word: what it changes}; an `r` in front means every mount of the tree."""
    table: dict[str, tuple[Change, ...]] = {
        "bind": (("bind", _put, True),),
        "rbind": (("bind", _put, True), ("recursive", _put, True)),
        "tmpcopyup": (("copy_up", _put, True),),
        "idmap": (("idmap", _put, 0),),
        "ridmap": (("idmap", _put, sc.AT_RECURSIVE),),
        **dict.fromkeys(("defaults", "loud", "silent"), ()),  # the last two say how much the kernel logs
        **{word: (("atime", _put, value),) for word, value in _ATIME.items()},
        **{f"r{word}": (("atime_below", _put, value),) for word, value in _ATIME.items()},
    }
    for front, name in (("", "attrs"), ("r", "below")):
        for word, back, bit in _ATTRIBUTES:
            table[front + word] = ((name, operator.or_, bit),)
            table[front + back] = ((name, operator.and_, ~bit),)
        for word, kind in _SPREAD.items():
            table[front + word] = (("spread", _put, (kind, bool(front))),)
    return table


_WORDS = _table()


def parse(words: Iterable[str]) -> Options:
    """Return the Options that a list of words means. Raises BadValue or Unsupported, and names the word."""
    values: dict[str, Any] = vars(Options()).copy()
    for word in filter(None, words):  # Podman has an empty one after tmpcopyup
        if word in _NOT_HERE:
            raise Unsupported(f"mount option {word!r}: labkit does not make {_NOT_HERE[word]}")
        for name, change, value in _WORDS.get(word, (("data", operator.add, (word,)),)):
            values[name] = change(values[name], value)
    return Options(**values)


def words() -> list[str]:
    """Return every word that a mount may have, the filesystem's own aside."""
    return sorted({*_WORDS, *_OF_FILESYSTEM})


def propagation(word: str) -> tuple[int, bool]:
    """Return the (MS_…, whether the whole tree) of a word like `rslave`. Raises BadValue."""
    options = parse([word])
    if options.spread is None:
        raise BadValue(
            f"propagation {word!r} is unknown", "one of " + ", ".join(_SPREAD) + ", perhaps with an r in front"
        )
    return options.spread


@dataclass(frozen=True)
class Mount:
    """A mount in fstab's words: a filesystem of a kind, or with bind a piece of the host's tree."""

    kind: str
    source: str
    target: str
    options: Options = Options()
    words: tuple[str, ...] = ()
    tree: int | None = None  # a bind's source as an fd, if it was taken before
    # Under which ids a bind's files are shown: maps, or the path of a user namespace that has them.
    id_maps: tuple[namespaces.IdMap, namespaces.IdMap] | str | None = None
    inside: bool = False  # the source is a path in the new root: there when the steps before this one are done
    users: int | None = None  # id_maps as an fd, if it was taken before

    def describe(self) -> str:
        what = f"bind {self.source}" if self.options.bind else f"mount {self.kind}"
        return f"{what} on {self.target} ({','.join(self.words) or 'defaults'})"

    def execute(self, root: int) -> None:
        options = self.options
        there = _mode(root, self.target) if self.kind == "tmpfs" else None
        tree = self.tree
        if tree is None:
            tree = self.bound(root) if options.bind else self._new(there)
        try:
            _set(tree, options.below, options.atime_below, sc.AT_RECURSIVE)
            _set(tree, options.attrs, options.atime, 0)
            if options.spread:
                kind, whole = options.spread
                sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH | (sc.AT_RECURSIVE if whole else 0), propagation=kind)
            folder = stat.S_ISDIR(os.fstat(tree).st_mode)
            # /proc and /sys must be where they are said to be: what is locked in them
            # is found by path. Anywhere else the image may have links, inside its root.
            follow = self.kind not in ("proc", "sysfs")
            target = inroot.make_in_root(root, self.target, folder, follow)
        except BaseException:
            os.close(tree)
            raise
        try:
            if there is not None and options.copy_up:
                _copy_up(target, tree)
            mounts.attach(tree, target)
        finally:
            os.close(target)
            os.close(tree)

    def is_empty_and_read_only(self) -> bool:
        """Tell whether nothing could be put into it: a new tmpfs is sealed when all that belongs in it is there."""
        return self.kind == "tmpfs" and not self.options.bind and bool(self.options.attrs & mounts.RDONLY)

    def writable(self) -> "Mount":
        """Return the step without its lock against writes."""
        return replace(self, options=replace(self.options, attrs=self.options.attrs & ~mounts.RDONLY))

    def gathered(self) -> "Mount":
        """Return the step with what it is made of already taken: the source, or if that is not there yet, the ids."""
        if not self.options.bind:
            return self
        if self.inside:
            return replace(self, users=self._users()) if self.id_maps else self
        return replace(self, tree=self.bound())

    def bound(self, root: int | None = None) -> int:
        """Return a bind's source as a mount that is nowhere yet. `root` is the new root, if that is where it is."""
        tree = self._source(root)
        try:
            if not self.options.spread:
                sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH | self._whole(), propagation=sc.MS_PRIVATE)
            if self.id_maps:
                self.translate(tree)
        except BaseException:
            os.close(tree)
            raise
        return tree

    def translate(self, tree: int) -> None:
        """Show the files of a mount that is nowhere yet under its ids. See mount_setattr(2), MOUNT_ATTR_IDMAP."""
        users, depth = self._users(), sc.AT_EMPTY_PATH | (self.options.idmap or 0)
        try:
            sc.mount_setattr(tree, "", depth, attr_set=sc.MOUNT_ATTR_IDMAP, userns_fd=users)
        finally:
            os.close(users)

    def _whole(self) -> int:
        return sc.AT_RECURSIVE if self.options.recursive else 0

    def _source(self, root: int | None) -> int:
        flags = sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | self._whole()
        if not self.inside or root is None:
            return sc.open_tree(sc.AT_FDCWD, self.source, flags)
        place = inroot.open_in_root(root, self.source)
        try:
            return sc.open_tree(place, "", flags | sc.AT_EMPTY_PATH)
        finally:
            os.close(place)

    def _users(self) -> int:
        if self.users is not None:
            return self.users
        if isinstance(self.id_maps, str):
            try:
                return os.open(self.id_maps, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise from_oserror(error, f"opening the user namespace {self.id_maps}") from None
        assert self.id_maps  # or nobody asks
        return idmap.namespace(*self.id_maps)

    def _new(self, mode: int | None) -> int:
        data = self.options.data
        if mode is not None and not any(word.startswith("mode=") for word in data):
            data = (*data, f"mode={mode:o}")  # as the folder that it covers
        return mounts.new_filesystem(self.kind, self.source or self.kind, data, 0)


def _set(tree: int, attrs: int, atime: int | None, whole: int) -> None:
    if atime is not None:
        sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH | whole, attr_set=attrs | atime, attr_clr=_ATIME_MASK)
    elif attrs:
        sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH | whole, attr_set=attrs)


def _mode(root: int, path: str) -> int | None:
    """Return the permissions of what is at `path` in the root, None if nothing is."""
    try:
        fd = inroot.open_in_root(root, path)
    except KernelError:
        return None
    try:
        return stat.S_IMODE(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def _copy_up(target: int, tree: int) -> None:
    """Copy what the image has at the target into the new, still unattached filesystem."""
    import shutil

    old, new = f"/proc/self/fd/{target}", f"/proc/self/fd/{tree}"
    try:
        # Links are copied as links: nothing in the image leads anywhere else.
        shutil.copytree(f"{old}/", f"{new}/", symlinks=True, dirs_exist_ok=True)
        for folder, folders, files in os.walk(f"{new}/"):
            for path in (folder, *(os.path.join(folder, name) for name in (*folders, *files))):
                found = os.lstat(old + path.removeprefix(new))
                os.chown(path, found.st_uid, found.st_gid, follow_symlinks=False)
    except (OSError, shutil.Error) as error:
        if isinstance(error, OSError) and error.errno:
            raise from_oserror(error, "copying the image's files into a tmpfs") from None
        raise KernelError("copying the image's files into a tmpfs", 5) from None


@dataclass(frozen=True)
class Device:
    """A device node in the container's /dev, with its own owner and permissions. See mknod(2)."""

    target: str
    kind: str  # c, b, or p: a pipe
    major: int = 0
    minor: int = 0
    mode: int = 0o666
    uid: int = 0
    gid: int = 0

    def describe(self) -> str:
        return f"mknod {self.target} {self.kind} {self.major}:{self.minor}"

    def execute(self, root: int) -> None:
        kinds = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
        folder, name = os.path.split(self.target)
        parent = inroot.make_in_root(root, folder)
        try:
            os.mknod(name, kinds[self.kind] | self.mode, os.makedev(self.major, self.minor), dir_fd=parent)
            os.chmod(name, self.mode, dir_fd=parent)  # again: the umask took from it
            os.chown(name, self.uid, self.gid, dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            pass  # bound from the host, or the image's own /dev
        except OSError as error:
            raise from_oserror(error, self.describe()) from None
        finally:
            os.close(parent)
