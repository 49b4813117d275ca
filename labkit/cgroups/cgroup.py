"""A cgroup: processes kept together, limited together, counted, frozen and killed together.

To the kernel it is a folder below /sys/fs/cgroup. mkdir makes it, a process id
written into cgroup.procs moves a process in, a number written into `memory.max`
limits all of them, rmdir ends it. On v2 one folder does it all; on v1 every
controller has a tree of its own, so one Cgroup is a folder in each:

    v2       /sys/fs/cgroup/labkit/web
    v1       /sys/fs/cgroup/cpu/labkit/web, /sys/fs/cgroup/memory/…/labkit/web, …
    hybrid   v1's folders, and one in the v2 tree for kill and freeze

    with Cgroup.create("web", Limits.parse(memory="32m", cpus="0.5")) as group:
        group.add(pid)
        print(group.stats())

`labkit` between the tree and the name is the mark by which everything here can
be found and taken away again. A folder goes only when nothing is in it: leaving
the block kills what still runs there, waits until it is gone, then removes.

Its neighbours: `limits` is what may be asked, `hierarchies` where the trees
are, `versions` what is written and read in each version, `cgroupfs` how folders
come and go, `events` how to wait.
See cgroups(7), Documentation/admin-guide/cgroup-v2.rst.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from labkit.cgroups import cgroupfs, emptying, events, hierarchies
from labkit.cgroups.hierarchies import Hierarchy
from labkit.cgroups.limits import CONTROLLER_OF, Limits
from labkit.cgroups.versions import V2, Folder, Stats
from labkit.ground import ledger, proc, state
from labkit.ground.errors import InUse, KernelError, LabError, NotFound, Unsupported, from_oserror


class Cgroup:
    """A group of processes with limits. Made by `create` or `open`; a context manager that removes it."""

    def __init__(self, name: str, folders: list[Folder], entry: ledger.Entry | None = None) -> None:
        self.name = name
        self.folders = folders  # V1s and at most one V2
        self.entry = entry  # in the ledger; None for a nested one, its parent's covers it

    def __repr__(self) -> str:
        return f"<Cgroup {self.name}: {', '.join(self._paths())}>"

    def __enter__(self) -> "Cgroup":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.remove()

    @classmethod
    def create(cls, name: str, limits: Limits | None = None, owner: ledger.Owner | None = None) -> "Cgroup":
        """Make a cgroup with limits and write it in the ledger first; return it.

        `owner` answers for it in the ledger (this process by default). Raises InUse
        for a name that is taken, Unsupported for a limit that this machine lacks,
        KernelError with the file. Whatever it raises, nothing of it is left.
        On v2 it enables controllers in cgroup.subtree_control of the folders above
        where they are missing. See cgroups(7).
        """
        state.check_name(name, "cgroup name")
        places = [(tree, tree.own / state.label() / name) for tree in cgroupfs.trees()]
        first, *also = (str(path) for _, path in places)
        if taken := [path for path in (first, *also) if os.path.exists(path)]:
            raise InUse(f"a cgroup {name!r} is there already: {taken[0]}", "another name, or `lab clean`")
        entry = ledger.write("cgroup", owner, path=first, also=also)
        return cls._make(name, places, limits, entry)

    @classmethod
    def _make(
        cls,
        name: str,
        places: Iterable[tuple[Hierarchy, Path]],
        limits: Limits | None,
        entry: ledger.Entry | None = None,
    ) -> "Cgroup":
        group = cls(name, [], entry)
        try:
            for tree, path in places:
                folder = cgroupfs.make_folder(tree, path)
                group.folders.append(folder)
                folder.prepare()
            if limits:
                group.set(limits)
        except BaseException as error:
            with contextlib.suppress(LabError):
                group.remove()
            if isinstance(error, OSError):
                raise from_oserror(error, f"making the cgroup {name!r}") from None
            raise
        return group

    @classmethod
    def at(
        cls, path: str, limits: Limits | None = None, found: Callable[[list[str]], object] | None = None
    ) -> "Cgroup":
        """Make a cgroup at a place that somebody else chose, and answers for; return it.

        An absolute path begins at the root of each tree, another at this process's own
        place. An empty cgroup that is there already is used. `found` is called with the
        folders' paths before they are made, and once it is sure that they are nobody
        else's. Raises InUse if processes are in one, or if one is frozen.
        """
        places = [(tree, cgroupfs.place(tree, path)) for tree in cgroupfs.trees()]
        if inside := emptying.members([str(folder) for _, folder in places]):
            raise InUse(f"the container's cgroup is not empty: {inside} are in {path}", "another cgroupsPath")
        for tree, folder in places:
            if frozen := cgroupfs.frozen_above(tree, folder):
                raise InUse(f"container's cgroup unexpectedly frozen: {frozen}", "thaw it, or another cgroupsPath")
        if found:
            found([str(folder) for _, folder in places])
        for tree, folder in places:
            cgroupfs.make_parents(tree, folder)
            if folder.exists():
                emptying.remove_tree(folder)
        return cls._make(str(path), places, limits)

    @classmethod
    def of_paths(cls, paths: Sequence[str]) -> "Cgroup":
        """Return the cgroup that these folders, one a tree, are; those gone are left out."""
        there = cgroupfs.with_trees(path for path in paths if os.path.isdir(path))
        return cls(paths[0] if paths else "", [cgroupfs.folder_at(path, tree) for path, tree in there])

    @classmethod
    def open(cls, name: str) -> "Cgroup":
        """Return the cgroup of that name that labkit made, from whichever process. Raise NotFound."""
        state.check_name(name, "cgroup name")
        # The ledger knows the paths. Ours could not be worked out again: on v1 they
        # are below the place of the process that made it.
        end = f"/{state.label()}/{name}"
        for entry in ledger.entries():
            if entry.kind == "cgroup" and entry.what["path"].endswith(end):
                folders = cls.of_paths([entry.what["path"], *entry.what.get("also", ())]).folders
                if folders:
                    return cls(name, folders, entry)
        raise NotFound(f"no cgroup {name!r}", "`lab cgls` shows those that there are")

    def nested(self, name: str, limits: Limits | None = None) -> "Cgroup":
        """Make a cgroup inside this one and return it; it is removed with this one, or by its own block.

        Limits add up: the nested one can't use more than this one. On v2 a folder
        that has processes can't hand controllers down, so this raises KernelError
        (EBUSY) when there are processes in it. See "No Internal Process Constraint".
        """
        state.check_name(name, "cgroup name")
        places = [(folder.tree, folder.path / name) for folder in self.folders]
        if taken := [path for _, path in places if path.exists()]:
            raise InUse(f"a cgroup {name!r} is there already: {taken[0]}")
        return type(self)._make(f"{self.name}/{name}", places, limits)

    def handed(self, controller: str) -> Folder:
        """Return its folder for a controller that is not handed down to each cgroup (hugetlb, rdma); on v2 it is now.

        Raise Unsupported if no tree has it, KernelError if a folder above can't hand it down.
        """
        for folder in self.folders:
            if folder.version == 1 and any(folder.path.glob(f"{controller}.*")):
                return folder
            if folder.version == 2 and controller in folder.tree.offered():
                hierarchies.enable(folder.tree, folder.path.parent, (controller,))
                return folder
        raise Unsupported(f"this machine has no {controller} controller", "/proc/cgroups lists those of the kernel")

    # Its files

    def _paths(self) -> list[str]:
        return [str(folder.path) for folder in self.folders]

    def _folder(self, controller: str) -> Folder | None:
        controller = "io" if controller == "blkio" else controller
        for folder in self.folders:
            if controller in folder.controllers:
                return folder
        return self._v2() if controller == "cgroup" else None

    def _home(self, controller: str) -> Folder:
        folder = self._folder(controller)
        if folder is None:
            raise Unsupported(f"this machine has no {controller} controller", "/proc/cgroups and `lab doctor` say more")
        return folder

    def _v2(self) -> V2 | None:
        return next((folder for folder in self.folders if isinstance(folder, V2)), None)

    def path(self, controller: str = "cgroup") -> Path:
        """Return this cgroup's folder for a controller (`cgroup`: in the v2 tree). Raise Unsupported."""
        return self._home(controller).path

    def version(self, controller: str) -> int:
        """Return 1 or 2: the version of the tree that a controller is in here. Raise Unsupported if in none."""
        return self._home(controller).version

    def file(self, name: str) -> Path:
        """Return the path of one of its files, by v1's or v2's name. Raise Unsupported if it is in neither."""
        folder, second = self._folder(name.partition(".")[0]), self._v2()
        if folder and folder.has(name):
            return folder.path / name
        # On a hybrid machine cpu.pressure and its like are in the v2 tree, whatever tree the controller is in.
        if second and second.has(name):
            return second.path / name
        if folder and "/" not in name and folder.has(folder.file(name)):
            return folder.path / folder.file(name)
        where = folder or second or self.folders[0]
        raise Unsupported(f"{where.path} has no file {name}", f"this kernel's cgroup v{where.version} does not know it")

    def read(self, name: str) -> str:
        """Return the text of one of its files. Raise Unsupported or KernelError, naming the file."""
        path = self.file(name)
        try:
            return proc.read_plain(path)
        except OSError as error:
            raise KernelError("reading", error.errno, path) from None

    def write(self, name: str, value: object) -> None:
        """Write one of its files. Raise Unsupported or KernelError, naming the file and the value."""
        path = self.file(name)
        try:
            proc.write_plain(path, str(value))
        except OSError as error:
            raise cgroupfs.refused(str(value), path, error) from None

    def set(self, limits: Limits) -> None:
        """Apply limits; what is None in them stays as it is. Raise Unsupported before anything is written."""
        for name, controller in CONTROLLER_OF.items():
            if getattr(limits, name) not in (None, ()):
                self.path(controller)
        steps = [
            (name, text)
            for folder in self.folders
            for name, text in folder.plan(limits)
            if folder.version == 1 or self._here(folder, name)
        ]
        for name, _ in steps:
            self.file(name)
        for name, text in steps:
            self.write(name, text)

    def _here(self, folder: Folder, name: str) -> bool:
        """Tell whether `name` is for the v2 folder to write, or some v1 folder has done it."""
        return self._folder(name.partition(".")[0]) in (folder, None)

    def stats(self) -> Stats:
        """Return what it has used so far, as Stats: one reading of every file."""
        found: dict[str, int] = {}
        for folder in self.folders:
            found.update((name, value) for name, value in folder.stats().items() if value is not None)
        return Stats(**found)

    # Its processes

    def add(self, pid: int) -> None:
        """Move a process and all its threads in; 0 is the caller. Raise KernelError. See cgroups(7)."""
        for path in self.procs_files:
            try:
                path.write_text(str(pid))
            except OSError as error:
                raise cgroupfs.refused(str(pid), path, error) from None

    @property
    def procs_files(self) -> list[Path]:
        """Return the cgroup.procs of each of its folders: who writes a pid into all of them moves it in."""
        return [folder.path / "cgroup.procs" for folder in self.folders]

    def procs(self) -> list[int]:
        """Return the ids of the processes in it and in what is nested in it, as the reader's PID namespace counts."""
        return emptying.members(self._paths())

    def into_fd(self) -> int | None:
        """Return an fd of its v2 folder for clone3's CLONE_INTO_CGROUP, or None without a v2 tree.

        The caller closes it.
        """
        folder = self._v2()
        return os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if folder else None

    def kill(self) -> None:
        """Kill every process in it at once, also those that fork meanwhile; return without waiting."""
        emptying.kill(self._paths())

    def freeze(self, timeout: float = 5) -> None:
        """Stop every process in it where it is, and return once they all are. Raise LabError after `timeout` s."""
        self._freeze(True, timeout)

    def thaw(self, timeout: float = 5) -> None:
        """Let frozen processes go on."""
        self._freeze(False, timeout)

    def _freeze(self, frozen: bool, timeout: float) -> None:
        folder = self._v2()
        if folder and folder.has("cgroup.freeze"):
            self.write("cgroup.freeze", int(frozen))
            done = bool(
                events.wait_for(
                    folder.path / "cgroup.events", lambda text: events.flat(text).get("frozen") == frozen, timeout
                )
            )
        else:
            # v1 tells nobody when it is done: FREEZING becomes FROZEN as it is read.
            word, deadline = ("FROZEN" if frozen else "THAWED"), time.monotonic() + timeout
            self.write("freezer.state", word)
            while (done := self.read("freezer.state").strip() == word) is False and time.monotonic() < deadline:
                time.sleep(0.002)
        if not done:
            raise LabError(
                f"{self.name} did not {'freeze' if frozen else 'thaw'} within {timeout} s",
                "a process in it waits in the kernel: `ps -eo pid,stat,wchan,comm`",
            )

    def is_frozen(self) -> bool:
        """Tell whether its processes are stopped where they are."""
        folder = self._v2()
        if folder and folder.has("cgroup.freeze"):
            return folder.text("cgroup.freeze").strip() == "1"
        return any(folder.text("freezer.state").strip() in ("FROZEN", "FREEZING") for folder in self.folders)

    def wait_empty(self, timeout: float = 5) -> bool:
        """Return True once no process is in it, False after `timeout` seconds."""
        return emptying.wait_empty(self._paths(), timeout)

    def oom_kills(self) -> int | None:
        """Return how many processes in it the kernel has killed for want of memory, None where it isn't told."""
        folder = self._folder("memory")
        return folder.oom_kills() if folder else None

    def remove_if_empty(self) -> bool:
        """Remove it, if neither a process nor a cgroup is in it; tell whether it is gone. See rmdir(2)."""
        # Who is in a cgroup is in it in every tree: the first rmdir decides.
        if not all(map(emptying.removed, reversed(self._paths()))):
            return False
        if self.entry is not None:
            ledger.strike(self.entry)
        return True

    def remove(self, timeout: float = 5) -> None:
        """Remove it, and what is nested in it, once it is empty. Raise InUse if it isn't after `timeout` s."""
        emptying.remove(self._paths(), timeout, self.name)
        if self.entry is not None:
            ledger.strike(self.entry)
