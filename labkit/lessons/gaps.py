"""An exercise's gap: filled in the repo, open in what a participant gets.

In the repo a chapter is solved, so that its tests can run it. A code cell tagged
`solution` is an exercise, and says in one of two ways what a participant sees instead:

    metadata "gap"     the whole cell as it is with the gap open, or
    marks in the text  # >>> your turn: what to do   (more lines may follow, marked the same)
                       #: flags = 0                  what stands in the gap; `...` without it
                       flags = sc.CLONE_NEWNS        the solution
                       # <<<

Below each exercise its solution is folded up in a text cell: one click away, and not
executed by "Run all".
"""

import json
import re

from labkit.ground.errors import BadValue

_BEGIN = re.compile(r"^(\s*)# >>> ?(.*)$")
_END = re.compile(r"^\s*# <<<\s*$")
_SHOWN = re.compile(r"^(\s*)#: ?(.*)$")


def opened(source):
    """Return a cell's text with its marked gaps open. Raises BadValue for a mark without its other half."""
    return "\n".join(_split(source)[0])


def closed(source):
    """Return a cell's text as the solution, without the marks."""
    return "\n".join(_split(source)[1])


def _split(source):
    """Return (the lines with the gaps open, the lines of the solution)."""
    gap, solution, inside, shown, before = [], [], None, False, None
    for line in source.split("\n"):
        begin = _BEGIN.match(line)
        before, just_begun = begin, before is not None
        if begin and (inside is None or just_begun):
            inside, shown = begin[1], False
            gap.append(f"{begin[1]}# {begin[2]}")
        elif begin or (_END.match(line) and inside is None):
            raise BadValue(f"an exercise has the mark {line.strip()!r} without its other half")
        elif _END.match(line):
            gap += [] if shown else [f"{inside}..."]
            inside = None
        elif inside is not None and (code := _SHOWN.match(line)):
            gap.append(code[1] + code[2])
            shown = True
        else:
            solution.append(line)
            if inside is None:
                gap.append(line)
    if inside is not None:
        raise BadValue("an exercise has the mark '# >>>' without its other half '# <<<'")
    return gap, solution


def participants(notebook):
    """Return a chapter's notebook (parsed JSON) as a participant gets it: nothing run, gaps open."""
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        cell = json.loads(json.dumps(cell))
        cells.append(cell)
        if cell["cell_type"] != "code":
            continue
        cell |= {"outputs": [], "execution_count": None}
        cell["metadata"].pop("execution", None)
        if "solution" not in cell["metadata"].get("tags", []):
            continue
        source = "".join(cell["source"])
        gap = cell["metadata"].pop("gap", None)
        cell["source"] = opened(source) if gap is None else gap
        if cell["source"] == source:
            raise BadValue(f"the exercise in cell {number} has no gap", 'mark it: "# >>> your turn: …" and "# <<<"')
        cell["metadata"]["tags"] = ["exercise"]
        folded = f"<details><summary>Solution</summary>\n\n```python\n{closed(source)}\n```\n\n</details>"
        name = {"id": f"{cell['id'][:50]}-folded"} if "id" in cell else {}  # nbformat before 4.5 has none
        cells.append({"cell_type": "markdown", **name, "metadata": {}, "source": folded})
    return notebook | {"cells": cells}
