"""What is set on a process by a number in a file or a small syscall.

None of these is a wall; together they are what an administrator would have set
before he started the program by hand:

    rlimits          how much of something one process may use: setrlimit(2)
    oom_score_adj    who goes first when memory is short: proc(5)
    umask            which permissions its new files do not get: umask(2)
    apparmor         the profile that the next exec takes on
    personality      which processor uname(2) names: personality(2)
"""

import os
import resource
from collections.abc import Iterable
from pathlib import Path

from labkit.ground import proc
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, KernelError, NotFound, Unsupported, from_oserror
from labkit.ground.typed import Any

RLIMITS = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
INFINITE = (1 << 64) - 1


@dataclass(frozen=True)
class Settings:
    """What is set before the program runs. Numbers and words of the runtime specification."""

    rlimits: tuple[tuple[str, int, int], ...] = ()  # name, soft, hard
    oom_score_adj: int | None = None
    umask: int = 0o022
    apparmor: str | None = None
    personality: int | None = None


def check_rlimit(name: str, soft: int, hard: int) -> tuple[str, int, int]:
    """Return the triple; raise BadValue for a limit that there isn't or that is above its own hard limit."""
    if name not in RLIMITS:
        raise BadValue(f"there is no resource limit {name!r}", "the limits: " + ", ".join(sorted(RLIMITS)))
    if not all(isinstance(number, int) and 0 <= number <= INFINITE for number in (soft, hard)) or soft > hard:
        raise BadValue(f"{name}: soft {soft!r} and hard {hard!r} can't be meant", "0 ≤ soft ≤ hard")
    return name, soft, hard


def check_oom_score_adj(number: int | None) -> int | None:
    """Return the number; raise BadValue for one that the kernel does not have. See proc(5)."""
    if number is not None and not -1000 <= number <= 1000:
        raise BadValue(f"process.oomScoreAdj {number}", "from -1000, never killed, to 1000, killed first")
    return number


def personality(words: dict[str, Any] | None) -> int | None:
    """Return the number of a `linux.personality`. Raises BadValue."""
    if not words:
        return None
    domains = {"LINUX": 0, "LINUX32": 8}  # linux/personality.h
    if words.get("domain") not in domains or words.get("flags"):
        raise BadValue(f"linux.personality {words}", f"a domain, and no flags: {' or '.join(domains)}")
    return domains[words["domain"]]


def set_rlimits(pid: int, rlimits: Iterable[tuple[str, int, int]]) -> None:
    """Set the resource limits of a process, as its parent. See prlimit(2)."""
    for name, soft, hard in rlimits:
        numbers = (-1 if soft == INFINITE else soft, -1 if hard == INFINITE else hard)
        try:
            resource.prlimit(pid, RLIMITS[name], numbers)
        except (OSError, ValueError) as error:
            raise KernelError(
                f"setting {name} to {_number(soft)}:{_number(hard)}",
                getattr(error, "errno", None) or 1,
                hint="only CAP_SYS_RESOURCE may raise a hard limit: `ulimit -aH` shows those here",
            ) from None


def _number(limit: int) -> str:
    return "unlimited" if limit == INFINITE else str(limit)


def set_oom_score_adj(pid: int, number: int) -> None:
    """Say how soon a process is killed when memory is short: -1000 never, 1000 first. See proc(5)."""
    path = Path("/proc", str(pid), "oom_score_adj")
    try:
        path.write_text(str(number))
    except OSError as error:
        raise from_oserror(error, f"writing {number} to {path}", "only CAP_SYS_RESOURCE may lower it") from None


APPARMOR = Path("/sys/kernel/security/apparmor")


def open_proc(profile: str) -> int:
    """Open the host's /proc, to take on a profile through it later; return the fd.

    Raises Unsupported if this kernel has no AppArmor, NotFound if the profile is not loaded.
    """
    if not APPARMOR.exists():
        raise Unsupported(
            "this kernel has no AppArmor, and a profile is asked for", "leave process.apparmorProfile out"
        )
    # It is known here already, though only exec would find out: who creates a container wants to be told then.
    loaded = [line.rpartition(" (")[0] for line in proc.read(APPARMOR / "profiles").splitlines()]
    if profile not in ("unconfined", *loaded) and ":" not in profile and "//" not in profile:
        raise NotFound(f"the AppArmor profile {profile} is not loaded", "`aa-status` lists those that are")
    return os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def apparmor_on_exec(host_proc: int, profile: str) -> None:
    """Take on a profile at the next exec. `host_proc` is an fd of the host's /proc; it is closed. See apparmor(7)."""
    try:
        # Opened only now: the kernel takes the word of the very process that opened the file.
        with open(os.open(_attribute(host_proc), os.O_WRONLY | os.O_CLOEXEC, dir_fd=host_proc), "wb", 0) as file:
            file.write(f"exec {profile}".encode())
    except OSError as error:
        raise from_oserror(
            error, f"taking on the AppArmor profile {profile}", "`aa-status` lists those loaded"
        ) from None
    finally:
        os.close(host_proc)


def _attribute(host_proc: int) -> str:
    """Return the name of the file that takes a profile: before Linux 5.1 all security modules shared one."""
    own = "self/attr/apparmor/exec"
    return own if os.access(own, os.F_OK, dir_fd=host_proc) else "self/attr/exec"
