"""The kernel's doors: one thin function a syscall, under its man-page name and in its order.

No policy lives here. Each function loads a number into a register, asks the
kernel, and turns -1 into a KernelError that names the call, what it was called
on, and the errno. Everything above this floor is built from these and from what
Python's `os` has already (chroot, fork, mknod, setsid, waitid, pidfd_open …).

The numbers differ by processor only for the calls older than 2018: since then
(424, pidfd_send_signal) every new call has one number everywhere.
Constants carry the names of the kernel's headers, listed header by header.
"""

import ctypes
import functools
import os
import struct
from ctypes import c_char_p, c_int, c_long, c_uint, c_uint32, c_uint64, c_ulong, c_void_p

from labkit.ground.errors import KernelError, Unsupported

# asm/unistd.h, older calls:   x86-64, arm64
_OLD = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "unshare": (272, 97),
    "setns": (308, 268),
    "capget": (125, 90),
    "capset": (126, 91),
    "prctl": (157, 167),
    "keyctl": (250, 219),
    "seccomp": (317, 277),
    "bpf": (321, 280),
    "syncfs": (306, 267),
    "sched_setattr": (314, 274),
    "personality": (135, 92),
    "ioprio_set": (251, 30),
    "set_mempolicy": (238, 237),
}
_NEW = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}
_COLUMN = {"x86_64": 0, "aarch64": 1, "arm64": 1}
MACHINE = os.uname().machine  # asked now: personality(2) can have it answer otherwise

AnyPath = str | os.PathLike[str]


@functools.cache  # a container's start asks some 300 times
def number(name: str, machine: str | None = None) -> int:
    """Return the number of the syscall `name` on `machine` (this one's by default)."""
    machine = machine or MACHINE
    if machine not in _COLUMN:
        raise Unsupported(f"labkit has no syscall numbers for {machine}", "the lab runs on x86-64 and arm64")
    return _NEW[name] if name in _NEW else _OLD[name][_COLUMN[machine]]


# sched.h: the eight namespaces, one bit each
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
# sched.h: the other clone3 flags in use here
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_INTO_CGROUP = 0x200000000

# sys/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_BIND = 4096
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# linux/mount.h
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_IDMAP = 0x00100000

# fcntl.h, linux/openat2.h
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

# linux/seccomp.h
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8

# linux/bpf.h
_BPF_PROG_LOAD = 5
_BPF_PROG_ATTACH = 8

# linux/keyctl.h
KEYCTL_JOIN_SESSION_KEYRING = 1

# linux/close_range.h
CLOSE_RANGE_CLOEXEC = 4

# linux/nsfs.h, ioctls on a namespace's fd
NS_GET_USERNS = 0xB701
NS_GET_PARENT = 0xB702

# PyDLL keeps Python's own lock (the GIL) through the call. clone3 needs that: the
# child must wake up holding the lock, because the thread that would hand it over
# does not exist on its side.
_libc = ctypes.CDLL(None, use_errno=True)
_libc_locked = ctypes.PyDLL(None, use_errno=True)
for _library in (_libc, _libc_locked):
    _library.syscall.restype = c_long


def _syscall(name: str, *arguments: object, on: object = None, library: ctypes.CDLL = _libc) -> int:
    ctypes.set_errno(0)
    result: int = library.syscall(c_long(number(name)), *arguments)
    if result == -1:
        raise KernelError(f"{name}(2)", ctypes.get_errno(), on)
    return result


def _path(path: AnyPath | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones of one's own. See unshare(2)."""
    _syscall("unshare", c_int(flags), on=_clone_names(flags))


def setns(fd: int, nstype: int) -> None:
    """Join the namespace behind `fd`, or several of a pidfd's. See setns(2)."""
    _syscall("setns", c_int(fd), c_int(nstype), on=_clone_names(nstype))


def _clone_names(flags: int) -> str:
    names = [name for name, bit in globals().items() if name.startswith("CLONE_") and flags & bit]
    return "|".join(names)


class clone_args(ctypes.Structure):
    # linux/sched.h, struct clone_args
    _fields_ = [
        (field, c_uint64)
        for field in (
            "flags pidfd child_tid parent_tid exit_signal stack stack_size tls set_tid set_tid_size cgroup"
        ).split()
    ]


def clone3(flags: int, exit_signal: int, cgroup: int | None = None) -> tuple[int, int | None]:
    """Make a child with new namespaces; return (pid, pidfd), or (0, None) in the child. See clone3(2).

    Without CLONE_VM the child is a copy of the caller, as after fork(2), but the
    C library does not know: call this only from a process with one thread. Flags
    may hold CLONE_PIDFD. `cgroup` is the fd of a v2 cgroup folder to be born in
    (CLONE_INTO_CGROUP is added then).
    """
    pidfd = c_int(-1)
    arguments = clone_args(flags=flags, exit_signal=exit_signal)
    if flags & CLONE_PIDFD:
        arguments.pidfd = ctypes.addressof(pidfd)
    if cgroup is not None:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup
    size = c_ulong(ctypes.sizeof(arguments))
    pid = _syscall("clone3", ctypes.byref(arguments), size, on=_clone_names(flags), library=_libc_locked)
    return (pid, pidfd.value) if pid and flags & CLONE_PIDFD else (pid, None)


def mount(
    source: AnyPath | None, target: AnyPath, filesystemtype: str | None, mountflags: int, data: AnyPath | None = None
) -> None:
    """Attach a filesystem, or change a mount. See mount(2).

    `source`, `filesystemtype` and `data` may be None.
    """
    _syscall(
        "mount",
        c_char_p(_path(source)),
        c_char_p(_path(target)),
        c_char_p(_path(filesystemtype)),
        c_ulong(mountflags),
        c_char_p(_path(data)),
        on=target,
    )


def umount2(target: AnyPath, flags: int = 0) -> None:
    """Take a mount away. See umount2(2)."""
    _syscall("umount2", c_char_p(_path(target)), c_int(flags), on=target)


def pivot_root(new_root: AnyPath, put_old: AnyPath) -> None:
    """Make `new_root` the root mount; the old one moves to `put_old`. See pivot_root(2)."""
    _syscall("pivot_root", c_char_p(_path(new_root)), c_char_p(_path(put_old)), on=new_root)


def open_tree(dirfd: int, path: AnyPath, flags: int) -> int:
    """Open, or clone, the mount at `path` as an fd. See open_tree(2)."""
    return _syscall("open_tree", c_int(dirfd), c_char_p(_path(path)), c_uint(flags), on=path)


def move_mount(from_dirfd: int, from_path: AnyPath, to_dirfd: int, to_path: AnyPath, flags: int) -> None:
    """Attach a mount held by an fd. See move_mount(2)."""
    _syscall(
        "move_mount",
        c_int(from_dirfd),
        c_char_p(_path(from_path)),
        c_int(to_dirfd),
        c_char_p(_path(to_path)),
        c_uint(flags),
        on=to_path or f"fd {to_dirfd}",
    )


def fsopen(fsname: str, flags: int = FSOPEN_CLOEXEC) -> int:
    """Open a filesystem type for setting up. See fsopen(2)."""
    return _syscall("fsopen", c_char_p(_path(fsname)), c_uint(flags), on=fsname)


def fsconfig(fd: int, cmd: int, key: str | None = None, value: AnyPath | None = None, aux: int = 0) -> None:
    """Set one parameter of a filesystem being made, or make it. See fsconfig(2)."""
    _syscall(
        "fsconfig",
        c_int(fd),
        c_uint(cmd),
        c_char_p(_path(key)),
        c_char_p(_path(value)),
        c_int(aux),
        on=f"{key}={value}" if key else None,
    )


def fsmount(fd: int, flags: int = FSMOUNT_CLOEXEC, attr_flags: int = 0) -> int:
    """Turn a made filesystem into a mount that is attached nowhere yet. See fsmount(2)."""
    return _syscall("fsmount", c_int(fd), c_uint(flags), c_uint(attr_flags))


class mount_attr(ctypes.Structure):
    # linux/mount.h, struct mount_attr
    _fields_ = [(field, c_uint64) for field in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def mount_setattr(
    dirfd: int,
    path: AnyPath,
    flags: int,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """Change a mount's attributes, with AT_RECURSIVE the whole tree's. See mount_setattr(2)."""
    attributes = mount_attr(attr_set, attr_clr, propagation, userns_fd)
    _syscall(
        "mount_setattr",
        c_int(dirfd),
        c_char_p(_path(path)),
        c_uint(flags),
        ctypes.byref(attributes),
        c_ulong(ctypes.sizeof(attributes)),
        on=path or f"fd {dirfd}",
    )


class open_how(ctypes.Structure):
    # linux/openat2.h, struct open_how
    _fields_ = [(field, c_uint64) for field in ("flags", "mode", "resolve")]


def openat2(dirfd: int, path: AnyPath, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` with rules for how the kernel may walk it. See openat2(2)."""
    how = open_how(flags | os.O_CLOEXEC, mode, resolve)
    return _syscall(
        "openat2",
        c_int(dirfd),
        c_char_p(_path(path)),
        ctypes.byref(how),
        c_ulong(ctypes.sizeof(how)),
        on=path,
    )


def sethostname(name: str | bytes) -> None:
    """Set the host name of this uts namespace. See sethostname(2)."""
    _set_name("sethostname", os.fsencode(name))


def setdomainname(name: str | bytes) -> None:
    """Set the NIS domain name of this uts namespace. See setdomainname(2)."""
    _set_name("setdomainname", os.fsencode(name))


def _set_name(call: str, name: bytes) -> None:
    _syscall(call, c_char_p(name), c_ulong(len(name)), on=os.fsdecode(name))


def prctl(option: int, arg2: int | bytes = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Change something about this process; `arg2` may be bytes. See prctl(2)."""
    second = c_char_p(arg2) if isinstance(arg2, bytes) else c_ulong(arg2)
    return _syscall("prctl", c_int(option), second, c_ulong(arg3), c_ulong(arg4), c_ulong(arg5), on=f"option {option}")


# linux/capability.h: version 3 has 64 capabilities in two 32-bit halves
_LINUX_CAPABILITY_VERSION_3 = 0x20080522


class _cap_header(ctypes.Structure):
    _fields_ = [("version", c_uint32), ("pid", c_int)]


class _cap_data(ctypes.Structure):
    _fields_ = [("effective", c_uint32), ("permitted", c_uint32), ("inheritable", c_uint32)]


def capget(pid: int = 0) -> tuple[int, int, int]:
    """Return the (effective, permitted, inheritable) masks of a process. See capget(2)."""
    header = _cap_header(_LINUX_CAPABILITY_VERSION_3, pid)
    low, high = halves = (_cap_data * 2)()
    _syscall("capget", ctypes.byref(header), ctypes.byref(halves), on=f"process {pid}" if pid else None)
    effective, permitted, inheritable = (
        getattr(low, name) | getattr(high, name) << 32 for name in ("effective", "permitted", "inheritable")
    )
    return effective, permitted, inheritable


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set one's own capability masks. See capset(2)."""
    header = _cap_header(_LINUX_CAPABILITY_VERSION_3, 0)
    masks = (effective, permitted, inheritable)
    halves = (_cap_data * 2)(*(_cap_data(*(mask >> shift & 0xFFFFFFFF for mask in masks)) for shift in (0, 32)))
    _syscall("capset", ctypes.byref(header), ctypes.byref(halves))


def pidfd_send_signal(pidfd: int, sig: int, flags: int = 0) -> None:
    """Send a signal to the process behind `pidfd`, and to no other that got its number. See pidfd_send_signal(2)."""
    _syscall("pidfd_send_signal", c_int(pidfd), c_int(sig), c_void_p(None), c_uint(flags), on=f"pidfd {pidfd}")


def close_range(first: int, last: int, flags: int = 0) -> None:
    """Close every fd from `first` to `last`, or mark them close-on-exec. See close_range(2)."""
    _syscall("close_range", c_uint(first), c_uint(last), c_uint(flags), on=f"{first}-{last}")


def keyctl(operation: int, arg2: int | None = 0) -> int:
    """Manage the kernel's keyrings; `arg2` may be None. See keyctl(2)."""
    second = c_char_p(None) if arg2 is None else c_ulong(arg2)
    return _syscall("keyctl", c_int(operation), second, on=f"operation {operation}")


class _sock_fprog(ctypes.Structure):
    # linux/filter.h, struct sock_fprog
    _fields_ = [("len", ctypes.c_ushort), ("filter", c_char_p)]


def seccomp(operation: int, flags: int, program: bytes) -> int:
    """Put a filter, a BPF program as bytes, on one's own syscalls; return the listener's fd, if flags ask for one.

    See seccomp(2).
    """
    filter = _sock_fprog(len(program) // 8, program)
    return _syscall("seccomp", c_uint(operation), c_uint(flags), ctypes.byref(filter))


def syncfs(fd: int) -> None:
    """Bring all that is unwritten on the file system of `fd` to its disk, and wait for it. See syncfs(2)."""
    _syscall("syncfs", c_int(fd), on=f"fd {fd}")


def sched_setattr(pid: int, attributes: bytes) -> None:
    """Set a thread's scheduling policy; `attributes` is a struct sched_attr. See sched_setattr(2)."""
    _syscall("sched_setattr", c_int(pid), c_char_p(attributes), c_uint(0))


def ioprio_set(which: int, who: int, ioprio: int) -> None:
    """Set the I/O priority of a process. See ioprio_set(2)."""
    _syscall("ioprio_set", c_int(which), c_int(who), c_int(ioprio))


def personality(persona: int) -> None:
    """Say which system this process and its children are to take this one for. See personality(2)."""
    _syscall("personality", c_ulong(persona))


def set_mempolicy(mode: int, nodes: int) -> None:
    """Say from which memory nodes a thread gets its pages; `nodes` is a bit mask. See set_mempolicy(2)."""
    mask = c_uint64(nodes)
    _syscall("set_mempolicy", c_int(mode), ctypes.byref(mask) if nodes else None, c_ulong(65 if nodes else 0))


def bpf_prog_load(prog_type: int, program: bytes) -> int:
    """Have the kernel check a BPF program and keep it; return its fd. See bpf(2), BPF_PROG_LOAD."""
    code, license_ = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(b"GPL")
    what = struct.pack(
        "=IIQQIIQI", prog_type, len(program) // 8, ctypes.addressof(code), ctypes.addressof(license_), 0, 0, 0, 0
    )
    return _bpf(_BPF_PROG_LOAD, what, "a program")


def bpf_prog_attach(target_fd: int, prog_fd: int, attach_type: int, flags: int) -> None:
    """Bind a loaded program to what is behind `target_fd`. See bpf(2), BPF_PROG_ATTACH."""
    _bpf(_BPF_PROG_ATTACH, struct.pack("=IIII", target_fd, prog_fd, attach_type, flags), f"fd {target_fd}")


def _bpf(cmd: int, attributes: bytes, on: str) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return _syscall("bpf", c_int(cmd), ctypes.byref(buffer), c_uint(len(attributes)), on=on)
