"""Which syscalls a container may make: a list turned into a program that the kernel runs at each one.

A capability says what a syscall may do; seccomp says whether it may be made at
all. The filter is a small BPF program, read by the kernel before every syscall of
the process and its children, and never taken off again. It sees the number and
the six arguments as plain integers; a pointer can't be followed, so a path can't
be judged here.

    the default        every syscall libseccomp knows, minus FORBIDDEN below, each
                       with why, and with the capability that gives it back
    FILE               a profile in docker's JSON words
    unconfined         none

What is newer than the list gets ENOSYS ("this kernel has no such call") and not
EPERM, so that a program that knows an older way takes it. A program for another
processor (32-bit on 64) gets ENOSYS for everything: one list, one set of numbers.

libseccomp turns names into numbers and rules into BPF; that is done in the parent
and kept, so the child needs one syscall. See seccomp(2), seccomp_export_bpf(3).
"""

import contextlib
import ctypes
import errno
import itertools
import json
import os
import struct
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path

from labkit.ground import state
from labkit.ground import syscalls as sc
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, Damaged, LabError, NotFound, Unsupported, from_oserror
from labkit.ground.typed import Any

# (why, the capability with which it is allowed, the syscalls)
FORBIDDEN = (
    ("keyrings are not namespaced: one could read another container's keys", None, "add_key request_key keyctl"),
    (
        "mounts change what a path means",
        "SYS_ADMIN",
        "mount umount2 fsopen fsconfig fsmount fspick open_tree move_mount mount_setattr",
    ),
    ("a new root", None, "pivot_root"),
    ("a user namespace makes anyone root in it, and opens much kernel code to him", "SYS_ADMIN", "unshare setns"),
    ("its flags are behind a pointer, so new namespaces can't be told apart", "SYS_ADMIN", "clone3"),
    ("names of the uts namespace", "SYS_ADMIN", "sethostname setdomainname"),
    ("programs in the kernel", "SYS_ADMIN BPF", "bpf"),
    ("counters that see the whole machine", "SYS_ADMIN PERFMON", "perf_event_open"),
    ("the kernel's own log", "SYS_ADMIN SYSLOG", "syslog"),
    ("watching, limiting a whole filesystem", "SYS_ADMIN", "fanotify_init quotactl quotactl_fd lookup_dcookie"),
    ("opens any file of the filesystem by number, past the root", "DAC_READ_SEARCH", "open_by_handle_at"),
    ("looks into other processes", "SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("the root for a child", "SYS_CHROOT", "chroot"),
    ("code in the kernel", "SYS_MODULE", "init_module finit_module delete_module"),
    ("stops or replaces the kernel", "SYS_BOOT", "reboot"),
    ("replaces the kernel", None, "kexec_load kexec_file_load"),
    ("the machine's clock", "SYS_TIME", "settimeofday clock_settime"),
    ("the machine's ports", "SYS_RAWIO", "iopl ioperm"),
    ("the machine's accounting, swap, terminals", "SYS_PACCT", "acct"),
    ("the machine's swap", None, "swapon swapoff"),
    ("hangs up a terminal", "SYS_TTY_CONFIG", "vhangup"),
    ("where memory lies, for everybody", "SYS_NICE", "mbind get_mempolicy set_mempolicy set_mempolicy_home_node"),
    ("moves other processes' memory", None, "migrate_pages move_pages"),
    ("holds the kernel at a page fault: attacks on races need it", None, "userfaultfd"),
    ("a second door for reads and writes, past this filter", None, "io_uring_setup io_uring_enter io_uring_register"),
    ("old, and nobody's", None, "uselib ustat sysfs _sysctl nfsservctl create_module get_kernel_syms query_module"),
)

ALLOW, KILL, KILL_THREAD = 0x7FFF0000, 0x80000000, 0
ACTIONS = {
    "SCMP_ACT_ALLOW": ALLOW,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_KILL": KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": KILL,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
}
# linux/seccomp.h. TSYNC is for programs with more than one thread: here is nothing to bring in line.
_FLAG_BITS = {"TSYNC": 0, "LOG": 2, "SPEC_ALLOW": 4, "WAIT_KILLABLE_RECV": 32}
FLAGS = {f"SECCOMP_FILTER_FLAG_{name}": bit for name, bit in _FLAG_BITS.items()}
OPERATORS = {f"SCMP_CMP_{name}": number for number, name in enumerate("NE LT LE EQ GE GT MASKED_EQ".split(), 1)}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "arm64": 0xC00000B7}
_DOCKER_ARCH = {"x86_64": {"amd64"}, "aarch64": {"arm64"}, "arm64": {"arm64"}}


def refuse(number: int) -> int:
    """Return the action that makes a syscall fail with an errno."""
    return ACTIONS["SCMP_ACT_ERRNO"] | number


@dataclass(frozen=True)
class Rule:
    """What happens to some syscalls, if all of `when` hold: (argument, comparison, value, mask's value)."""

    names: tuple[str, ...]
    action: int = ALLOW
    when: tuple[tuple[int, str, int, int], ...] = ()


@dataclass(frozen=True)
class Profile:
    """Rules, and what happens to every syscall that none of them names."""

    rules: tuple[Rule, ...]
    otherwise: int = refuse(errno.EPERM)
    also: tuple[str, ...] = ()  # further processors whose programs this kernel runs: x86, x32, arm


def forbidden(capabilities: Iterable[str] = ()) -> dict[str, str]:
    """Return {syscall: why} of the default profile for a container with these capabilities."""
    have = set(capabilities)
    return {
        name: why for why, back, names in FORBIDDEN for name in names.split() if not have & set((back or "").split())
    }


def default(capabilities: Collection[str] = ()) -> Profile:
    """Return the default Profile for a container with these capabilities."""
    no = forbidden(capabilities)
    namespaces = 0x7E020000  # sched.h: all CLONE_NEW… that clone(2) takes
    special = [Rule(("clone3",), refuse(errno.ENOSYS))] if "clone3" in no else []
    if "SYS_ADMIN" not in capabilities:
        special.append(Rule(("clone",), ALLOW, ((0, "SCMP_CMP_MASKED_EQ", namespaces, 0),)))
    # Families of sockets but AF_ALG (38: the kernel's ciphers) and AF_VSOCK (40: talks to the hypervisor).
    for compare, family in (("LT", 38), ("EQ", 39), ("GT", 40)):
        special.append(Rule(("socket",), ALLOW, ((0, f"SCMP_CMP_{compare}", family, 0),)))
    # Linux as it is, or as it was in 2.6, in 32 bits or not; no other system's habits.
    for persona in (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF):
        special.append(Rule(("personality",), ALLOW, ((0, "SCMP_CMP_EQ", persona, 0),)))
    judged = {name for rule in special for name in rule.names}
    free = tuple(name for name in known() if name not in no and name not in judged)
    return Profile((Rule(free), *special))


def read(path: str | Path, capabilities: Collection[str] = ()) -> Profile:
    """Return the Profile in a file of docker's JSON. Raises NotFound or BadValue; the file changes nothing.

    `includes` and `excludes` by caps, arches and minKernel count; names that libseccomp
    does not know are left out, as docker does.
    """
    try:
        words = json.loads(Path(path).read_bytes()[: 1 << 20])
    except FileNotFoundError:
        raise NotFound(f"there is no seccomp profile {path}", "a file in docker's JSON, or `unconfined`") from None
    except OSError as error:
        raise from_oserror(error, f"reading the seccomp profile {path}") from None
    except (ValueError, RecursionError) as error:
        raise BadValue(
            f"the seccomp profile {path} can't be read: {error!r}", "docker's JSON format is wanted"
        ) from None
    return parse(words, capabilities, f"the seccomp profile {path}")


def parse(words: Any, capabilities: Collection[str] = (), what: str = "the seccomp profile") -> Profile:
    """Return the Profile that docker's JSON, or the runtime specification's, means. Raises BadValue.

    Processors other than this one that it names (`architectures`) get the same rules.
    """
    try:
        otherwise = _action(words["defaultAction"], words.get("defaultErrnoRet"))
        rules = tuple(_rule(rule) for rule in words.get("syscalls") or () if _applies(rule, capabilities))
        also = tuple(name.removeprefix("SCMP_ARCH_").lower() for name in words.get("architectures") or ())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadValue(f"{what} can't be read: {error!r}", "docker's JSON format is wanted") from None
    return Profile(rules, otherwise, also)


def _action(name: str, number: Any = None) -> int:
    action = ACTIONS[name]
    number = errno.EPERM if number is None else number
    if not isinstance(number, int) or not 0 <= number < 4096:
        raise ValueError(f"errno {number!r}")
    return action | number if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") else action


def _rule(words: Any) -> Rule:
    names = words["names"] if "names" in words else [words["name"]]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a syscall's name must be a text")
    when = []
    for test in words.get("args") or ():
        place, value, second = test["index"], test["value"], test.get("valueTwo", 0)
        if test["op"] not in OPERATORS or place not in range(6) or not all(0 <= n < 1 << 64 for n in (value, second)):
            raise ValueError(f"argument {test!r}")
        when.append((place, test["op"], value, second))
    return Rule(tuple(names), _action(words["action"], words.get("errnoRet")), tuple(when))


def _applies(words: Any, capabilities: Iterable[str]) -> bool:
    have = {f"CAP_{name}" for name in capabilities}
    yes, no = words.get("includes") or {}, words.get("excludes") or {}
    here = _DOCKER_ARCH.get(os.uname().machine, set())
    return not (
        (yes.get("caps") and not have & set(yes["caps"]))
        or have & set(no.get("caps") or ())
        or (yes.get("arches") and not here & set(yes["arches"]))
        or here & set(no.get("arches") or ())
        or (yes.get("minKernel") and _version(yes["minKernel"]) > _version(os.uname().release))
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in text.split("-")[0].split(".")[:2])


# ---- libseccomp: names into numbers, rules into a program ----


class _arg_cmp(ctypes.Structure):
    # seccomp.h, struct scmp_arg_cmp
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        raise Unsupported(
            "libseccomp.so.2 is not here, so no syscall can be forbidden",
            "apt-get install libseccomp2, or do without the filter: --security-opt seccomp=unconfined",
        ) from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_arg_cmp)
    ]  # fmt: skip
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p  # a string for us to free
    library.seccomp_syscall_resolve_num_arch.argtypes = [ctypes.c_uint32, ctypes.c_int]
    return library


def known() -> dict[str, int]:
    """Return {name: number} of the syscalls that libseccomp knows on this processor."""
    library, free = _library(), ctypes.CDLL(None).free
    free.argtypes = [ctypes.c_void_p]
    found = {}
    for number in range(1024):
        if text := library.seccomp_syscall_resolve_num_arch(_arch(), number):
            found[ctypes.string_at(text).decode()] = number
            free(text)
    return found


def _arch() -> int:
    if os.uname().machine not in _AUDIT_ARCH:
        raise Unsupported(f"labkit has no seccomp filter for {os.uname().machine}", "it runs on x86-64 and arm64")
    return _AUDIT_ARCH[os.uname().machine]


def compile_profile(profile: Profile) -> bytes:
    """Return the BPF program of a Profile, as bytes. See seccomp_rule_add(3), seccomp_export_bpf(3)."""
    SCMP_FLTATR_ACT_BADARCH, SCMP_FLTATR_CTL_OPTIMIZE = 2, 8
    library = _library()
    context = library.seccomp_init(profile.otherwise)
    memory = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        library.seccomp_attr_set(context, SCMP_FLTATR_ACT_BADARCH, refuse(errno.ENOSYS))
        # A binary tree: eight comparisons for 350 syscalls, not 350. Older libseccomp has lists only.
        library.seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, 2)
        for name in profile.also:
            # One that this libseccomp does not know stays shut: ENOSYS. EEXIST: our own.
            if token := library.seccomp_arch_resolve_name(name.encode(errors="replace")):
                library.seccomp_arch_add(context, token)
        for rule in profile.rules:
            if rule.action != profile.otherwise:
                _add(library, context, rule, bool(profile.also))
        if failure := library.seccomp_export_bpf(context, memory):
            raise LabError(f"libseccomp can't make a program of this profile: {os.strerror(-failure)}")
        return _newer_is_enosys(profile) + os.pread(memory, 1 << 20, 0)
    finally:
        os.close(memory)
        library.seccomp_release(context)


def _add(library: ctypes.CDLL, context: int, rule: Rule, others: bool = False) -> None:
    tests = [_arg_cmp(i, OPERATORS[op], a, b) for i, op, a, b in rule.when]
    # libseccomp compares an argument once in a rule. Several times is meant as: one of them, as runc has it.
    again = len({test.arg for test in tests}) < len(tests)
    for name, some in itertools.product(rule.names, [[test] for test in tests] if again else [tests]):
        number = library.seccomp_syscall_resolve_name(name.encode(errors="replace"))
        # Negative: a name of other processors, or (-1) newer than this libseccomp. The kernel has no such number here.
        if (number >= 0 or (others and number != -1)) and (
            failure := library.seccomp_rule_add_array(
                context, rule.action, number, len(some), (_arg_cmp * len(some))(*some)
            )
        ):
            raise BadValue(f"the seccomp rule for {name} can't be used: {os.strerror(-failure)}")


def _newer_is_enosys(profile: Profile) -> bytes:
    """Return BPF to put in front: for a syscall newer than the newest known one, ENOSYS."""
    if profile.otherwise >> 16 != refuse(0) >> 16:
        return b""
    load, if_equal, if_greater, give_back = 0x20, 0x15, 0x25, 0x06
    number_at, arch_at = 0, 4  # linux/seccomp.h, struct seccomp_data
    program = (
        (load, 0, 0, arch_at),
        (if_equal, 0, 3, _arch()),
        (load, 0, 0, number_at),
        (if_greater, 0, 1, max(known().values())),
        (give_back, 0, 0, refuse(errno.ENOSYS)),
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def program(word: str | Path = "default", capabilities: Collection[str] = ()) -> bytes:
    """Return the BPF program for `default`, a profile's path or `unconfined` (then b"").

    Compiling takes some milliseconds, so the result is kept in /run/labkit/seccomp.
    """
    if word == "unconfined":
        return b""
    return kept(None if word == "default" else read(word, capabilities), capabilities)


def kept(profile: Profile | None = None, capabilities: Collection[str] = ()) -> bytes:
    """Return the BPF program of a Profile, the default one if None, compiled now or once before."""
    what = repr((profile or FORBIDDEN, sorted(capabilities), os.uname().release, os.uname().machine))
    # The code is part of the name: a changed labkit must not use what an older one compiled.
    what += str(os.stat(__file__).st_mtime_ns)
    head = what.encode(errors="surrogateescape")
    kept = state.run_dir("seccomp") / f"{zlib.crc32(head):08x}"  # two may have one sum: the file says which it is
    with contextlib.suppress(Damaged):
        found = state.read_plain(kept) or b""
        data = found[len(head) + 4 :]
        # What was cut short would let through what it should not.
        if found == head + _sum(data) + data:
            return data
    compiled = compile_profile(profile or default(capabilities))
    with contextlib.suppress(LabError):  # a full disk costs time
        state.write_atomic(kept, head + _sum(compiled) + compiled, sync=False)
    return compiled


def _sum(data: bytes) -> bytes:
    return struct.pack("=I", zlib.crc32(data))


def install(program: bytes) -> None:
    """Put this process and all its children under the filter, for good. Needs no_new_privs. See seccomp(2)."""
    if program:
        sc.seccomp(sc.SECCOMP_SET_MODE_FILTER, 0, program)
