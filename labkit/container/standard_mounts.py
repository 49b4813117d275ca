"""What every container finds in its root beside the image's own files.

An image holds files; a program also expects /proc, /dev, /sys, a name. These are
the mounts that Docker makes too, each with why it is there. Most of /proc and
/sys is not wrapped by any namespace: it speaks of, and to, the whole machine. So
part is masked and part read-only.
"""

import contextlib
import os
import stat

from labkit.cgroups import cgroup, cgroupfs, hierarchies
from labkit.ground import proc
from labkit.ground.errors import Unsupported
from labkit.isolation.mounts import (
    NODEV,
    NOEXEC,
    NOSUID,
    RDONLY,
    Bind,
    Filesystem,
    Mask,
    MountStep,
    ReadOnly,
    Seal,
    Symlink,
)

# The devices that are harmless to everyone. Bound from the host, not made with
# mknod: a user namespace forbids mknod, and a bind works in both.
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def is_harmless(path: str) -> bool:
    """Tell whether a path of the host is one of those DEVICES, whatever it is called."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return stat.S_ISCHR(status.st_mode) and status.st_rdev in {os.stat(f"/dev/{name}").st_rdev for name in DEVICES}
    return False


MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",  # timing of keystrokes and of the other tenants
    "/proc/kcore",  # the whole memory of the machine
    "/proc/keys",  # keyrings are not namespaced
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",  # power use leaks what others compute
)
READ_ONLY = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",  # core_pattern: a program the host runs as root
    "/proc/sysrq-trigger",  # reboots the host
)


def kernel_filesystems(devpts_gid: bool = True) -> tuple[MountStep, ...]:
    """Return the steps for /proc, /dev and /sys. With devpts_gid=False terminals stay in group 0."""
    devpts = ("newinstance", "ptmxmode=0666", "mode=0620", *(("gid=5",) if devpts_gid else ()))
    return (
        Filesystem("proc", "/proc"),
        # Nothing but tmpfs may hold /dev: the image could ship nodes of its own.
        Filesystem("tmpfs", "/dev", ("mode=755", "size=65536k"), NOSUID | NODEV),
        # A new instance: the terminals in it are the container's own, and the host's are not to be seen.
        Filesystem("devpts", "/dev/pts", devpts, NOSUID | NOEXEC),
        Filesystem("tmpfs", "/dev/shm", ("mode=1777", "size=65536k")),
        Filesystem("mqueue", "/dev/mqueue"),
        *(Bind(f"/dev/{name}", f"/dev/{name}", recursive=False) for name in DEVICES),
        *device_links(),
        Filesystem("sysfs", "/sys", (), RDONLY | NOSUID | NODEV | NOEXEC),
    )


def device_links() -> tuple[MountStep, ...]:
    """Return the steps for the links in /dev that programs expect."""
    return (
        Symlink("pts/ptmx", "/dev/ptmx"),
        Symlink("/proc/self/fd", "/dev/fd"),
        Symlink("/proc/self/fd/0", "/dev/stdin"),
        Symlink("/proc/self/fd/1", "/dev/stdout"),
        Symlink("/proc/self/fd/2", "/dev/stderr"),
    )


def cgroup_filesystems(
    target: str = "/sys/fs/cgroup",
    group: cgroup.Cgroup | None = None,
    own_namespace: bool = True,
    sealed: int = RDONLY | NOSUID | NODEV | NOEXEC,
) -> tuple[MountStep, ...]:
    """Return the steps for /sys/fs/cgroup, read-only, as this kernel has it: v2, v1, or both.

    In a new cgroup namespace such a mount begins at the container's own cgroup. Without
    one, the folders of `group` are bound there: it looks the same from inside.
    """
    if not own_namespace:
        return _bound_cgroups(target, group, sealed)
    host = [mount for mount in proc.mounts() if mount.type in ("cgroup", "cgroup2")]
    if any(mount.target == "/sys/fs/cgroup" and mount.type == "cgroup2" for mount in host):
        return (Filesystem("cgroup2", target, (), sealed),)
    steps: list[MountStep] = [Filesystem("tmpfs", target, ("mode=755",), NOSUID | NODEV | NOEXEC)]
    ours = {str(tree.mount) for tree in cgroupfs.trees()}
    for mount in host:
        if mount.target not in ours:  # no folder of the container's in there: it would see the host's
            continue
        # A hierarchy is named by its controllers; mounting the same set again gives the same tree.
        options = tuple(option for option in mount.super_options if option not in ("rw", "ro", "none"))
        place = f"{target}/{os.path.basename(mount.target)}"
        if mount.type == "cgroup2":
            steps.append(Filesystem("cgroup2", place, (), sealed))
        elif not any(option.startswith(("name=", "release_agent=")) for option in options):
            steps.append(Filesystem("cgroup", place, options, sealed))
    return (*steps, Seal(target)) if sealed & RDONLY else tuple(steps)


def _bound_cgroups(target: str, group: cgroup.Cgroup | None, sealed: int) -> tuple[MountStep, ...]:
    assert group is not None  # who has no cgroup namespace has a cgroup
    trees = {str(tree.mount): tree for tree in hierarchies.hierarchies()}
    folders = {str(folder.tree.mount): str(folder.path) for folder in group.folders}
    if "/sys/fs/cgroup" in trees:
        return (Bind(folders["/sys/fs/cgroup"], target, sealed, recursive=False),)
    steps: list[MountStep] = [Filesystem("tmpfs", target, ("mode=755",), NOSUID | NODEV | NOEXEC)]
    for mount, folder in folders.items():
        name = os.path.basename(mount)
        steps.append(Bind(folder, f"{target}/{name}", sealed, recursive=False))
        # Where two controllers share a tree (cpu,cpuacct), programs look for each by its own name.
        steps += [Symlink(name, f"{target}/{part}") for part in name.split(",") if part != name]
    return (*steps, Seal(target)) if sealed & RDONLY else tuple(steps)


# A PID 1 that does its two duties: it hands signals on and it reaps. The same
# program as Docker's --init. Static, so that it runs whatever the image holds.
_INIT = ("/usr/bin/tini-static", "/usr/bin/docker-init")
INIT = "/dev/init"


def init() -> MountStep:
    """Return the step that brings a small init in, read-only, at INIT. Raises Unsupported without one."""
    for path in _INIT:
        if os.path.exists(path):
            return Bind(path, INIT, RDONLY | NOSUID | NODEV, recursive=False)
    raise Unsupported("this machine has no tini-static for --init", "apt-get install tini (`lab up` does)")


def locks() -> tuple[MountStep, ...]:
    """Return the steps that cover what is not the container's business in /proc and /sys."""
    return (*map(Mask, MASKED), *map(ReadOnly, READ_ONLY))
