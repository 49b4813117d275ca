"""What COPY and ADD put into an image: files of the build's folder, or of another image.

They are first gathered in a folder of our own, as they shall be: owners, modes. That
folder is written as a tar, whose digest (times set aside) says whether the same has
been copied before. The tar is then applied below the target, by descriptor: the image
may hold symlinks that lead anywhere, and a copy must not follow them out of its root.
"""

import contextlib
import os
import posixpath
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from labkit.build import ignore
from labkit.build.dockerfile import Instruction
from labkit.ground import child, ledger, state, syscalls
from labkit.ground.errors import BadValue, KernelError, NotFound, from_oserror
from labkit.images import diff, layers
from labkit.images.catalog import Image
from labkit.isolation import inroot, users
from labkit.storage import roots


@contextlib.contextmanager
def scratch(what: str) -> Iterator[Path]:
    """Yield an empty folder that is gone after the block."""
    folder = state.lib_dir("build") / f"{what}-{state.new_id()}"
    with ledger.made("folder", path=str(folder)):
        folder.mkdir(0o755)
        yield folder


class Context:
    """The folder that a build may read, and nothing above it; `.dockerignore` leaves things out."""

    def __init__(self, folder: str | os.PathLike[str], dockerfile: Path | None = None) -> None:
        self.folder = Path(os.path.realpath(folder))
        if not self.folder.is_dir():
            raise NotFound(f"there is no build folder {folder}", "the folder that has the Dockerfile")
        self.ignored = ignore.Ignored()
        # One beside the Dockerfile, by its name, goes before the folder's.
        for place in (
            dockerfile and dockerfile.with_name(f"{dockerfile.name}.dockerignore"),
            self.folder / ".dockerignore",
        ):
            if place is not None and place.is_file():
                self.ignored = ignore.Ignored(place.read_text(errors="surrogateescape"))
                break

    def gather(self, instruction: Instruction, sources: list[str], into: Path) -> bool:
        """Copy what each source names into the folder `into`; return whether it is a single file.

        Raises BadValue for a source outside the folder, NotFound for one that is not there.
        """
        found = [pair for source in sources for pair in self._find(instruction, source)]
        for name, path in found:
            if path.is_dir():
                self._tree(path, into)
            else:
                roots.copy_file(path, into / name)
        return len(found) == 1 and not found[0][1].is_dir()

    def _find(self, instruction: Instruction, source: str) -> list[tuple[str, Path]]:
        """Return (the name it gets, the path) of what a source names: a link's own name, and what it leads to."""
        clean = os.path.normpath("/" + source).lstrip("/") or "."  # `..` ends at the folder, as in docker
        if any(sign in clean for sign in "*?[\\"):
            wanted = ignore.compiled(clean, f"Dockerfile, line {instruction.line}", deep=False)
            paths = [path for path in self._visible(self.folder) if wanted.match(self._inside(path))]
        else:
            paths = [self.folder / clean] if self._is_visible(self.folder / clean) else []
            if not paths:
                raise NotFound(
                    f"Dockerfile, line {instruction.line}: there is no {source} in the build folder",
                    f"looked in {self.folder}; .dockerignore may leave it out",
                )
        found = []
        for path in paths:
            behind = Path(os.path.realpath(path))
            if not behind.is_relative_to(self.folder) or not self._is_visible(behind):
                raise instruction.refuse(f"{source} leads out of the build folder", "copy it in there")
            found.append((path.name, behind))
        return found

    def _inside(self, path: Path) -> str:
        return os.path.relpath(path, self.folder)

    def _is_visible(self, path: Path) -> bool:
        """Tell whether a path is there and not left out; a folder is there for what is kept in it."""
        if path == self.folder:
            return True
        if not os.path.lexists(path):
            return False
        return not self.ignored(self._inside(path)) or next(self._visible(path), None) is not None

    def _visible(self, folder: Path) -> Iterator[Path]:
        """Yield all paths below a folder that are not left out."""
        if not folder.is_dir() or folder.is_symlink():
            return
        for path in sorted(folder.iterdir()):
            left_out = self.ignored(self._inside(path))
            if not left_out:
                yield path
            if not left_out or self.ignored.keeps_something:
                yield from self._visible(path)

    def _tree(self, folder: Path, into: Path) -> None:
        for path in sorted(folder.iterdir()):
            left_out = self.ignored(self._inside(path))
            if path.is_dir() and not path.is_symlink():
                if left_out and next(self._visible(path), None) is None:
                    continue
                (into / path.name).mkdir(exist_ok=True)
                self._tree(path, into / path.name)
                shutil.copystat(path, into / path.name)
            elif not left_out and not stat.S_ISSOCK(path.lstat().st_mode):
                roots.copy_file(path, into / path.name)


def gather_from(image: Image, instruction: Instruction, sources: list[str], into: Path) -> bool:
    """Copy what each source names in an image's root into `into`; return whether it is a single file."""
    with opened(image) as root:
        found = [path for source in sources for path in _named_in(root, instruction, source, image)]
        single = len(found) == 1
        for path in found:
            fd = inroot.open_in_root(root, path)
            try:
                itself = f"/proc/{os.getpid()}/fd/{fd}"
                if stat.S_ISDIR(os.stat(fd).st_mode):
                    single = False
                    roots.copy_file(f"{itself}/.", into)
                else:
                    roots.copy_file(itself, into / os.path.basename(path), follow=True)
            finally:
                os.close(fd)
    return single


@contextlib.contextmanager
def opened(image: Image | None) -> Iterator[int]:
    """Yield an fd of an image's root, mounted to be read; of an empty folder for no image."""
    with contextlib.ExitStack() as stack:
        merged = stack.enter_context(scratch("look"))
        if image is not None and image.layers:
            stack.enter_context(roots.mounted(image.layers, None, None, merged))
        root = os.open(merged, os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, root)
        yield root


def _named_in(root: int, instruction: Instruction, source: str, image: Image) -> list[str]:
    """Return the paths below `root` that a source names, its patterns part by part."""
    found = [""]
    is_pattern = any(sign in source for sign in "*?[")
    for part in source.strip("/").split("/"):
        if any(sign in part for sign in "*?["):
            wanted = ignore.compiled(part, f"Dockerfile, line {instruction.line}", deep=False)
            found = [f"{above}/{name}" for above in found for name in _names_in(root, above) if wanted.match(name)]
        else:
            found = [f"{above}/{part}" for above in found]
    there = [path for path in found if _is_there(root, path)]
    if not there and not is_pattern:
        raise NotFound(f"Dockerfile, line {instruction.line}: no {source} in {image.name or 'that stage'}")
    return there


def _names_in(root: int, folder: str) -> list[str]:
    try:
        fd = inroot.open_in_root(root, folder, os.O_RDONLY | os.O_DIRECTORY)
    except KernelError:
        return []
    try:
        return sorted(os.listdir(fd))
    finally:
        os.close(fd)


def _is_there(root: int, path: str) -> bool:
    try:
        os.close(inroot.open_in_root(root, path))
    except KernelError:
        return False
    return True


def is_folder(root: int, path: str) -> bool:
    """Tell whether a path below `root` is a folder, or a link to one."""
    try:
        os.close(inroot.open_in_root(root, path, os.O_PATH | os.O_DIRECTORY))
    except KernelError:
        return False
    return True


def behind_links(root: int, path: str) -> str:
    """Return where a path below `root` leads, whether or not anything is there."""
    done, parts, links = "", path.strip("/").split("/"), 0
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            done = posixpath.dirname(done)
            continue
        text = _link_at(root, f"{done}/{part}")
        if text is None:
            done = f"{done}/{part}"
            continue
        links += 1
        if links > 40:
            raise BadValue(f"{path} in the image is a link to itself")
        done = "" if text.startswith("/") else done
        parts = [*text.split("/"), *parts]
    return done or "/"


def _link_at(root: int, path: str) -> str | None:
    try:
        fd = inroot.open_in_root(root, path, os.O_PATH | os.O_NOFOLLOW)
    except KernelError:
        return None
    try:
        return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def find_owner(image: Image | None, text: str) -> tuple[int, int]:
    """Return (uid, gid) of `user` or `user:group`: numbers, or names that the image itself knows.

    A user alone has a group of the same number, as in docker. Raises NotFound, BadValue.
    """
    user, _, group = text.partition(":")
    ids = [user, group or user]
    if not all(re.fullmatch("[0-9]{1,10}", number) for number in ids):
        with scratch("names") as merged, roots.mounted(image.layers if image else [], None, None, merged):
            ids = child.in_child(_find_owner, merged, user, group)
    if not all(int(number) < 2**32 - 1 for number in ids):  # the last one tells chown(2): leave it
        raise BadValue(f"{':'.join(map(str, ids))} is no owner", "0 to 4294967294")
    return int(ids[0]), int(ids[1])


def _find_owner(root: Path, user: str, group: str) -> tuple[int, int]:
    """Look names up in a root that a stranger has written: no link in it leads out, no device is opened."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount(None, str(root), None, syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_NODEV)
    os.chroot(root)
    os.chdir("/")
    uid, gid, _, _ = users.find_user(f"{user}:{group}")
    return uid, gid if group else uid


def set_owner(folder: Path, uid: int, gid: int) -> None:
    """Give everything below a folder to one owner, keeping the modes."""
    for path, folders, files in os.walk(folder):
        for name in folders + files:
            inside = os.path.join(path, name)
            status = os.lstat(inside)
            os.chown(inside, uid, gid, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                os.chmod(inside, stat.S_IMODE(status.st_mode))  # chown has cleared setuid


def fingerprint(folder: Path) -> str:
    """Return the digest of a gathered folder, whenever its files were written."""
    with tempfile.TemporaryFile(dir=state.lib_dir("build")) as tar:
        return diff.diff(folder, tar, clamp=0)[0]


def put(folder: Path, root: str, target: str, owner: tuple[int, int] = (0, 0)) -> None:
    """Put what is in a folder below `target` in the root mounted at `root`.

    Folders that are missing on the way are made, for `owner`. Raises BadValue where a file would
    replace a folder, or a folder something that is none.
    """
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        missing = _missing(root_fd, target)
        target_fd = inroot.make_in_root(root_fd, target)
        try:
            for path in missing:
                fd = inroot.open_in_root(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
                os.fchown(fd, *owner)
                os.close(fd)
            _refuse_other_kinds(folder, target_fd, target)
            status = os.stat(target_fd)  # the target keeps its own owner and mode
            os.chown(folder, status.st_uid, status.st_gid)
            os.chmod(folder, stat.S_IMODE(status.st_mode))
            with tempfile.TemporaryFile(dir=state.lib_dir("build")) as tar:
                diff.diff(folder, tar)
                tar.seek(0)
                layers.apply_onto(tar, f"/proc/self/fd/{target_fd}/.", flat=True)
        finally:
            os.close(target_fd)
    except OSError as error:
        raise from_oserror(error, f"copying to {target} in the image") from None
    finally:
        os.close(root_fd)


def _missing(root: int, target: str) -> list[str]:
    """Return the folders on the way to `target` that are not there, the uppermost first."""
    found: list[str] = []
    path = posixpath.normpath(target)
    while path not in ("/", "", ".") and not _is_there(root, path):
        found.insert(0, path)
        path = posixpath.dirname(path)
    return found


def _refuse_other_kinds(folder: Path, target_fd: int, target: str) -> None:
    """Raise BadValue where what is copied and what is there are not both folders, or both none."""
    for path, folders, files in os.walk(folder):
        inside = os.path.relpath(path, folder)
        for name in (*folders, *files):
            one = os.path.normpath(os.path.join(inside, name))
            try:
                there = os.stat(one, dir_fd=target_fd, follow_symlinks=False)
            except OSError:
                folders[:] = [each for each in folders if each != name]  # nothing below it can be there either
                continue
            is_folder = stat.S_ISDIR(os.lstat(os.path.join(path, name)).st_mode)
            if is_folder != stat.S_ISDIR(there.st_mode):
                kinds = ("a folder", "no folder") if is_folder else ("no folder", "a folder")
                raise BadValue(
                    f"{posixpath.join(target, one)} in the image is {kinds[1]}, and what is copied there is {kinds[0]}",
                    "remove it first, or copy what is in it",
                )


def unpack_archives(folder: Path, owner: tuple[int, int] | None) -> bool:
    """Replace each tar in a gathered folder by what is in it, as ADD does; return whether there was one.

    Its files keep the owners that the tar says, unless there is another `owner` for all.
    """
    archives = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()]
    archives = [path for path in archives if layers.is_archive(path)]
    for path in archives:
        with scratch("add") as inside:
            layers.apply_onto(path, inside, flat=True)
            if owner is not None:
                set_owner(inside, *owner)
            path.unlink()
            roots.copy_file(f"{inside}/.", folder)
    return bool(archives)
