"""What every container finds in its root beside the image's own files.

An image holds files; a program also expects /proc, /dev, /sys, a name. These are
the mounts that Docker makes too, each with why it is there. Most of /proc and
/sys is not wrapped by any namespace: it speaks of, and to, the whole machine. So
part is masked and part read-only.
"""

import os

from labkit import proc
from labkit.errors import Unsupported
from labkit.mounts import NODEV, NOEXEC, NOSUID, RDONLY, Bind, Filesystem, Mask, ReadOnly, Seal, Symlink

# The devices that are harmless to everyone. Bound from the host, not made with
# mknod: a user namespace forbids mknod, and a bind works in both.
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

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


def kernel_filesystems(devpts_gid=True):
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
        Symlink("pts/ptmx", "/dev/ptmx"),
        Symlink("/proc/self/fd", "/dev/fd"),
        Symlink("/proc/self/fd/0", "/dev/stdin"),
        Symlink("/proc/self/fd/1", "/dev/stdout"),
        Symlink("/proc/self/fd/2", "/dev/stderr"),
        Filesystem("sysfs", "/sys", (), RDONLY | NOSUID | NODEV | NOEXEC),
    )


def cgroup_filesystems():
    """Return the steps for /sys/fs/cgroup, read-only, as this kernel has it: v2, v1, or both.

    In a new cgroup namespace such a mount begins at the container's own cgroup.
    """
    sealed = RDONLY | NOSUID | NODEV | NOEXEC
    host = [mount for mount in proc.mounts() if mount.type in ("cgroup", "cgroup2")]
    if any(mount.target == "/sys/fs/cgroup" and mount.type == "cgroup2" for mount in host):
        return (Filesystem("cgroup2", "/sys/fs/cgroup", (), sealed),)
    steps = [Filesystem("tmpfs", "/sys/fs/cgroup", ("mode=755",), NOSUID | NODEV | NOEXEC)]
    for mount in host:
        # A hierarchy is named by its controllers; mounting the same set again gives the same tree.
        options = tuple(option for option in mount.super_options if option not in ("rw", "ro", "none"))
        if mount.type == "cgroup2":
            steps.append(Filesystem("cgroup2", mount.target, (), sealed))
        elif not any(option.startswith(("name=", "release_agent=")) for option in options):
            steps.append(Filesystem("cgroup", mount.target, options, sealed))
    return (*steps, Seal("/sys/fs/cgroup"))


# A PID 1 that does its two duties: it hands signals on and it reaps. The same
# program as Docker's --init. Static, so that it runs whatever the image holds.
_INIT = ("/usr/bin/tini-static", "/usr/bin/docker-init")
INIT = "/dev/init"


def init():
    """Return the step that brings a small init in, read-only, at INIT. Raises Unsupported without one."""
    for path in _INIT:
        if os.path.exists(path):
            return Bind(path, INIT, RDONLY | NOSUID | NODEV, recursive=False)
    raise Unsupported("this machine has no tini-static for --init", "apt-get install tini (`lab up` does)")


def locks():
    """Return the steps that cover what is not the container's business in /proc and /sys."""
    return (*map(Mask, MASKED), *map(ReadOnly, READ_ONLY))
