"""A root filesystem for each container, of layers that all of them share.

    driver = roots.driver("overlay")
    rootfs = driver.prepare(image, container_id)     folders on disk, nothing mounted
    rootfs.step()                                    the mount, for the container's own namespace
    rootfs.changes()                                 what the container has changed
    driver.remove(container_id)

With overlayfs a container's root is four folders. The *lowerdirs* are the image's
layers, read-only and shared. The *upperdir* is empty at first and takes every write.
*merged* is where the container sees all of them as one. The *workdir* is the kernel's
scratch place: what is copied up is put together there, then renamed into the upperdir.

Other drivers (see the package `drivers`) reach the same root by other means; all have
the three methods above. See Documentation/filesystems/overlayfs.rst.
"""

import contextlib
import importlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from labkit.ground import ledger, state, trees
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, InUse, LabError, NotFound, Unsupported, from_oserror
from labkit.ground.typed import TYPE_CHECKING, BinaryIO, Generic, TypeVar
from labkit.isolation import mounts

if TYPE_CHECKING:  # a container's start does not wait for it
    from labkit.images.catalog import Image
    from labkit.images.diff import Change
# Said aloud, so that every machine does the same whatever its kernel was built with.
#   metacopy=off      a copy-up copies the data too: the upperdir is complete in itself
#   redirect_dir=off  a lower folder is renamed by copying: the upperdir can become a layer
#   index=off         the same upperdir may be mounted again over the same layers moved elsewhere
DEFAULT_OPTIONS = ("metacopy=off", "redirect_dir=off", "index=off")
USER_OPTIONS = ("userxattr", "index=off")  # in a user namespace; the other two are off by it

_ELSEWHERE = {
    "vfs": "labkit.storage.drivers.vfs:Vfs",
    "btrfs": "labkit.storage.drivers.btrfs:Btrfs",
    "fuse-overlayfs": "labkit.storage.drivers.fuse_overlayfs:FuseOverlayfs",
}
NAMES = ("overlay", *_ELSEWHERE)
NOTE = state.kind("lib/containers/*/rootfs.json", {"layers": [str], "diff_ids": [str], "userxattr": bool})


@dataclass(frozen=True)
class Rootfs:
    """One container's root: which folders it is made of and where it will be seen."""

    driver: str
    container_id: str
    lowerdirs: tuple[str, ...]  # the lowest first, as the image lists its layers
    upperdir: str
    workdir: str
    merged: str  # the folder it will be mounted on
    options: tuple[str, ...] = DEFAULT_OPTIONS

    def step(self) -> mounts.Overlay | mounts.BindRoot:
        """Return the mount step that shows this root at `merged`, in whatever namespace executes it."""
        links = Path(self.merged).with_name("l")
        return _overlay(self.lowerdirs, self.upperdir, self.workdir, self.merged, self.options, links)

    def changes(self) -> "list[Change]":
        """Return what the container has changed, as `docker diff` lists it: A, C or D and a path."""
        from labkit.images import diff

        return diff.changes(self.upperdir, self.lowerdirs)

    def diff(self, out: BinaryIO, compression: str | None = None) -> tuple[str, str, int]:
        """Write what the container has changed as a layer; return (diff_id, digest, size)."""
        from labkit.images import diff

        return diff.diff(self.upperdir, out, compression)

    def usage(self) -> "Usage":
        """Return the Usage of what belongs to this container alone."""
        return usage(self.upperdir)

    def tree(self) -> dict[str, str]:
        """Return {role: folder}, top to bottom: which file is where."""
        lowers = {f"lowerdir {number}": folder for number, folder in reversed([*enumerate(self.lowerdirs, 1)])}
        return {"merged": self.merged, "upperdir": self.upperdir, "workdir": self.workdir, **lowers}


def _overlay(
    lowerdirs: Sequence[str], upperdir: str, workdir: str, merged: str, options: Sequence[str], links: Path
) -> mounts.Overlay:
    # The kernel wants the topmost first. A folder that is there twice counts where it
    # is uppermost, and the kernel refuses to see it again (ELOOP).
    tops = tuple(dict.fromkeys(reversed(lowerdirs)))
    if not _needs_links((*tops, upperdir, workdir)):
        return mounts.Overlay(tops, upperdir, workdir, merged, tuple(options))
    names = {str(number): lower for number, lower in enumerate(tops)}
    lowers = tuple(names)
    names |= {"u": upperdir, "w": workdir} if upperdir else {}
    upper, work = "uw" if upperdir else ("", "")
    return LinkedOverlay(lowers, upper, work, merged, tuple(options), folder=str(links), links=tuple(names.items()))


def _needs_links(paths: Sequence[str]) -> bool:
    """Tell whether these paths don't fit in mount options.

    A `\\`, `,` or `:` in a path is read as an escape or a separator, by rules that differ from
    one kernel to the next. fsconfig(2) takes 255 bytes at a time; before Linux 6.8 all lowerdirs
    are one option of mount(2), which takes one page.
    """
    lengths = [len(os.fsencode(path)) for path in paths]
    whole = max(lengths) > 255 or not mounts.takes_lowerdirs_one_by_one()
    return (whole and sum(lengths) + len(lengths) > 3900) or any(set(path) & set("\\,:") for path in paths)


@dataclass(frozen=True)
class LinkedOverlay(mounts.Overlay):
    """An overlay whose folders are named by short links in one `folder`, as docker does: 0, 1 … u, w."""

    folder: str = ""
    links: tuple[tuple[str, str], ...] = ()  # name, where it leads

    def make_links(self) -> None:
        """Make the links; done before the mount, by whoever owns `folder`."""
        os.makedirs(self.folder, exist_ok=True)
        for name, where in self.links:
            with contextlib.suppress(FileExistsError):
                os.symlink(where, os.path.join(self.folder, name))

    def resolved(self) -> mounts.Overlay:
        """Return the same with the folders' own paths: for who mounts it elsewhere."""
        where = dict(self.links)
        lowerdirs = tuple(where[name] for name in self.lowerdirs)
        upper, work = (where.get(name, "") for name in (self.upperdir, self.workdir))
        return mounts.Overlay(lowerdirs, upper, work, self.target, self.options, self.attrs)

    def execute(self) -> None:
        """Mount it from within `folder`, where the short names mean something. See overlayfs(5)."""
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.chdir(self.folder)
            super().execute()
        finally:
            os.fchdir(here)
            os.close(here)


def driver(name: str = "overlay") -> "Driver[Rootfs]":
    """Return the storage driver of that name. Raises BadValue, Unsupported."""
    if name == "overlay":
        return Overlay()
    if name not in _ELSEWHERE:
        raise BadValue(f"there is no storage driver {name!r}", f"one of {', '.join(NAMES)}")
    module, kind = _ELSEWHERE[name].split(":")
    found: Driver[Rootfs] = getattr(importlib.import_module(module), kind)()
    found.check()
    return found


@dataclass(frozen=True)
class Stack:
    """The part of an Image that a root is made of, as a container's note has it."""

    layers: tuple[str, ...]
    diff_ids: tuple[str, ...]


R = TypeVar("R", bound=Rootfs)


class Driver(Generic[R]):
    """What every driver does: a folder for each container, in the ledger, and a note of what it stands on."""

    name = ""

    def check(self) -> None:
        """Raise Unsupported if this machine cannot run the driver."""

    def prepare(
        self, image: "Image", container_id: str, owner: ledger.Owner | None = None, userxattr: bool = False
    ) -> R:
        """Make a container's root from an image's layers; return its Rootfs. Nothing is mounted yet.

        `owner` is who answers for the folder in the ledger (this process, if None).
        Raises InUse if the container has one already; then, or on any failure,
        nothing is changed.
        """
        home = self._home(container_id)
        if home.exists():
            raise InUse(f"the container {container_id} has a root filesystem already", f"{home} holds it")
        entry = ledger.write("folder", owner=owner, path=str(home))
        try:
            home.mkdir(0o700)
            self._stand_on(image, home, userxattr)
            rootfs = self._rootfs(image, container_id, home, userxattr)
            self._make(rootfs, home)
            return rootfs
        except BaseException as error:
            self._unmake(container_id, home)
            ledger.undo(entry)
            if isinstance(error, OSError):
                raise from_oserror(error, f"making the root filesystem of {container_id}") from None
            raise

    def _stand_on(self, image: "Image", home: Path, userxattr: bool) -> None:
        """Note which layers this root stands on: from then on none of them is garbage."""
        note = {"driver": self.name, "image": image.digest, "userxattr": userxattr}
        note |= {"layers": list(image.layers), "diff_ids": list(image.diff_ids)}
        with state.lock("images", shared=True):
            for folder in image.layers:
                if not os.path.isdir(folder):
                    raise NotFound(f"the layer {folder} is not there", "the image was removed: get it again")
            # No sync: after a power cut no container is left that could need its layers.
            state.write_json(home / "rootfs.json", note, sync=False)

    def preview(self, image: "Image", container_id: str, userxattr: bool = False) -> R:
        """Return the Rootfs that `prepare` would make. Nothing is made."""
        return self._rootfs(image, container_id, self._home(container_id), userxattr)

    def get(self, container_id: str) -> R:
        """Return the Rootfs of a container that has one. Raises NotFound."""
        home = self._home(container_id)
        note = state.read(home / "rootfs.json", NOTE)
        if note is None:
            raise NotFound(f"container {container_id} has no root filesystem", "`lab ps -a` lists containers")
        image = Stack(tuple(note["layers"]), tuple(note["diff_ids"]))
        return self._rootfs(image, container_id, home, note["userxattr"])

    def remove(self, container_id: str) -> None:
        """Remove a container's root; quiet if it has none. What it changed is gone with it."""
        home = self._home(container_id)
        self._unmake(container_id, home)
        ledger.remove_tree(home)
        for entry in ledger.entries():
            if entry.kind == "folder" and entry.what.get("path") == str(home):
                ledger.strike(entry)

    def _home(self, container_id: str) -> Path:
        return state.lib_dir("containers") / state.check_name(container_id, "container id")

    def _rootfs(self, image: "Image | Stack", container_id: str, home: Path, userxattr: bool) -> R:
        raise NotImplementedError

    def _make(self, rootfs: R, home: Path) -> None:
        """Make what a Rootfs names, in the container's folder `home`."""
        raise NotImplementedError

    def _unmake(self, container_id: str, home: Path) -> None:
        """Give back what lies outside the container's folder; nothing by default."""


class Overlay(Driver[Rootfs]):
    """The kernel's overlayfs: three empty folders, whatever the image's size."""

    name = "overlay"

    def check(self) -> None:
        """Raise Unsupported if the kernel has no overlayfs."""
        if "\toverlay\n" not in Path("/proc/filesystems").read_text():
            raise Unsupported("this kernel has no overlayfs", "modprobe overlay, or --storage vfs")

    def _make(self, rootfs: Rootfs, home: Path) -> None:
        self._folders(rootfs, home)
        step = rootfs.step()
        if isinstance(step, LinkedOverlay):
            step.make_links()

    def _folders(self, rootfs: Rootfs, home: Path) -> None:
        for name in ("diff", "work", "merged"):
            (home / name).mkdir(0o755)
        if rootfs.lowerdirs == (str(home / "empty"),):
            (home / "empty").mkdir(0o755)
        # The root folder's own mode, owner and time are the upperdir's.
        if rootfs.lowerdirs:
            _like(rootfs.lowerdirs[-1], home / "diff")

    def _rootfs(self, image: "Image | Stack", container_id: str, home: Path, userxattr: bool) -> Rootfs:
        options = USER_OPTIONS if userxattr else DEFAULT_OPTIONS
        # An image without a layer (scratch) gets an empty one, which overlayfs wants.
        lowers = seen(image.layers) or (str(home / "empty"),)
        upper, work, merged = (str(home / name) for name in ("diff", "work", "merged"))
        return Rootfs(self.name, container_id, lowers, upper, work, merged, options)


def seen(layers: Sequence[str]) -> tuple[str, ...]:
    """Return those of an image's layers that are seen: one whose root is opaque hides all below it.

    Overlayfs asks each folder but the root whether it is.
    """
    if len(layers) < 2:
        return tuple(layers)
    from labkit.images import whiteouts

    hides = (at for at in range(len(layers) - 1, 0, -1) if whiteouts.is_opaque(layers[at]))
    return tuple(layers[next(hides, 0) :])


def _like(source: str, folder: Path) -> None:
    status = os.stat(source)
    os.chown(folder, status.st_uid, status.st_gid)
    os.chmod(folder, stat.S_IMODE(status.st_mode))
    os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))


# For the chapters: an overlay by hand, and what it costs


def place(name: str) -> Path:
    """Make an empty folder for a chapter's own experiments; it is in the ledger. Return its Path."""
    state.check_name(name)
    folder = state.lib_dir("chapters") / name
    ledger.write("folder", path=str(folder))
    ledger.remove_tree(folder)
    folder.mkdir()
    return folder


Folders = str | Path | Sequence[str | Path]


def mount(
    lowerdirs: Folders,
    upperdir: str | Path | None,
    workdir: str | Path | None,
    merged: str | Path,
    options: Sequence[str] = DEFAULT_OPTIONS,
) -> None:
    """Mount an overlay on the host at `merged`, until `unmount` or the ledger takes it away.

    `lowerdirs` are in the order of an image's layers, the lowest first. With upperdir
    and workdir None it is read-only. The mount is in the ledger, and made in a child.
    Raises KernelError, NotFound for a folder that is not there.
    """
    from labkit.ground import child

    lowers = [lowerdirs] if isinstance(lowerdirs, str | Path) else list(lowerdirs)
    for folder in (*lowers, *(one for one in (upperdir, workdir) if one), merged):
        if not os.path.isdir(folder):
            raise NotFound(f"there is no folder {folder}", "overlayfs stacks folders that exist: make it first")
    if not upperdir:  # without an upperdir the kernel wants two lowerdirs: empty ones below change nothing
        missing = range(max(0, 2 - len(lowers)))
        lowers = [*(state.run_dir("empty", str(number)) for number in missing), *lowers]
    absolute = [os.path.realpath(folder) for folder in lowers]
    upper, work = (os.path.realpath(folder) if folder else "" for folder in (upperdir, workdir))
    target = os.path.realpath(merged)
    links = _links_for(target)
    step = _overlay(absolute, upper, work, target, options, links)
    if isinstance(step, LinkedOverlay):
        ledger.write("folder", path=str(links))
        step.make_links()
    ledger.write("mount", target=target)
    try:
        child.in_child(step.execute)
    except LabError:
        unmount(target)
        raise


def unmount(merged: str | Path) -> None:
    """Take away what `mount` put on `merged`; quiet if there is nothing."""
    target = os.path.realpath(merged)
    ours = (("mount", {"target": target}), ("folder", {"path": str(_links_for(target))}))
    for entry in reversed(ledger.entries()):
        if (entry.kind, entry.what) in ours:
            ledger.undo(entry)


def _links_for(merged: str) -> Path:
    import hashlib

    return state.run_dir("links") / hashlib.sha256(os.fsencode(merged)).hexdigest()[:16]


@contextlib.contextmanager
def mounted(
    lowerdirs: Folders,
    upperdir: str | Path | None,
    workdir: str | Path | None,
    merged: str | Path,
    options: Sequence[str] = DEFAULT_OPTIONS,
) -> Iterator[Path]:
    """Mount an overlay for the block; yield `merged` as a Path. What it takes and raises: see `mount`."""
    mount(lowerdirs, upperdir, workdir, merged, options)
    try:
        yield Path(os.path.realpath(merged))
    finally:
        unmount(merged)


@dataclass(frozen=True)
class Usage:
    """What a folder takes: its files, what they say they hold, and what the disk gave them."""

    files: int  # inodes that are not folders; a hard link counts once
    apparent: int  # bytes, by st_size
    allocated: int  # bytes of disk, by st_blocks; holes take none

    def __repr__(self) -> str:
        return f"<{self.files} files, {self.apparent} bytes, {self.allocated} on disk>"


def usage(folder: str | Path) -> Usage:
    """Return the Usage of a folder's files; the folders themselves are not counted."""
    seen: set[tuple[int, int]] = set()
    apparent = allocated = 0
    try:
        for fd, entries in trees.walk(folder):
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    continue
                status = os.stat(entry.name, dir_fd=fd, follow_symlinks=False)
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    apparent += status.st_size if stat.S_ISREG(status.st_mode) else 0
                    allocated += status.st_blocks * 512
    except OSError as error:
        raise from_oserror(error, "measuring a folder") from None
    return Usage(len(seen), apparent, allocated)


def copy_tree(source: str | Path, target: str | Path) -> None:
    """Copy what is in a folder with owners, times, xattrs, hard links and holes, by cp(1)."""
    import shutil

    _cp(f"{source}/.", target)
    shutil.copystat(source, target)


def copy_file(source: str | Path, target: str | Path, follow: bool = False) -> None:
    """Copy one file, link or device with all that is said of it, by cp(1); with `follow` what a link leads to."""
    _cp(source, target, *(["-L"] if follow else []))


def _cp(source: str | Path, target: str | Path, *flags: str) -> None:
    import subprocess

    # --reflink=never: a copy is a copy, also where the file system could share blocks.
    command = ["cp", "-a", *flags, "--sparse=auto", "--reflink=never", "-T", str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"copying {source} to {target} failed: {done.stderr.strip()[:300]}", "df -h: is there room?")
