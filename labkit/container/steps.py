"""The steps that a process takes from clone to exec, each one small thing.

Like a mount step, each says itself (`describe`) and does itself (`execute`), in the
child. `launch` puts them in their order, and that order is the lock; here is what
each of them is for. What one finds (a user's number, a path) it leaves in `child`.
See clone(2), capabilities(7), execve(2).
"""

import contextlib
import errno
import fcntl
import os
import shlex
import signal
import socket
import stat
import struct
import termios

from labkit.container.channel import Child, Spawned, Step
from labkit.ground import syscalls as sc
from labkit.ground.dataclass import dataclass, replace
from labkit.ground.errors import CommandError, KernelError, LabError, errno_name, from_oserror
from labkit.isolation import last_exec, mounts, namespaces, seccomp, security, sysctls
from labkit.isolation.users import find_user

# ---- while it may still do everything ----


@dataclass(frozen=True)
class ShiftClocks(Step):
    """Before a change of user, which takes its own /proc/self away from it."""

    monotonic: int = 0
    boottime: int = 0
    nanoseconds: tuple[int, int] = (0, 0)  # beside the seconds of each

    def describe(self) -> str:
        what = namespaces.KINDS["time"][1]
        return f"new namespace, time: {what}, here {self.monotonic} and {self.boottime} s"

    def execute(self, child: Child) -> None:
        namespaces.set_time_offsets(self.monotonic, self.boottime, self.nanoseconds)


@dataclass(frozen=True)
class BecomeRootInside(Step):
    """In a new user namespace it is nobody until it says who it is. See user_namespaces(7)."""

    def describe(self) -> str:
        return "become user 0 of the user namespace"

    def execute(self, child: Child) -> None:
        with contextlib.suppress(PermissionError):  # setgroups(2) was given up with the id map
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


@dataclass(frozen=True)
class HideFromOthers(Step):
    """Until exec it is labkit, with the host's power: nobody in there may trace it or open its /proc/PID/exe."""

    def describe(self) -> str:
        return "let nobody trace this process (PR_SET_DUMPABLE 0)"

    def execute(self, child: Child) -> None:
        sc.prctl(sc.PR_SET_DUMPABLE, 0)


@dataclass(frozen=True)
class NewSession(Step):
    """Who is in the session of the host's terminal can type into it."""

    def describe(self) -> str:
        return "new session"

    def execute(self, child: Child) -> None:
        os.setsid()


@dataclass(frozen=True)
class CgroupNamespace(Step):
    """Not with the clone: it begins at the cgroup its maker is in, and v1's are entered after that."""

    def describe(self) -> str:
        return f"new namespace, cgroup: {namespaces.KINDS['cgroup'][1]}"

    def execute(self, child: Child) -> None:
        sc.unshare(sc.CLONE_NEWCGROUP)


@dataclass(frozen=True)
class SetHostName(Step):
    """The name that only its uts namespace has."""

    name: str

    def describe(self) -> str:
        return f"sethostname {self.name}"

    def execute(self, child: Child) -> None:
        sc.sethostname(self.name)


@dataclass(frozen=True)
class LoopbackUp(Step):
    """A new net namespace has `lo`, but down. See netdevice(7)."""

    def describe(self) -> str:
        return "ip link set lo up"

    def execute(self, child: Child) -> None:
        SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
            request = fcntl.ioctl(door, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
            flags = struct.unpack("16sH14x", request)[1]
            fcntl.ioctl(door, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


# ---- a root of its own ----


@dataclass(frozen=True)
class MakePrivate(Step):
    """Or the mounts that follow would show up on the host."""

    def describe(self) -> str:
        return "make every mount private to this mount namespace"

    def execute(self, child: Child) -> None:
        mounts.make_private()


@dataclass(frozen=True)
class MakeMounts(Step):
    """The root, and what is mounted in it."""

    plan: mounts.Plan

    def describe(self) -> list[str]:
        return self.plan.describe()

    def execute(self, child: Child) -> None:
        plan = self.plan
        if child.handed:
            plan = replace(plan, root=mounts.HandedRoot(child.handed[0]))
        child.root = plan.execute()


@dataclass(frozen=True)
class PivotRoot(Step):
    """From here on no path leads to a file of the host."""

    def describe(self) -> str:
        return "pivot_root: the root becomes /, the old root is unmounted"

    def execute(self, child: Child) -> None:
        mounts.pivot(child.root)
        os.close(child.root)


@dataclass(frozen=True)
class WriteSysctls(Step):
    """Knobs that its own namespaces have, while all of /proc/sys can be written."""

    sysctls: tuple[tuple[str, str], ...]

    def describe(self) -> list[str]:
        return [f"sysctl {name}={value}" for name, value in self.sysctls]

    def execute(self, child: Child) -> None:
        sysctls.write(self.sysctls)


# ---- its place in there ----


@dataclass(frozen=True)
class FindUser(Step):
    """A name of the image's own /etc/passwd, or a number."""

    user: str

    def describe(self) -> str:
        return f"look up user {self.user} in /etc/passwd and /etc/group"

    def execute(self, child: Child) -> None:
        child.uid, child.gid, child.groups, child.home = find_user(self.user)


@dataclass(frozen=True)
class OpenTerminal(Step):
    """A pseudo-terminal of the container's own devpts; the master goes out to the parent. See pty(7)."""

    says = "terminal"

    console: bool = True  # bind it to /dev/console
    size: tuple[int, int] | None = None  # rows, columns
    returns: bool = True  # a carriage return before each newline, as a screen needs it and a file does not

    def describe(self) -> str:
        return "new pseudo-terminal" + (", also /dev/console" if self.console else "")

    def execute(self, child: Child) -> None:
        TIOCSPTLCK, TIOCGPTPEER = 0x40045431, 0x5441
        master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        device = os.fstat(master)
        if not stat.S_ISCHR(device.st_mode) or os.major(device.st_rdev) not in (5, 128):
            raise LabError("/dev/ptmx in the container is not a terminal multiplexer", "something in it replaced it")
        fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
        # By ioctl and not by name: /dev/pts/0 could be anything by now.
        slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
        os.fchown(slave, child.uid, -1)
        if not self.returns:
            modes = termios.tcgetattr(slave)
            modes[1] &= ~termios.ONLCR
            termios.tcsetattr(slave, termios.TCSANOW, modes)
        if self.size:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *self.size, 0, 0))
        if self.console:
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            # The terminal that is held, whatever its name leads to by now: CVE-2025-52565 exchanged that.
            terminal = mounts.clone_tree("", slave, recursive=False)
            mounts.Bind("the terminal", "/dev/console", recursive=False, tree=terminal).execute(root)
            os.close(root)
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        child.say("terminal", fds=[master])
        os.close(master)
        child.stdio = (slave, slave, slave)

    def answer(self, spawned: Spawned, value: object, fds: list[int]) -> bool:
        spawned.terminal = fds[0] if fds else None
        return bool(fds)


@dataclass(frozen=True)
class StandardStreams(Step):
    """Its only way to the outside: who opens /dev/stdout does it with his own rights. See /proc/PID/fd in proc(5)."""

    files: bool = True  # a log is its user's too, and not only a pipe

    def describe(self) -> str:
        return "fds 0, 1 and 2, and pipes there are its user's"

    def execute(self, child: Child) -> None:
        for target, fd in enumerate(child.stdio):
            os.dup2(fd, target)
            mode = os.fstat(target).st_mode
            if stat.S_ISFIFO(mode) or (stat.S_ISREG(mode) and target and self.files):
                with contextlib.suppress(OSError):  # a stranger's, in a user namespace
                    os.fchown(target, child.uid, child.gid)


@dataclass(frozen=True)
class GoTo(Step):
    """The working directory."""

    folder: str
    makes: bool = True  # if it is missing

    def describe(self) -> str:
        return f"cd {self.folder}"

    def execute(self, child: Child) -> None:
        try:
            if self.makes:
                os.makedirs(self.folder, exist_ok=True)
            os.chdir(self.folder)
        except OSError as error:
            if error.errno == errno.EROFS:  # it is missing: that it can't be made either is not the news
                error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.folder)
            raise from_oserror(error, f"going to the working directory {self.folder}") from None
        # A cwd that is a leaked fd of the host shows up as "(unreachable)/…".
        if not os.getcwd().startswith("/"):
            raise LabError(f"the working directory {self.folder} is outside the container's root")


# ---- power, given up from the outside in ----


@dataclass(frozen=True)
class NewKeyring(Step):
    """Keys are kept by the kernel for a session, and no namespace wraps them. See keyrings(7)."""

    def describe(self) -> str:
        return "new session keyring"

    def execute(self, child: Child) -> None:
        with contextlib.suppress(KernelError):  # a kernel without keyrings has none to leak
            sc.keyctl(sc.KEYCTL_JOIN_SESSION_KEYRING, None)


@dataclass(frozen=True)
class CloseFds(Step):
    """An open folder of the host leads to all that is below it. They go with exec: labkit still needs some."""

    keep: int = 0  # how many from 3 on are the program's own

    def describe(self) -> str:
        return f"every fd from {3 + self.keep} on is closed by exec"

    def execute(self, child: Child) -> None:
        sc.close_range(3 + self.keep, 2**32 - 1, sc.CLOSE_RANGE_CLOEXEC)


@dataclass(frozen=True)
class LimitBoundingSet(Step):
    """What is not in it no exec can win back."""

    keep: tuple[str, ...]

    def describe(self) -> str:
        return "keep the capabilities " + (" ".join(self.keep) or "none")

    def execute(self, child: Child) -> None:
        security.limit_bounding_set(self.keep)


@dataclass(frozen=True)
class BecomeUser(Step):
    """Groups first: a user may not change them. See credentials(7)."""

    user: str  # as it is said to the reader; the numbers are those found before
    keep_capabilities: bool = False  # or a change of user would empty all sets; exec clears this

    def describe(self) -> str:
        return f"become user {self.user}"

    def execute(self, child: Child) -> None:
        uid, gid = child.uid, child.gid
        try:
            with contextlib.suppress(PermissionError):  # rootless: setgroups(2) was given up with the id map
                os.setgroups(child.groups)
            os.setresgid(gid, gid, gid)
            if self.keep_capabilities:
                sc.prctl(sc.PR_SET_KEEPCAPS, 1)
            os.setresuid(uid, uid, uid)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise LabError(
                f"user {uid}:{gid} does not exist in this container's user namespace: {errno_name(error.errno)}",
                "an id that its map leaves out; without root there is only user 0, else --userns FIRST:COUNT with more",
            ) from None


@dataclass(frozen=True)
class SetCapabilities(Step):
    """Root has all that the bounding set leaves, another user none."""

    keep: tuple[str, ...]

    def describe(self) -> str:
        return "capset: root has these capabilities, any other user none"

    def execute(self, child: Child) -> None:
        security.set_capabilities(self.keep if child.uid == 0 else ())


@dataclass(frozen=True)
class NoNewPrivs(Step):
    """No setuid program gives power back."""

    def describe(self) -> str:
        return "no_new_privs"

    def execute(self, child: Child) -> None:
        security.no_new_privs()


# ---- exec ----


@dataclass(frozen=True)
class ResetSignals(Step):
    """Exec keeps what is ignored: Python ignores two, a shell what it puts into the background two more.

    And Python catches one: a ^C in its terminal would end a container that waits to be started.
    """

    umask: int = 0o022

    def describe(self) -> str:
        return f"default signals, umask {self.umask:03o}"

    def execute(self, child: Child) -> None:
        for number in range(1, signal.NSIG):  # a third of the time that valid_signals() takes
            if signal.getsignal(number) not in (signal.SIG_DFL, None):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.umask(self.umask)


@dataclass(frozen=True)
class DieWithParent(Step):
    """After the change of user, which clears it."""

    def describe(self) -> str:
        return "be killed when the parent ends (PR_SET_PDEATHSIG)"

    def execute(self, child: Child) -> None:
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True)
class FindCommand(Step):
    """By PATH, as a shell does. Raises CommandError if there is none that may be executed."""

    name: str
    env: tuple[str, ...]

    def describe(self) -> str:
        return f"look for {self.name} on the PATH"

    def execute(self, child: Child) -> None:
        child.path = self._found()

    def _found(self) -> str:
        if "/" in self.name:
            if number := _certain(self.name):
                raise CommandError(self.name, number)
            return self.name
        worst = errno.ENOENT
        folders = as_dict(self.env).get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        for path in (f"{folder or '.'}/{self.name}" for folder in folders.split(":")):
            if os.access(path, os.X_OK) and not os.path.isdir(path):
                return path
            # Found but not executable beats not found, as in a shell; a folder is no command, nor is "".
            worst = errno.EACCES if os.path.lexists(path) and not os.path.isdir(path) else worst
        raise CommandError(self.name, worst)


def _certain(path: str) -> int:
    """Return the errno by which an exec of `path` will fail, as far as a look tells; else 0, and exec finds out.

    Who only creates a container wants to be told then: Podman knows 127 from 126 by what `create` says.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        return error.errno or errno.ENOENT
    except OSError:
        return 0
    return 0 if stat.S_ISREG(mode) and mode & 0o111 else errno.EACCES


@dataclass(frozen=True)
class SealProgram(Step):
    """The program that executes the container's: see last_exec."""

    keep: int = 0  # how many fds from 3 on are the container's program's own

    def describe(self) -> str:
        return "put a last program into sealed memory: /proc/self/exe is to lead there"

    def execute(self, child: Child) -> None:
        last = last_exec.CHANNEL + self.keep
        child.program = fcntl.fcntl(last_exec.program(last), fcntl.F_DUPFD_CLOEXEC, last + 1)
        os.dup2(fcntl.fcntl(child.report_to, fcntl.F_DUPFD_CLOEXEC, last + 1), last)


@dataclass(frozen=True)
class InstallFilter(Step):
    """From here on this process too may do only what the filter lets it."""

    program: bytes  # BPF, made by `seccomp.program`
    name: str = "default"

    def describe(self) -> str:
        return f"seccomp: {self.name}"

    def execute(self, child: Child) -> None:
        seccomp.install(self.program)


@dataclass(frozen=True)
class Exec(Step):
    """The sealed program takes this process's place, and the container's command takes that one's."""

    says = "errno"

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()

    def describe(self) -> str:
        return f"exec {shlex.join(self.argv)}"

    def execute(self, child: Child) -> None:
        self.replace_process(child.program, [child.path, *self.argv], child)

    def replace_process(self, program: int | str, argv: list[str], child: Child) -> None:
        """Execute a program with this step's environment. Raises CommandError."""
        try:
            os.execve(program, argv, as_dict(self.env, child.home))
        except (ValueError, OSError) as error:
            raise CommandError(child.path, getattr(error, "errno", None) or errno.EINVAL) from None

    def answer(self, spawned: Spawned, value: object, fds: list[int]) -> bool:
        if isinstance(value, int):
            raise CommandError(self.argv[0], value)
        return False


def as_dict(env: tuple[str, ...], home: str = "") -> dict[str, str]:
    """Return "NAME=value" pairs as a dict, with `home` for a HOME that is missing or empty."""
    found = dict(pair.split("=", 1) for pair in env)
    return {**found, "HOME": found.get("HOME") or home} if home else found
