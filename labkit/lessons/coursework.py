"""The chapters as a participant gets them: gaps open, work kept, progress remembered.

`lab up` serves copies in which the gaps are open (see `gaps`) and no cell has been
run. The last cell shows what was passed; in chapter 00 there is also the list of all
chapters. A copy is made once. From then on it is the participant's,
and nothing here ever writes over it; `lab reset 12` puts it aside under another
name before it makes a fresh one.

What was passed is in `progress.json` beside the copies (JupyterLab does not list it):
counts by the check's name, no name of a person. It is what `labkit.progress()` shows, and `lab room` collects.
"""

import ast
import contextlib
import hashlib
import importlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.ground import state
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, LabError, NotFound, Unsupported, from_oserror
from labkit.lessons import gaps

REPO = state.REPO
CHAPTERS = REPO / "notebooks"


def chapters() -> list[Path]:
    """Return the chapters as the repo has them, solved, in their order."""
    return sorted(CHAPTERS.glob("[0-9][0-9]-*.ipynb"))


def folder() -> Path:
    """Return (and make) the folder of the participant's copies.

    `.participant` in the repo: in a VM that is a folder of the host, so their work
    outlives the VM. Below /var/lib/labkit, or LABKIT_ROOT, where that can't be written.
    """
    if not os.environ.get("LABKIT_ROOT") and os.access(REPO, os.W_OK):
        path = REPO / ".participant"
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise from_oserror(error, f"making {path}") from None
        return path
    return state.lib_dir("notebooks")


# ---- copies ----


def with_progress(notebook: dict[str, Any], number: str) -> dict[str, Any]:
    """Return a participant's notebook with cells that show what was passed; in chapter 00 of all chapters."""
    cells = list(notebook["cells"])
    named = any("id" in cell for cell in cells)

    def cell(kind: str, name: str, source: str) -> dict[str, Any]:
        code: dict[str, Any] = {"outputs": [], "execution_count": None} if kind == "code" else {}
        return {"cell_type": kind, **({"id": name} if named else {}), "metadata": {}, "source": source, **code}

    if not any("labkit.progress(" in "".join(one["source"]) for one in cells):
        cells.append(cell("code", "progress", f'import labkit\n\nlabkit.progress("{number}")'))
    if number == "00":
        first = next((place for place, one in enumerate(cells) if one["cell_type"] == "code"), 0) + 1
        links = "\n".join(f"- {chapter.number} · [{chapter.title}]({chapter.file})" for chapter in contents())
        cells[first:first] = [
            cell("markdown", "chapters", f"## The chapters\n\n{links}\n\nAnd this is what you have passed so far:"),
            cell("code", "all-progress", "import labkit\n\nlabkit.progress()"),
        ]
    return notebook | {"cells": cells}


def copy_all() -> list[str]:
    """Give the participant a copy of each chapter that they have none of; return what there is to say, as lines.

    A copy that was never touched follows the repo; one that was is left as it is,
    even if there is a newer edition. Raises Unsupported if nothing can be saved there.
    """
    if not os.access(folder(), os.W_OK):
        raise Unsupported(
            f"{folder()} can't be written to, and your chapters are saved there",
            "make room for it, or name another place with LABKIT_ROOT=/folder",
        )
    for page in (*CHAPTERS.glob("*.html"), *CHAPTERS.glob("*.md")):  # to look things up, not to work in
        state.write_atomic(folder() / page.name, page.read_text(), mode=0o644)
    words = []
    for chapter in chapters():
        copy = folder() / chapter.name
        note = _notes().get(chapter.name, {})
        is_newer = note and note["edition"] != _digest(chapter)
        if not copy.exists() or is_newer and _work(copy) == note["copy"]:
            _make(chapter, copy)
        elif is_newer:
            number = chapter.name[:2]
            words.append(
                f"chapter {number} has a newer edition; `lab reset {number}` gets it and keeps yours beside it"
            )
    return words


def reset(number: str | int) -> Path | None:
    """Put the participant's copy of a chapter aside, make a fresh one; return the Path of the old one or None.

    Raises NotFound for a number that no chapter has.
    """
    number = f"{int(number):02}" if str(number).isdigit() else str(number)
    chapter = next((path for path in chapters() if path.name.startswith(f"{number}-")), None)
    if chapter is None:
        known = ", ".join(path.name[:2] for path in chapters())
        raise NotFound(f"there is no chapter {number}", f"the chapters: {known}")
    copy = folder() / chapter.name
    aside = _put_aside(copy) if copy.exists() else None
    _make(chapter, copy)
    return aside


def _put_aside(copy: Path) -> Path:
    for number in range(1, 1000):
        aside = copy.with_name(f"{copy.stem}.before-{number}.ipynb")
        try:
            # link(2) never replaces what is there, as rename(2) would.
            os.link(copy, aside)
            return aside
        except FileExistsError:
            continue
        except OSError:  # a shared folder of a VM may know no hard links
            with contextlib.suppress(FileExistsError), open(aside, "xb") as file:
                file.write(copy.read_bytes())
                return aside
    raise LabError(f"{copy.name} was put aside 999 times", f"remove some of them from {copy.parent}")


def _make(chapter: Path, copy: Path) -> None:
    notebook = state.read_json(chapter)
    try:
        served = with_progress(gaps.participants(notebook), chapter.name[:2])
        text = json.dumps(served, indent=1, ensure_ascii=False) + "\n"
    except BadValue as error:
        raise BadValue(f"{chapter.name}: {error.message}", error.hint) from None
    state.write_atomic(copy, text, mode=0o644)
    with state.lock("lessons"):
        notes = _notes()
        notes[chapter.name] = {"edition": _digest(chapter), "copy": _work(copy)}
        state.write_json(_notes_file(), notes)


_EDITIONS = state.Kind(".editions.json", {str: {"edition": str, "copy": str | None}})
_PROGRESS = state.Kind("progress.json", {"seat": str, "checks": {str: {"tries": int, "passed": int | float | None}}})


def files_of_state() -> list[tuple[Path, state.Kind]]:
    """Return [(path, kind)] of what is kept about the participant, for `lab clean`."""
    return [(folder() / kind.place, kind) for kind in (_EDITIONS, _PROGRESS)]


def _notes_file() -> Path:
    return folder() / ".editions.json"


def _notes() -> dict[str, Any]:
    return state.read(_notes_file(), _EDITIONS) or {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _work(copy: Path) -> str | None:
    """Return a digest of what a person did in a notebook: its texts and outputs.

    JupyterLab changes the rest by opening it.
    """
    try:
        cells = state.read_json(copy)["cells"]
        work = [(cell["cell_type"], "".join(cell["source"]), cell.get("outputs")) for cell in cells]
    except (BadValue, KeyError, TypeError):
        return None  # no notebook any more: somebody's own work for sure
    return hashlib.sha256(json.dumps(work).encode()).hexdigest()


# ---- progress ----


def note(check: str, passed: bool) -> None:
    """Remember that a check was tried, and whether it passed. Never fails: a full disk must not fail an exercise."""
    with contextlib.suppress(LabError, OSError), state.lock("lessons"):
        record = read_progress()
        entry = record["checks"].setdefault(check, {"tries": 0, "passed": None})
        if entry["passed"] is None:
            entry["tries"] += 1
            entry["passed"] = time.time() if passed else None
        record["last"] = time.time()
        state.write_json(folder() / "progress.json", record, sync=False)
        if room := os.environ.get("LAB_ROOM"):
            state.write_json(Path(room) / f"seat-{record['seat']}.json", record, sync=False)


def in_notebook() -> bool:
    """Tell whether this process is a notebook's kernel: only there a check counts as a participant's."""
    return "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None


def read_progress() -> dict[str, Any]:
    """Return what was passed: {seat: random, checks: {name: {tries, passed: when or None}}, last: when}."""
    record = state.read(folder() / "progress.json", _PROGRESS)
    return record or {"seat": secrets.token_hex(2), "checks": {}, "last": None}


@dataclass(frozen=True)
class Chapter:
    """A chapter's number, its title, and the names of its checks in the order it calls them."""

    number: str
    file: str
    title: str
    checks: tuple


def contents() -> list[Chapter]:
    """Return every Chapter of the repo."""
    return [_contents(path) for path in chapters()]


def _contents(path: Path) -> Chapter:
    cells = state.read_json(path)["cells"]
    texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    heading = next((text for kind, text in texts if kind == "markdown"), path.stem)
    title = re.sub(r"^#+\s*(\d+\s*[·:.-]\s*)?", "", heading.split("\n")[0])
    code = [text for kind, text in texts if kind == "code"]
    checks = [check for check in dict.fromkeys(_functions_called(code)) if hasattr(_function(check), "exercise")]
    return Chapter(path.name[:2], path.name, title, tuple(checks))


def _functions_called(code: list[str]) -> Iterator[str]:
    """Yield `module.function` of what cells call in labkit.lessons.checks: found in the syntax, no cell is run."""
    modules: dict[str, str] = {}
    for text in code:
        try:
            tree = ast.parse(text)
        except SyntaxError:  # a line of IPython's own
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "labkit.lessons.checks":
                modules |= {name.asname or name.name: name.name for name in node.names}
        for node in ast.walk(tree):
            match node:
                case ast.Call(ast.Attribute(ast.Name(module), function)) if module in modules:
                    yield f"{modules[module]}.{function}"


class Progress:
    """What was passed, of one chapter or of all; its repr is what to read."""

    def __init__(self, number: str | None = None) -> None:
        self.chapters = [chapter for chapter in contents() if number in (None, chapter.number)]
        if not self.chapters:
            raise NotFound(f"there is no chapter {number}", "labkit.progress() shows all")
        self.checks = read_progress()["checks"]
        self.number = number

    def _passed(self, check: str) -> bool:
        return bool(self.checks.get(check, {}).get("passed"))

    def count(self, chapter: Chapter) -> tuple[int, int]:
        """Return (how many checks were passed, how many there are)."""
        return sum(map(self._passed, chapter.checks)), len(chapter.checks)

    def __repr__(self) -> str:
        if self.number is None:
            return "\n".join(f"{one.number}  {self._told(one, '{:2} of {:2}'):8}  {one.title}" for one in self.chapters)
        (chapter,) = self.chapters
        lines = [f"  {'[x]' if self._passed(check) else '[ ]'} {_sentence(check)}" for check in chapter.checks]
        first = f"Chapter {chapter.number}, {chapter.title}: {self._told(chapter, '{} of {}')} exercises passed"
        return "\n".join([first, *lines])

    def _told(self, chapter: Chapter, words: str, none: str = "") -> str:
        passed, total = self.count(chapter)
        return words.format(passed, total) if total else none

    def _repr_html_(self) -> str | None:
        if self.number is not None:
            return None
        left, meter = "style='text-align:left'", '<progress value="{0}" max="{1}"></progress> {0} of {1}'
        rows = [
            f'<tr><td>{one.number}</td><td {left}><a href="{one.file}">{one.title}</a></td>'
            f"<td {left}>{self._told(one, meter, 'no exercises')}</td></tr>"
            for one in self.chapters
        ]
        head = f"<tr><th></th><th {left}>chapter</th><th {left}>exercises passed</th></tr>"
        return f"<table>{head}{''.join(rows)}</table>"


def _sentence(check: str) -> str:
    """Return what a check's docstring promises, in one line."""
    return (_function(check).__doc__ or check).strip().split("\n")[0]


def _function(check: str) -> Any:
    """Return the function that `module.function` names in labkit.lessons.checks, or None."""
    module, _, function = check.partition(".")
    try:
        return getattr(importlib.import_module(f"labkit.lessons.checks.{module}"), function, None)
    except ImportError:
        return None


def progress(number: str | None = None) -> Progress:
    """Return what was passed: of the chapter `number` ("12") each exercise, without it a line a chapter."""
    return Progress(number)
