"""The other ways to start the same container, each one command, on the same root and the same limits.

crun and runc get an OCI bundle with what labkit's default container has: six
namespaces, the same mounts, masks, capabilities, three limits and a seccomp
filter that refuses the same calls. Their root is an overlay that is mounted for
them beforehand; labkit and the C program mount theirs each time. Who drives a
runtime, podman for one, mounts each container's for it: `own_overlay` does that.
bwrap gets the namespaces only, since that is all it does.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from labkit.cgroups import cgroup
from labkit.container import standard_mounts
from labkit.ground import ledger, state, syscalls
from labkit.ground.errors import Unsupported
from labkit.images import catalog
from labkit.isolation import seccomp, security
from labkit.isolation.mounts import NODEV, NOEXEC, NOSUID, RDONLY, Filesystem
from labkit.storage import roots

MEMORY, PIDS, QUOTA = 64 << 20, 50, 100_000
HERE = Path(__file__).parent


def versions():
    """Return {peer: its version} of those that are installed."""
    found = {}
    for name in ("crun", "runc", "bwrap", "umoci", "skopeo", "buildah", "tar", "docker", "gcc"):
        if shutil.which(name):
            text = subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout
            found[name] = (re.search(r"\d+(\.\d+)+[^\s,)]*", text) or ["?"])[0]
    return found


def compiled(name, folder):
    """Compile a C program of this folder; return its path. Raises Unsupported without a compiler."""
    if not shutil.which("gcc"):
        raise Unsupported("there is no gcc", "apt-get install gcc: without it there is no yardstick in C")
    target = Path(folder) / name
    subprocess.run(["gcc", "-O2", "-o", target, HERE / f"{name}.c"], check=True)
    return str(target)


def need(*names):
    """Raise Unsupported, by name, if one of these commands is missing."""
    for name in names:
        if not shutil.which(name):
            raise Unsupported(f"there is no {name} here", f"apt-get install {name}")


@contextlib.contextmanager
def scratch():
    """Make a folder on the disk for one benchmark; it is gone afterwards."""
    folder = Path(state.lib_dir()) / f"bench-{state.new_id()}"
    with ledger.made("folder", path=str(folder)):
        folder.mkdir(0o755)
        yield folder


@contextlib.contextmanager
def scene():
    """Make a folder with all that the peers need; yield it as a dict; take everything away again."""
    folder = Path(state.run_dir()) / f"bench-{state.new_id()}"
    image = catalog.get("busybox")
    capabilities = security.choose()
    with contextlib.ExitStack() as stack:
        stack.enter_context(ledger.made("folder", path=str(folder)))
        folder.mkdir()
        # The folder in which all cgroups of this state are made stays while it has one in it.
        group = stack.enter_context(cgroup.Cgroup.create(f"{folder.name}-holds-it"))
        bases = [str(part.path.parent) for part in group.folders]
        (folder / "bases").write_text("".join(f"{base}\n" for base in bases))
        (folder / "filter").write_bytes(seccomp.program("default", capabilities))
        (folder / "none").write_bytes(b"")
        for name in ("upper", "work", "rootfs"):
            (folder / name).mkdir(parents=True)
        # Made by us, for them: crun and runc want a root that is there.
        places = (folder / "upper", folder / "work", folder / "rootfs")
        stack.enter_context(roots.mounted(image.layers, *places))
        found = {
            "folder": folder,
            "lowerdir": str(image.layers[-1]),
            "rootfs": str(folder / "rootfs"),
            "floor": compiled("floor", folder),
            "config": _config(capabilities),
        }
        found["bundle"] = bundle(found, "bundle", found["rootfs"])
        yield found


def bundle(scene, name, root="rootfs"):
    """Make a bundle in the scene's folder, with a cgroup of its own; return its path."""
    path = scene["folder"] / name
    path.mkdir()
    (path / root).mkdir(exist_ok=True)
    config = json.loads(json.dumps(scene["config"]))
    config["root"]["path"] = str(root)
    config["linux"]["cgroupsPath"] += f"-{path.parent.name}-{name}"
    (path / "config.json").write_text(json.dumps(config, indent=1))
    return str(path)


@contextlib.contextmanager
def own_overlay(scene, bundle, number):
    """Mount a fresh overlay on a bundle's rootfs for one container, by mount(2); unmount and remove it.

    For a process in a mount namespace of its own: see `hide_unified`.
    """
    upper, work = (f"{bundle}/{name}-{number}" for name in ("upper", "work"))
    os.mkdir(upper)
    os.mkdir(work)
    options = ",".join(
        (f"lowerdir={scene['lowerdir']}", f"upperdir={upper}", f"workdir={work}", *roots.DEFAULT_OPTIONS)
    )
    syscalls.mount("overlay", f"{bundle}/rootfs", "overlay", NODEV, options)
    try:
        yield
    finally:
        syscalls.umount2(f"{bundle}/rootfs")
        shutil.rmtree(upper)
        shutil.rmtree(work)


def _config(capabilities):
    """Return a config.json (runtime-spec 1.0) for the container that labkit makes by default."""
    caps = [f"CAP_{name}" for name in capabilities]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {kind: caps for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "hostname": "bench",
        "mounts": [
            *(_mount(step) for step in standard_mounts.kernel_filesystems() if isinstance(step, Filesystem)),
            {
                "destination": "/sys/fs/cgroup",
                "type": "cgroup",
                "source": "cgroup",
                "options": ["ro", "nosuid", "noexec", "nodev"],
            },
        ],
        "linux": {
            # Right below the roots: a folder above it crun and runc would make, and leave there.
            "cgroupsPath": f"/{state.label()}-peer",
            "resources": {
                "memory": {"limit": MEMORY},
                "cpu": {"quota": QUOTA, "period": 100_000},
                "pids": {"limit": PIDS},
            },
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": list(standard_mounts.MASKED),
            "readonlyPaths": list(standard_mounts.READ_ONLY),
            "seccomp": _seccomp(capabilities),
        },
    }


def _mount(step):
    names = {RDONLY: "ro", NOSUID: "nosuid", NODEV: "nodev", NOEXEC: "noexec"}
    options = [name for bit, name in names.items() if step.attrs & bit]
    if step.target == "/dev":  # they make their devices there with mknod, labkit binds the host's
        options.remove("nodev")
    return {
        "destination": step.target,
        "type": step.kind,
        "source": step.kind,
        "options": [*options, *step.options],
    }


def _seccomp(capabilities):
    """Return labkit's default filter in the words of config.json."""
    actions = {seccomp.ALLOW: "SCMP_ACT_ALLOW"}
    profile = seccomp.default(capabilities)

    def rule(one):
        action = {"action": "SCMP_ACT_ERRNO", "errnoRet": one.action & 0xFFFF}
        if one.action in actions:
            action = {"action": actions[one.action]}
        when = [
            {"index": index, "op": op, "value": value} | ({"valueTwo": two} if "MASKED" in op else {})
            for index, op, value, two in one.when
        ]
        return {"names": list(one.names), **action, **({"args": when} if when else {})}

    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": profile.otherwise & 0xFFFF,
        "architectures": ["SCMP_ARCH_X86_64" if os.uname().machine == "x86_64" else "SCMP_ARCH_AARCH64"],
        "syscalls": [rule(one) for one in profile.rules],
    }


def bwrap(scene):
    """Return bwrap's command for the same namespaces."""
    apart = [f"--unshare-{kind}" for kind in ("uts", "ipc", "pid", "net", "cgroup")]
    root = ["--bind", scene["rootfs"], "/", "--proc", "/proc", "--dev", "/dev"]
    return ["bwrap", *apart, "--new-session", "--die-with-parent", *root, "true"]


def runtime(name, scene, number, bundle=None):
    """Return the command of an OCI runtime for a bundle: the scene's own, or another."""
    bundle = bundle or scene["bundle"]
    return [name, "--root", f"{scene['folder']}/{name}", "run", "--bundle", bundle, f"bench{number}"]


def hide_unified():
    """In a mount namespace of one's own, take the v2 tree of a hybrid machine away: crun refuses it."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    if os.path.ismount("/sys/fs/cgroup/unified"):
        syscalls.umount2("/sys/fs/cgroup/unified", syscalls.MNT_DETACH)
