"""Folders that outlive containers, and that several can share.

A container's own writes are in its upperdir and go with it. A volume is an ordinary
folder of the host, bound over a folder of the container's root: what is written there
never meets overlayfs. So a first write copies nothing up, two containers see each
other's files at once, and `lab rm` leaves it alone.

    volumes.create("data")       /var/lib/labkit/volumes/data/_data
    Container(…, volumes=["data:/var/lib/app", "/srv/in:/in:ro"])

A *named* volume is made on first use and filled from the image, as docker does: what
the image has at that place would else vanish under the mount. An *anonymous* one has
an id for a name: for `-v TARGET`, and for each VOLUME of an image. It goes with its
container. See mount(2), MS_BIND.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from labkit.ground import child, ledger, proc, state, syscalls
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import InUse, KernelError, LabError, NotFound, from_oserror
from labkit.isolation import inroot, mounts
from labkit.storage import roots


@dataclass(frozen=True)
class Volume:
    """A named volume: its name and where its files are."""

    name: str
    path: str

    def __repr__(self) -> str:
        return f"<volume {self.name} at {self.path}>"

    def usage(self) -> roots.Usage:
        """Return the Usage of what is in it."""
        return roots.usage(self.path)


def create(name: str) -> Volume:
    """Make a named volume, or find the one there is; return it. Raises BadValue."""
    state.check_name(name, "volume name")
    data = folder(name)
    home = data.parent
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        if not data.exists():
            scratch = home / f".{state.new_id()}.tmp"
            scratch.mkdir()
            scratch.chmod(0o755)
            _take_name(scratch, data)
    except OSError as error:
        raise from_oserror(error, f"making the volume {name}") from None
    return Volume(name, str(data))


def _take_name(scratch: Path, data: Path) -> None:
    try:
        scratch.rename(data)
    except OSError:  # somebody else was first
        scratch.rmdir()
        if not data.is_dir():
            raise


def get(name: str) -> Volume:
    """Return the Volume of that name. Raises NotFound with the names there are."""
    state.check_name(name, "volume name")
    data = folder(name)
    if not data.is_dir():
        there = ", ".join(volume.name for volume in all()) or "none"
        raise NotFound(f"there is no volume {name}", f"here: {there}; a container that names one makes it")
    return Volume(name, str(data))


def path(name: str) -> Path:
    """Return the folder of a named volume, made if there is none."""
    return Path(create(name).path)


def folder(name: str) -> Path:
    """Return where a named volume's files are, or would be."""
    return _home() / name / "_data"


def all() -> list[Volume]:
    """Return every named Volume, by name."""
    return [Volume(home.name, str(home / "_data")) for home in sorted(_home().iterdir()) if (home / "_data").is_dir()]


def fill(name: str, rootfs_fd: int, target: str) -> bool:
    """Copy into an empty volume what the folder open as `rootfs_fd` has at `target`, as docker does.

    The path is walked inside that root; a symlink there can't lead outside. A volume
    with anything in it is left as it is. Returns whether something was copied.
    """
    data = Path(create(name).path)
    if any(data.iterdir()):
        return False
    try:
        fd = inroot.open_in_root(rootfs_fd, target, os.O_RDONLY | os.O_DIRECTORY)
    except KernelError:
        return False  # the image has no such folder: nothing to hide
    scratch = data.with_name(f".{state.new_id()}.tmp")
    try:
        with ledger.made("folder", path=str(scratch)):
            scratch.mkdir()
            roots.copy_tree(f"/proc/{os.getpid()}/fd/{fd}", scratch)
            os.rename(scratch, data)  # over the empty folder: all of the files at once, or none
    except OSError as error:
        raise from_oserror(error, f"filling the volume {name}") from None
    finally:
        os.close(fd)
    return True


def fill_from(root_step: mounts.Overlay | mounts.BindRoot, wanted: Iterable[tuple[str, str]]) -> None:
    """Fill empty volumes, [(name, target)], from the root that a mount step shows. Done in a child.

    Raises KernelError if the root can't be mounted.
    """
    empty = [(name, target) for name, target in wanted if not any(Path(path(name)).iterdir())]
    if empty:
        child.in_child(_fill_all, root_step, empty)


def _fill_all(root_step: mounts.Overlay | mounts.BindRoot, empty: Sequence[tuple[str, str]]) -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    mounts.make_private()
    root_step.execute()
    root = os.open(root_step.target, os.O_PATH | os.O_DIRECTORY)
    for name, target in empty:
        fill(name, root, target)


def remove(name: str) -> None:
    """Remove a named volume with all in it. Raises NotFound, or InUse while it is mounted anywhere."""
    volume = get(name)
    user = user_of(volume)
    if user is not None:
        raise InUse(f"the volume {name} is in use by process {user}", "stop its container: `lab ps`, `lab stop`")
    home = _home() / name
    # Its name goes first, in one step: a volume is there whole, or not at all.
    doomed = home.with_name(f".{name}.{state.new_id()}.removed")
    entry = ledger.write("folder", path=str(doomed))
    home.rename(doomed)
    ledger.undo(entry)


def user_of(volume: Volume) -> int | None:
    """Return the id of a process that has the volume's folder mounted, or None.

    Every mount namespace is looked at: containers' mounts are not in ours.
    """
    home = proc.on_its_filesystem(volume.path)
    seen = set()
    for pid in proc.pids():
        try:
            namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if namespace in seen:
                continue
            seen.add(namespace)
            if any(_shows(mount, *home) for mount in proc.mounts(pid)):
                return pid
        except (OSError, LabError):
            continue  # it has ended
    return None


def _shows(mount: proc.Mount, device: str, path: str) -> bool:
    return mount.device == device and f"{mount.root}/".startswith(f"{path}/")


def _home() -> Path:
    return state.lib_dir("volumes")
