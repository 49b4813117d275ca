"""COPY and ADD: files of the build's folder, or of an image, into a root that is mounted.

Where a name leads is found out by walking it here, link by link, as a program that is
locked into that root would: neither an image's links nor the folder's lead out. It can
be done by text, since nobody else writes to either side: a layer is read-only, and the
new root has no process yet.

What becomes of it is what BuildKit does:

    a file into a folder              under its own name, or its link's
    a file to a name                  in place of the file there, through a link to it
    a folder                          what is in it, into the target; folders that meet become one
    a file over a folder, or a folder over a file or link       refused

Owner and mode go with each; folders that had to be made for the target have the owner
of --chown as well.
"""

import contextlib
import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterator

from labkit.build import ignore
from labkit.build.modes import Mode
from labkit.ground.dataclass import dataclass, field
from labkit.ground.errors import BadValue, NotFound, from_oserror
from labkit.images import diff, digests, layers, rootdir, unpack

Owner = tuple[int, int]
_NOTHING = ignore.Ignored()
_WILD = re.compile(r"(?:[^\\*?\[]|\\.)*[*?\[]", re.DOTALL)  # has a sign that means more than itself


def resolve(root: str, path: str, hidden: Callable[[str], bool] = lambda path: False) -> str:
    """Return where a path leads below `root`, through all links, without the leading slash.

    What is not there stays as it is said. A link that is `hidden` is not followed. Raises BadValue.
    """
    parts, links = path.split("/")[::-1], 0
    done: list[str] = []
    while parts:
        part = parts.pop()
        if part in ("", ".", ".."):
            done = done[:-1] if part == ".." else done
            continue
        here = "/".join([*done, part])
        try:
            link = os.readlink(os.path.join(root, here))
        except OSError:
            link = ""
        if not link or hidden(here):
            done.append(part)
            continue
        links += 1
        if links > 255:
            raise BadValue(f"{path} is a loop of links")
        done = [] if link.startswith("/") else done
        parts += link.split("/")[::-1]
    return "/".join(done)


@dataclass(frozen=True)
class Tree:
    """A folder that is copied from: the build's own, or the root of an image."""

    root: str
    name: str  # for messages
    ignored: ignore.Ignored = field(default_factory=ignore.Ignored)
    owner: Owner | None = None  # whose all files are; None: each its own

    def hides(self, path: str) -> bool:
        """Tell whether `.dockerignore` leaves a path out, with all that is in it."""
        return self.ignored.hides(self.root, path)

    def find(self, source: str) -> list[str]:
        """Return the paths that a source of COPY means: a pattern may mean none. Raises NotFound, BadValue."""
        clean = posixpath.normpath("/" + source).lstrip("/")  # `..` ends at the folder, as in docker
        parts = clean.split("/")
        first = next((at for at, part in enumerate(parts) if _WILD.match(part)), len(parts))
        if first == len(parts):
            self.resolve(clean)
            return [clean]
        found = [resolve(self.root, "/".join(parts[:first]), self.hides)]
        for part in parts[first:]:
            wanted = ignore.compiled(part, source, deep=False)
            found = [posixpath.join(path, name) for path in found for name in self.names(path) if wanted.match(name)]
        return found

    def resolve(self, path: str) -> str:
        """Return where a path leads, through all links. Raises NotFound."""
        found = resolve(self.root, path, self.hides)
        if not os.path.lexists(os.path.join(self.root, found)) or self.hides(found):
            hint = f"looked in {self.root}; .dockerignore may leave it out" if self.owner else None
            raise NotFound(f"there is no {path} in {self.name}", hint)
        return found

    def names(self, path: str) -> list[str]:
        """Return what is in a folder of it, in order; nothing if it is none. Raises BadValue for one too deep."""
        if path.count("/") >= rootdir.DEPTH:
            hint = ".dockerignore can leave it out" if self.owner else None
            raise BadValue(f"{self.name} is deeper than {rootdir.DEPTH} folders, as no layer may be", hint)
        where = os.path.join(self.root, path)
        if os.path.islink(where) or not os.path.isdir(where):
            return []
        return [name for name in sorted(os.listdir(where)) if not self.hides(posixpath.join(path, name))]

    def walk(self, path: str) -> Iterator[str]:
        """Yield a path and all that is below it."""
        yield path
        for name in self.names(path):
            yield from self.walk(posixpath.join(path, name))

    def fingerprint(self, start: str, excluded: ignore.Ignored = _NOTHING) -> str:
        """Return the digest of all that a path holds and that is said of it, but its times, and what is excluded."""
        whole, top = hashlib.sha256(), self.resolve(start)
        for path in self.walk(top):
            if excluded.hides(os.path.join(self.root, top), path[len(top) :].lstrip("/")):
                continue
            where = os.path.join(self.root, path)
            status = os.lstat(where)
            owner = self.owner or (status.st_uid, status.st_gid)
            link = os.readlink(where) if stat.S_ISLNK(status.st_mode) else ""
            name = (posixpath.basename(start), path[len(top) :])
            said = (name, status.st_mode, status.st_rdev, owner, link, _xattrs(where))
            whole.update(repr(said).encode(errors="surrogateescape"))
            if stat.S_ISREG(status.st_mode):
                with open(where, "rb") as file:
                    whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()


@dataclass
class Copier:
    """What one COPY or ADD does to the root mounted at `root`."""

    root: str
    owner: Owner | None = None  # --chown
    mode: Mode | None = None  # --chmod
    excluded: ignore.Ignored = _NOTHING  # --exclude
    _top: str = ""  # the source that is being copied
    _first: dict[tuple[int, int], str] = field(default_factory=dict)  # inode: the first name it was copied to

    def excludes(self, tree: Tree, source: str) -> bool:
        """Tell whether a source is left out itself: a file, by its name. Of a folder only what is in it can be."""
        where = os.path.join(tree.root, resolve(tree.root, source, tree.hides))
        return self.excluded(posixpath.basename(source)) and not os.path.isdir(where)

    def copy(self, tree: Tree, source: str, target: str, archives: bool = False) -> None:
        """Copy what `source` names to `target`, an absolute path; `archives` are unpacked. Raises BadValue."""
        self._first = {}
        found = tree.resolve(source)
        self._top = whole = os.path.join(tree.root, found)
        try:
            if archives and layers.is_archive(whole):
                self._unpack(whole, target)
                return
            is_folder = os.path.isdir(whole)
            self.make_folders(target if target.endswith("/") else posixpath.dirname(target))
            where = resolve(self.root, target)
            there = os.path.lexists(self._path(where))
            if not is_folder and there and os.path.isdir(self._path(where)):
                where = posixpath.join(where, posixpath.basename(source))
            self.make_folders(where if is_folder and not there else posixpath.dirname(where))
            self._put(tree, found, where)
        except OSError as error:
            raise from_oserror(error, f"copying to {target} in the image") from None

    def _path(self, inside: str) -> str:
        return os.path.join(self.root, inside)

    def make_folders(self, path: str) -> None:
        """Make a folder and those above it where they are missing, each of the owner of the copy. Raises BadValue."""
        done = self.root
        for part in filter(None, resolve(self.root, path).split("/")):
            done = os.path.join(done, part)
            if not os.path.lexists(done):
                os.mkdir(done)
                os.chown(done, *(self.owner or (0, 0)))
                os.chmod(done, 0o755 if self.mode is None else self.mode.of(0o755, folder=True))
            elif not os.path.isdir(done):
                raise BadValue(f"{done[len(self.root) :]} in the image is no folder", "RUN rm it first")

    def part_from_links(self, path: str) -> None:
        """Let a path lead through folders only: --link copies as if nothing were there yet."""
        done = self.root
        for part in filter(None, path.split("/")):
            done = os.path.join(done, part)
            if os.path.islink(done):
                os.unlink(done)

    def _put(self, tree: Tree, found: str, where: str, below: str = "") -> None:
        """Copy one thing, `below` the source, a folder with all in it. What is said of the source's own stays."""
        source, target = os.path.join(tree.root, found), self._path(where)
        status = os.lstat(source)
        there = os.lstat(target) if os.path.lexists(target) else None
        is_folder = stat.S_ISDIR(status.st_mode)
        if there is not None and is_folder != stat.S_ISDIR(there.st_mode):
            kinds = ("a folder", "no folder") if is_folder else ("no folder", "a folder")
            raise BadValue(
                f"/{where} in the image is {kinds[1]}, and what is copied there is {kinds[0]}",
                "remove it first, or copy what is in it",
            )
        if not is_folder:
            self._put_file(tree, source, status, target, there is not None)
            return
        if there is None:
            os.mkdir(target)
        for name in tree.names(found):
            inside = posixpath.join(below, name)
            if not self.excluded.hides(self._top, inside):
                self._put(tree, posixpath.join(found, name), posixpath.join(where, name), inside)
        if below:
            self._attributes(tree, source, status, target)

    def _put_file(self, tree: Tree, source: str, status: os.stat_result, target: str, is_there: bool) -> None:
        if is_there:
            os.unlink(target)
        if stat.S_ISSOCK(status.st_mode):
            return  # the process's that listens: no tar can hold one
        first = self._first.setdefault((status.st_dev, status.st_ino), target)
        if first != target:
            os.link(first, target, follow_symlinks=False)
            return
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(source), target)
        elif stat.S_ISREG(status.st_mode):
            _copy_data(source, target)
        else:
            os.mknod(target, status.st_mode, status.st_rdev)
        self._attributes(tree, source, status, target)

    def _attributes(self, tree: Tree, source: str, status: os.stat_result, target: str) -> None:
        owner = self.owner or tree.owner or (status.st_uid, status.st_gid)
        os.chown(target, *owner, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            mode, folder = stat.S_IMODE(status.st_mode), stat.S_ISDIR(status.st_mode)
            os.chmod(target, mode if self.mode is None else self.mode.of(mode, folder))
        for name, value in _xattrs(source):
            os.setxattr(target, name, value, follow_symlinks=False)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)

    def _unpack(self, archive: str, target: str) -> None:
        self.make_folders(target)
        folder = self._path(resolve(self.root, target))
        before = os.stat(folder)
        layers.apply_onto(archive, folder, flat=True, owner=self.owner)
        # What an archive says of its own top is not said of the target, which was there before.
        os.chown(folder, before.st_uid, before.st_gid)
        os.chmod(folder, stat.S_IMODE(before.st_mode))


def _copy_data(source: str, target: str) -> None:
    with open(source, "rb", buffering=0) as file, open(target, "xb", buffering=0) as out:
        while block := file.read(digests.BLOCK):
            unpack.write_sparse(out.fileno(), block)
        os.ftruncate(out.fileno(), out.tell())


def _xattrs(path: str) -> list[tuple[str, bytes]]:
    found = []
    with contextlib.suppress(OSError):  # a file system without any
        for name in sorted(os.listxattr(path, follow_symlinks=False)):
            if not name.startswith(diff.SKIP):
                found.append((name, os.getxattr(path, name, follow_symlinks=False)))
    return found
