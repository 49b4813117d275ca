"""What kind of value stands where in a config.json: the specification's JSON schema, as far as labkit reads it.

A text where a number belongs would else be found out late: by the kernel, in words that
name no place in the file, or not at all. null means "not said", as in the programs that
write such files. A whole number fits into 64 bits. Which words there are, and which
numbers make sense, is not asked here.
See schema/ of the runtime specification.
"""

from labkit.ground.errors import BadValue
from labkit.ground.typed import Any

_IDS = [{"containerID": int, "hostID": int, "size": int}]
_RATES = [{"major": int, "minor": int, "rate": int}]
PROCESS: dict[str, Any] = {
    "terminal": bool,
    "consoleSize": {"height": int, "width": int},
    "user": {"uid": int, "gid": int, "umask": int, "additionalGids": [int]},
    "args": [str],
    "env": [str],
    "cwd": str,
    "capabilities": {"*": [str]},
    "rlimits": [{"type": str, "soft": int, "hard": int}],
    "noNewPrivileges": bool,
    "apparmorProfile": str,
    "oomScoreAdj": int,
    "execCPUAffinity": {"*": str},
}
_RESOURCES = {
    "devices": [{"allow": bool, "type": str, "major": int, "minor": int, "access": str}],
    "memory": {
        **dict.fromkeys(("limit", "reservation", "swap", "kernel", "kernelTCP", "swappiness"), int),
        "disableOOMKiller": bool,
    },
    "cpu": {
        **dict.fromkeys(("shares", "quota", "burst", "period", "realtimeRuntime", "realtimePeriod", "idle"), int),
        "cpus": str,
        "mems": str,
    },
    "pids": {"limit": int},
    "blockIO": {
        "weight": int,
        **{f"throttle{way}{unit}Device": _RATES for way in ("Read", "Write") for unit in ("Bps", "IOPS")},
    },
    "hugepageLimits": [{"pageSize": str, "limit": int}],
    "rdma": {"*": {"*": int}},
    "unified": {"*": str},
}
_SECCOMP = {
    **dict.fromkeys(("defaultAction", "listenerPath", "listenerMetadata"), str),
    "defaultErrnoRet": int,
    "architectures": [str],
    "flags": [str],
    "syscalls": [
        {
            "names": [str],
            "action": str,
            "errnoRet": int,
            "args": [{"index": int, "value": int, "valueTwo": int, "op": str}],
        }
    ],
}
_LINUX = {
    "uidMappings": _IDS,
    "gidMappings": _IDS,
    "sysctl": {"*": str},
    "resources": _RESOURCES,
    "cgroupsPath": str,
    "namespaces": [{"type": str, "path": str}],
    "devices": [
        {"path": str, "type": str, **dict.fromkeys(("major", "minor", "fileMode", "uid", "gid"), int)},
    ],
    "seccomp": _SECCOMP,
    "rootfsPropagation": str,
    "maskedPaths": [str],
    "readonlyPaths": [str],
    "timeOffsets": {"*": {"secs": int, "nanosecs": int}},
    "netDevices": {"*": {"name": str}},
}
CONFIG: dict[str, Any] = {
    "root": {"path": str, "readonly": bool},
    "process": PROCESS,
    "hostname": str,
    "domainname": str,
    "mounts": [
        {
            "destination": str,
            "type": str,
            "source": str,
            "options": [str],
            "uidMappings": _IDS,
            "gidMappings": _IDS,
        }
    ],
    "hooks": {"*": [{"path": str, "args": [str], "env": [str], "timeout": int}]},
    "annotations": {"*": str},
    "linux": _LINUX,
}
_NAMES = {str: "a text", int: "a whole number of 64 bits", bool: "true or false", dict: "an object", list: "a list"}


def check(value: Any, shape: Any, where: str = "") -> None:
    """Raise BadValue for the first value of another kind than its place in `shape` has, and name the place."""
    kind: type[Any] = shape if isinstance(shape, type) else type(shape)
    if value.__class__ is not kind or (kind is int and not -(1 << 63) <= value < 1 << 64):
        raise BadValue(f"{where} must be {_NAMES[kind]}, and is {repr(value)[:60]}", "the specification's JSON schema")
    if kind is dict:
        for name, one in value.items():
            wanted = shape.get(name, shape.get("*"))
            if wanted is not None and one is not None:
                check(one, wanted, f"{where}.{name}".lstrip("."))
    elif kind is list:
        for number, one in enumerate(value):
            check(one, shape[0], f"{where}[{number}]")
