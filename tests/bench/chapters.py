"""The chapters under nbval: how long each takes, and which cell takes the most of it.

It runs none of them; it reads what pytest wrote of a run:

    lab test notebooks --junitxml=/tmp/run.xml        or, with --durations=0 -vv, what it prints
    lab bench chapters --chapters /tmp/run.xml
"""

import re
import xml.etree.ElementTree
from collections import defaultdict
from pathlib import Path

from report import Report

from labkit.ground.errors import BadArchive, BadValue

_LINE = re.compile(r"^\s*(\d+\.\d+)s (setup|call|teardown)\s+(\S*?)([^/\s]+)\.ipynb::+(Cell \d+)", re.MULTILINE)


def read(path):
    """Return {chapter: {cell: seconds}} of a junit xml, or of the lines of --durations. Raises BadArchive."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError as error:
        raise BadArchive(f"{path} can't be read: {error.strerror}", "--chapters FILE, as pytest wrote it") from None
    found = _from_xml(text, path) if text.lstrip().startswith("<") else _from_lines(text)
    if not found:
        raise BadArchive(f"{path} has no cells of notebooks in it", "pytest --nbval --junitxml=FILE notebooks")
    return found


def _from_xml(text, path):
    found = defaultdict(dict)
    try:
        cases = xml.etree.ElementTree.fromstring(text).iter("testcase")
    except xml.etree.ElementTree.ParseError as error:
        raise BadArchive(f"{path} is no whole xml: {error}", "was the run broken off?") from None
    for case in cases:
        folder, dot, _ = case.get("classname", "").rpartition(".ipynb")
        if dot:
            found[folder.rpartition(".")[2]][case.get("name")] = float(case.get("time", 0))
    return found


def _from_lines(text):
    found = defaultdict(lambda: defaultdict(float))
    for seconds, _, _, chapter, cell in _LINE.findall(text):
        found[chapter][cell] += float(seconds)
    return found


def measure(options):
    """Yield the Report."""
    if not options.chapters:
        raise BadValue("which run of the chapters?", "lab bench chapters --chapters FILE, a junit xml of `lab test`")
    chapters = read(options.chapters)
    rows, total = [], 0
    for chapter, cells in sorted(chapters.items()):
        spent = sum(cells.values())
        slowest = max(cells, key=cells.get)
        total += spent
        rows.append((chapter, float(spent), len(cells), slowest, float(cells[slowest])))
    every = [(spent, f"{chapter}, {cell}") for chapter, cells in chapters.items() for cell, spent in cells.items()]
    dearest = sorted(every, reverse=True)[:10]
    yield Report(
        f"the chapters under nbval, {total / 60:.1f} minutes",
        "seconds",
        ("all cells", "cells", "slowest", "takes"),
        rows,
        notes=[
            "the first cell's time has the start of the notebook's kernel in it",
            f"{sum(spent for spent, _ in dearest) / (total or 1):.0%} of it is in {len(dearest)} cells:",
            *(f"  {spent:6.1f} s  {where}" for spent, where in dearest),
        ],
        shown=(0, "all cells [s]"),
        ours=True,
        raw={chapter: dict(cells) for chapter, cells in chapters.items()},
    )
