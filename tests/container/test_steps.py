"""What is printed is what is done, and in that order: the list of steps beside the kernel's own account of a start."""

import re
import shlex
import shutil
import subprocess
import sys
from types import UnionType
from typing import get_args, get_origin

import pytest

from labkit.container import launch, records, steps
from labkit.container.life import Container
from labkit.container.spec import Spec
from labkit.ground.dataclass import fields, replace

pytestmark = pytest.mark.usefixtures("needs_root")

# What a line of `lab run --explain` says, and the first syscall by which the kernel knows that it is done.
TELLTALES = (
    (r"new cgroup, memory at most (\d+) .*", r'write\(\d+, "{1}"|openat\(.*memory'),
    (r"new cgroup, .*", r'mkdir\("/sys/fs/cgroup/'),
    (r"new namespace, cgroup: .*", r"unshare\(CLONE_NEWCGROUP"),
    (r"new namespace, mnt: .*", r"clone3\(.*CLONE_NEWNS"),
    (r"new namespace, (\w+): .*", r"clone3\(.*CLONE_NEW(?i:{1})"),
    (r"born in its cgroup", r"clone3\(.*CLONE_INTO_CGROUP"),
    (r"enter the cgroup .*", r'write\(\d+, "0"'),
    (r"let nobody trace .*", r"prctl\(PR_SET_DUMPABLE, (SUID_DUMP_DISABLE|0)"),
    (r"new session", r"setsid\(\)"),
    (r"sethostname (.*)", r'sethostname\("{1}"'),
    (r"ip link set lo up", r"ioctl\(.*SIOCSIFFLAGS.*IFF_UP"),
    (r"make every mount private .*", r'mount\(NULL, "/", NULL, MS_REC\|MS_PRIVATE'),
    (r"mount overlay of .*", r'fsopen\("overlay"'),
    (r"mount (\S+) on .*", r'fsopen\("{1}"'),
    (r"bind (\S+) to .*", r'open_tree\(AT_FDCWD, "{1}"'),
    (r"link \S+ to (.*)", r'symlinkat\("{1}"'),
    (r"mask (/(\S+))", r'openat2\(\d+, "{2}"'),
    (r"make /(\S+) read-only", r'openat2\(\d+, "{1}"'),
    (r"make the mount at /(\S+) read-only", r'openat2\(\d+, "{1}"'),
    (r"sysctl (\S+)=(.*)", r'write\(\d+, "{2}"'),
    (r"pivot_root: .*", r"pivot_root\("),
    (r"look up user .*", r'openat\(AT_FDCWD, "/etc/passwd"'),
    (r"fds 0, 1 and 2, .*", r"dup2\(\d+, 0\)|dup3\(\d+, 0,"),
    (r"cd (.*)", r'chdir\("{1}"'),
    (r"new session keyring", r"keyctl\(KEYCTL_JOIN_SESSION_KEYRING"),
    (r"every fd from (\d+) .*", r"close_range\({1},"),
    (r"keep the capabilities .*", r"prctl\(PR_CAPBSET_DROP"),
    (r"become user (\d+)", r"setresuid\({1}, {1}, {1}\)"),
    (r"capset: .*", r"capset\("),
    (r"no_new_privs", r"prctl\(PR_SET_NO_NEW_PRIVS, 1"),
    (r"default signals, umask (\d+)", r"umask\({1}\)"),
    (r"be killed when the parent ends .*", r"prctl\(PR_SET_PDEATHSIG, SIGKILL"),
    (r"look for (\S+) on the PATH", r'access\(".*/{1}"'),
    (r"put a last program into sealed memory.*", r"fcntl\(\d+, F_ADD_SEALS"),
    (r"seccomp: .*", r"seccomp\(SECCOMP_SET_MODE_FILTER"),
    (r"exec (\S+)", r'execve\("/bin/{1}"'),
)


def telltale(line):
    """Return the pattern of the syscall that shows a line to be done."""
    for said, done in TELLTALES:
        if found := re.fullmatch(said, line):
            for number, group in enumerate(found.groups(), 1):
                done = done.replace(f"{{{number}}}", re.escape(group))
            return done
    raise AssertionError(f"no syscall is known that would show this to be done: {line}")


def out_of_order(lines, calls):
    """Return the first line whose syscall is not found after that of the line before it, None if all are."""
    place = 0
    for line in lines:
        pattern = re.compile(telltale(line))
        later = (number for number in range(place, len(calls)) if pattern.search(calls[number]))
        if (place := next(later, None)) is None:
            return line
    return None


@pytest.fixture(scope="module")
def told_and_done(tmp_path_factory):
    """Return what `lab run --explain` prints, and the syscalls of that very start."""
    # The same number for both: it is in the host's name, and in the paths of what is bound.
    code = (
        "from labkit.container.life import Container; from labkit.container.spec import Spec\n"
        "box = Container.of(Spec.make('busybox', 'true', memory='32m'), 'feedc0ffee01')\n"
        "print(*box.describe(), sep='\\n')\n"
        "with box.start(): box.wait(60)"
    )
    return traced(code, tmp_path_factory.mktemp("trace") / "calls")


def traced(code, trace):
    """Run some Python; return (the lines that it printed, the syscalls that it made)."""
    if not shutil.which("strace"):
        pytest.skip("no strace to look over the kernel's shoulder")
    command = ["strace", "-f", "-s", "300", "-o", trace, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), _whole_calls(trace.read_text().splitlines())


def _whole_calls(lines):
    """Return the calls of a trace, each at the place where it was begun."""
    calls, begun = [], {}
    for line in lines:
        pid, call = line.split(maxsplit=1)
        if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", call):
            if pid in begun:
                calls[begun.pop(pid)] += resumed[1]
            continue
        if call.endswith("<unfinished ...>"):
            begun[pid] = len(calls)
            call = call.removesuffix("<unfinished ...>")
        calls.append(call)
    return calls


def test_what_is_explained_is_what_the_kernel_is_asked_for_in_that_order(told_and_done):
    lines, calls = told_and_done
    assert out_of_order(lines, calls) is None


@pytest.mark.parametrize("start", ["new session", "pivot_root", "keep the capabilities", "no_new_privs"])
def test_a_step_that_is_told_at_another_place_than_it_is_done_is_seen(told_and_done, start):
    lines, calls = told_and_done
    said = next(line for line in lines if line.startswith(start))
    others = [line for line in lines if line != said]
    assert out_of_order([said, *others], calls) is not None
    assert out_of_order([*others, said], calls) is not None


def test_a_job_whose_steps_are_done_in_another_order_than_they_are_told_fails_the_comparison(told_and_done):
    """As `--explain` was wrong once: the session was told after the mounts, and made before them."""
    lines, calls = told_and_done
    session = calls.index(next(call for call in calls if call.startswith("setsid()")))
    pivot = calls.index(next(call for call in calls if call.startswith("pivot_root(")))
    swapped = [*calls[:session], *calls[session + 1 : pivot + 1], calls[session], *calls[pivot + 1 :]]
    assert out_of_order(lines, swapped) is not None


def test_what_is_left_out_of_the_steps_is_neither_told_nor_done():
    box = Container("busybox", ["sh", "-c", "grep NoNewPrivs /proc/self/status"])
    # Without it nobody but CAP_SYS_ADMIN may install a filter.
    fewer = steps.NoNewPrivs | steps.InstallFilter
    box.altered = lambda job: replace(job, steps=launch.instead(job.steps, fewer))
    assert "no_new_privs" not in box.describe()
    with box.start():
        box.wait(30)
        assert box.logs().split() == ["NoNewPrivs:", "0"]


def test_each_step_says_itself_in_a_line_of_its_own(told_and_done):
    lines, _ = told_and_done
    assert len(lines) == len(set(lines)), shlex.join(lines)


def test_a_terminal_becomes_the_console_by_its_fd_and_by_no_name(own_root, needs_root, tmp_path):
    """What its name leads to can be exchanged in the next moment: CVE-2025-52565."""
    code = "from labkit.container.life import run; print(run('busybox', 'ls /dev/console', tty=True).code)"
    printed, calls = traced(code, tmp_path / "calls")
    assert printed[-1] == "0" and any("TIOCGPTPEER" in call for call in calls)
    assert not [call for call in calls if '"/dev/pts/' in call and call.startswith(("open", "mount", "move"))]


def test_the_shape_of_a_record_is_that_of_a_spec():
    """Said twice, for the sake of `lab ps`; and said alike."""

    def in_json(one):
        kinds = get_args(one.type) if isinstance(one.type, UnionType) else (one.type,)
        return {list if get_origin(kind) is tuple else dict if hasattr(kind, "__fields__") else kind for kind in kinds}

    told = records.CONTAINER.shape["spec"]
    assert set(told) == {one.name for one in fields(Spec)}
    for one in fields(Spec):
        shape = told[one.name]
        said = {list} if isinstance(shape, list) else set(get_args(shape) or (shape,))
        assert said == in_json(one), one.name


def test_listing_containers_loads_nothing_that_starts_one():
    words = "import sys; from labkit.app.cli import main; main(['ps']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True).stdout.split()
    assert "labkit.container.records" in loaded
    assert not {"labkit.container.spec", "labkit.container.steps", "labkit.isolation.mounts"} & set(loaded)
    assert not {"labkit.ground.syscalls", "ctypes", "pathlib", "locale"} & set(loaded)
