"""The chapters as a participant gets them: gaps open, work kept, progress remembered.

`lab up` serves copies in which the gaps are open (see `gaps`) and no cell has been
run. The last cell shows what was passed; in chapter 00 there is also the list of all
chapters. A copy is made once. From then on it is the participant's,
and nothing here ever writes over it; `lab reset 12` puts it aside under another
name before it makes a fresh one.

What was passed is in `progress.json` beside the copies: counts by the check's name,
no name of a person. It is what `labkit.progress()` shows, and `lab room` collects.
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
from dataclasses import dataclass
from pathlib import Path

from labkit.ground import state
from labkit.ground.errors import BadValue, LabError, NotFound, Unsupported, from_oserror
from labkit.lessons import gaps

REPO = state.REPO
CHAPTERS = REPO / "notebooks"


def chapters():
    """Return the chapters as the repo has them, solved, in their order."""
    return sorted(CHAPTERS.glob("[0-9][0-9]-*.ipynb"))


def folder():
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


def with_progress(notebook, number):
    """Return a participant's notebook with cells that show what was passed; in chapter 00 of all chapters."""
    cells = list(notebook["cells"])
    named = any("id" in cell for cell in cells)

    def cell(kind, name, source):
        code = {"outputs": [], "execution_count": None} if kind == "code" else {}
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


def copy_all():
    """Give the participant a copy of each chapter that they have none of; return what there is to say, as lines.

    A copy that was never touched follows the repo; one that was is left as it is,
    even if there is a newer edition. Raises Unsupported if nothing can be saved there.
    """
    if not os.access(folder(), os.W_OK):
        raise Unsupported(
            f"{folder()} can't be written to, and your chapters are saved there",
            "make room for it, or name another place with LABKIT_ROOT=/folder",
        )
    words = []
    for chapter in chapters():
        copy = folder() / chapter.name
        edition = _digest(chapter)
        note = _notes().get(chapter.name)
        if not copy.exists():
            _make(chapter, copy)
        elif note and note["edition"] != edition:
            if _work(copy) == note["copy"]:
                _make(chapter, copy)
            else:
                number = chapter.name[:2]
                words.append(
                    f"chapter {number} has a newer edition; `lab reset {number}` gets it and keeps yours beside it"
                )
    return words


def reset(number):
    """Put the participant's copy of a chapter aside, make a fresh one; return the Path of the old one or None.

    Raises NotFound for a number that no chapter has.
    """
    number = f"{int(number):02}" if str(number).isdigit() else str(number)
    chapter = next((path for path in chapters() if path.name.startswith(f"{number}-")), None)
    if chapter is None:
        raise NotFound(
            f"there is no chapter {number}", "the chapters: " + ", ".join(path.name[:2] for path in chapters())
        )
    copy = folder() / chapter.name
    aside = _put_aside(copy) if copy.exists() else None
    _make(chapter, copy)
    return aside


def _put_aside(copy):
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


def _make(chapter, copy):
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


def files_of_state():
    """Return [(path, kind)] of what is kept about the participant, for `lab clean`."""
    return [(folder() / kind.place, kind) for kind in (_EDITIONS, _PROGRESS)]


def _notes_file():
    return folder() / ".editions.json"


def _notes():
    return state.read(_notes_file(), _EDITIONS) or {}


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _work(copy):
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


def note(check, passed):
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


def in_notebook():
    """Tell whether this process is a notebook's kernel: only there a check counts as a participant's."""
    return "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None


def read_progress():
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


def contents():
    """Return every Chapter of the repo."""
    return [_contents(path) for path in chapters()]


def _contents(path):
    cells = state.read_json(path)["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    heading = next(
        (text for cell, text in zip(cells, texts, strict=True) if cell["cell_type"] == "markdown"), path.stem
    )
    title = re.sub(r"^#+\s*(\d+\s*[·:.-]\s*)?", "", heading.split("\n")[0])
    code = [text for cell, text in zip(cells, texts, strict=True) if cell["cell_type"] == "code"]
    checks = [check for check in dict.fromkeys(_functions_called(code)) if hasattr(_function(check), "exercise")]
    return Chapter(path.name[:2], path.name, title, tuple(checks))


def _functions_called(code):
    """Yield `module.function` of what cells call in labkit.lessons.checks: found in the syntax, no cell is run."""
    modules = {}
    for text in code:
        try:
            tree = ast.parse(text)
        except SyntaxError:  # a line of IPython's own
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "labkit.lessons.checks":
                modules |= {name.asname or name.name: name.name for name in node.names}
        for node in ast.walk(tree):
            function = node.func if isinstance(node, ast.Call) else None
            if (
                isinstance(function, ast.Attribute)
                and isinstance(function.value, ast.Name)
                and function.value.id in modules
            ):
                yield f"{modules[function.value.id]}.{function.attr}"


class Progress:
    """What was passed, of one chapter or of all; its repr is what to read."""

    def __init__(self, number=None):
        self.chapters = [chapter for chapter in contents() if number in (None, chapter.number)]
        if not self.chapters:
            raise NotFound(f"there is no chapter {number}", "labkit.progress() shows all")
        self.checks = read_progress()["checks"]
        self.number = number

    def _passed(self, check):
        return bool(self.checks.get(check, {}).get("passed"))

    def count(self, chapter):
        """Return (how many checks were passed, how many there are)."""
        return sum(map(self._passed, chapter.checks)), len(chapter.checks)

    def __repr__(self):
        if self.number is not None:
            (chapter,) = self.chapters
            lines = [f"  {'[x]' if self._passed(check) else '[ ]'} {_sentence(check)}" for check in chapter.checks]
            passed, total = self.count(chapter)
            return "\n".join(
                [f"Chapter {chapter.number}, {chapter.title}: {passed} of {total} exercises passed", *lines]
            )
        return "\n".join(
            f"{chapter.number}  {_bar(*self.count(chapter))}  {chapter.title}" for chapter in self.chapters
        )

    def _repr_html_(self):
        if self.number is not None:
            return None
        rows = []
        for chapter in self.chapters:
            passed, total = self.count(chapter)
            meter = (
                f'<progress value="{passed}" max="{total}"></progress> {passed} of {total}' if total else "no exercises"
            )
            rows.append(
                f"<tr><td>{chapter.number}</td>"
                f'<td style="text-align:left"><a href="{chapter.file}">{chapter.title}</a></td>'
                f'<td style="text-align:left">{meter}</td></tr>'
            )
        left = "<th style='text-align:left'>"
        head = f"<tr><th></th>{left}chapter</th>{left}exercises passed</th></tr>"
        return f"<table>{head}{''.join(rows)}</table>"


def _bar(passed, total):
    return f"{passed:2} of {total:2}" if total else "        "


def _sentence(check):
    """Return what a check's docstring promises, in one line."""
    return (_function(check).__doc__ or check).strip().split("\n")[0]


def _function(check):
    """Return the function that `module.function` names in labkit.lessons.checks, or None."""
    module, _, function = check.partition(".")
    try:
        return getattr(importlib.import_module(f"labkit.lessons.checks.{module}"), function, None)
    except ImportError:
        return None


def progress(number=None):
    """Return what was passed: of the chapter `number` ("12") each exercise, without it a line a chapter."""
    return Progress(number)
