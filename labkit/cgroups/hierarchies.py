"""Where the cgroup trees of this machine are mounted, and which controller lives in which.

A cgroup is a folder; a controller (cpu, memory, pids, …) counts and limits what
the processes in a folder use. Two versions of the idea are in use:

    v1   a tree for every controller, each mounted apart; a process sits at one
         place in each, and the places need not agree
    v2   one tree, one place a process; a folder hands controllers down to its
         children by cgroup.subtree_control

A controller is in one tree at a time. So a machine may be pure v1, pure v2, or
hybrid: v1 trees that have the controllers, and a v2 tree beside them that has
none, but whose cgroup.kill, cgroup.freeze and pressure files work. Hence nothing
here asks "is this v1 or v2?" of the machine: it asks for each controller.
See cgroups(7), Documentation/admin-guide/cgroup-v1/, Documentation/admin-guide/cgroup-v2.rst.
"""

import errno
import functools
import os
from collections.abc import Iterable
from pathlib import Path

from labkit.ground import proc, state
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import KernelError, Unsupported

# The controllers that labkit uses, by v2's names. v1 says blkio for io, and has
# three that v2 folded into its core: cpuacct, freezer, devices.
CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "io", "cpuacct", "devices", "freezer")
_V1_NAME = {"io": "blkio"}
_V2_NAME = {"blkio": "io"}


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup tree."""

    version: int
    mount: Path
    own: Path  # the folder below which labkit makes its own
    controllers: tuple[str, ...]  # by v2's names

    def offered(self) -> list[str]:
        """Return all controllers of a v2 tree, also those that labkit has no use for by itself."""
        return proc.read(f"{self.mount}/cgroup.controllers").split()

    def __repr__(self) -> str:
        return f"<cgroup v{self.version} on {self.mount}: {' '.join(self.controllers) or 'no controller'}>"


def hierarchies() -> list[Hierarchy]:
    """Return every Hierarchy that this process can reach, v2's last. Raise Unsupported if there is none."""
    places = proc.cgroups()
    found = [
        _v1(mount, names, places[names[0]]) if names else _v2(mount) for mount, names in _chosen(proc.mounts(), places)
    ]
    if not found:
        raise Unsupported(
            "no cgroup tree is mounted: /proc/self/mountinfo has neither cgroup nor cgroup2",
            "mount -t cgroup2 none /sys/fs/cgroup",
        )
    return sorted(found, key=lambda tree: tree.version)


def _chosen(mounts: Iterable[proc.Mount], places: dict[str, str]) -> Iterable[tuple[proc.Mount, tuple[str, ...]]]:
    """Return the mount of each tree, and its names, () for v2's.

    Somebody may have mounted a tree, or a part of it, a second time: for a chroot, or for a container without a
    mount namespace. What is mounted over the first one hides it. Elsewhere it has to show more.
    """
    found: dict[str, tuple[proc.Mount, tuple[str, ...]]] = {}
    for mount in mounts:
        names = tuple(name for name in mount.super_options if name in places and name) if mount.type == "cgroup" else ()
        if not names and mount.type != "cgroup2":
            continue
        key = names[0] if names else ""
        other = found[key][0] if key in found else None
        if other is None or mount.target == other.target or _rank(mount, places, key) > _rank(other, places, key):
            found[key] = (mount, names)
    return found.values()


def _rank(mount: proc.Mount, places: dict[str, str], key: str) -> tuple[bool, bool]:
    """Return how good a mount of a tree is: whether it shows the place of this process, and can be written."""
    return not os.path.relpath(places.get(key, "/"), mount.root).startswith(".."), "rw" in mount.options


def _v2(mount: proc.Mount) -> Hierarchy:
    # Not below our own place: a v2 folder with processes in it, as ours
    # is, can't hand controllers to children. So it is made at the root.
    controllers = proc.read(f"{mount.target}/cgroup.controllers").split()
    return Hierarchy(2, Path(mount.target), Path(mount.target), _known(controllers))


# Looked at anew each time; but what looks the same is the same.
@functools.lru_cache(64)
def _v1(mount: proc.Mount, names: tuple[str, ...], place: str) -> Hierarchy:
    return Hierarchy(1, Path(mount.target), _own(mount, place), _known(names))


def _known(names: Iterable[str]) -> tuple[str, ...]:
    here = {_V2_NAME.get(name, name) for name in names}
    return tuple(name for name in CONTROLLERS if name in here)


def _own(mount: proc.Mount, place: str) -> Path:
    """Return the folder of this process in a v1 tree, of which perhaps only a part is mounted."""
    inside = os.path.relpath(place, mount.root)
    return Path(mount.target) if inside.startswith("..") else Path(mount.target, inside)


def home(controller: str) -> Hierarchy:
    """Return the Hierarchy that a controller lives in. Raise Unsupported if it is in none."""
    controller = _V2_NAME.get(controller, controller)
    for tree in hierarchies():
        if controller in tree.controllers:
            return tree
    raise Unsupported(
        f"this machine has no {_V1_NAME.get(controller, controller)} controller mounted (v1), "
        f"nor {controller} in the v2 tree's cgroup.controllers",
        "/proc/cgroups lists what the kernel was built with",
    )


def unified() -> Hierarchy | None:
    """Return the v2 Hierarchy, or None where there is none."""
    return next((tree for tree in hierarchies() if tree.version == 2), None)


def enable(tree: Hierarchy, folder: Path, controllers: Iterable[str] | None = None) -> None:
    """Hand controllers of a v2 tree, by default all it names, down to the children of `folder`.

    Every folder from the root down has to agree, so cgroup.subtree_control of
    folders that labkit did not make is added to where one is missing: the one
    place where labkit touches what is not its own, and it takes nothing away.
    """
    inside = folder.relative_to(tree.mount).parts
    for depth in range(len(inside) + 1):
        file = tree.mount.joinpath(*inside[:depth], "cgroup.subtree_control")
        enabled = proc.read_plain(file).split()
        wanted = tree.controllers if controllers is None else controllers
        if missing := [f"+{name}" for name in wanted if name not in enabled]:
            _write_all(file, " ".join(missing))


def _write_all(file: Path, text: str) -> None:
    """Enable several controllers in one write: all of them or none.

    One by one would be worse than slow: cpu and pids may be enabled above
    processes, and turn the folder into the root of a threaded subtree before
    memory is refused.
    """
    try:
        proc.write_plain(file, text)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            # The folder was removed before it was opened, or after: the caller makes it again.
            raise
        hint = f"a v2 folder that has processes in it can't hand controllers down: move them out of {file.parent}"
        if os.path.ismount(file.parent):  # the machine's own root may have processes, a container's may not
            hint = (
                "this container's cgroup root has processes in it, and can't hand controllers down: "
                f"`{state.REPO}/vagrant/seat/entry true` moves them into a child of it"
            )
        raise KernelError(f"writing {text!r}", error.errno, file, hint) from None
