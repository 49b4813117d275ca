"""What labkit could leave behind on a host, listed before and compared after.

    with hosts.unchanged():
        ...                         # an AssertionError lists what is left, or gone

It reads /proc and /sys itself and not through labkit, which it judges.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# What a host does by itself: systemd makes and ends units, other supervisors make
# cgroups named by 32 random digits, and looking into debugfs mounts a folder there.
_THE_HOSTS_OWN = re.compile(
    r"^mount (/run/(user|credentials|systemd)|/proc/sys/fs/binfmt_misc|/sys/kernel/debug)\b"
    r"|^cgroup \S*\.(service|scope|slice|socket|mount|swap)$"
    r"|^cgroup \S*/[0-9a-f]{32}$"
)
# A LABKIT_ROOT that whole_run made, or the label that labkit.ground.state makes of one.
_SOMEBODYS = re.compile(r"labkit-[0-9a-z_]{8}(?![0-9a-z_])")


@dataclass(frozen=True)
class Host:
    """One moment of this host: every thing as one line, counted."""

    things: Counter

    @classmethod
    def snapshot(cls):
        """List mounts, cgroup trees, cgroups, links, processes, loop devices, nft tables, settings and our own fds."""
        network = (_links, _network_namespaces, _tables)
        looks = (_mounts, _hierarchies, _cgroups, *network, _loops, _settings, _fds, _processes)
        return cls(Counter(line for look in looks for line in look()))

    def difference(self, later, ignore=()):
        """Return what is `left` or `gone` in `later`, a list of lines.

        `ignore` are regular expressions. Things of another LABKIT_ROOT than ours
        are ignored too: somebody else may be testing beside us.
        """
        left, gone = later.things - self.things, self.things - later.things
        # Processes end, and not only ours: one that is gone is no news.
        gone = {line: count for line, count in gone.items() if not line.startswith("process ")}
        return sorted(
            f"{word}: {line}" + (f" ({count} of them)" if count > 1 else "")
            for word, things in (("left", left), ("gone", gone))
            for line, count in things.items()
            if not _excused(line, ignore)
        )


def _excused(line, ignore):
    others = set(_SOMEBODYS.findall(line)) - _ours()
    return bool(others or _THE_HOSTS_OWN.search(line) or any(re.search(pattern, line) for pattern in ignore))


def _ours():
    from labkit.ground import state

    return {state.label(), *_SOMEBODYS.findall(os.environ.get("LABKIT_ROOT", ""))}


def settled_difference(before, ignore=(), patience=2.0):
    """Return the difference to now; a process on its way out gets a moment to go."""
    deadline = time.monotonic() + patience
    while True:
        found = before.difference(Host.snapshot(), ignore)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


@contextlib.contextmanager
def unchanged(ignore=(), patience=2.0):
    """Assert that the block leaves the host as it was."""
    before = Host.snapshot()
    yield before
    found = settled_difference(before, ignore, patience)
    assert not found, "the host is not as it was:\n" + "\n".join(found)


# ---- the looks: each yields lines "kind name …" ------------------------------


def _read(path):
    """Return a file's text; empty if it, or the process it is about, is gone."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _mountinfo():
    """Yield (target, type, source) of each mount."""
    for line in _read("/proc/self/mountinfo").splitlines():
        left, right = line.split(" - ", 1)
        yield left.split(" ")[4], *right.split(" ")[:2]


def _mounts():
    found = list(_mountinfo())
    # What is mounted there comes when somebody looks, and goes by itself: systemd does so with /efi.
    automatic = {target for target, kind, _ in found if kind == "autofs"}
    return (f"mount {' '.join(one)}" for one in found if one[1] == "autofs" or one[0] not in automatic)


def _cgroups():
    for target, kind, _ in set(_mountinfo()):
        if kind in ("cgroup", "cgroup2"):
            yield from (f"cgroup {folder}" for folder, _, _ in os.walk(target))


def _hierarchies():
    """Yield the cgroup trees that there are, mounted here or not: one outlives its mount while a folder is in it."""
    for line in _read("/proc/self/cgroup").splitlines():
        yield "cgroup tree " + (line.split(":")[1] or "of version 2")


def _links():
    # The alias says whose it is: labkit writes its label there.
    return (
        f"link {name} {_read(f'/sys/class/net/{name}/ifalias').strip()}".rstrip()
        for name in os.listdir("/sys/class/net")
    )


def _network_namespaces():
    with contextlib.suppress(FileNotFoundError):
        yield from (f"netns {name}" for name in os.listdir("/run/netns"))


def _loops():
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        yield f"{file.parts[3]} {_read(file).strip()}"


def _tables():
    if shutil.which("nft"):
        listing = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
        yield from (f"nft {line}" for line in listing.stdout.splitlines())


def _settings():
    """Yield what a container engine would like to turn: whoever tests after it is on no fresh machine any more."""
    names = (
        "net/ipv4/ip_forward net/ipv4/conf/all/route_localnet net/ipv6/conf/all/forwarding net/ipv6/conf/all/disable_ipv6 "
        "net/bridge/bridge-nf-call-iptables kernel/core_pattern kernel/keys/maxkeys user/max_user_namespaces"
    )
    for name in names.split():
        if value := _read(f"/proc/sys/{name}").strip():
            yield f"setting {name} {value}"


def _fds():
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if _counts(int(fd), target):
                yield f"fd {re.sub(r'[0-9]{3,}', 'N', target)}"


def _counts(fd, target):
    """Tell whether an fd would be ours: pytest's capturing, asyncio, ZeroMQ and matplotlib's fonts keep their own."""
    if target.startswith("socket:"):
        with socket.socket(fileno=os.dup(fd)) as one:
            return one.family in (socket.AF_NETLINK, socket.AF_PACKET)
    return (
        not target.startswith(("anon_inode:[event", "/dev/", "/proc/"))
        and not target.endswith(".ttf")
        and "(deleted)" not in target
    )


def _processes():
    """Yield the processes that came from this one, or that it lost to PID 1."""
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if fields := _read(f"/proc/{pid}/stat").rpartition(")")[2].split():
            parents[int(pid)] = int(fields[1])
    for pid in parents:
        if pid != os.getpid() and (_descends(pid, parents) or _was_ours(pid, parents)):
            words = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip() or "(zombie)"
            name = _read(f"/proc/{pid}/comm").strip()
            yield f"process {pid} {name}: {words[:100]} {_belongs(pid)}".rstrip()


def _descends(pid, parents):
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False


def _was_ours(pid, parents):
    """Tell whether an orphan carries our mark: LABKIT_ROOT's value, our environment, or our label."""
    if parents[pid] != 1:
        return False
    environment = _read(f"/proc/{pid}/environ")
    root = os.environ.get("LABKIT_ROOT")
    return bool(
        (root and f"LABKIT_ROOT={root}\0" in environment)
        or (environment and environment == _read("/proc/self/environ"))
        or _ours() & set(_belongs(pid).split())
    )


def _belongs(pid):
    return " ".join(sorted(set(_SOMEBODYS.findall(_read(f"/proc/{pid}/cgroup")))))
