"""Checks of chapter 12: what the kernel says of the participant's container, piece by piece.

Most take the Box of a workbench and read /proc and the cgroup files of its process;
the last two run what was built.
"""

import os
import socket
import stat
import sys

from labkit.cgroups import hierarchies
from labkit.ground import child, proc, state
from labkit.ground import syscalls as sc
from labkit.images import catalog
from labkit.isolation import security
from labkit.lessons.checks import exercise, promises

KINDS = {
    "mnt": "a mount table",
    "uts": "a host name",
    "ipc": "shared memory and message queues",
    "pid": "process numbers",
    "net": "network links",
}
DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}


@exercise
def new_namespaces(box):
    """The box has five namespaces of its own."""
    inside, outside = proc.namespaces(box.pid), proc.namespaces(box.outside)
    for kind, what in KINDS.items():
        yield (
            inside[kind] != outside[kind],
            f"{what} of its own ({kind})",
            "one flag for each kind; `|` joins them, and clone3's first argument takes them all",
            "sc.CLONE_NEWNS | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC | sc.CLONE_NEWPID | sc.CLONE_NEWNET",
        )
    yield proc.process(box.pid).nspid[-1] == 1, "its number inside is 1", "the first process of a PID namespace is 1"


@exercise
def hostname(box):
    """The box is named mycontainer, and nobody else is."""
    inside, outside = (child.in_child(_hostname, pid) for pid in (box.pid, box.outside))
    yield (
        inside == "mycontainer",
        "inside, the host name is mycontainer",
        "sethostname(2) sets it",
        'sc.sethostname("mycontainer")',
    )
    yield outside != "mycontainer", "outside, it is what it was", "the box needs a uts namespace: CLONE_NEWUTS"


def _hostname(pid):
    sc.setns(os.pidfd_open(pid), sc.CLONE_NEWUTS)
    return socket.gethostname()


@exercise
def private(box):
    """No mount of the box passes anything on, to or from the outside."""
    hints = (
        "mount(2) with no source and no type changes a mount that is there: MS_PRIVATE on /, and MS_REC for all below",
        'sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)',
    )
    spread = [" ".join(mount.propagation) for mount in proc.mounts(box.pid)]
    yield "shared" not in str(spread), "no mount made in the box shows up outside", *hints
    yield "master" not in str(spread), "no mount made outside shows up in the box", *hints


@exercise
def root(box):
    """An overlay of the base image is mounted in the box, its upperdir thrown away with it."""
    overlay = _overlay(box)
    yield (
        overlay,
        "an overlay is mounted in the box",
        "mount(2): source and type are both `overlay`, the folders go into the options",
        'options = f"lowerdir={lower},upperdir={upper},workdir={work}", and '
        'sc.mount("overlay", root, "overlay", sc.MS_NODEV, options)',
    )
    options = [option.partition("=") for option in overlay.super_options]
    below = {part for name, _, value in options if name.startswith("lowerdir") for part in value.split(":")}
    upper = next((value for name, _, value in options if name == "upperdir"), "")
    yield below == set(catalog.get("busybox").layers), "below is the image's layer", "lowerdir= should be `lower`"
    yield upper, "above is an upperdir, which takes every write", "upperdir= and workdir= are missing"
    yield (
        not os.path.exists(upper),
        "the upperdir goes when the box goes",
        "it should be on the tmpfs that only the box sees",
    )
    yield "nodev" in overlay.options, "a device file in it opens nothing", "MS_NODEV is the flag for that"
    outside = {mount.device for mount in proc.mounts(box.outside)}
    yield overlay.device not in outside, "outside, nobody sees it", "make_private first, then mount"


def _overlay(box):
    hosts = {mount.device for mount in proc.mounts()}  # which may have overlays of its own
    found = [mount for mount in proc.mounts(box.pid) if mount.type == "overlay" and mount.device not in hosts]
    return found[-1] if found else None


@exercise
def furnished(box):
    """The box's root has a /proc of its own and a harmless /dev."""
    overlay = _overlay(box)
    yield overlay, "it has a root to furnish", "make_root comes before"
    top = overlay.target.rstrip("/")
    mounted = {mount.target: mount for mount in proc.mounts(box.pid)}
    its_proc, dev = mounted.get(f"{top}/proc"), mounted.get(f"{top}/dev")
    numbers = [name for name in _listed(box, f"{top}/proc") if name.isdigit()]
    yield (
        its_proc and its_proc.type == "proc" and numbers == ["1"],
        "its /proc shows one process, number 1",
        "a new proc, mounted by a process in the new PID namespace, shows that namespace",
        'sc.mount("proc", f"{root}/proc", "proc", quiet | sc.MS_NODEV | sc.MS_RDONLY)',
    )
    yield (
        "ro" in its_proc.options,
        "its /proc is read-only",
        "core_pattern in it names a program that the host runs as root: nobody may write there",
        "MS_RDONLY is the flag for that",
    )
    yield (
        dev and dev.type == "tmpfs",
        "a new tmpfs is its /dev",
        "the image could ship a device file for the host's disk: cover its /dev",
        'sc.mount("tmpfs", f"{root}/dev", "tmpfs", quiet, "mode=755")',
    )
    there = _listed(box, f"{top}/dev")
    for name, minor in DEVICES.items():
        yield (
            name in there and _status(box, f"{top}/dev/{name}").st_rdev == os.makedev(1, minor),
            f"/dev/{name} is device 1:{minor}",
            "os.mknod makes a device file, of kind stat.S_IFCHR; os.makedev joins the two numbers",
            f'os.mknod(f"{{root}}/dev/{name}", stat.S_IFCHR, os.makedev(1, {minor}))',
        )
    modes = {_status(box, f"{top}/dev/{name}").st_mode for name in DEVICES}
    yield (
        modes == {stat.S_IFCHR | 0o666},
        "everybody may use them",
        "os.chmod(…, 0o666): umask cuts what mknod is given",
    )
    disks = [name for name in there if stat.S_ISBLK(_status(box, f"{top}/dev/{name}").st_mode)]
    yield not disks, "no disk is among them", f"take away {', '.join(disks)}"


def _listed(box, folder):
    try:
        return os.listdir(f"/proc/{box.pid}/root{folder}")
    except FileNotFoundError:
        return []


def _status(box, path):
    return os.lstat(f"/proc/{box.pid}/root{path}")


@exercise
def pivoted(box):
    """The box's root is the overlay, and the old root is gone from its mount table."""
    # Not what the process itself sees, for a chroot would look the same: its whole table.
    mounts = child.in_child(_whole_table, box.pid)
    yield (
        next(mount for mount in mounts if mount.target == "/").type == "overlay",
        "the root of its mount table is the overlay",
        "pivot_root(2) makes a mount the root; chroot(2) only changes where the process looks",
        'os.chdir(root), then sc.pivot_root(".", ".")',
    )
    old = next(mount for mount in proc.mounts(box.outside) if mount.target == "/")
    left = [mount.target for mount in mounts if (mount.device, mount.type) == (old.device, old.type)]
    yield (
        not left,
        "the host's root is not in its mount table",
        f"it still is, at {(left or ['/'])[0]}: pivot_root moves the old root, umount2 takes it away",
        'sc.umount2(".", sc.MNT_DETACH) right after the pivot: the old root lies on the new one, at "."',
    )
    at, root = (os.stat(f"/proc/{box.pid}/{name}").st_dev for name in ("cwd", "root"))
    yield at == root, "its working directory is in the new root", 'os.chdir("/")'


def _whole_table(pid):
    host_proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sc.setns(os.pidfd_open(pid), sc.CLONE_NEWNS)  # this also goes to that table's own root
    with open(os.open("self/mountinfo", os.O_RDONLY, dir_fd=host_proc)) as file:
        return proc.parse_mounts(file.read())


@exercise
def limits(box):
    """The box is in cgroups of its own that limit memory, processes and CPU."""
    for controller, most, unit in (("memory", 256 << 20, "bytes"), ("pids", 1000, "processes"), ("cpu", 0.999, "CPU")):
        folder = _cgroup(box.pid, controller)
        yield (
            state.label() in folder.parts,
            f"{controller}: it is in a cgroup of its own",
            f"it is still in {folder}: a pid written into a folder's cgroup.procs moves the process there",
            "for file in members: file.write_text(str(box.pid))",
        )
        limit = _limit(folder, controller)
        yield (
            limit is not None and limit <= most,
            f"{controller}: {limit} {unit} at most",
            f"{folder} has no limit that holds anything: each file takes its value as text",
            "(folder / file).write_text(str(value))",
        )


def _cgroup(pid, controller):
    tree = hierarchies.home(controller)
    places = proc.cgroups(pid)
    place = places[""] if tree.version == 2 else places[controller]
    mount = next(mount for mount in proc.mounts() if mount.target == str(tree.mount))
    return tree.mount / os.path.relpath(place, mount.root)


def _limit(folder, controller):
    """Return a limit as a number by whichever file this version has, or None where there is none."""
    if controller == "cpu":
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if quota in ("max", "-1") else int(quota) / int(period)
    names = ("memory.max", "memory.limit_in_bytes") if controller == "memory" else ("pids.max",)
    text = next((folder / name).read_text().strip() for name in names if (folder / name).exists())
    return None if text == "max" else int(text)


@exercise
def power(box):
    """Root in the box can do little, and win no more."""
    process = proc.process(box.pid)
    small = security.mask(security.DEFAULT) & ~security.mask(["MKNOD"])
    more, ceiling = (security.names(bits & ~small) for bits in (process.cap_eff, process.cap_bnd))
    yield process.cap_eff, "it keeps some capabilities", "with none, even chown fails: capset takes `keep`"
    yield (
        not more,
        "none of them reaches the host",
        f"it has {len(more)} too many, among them {', '.join(more[-3:])}: "
        "capset(2) sets what is effective and permitted",
        "sc.capset(keep, keep, 0)",
    )
    yield (
        not ceiling,
        "exec can't give more: the bounding set is as small",
        f"when root executes a program it gets the bounding set, with {', '.join(ceiling[-3:])}: PR_CAPBSET_DROP",
        "sc.prctl(sc.PR_CAPBSET_DROP, number) for each number that is not in `keep`, before capset",
    )
    yield process.no_new_privs, "no_new_privs is set", "PR_SET_NO_NEW_PRIVS", "sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)"


@exercise
def execute(function):
    """`function(argv)` becomes the command, and ends as Docker does if it can't."""
    for words, code, what in (
        (["true"], 0, "a command that succeeds"),
        (["sh", "-c", "exit 7"], 7, "a command that ends with 7"),
        (["no-such-command"], 127, "a command that is not there"),
        (["/etc/passwd"], 126, "a file that is no program"),
    ):
        found = _status_of(function, words)
        yield (
            found == code,
            f"{what}: {code}",
            f"it ended with {found}" if found != _CAME_BACK else "it came back: os.execvpe should have replaced it",
            "os.execvpe returns only by raising: FileNotFoundError means 127, any other OSError 126",
        )


_CAME_BACK = 200


def _status_of(function, words):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            sc.prctl(sc.PR_SET_PDEATHSIG, 9)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - a notebook's own go elsewhere
            function(words)
        finally:
            os._exit(_CAME_BACK)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@exercise
def container(script):
    """A script, run as `python3 SCRIPT COMMAND …`, keeps every promise that labkit's own containers keep."""
    for promise in promises.ALL:
        wrong = promise(promises.script(script))
        yield (
            not wrong,
            promise.__doc__.rstrip("."),
            wrong,
            f"{wrong}; which piece is for that? Its own check says more",
        )
