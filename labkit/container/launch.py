"""From clone to exec: what the child does to itself before it becomes the container.

The parent has cloned it into new namespaces; it runs labkit's code, with root's
power, and sees the host's files. Step by step it gives that up, and the last step
replaces it with the container's own program. The order is the lock:

    session, cgroup namespace, host name, loopback     while it may still do so
    the mount plan and pivot_root                      the host's files are gone
    terminal or pipes                                  its only way to the outside
    keyring, bounding set, user, capabilities          power, from the outside in
    no_new_privs, seccomp                              none of it comes back
    every other fd close-on-exec, then exec

What the child says on its channel is plain JSON, and is read as from a stranger:
at the very end it is one. A Job says what to do and is plain data. Whatever fails
goes back through the channel as a LabError with the step's name, and the child is
gone.
See clone(2), setns(2), capabilities(7), execve(2).
"""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import stat
import struct
import termios
from dataclasses import dataclass, replace

from labkit.container import gate, hooks, joining
from labkit.container.channel import ask, await_go, say
from labkit.ground import proc
from labkit.ground import syscalls as sc
from labkit.ground.errors import CommandError, KernelError, LabError, errno_name, from_oserror, to_plain
from labkit.isolation import last_exec, mounts, namespaces, seccomp, security, settings
from labkit.isolation.settings import Settings
from labkit.isolation.users import find_user, home_of


@dataclass(frozen=True)
class Job:
    """One process to be started in a container: the first one, or with `join` a further one."""

    argv: tuple
    env: tuple = ()  # "NAME=value"
    cwd: str = "/"
    user: str = "0"  # uid, name, uid:gid or name:group of the image's own /etc/passwd
    namespaces: tuple = ()
    plan: mounts.Plan | None = None
    hostname: str | None = None
    capabilities: tuple = ()
    terminal: bool = False
    cgroup_tasks: tuple = ()  # v1: files that the child writes itself into
    cgroup_into: str | None = None  # a v2 cgroup's folder, to be born in
    uid_map: tuple = ()
    gid_map: tuple = ()
    idmapped: bool = False  # the parent hands the root over, its files under the container's ids
    clock_offsets: tuple | None = None  # seconds: monotonic, boottime
    network: object | None = None  # a network.Plug, put in by the parent
    join: int | None = None  # the pid whose namespaces are entered
    seccomp: bytes = b""  # a BPF program, made by `seccomp.program`
    unlocked: tuple = ()  # names of security.LOCKS that are left off, to teach what they hold
    # What only an OCI runtime is asked for:
    ids: tuple | None = None  # uid, gid, further gids as numbers: the image's files are not asked
    power: security.Sets | None = None  # the five capability sets one by one
    settings: Settings = Settings()
    paths: tuple = ()  # (kind, path) of namespaces that are joined and not made
    hooks: tuple = ()
    state: dict | None = None  # what hooks in the container are told
    gate: str | None = None  # the folder of the gate to wait at before exec
    survives: bool = False  # the death of who made it
    keep_fds: int = 0  # how many fds from 3 on are the program's own
    console_size: tuple | None = None  # rows, columns

    @property
    def joins(self):
        """Tell whether it enters namespaces that are there, and so goes on as a grandchild."""
        return self.join is not None or bool(self.paths)


def become(job, channel, stdio):
    """Turn the calling process, fresh from clone3, into the job's program. Never returns."""
    try:
        handed = await_go(channel)
        if handed:
            job = replace(job, plan=replace(job.plan, root=mounts.HandedRoot(handed[0])))
        _become(job, channel, stdio)
    except LabError as error:
        _report(channel, error)
    except OSError as error:
        _report(channel, from_oserror(error, "setting up the container"))
    except BaseException as error:  # noqa: BLE001 - a bug in labkit must be seen too
        _report(channel, LabError(f"labkit itself failed while setting up: {error!r}"))
    finally:
        os._exit(1)


_opened_gate = None  # in a child that has passed its gate: where errors go from then on


def _report(channel, error):
    if _opened_gate is not None:
        os.write(_opened_gate, json.dumps(to_plain(error)).encode(errors="replace"))
    else:
        say(channel, "error", to_plain(error))


def _become(job, channel, stdio):
    global _opened_gate
    _enter_cgroups(job.cgroup_tasks)
    gate_fds = gate.come_to(job.gate) if job.gate else ()
    host_proc = settings.open_proc(job.settings.apparmor) if job.settings.apparmor else None
    if not job.joins:
        _shift_clocks(job)  # while /proc/self is still its own: a change of user takes that away
    # Until exec this process is labkit with the host's power in the container's pid
    # namespace: nobody there may trace it or open its /proc/PID/exe and fds.
    if "user" in job.namespaces and not job.paths:
        joining.become_root_inside()
    sc.prctl(sc.PR_SET_DUMPABLE, 0)
    if job.join is not None:
        joining.container(job, channel)
    elif job.paths:
        joining.paths(job, channel)
    if "session" not in job.unlocked:
        os.setsid()
    if job.join is None:
        _furnish(job, channel)
    uid, gid, groups, home = (*job.ids, home_of(job.ids[0])) if job.ids else find_user(job.user)
    if job.terminal:
        stdio = _open_terminal(channel, uid, console=job.plan is not None, size=job.console_size)
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
        _give(target, uid, gid, files=not job.ids)
    _go_to(job.cwd)
    if "keyring" not in job.unlocked:
        with contextlib.suppress(KernelError):  # a kernel without keyrings has none to leak
            sc.keyctl(sc.KEYCTL_JOIN_SESSION_KEYRING, None)
    if "close_fds" not in job.unlocked:
        sc.close_range(3 + job.keep_fds, 2**32 - 1, sc.CLOSE_RANGE_CLOEXEC)
    if job.settings.rlimits:
        ask(channel, "rlimits")
    _drop_power(job, uid, gid, groups)
    _reset_signals(job.settings.umask)
    # Set last: a change of user clears it.
    if not job.survives:
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    env = dict(pair.split("=", 1) for pair in job.env)
    env.setdefault("HOME", home)
    path = _find(job.argv[0], env)
    if gate_fds:
        say(channel, "created")
        _opened_gate = gate_fds[1]
        gate.wait(gate_fds[0])
        hooks.run(job.hooks, ["startContainer"], {**job.state, "status": "created", "pid": os.getpid()})
    if host_proc is not None:
        settings.apparmor_on_exec(host_proc, job.settings.apparmor)
    _exec(job, path, env, channel.fileno() if _opened_gate is None else _opened_gate)


def _enter_cgroups(tasks):
    """Move this thread, the only one, into v1 cgroups. See cgroups(7).

    A thread that moves itself (0 in `tasks`) is cheap. To move a process by its
    number the kernel stops all forks on the machine, and waits some 10 ms for that.
    """
    for path in tasks:
        try:
            proc.write_plain(path, "0")
        except OSError as error:
            raise from_oserror(error, f"entering the cgroup of {path}") from None


def _furnish(job, channel):
    """Set up the new namespaces, up to the root."""
    if "cgroup" in job.namespaces:
        # Only now: a cgroup namespace begins at the cgroup its maker is in, and the
        # parent has just put this process where it belongs.
        sc.unshare(sc.CLONE_NEWCGROUP)
    if job.hostname:
        sc.sethostname(job.hostname)
    if job.settings.domainname:
        sc.setdomainname(job.settings.domainname)
    if "net" in job.namespaces:
        loopback_up()
    if job.paths:
        _shift_clocks(job)

    def before_pivot():
        if job.hooks:
            ask(channel, "hooks")
            hooks.run(job.hooks, ["createContainer"], {**job.state, "pid": os.getpid()})
        # After the hooks: they may bring in the interface that a sysctl is about.
        settings.write_sysctls(job.settings.sysctls)

    if job.plan:
        job.plan.execute(before_pivot)


def _shift_clocks(job):
    if "time" in job.namespaces:
        namespaces.set_time_offsets(*(job.clock_offsets or (0, 0)))


def loopback_up():
    """Switch on `lo`, which a new net namespace has but down. See netdevice(7)."""
    SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        request = fcntl.ioctl(door, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16sH14x", request)[1]
        fcntl.ioctl(door, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _open_terminal(channel, uid, console, size=None):
    """Make a pseudo-terminal of the container's own devpts; send the master out. See pty(7)."""
    TIOCSPTLCK, TIOCGPTPEER = 0x40045431, 0x5441
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    device = os.fstat(master)
    if not stat.S_ISCHR(device.st_mode) or os.major(device.st_rdev) not in (5, 128):
        raise LabError("/dev/ptmx in the container is not a terminal multiplexer", "something in it replaced it")
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    # By ioctl and not by name: /dev/pts/0 could be anything by now.
    slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    os.fchown(slave, uid, -1)
    if size:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    if console:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mounts.Bind(os.ttyname(slave), "/dev/console", recursive=False).execute(root)
        os.close(root)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    say(channel, "terminal", fds=[master])
    os.close(master)
    return (slave, slave, slave)


def _give(fd, uid, gid, files):
    """Make a pipe, or our log, its user's, who opens /dev/stdout with his own rights. See /proc/PID/fd in proc(5)."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or (stat.S_ISREG(mode) and fd and files):
        with contextlib.suppress(OSError):  # a stranger's, in a user namespace
            os.fchown(fd, uid, gid)


def _go_to(cwd):
    try:
        os.makedirs(cwd, exist_ok=True)
        os.chdir(cwd)
    except OSError as error:
        raise from_oserror(error, f"going to the working directory {cwd}") from None
    # A cwd that is a leaked fd of the host shows up as "(unreachable)/…".
    if not os.getcwd().startswith("/"):
        raise LabError(f"the working directory {cwd} is outside the container's root")


def _drop_power(job, uid, gid, groups):
    if "no_new_privs" in job.unlocked:
        # Without that lock only CAP_SYS_ADMIN may install a filter: while it is there.
        seccomp.install(job.seccomp)
    sets = job.power or security.Sets.root(job.capabilities if uid == 0 else (), job.capabilities)
    security.limit_bounding_set(sets.bounding)
    _become_user(job, uid, gid, groups)
    security.set_sets(sets)
    if "no_new_privs" not in job.unlocked:
        security.no_new_privs()


def _become_user(job, uid, gid, groups):
    try:
        with contextlib.suppress(PermissionError):  # rootless: setgroups(2) was given up with the id map
            os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        if job.power:
            sc.prctl(sc.PR_SET_KEEPCAPS, 1)  # or a change of user would empty all sets; exec clears it
        os.setresuid(uid, uid, uid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise LabError(
            f"user {uid}:{gid} does not exist in this container's user namespace: {errno_name(error.errno)}",
            "an id that its map leaves out; without root there is only user 0, else --userns FIRST:COUNT with more",
        ) from None


def _reset_signals(umask):
    # exec keeps what is ignored, and Python ignores these two.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(umask)


def _exec(job, path, env, report_to):
    """Replace this process; `report_to` is the fd that takes an errno. See execve(2), environ(7)."""
    filtered = job.seccomp if "no_new_privs" not in job.unlocked else b""
    if "exe" in job.unlocked:
        seccomp.install(filtered)
        with _as_command_error(path):
            os.execve(path, job.argv, env)
    last = last_exec.CHANNEL + job.keep_fds
    program = fcntl.fcntl(last_exec.program(last), fcntl.F_DUPFD_CLOEXEC, last + 1)
    report_to = fcntl.fcntl(report_to, fcntl.F_DUPFD_CLOEXEC, last + 1)
    os.dup2(report_to, last)
    # The last thing before exec: from here on this process too may do only what the filter lets it.
    seccomp.install(filtered)
    with _as_command_error(path):
        os.execve(program, [path, *job.argv], env)


@contextlib.contextmanager
def _as_command_error(name):
    try:
        yield
    except (ValueError, OSError) as error:
        raise CommandError(name, getattr(error, "errno", None) or errno.EINVAL) from None


def _find(name, env):
    """Return the path of a command; raise CommandError if there is none that may be executed."""
    if "/" in name:
        return name
    worst = errno.ENOENT
    folders = env.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").split(":")
    for path in (f"{folder or '.'}/{name}" for folder in folders):
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
        # Found but not executable beats not found, as in a shell.
        worst = errno.EACCES if os.path.lexists(path) else worst
    raise CommandError(name, worst)
