"""Other container engines, started on the same files as ours, to be looked at side by side.

    with neighbours.lxc(folder, ["sleep", "1000"]) as pid:
        print(neighbours.look(pid))

LXC and systemd-nspawn ask the kernel for the same things as Docker and labkit do, and
choose a little differently. `look` reads from /proc what each has set up: it knows
nothing of the engine, only of the process.

Each engine runs in a mount namespace and a cgroup of ours, so that what it makes in
passing (locks in /run, folders in the cgroup trees) is gone when the block ends.
See lxc.container.conf(5), systemd-nspawn(1).
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from labkit.ground import ledger, packages, proc, state
from labkit.ground.errors import LabError, Unsupported
from labkit.isolation import security
from labkit.lessons.beside import engine

_COMMON = "/usr/share/lxc/config/common.conf"  # what LXC's own templates include: its locks


def missing(program):
    """Return why an engine can't be started here, or None."""
    if os.geteuid() != 0:
        return f"{program} needs root"
    return None if shutil.which(program) else f"no {program} on this machine ({packages.advice(program)})"


@contextlib.contextmanager
def lxc(folder, command):
    """Start `command` by LXC with `folder` as its root; yield its pid. Raises Unsupported without LXC."""
    _need("lxc-start")
    name = f"lxc-{state.new_id()}"
    with _home(name) as home, engine.own_cgroup(name) as places:
        v1 = any(tree.version == 1 and tree.controllers for tree, _ in places)
        where = "lxc.cgroup.relative = 1" if v1 else f"lxc.cgroup.dir = {state.label()}/{name}/box"
        lines = [
            *([f"lxc.include = {_COMMON}"] if os.path.exists(_COMMON) else []),
            f"lxc.uts.name = {name}",
            f"lxc.rootfs.path = dir:{folder}",
            "lxc.net.0.type = empty",
            "lxc.mount.auto = proc:mixed sys:ro",
            where,
            f"lxc.execute.cmd = {shlex.join(command)}",
            f"lxc.init.cmd = {shlex.join(command)}",
        ]
        (home / "config").write_text("\n".join(lines) + "\n")
        start = ["lxc-start", "-n", name, "-P", home, "-f", home / "config", "-F", "-o", home / "log"]
        with _running(start, home, places) as pid:
            yield pid


@contextlib.contextmanager
def nspawn(folder, command):
    """Start `command` by systemd-nspawn with `folder` as its root; yield its pid. Raises Unsupported without it."""
    _need("systemd-nspawn")
    name = f"nspawn-{state.new_id()}"
    with _home(name) as home, engine.own_cgroup(name) as places:
        # By itself it takes an image without systemd for an old one, and makes it a v1 tree, which stays
        # until a reboot.
        words = ("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", "UNIFIED_CGROUP_HIERARCHY=1") if _is_pure_v2(places) else ()
        start = [
            "systemd-nspawn",
            "--quiet",
            "--register=no",
            "--keep-unit",
            "--private-network",
            "-D",
            folder,
            *command,
        ]
        with _running(start, home, places, words) as pid:
            yield pid


def _is_pure_v2(places):
    return all(tree.version == 2 for tree, _ in places)


def _need(program):
    if reason := missing(program):
        raise Unsupported(f"nothing to compare with: {reason}")


@contextlib.contextmanager
def _home(name):
    folder = state.lib_dir("neighbours") / name
    with ledger.made("folder", path=str(folder)):
        folder.mkdir(0o700)
        yield folder


@contextlib.contextmanager
def _running(start, home, places, environment=(), seconds=20):
    """Start an engine in its cgroup and a mount namespace; yield the pid of the container's first process."""
    lines = []
    for tree, path in places:
        inside = path if tree.version == 1 else path / "daemon"
        inside.mkdir(exist_ok=True)
        lines.append(f"echo $$ > {shlex.quote(str(inside / 'cgroup.procs'))}")
    lines += ["mount -t tmpfs tmpfs /run", "exec " + shlex.join(["env", *environment, *map(str, start)])]
    with open(home / "says", "wb") as says:
        process = subprocess.Popen(
            # Their orphans become children of this one, and not of the machine's PID 1.
            [
                *(sys.executable, "-S", "-E", "-c", engine.REAPER),
                *("unshare", "--mount", "--propagation=private", "sh", "-ec", "\n".join(lines)),
            ],
            stdin=subprocess.DEVNULL, stdout=says, stderr=says, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + seconds
        while (pid := _first_process(process.pid)) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                texts = [path.read_text(errors="replace") for name in ("says", "log") if (path := home / name).exists()]
                raise LabError(f"{start[0]} started nothing: {' '.join(texts).strip()[-600:]}")
            time.sleep(0.02)
        yield pid
    finally:
        while process.poll() is None:  # the reaper ends when the last of them has
            for pid in _descendants(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)


def _descendants(pid):
    """Return the ids of all processes that came from `pid`."""
    parents = {}
    for one in proc.pids():
        with contextlib.suppress(LabError):
            parents[one] = int(proc.stat_fields(one)[1])
    found = {pid}
    for _ in range(len(parents)):
        more = {one for one, parent in parents.items() if parent in found} - found
        if not more:
            break
        found |= more
    return found - {pid}


def _first_process(starter):
    """Return the pid of the process that is 1 in a PID namespace of its own and has become its program, or None."""
    for pid in _descendants(starter):
        with contextlib.suppress(LabError, OSError):
            process = proc.process(pid)
            root = os.stat(f"/proc/{pid}/root")
            first = process.nspid[-1] == 1 and len(process.nspid) > 1
            started = process.name not in ("lxc-start", "systemd-nspawn", "(sd-stubinit)")
            if first and started and not os.path.samestat(root, os.stat("/")):
                return pid
    return None


def look(pid):
    """Return what a process was given, as /proc has it: {question: answer}."""
    process = proc.process(pid)
    ours, its = proc.namespaces(), proc.namespaces(pid)
    here, there = proc.cgroups(), proc.cgroups(pid)
    mounts = proc.mounts(pid)
    read_only = [
        mount.target for mount in mounts if "ro" in mount.options and mount.target.startswith(("/proc/", "/sys"))
    ]
    kept = security.names(process.cap_bnd)
    return {
        "namespaces of its own": " ".join(kind for kind in its if its[kind] != ours.get(kind)),
        "a cgroup of its own in": f"{sum(there.get(name) != path for name, path in here.items())} of {len(here)} trees",
        "capabilities kept": f"{len(kept)} of {security.last_capability() + 1}",
        "beyond Docker's": " ".join(name for name in kept if name not in security.DEFAULT) or "-",
        "seccomp filter": {0: "no", 1: "strict", 2: "yes"}[process.seccomp],
        "no_new_privs": "yes" if process.no_new_privs else "no",
        "root": next(mount.type for mount in reversed(mounts) if mount.target == "/"),
        "mounts": str(len(mounts)),
        "read-only below /proc, /sys": str(len(read_only)),
        "user 0 is outside": str(next((outside for inside, outside, _ in proc.id_map(pid) if inside == 0), "-")),
    }


def side_by_side(looks):
    """Print {engine: look(pid)} as a table: a column an engine, long answers over several lines."""
    import textwrap

    names = list(looks)
    width = 24
    print(" " * 28 + "".join(name.ljust(width) for name in names).rstrip())
    for question in next(iter(looks.values())):
        cells = [textwrap.wrap(looks[name][question], width - 2) or ["-"] for name in names]
        for line in range(max(map(len, cells))):
            head = question if line == 0 else ""
            row = "".join((cell[line] if line < len(cell) else "").ljust(width) for cell in cells)
            print(f"{head:28}{row}".rstrip())


def shared_root(name):
    """Return the path of a folder, not made yet, for a root filesystem that several engines use."""
    return Path(state.lib_dir("neighbours"), name)
