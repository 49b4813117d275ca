"""The locks of a container, looked at from inside: the same look for labkit's and for Docker's.

    mine = inspection.read(run("busybox", ["sh", "-c", inspection.PROBE]).output)
    theirs = inspection.read(docker("run", "--rm", "busybox", "sh", "-c", inspection.PROBE))
    for line in inspection.compare(mine, theirs): print(line)

Where the two differ, DIFFERENCES says why; a difference that it does not know is
printed as such.
"""

from labkit.ground import proc
from labkit.isolation import security

PROBE = "cat /proc/self/status; echo ===; cat /proc/self/mountinfo"

# Why labkit's containers and Docker's need not be alike
DIFFERENCES = {
    "no_new_privs": "labkit sets it always; Docker only if told to, since some images use sudo",
    "nodev": "labkit's root opens no device node; Docker leaves that to the devices cgroup alone, labkit has both",
    "masked": "labkit follows the newest list: /proc/interrupts and power use are hidden since their side channels",
    "read_only": "labkit's and Docker's lists are the same; a kernel without a file has nothing to make read-only",
    "capabilities": "the fourteen are Docker's own; a machine whose bounding set lacks one can't give it",
    "seccomp": "both have a filter; labkit forbids 32-bit calls and io_uring too, and answers ENOSYS to the unknown",
}


def read(text):
    """Return {lock: what it is like} of what PROBE printed."""
    status, _, mounts = text.partition("===\n")
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    mounts = proc.parse_mounts(mounts)
    inside = [
        mount for mount in mounts if mount.target.startswith(("/proc/", "/sys/")) and "cgroup" not in mount.target
    ]
    return {
        "capabilities": security.names(int(lines["CapBnd"], 16)),
        "no_new_privs": lines["NoNewPrivs"] == "1",
        "seccomp": {"0": "off", "1": "strict", "2": "a filter"}[lines["Seccomp"]],
        # Covered by something else than itself: an empty tmpfs, or /dev/null.
        "masked": sorted(mount.target for mount in inside if mount.type not in ("proc", "sysfs")),
        "read_only": sorted(mount.target for mount in inside if mount.type == "proc" and "ro" in mount.options),
        "nodev": "nodev" in next(mount for mount in mounts if mount.target == "/").options,
    }


def compare(mine, theirs):
    """Yield a line for each lock: alike, or what either has alone, and why."""
    for lock, my in mine.items():
        their = theirs[lock]
        if my == their:
            shown = f"{len(my)} alike" if isinstance(my, list) else my
            yield f"{lock}: {shown}"
            continue
        if isinstance(my, list):
            only = [f"only labkit {' '.join(sorted(set(my) - set(their)))}"] if set(my) - set(their) else []
            only += [f"only Docker {' '.join(sorted(set(their) - set(my)))}"] if set(their) - set(my) else []
            yield f"{lock}: {'; '.join(only)}"
        else:
            yield f"{lock}: labkit {my}, Docker {their}"
        yield f"    {DIFFERENCES.get(lock, 'a difference that nobody has explained yet')}"
