"""Two pages beside the chapters: a cheat sheet, one sheet of paper when it is printed, and a glossary.

    python -m labkit.lessons.pages      write both anew into the folder of the chapters

The cheat sheet is made of labkit's own tables (the flags, the limits, the mounts), so it
says what labkit does. Its mount calls are data: a test makes them, in this order. Where
a term of the glossary is explained is looked up in the chapters themselves.
"""

import functools
import html
import re
from collections.abc import Iterable, Iterator
from typing import Any

from labkit.cgroups import limits
from labkit.container import standard_mounts
from labkit.ground import state
from labkit.ground import syscalls as sc
from labkit.ground.errors import NotFound
from labkit.isolation import mounts, namespaces
from labkit.lessons import coursework

# ---- the cheat sheet ----

# Docker's word for a limit. The others have none there.
OPTIONS = {
    "memory": "--memory", "memory_swap": "--memory-swap", "memory_low": "--memory-reservation", "cpu_quota": "--cpus",
    "cpu_weight": "--cpu-shares", "cpuset_cpus": "--cpuset-cpus", "pids": "--pids-limit",
    "io": "--device-read-bps", "io_weight": "--blkio-weight",
}  # fmt: skip
NONE = "none"
# What a group tells, or is told, beside its limits: v1's files, v2's files.
COUNTED = {
    "the processes in it": ("cgroup.procs", "cgroup.procs"),
    "CPU used, periods throttled": ("cpuacct.usage, cpu.stat", "cpu.stat"),
    "memory now, and at its highest": (
        "memory.usage_in_bytes, memory.max_usage_in_bytes",
        "memory.current, memory.peak",
    ),
    "processes killed for want of memory": ("memory.oom_control", "memory.events"),
    "processes now, forks refused": ("pids.current, pids.events", "pids.current, pids.events"),
    "bytes read and written": ("blkio.throttle.io_service_bytes", "io.stat"),
    "pressure: time spent waiting": (NONE, "cpu.pressure, memory.pressure, io.pressure"),
    "stop all, kill all": ("freezer.state", "cgroup.freeze, cgroup.kill"),
    "devices it may open": ("devices.allow, devices.deny", "a BPF program"),
    "what its children may limit": (NONE, "cgroup.controllers, cgroup.subtree_control"),
}
# Files that not every kernel has: the first Linux with it, or what it needs.
ONLY = {
    "cgroup.kill": "5.14", "cpu.max.burst": "5.14", "cpu.cfs_burst_us": "5.14", "memory.peak": "5.19",
    "memory.memsw.limit_in_bytes": "swap; the sum of both", "memory.swap.max": "swap",
    "blkio.bfq.weight": "bfq", "io.weight": "bfq or io.cost",
    "cpu.pressure": "PSI", "memory.pressure": "PSI", "io.pressure": "PSI",
}  # fmt: skip

Call = tuple[str, str, tuple[Any, ...]]  # why, a function of ground.syscalls or of os, its arguments
ROOT = "root"  # the folder that becomes the root, as it is called in the arguments


def calls() -> Iterator[Call]:
    """Yield the mount calls of a container in their order, by mount(2) alone."""
    yield "no mount from here on is seen outside", "mount", (None, "/", None, sc.MS_REC | sc.MS_PRIVATE, None)
    layers = "lowerdir=top:…:bottom,upperdir=upper,workdir=work"
    yield "the image's layers, one writable on top", "mount", ("overlay", ROOT, "overlay", sc.MS_NODEV, layers)
    steps = standard_mounts.kernel_filesystems()
    for step in steps:
        if isinstance(step, mounts.Filesystem):
            yield _WHY[step.target], "mount", _mounted(step)
        elif isinstance(step, mounts.Bind) and step.target == "/dev/null":
            others = ", ".join(name for name in standard_mounts.DEVICES if name != "null")
            yield f"a device; so too {others}", "mount", _bound("/dev/null", step.target)
    sealed = sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
    yield "its cgroup (v2)", "mount", ("cgroup2", f"{ROOT}/sys/fs/cgroup", "cgroup2", sealed, None)
    yield "a masked file", "mount", _bound("/dev/null", "/proc/interrupts")
    yield "a masked folder", "mount", ("tmpfs", f"{ROOT}/sys/firmware", "tmpfs", sealed, "size=0")
    yield "a read-only folder: onto itself, …", "mount", _bound(f"{ROOT}/proc/sys", "/proc/sys")
    again = sc.MS_REMOUNT | sc.MS_BIND | sealed
    yield "… then once more with the flags", "mount", (None, f"{ROOT}/proc/sys", None, again, None)
    yield "the new root", "chdir", (ROOT,)
    yield "becomes / with the old one on top", "pivot_root", (".", ".")
    yield "no unmount from here on is seen outside", "mount", (None, ".", None, sc.MS_REC | sc.MS_SLAVE, None)
    yield "the old one goes", "umount2", (".", sc.MNT_DETACH)


_WHY = {
    "/proc": "processes, of its own PID namespace",
    "/dev": "room for devices",
    "/dev/pts": "terminals of its own",
    "/dev/shm": "shared memory",
    "/dev/mqueue": "message queues",
    "/sys": "the kernel's objects",
}
_FLAGS = {
    mounts.RDONLY: sc.MS_RDONLY,
    mounts.NOSUID: sc.MS_NOSUID,
    mounts.NODEV: sc.MS_NODEV,
    mounts.NOEXEC: sc.MS_NOEXEC,
}


def _mounted(step: mounts.Filesystem) -> tuple[Any, ...]:
    flags = sum(flag for attr, flag in _FLAGS.items() if step.attrs & attr)
    return step.kind, ROOT + step.target, step.kind, flags, ",".join(step.options) or None


def _bound(source: str, target: str) -> tuple[Any, ...]:
    return source, ROOT + target, None, sc.MS_BIND, None


def _spelled(call: str, arguments: tuple[Any, ...]) -> str:
    """Return a call as C has it."""

    def word(value: Any) -> str:
        if isinstance(value, int):
            return "|".join(_flag_names("MNT_" if call == "umount2" else "MS_", value)) or "0"
        return "NULL" if value is None else f'"{value}"'

    return _code(f"{call}({', '.join(map(word, arguments))})")


def _flag_names(prefix: str, bits: int) -> list[str]:
    return [name for name, bit in vars(sc).items() if name.startswith(prefix) and bits & bit]


def _code(text: str) -> str:
    return f"<code>{html.escape(text, quote=False)}</code>" if text else ""


def _files(text: str) -> str:
    """Return the names of files in code letters, each with what it needs."""
    return ", ".join(
        (_code(name) if "." in name else name) + (f" ({ONLY[name]})" if name in ONLY else "")
        for name in text.replace("v1 has none", NONE).split(", ")
    )


def cgroup_rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield (what, docker's word or "", v1's files, v2's files), the files as text with commas."""
    meant = {"io": "at most N bytes, or operations, a second from a disk or to it"}
    for name, (text, v1, v2) in limits.DESCRIBED.items():
        yield meant.get(name, text.format(value="N", period="P")), OPTIONS.get(name, ""), v1, v2
    for what, (v1, v2) in COUNTED.items():
        yield what, "", v1, v2


def cheat_sheet() -> str:
    """Return the cheat sheet as HTML: it is to print on one page, and Markdown can't say how large its letters are."""
    kinds = (
        (_code(kind), _code(_flag_names("CLONE_NEW", bit)[0]), _code(f"{bit:#010x}"), what)
        for kind, (bit, what) in namespaces.KINDS.items()
    )
    groups = ((what, _code(word), _files(v1), _files(v2)) for what, word, v1, v2 in cgroup_rows())
    made = ((why, _spelled(call, arguments)) for why, call, arguments in calls())
    return "\n".join(
        [
            _HEAD,
            "<h2>Namespaces: clone3(2), unshare(2), setns(2)</h2>",
            *_table(("/proc/PID/ns/", "flag", "bit", "what a process in a new one no longer shares"), kinds),
            "<h2>Cgroups: a folder is a group, a number in a file is a limit</h2>",
            *_table(("what", "docker run", "version 1", "version 2"), groups),
            "<p>In brackets: the first Linux that has the file, or what the kernel needs for it.</p>",
            "<h2>A root, call by call</h2>",
            *_table(("what for", "call"), made),
            "<p>Each target must be there before: a folder, or an empty file for a device. labkit makes the same",
            "mounts with fsopen(2), fsmount(2), open_tree(2) and move_mount(2): open folders in place of paths.</p>",
            "",
        ]
    )


_HEAD = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Containers: a cheat sheet</title>
<style>
@page { size: A4; margin: 9mm }
body { font: 11pt/1.2 sans-serif; color: black; background: white }
h1, h2 { font-size: 1.3em; margin: 0.6em 0 0.2em }
table { border-collapse: collapse; width: 100% }
th, td { border: 0.5pt solid #bbb; padding: 0.08em 0.4em; text-align: left; vertical-align: top }
code { font: 0.88em monospace; white-space: nowrap }
p { margin: 0.4em 0 }
@media print { body { font-size: 6.8pt } }
</style>
<h1>Containers: a cheat sheet</h1>"""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield "<table>"
    for kind, row in (("th", head), *(("td", row) for row in rows)):
        yield f"<tr>{''.join(f'<{kind}>{cell}</{kind}>' for cell in row)}</tr>"
    yield "</table>"


# ---- the glossary ----

TERMS = {
    "bind mount": "A folder or file that is there already, mounted at a second place.",
    "blob": "A file of an image's store whose name is its own digest.",
    "bounding set": "The capabilities that a process can ever get: what is not in it, no program brings back.",
    "bridge": "A switch made of software: passes frames between the links that are plugged into it.",
    "btrfs": "A filesystem that can copy a whole folder without copying its files.",
    "bundle": "A folder with a root and a `config.json`: what an OCI runtime is given.",
    "capabilities": "The pieces into which the kernel has cut root's power.",
    "cgroups": "Groups of processes, as folders, whose use of the machine is counted and limited together.",
    "config": "The part of an image that says what to run, and which layers it is made of.",
    "container": "A process, and its children, that sees other things than the rest of the machine, and may do less.",
    "controllers": "The parts of the kernel that count and limit for cgroups, one for each resource.",
    "copy-up": "What overlayfs does at the first change of a file from below: it copies the file into the upperdir.",
    "delegation": "A cgroup whose files belong to a user, who may then arrange what is inside.",
    "diffID": "The digest of a layer before it is compressed.",
    "digest": "The hash of some bytes, used as their name.",
    "file descriptor": "The number by which a process knows a file that it has open.",
    "fork bomb": "A program that starts copies of itself, which do the same.",
    "freeze": "To stop all processes of a cgroup where they are, until they are let go on.",
    "idmapped mount": "A mount that shows its files as belonging to other users, and changes none of them.",
    "image": "The layers of files, and the config, from which containers are started.",
    "init": "The first process of a machine, or of a container: it takes over orphans and reaps what has ended.",
    "keyrings": "Where the kernel keeps keys and passwords for processes; no namespace wraps them.",
    "layer": "What one step of building an image changed in its files, as a tar file.",
    "lowerdirs": "The folders below in an overlay: the layers of an image, read-only.",
    "manifest": "The list of what an image consists of: the digests of its config and its layers.",
    "masked": "Covered by an empty folder or by `/dev/null`, so that there is nothing to read.",
    "merged": "The folder in which an overlay shows all of its folders as one.",
    "metacopy": "A copy-up of only what is said about a file (owner, mode, times); its data stays below.",
    "namespace": "One more copy of what a machine has once, such as the list of mounts; a process sees one of them.",
    "no_new_privs": "A mark on a process: no program that it starts gets more power than it has.",
    "network namespace": "A namespace with links, addresses, routes, ports and firewall rules of its own.",
    "OOM killer": "The part of the kernel that kills a process when memory is used up.",
    "opaque": "Said of a folder of an upperdir that hides all that lies below it.",
    "overlayfs": "The filesystem that shows several folders as one and writes to the uppermost only.",
    "page cache": "What the kernel keeps in memory of files that were read or written.",
    "period": "The stretch of time for which a quota counts: usually 100 ms.",
    "PID namespace": "A namespace with a count of processes of its own: its first process is 1.",
    "pivot_root": "The call that makes a mount the root and puts the old root where it can be unmounted.",
    "Pressure": "The part of the time in which processes waited for CPU, memory or I/O (PSI).",
    "private": "Said of a mount: nothing mounted below it appears elsewhere, nor the other way round.",
    "published port": "A port of the host whose packets go on to a container.",
    "quota": "How much CPU time a cgroup may use in each period.",
    "propagation": "Whether a mount made in one mount namespace appears in another.",
    "registry": "A server that keeps images and gives them out by their digests.",
    "runtime": "The program that makes the container when Docker or Podman asks for it: runc, crun, labkit's.",
    "seccomp": "A filter for each system call of a process: allowed, or refused.",
    "setuid": "A mark on a program: it runs as its file's owner, whoever starts it.",
    "shared": "Said of a mount: what is mounted below it appears in its copies too, and the other way round.",
    "slave": "Said of a mount: what is mounted below its original appears here too, but not the other way round.",
    "snapshot": "A copy of a whole folder that is made at once, because both share the same blocks on the disk.",
    "snapshotter": "containerd's word for a storage driver.",
    "soft limit": "An amount of memory above which a group of version 1 gives back first when the machine runs short.",
    "sparse": "Said of a file with holes: it is said to be long and takes little disk.",
    "subreaper": "A process that has asked for the orphans among its descendants, in the place of process 1.",
    "swap": "Disk space for pages of memory that are not used just now.",
    "throttling": "The stop of a group whose quota is used up, until the next period begins.",
    "upperdir": "The folder on top in an overlay: all that is written goes there.",
    "user namespace": "A namespace with users of its own: its user 0 is some other user outside.",
    "veth": "A pair of network links: what goes into one comes out of the other.",
    "vfs": "The storage driver that copies everything: one full folder for each container.",
    "virtual machine": "A computer imitated by a program, with a kernel of its own.",
    "volume": "A plain folder beside a container's root, which stays when the container goes.",
    "weight": "How much CPU a group gets in relation to its siblings, when all of them want it.",
    "whiteout": "The mark in an upperdir that a name is gone and is not to be looked up further down.",
    "workdir": "The folder in which overlayfs puts a file together before it moves it into the upperdir.",
    "zombie": "A process that has ended, and whose parent has not asked yet how.",
}  # fmt: skip


# Where a term is named before it is explained.
_EXPLAINED = {"bounding set": "11", "image": "09", "init": "02", "layer": "06", "registry": "09", "runtime": "13"}


def chapter_of(term: str) -> coursework.Chapter:
    """Return the chapter that introduces a term: the first that sets it off, or names it. Raises NotFound."""
    word = re.escape(term)
    for pattern in (rf"(\*{{1,2}}){word}\1", f"`{word}`", rf"\b{word}\b"):
        for chapter, text in _texts():
            if chapter.number == _EXPLAINED.get(term, chapter.number) and re.search(pattern, text):
                return chapter
    raise NotFound(f"no chapter explains {term!r}", "the glossary is of the chapters' own terms")


@functools.cache
def _texts() -> list[tuple[coursework.Chapter, str]]:
    return [
        (chapter, "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"))
        for chapter in coursework.contents()
        for cells in (state.read_json(coursework.CHAPTERS / chapter.file)["cells"],)
    ]


def glossary() -> str:
    """Return the glossary as Markdown."""
    lines = ["# Glossary", "", "| term | what it is | chapter |", "|---|---|---|"]
    for term, said in sorted(TERMS.items(), key=lambda entry: entry[0].lower()):
        where = chapter_of(term)
        lines.append(f"| **{term}** | {said} | [{where.number}]({where.file}) |")
    return "\n".join([*lines, ""])


PAGES = {"cheat-sheet.html": cheat_sheet, "glossary.md": glossary}

if __name__ == "__main__":
    for name, page in PAGES.items():
        state.write_atomic(coursework.CHAPTERS / name, page(), mode=0o644)
