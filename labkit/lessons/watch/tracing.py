"""What a program asked of the kernel, and when: strace(1), read into Calls.

    for call in tracing.trace(["lab", "run", "busybox", "true"]):
        print(call)

strace stops the program at every call that is asked for, writes a line, and lets it
go on. So the order is the program's own, and the time is not: each stop costs tens
of microseconds. See ptrace(2).
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable

from labkit.ground.dataclass import dataclass
from labkit.ground.errors import LabError, Unsupported

# The calls that make a container, by what they are for.
KINDS = {
    "cgroup": ("mkdir", "mkdirat"),
    "namespaces": ("clone", "clone3", "unshare", "setns", "sethostname"),
    "mounts": (
        "mount", "fsopen", "fsconfig", "fsmount", "open_tree", "move_mount", "mount_setattr", "mknod", "mknodat",
    ),
    "root": ("pivot_root", "chroot", "umount2"),
    "power": ("prctl", "capset", "seccomp", "setuid", "setgid", "setresuid", "setresgid", "setgroups", "setsid"),
    "program": ("execve",),
}  # fmt: skip
# These only look, or name things.
_LOOKS = re.compile(r"PR_CAPBSET_READ|PR_GET_|PR_SET_NAME|PR_SET_VMA")


@dataclass(frozen=True)
class Call:
    """One syscall: when (seconds from the first one), by which process, with what, and what came of it."""

    at: float
    pid: int
    name: str
    arguments: str
    result: str

    @property
    def failed(self) -> bool:
        """Whether the kernel said no."""
        return self.result.startswith("-1")

    @property
    def kind(self) -> str:
        """What it is for, one of KINDS, or ''."""
        return next((kind for kind, names in KINDS.items() if self.name in names), "")

    def __str__(self) -> str:
        return f"{self.name}({self.arguments}) = {self.result}"


def trace(command: list[str], names: Iterable[str] | None = None, timeout: float = 200) -> list[Call]:
    """Run a command under strace(1); return its Calls of the given names (those in KINDS), in order.

    Its output is thrown away. Raises Unsupported without strace, LabError if the
    kernel does not let it trace or it takes more than `timeout` seconds.
    """
    if not shutil.which("strace"):
        raise Unsupported("this machine has no strace, so no syscall can be traced", "apt-get install strace")
    names = names or [name for kind in KINDS.values() for name in kind]
    with tempfile.NamedTemporaryFile("r", prefix="trace-") as out:
        # `?`: a call that this processor's kernel never had is no error.
        wanted = ",".join(f"?{name}" for name in names)
        strace = ["strace", *"-f -ttt -s 200 -e signal=none".split(), "-e", f"trace={wanted}", "-o", out.name, "--"]
        try:
            done = subprocess.run(
                [*strace, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{command[0]} took more than {timeout} s under strace") from None
        calls = parse(out.read())
    if not calls:
        raise LabError(f"strace saw nothing: {done.stderr.strip()[-300:]}", "may this process trace? `strace true`")
    return calls


_LINE = re.compile(
    r"^(\d+) +(\d+\.\d+) (?:<\.\.\. )?(\w+)(?:\((.*?)| resumed>(.*?))(?:\) += (.+)| <unfinished \.\.\.>)$"
)


def parse(text: str) -> list[Call]:
    """Return the Calls in what `strace -f -ttt -o` wrote. A call in two halves is dated by its first."""
    calls, halves, start = [], {}, None
    for line in text.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        pid, at, name, before, after, result = match.groups()
        start = float(at) if start is None else start
        if result is None:
            halves[pid] = (float(at), before)
            continue
        if before is None:
            at, before = halves.pop(pid, (at, ""))
        call = Call(float(at) - start, int(pid), name, (before or "") + (after or ""), result)
        if not _LOOKS.search(call.arguments):
            calls.append(call)
    return sorted(calls, key=lambda call: call.at)


def of_a_container(calls: list[Call]) -> list[Call]:
    """Return the calls that built a container: its cgroup folders, its clone, what its first process did until exec.

    What else the parent does meanwhile, for the network say, is left out.
    """
    done = [call for call in calls if not call.failed]
    clone = next((call for call in done if "CLONE_NEWPID" in call.arguments and call.name != "setns"), None)
    if clone is None:
        raise LabError("no container was made: there is no clone with CLONE_NEWPID in the trace")
    own = [call for call in done if call.pid == int(clone.result)]
    end = max((call.at for call in own if call.name == "execve"), default=0)
    folders = [call for call in done if call.kind == "cgroup" and "cgroup" in call.arguments and call.at < clone.at]
    return [*folders, clone, *(call for call in own if call.at <= end and call.kind != "cgroup")]
