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
from typing import Any

from labkit.ground.errors import BadValue

_GAP = re.compile(r"^((?:[ \t]*# >>>.*\n)+)((?:.*\n)*?)[ \t]*# <<<[ \t]*\n", re.MULTILINE)
_ASKED = re.compile(r"^([ \t]*)# >>> ?", re.MULTILINE)
_SHOWN = re.compile(r"^([ \t]*)#: ?(.*\n)", re.MULTILINE)
_MARK = re.compile(r"^[ \t]*(# >>>.*|# <<<[ \t]*)$", re.MULTILINE)


def opened(source: str) -> str:
    """Return a cell's text with its marked gaps open. Raises BadValue for a mark without its other half."""
    closed(source)

    def gap(match: re.Match[str]) -> str:
        asked = _ASKED.sub(r"\1# ", match[1])
        shown = "".join(indent + code for indent, code in _SHOWN.findall(match[2]))
        return asked + (shown or f"{asked[: asked.index('#')]}...\n")

    return _GAP.sub(gap, source + "\n")[:-1]


def closed(source: str) -> str:
    """Return a cell's text as the solution, without the marks. Raises BadValue as `opened` does."""
    solution = _GAP.sub(lambda match: _SHOWN.sub("", match[2]), source + "\n")[:-1]
    if half := _MARK.search(solution):
        raise BadValue(f"an exercise has the mark {half[1]!r} without its other half")
    return solution


def participants(notebook: dict[str, Any]) -> dict[str, Any]:
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
