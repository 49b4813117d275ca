"""What `lab doctor` tries of the machine: control groups as they are mounted, CPUs, memory, commands."""

import fcntl
import functools
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

from labkit.app.probing import probe, run
from labkit.cgroups import hierarchies
from labkit.ground import packages, proc, state, syscalls
from labkit.ground.child import in_child
from labkit.ground.errors import LabError, Unsupported

# ---- control groups ----------------------------------------------------------


def _controller(name: str, version: int | None = None) -> str:
    tree = hierarchies.home(name)
    if version not in (None, tree.version):
        raise Unsupported(f"the {name} controller is in v{tree.version} here")
    return f"v{tree.version}, {tree.mount}"


for _name, _lost in {
    "cpu": "04: no CPU quota, no weights",
    "cpuset": "04: no CPUs of its own",
    "memory": "05: no memory limit, no OOM kill",
    "pids": "05: no limit against a fork bomb",
    "io": "05: no limit on disk traffic",
}.items():
    probe(f"cgroup {_name}", "cgroup", _lost, vital=_name == "cpu", look=functools.partial(_controller, _name))
    for _number in (1, 2):
        # For tests and chapters to ask by name; no line in the table.
        probe(f"cgroup v{_number} {_name}", "", _lost, look=functools.partial(_controller, _name, _number))


def _in_v2_cgroup(function: Callable[[Path], object]) -> object:
    """Call `function` with a fresh folder of the v2 tree, and remove that."""
    tree = hierarchies.unified()
    if tree is None:
        raise Unsupported("no cgroup v2 tree is mounted")
    folder = tree.own / f"{state.label()}-doctor-{os.getpid()}"
    folder.mkdir()
    try:
        return function(folder)
    finally:
        folder.rmdir()


@probe("a container with limits", "cgroup", "02, 04, 05, 12: no container starts, or none is held", vital=True)
def _probe_a_container_with_limits() -> object:
    from labkit.container import life

    try:
        done = life.run("busybox", ["true"], show=False, memory="32m", cpus="0.5", pids_limit=8)
    except LabError as error:  # the table shows no hints, and this one says what to do
        raise Unsupported("; ".join(filter(None, (error.message, error.hint)))) from None
    if done.code:
        raise Unsupported(f"its command ended with {done.code}: {done.output.strip()[-200:]}")
    return "started, and gone"


@probe("cgroup v2", "cgroup", "04: only v1's hierarchies can be shown")
def _probe_cgroup_v2() -> object:
    tree = hierarchies.unified()
    if tree is None:
        raise Unsupported("no cgroup v2 tree is mounted")
    return f"{tree.mount}, with " + (" ".join(tree.controllers) or "no controller of the lab's")


@probe("cgroup v1", "cgroup", "04: only v2's one tree can be shown")
def _probe_cgroup_v1() -> object:
    trees = [tree for tree in hierarchies.hierarchies() if tree.version == 1]
    if not trees:
        raise Unsupported("no cgroup v1 hierarchy is mounted: this machine has left it behind")
    return "with " + " ".join(name for tree in trees for name in tree.controllers)


@probe("cgroup.kill", "cgroup", "02, 05: processes are killed one by one")
def _probe_cgroup_kill() -> None:
    _in_v2_cgroup(lambda folder: (folder / "cgroup.kill").write_text("1"))


@probe("freeze", "cgroup", "05: no container stands still")
def _probe_freeze() -> object:
    try:
        return f"freezer, {_controller('freezer')}"
    except LabError:
        return _in_v2_cgroup(lambda folder: (folder / "cgroup.freeze").write_text("1")) and "cgroup.freeze, v2"


@probe("clone3 into a cgroup", "cgroup", "04: a child is moved into its cgroup after its birth")
def _probe_clone3_into_a_cgroup() -> None:
    def born_inside(folder: Path) -> None:
        fd = os.open(folder, os.O_DIRECTORY | os.O_CLOEXEC)
        pid, _ = syscalls.clone3(0, signal.SIGCHLD, fd)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    _in_v2_cgroup(lambda folder: in_child(born_inside, folder))


@probe("PSI", "cgroup", "05: no pressure figures")
def _probe_psi() -> object:
    return "CPU: " + Path("/proc/pressure/cpu").read_text().splitlines()[0]


@probe("swap", "cgroup", "05: memory over the limit can't go to disk")
def _probe_swap() -> object:
    areas = Path("/proc/swaps").read_text().splitlines()[1:]
    if not areas:
        raise Unsupported("/proc/swaps lists none")
    return ", ".join(area.split()[0] for area in areas)


# ---- machine -----------------------------------------------------------------


@probe("KVM", "machine", "00: a virtual machine is emulated, and slow")
def _probe_kvm() -> object:
    fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        return f"API {fcntl.ioctl(fd, 0xAE00)}"  # KVM_GET_API_VERSION
    finally:
        os.close(fd)


@probe("two CPUs", "machine", "04: no choice of CPUs to show")
def _probe_two_cpus() -> object:
    number = len(os.sched_getaffinity(0))
    if number < 2:
        raise Unsupported("there is 1")
    return f"{number} of them"


@probe("1 GB of memory", "machine", "05, 07: containers may be killed for want of it")
def _probe_1_gb_of_memory() -> object:
    found = re.search(r"MemTotal:\s+(\d+)", proc.read("/proc/meminfo"))
    total = int(found[1]) // 1024 if found else 0
    if total < 900:
        raise Unsupported(f"there are {total} MB")
    return f"{total} MB"


# ---- commands ----------------------------------------------------------------


def _version(*command: str) -> str:
    """Return the version that a command says it has."""
    number = re.search(r"\d+(\.\d+)+\S*", run(*command))
    return number[0].rstrip(",;)") if number else ""


@probe("busybox", "tool", "02, 12: no base image without a network", vital=True)
def _probe_busybox() -> object:
    binary = shutil.which("busybox")
    if not binary:
        raise Unsupported(f"no command busybox ({packages.advice('busybox')})")
    with tempfile.TemporaryDirectory(dir=state.lib_dir(), prefix="doctor-") as folder:
        shutil.copy2(binary, Path(folder, "busybox"))
        try:
            # A root with nothing else in it: only a static one finds all it needs.
            words = run("/busybox", preexec_fn=lambda: os.chroot(folder))
        except LabError:
            raise Unsupported(f"{binary} is not static: it does not start in an empty root") from None
    return words.split()[1]


_QEMU = {"aarch64": "qemu-system-aarch64"}.get(os.uname().machine, "qemu-system-x86_64")
for _name, _lost, *_command in (
    ("ip", "10: links are shown by labkit only", "ip", "-V"),
    ("nft", "10: no NAT, no published port", "nft", "--version"),
    ("docker", "02 to 13: no docker beside what labkit does", "docker", "--version"),
    ("docker engine", "02 to 13: docker is only a client here, and no engine can be started", "dockerd", "--version"),
    ("podman", "13: podman does not run labkit's containers", "podman", "--version"),
    ("skopeo", "09: images come from no registry and go to none", "skopeo", "--version"),
    ("docker-registry", "09: no registry of one's own to push to", "docker-registry", "--version"),
    ("runc", "13: no trace of a real runtime beside labkit's", "runc", "--version"),
    ("crun", "13: one runtime less to compare", "crun", "--version"),
    ("bwrap", "13: one runtime less to compare", "bwrap", "--version"),
    ("lxc", "01: no LXC on the same root filesystem", "lxc-start", "--version"),
    ("systemd-nspawn", "01: no systemd-nspawn on the same root filesystem", "systemd-nspawn", "--version"),
    ("systemd-cgls", "04: the cgroup tree is drawn by labkit", "systemd-cgls", "--version"),
    ("qemu", "00: no virtual machine beside the container", _QEMU, "--version"),
    ("tini-static", "02: no --init, a PID 1 that reaps", "tini-static", "--version"),
    ("setpriv", "02: no container of an ordinary user", "setpriv", "--version"),
    ("strace", "13: the runtime's syscalls can't be traced", "strace", "-V"),
    ("fuse-overlayfs", "08: no fuse-overlayfs driver", "fuse-overlayfs", "--version"),
    ("mkfs.btrfs", "08: no btrfs driver", "mkfs.btrfs", "--version"),
    ("chromium", "lab test: panels are not clicked in a real browser", "chromium", "--version"),
):
    probe(_name, "tool", _lost, look=functools.partial(_version, *_command))
