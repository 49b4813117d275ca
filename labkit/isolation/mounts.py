"""A root filesystem of its own, as a plan: a list of mount steps, read first, then done.

What a container sees is what its mount namespace holds. Each step below is one
thing put in place: a frozen dataclass that can say itself (`describe`) and do
itself (`execute`). A plan is made and checked in the parent; the child only
walks it:

    the root                an overlay, or a folder bound onto itself
    the mounts in it        parents before children
    masks and read-only     after what they cover

Before it the namespace is made private, or our mounts would show up on the host;
after it comes pivot_root: the old root goes, and with it every way back.

No step ever hands the kernel a path inside the image: `inroot` opens the target as
an fd that no link can lead out of the root, and the mount is attached to that fd by
move_mount(2). See mount_namespaces(7), pivot_root(2).
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from labkit.ground import syscalls as sc
from labkit.ground.dataclass import dataclass, replace
from labkit.ground.errors import BadValue, KernelError, from_oserror
from labkit.ground.typed import Any, Protocol
from labkit.isolation.inroot import make_in_root, open_in_root

NOSUID, NODEV, NOEXEC = sc.MOUNT_ATTR_NOSUID, sc.MOUNT_ATTR_NODEV, sc.MOUNT_ATTR_NOEXEC
RDONLY = sc.MOUNT_ATTR_RDONLY
_ATTR_NAMES = {RDONLY: "ro", NOSUID: "nosuid", NODEV: "nodev", NOEXEC: "noexec"}


def _options(attrs: int) -> str:
    names = [name for bit, name in _ATTR_NAMES.items() if attrs & bit]
    return f" ({','.join(names)})" if names else ""


# ---- mounts that are nowhere yet ----


def attach(mount_fd: int, target_fd: int) -> None:
    """Attach a mount that is nowhere yet to the folder or file behind an fd. See move_mount(2)."""
    try:
        sc.move_mount(mount_fd, "", target_fd, "", sc.MOVE_MOUNT_F_EMPTY_PATH | sc.MOVE_MOUNT_T_EMPTY_PATH)
    except KernelError as error:
        what, onto = ("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file" for fd in (mount_fd, target_fd))
        if what == onto:
            raise
        # EINVAL here, where mount(2) says ENOTDIR: by that word Docker knows what it has to explain.
        hint = f"there is a {onto}, and a {what} to go onto it: only like goes onto like"
        raise KernelError(error.call, errno.ENOTDIR, error.on, hint) from None


def new_filesystem(kind: str, source: str | None = None, options: Iterable[str] = (), attrs: int = 0) -> int:
    """Make a filesystem; return its mount as an fd, attached nowhere. See fsopen(2), fsmount(2)."""
    context = sc.fsopen(kind)
    try:
        if source:
            sc.fsconfig(context, sc.FSCONFIG_SET_STRING, "source", source)
        for option in options:
            key, equals, value = option.partition("=")
            command = sc.FSCONFIG_SET_STRING if equals else sc.FSCONFIG_SET_FLAG
            sc.fsconfig(context, command, key, value if equals else None)
        sc.fsconfig(context, sc.FSCONFIG_CMD_CREATE)
        return sc.fsmount(context, sc.FSMOUNT_CLOEXEC, attrs)
    except KernelError as error:
        error.message += _kernel_log(context)
        raise
    finally:
        os.close(context)


def _kernel_log(context: int) -> str:
    """Return what the filesystem itself says went wrong; fsopen(2) fds hold such a log."""
    try:
        return ": " + os.read(context, 4096).decode(errors="replace").strip().partition(" ")[2]
    except OSError:
        return ""


def clone_tree(path: str | Path, dirfd: int = sc.AT_FDCWD, attrs: int = 0, recursive: bool = True) -> int:
    """Return a private copy of the mount at `path` as an fd: a bind mount not yet placed. See open_tree(2)."""
    flags = sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | (sc.AT_RECURSIVE if recursive else 0)
    flags |= 0 if path else sc.AT_EMPTY_PATH
    tree = sc.open_tree(dirfd, path, flags)
    try:
        which = sc.AT_EMPTY_PATH | (sc.AT_RECURSIVE if recursive else 0)
        sc.mount_setattr(tree, "", which, attr_set=attrs, propagation=sc.MS_PRIVATE)
    except KernelError:
        os.close(tree)
        raise
    return tree


def _place(mount_fd: int, root: int, target: str, folder: bool = True, follow: bool = False) -> None:
    try:
        target_fd = make_in_root(root, target, folder, follow)
        try:
            attach(mount_fd, target_fd)
        finally:
            os.close(target_fd)
    finally:
        os.close(mount_fd)


# ---- the steps ----


class MountStep(Protocol):
    """One thing put in place below the root that the fd `root` stands for."""

    def describe(self) -> str: ...  # noqa: D102

    def execute(self, root: int) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Overlay:
    """The root: read-only lowerdirs (the topmost first) under one writable upperdir."""

    lowerdirs: tuple[str, ...]
    upperdir: str
    workdir: str
    target: str
    options: tuple[str, ...] = ()
    # nodev: a container may have CAP_MKNOD, but a disk it makes a node for stays shut.
    attrs: int = NODEV

    def describe(self) -> str:
        layers = f"{len(self.lowerdirs)} lowerdir(s) and a writable upperdir"
        return f"mount overlay of {layers} as the root{_options(self.attrs)}"

    def resolved(self) -> "Overlay":
        """Return the same with the folders' own paths."""
        return self

    def execute(self) -> None:
        """Mount it at the host path `target`, in this mount namespace only. See overlayfs(5)."""
        if not takes_lowerdirs_one_by_one():
            self._by_option_string()
            return
        tree = self._by_fsconfig()
        try:
            sc.move_mount(tree, "", sc.AT_FDCWD, self.target, sc.MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)

    def _by_fsconfig(self) -> int:
        options = [f"lowerdir+={lower}" for lower in self.lowerdirs]
        if self.upperdir:
            options += [f"upperdir={self.upperdir}", f"workdir={self.workdir}"]
        return new_filesystem("overlay", "overlay", (*options, *self.options), self.attrs)

    def _by_option_string(self) -> None:
        data = "lowerdir=" + ":".join(_escape(lower, ":,\\") for lower in self.lowerdirs)
        if self.upperdir:
            data += f",upperdir={_escape(self.upperdir, ',')},workdir={_escape(self.workdir, ',')}"
        data = ",".join((data, *self.options))
        if len(data) >= os.sysconf("SC_PAGE_SIZE"):
            raise BadValue(
                f"{len(self.lowerdirs)} lowerdirs need {len(data)} bytes of mount options; this kernel takes one page",
                "Linux 6.8 or later takes them one by one",
            )
        flags = sum(
            flag
            for attr, flag in ((NODEV, sc.MS_NODEV), (NOSUID, sc.MS_NOSUID), (RDONLY, sc.MS_RDONLY))
            if self.attrs & attr
        )
        sc.mount("overlay", self.target, "overlay", flags, data)


def takes_lowerdirs_one_by_one() -> bool:
    """Tell whether overlayfs knows `lowerdir+`. Not found out by trying: a refusal is a line in the kernel's log."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(re.sub(r"\D.*", "", minor) or 0)) >= (6, 8)


def _escape(text: str, special: str) -> str:
    return "".join("\\" + letter if letter in special else letter for letter in str(text))


@dataclass(frozen=True)
class BindRoot:
    """The root: a folder as it is, bound onto itself because pivot_root wants a mount."""

    source: str
    target: str
    attrs: int = NODEV

    def describe(self) -> str:
        return f"bind {self.source} as the root{_options(self.attrs)}"

    def execute(self) -> None:
        """Bind `source` to the host path `target`, in this mount namespace only."""
        tree = clone_tree(self.source, attrs=self.attrs)
        try:
            sc.move_mount(tree, "", sc.AT_FDCWD, self.target, sc.MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)


@dataclass(frozen=True)
class HandedRoot:
    """The root: a mount that the parent made and handed over as an fd."""

    mount_fd: int
    target: str = "/tmp"  # some folder that everybody can reach; pivot_root leaves it behind

    def describe(self) -> str:
        return "attach the root that was handed over"

    def execute(self) -> None:
        """Attach it, in this mount namespace only."""
        sc.move_mount(self.mount_fd, "", sc.AT_FDCWD, self.target, sc.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(self.mount_fd)


Root = Overlay | BindRoot | HandedRoot


@dataclass(frozen=True)
class Filesystem:
    """A new instance of a kernel filesystem: proc, tmpfs, devpts, mqueue, sysfs, cgroup …"""

    kind: str
    target: str
    options: tuple[str, ...] = ()
    attrs: int = NOSUID | NODEV | NOEXEC

    def describe(self) -> str:
        extra = f" with {','.join(self.options)}" if self.options else ""
        return f"mount {self.kind} on {self.target}{extra}{_options(self.attrs)}"

    def execute(self, root: int) -> None:
        _place(new_filesystem(self.kind, self.kind, self.options, self.attrs), root, self.target)


@dataclass(frozen=True)
class Bind:
    """A folder or file of the host, put into the container: a volume, a device, /etc/hosts."""

    source: str
    target: str
    attrs: int = 0
    recursive: bool = True
    follow: bool = False  # a volume's target may go through the image's links, inside the root
    tree: int | None = None  # the source as an fd, if it was taken before

    def describe(self) -> str:
        return f"bind {self.source} to {self.target}{_options(self.attrs)}"

    def execute(self, root: int) -> None:
        tree = clone_tree(self.source, attrs=self.attrs, recursive=self.recursive) if self.tree is None else self.tree
        folder = stat.S_ISDIR(os.fstat(tree).st_mode)
        _place(tree, root, self.target, folder, self.follow)

    def gathered(self) -> "Bind":
        """Return the step with its source already taken."""
        return replace(self, tree=clone_tree(self.source, attrs=self.attrs, recursive=self.recursive))


@dataclass(frozen=True)
class Symlink:
    """A symbolic link, as /dev has for fd and stdout."""

    text: str
    target: str

    def describe(self) -> str:
        return f"link {self.target} to {self.text}"

    def execute(self, root: int) -> None:
        parent = open_in_root(root, os.path.dirname(self.target), follow=False)
        try:
            os.symlink(self.text, os.path.basename(self.target), dir_fd=parent)
        except FileExistsError:
            pass  # the image's own, or the host's /dev: it is as good
        except OSError as error:
            raise from_oserror(error, f"linking {self.target}") from None
        finally:
            os.close(parent)


@dataclass(frozen=True)
class Mask:
    """A path of /proc or /sys that tells or changes too much: covered by nothing."""

    target: str

    def describe(self) -> str:
        return f"mask {self.target}"

    def execute(self, root: int) -> None:
        target = _open_if_there(root, self.target)
        if target is None:
            return
        try:
            if stat.S_ISDIR(os.fstat(target).st_mode):
                cover = new_filesystem("tmpfs", "tmpfs", ("size=0",), RDONLY | NOSUID | NODEV | NOEXEC)
            else:
                cover = clone_tree("/dev/null", recursive=False)
            try:
                attach(cover, target)
            finally:
                os.close(cover)
        finally:
            os.close(target)


@dataclass(frozen=True)
class ReadOnly:
    """A path that may be read and not written: a bind of itself onto itself, read-only."""

    target: str

    def describe(self) -> str:
        return f"make {self.target} read-only"

    def execute(self, root: int) -> None:
        target = _open_if_there(root, self.target)
        if target is None:
            return
        try:
            tree = clone_tree("", target, RDONLY)
            try:
                attach(tree, target)
            finally:
                os.close(tree)
        finally:
            os.close(target)


@dataclass(frozen=True)
class Place:
    """A folder or an empty file that is there before what it is in is sealed; that it can't be made is told later."""

    target: str
    folder: bool = True

    def describe(self) -> str:
        return f"make {self.target}, if it is missing"

    def execute(self, root: int) -> None:
        with contextlib.suppress(KernelError, BadValue):
            os.close(make_in_root(root, self.target, self.folder, follow=True))


@dataclass(frozen=True)
class Seal:
    """A mount made read-only as it stands; the mounts in it stay as they are."""

    target: str = "/"
    follow: bool = False

    def describe(self) -> str:
        return f"make the mount at {self.target} read-only"

    def execute(self, root: int) -> None:
        mount_fd = open_in_root(root, self.target, follow=self.follow)
        try:
            sc.mount_setattr(mount_fd, "", sc.AT_EMPTY_PATH, attr_set=RDONLY)
        finally:
            os.close(mount_fd)


def _open_if_there(root: int, path: str) -> int | None:
    try:
        return open_in_root(root, path, follow=False)
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


# ---- the plan ----


@dataclass(frozen=True)
class Plan:
    """A root step and the steps in it, in the order they will be done."""

    root: Root
    steps: tuple[MountStep, ...] = ()

    def sorted(self) -> "Plan":
        """Return the plan with mounts parents first, then what covers them."""
        rank = {Mask: 1, ReadOnly: 1, Seal: 2}
        return replace(
            self,
            steps=tuple(
                sorted(
                    self.steps,
                    key=lambda step: (
                        rank.get(type(step), 0),
                        getattr(step, "target", "/").rstrip("/").count("/"),
                    ),
                )
            ),
        )

    @contextlib.contextmanager
    def gathered(self) -> Iterator["Plan"]:
        """Yield the plan with the sources of its binds taken, by the power that the caller has.

        A process in a user namespace of its own has none over the folders that lead to them.
        """
        with contextlib.ExitStack() as stack:
            steps = []
            for step in self.steps:
                if hasattr(step, "gathered"):
                    step = step.gathered()
                    for fd in (step.tree, getattr(step, "users", None)):
                        if fd is not None:
                            stack.callback(os.close, fd)
                steps.append(step)
            yield replace(self, steps=tuple(steps))

    def describe(self) -> list[str]:
        """Return one line a step."""
        return [step.describe() for step in (self.root, *self.steps)]

    def execute(self) -> int:
        """Do it all, in the calling process, which must be alone in a new mount namespace; return the root as an fd."""
        _do(self.root)
        root = os.open(self.root.target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.go_on(root)
        return root

    def go_on(self, root: int) -> None:
        """Do the steps in a root that is there."""
        for step in self.steps:
            _do(step, root)


def _do(step: Any, *arguments: int) -> None:
    try:
        step.execute(*arguments)
    except KernelError as error:
        error.message = f"can't {step.describe()}: {error.message}"
        raise


def make_private() -> None:
    """Cut this mount namespace off from its parent's peer groups. See mount_namespaces(7)."""
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)


def pivot(root: int) -> None:
    """Make the mount behind the fd `root` this namespace's root and drop the old one.

    pivot_root(".", ".") puts the old root on top of the new one, at the same place;
    unmounting "." then takes the old one off. No folder in the image is needed to
    put it in. See pivot_root(2), section NOTES.
    """
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchdir(root)
        sc.pivot_root(".", ".")
        os.fchdir(old)
        # Where its mounts are shared, taking them away here would take them from the host.
        sc.mount(None, ".", None, sc.MS_REC | sc.MS_SLAVE)
        sc.umount2(".", sc.MNT_DETACH)
        os.chdir("/")
    finally:
        os.close(old)
