"""Which devices a cgroup may open: a list in v1, a small program in v2.

mknod makes a file that *is* a device: whoever may make and open `b 254:0` reads
the host's disk past every mount and permission. A container keeps CAP_MKNOD, as
with docker, so the kernel must ask about each device at the moment it is opened
or made. Where it asks is what differs:

    v1   devices.deny and devices.allow take lines like `c 1:3 rwm`
    v2   no file at all: a BPF program bound to the folder is run at each open and
         mknod, with type, major, minor and the access wanted; it returns 1 or 0

Our program is a handful of comparisons for each rule, in the order of the rules,
and 0 at the end. It is built below from the five instructions that it needs. The
kernel checks it before it takes it, and drops it with the folder.
See mknod(2), bpf(2), Documentation/admin-guide/cgroup-v1/devices.rst,
struct bpf_cgroup_dev_ctx in linux/bpf.h.
"""

import os
import struct
from collections.abc import Iterable

from labkit.cgroups.cgroup import Cgroup
from labkit.ground import proc, syscalls
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, KernelError, Unsupported

ANY = None


@dataclass(frozen=True)
class Rule:
    """Allow one device, or with ANY all of a kind: `Rule("c", 1, 3, "rwm")` is /dev/null."""

    kind: str  # c or b
    major: int | None
    minor: int | None
    access: str  # of r, w, m (mknod)

    def __post_init__(self) -> None:
        numbers = all(n is ANY or (isinstance(n, int) and 0 <= n < 1 << 20) for n in (self.major, self.minor))
        if self.kind not in ("c", "b") or not numbers or not self.access or set(self.access) - set("rwm"):
            raise BadValue(f"{self} is no device rule", "like Rule('c', 1, 3, 'rwm')")

    def __str__(self) -> str:
        major, minor = ("*" if number is ANY else number for number in (self.major, self.minor))
        return f"{self.kind} {major}:{minor} {self.access}"


# Docker's list: make any, open none but these.
DEFAULT = (
    Rule("c", ANY, ANY, "m"),
    Rule("b", ANY, ANY, "m"),
    Rule("c", 1, 3, "rwm"),  # null
    Rule("c", 1, 5, "rwm"),  # zero
    Rule("c", 1, 7, "rwm"),  # full
    Rule("c", 1, 8, "rwm"),  # random
    Rule("c", 1, 9, "rwm"),  # urandom
    Rule("c", 5, 0, "rwm"),  # tty
    Rule("c", 5, 1, "rwm"),  # console
    Rule("c", 5, 2, "rwm"),  # ptmx
    Rule("c", 136, ANY, "rwm"),  # pts/*
)


def allow_only(cgroup: Cgroup, rules: Iterable[Rule] = DEFAULT) -> int:
    """Let the processes in `cgroup` open and make no devices but these; return 1 or 2, the version used.

    Call it once, before a process is in it. Raises KernelError, or Unsupported if
    this machine has neither v1's devices controller nor BPF on a v2 tree.
    """
    try:
        folder = cgroup.path("devices")
    except Unsupported:
        fd = cgroup.into_fd()
        if fd is None:
            raise
        try:
            attach(fd, program(rules))
        finally:
            os.close(fd)
        return 2
    for file, texts in (("devices.deny", ["a"]), ("devices.allow", [str(rule) for rule in rules])):
        try:
            proc.write_plain(folder / file, *texts)
        except OSError as error:
            raise KernelError(f"writing {', '.join(texts)}", error.errno, folder / file) from None
    return 1


# linux/bpf.h: an instruction is code, registers (dst, src), jump offset, constant.
_LOAD_WORD = 0x61  # dst = *(u32 *)(src + offset)
_MOVE, _COPY = 0xB7, 0xBF  # dst = constant, dst = src
_AND, _SHIFT_RIGHT = 0x57, 0x77
_JUMP_UNLESS_EQUAL = 0x55  # if dst != constant skip `offset` instructions
_EXIT = 0x95
_R0, _R1, _TYPE, _ACCESS, _MAJOR, _MINOR, _REST = 0, 1, 2, 3, 4, 5, 6

# struct bpf_cgroup_dev_ctx: u32 access_type (access << 16 | type), u32 major, u32 minor
_TYPES = {"b": 1, "c": 2}
_ACCESSES = {"m": 1, "r": 2, "w": 4}


def program(rules: Iterable[Rule]) -> bytes:
    """Return the BPF program for rules, as bytes: 1 for what one of them allows, else 0."""
    code = [
        _instruction(_LOAD_WORD, _TYPE, _R1, 0),
        _instruction(_COPY, _ACCESS, _TYPE),
        _instruction(_AND, _TYPE, constant=0xFFFF),
        _instruction(_SHIFT_RIGHT, _ACCESS, constant=16),
        _instruction(_LOAD_WORD, _MAJOR, _R1, 4),
        _instruction(_LOAD_WORD, _MINOR, _R1, 8),
    ]
    for rule in rules:
        code += _matches(rule)
    return b"".join([*code, _instruction(_MOVE, _R0, constant=0), _instruction(_EXIT)])


def _matches(rule: Rule) -> list[bytes]:
    """Return the instructions that end with 1 if the rule allows it, or else fall through to the next rule."""
    wanted = [(_TYPE, _TYPES[rule.kind])]
    if rule.major is not ANY:
        wanted.append((_MAJOR, rule.major))
    if rule.minor is not ANY:
        wanted.append((_MINOR, rule.minor))
    forbidden = 7 & ~sum(_ACCESSES[letter] for letter in set(rule.access))
    steps: list[bytes | tuple[int, int]] = [  # a tuple: register and what must be in it, or on to the next rule
        *wanted,
        _instruction(_COPY, _REST, _ACCESS),
        _instruction(_AND, _REST, constant=forbidden),
        (_REST, 0),  # nothing is asked for that the rule does not give
        _instruction(_MOVE, _R0, constant=1),
        _instruction(_EXIT),
    ]
    return [
        step
        if isinstance(step, bytes)
        else _instruction(_JUMP_UNLESS_EQUAL, step[0], offset=len(steps) - index - 1, constant=step[1])
        for index, step in enumerate(steps)
    ]


def _instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, constant: int = 0) -> bytes:
    return struct.pack("=BBhi", code, src << 4 | dst, offset, constant)


_BPF_PROG_TYPE_CGROUP_DEVICE, _BPF_CGROUP_DEVICE = 15, 6
_BPF_F_ALLOW_MULTI = 2  # beside systemd's own: a device must pass every program


def attach(folder_fd: int, code: bytes) -> None:
    """Load a program and bind it to the v2 cgroup folder behind an fd. Raise KernelError. See bpf(2)."""
    try:
        fd = syscalls.bpf_prog_load(_BPF_PROG_TYPE_CGROUP_DEVICE, code)
        try:
            syscalls.bpf_prog_attach(folder_fd, fd, _BPF_CGROUP_DEVICE, _BPF_F_ALLOW_MULTI)
        finally:
            os.close(fd)
    except KernelError as error:
        hint = "`lab doctor` tells whether this kernel has cgroup BPF"
        raise KernelError(error.call, error.errno, error.on, hint) from None
