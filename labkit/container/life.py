"""A container's life: created, running, exited, gone.

Nothing new happens here. An image gives files, storage makes them a root, a
cgroup limits, the spawner clones into both, and the rest is bookkeeping: who is
its parent, what is written down, and that each way out, the good and the bad,
takes everything away again.

    with Container("busybox", "sleep 60", memory="32m").start() as box:
        print(box.top())
        box.exec("ps")

What other processes need to know of it is in files: see `records`.
"""

import contextlib
import functools
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from labkit.cgroups import cgroup, cgroupfs, devices
from labkit.container import joining, launch, networking, output, records, rootless, spawner
from labkit.container.entry import Entry
from labkit.container.launch import Job
from labkit.container.spec import Spec
from labkit.container.steps import OpenTerminal
from labkit.ground import ledger, proc, signals, state, syscalls
from labkit.ground.dataclass import asdict, dataclass, fields
from labkit.ground.errors import InUse, KernelError, LabError, NotFound, Unsupported
from labkit.ground.typed import Any, Self
from labkit.images import catalog
from labkit.storage import roots


@dataclass(frozen=True)
class Finished:
    """How a container, or a command in one, ended."""

    code: int  # its exit status; 128+n if signal n killed it
    output: str = ""
    oom_killed: bool = False

    def __repr__(self) -> str:
        killed = ", killed because its memory limit was reached" if self.oom_killed else ""
        return f"<exit status {self.code}{killed}>"


class Container:
    """One container. Takes the words of `Spec.make`; a context manager that leaves nothing behind."""

    def __init__(self, image: str = "busybox", command: Iterable[Any] = (), **words: Any) -> None:
        self._adopt(Spec.make(image, command, **words), state.new_id())

    @classmethod
    def of(cls, spec: Spec, number: str | None = None) -> Self:
        """Return the Container of a Spec, a new one or the one with that id."""
        return cls.__new__(cls)._adopt(spec, number or state.new_id())

    def _adopt(self, spec: Spec, number: str) -> Self:
        self.spec = spec
        self.id = number
        # None before `start`, then: a Spawned while it runs, a Cgroup or what stands for it, a Rootfs.
        self.spawned: Any = None
        self.cgroup: Any = None
        self.rootfs: Any = None
        self._status: int | None = None
        self._written: dict[str, Any] = {}  # what is on disk about it, if this process is its keeper
        self._size: tuple[int, int] | None = None  # its terminal's first rows and columns
        return self

    @property
    def name(self) -> str:
        """Its name, or its id if it was given none."""
        return self.spec.name or self.id

    def __repr__(self) -> str:
        return f"<container {self.name} of {self.spec.image}, {self.status}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()

    # ---- created, running ----

    def describe(self) -> list[str]:
        """Return what `start` will do, one line a step. Nothing is made."""
        image = catalog.get(self.spec.image)
        root = roots.Rootfs(self.spec.storage, self.id, roots.seen(image.layers), "UPPERDIR", "WORKDIR", "MERGED")
        entry = Entry() if rootless.active() else Entry.into((tree.version, tree.own) for tree in cgroupfs.trees())
        plug = self._network().preview(self.id)
        spec = self.spec.with_volumes_of(image.config)
        job = spec.job(image.config, root.step(), self._hostname(), self._named(), entry, plug)
        return [
            *(f"new cgroup, {line}" for line in self.spec.limits.describe() or ["without a limit"]),
            *(f"published port {port}" for port in self.spec.ports),
            *self.altered(job).describe(),
        ]

    def altered(self, job: Job) -> Job:
        """Return what is done in place of `job`: that very job, unless a kind of container has other steps."""
        return job

    def _hostname(self) -> str:
        return self.spec.hostname or (os.uname().nodename if self.spec.network == "host" else self.id)

    def start(self, stdio: Sequence[int] | None = None, console_size: tuple[int, int] | None = None) -> Self:
        """Make everything and start the command; return self.

        `stdio` are three fds; without it stdin is empty and the rest goes to the log.
        `console_size` are the rows and columns that its terminal begins with. Raises
        CommandError if the command can't be executed, InUse if the name is taken.
        Whatever it raises, nothing of it is left.
        """
        if self.spawned:
            raise InUse(f"{self.name} is started already")
        image = catalog.get(self.spec.image)
        self.spec.argv(image.config)
        self.spec = self.spec.with_volumes_of(image.config)
        self._size = console_size
        with ledger.group(self.id):
            records.claim_id(self.id)  # only who gets it may clean up after it
        try:
            with ledger.group(self.id):
                if self.spec.name:
                    records.claim_name(self.spec.name, self.id)
                self._written = {
                    "id": self.id,
                    "spec": asdict(self.spec),
                    "config": asdict(image.config),  # the image's name may mean another one soon
                    "created": time.time(),
                    "keeper": ledger.me(),
                }
                self._write(status="created")
                self.rootfs = roots.driver(self.spec.storage).prepare(image, self.id, userxattr=rootless.active())
                self.cgroup = self._govern()
                self._shut_devices()
                self._make_volumes()
                # The process needs no line of its own in the ledger: it is born in the cgroup.
                self._spawn(image.config, stdio)
        except BaseException:
            self.delete()
            raise
        self._write(status="running", pid=self.pid, start_ticks=proc.start_ticks(self.pid))
        return self

    def _make_volumes(self) -> None:
        """Make its named volumes; new ones get what the image has at their place: a mount would hide it."""
        named = [one for one in self.spec.volumes if not one.source.startswith("/")]
        if not named:
            return
        from labkit.storage import volumes

        for one in named:
            if one.anonymous:
                ledger.write("folder", path=str(volumes.folder(one.source).parent))
            volumes.create(one.source)
        # With mapped ids the files would come out under others; without root there is no mount to read from.
        if "user" not in self.spec.namespaces and not rootless.active():
            volumes.fill_from(self.rootfs.step(), [(one.source, one.target) for one in named if one.copy])

    def _govern(self) -> Any:
        if not rootless.active():
            return cgroup.Cgroup.create(self.id, self.spec.limits)
        rootless.check(self.spec)
        return rootless.Ungoverned(self)

    def _shut_devices(self) -> None:
        if self.cgroup.folders:
            # Where no cgroup can do it, nodev on every mount still does.
            with contextlib.suppress(Unsupported):
                devices.allow_only(self.cgroup)

    @functools.cached_property
    def folder(self) -> Path:
        """Its folder in /run."""
        return records.folder(self.id)

    def _spawn(self, config: catalog.ImageConfig, stdio: Sequence[int] | None) -> None:
        hostname = self._hostname()
        files = self._files(hostname)
        news, plug = self._network().join(self.id, (self.spec.name, hostname, self.id))
        if news:
            self._write(**news)
        job = self.spec.job(config, self.rootfs.step(), hostname, files, self._entry(), plug, self._size)
        with contextlib.ExitStack() as stack:
            if stdio is None:
                stdio = (_opened(stack, os.devnull, os.O_RDONLY), *[self.open_log(stack)] * 2)
            self.spawner = spawner.current()
            self.spawned = self.spawner.spawn(self.altered(job), stdio)

    def _network(self) -> networking.Unplugged:
        return networking.of(self.spec, alone=rootless.active())

    def _files(self, hostname: str) -> list[tuple[Path, str]]:
        """Write the three files that tell a container names, its own first; return where they go."""
        texts = {
            "hostname": f"{hostname}\n",
            "hosts": f"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{hostname}\n",
            "resolv.conf": self._network().resolv_conf(),
        }
        for name, text in texts.items():
            with open(self.folder / name, "w") as file:
                file.write(text)
                os.fchmod(file.fileno(), 0o644)
        return self._named()

    def _named(self) -> list[tuple[Path, str]]:
        return [(self.folder / name, f"/etc/{name}") for name in ("hostname", "hosts", "resolv.conf")]

    def _entry(self, beside: int | None = None) -> Entry:
        return Entry.into(((folder.version, folder.path) for folder in self.cgroup.folders), beside)

    def log(self) -> output.Log:
        """Return its Log, for who stands between it and what it prints."""
        return output.Log(self.folder)

    def open_log(self, stack: contextlib.ExitStack) -> int:
        """Open its log for adding; `stack` closes it."""
        return _opened(stack, self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    # ---- what it is now ----

    def _write(self, **news: Any) -> None:
        record = (self._written or self.record()) | news
        records.write(self.id, record)
        if self._written:
            self._written = record

    def record(self) -> dict[str, Any]:
        """Return what is on disk about it. Raise NotFound if it is gone."""
        return records.read(self.id)

    @property
    def pid(self) -> Any:
        """The host's number of its first process, which is 1 inside."""
        return self.spawned.pid if self.spawned else self.record().get("pid")

    @property
    def status(self) -> str:
        """One of created, running, paused, exited, dead (its keeper was killed), gone."""
        with contextlib.suppress(NotFound):
            record = self.record()
            status = records.status(record)
            if self.spawned and record["status"] == "running" and status not in ("running", "paused"):
                self.wait()
                return "exited"
            return status
        return "gone"

    def config(self) -> catalog.ImageConfig:
        """Return the ImageConfig that it was started with, whatever its image's name means by now."""
        words: dict[str, Any] = (self._written or self.record())["config"]
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in words.items()}
        return catalog.ImageConfig(**values)

    def top(self) -> list[proc.Process]:
        """Return its processes as the host numbers them, with the number inside last in `nspid`."""
        found = []
        for pid in self._cgroup().procs():
            with contextlib.suppress(NotFound):
                found.append(proc.process(pid))
        return found

    def stats(self) -> cgroup.Stats:
        """Return what its cgroup has counted so far."""
        stats: cgroup.Stats = self._cgroup().stats()
        return stats

    def _cgroup(self) -> Any:
        if self.cgroup is None:
            self.record()
            self.cgroup = rootless.Ungoverned(self) if rootless.active() else cgroup.Cgroup.open(self.id)
        return self.cgroup

    def logs(self) -> str:
        """Return what it has printed so far."""
        try:
            return (self.folder / "log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def changes(self) -> list[Any]:
        """Return what it has changed in its root: its upperdir, read. See overlayfs(5)."""
        rootfs = self.rootfs or roots.driver(self.spec.storage).get(self.id)
        return rootfs.changes()

    # ---- done to it ----

    def exec(
        self,
        command: Iterable[Any],
        *,
        env: Any = (),
        workdir: str | None = None,
        user: str | None = None,
        tty: bool = False,
        stdio: Sequence[int] | None = None,
        console_size: tuple[int, int] | None = None,
    ) -> Any:
        """Run a further command in it and wait; return Finished. See setns(2).

        With `stdio` the output goes there and the Spawned is returned at once.
        """
        self.must_be("running")
        spec = Spec.make(self.spec.image, command, env=env, workdir=workdir, tty=tty)
        config = self.config()
        self._cgroup()
        steps = (
            *joining.join(self.pid, self.spec.namespaces, self.spec.capabilities),
            *launch.inside(
                spec.command or ("sh",),
                self.spec.environment(config, tty, first=(f"HOSTNAME={self._hostname()}",), last=spec.env),
                workdir or self.spec.workdir or config.workdir or "/",
                user or self.spec.user or config.user or "0",
                self.spec.capabilities,
                OpenTerminal(console=False, size=console_size) if tty else None,
                self.spec.filters(),
            ),
        )
        job = self.altered(Job(steps, entry=self._entry(self.pid)))
        keeper = spawner.current()
        if stdio is not None:
            return keeper.spawn(job, stdio)
        return _heard(keeper, job)

    def must_be(self, *wanted: str) -> None:
        """Raise NotFound unless its status is one of these."""
        if (status := self.status) not in wanted:
            raise NotFound(f"{self.name} is not {' or '.join(wanted)}: {status}", "`lab ps -a` shows all containers")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to its first process; SIGKILL goes to all of it at once, frozen or not."""
        if number == signal.SIGKILL:
            self._cgroup().kill()
            return
        self.must_be("running", "paused")
        with self.pidfd() as pidfd:
            syscalls.pidfd_send_signal(pidfd, number)

    @contextlib.contextmanager
    def pidfd(self) -> Iterator[int]:
        """Open a pidfd of its first process and make sure that it is that one."""
        if self.spawned:
            yield self.spawned.pidfd
            return
        record = self.record()
        if "pid" not in record:  # it is not quite there yet
            raise NotFound(f"{self.name} is not running")
        with proc.pinned(record["pid"], record["start_ticks"]) as pidfd:
            yield pidfd

    def pause(self) -> None:
        """Stop all its processes where they are. See "freezer" in cgroups(7)."""
        self.must_be("running")
        self._cgroup().freeze()
        self._write(paused=True)

    def unpause(self) -> None:
        """Let its processes go on."""
        self._cgroup().thaw()
        self._write(paused=False)

    def stop(self, timeout: float | None = 10) -> int | None:
        """Ask it to end, with its image's stop signal; after `timeout` seconds kill it, with None never. Wait."""
        with self._ending() as ending:
            if self.status == "paused":
                self.unpause()
            if self.status == "running":
                number = signals.number(self.config().stop_signal)
                with contextlib.suppress(NotFound, KernelError), self.pidfd() as pidfd:
                    # PID 1 gets no signal it has no handler for: a shell script, for one, goes on.
                    syscalls.pidfd_send_signal(pidfd, number)
                    if not select.select([pidfd], [], [], timeout)[0]:
                        self.kill()
            return self._wait(ending, None)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until it ends; return its exit status, or None after `timeout` seconds."""
        with self._ending() as ending:
            return self._wait(ending, timeout)

    def _ending(self) -> contextlib.AbstractContextManager[Any]:
        """Open what tells how it ended, before it is waited for: with --rm it is gone in the next moment."""
        own = self.spawned or self._status is not None
        return contextlib.nullcontext() if own else records.ending(self.id)

    def _wait(self, ending: Any, timeout: float | None) -> int | None:
        if self._status is None and self.spawned:
            if not select.select([self.spawned.pidfd], [], [], timeout)[0]:
                return None
            self._finish()
        if self._status is not None:
            return self._status
        with contextlib.suppress(NotFound), self.pidfd() as pidfd:
            if not select.select([pidfd], [], [], timeout)[0]:
                return None
        return self._status_from_keeper(ending)

    def _status_from_keeper(self, ending: Callable[[], int | None], seconds: float = 5) -> int:
        """Wait for the keeper to write down the exit status of a process that has ended, and for --rm to be done."""
        deadline = time.monotonic() + seconds
        while (code := ending()) is None or (self.spec.rm and self.folder.exists()):
            if time.monotonic() > deadline or (code is None and not self._has_keeper()):
                break
            time.sleep(0.01)
        if code is None and (code := ending()) is None:
            raise LabError(f"nobody knows how {self.name} ended: its keeper is gone", "`lab clean` removes it")
        return code

    def _has_keeper(self) -> bool:
        with contextlib.suppress(NotFound):
            return proc.is_running(*self.record()["keeper"][:2])
        return False

    def _finish(self) -> None:
        """Write down how it ended and give back its cgroup; its files stay until `delete`."""
        try:
            self._status = self.spawner.status(self.spawned)
        except LabError:  # the spawner was killed, and the kernel killed its children: PR_SET_PDEATHSIG
            self._status = 128 + signal.SIGKILL
        os.close(self.spawned.pidfd)
        if self.spawned.terminal is not None:
            os.close(self.spawned.terminal)
        self.spawned = None
        self.oom_killed = bool(self.cgroup.oom_kills())
        ended = {"status": "exited", "code": self._status, "oom_killed": self.oom_killed, "ended": time.time()}
        # How it ended is its own affair: a full disk or a damaged file of ours does not change that.
        for step in (self._leave_cgroup, self._leave_network, lambda: self._write(**ended)):
            try:
                step()
            except LabError as error:
                print(f"{self.name} ended with {self._status}, but {error}", file=sys.stderr)
        records.tell_end(self.id, self._status)

    def _leave_network(self) -> None:
        networking.leave(self._written.get("network"), self.id)

    def _leave_cgroup(self) -> None:
        if not self.cgroup.remove_if_empty():
            self.cgroup.kill()  # what `exec` started without a pid namespace's end to kill it
            self.cgroup.remove()

    def delete(self) -> None:
        """Kill it if it runs, and take away everything of it."""
        if self.spawned:
            self.cgroup.kill()
            self.wait()
        ledger.undo_group(self.id)


def run(image: str, *command: Any, show: bool = True, **words: Any) -> Finished:
    """Run a command in a new container until it ends; print its output, return Finished.

    Takes the words of `Spec.make`. The container is gone afterwards.
    """
    argv = command[0] if len(command) == 1 and isinstance(command[0], list | tuple | str) else command
    with Container(image, argv, **words).start() as box:
        code = box.wait()
        assert code is not None  # that is after a timeout only
        output = box.logs()
        if show:
            print(output, end="")
        return Finished(code, output, box.oom_killed)


def _heard(keeper: Any, job: Job) -> Finished:
    """Have a job done with nothing to read; return how it ended and what it printed."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    with contextlib.ExitStack() as stack:
        null = _opened(stack, os.devnull, os.O_RDONLY)
        output = stack.enter_context(os.fdopen(read_end, "rb"))
        try:
            spawned = keeper.spawn(job, (null, write_end, write_end))
        finally:
            os.close(write_end)
        text = _read_until_end(spawned.pidfd, output.fileno())
        code = keeper.status(spawned)
        os.close(spawned.pidfd)
    return Finished(code, text.decode(errors="replace"))


def find(reference: str) -> Container:
    """Return the container of a name, an id or the beginning of one. Raise NotFound."""
    return _of(records.read(records.find(reference)))


def all_containers(damaged: list[LabError] | None = None) -> list[Container]:
    """Return every container that there is, the newest first; `damaged` gets what hides one, see `state`."""
    return [_of(record) for record in records.read_all(damaged)]


def _of(record: dict[str, Any]) -> Container:
    # JSON has no tuples; and limits and volumes are in force already, nobody makes them from this again.
    known = ((one.name, record["spec"][one.name]) for one in fields(Spec))
    words: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in known}
    words |= {"limits": cgroup.Limits(), "volumes": ()}
    return Container.of(Spec(**words), record["id"])


def begin(chapter: str) -> None:
    """Begin a chapter: give back what an earlier run of it left, and mark what it makes as its own."""
    ledger.begin(chapter)


def _opened(stack: contextlib.ExitStack, path: str | Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, fd)
    return fd


def _read_until_end(pidfd: int, fd: int) -> bytes:
    """Read a pipe until the process ends and what it wrote is read; others may hold the pipe open."""
    os.set_blocking(fd, False)
    text = bytearray()
    ended = False
    while not ended:
        ready, _, _ = select.select([pidfd, fd], [], [])
        ended = pidfd in ready
        with contextlib.suppress(BlockingIOError):
            while block := os.read(fd, 65536):
                text += block
            if not ended:
                select.select([pidfd], [], [])
                ended = True
    return bytes(text)
