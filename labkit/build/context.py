"""What COPY and ADD put into an image: files of the build's folder, or of another image.

They are first gathered in a folder of our own, as they shall be: owners, modes. That
folder is written as a tar, whose digest (times set aside) says whether the same has
been copied before. The tar is then applied below the target, by descriptor: the image
may hold symlinks that lead anywhere, and a copy must not follow them out of its root.
"""

import contextlib
import fnmatch
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from labkit.ground import child, ledger, state, syscalls
from labkit.ground.errors import BadArchive, BadValue, KernelError, NotFound, from_oserror
from labkit.images import diff, layers
from labkit.isolation import inroot, users
from labkit.storage import roots


@contextlib.contextmanager
def scratch(what):
    """Yield an empty folder that is gone after the block."""
    folder = state.lib_dir("build") / f"{what}-{state.new_id()}"
    with ledger.made("folder", path=str(folder)):
        folder.mkdir(0o755)
        yield folder


class Context:
    """The folder that a build may read, and nothing above it; `.dockerignore` leaves things out."""

    def __init__(self, folder):
        self.folder = Path(os.path.realpath(folder))
        if not self.folder.is_dir():
            raise NotFound(f"there is no build folder {folder}", "the folder that has the Dockerfile")
        self._ignored = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / ".dockerignore").read_text(errors="replace").splitlines():
                line = line.strip()
                if line and not line.startswith("#"):
                    pattern = os.path.normpath(line.removeprefix("!").strip("/"))
                    self._ignored.append((line.startswith("!"), _pattern(pattern)))

    def gather(self, instruction, sources, into):
        """Copy what each source names into the folder `into`; return whether it is a single file.

        Raises BadValue for a source outside the folder, NotFound for one that is not there.
        """
        found = [path for source in sources for path in self._find(instruction, source)]
        for path in found:
            if path.is_dir():
                self._tree(path, into)
            else:
                roots.copy_file(path, into / path.name)
        return len(found) == 1 and not found[0].is_dir()

    def _find(self, instruction, source):
        clean = os.path.normpath("/" + source).lstrip("/")  # `..` ends at the folder, as in docker
        if any(sign in clean for sign in "*?["):
            paths = sorted(self.folder.glob(clean))
        else:
            paths = [self.folder / clean] if os.path.lexists(self.folder / clean) else []
        paths = [path for path in paths if not self.ignores(path)]
        if not paths:
            raise NotFound(
                f"Dockerfile, line {instruction.line}: there is no {source} in the build folder",
                f"looked in {self.folder}; .dockerignore may leave it out",
            )
        for path in paths:
            if not Path(os.path.realpath(path)).is_relative_to(self.folder):
                raise instruction.refuse(f"{source} leads out of the build folder", "copy it in there")
        return [Path(os.path.realpath(path)) for path in paths]

    def _tree(self, folder, into):
        for path in sorted(folder.iterdir()):
            if self.ignores(path) and not any(keep for keep, _ in self._ignored):
                continue
            if path.is_dir() and not path.is_symlink():
                (into / path.name).mkdir(exist_ok=True)
                self._tree(path, into / path.name)
                shutil.copystat(path, into / path.name)
            elif not self.ignores(path) and not stat.S_ISSOCK(path.lstat().st_mode):
                roots.copy_file(path, into / path.name)

    def ignores(self, path):
        """Tell whether `.dockerignore` leaves a path out: the last line that matches decides."""
        inside = os.path.relpath(path, self.folder)
        ignored = False
        for keep, pattern in self._ignored:
            if pattern.match(inside):
                ignored = not keep
        return ignored


def _pattern(text):
    """Return a regular expression for a line of `.dockerignore`: `*` stays in a folder, `**` does not."""
    parts = []
    for part in re.split(r"(\*\*/?|\*|\?)", text):
        parts.append({"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part)))
    return re.compile("".join(parts) + r"(?:/.*)?\Z")


def gather_from(image, instruction, sources, into):
    """Copy what each source names in an image's root into `into`; return whether it is a single file."""
    single = len(sources) == 1
    with scratch("from") as merged, roots.mounted(image.layers, None, None, merged):
        root = os.open(merged, os.O_PATH | os.O_DIRECTORY)
        try:
            for source in sources:
                try:
                    fd = inroot.open_in_root(root, source)
                except KernelError:
                    raise NotFound(
                        f"Dockerfile, line {instruction.line}: no {source} in {image.name or 'that stage'}",
                        "COPY --from takes whole paths, without * and ?",
                    ) from None
                path = f"/proc/{os.getpid()}/fd/{fd}"
                try:
                    if stat.S_ISDIR(os.stat(fd).st_mode):
                        single = False
                        roots.copy_file(f"{path}/.", into)
                    else:
                        with open(into / os.path.basename(source), "wb") as out, open(path, "rb") as file:
                            shutil.copyfileobj(file, out)
                        shutil.copystat(path, into / os.path.basename(source))
                        status = os.stat(fd)
                        os.chown(into / os.path.basename(source), status.st_uid, status.st_gid)
                finally:
                    os.close(fd)
        finally:
            os.close(root)
    return single


def find_owner(image, text):
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
    return tuple(map(int, ids))


def _find_owner(root, user, group):
    """Look names up in a root that a stranger has written: no link in it leads out, no device is opened."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount(None, str(root), None, syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_NODEV)
    os.chroot(root)
    os.chdir("/")
    uid, gid, _, _ = users.find_user(f"{user}:{group}")
    return uid, gid if group else uid


def set_owner(folder, uid, gid):
    """Give everything below a folder to one owner, keeping the modes."""
    for path, folders, files in os.walk(folder):
        for name in folders + files:
            inside = os.path.join(path, name)
            status = os.lstat(inside)
            os.chown(inside, uid, gid, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                os.chmod(inside, stat.S_IMODE(status.st_mode))  # chown has cleared setuid


def fingerprint(folder):
    """Return the digest of a gathered folder, whenever its files were written."""
    with tempfile.TemporaryFile(dir=state.lib_dir("build")) as tar:
        return diff.diff(folder, tar, clamp=0)[0]


def put(folder, root, target):
    """Put what is in a folder below `target` in the root mounted at `root`; missing folders are made."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        target_fd = inroot.make_in_root(root_fd, target)
        try:
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


def unpack_archives(folder):
    """Replace each tar in a gathered folder by what is in it, as ADD does; return whether there was one."""
    found = False
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.is_symlink():
            continue
        with scratch("add") as inside:
            try:
                layers.apply_onto(path, inside, flat=True)
            except BadArchive:
                if fnmatch.fnmatch(path.name, "*.tar") or fnmatch.fnmatch(path.name, "*.tar.*"):
                    raise
                continue  # not a tar: an ordinary file
            path.unlink()
            roots.copy_file(f"{inside}/.", folder)
            found = True
    return found
