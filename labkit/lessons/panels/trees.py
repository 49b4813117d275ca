"""Trees of the kernel's, to be opened like folders: namespaces by their owners, cgroups with what they use.

namespaces("net")       which user namespace owns which; press one: who is in it
cgroups("memory")       labkit's cgroups, and what each uses of what it may
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.cgroups import cgroupfs, emptying, hierarchies
from labkit.ground import proc, state
from labkit.ground.errors import LabError
from labkit.isolation import namespaces as spaces
from labkit.lessons import figures
from labkit.lessons.figures.storage import size
from labkit.lessons.panels.live import Live, Part
from labkit.lessons.watch import lsns

if TYPE_CHECKING:
    import ipywidgets


Key = tuple[str, int]  # a kind and an inode number
Below = dict[Key | None, list[lsns.Namespace]]
MOST = 40  # rows; a machine may have hundreds of namespaces
_COLOURS = {"user": figures.ORANGE, "pid": figures.SKY}


class Tree(Live):
    """A row a part, moved to the right by its depth, with a bar for what it uses."""

    _rows: dict[Any, Any] = {}

    def arrange(self, parts: list[Part]) -> "Iterable[ipywidgets.HBox]":
        """Return a row for each part; what there was is used again."""
        self._rows = {part.key: self._row(part) for part in parts}
        return self._rows.values()

    def _row(self, part: Part) -> "ipywidgets.HBox":
        import ipywidgets

        button = self.button_of(part, width="auto", flex="0 0 auto", margin=f"1px 8px 1px {28 * part.depth}px")
        row = self._rows.get(part.key) or ipywidgets.HBox([button], layout={"overflow": "visible"})
        if part.share is None:
            row.children = (button,)
        else:
            if len(row.children) == 1:
                row.children = (
                    button,
                    ipywidgets.FloatProgress(max=1.0, layout={"flex": "0 1 140px", "min_width": "40px"}),
                )
            row.children[1].value = min(1.0, part.share)
        return row


class Namespaces(Tree):
    """Every namespace of one kind, below the user namespace that owns it or the one it is nested in."""

    def parts(self) -> list[Part]:
        """Return the namespaces as the kernel tells, the outermost first."""
        kind, found = self.choice.value, lsns.survey()
        self._found = {(one.kind, one.inode): one for one in found}
        nested = kind in ("user", "pid")
        shown = [one for one in found if one.kind == kind or (one.kind == "user" and not nested)]
        if not nested:  # of the owners only those that own something of this kind
            owners = {one.owner for one in found if one.kind == kind}
            shown = [one for one in shown if one.kind == kind or one.inode in self._with_those_above(owners)]
        below: Below = {}
        for one in shown:
            above = ("user", one.parent) if one.kind == "user" else (kind, one.parent)
            above = above if nested or one.kind == "user" else ("user", one.owner)
            below.setdefault(above if above in self._found else None, []).append(one)
        rows = list(self._walk(below, None, 0))
        more = [Part("more", f"… and {len(rows) - MOST} more")] if len(rows) > MOST else []
        return rows[:MOST] + more

    def _with_those_above(self, owners: Iterable[int | None]) -> set[int]:
        every = set()
        for inode in owners:
            while inode is not None and inode not in every:
                every.add(inode)
                inode = self._found["user", inode].parent if ("user", inode) in self._found else None
        return every

    def _walk(self, below: Below, above: Key | None, depth: int) -> Iterator[Part]:
        for one in sorted(below.get(above, ()), key=lambda one: (one.pid is None, one.pid)):
            key = (one.kind, one.inode)
            yield Part(key, self._words(one), depth, colour=_COLOURS.get(one.kind, figures.PALE))
            yield from self._walk(below, key, depth + 1)

    def _words(self, one: lsns.Namespace) -> str:
        who = f"{one.command[:34]} ({one.pid})" if one.pid else one.command[-40:] or "held by another"
        here = ", and this notebook" if one.inode == proc.namespace("self", one.kind) else ""
        return f"{one.kind} {one.inode} · {_many(one.processes)} · {who}{here}"

    def told(self, key: Any) -> list[str]:
        """Return who is in a namespace, who owns it, and how to get in."""
        one = self._found.get(key)
        if one is None:
            return []
        lines = [f"{one.kind} namespace {one.inode}: {spaces.KINDS[one.kind][1]}"]
        lines += [f"owned by user namespace {one.owner}"] if one.owner else []
        lines += [f"nested in {one.kind} namespace {one.parent}"] if one.parent else []
        inside = [pid for pid in proc.pids() if _is_in(pid, *key)]
        lines += [f"  {pid:>7}  {_command(pid)}" for pid in inside[:8]]
        lines += [f"  … and {len(inside) - 8} more"] if len(inside) > 8 else []
        if one.pid:
            lines.append(f"to get in: setns(2) with /proc/{one.pid}/ns/{one.kind}")
        return lines


def _is_in(pid: int, kind: str, inode: int) -> bool:
    with contextlib.suppress(LabError):
        return proc.namespace(pid, kind) == inode
    return False


def _many(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _command(pid: int) -> str:
    with contextlib.suppress(LabError):
        return " ".join(" ".join(proc.cmdline(pid)).split())[:70] or f"[{proc.process(pid).name}]"
    return "(ended)"


def namespaces(kind: str = "user") -> Namespaces:
    """Return the picture of a kind's namespaces; other kinds can be chosen in it."""
    import ipywidgets

    spaces.flags((kind,))  # refuses a kind that there is none of
    kinds = ipywidgets.Dropdown(options=list(spaces.KINDS), value=kind, description="kind")
    return Namespaces("namespaces", kinds)


class Cgroups(Tree):
    """labkit's cgroups in the tree of one controller, with what each uses."""

    _now: dict = {}  # path: (when, µs of CPU)

    def parts(self) -> list[Part]:
        """Return the cgroups, each below the one it is in."""
        self._before, self._now = self._now, {}
        tree = _counting(self.choice.value)
        top = tree.own / state.label()
        if not top.is_dir():
            return [Part("none", f"{top}: no cgroup has been made there", colour="white")]
        found = []
        for path, folders, _ in os.walk(top):
            folders.sort()
            with contextlib.suppress(OSError, LabError):  # it may go while we look
                found.append(self._part(Path(path), top, tree))
        return found[:MOST]

    def _part(self, path: Path, top: Path, tree: hierarchies.Hierarchy) -> Part:
        words, share = self._use(path, cgroupfs.folder_at(path, tree).stats())
        inside = emptying.members([str(path)])
        who = f" ({_command(inside[0])[:24]})" if len(inside) == 1 else ""
        depth = len(path.relative_to(top).parts)
        return Part(path, f"{path.name} · {_many(len(inside))}{who} · {words}", depth, share)

    def _use(self, path: Path, used: dict[str, Any]) -> tuple[str, float | None]:
        if self.choice.value == "cpu":
            self._now[path] = (time.monotonic(), used["usage_usec"])
            when, usec = self._before.get(path, self._now[path])
            seconds = self._now[path][0] - when
            if seconds < 0.5:  # a share of so little time says nothing
                return f"{used['usage_usec'] / 1e6:.2f} s of CPU so far", 0.0
            cpus = (used["usage_usec"] - usec) / 1e6 / seconds
            return f"{cpus:.2f} CPUs", cpus / os.cpu_count()
        if self.choice.value == "memory":
            now, most = used.get("memory_current") or 0, used.get("memory_max")
            return _of(size(now), most and size(most)), most and now / most
        now, most = used.get("pids_current") or 0, used.get("pids_max")
        return _of(now, most), most and now / most

    def told(self, key: Path) -> list[str]:
        """Return a cgroup's folder, what its files say, and who is in it."""
        counting, limiting = _counting(self.choice.value), hierarchies.home(self.choice.value)
        folders = {key: None, limiting.own / key.relative_to(counting.own): None}
        lines = [line for folder in folders for line in (str(folder), *self._files(folder))]
        return lines + [f"  {pid:>7}  {_command(pid)}" for pid in emptying.members([str(key)])[:8]]

    def _files(self, folder: Path) -> Iterator[str]:
        for file in sorted(folder.glob(f"{self.choice.value}*")):
            if ".kmem" in file.name:  # v1's other account of kernel memory, in a dozen files
                continue
            with contextlib.suppress(OSError, UnicodeDecodeError):
                text = file.read_text().strip()
                if text and "\n" not in text:
                    yield f"  {file.name:36}{text}"


def _counting(controller: str) -> hierarchies.Hierarchy:
    """Return the tree where a controller's use is counted: v1 counts cpu in another than it limits it in."""
    tree = hierarchies.home(controller)
    return hierarchies.home("cpuacct") if (tree.version, controller) == (1, "cpu") else tree


def _of(now: object, most: object) -> str:
    return f"{now} of {most}" if most else f"{now}, no limit"


def cgroups(controller: str = "memory") -> Cgroups:
    """Return the picture of labkit's cgroups, and what each uses of "memory", "cpu" or "pids"."""
    import ipywidgets

    hierarchies.home(controller)  # raises Unsupported where it is in no tree
    options = ("memory", "cpu", "pids")
    return Cgroups("cgroups", ipywidgets.Dropdown(options=options, value=controller, description="controller"))
