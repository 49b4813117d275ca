"""What every container has to keep, tried from within: labkit's own, and the one that a participant wrote.

A promise is a function. It runs commands in containers by `run(words) -> (exit
status, what it printed)` and returns what is wrong, or nothing. Its docstring is the
promise. The limits it expects are those of chapter 12: 32 MiB, 20 processes, half a
CPU; the host name is mycontainer.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from labkit.ground import ledger, proc

Run = Callable[[list[str]], tuple[int, str, str]]  # words: exit status, stdout, stderr
Promise = Callable[[Run], str]
ALL: list[Promise] = []


def promise(function: Promise) -> Promise:
    """Add a promise to the list."""
    ALL.append(function)
    return function


def script(path: str | Path) -> Run:
    """Return a `run` for a script that takes a command, as chapter 12's does."""
    return runner([sys.executable, str(path)])


def labkits_own() -> Run:
    """Return a `run` for `lab run` with the same limits and name."""
    flags = "--memory 32m --memory-swap 32m --pids-limit 20 --cpus 0.5"
    flags += " --hostname mycontainer --cap-drop MKNOD --network none"
    return runner([sys.executable, "-m", "labkit", "run", "--rm", *flags.split(), "busybox"])


def runner(command: list[str]) -> Run:
    """Return a function that runs `command` and some words behind it: (exit status, stdout, stderr)."""

    def run(words: list[str]) -> tuple[int, str, str]:
        done = subprocess.run(
            [*command, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, text=True, errors="replace"
        )
        return done.returncode, done.stdout, done.stderr

    return run


def _prints(run: Run, shell: str, expected: str) -> str:
    _, text, complaint = run(["sh", "-c", shell])
    if text.strip() == expected:
        return ""
    return f"`{shell}` printed {(text.strip() or complaint.strip())[:200]!r} and not {expected!r}"


@promise
def is_number_one(run: Run) -> str:
    """Its first process is number 1."""
    return _prints(run, "echo $$", "1")


@promise
def sees_only_itself(run: Run) -> str:
    """It sees its own processes and no others."""
    return _prints(run, "cd /proc; echo [0-9]*", "1")


@promise
def has_a_name(run: Run) -> str:
    """It has a host name of its own, and the host keeps its name."""
    before = os.uname().nodename
    wrong = _prints(run, "hostname", "mycontainer")
    return wrong or (f"the host is now named {os.uname().nodename}" if os.uname().nodename != before else "")


@promise
def has_a_network_of_its_own(run: Run) -> str:
    """It has network links of its own, and not the host's."""
    _, text, _ = run(["readlink", "/proc/self/ns/net"])
    if not text.startswith("net:["):
        return f"it can't read which network namespace it is in: {text.strip()[:200]}"
    return "it is in the host's network namespace" if text.strip() == os.readlink("/proc/self/ns/net") else ""


@promise
def has_a_root_of_its_own(run: Run) -> str:
    """Its root is an overlay, and no folder of the host is mounted in it."""
    code, text, complaint = run(["cat", "/proc/self/mountinfo"])
    if code:
        return f"it can't read its own mount table: {complaint.strip()[:200]}"
    mounts = proc.parse_mounts(text)
    if mounts[0].type != "overlay" or mounts[0].target != "/":
        return f"its root is {mounts[0]}"
    host = next(mount.device for mount in proc.mounts() if mount.target == "/")
    folders = [m.target for m in mounts if m.device == host and m.root not in _GIVEN and not m.root.startswith("/dev/")]
    folders = [target for target in folders if target not in _GIVEN]
    return f"the host's disk is mounted on {', '.join(folders)}" if folders else ""


_GIVEN = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")  # files with the container's own name, as docker has them


@promise
def leaves_the_hosts_mounts_alone(run: Run) -> str:
    """Nothing that it mounts shows up on the host."""
    before = {mount.target for mount in proc.mounts()}
    if run(["true"])[0]:
        return "nothing runs in it"
    mark = re.compile("/labkit/|" + re.escape(os.environ.get("LABKIT_ROOT", "/labkit/")))
    more = [mount.target for mount in proc.mounts() if mount.target not in before and mark.search(mount.target)]
    return f"mounted on the host since: {', '.join(more)}" if more else ""


@promise
def has_no_way_to_the_hosts_files(run: Run) -> str:
    """No path leads to the host's files, and `..` does not either."""
    with tempfile.NamedTemporaryFile(prefix="host-only-") as secret:
        up = "/".join([".."] * 20)
        tries = (
            secret.name,
            f"{up}{secret.name}",
            f"/old{secret.name}",
            f"/proc/1/root{secret.name}",
            f"/proc/1/cwd/{up}{secret.name}",
        )
        return _prints(run, f"for f in {' '.join(tries)}; do [ ! -e $f ] || echo $f; done; echo none", "none")


@promise
def opens_no_disk(run: Run) -> str:
    """It can make no device file that opens a disk, and mount none."""
    shell = (
        "for at in /dev /tmp; do mknod $at/disk b 8 0 2>/dev/null"
        " && head -c1 $at/disk 2>/dev/null >/dev/null && echo opened;"
        " done; mount -t tmpfs none /tmp 2>/dev/null && echo mounted; echo no"
    )
    return _prints(run, shell, "no")


@promise
def commands_no_kernel(run: Run) -> str:
    """It can't write what the host's kernel obeys."""
    # Opened for writing, never written: a broken container must not break the host.
    shell = (
        "for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do (: 3<>$f) 2>/dev/null && echo $f; done; echo no"
    )
    return _prints(run, shell, "no")


@promise
def keeps_little_power(run: Run) -> str:
    """Its root has few capabilities and can win no more."""
    code, text, complaint = run(["cat", "/proc/self/status"])
    lines = dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)
    if code or "CapBnd" not in lines:
        return f"it can't read its own status: {complaint.strip()[:200]}"
    if any(int(lines[name], 16) >> 21 & 1 for name in ("CapEff", "CapPrm", "CapBnd")):
        return "CAP_SYS_ADMIN is still there"
    return "" if lines["NoNewPrivs"] == "1" else "no_new_privs is not set"


@promise
def dies_of_too_much_memory(run: Run) -> str:
    """A process that wants twice the memory it may have is killed: 137."""
    words = "dd if=/dev/zero of=/dev/null bs=64M count=1"
    code, *_ = run(words.split())
    return "" if code == 137 else f"`{words}`, which fills a buffer of 64 MiB, ended with {code}"


@promise
def holds_a_fork_bomb(run: Run) -> str:
    """A fork bomb gets no more than its 20 processes."""
    _, text, _ = run(["sh", "-c", "for i in $(seq 40); do sleep 5 & done; echo all 40"])
    return "it could start 40 processes" if "all 40" in text else ""


@promise
def gets_half_a_cpu(run: Run) -> str:
    """Processes that never stop get half of a CPU together."""
    spin = "for i in 1 2 3; do timeout 1 sh -c 'while :; do :; done' & done; wait"
    now = "read up idle </proc/uptime; echo up $up; times"
    _, text, _ = run(["sh", "-c", f"{now}; {spin}; {now}"])
    spent = [int(minutes) * 60 + float(seconds) for minutes, seconds in re.findall(r"(\d+)m([\d.]+)s", text)]
    # `times` has two lines of two: execve keeps what the process used before, while it was being made.
    used = sum(spent[4:]) - sum(spent[:4])
    # A busy machine ends the second late.
    times = [float(seconds) for seconds in re.findall(r"^up ([\d.]+)$", text, re.M)]
    passed = max(1, times[-1] - times[0]) if times else 1
    return "" if 0.05 < used < 0.7 * passed else f"in {passed:.1f} s they got {used:.2f} s of CPU: {text.strip()[:200]}"


@promise
def changes_no_image(run: Run) -> str:
    """What it writes is gone with it: the image stays as it is."""
    if wrong := has_a_root_of_its_own(run):
        return wrong  # or the next line would change the host
    run(["sh", "-c", "echo changed > /etc/os-release; rm /bin/vi"])
    return _prints(run, "grep -c changed /etc/os-release; ls /bin/vi", "0\n/bin/vi")


@promise
def ends_with_its_commands_status(run: Run) -> str:
    """Its exit status is the command's own; 126, 127 and 128+n as Docker has them."""
    for words, code in (
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
        (["sh", "-c", 'sh -c "kill -TERM \\$\\$"; exit $?'], 143),
    ):
        found, text, complaint = run(words)
        if found != code:
            return f"`{' '.join(words)}` ended with {found} and not {code}: {(complaint or text).strip()[:200]}"
    return ""


@promise
def leaves_nothing_behind(run: Run) -> str:
    """It leaves nothing behind: no process, no cgroup, no line in the ledger."""
    before = {entry.number for entry in ledger.entries()}
    if run(["true"])[0]:
        return "nothing runs in it"
    left = [str(entry) for entry in ledger.entries() if entry.number not in before]
    return f"left: {', '.join(left)}" if left else ""
