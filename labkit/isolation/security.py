"""Root in a container is not root: capabilities one by one, and no way to win more.

The kernel cut the power of root into some forty capabilities. A process has sets
of them: effective (used now), permitted (may be made effective), inheritable and
ambient (kept over exec in some cases), and bounding: the ceiling. When user 0
executes a program it gets all that is in the bounding set, so for a container
with root inside it is the bounding set that matters most.

no_new_privs closes the other door: with it, exec never gives more than one had,
so setuid and setcap files in the image lose their power.
See capabilities(7), PR_SET_NO_NEW_PRIVS in prctl(2).
"""

import errno
from collections.abc import Collection, Iterable

from labkit.ground import syscalls as sc
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, KernelError, Unsupported
from labkit.ground.proc import read

# linux/capability.h, in order: the place in this list is the bit
CAPABILITIES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER
SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP
MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF
CHECKPOINT_RESTORE
""".split()

# What Docker leaves to a container: enough for a package manager and a web server
DEFAULT = """
CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP
NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE
""".split()


def mask(names: Iterable[str]) -> int:
    """Return the bit mask of some capability names; `CAP_` in front and small letters are fine."""
    bits = 0
    for name in names:
        short = str(name).upper().removeprefix("CAP_")
        if short not in CAPABILITIES:
            raise BadValue(f"there is no capability {name!r}", "capabilities(7) lists them")
        bits |= 1 << CAPABILITIES.index(short)
    return bits


def names(bits: int) -> list[str]:
    """Return the capability names in a mask, in the kernel's order."""
    return [name for place, name in enumerate(CAPABILITIES) if bits >> place & 1]


def choose(add: Collection[str] = (), drop: Collection[str] = ()) -> tuple[str, ...]:
    """Return the capability names of a container: Docker's default, plus `add`, minus `drop`; `ALL` is every one.

    What this machine itself does not have can't be given: asked for by name it is
    Unsupported, in a default or in ALL it is left out.
    """
    here = int(
        next(line for line in read("/proc/self/status").splitlines() if line.startswith("CapBnd")).split()[1], 16
    )
    everything = {name.upper() for name in add} & {"ALL"}
    wanted = mask(CAPABILITIES) if everything else mask(DEFAULT)
    if "ALL" in {name.upper() for name in drop}:
        wanted = 0
    named = mask(name for name in add if name.upper() != "ALL")
    if named & ~here:
        raise Unsupported(
            f"this machine's own bounding set lacks {', '.join(names(named & ~here))}",
            "whoever started this machine took it away; nothing here can give it back",
        )
    dropped = mask(name for name in drop if name.upper() != "ALL")
    return tuple(names((wanted | named) & here & ~dropped))


@dataclass(frozen=True)
class Sets:
    """The five capability sets of a process, as names. See capabilities(7)."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()

    @classmethod
    def root(cls, keep: Iterable[str], bounding: Iterable[str] | None = None) -> "Sets":
        """Return the sets of a process that has `keep` and may win no more than `bounding`."""
        return cls(tuple(keep if bounding is None else bounding), tuple(keep), tuple(keep))


def last_capability() -> int:
    """Return the number of the newest capability this kernel knows."""
    return int(read("/proc/sys/kernel/cap_last_cap"))


def limit_bounding_set(keep: Iterable[str]) -> None:
    """Drop every capability not in `keep` from the bounding set, for good. See PR_CAPBSET_DROP in prctl(2)."""
    kept = mask(keep)
    for place in range(64):
        if kept >> place & 1:
            continue
        try:
            sc.prctl(sc.PR_CAPBSET_DROP, place)
        except KernelError as error:
            if error.errno == errno.EINVAL:  # the first that this kernel does not know
                return
            if sc.prctl(sc.PR_CAPBSET_READ, place):  # what is gone already needs no power to drop
                raise


def set_capabilities(keep: Collection[str]) -> None:
    """Keep only `keep` as effective and permitted; none is inheritable or ambient. See capset(2)."""
    set_sets(Sets.root(keep))


def set_sets(sets: Sets) -> None:
    """Take on all sets but the bounding one. Ambient ones must be permitted and inheritable too. See capset(2)."""
    sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL)
    sc.capset(mask(sets.effective), mask(sets.permitted), mask(sets.inheritable))
    for name in sets.ambient:
        sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_RAISE, mask([name]).bit_length() - 1)


def no_new_privs() -> None:
    """Give up, for this process and all its children, ever to gain privilege by exec."""
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
