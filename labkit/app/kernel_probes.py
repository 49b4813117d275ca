"""What `lab doctor` tries of the kernel: namespaces, filesystems, syscalls, links."""

import errno
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from labkit.app.probing import probe, run
from labkit.ground import proc, state, syscalls
from labkit.ground.child import in_child
from labkit.ground.errors import LabError, Unsupported
from labkit.isolation import namespaces, security

# ---- namespaces --------------------------------------------------------------

_LOST_NAMESPACE = {
    "mnt": "02, 03, 06, 12: no root filesystem of its own",
    "pid": "02, 12: no PID 1",
    "uts": "01, 12: no host name of its own",
    "ipc": "01, 12: no shared memory of its own",
    "net": "01, 10, 12: no network of its own",
    "user": "02, 11: no uid remapping",
    "cgroup": "01: a container sees where it is in the host's cgroup tree",
    "time": "01: no clock offsets",
}


def _in_new(flags: int, function: Callable[[], object] = lambda: "") -> object:
    """Call `function` in a child with new namespaces, no mount of which reaches anybody."""

    def work() -> object:
        syscalls.unshare(flags)
        if flags & syscalls.CLONE_NEWUSER:
            namespaces.map_ids("self", [(0, 0, 1)], [(0, 0, 1)])
        if flags & syscalls.CLONE_NEWNS:
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        return function()

    return in_child(work)


for _kind, (_flag, _) in namespaces.KINDS.items():
    probe(
        f"{_kind} namespace",
        "namespace",
        _LOST_NAMESPACE[_kind],
        vital=_kind in ("mnt", "pid", "uts", "ipc", "net"),
        look=functools.partial(_in_new, _flag),
    )


@probe("unprivileged user namespace", "namespace", "11: no container without root")
def _probe_unprivileged() -> object:
    def work() -> object:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        # Having changed uid, a process does not own its own /proc files any more.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text("0 65534 1")
        # Some distributions give the namespace but no power in it: use some.
        syscalls.mount("tmpfs", "/tmp", "tmpfs", 0)
        return "nobody is root in it"

    try:
        return in_child(work)
    except LabError as error:
        if refusal := namespaces.refusal():
            raise Unsupported("; ".join((error.message, *refusal))) from None
        raise


# ---- filesystems -------------------------------------------------------------


def _overlay(options: str, extra_flags: int = 0, function: Callable[[str], object] = lambda folder: "") -> object:
    """Mount an overlay in a folder of labkit's own, in a child; return what `function` says."""
    with tempfile.TemporaryDirectory(dir=state.lib_dir(), prefix="doctor-") as folder:
        paths = {name: Path(folder, name) for name in ("lower", "upper", "work", "merged")}
        for path in paths.values():
            path.mkdir()
        (paths["lower"] / "file").write_text("below")

        def work() -> object:
            layers = "lowerdir={lower},upperdir={upper},workdir={work}".format(**paths)
            syscalls.mount("overlay", paths["merged"], "overlay", 0, layers + options)
            return function(folder)

        return _in_new(syscalls.CLONE_NEWNS | extra_flags, work)


@probe(
    "overlay",
    "filesystem",
    "06, 07, 08, 12: no shared layers; full copies (the vfs driver) instead",
    vital=True,
)
def _probe_overlay() -> object:
    def write(folder: str) -> object:
        Path(folder, "merged", "file").write_text("above")
        return f"below {state.lib_dir()}" if Path(folder, "lower", "file").read_text() == "below" else ""

    return _overlay("", function=write)


@probe("overlay in a user namespace", "filesystem", "08, 11: no layers for a container without root")
def _probe_overlay_in_a_user_namespace() -> object:
    return _overlay(",userxattr", syscalls.CLONE_NEWUSER)


@probe("overlay metacopy", "filesystem", "07: chmod copies the whole file up")
def _probe_overlay_metacopy() -> object:
    def chmod(folder: str) -> object:
        os.chmod(Path(folder, "merged", "file"), 0o600)
        os.getxattr(Path(folder, "upper", "file"), "trusted.overlay.metacopy")
        return "chmod copies no data"

    return _overlay(",metacopy=on", function=chmod)


@probe("fuse", "filesystem", "08: no fuse-overlayfs")
def _probe_fuse() -> None:
    os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))


def _kernel_has(filesystem: str) -> None:
    """Ask for a mount of something that is no disk: only a kernel that knows the filesystem minds."""
    try:
        _in_new(syscalls.CLONE_NEWNS, lambda: syscalls.mount("/dev/null", "/tmp", filesystem, 0))
    except LabError as error:
        if getattr(error, "errno", None) != errno.ENOTBLK:
            raise


probe("btrfs", "filesystem", "08: no btrfs driver", look=functools.partial(_kernel_has, "btrfs"))
probe("xfs", "filesystem", "08: no comparison with xfs", look=functools.partial(_kernel_has, "xfs"))


@probe("loop devices", "filesystem", "05, 08: no disk of its own for a limit or a driver")
def _probe_loop_devices() -> None:
    os.close(os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC))


# ---- syscalls ----------------------------------------------------------------


@probe("openat2", "syscall", "03: a path can be led out of a root by a link while it is walked")
def _probe_openat2() -> None:
    os.close(syscalls.openat2(syscalls.AT_FDCWD, "/", os.O_PATH, resolve=syscalls.RESOLVE_IN_ROOT))


@probe("mount_setattr", "syscall", "03: a tree of mounts can't be made read-only at once")
def _probe_mount_setattr() -> None:
    def work() -> None:
        syscalls.mount_setattr(syscalls.AT_FDCWD, "/", syscalls.AT_RECURSIVE, attr_set=syscalls.MOUNT_ATTR_NOSUID)

    _in_new(syscalls.CLONE_NEWNS, work)


@probe("fsconfig", "syscall", "03, 07: no mount by file descriptor, few layers at a time")
def _probe_fsconfig() -> None:
    def work() -> None:
        fd = syscalls.fsopen("tmpfs")
        syscalls.fsconfig(fd, syscalls.FSCONFIG_CMD_CREATE)
        os.close(syscalls.fsmount(fd))
        os.close(fd)

    _in_new(syscalls.CLONE_NEWNS, work)


@probe("pidfd", "syscall", "02: a signal may reach a stranger who got the number", vital=True)
def _probe_pidfd() -> None:
    fd = os.pidfd_open(os.getpid())
    try:
        syscalls.pidfd_send_signal(fd, 0)
    finally:
        os.close(fd)


@probe("seccomp", "syscall", "11: no syscall can be forbidden")
def _probe_seccomp() -> None:
    try:
        # A filter of None: a kernel with filters looks for it (EFAULT), one without does not.
        in_child(syscalls.prctl, 22, 2)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    except LabError as error:
        if getattr(error, "errno", None) != errno.EFAULT:
            raise


@probe("all capabilities", "syscall", "11: what is missing can't be shown, nor given to a container")
def _probe_all_capabilities() -> None:
    missing = security.names(~proc.process(os.getpid()).cap_bnd & (1 << security.last_capability() + 1) - 1)
    if missing:
        raise Unsupported("the bounding set lacks " + " ".join(missing))


# ---- network -----------------------------------------------------------------


def _in_new_network(*commands: str) -> None:
    """Run commands in a network namespace that nothing else is in."""

    def work() -> None:
        for command in commands:
            run(*command.split())

    _in_new(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS, work)


_NAT = (
    "nft add table ip lab",
    "nft add chain ip lab post { type nat hook postrouting priority 100 ; }",
    "nft add rule ip lab post ip saddr 10.0.0.0/8 masquerade",
)
for _name, _lost, *_commands in (
    ("veth", "10: no cable between two namespaces", "ip link add lab0 type veth peer name lab1"),
    ("bridge", "10: no switch between containers", "ip link add lab0 type bridge"),
    ("nftables NAT", "10: no way out for a container, no published port", *_NAT),
):
    probe(_name, "network", _lost, look=functools.partial(_in_new_network, *_commands))


@probe("packet forwarding", "network", "10: containers reach each other and this machine, not the world")
def _probe_packet_forwarding() -> None:
    from labkit.network import bridge

    if not bridge.can_reach_the_world():
        raise Unsupported("net.ipv4.ip_forward is 0; it is yours to change: sysctl net.ipv4.ip_forward=1")


@probe(
    "libseccomp",
    "syscall",
    "11, 12: no syscall can be forbidden, and no container starts with the default filter",
    vital=True,
)
def _probe_libseccomp() -> object:
    from labkit.isolation import seccomp

    return f"knows {len(seccomp.known())} syscalls"
