"""A container as the runtime specification has it: created, running, stopped, gone.

Nobody stays. Each command is a process of a moment: `create` makes everything and
ends, and the container's process, whose parent has died, gets a new one: the nearest
subreaper, which is Docker's shim or Podman's conmon. That one waits for it, and so
learns how it ended; the runtime never does.

What the next command needs is in one folder, ROOT/ID:

    state.json       its pid and when it started, its cgroup's folders, its bundle
    config.json      as it was when it was made: what the bundle says later is not asked
    exec.fifo        there until `start`: see gate

and the rest is asked of the kernel. It says `creating`, `created`, `running`,
`paused` or `stopped`; only the last two differ by more than a look at /proc.
See runtime.md of the specification, PR_SET_CHILD_SUBREAPER in prctl(2).
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable

from labkit.ground import ledger, proc, state
from labkit.ground.errors import BadValue, InUse, KernelError, LabError, NotFound, Unsupported, from_oserror
from labkit.ground.later import Later
from labkit.ground.typed import TYPE_CHECKING, Any
from labkit.oci import gate, hooks

if TYPE_CHECKING:
    from pathlib import Path

    from labkit.cgroups.cgroup import Cgroup
    from labkit.container.channel import Spawned
    from labkit.container.entry import Entry
    from labkit.oci.bundle import Bundle
    from labkit.oci.resources import Resources

# What only one of the commands needs, and each is a process of its own.
select, signal, syscalls = map(Later, ("select", "signal", "labkit.ground.syscalls"))
cgroup, emptying = Later("labkit.cgroups.cgroup"), Later("labkit.cgroups.emptying")
entry = Later("labkit.container.entry")
spawner, bundles = Later("labkit.container.spawner"), Later("labkit.oci.bundle")
moments, systemd = Later("labkit.oci.moments"), Later("labkit.oci.systemd")
resources, handed = Later("labkit.oci.resources"), Later("labkit.oci.handed")
hostmounts, dataclass = Later("labkit.oci.hostmounts"), Later("labkit.ground.dataclass")

PROGRAM = os.path.abspath(f"{__file__}/../../../vagrant/labkit-runtime")
_HOSTS_USERS = 0xEFFFFFFD  # PROC_USER_INIT_INO: the user namespace in which root is root of the machine
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-.")


def check_id(number: str) -> str:
    """Return a container's id if it can be a folder's name that is not hidden. Raises BadValue."""
    if not 0 < len(number) < 256 or number.startswith(".") or not _LETTERS.issuperset(number):
        raise BadValue(
            f"container id {number!r} has an invalid character for a container ID, or none",
            "letters, digits, `_`, `+`, `-`, and after the first `.`",
        )
    return number


class Box:
    """One container below the folder `root`."""

    def __init__(self, root: "str | Path", number: str) -> None:
        self.id = check_id(number)
        self.root = os.path.normpath(root)
        self.folder = f"{self.root}/{number}"

    # ---- what is known of it ----

    def record(self) -> dict[str, Any]:
        """Return what was written down about it. Raise NotFound."""
        record = self._read("state")
        if record is None:
            raise NotFound(f"container {self.id} does not exist", f"no folder {self.folder}")
        return record

    def _read(self, name: str) -> Any:
        return state.read_json(f"{self.folder}/{name}.json")

    def _write(self, **news: Any) -> None:
        old = self._read("state") or {}
        state.write_json(f"{self.folder}/state.json", old | news, sync=False)

    def status(self, record: dict[str, Any] | None = None) -> str:
        """Return creating, created, running, paused or stopped."""
        record = record or self.record()
        if "pid" not in record:
            return "creating" if proc.is_running(*record["maker"]) else "stopped"
        if not proc.is_running(record["pid"], record["start_ticks"]):
            return "stopped"
        if gate.is_shut(self.folder):
            return "created"
        return "paused" if self.cgroup(record).is_frozen() else "running"

    def state(self, **other: Any) -> dict[str, Any]:
        """Return its state, in the specification's words."""
        record = self.record()
        status = other.get("status") or self.status(record)
        news = {"status": status, "pid": record["pid"] if status not in ("creating", "stopped") else 0}
        order = ("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner")
        return {name: (record | news)[name] for name in order} | other

    def config(self) -> dict[str, Any]:
        """Return its config.json, as it was when it was made."""
        return state.read_json(f"{self.folder}/config.json", dict) or {}

    def cgroup(self, record: dict[str, Any] | None = None) -> "Cgroup":
        """Return its Cgroup."""
        return cgroup.Cgroup.of_paths((record or self.record())["cgroup"])

    def governed(self) -> "Cgroup":
        """Return its Cgroup. Raise Unsupported if it has none: see `_group`."""
        record = self.record()
        if not record["cgroup"]:
            raise Unsupported(f"container {self.id} has no cgroup: who made it may make none", "root may")
        return self.cgroup(record)

    def pids(self) -> list[int]:
        """Return the ids of its processes."""
        return self.governed().procs()

    # ---- created, started ----

    def create(
        self,
        path: str,
        *,
        config: str | None = None,
        console: str | None = None,
        keep_fds: int = 0,
        sockets: int = 0,
        systemd_cgroup: bool = False,
        survives: bool = True,
        new_keyring: bool = True,
    ) -> "Spawned":
        """Make all of it but its program's start; return the Spawned that waits. fds 0, 1 and 2 are handed on.

        `config` is its config.json if that isn't the bundle's, `console` the path of a
        socket that takes its terminal; the first `sockets` fds from 3 on are listening
        ones. Whatever is raised, nothing of it is left.
        """
        with bundles.shaped():
            bundle = bundles.read(path, config)
            _check_console(bundle.process, console, survives)
            if sockets:
                env = [*(bundle.process.get("env") or ()), f"LISTEN_FDS={sockets}", "LISTEN_PID=1"]
                bundle = dataclass.replace(bundle, process={**bundle.process, "env": env})
            keep_fds += sockets
            v1_cpu = any(tree.version == 1 and "cpu" in tree.controllers for tree in cgroup.cgroupfs.trees())
            resources = bundle.resources(v1_cpu)
        self.warnings = bundle.warnings
        try:
            os.makedirs(self.root, 0o711, exist_ok=True)
            os.mkdir(self.folder, 0o711)
        except FileExistsError:
            raise InUse(f"container with id exists: {self.id}", "another id, or delete that one") from None
        except OSError as error:
            raise from_oserror(error, f"making {self.folder}") from None
        try:
            self._answer_for(ledger.me())
            self._write(
                ociVersion=bundle.config["ociVersion"], id=self.id, bundle=bundle.path, rootfs=bundle.rootfs,
                annotations=bundle.config.get("annotations") or {}, owner=_name_of(os.getuid()),
                cgroup=[], maker=ledger.me()[:2], created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )  # fmt: skip
            if "mnt" not in bundle.kinds():
                self._write(seen_at_root=hostmounts.on_top(bundle.rootfs))
            state.write_json(f"{self.folder}/config.json", bundle.config, sync=False)
            gate.make(self.folder)
            return self._make(bundle, resources, console, keep_fds, systemd_cgroup, survives, new_keyring)
        except BaseException:
            self._destroy()
            raise

    def _make(
        self,
        bundle: "Bundle",
        resources: "Resources",
        console: str | None,
        keep_fds: int,
        systemd_cgroup: bool,
        survives: bool,
        new_keyring: bool,
    ) -> "Spawned":
        place = bundle.linux.get("cgroupsPath") or ""
        unit = systemd.unit(place, self.id) if systemd_cgroup else None
        path = unit.path if unit else place or f"{state.label()}/{self.id}"
        group = self._group(path, bool(place) or resources != type(resources)())
        into_unit: tuple[Any, ...] = ()
        if unit:
            self._write(unit=unit.name)
            # A scope is born with a process in it: it is made when there is one.
            group.remove()

            def enter(pid: int) -> None:
                unit.start(pid)
                resources.apply(cgroup.Cgroup.of_paths(self.record()["cgroup"]))

            into_unit = (moments.Call(f"make the scope {unit.name}", enter),)
        elif group.folders:
            resources.apply(group)
        with bundles.shaped():
            job = bundles.job(
                bundle,
                group,
                entry.Entry() if unit else _entry(group),
                into_unit,
                gate=self.folder,
                state=self.state(status="creating"),
                at_hooks=lambda pid: hooks.run(bundle.hooks(), hooks.ON_CREATE, self.state(status="creating", pid=pid)),
                at_listener=self._at_listener(bundle.linux, status="creating"),
                keep_fds=keep_fds,
                survives=survives,
                new_keyring=new_keyring,
            )
        _give_stdio_to(bundle.owner())
        spawned = spawner.spawn(job, (0, 1, 2))
        try:
            if console:
                handed.terminal(console, spawned.terminal)
            ticks = proc.start_ticks(spawned.pid)
            self._write(pid=spawned.pid, start_ticks=ticks)
            self._answer_for((spawned.pid, ticks, proc.boot_id()))
        except BaseException:
            _end(spawned)
            raise
        return spawned

    def _group(self, path: str, asked: bool) -> "Cgroup":
        """Make its cgroup. Who may make none does without, if nothing was asked of one."""
        try:
            return cgroup.Cgroup.at(path, found=lambda paths: self._write(cgroup=paths))
        except KernelError as error:
            powerful = os.geteuid() == 0 and proc.namespace("self", "user") == _HOSTS_USERS
            if asked or powerful or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            emptying.end(self.record()["cgroup"])
            self._write(cgroup=[])
            self.warnings += (f"no cgroup: {error.message}; without one there is no pause, ps or limit",)
            return cgroup.Cgroup.of_paths([])

    def start(self) -> None:
        """Let its program run; return once it does. A poststart hook that fails ends and deletes it, and is raised."""
        record = self.record()
        status = self.status(record)
        if status != "created":
            raise InUse(
                f"cannot start a container in the {status} state", "only a created one can be started, and once"
            )
        config = self.config()
        gate.open_for(self.folder, config["process"]["args"])
        try:
            hooks.run(hooks.read(config.get("hooks")), ["poststart"], self.state(status="running", pid=record["pid"]))
        except LabError:
            self.delete(force=True)
            raise

    # ---- a further process ----

    def exec(
        self,
        process: dict[str, Any],
        *,
        console: str | None = None,
        keep_fds: int = 0,
        survives: bool = False,
        paused: bool = False,
        below: dict[str, str] | None = None,
    ) -> "Spawned":
        """Run a further process in it, a `process` object of the specification; return its Spawned once it runs.

        `below` is {controller: folder}, of folders below its cgroup that it shall enter; '' is for every tree.
        """
        record = self.record()
        status = self.status(record)
        if status == "paused" and not paused:
            raise InUse(f"cannot exec in a paused container {self.id}", "resume it first")
        if status not in ("running", "created", "paused"):
            raise NotFound(f"cannot exec in a container that is not running: {self.id} is {status}")
        config = self.config()
        with bundles.shaped("the process"):
            self.warnings = tuple(bundles.check_process(process))
            _check_console(process, console, survives)
            job = bundles.further(
                process,
                record["pid"],
                _below(self.cgroup(record), below) if below else _entry(self.cgroup(record), record["pid"]),
                config.get("linux") or {},
                self._at_listener(config.get("linux") or {}),
                keep_fds=keep_fds,
                survives=survives,
            )
        box = bundles.Bundle(record["bundle"], config, (), process)
        _give_stdio_to(box.owner())
        spawned = spawner.spawn(job, (0, 1, 2))
        try:
            if console:
                handed.terminal(console, spawned.terminal)
        except BaseException:
            _end(spawned)
            raise
        return spawned

    def _at_listener(self, linux: dict[str, Any], **news: Any) -> Callable[[int, int], None]:
        def send(pid: int, fd: int) -> None:
            first = {"pid": pid} if news else {}
            handed.listener(linux["seccomp"], self.state(**news, **first), pid, fd)

        return send

    # ---- what it may use ----

    def update(self, words: dict[str, Any]) -> None:
        """Change its limits: `words` are a `linux.resources`, of which counts what is in it."""
        record, config = self.record(), self.config()
        if self.status(record) == "stopped":
            raise NotFound(f"container not running: {self.id}", "it has ended, and uses nothing")
        linux, group = config.get("linux") or {}, self.governed()
        with bundles.shaped("linux.resources"):
            self.warnings = resources.ignored(words)
            now, whole = resources.merge(linux.get("resources") or {}, words)
            resources.read(now, "cpu" in now and group.version("cpu") == 1).apply(group, rules=False)
        config["linux"] = linux | {"resources": whole}
        state.write_json(f"{self.folder}/config.json", config, sync=False)

    # ---- ended, gone ----

    def kill(self, number: int, everyone: bool = False) -> None:
        """Send a signal to its first process, or to all. Raise NotFound, in words that Docker's shim knows."""
        record = self.record()
        linux = (self._read("config") or {}).get("linux") or {}
        group, kinds = self.cgroup(record), [one["type"] for one in linux.get("namespaces") or ()]
        # Without a pid namespace of its own the first one's end ends nobody else.
        if record["cgroup"] and (everyone or (number == signal.SIGKILL and "pid" not in kinds and group.procs())):
            if number == signal.SIGKILL:
                group.kill()
                return
            for pid in group.procs():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            return
        if self.status(record) not in ("running", "created", "paused"):
            raise NotFound(f"container not running: {self.id}", "it has ended, and can be deleted")
        with contextlib.suppress(NotFound), proc.pinned(record["pid"], record["start_ticks"]) as pidfd:
            syscalls.pidfd_send_signal(pidfd, number)

    def delete(self, force: bool = False) -> list[LabError]:
        """Take away all of it. Raise InUse if it runs, unless `force`. Return the LabErrors of hooks."""
        record = self.record()
        status = self.status(record)
        if status in ("running", "paused", "creating") and not force:
            raise InUse(f"cannot delete container {self.id} that is not stopped: {status}", "kill it first, or --force")
        config = self._read("config") or {}
        words = {name: record[name] for name in ("ociVersion", "id", "bundle", "annotations")} | {"status": "stopped"}
        self._destroy()
        try:
            hooks.run(hooks.read(config.get("hooks")), ["poststop"], words)
        except LabError as error:
            return [error]
        return []

    def _destroy(self) -> None:
        record = self._read("state") or {}
        if "unit" in record:
            emptying.kill(record["cgroup"])
            systemd.stop(record["unit"])
        emptying.end(record.get("cgroup", ()))
        if "pid" in record and not record["cgroup"]:
            with contextlib.suppress(NotFound), proc.pinned(record["pid"], record["start_ticks"]) as pidfd:
                syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], 5)
        if "seen_at_root" in record:
            hostmounts.take_away(record["rootfs"], record["seen_at_root"])
        for name in os.listdir(self.folder):
            os.unlink(f"{self.folder}/{name}")
        os.rmdir(self.folder)
        for entry in self._entries():
            ledger.strike(entry)

    # ---- who answers for it ----

    def _entries(self) -> list[ledger.Entry]:
        """Return its lines in the ledger. They are for a root of labkit's own; in any other its caller answers."""
        if self.root != os.path.normpath(state.place("oci")):
            return []
        what = {"root": self.root, "number": self.id}
        return [entry for entry in ledger.entries() if entry.kind == "oci" and entry.what == what]

    def _answer_for(self, owner: ledger.Owner) -> None:
        if self.root != os.path.normpath(state.place("oci")):
            return
        old = self._entries()
        ledger.write("oci", owner, root=self.root, number=self.id)
        for entry in old:
            ledger.strike(entry)


def default_root() -> "Path":
    """Return the folder that keeps containers if no other is named."""
    return state.run_dir("oci")


@ledger.undoes("oci")
def forget(root: str, number: str) -> None:
    """Undo a ledger entry: take the container away, whatever it is doing. Fine if it is gone."""
    box = Box(root, number)
    if os.path.isdir(box.folder):
        box._destroy()


def boxes(root: "str | Path") -> list[Box]:
    """Return the containers below `root`."""
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    return [Box(root, name) for name in names if os.path.exists(f"{root}/{name}/state.json")]


def _name_of(uid: int) -> str:
    import pwd  # only who creates a container needs it

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _entry(group: "Cgroup", beside: int | None = None) -> "Entry":
    return entry.Entry.into(((folder.version, folder.path) for folder in group.folders), beside)


def _names(folder: Any) -> tuple[str, ...]:
    return (*("blkio" if name == "io" and folder.version == 1 else name for name in folder.tree.controllers), "")


def _below(group: "Cgroup", below: dict[str, str]) -> "Entry":
    """Return the way into folders below a cgroup. Raises BadValue or NotFound, and names the folder.

    A folder for every tree need not be in each: a tree without it keeps the process where the container is.
    """
    known = {name for folder in group.folders for name in _names(folder)}
    if unknown := sorted(set(below) - known):
        raise BadValue(f"exec --cgroup: unknown controller {unknown[0]!r}", f"there are {' '.join(sorted(known))}")
    places = []
    for folder in group.folders:
        inside = next((below[name] for name in _names(folder) if name in below), "")
        if ".." in inside.split("/"):
            raise BadValue(f"exec --cgroup: bad sub cgroup path {inside!r}: `..` components are not allowed")
        path = os.path.normpath(f"{folder.path}/{inside}")
        if not os.path.isdir(path):
            if "" in below and any(os.path.isdir(f"{other.path}/{inside}") for other in group.folders):
                places.append((folder.version, str(folder.path)))
                continue
            raise NotFound(f"exec --cgroup: adding pid to cgroup {path}: no such file or directory", "make it first")
        places.append((folder.version, path))
    return entry.Entry.into(places)


def _end(spawned: "Spawned") -> None:
    syscalls.pidfd_send_signal(spawned.pidfd, signal.SIGKILL)
    spawner.reap(spawned.pidfd)


def _check_console(process: dict[str, Any], console: str | None, detached: bool) -> None:
    if console and not process.get("terminal"):
        raise BadValue(
            "--console-socket without process.terminal", "a terminal is made only if the process asks for one"
        )
    if process.get("terminal") and detached and not console:
        raise BadValue("process.terminal needs --console-socket here", "somebody must take the terminal's other end")


def _give_stdio_to(owner: tuple[int, int]) -> None:
    """Let the container's user open /dev/stdout again: a pipe belongs to who made it."""
    null = os.stat("/dev/null").st_rdev
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            found = os.fstat(fd)
            if found.st_rdev != null and found.st_uid != owner[0]:
                os.fchown(fd, owner[0], -1)
