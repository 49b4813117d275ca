"""What the runtime says of itself, in the specification's words: what it can, and a config to begin with.

See features.md and config.md of the runtime specification.
"""

import os

from labkit.container import standard_mounts
from labkit.ground.typed import Any
from labkit.isolation import mount_options, seccomp, security
from labkit.oci import VERSION, bundle, hooks, priorities

NEWEST = "1.3.0"  # of which each word is built, or refused by its name


def features() -> dict[str, Any]:
    """Return what this runtime can."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": NEWEST,
        "hooks": list(hooks.NAMES),
        "mountOptions": mount_options.words(),
        "linux": {
            "namespaces": sorted(bundle.KINDS),
            "capabilities": [f"CAP_{name}" for name in security.CAPABILITIES],
            "cgroup": {
                "v1": True,
                "v2": True,
                "systemd": True,
                "systemdUser": False,
                "rdma": True,
            },
            "seccomp": {
                "enabled": True,
                "actions": sorted(seccomp.ACTIONS),
                "operators": sorted(seccomp.OPERATORS),
                "archs": ["SCMP_ARCH_X86", "SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64"],
                "knownFlags": list(seccomp.FLAGS),
                "supportedFlags": list(seccomp.FLAGS),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": False},
            "memoryPolicy": {"modes": list(priorities.MODES), "flags": list(priorities.MODE_FLAGS)},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
    }


def example() -> dict[str, Any]:
    """Return a config.json to begin with: what Docker would say for a shell in `rootfs`."""
    keep = [f"CAP_{name}" for name in ("AUDIT_WRITE", "KILL", "NET_BIND_SERVICE")]
    devpts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    locked = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": keep, "effective": keep, "permitted": keep},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "labkit",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": devpts},
            {
                "destination": "/dev/shm",
                "type": "tmpfs",
                "source": "shm",
                "options": [*locked, "mode=1777", "size=65536k"],
            },
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": locked},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*locked, "ro"]},
            {
                "destination": "/sys/fs/cgroup",
                "type": "cgroup",
                "source": "cgroup",
                "options": [*locked, "relatime", "ro"],
            },
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": list(standard_mounts.MASKED),
            "readonlyPaths": list(standard_mounts.READ_ONLY),
        },
    }


def rootless_example() -> dict[str, Any]:
    """Return the same for a user namespace in which whoever calls is root: what is not his is left out, or bound."""
    config = example()
    for mount in config["mounts"]:
        mount["options"] = [word for word in mount.get("options", ()) if not word.startswith(("gid=", "uid="))]
        if mount["type"] == "sysfs":
            mount.update(type="none", source="/sys", options=["rbind", "nosuid", "noexec", "nodev", "ro"])
    linux = config["linux"]
    del linux["resources"]
    linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] != "network"] + [{"type": "user"}]
    for name, number in (("uidMappings", os.geteuid()), ("gidMappings", os.getegid())):
        linux[name] = [{"containerID": 0, "hostID": number, "size": 1}]
    return config
