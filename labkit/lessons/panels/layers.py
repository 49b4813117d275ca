"""The layer stack to be pressed: a row a folder, a column a name, and the cell that wins is the filled one.

stack(lowers, upper)                 as overlayfs sees them, the lowest layer first
stack(lowers, upper, below="conf")   the same for a folder in them
"""

import html
import os
import stat
from collections import Counter
from pathlib import Path

from labkit.ground.errors import BadValue
from labkit.images import whiteouts
from labkit.lessons import figures
from labkit.lessons.panels.live import Live, Part
from labkit.lessons.watch.listing import what

MOST = 8  # columns
SEEN, HIDDEN, GONE, JOINED = "wins", "hidden", "whiteout", "joined"
_FOLDERS = (figures.SKY, figures.GREEN, figures.PURPLE, figures.YELLOW)


class Stack(Live):
    """Folders as overlayfs stacks them, read from the folders themselves."""

    _grid = None
    _columns: dict = {}

    def __init__(self, lowers, upper=None, below=".", name="stack"):
        self.folders = [*map(Path, lowers), *([Path(upper)] if upper else [])]
        self.upper, self.below = upper, below
        super().__init__(name)

    def parts(self):
        """Return a part for each file in each folder, the uppermost folder first, and merged before them."""
        verdicts = self.verdicts()
        winners = {name: row for (row, name), word in reversed(verdicts.items()) if word in (SEEN, JOINED)}
        merged = [Part(("merged", name), name, colour=self._colour(row)) for name, row in sorted(winners.items())]
        return merged + [
            Part(key, f"{key[1]} · {word}", 1, colour=self._colour(key[0], word)) for key, word in verdicts.items()
        ]

    def _colour(self, row, word=SEEN):
        if word in (HIDDEN, GONE):
            return figures.PALE if word == HIDDEN else "white"
        top = self.upper and row == len(self.folders) - 1
        return figures.ORANGE if top else _FOLDERS[row % len(_FOLDERS)]

    def verdicts(self):
        """Return {(row, name): what becomes of it}; rows count from the lowest folder."""
        found, seen, closed = {}, {}, False
        for row in reversed(range(len(self.folders))):
            folder = self.folders[row] / self.below
            for name in sorted(os.listdir(folder)) if _is_folder(folder) else ():
                found[row, name] = _verdict(folder / name, seen, closed)
            closed = closed or _closes(folder)
        joined = Counter(name for (_, name), word in found.items() if word == JOINED)
        return {key: SEEN if joined[key[1]] == 1 and word == JOINED else word for key, word in found.items()}

    def arrange(self, parts):
        """Return a column of labels, and one for each name."""
        # Where a folder lacks a file there is a button too, unseen: so none ever moves in
        # the page, and the keyboard's focus stays where it is.
        import ipywidgets

        by_key = {part.key: part for part in parts}
        rows = ["merged", *reversed(range(len(self.folders)))]
        names = sorted({name for _, name in by_key})
        self._columns = {name: self._columns.get(name) for name in (*self._columns, *names) if name in names}
        for name in list(self._columns)[:MOST]:
            if self._columns[name] is None:
                cells = [ipywidgets.Button(layout={"width": "150px"}) for _ in rows]
                for row, cell in zip(rows, cells, strict=True):
                    cell.on_click(lambda _, key=(row, name): self.press(key))
                self._columns[name] = ipywidgets.VBox(cells)
            for row, cell in zip(rows, self._columns[name].children, strict=True):
                part = by_key.get((row, name))
                cell.layout.visibility = "visible" if part else "hidden"
                if part:
                    self._buttons[part.key] = cell
                    self.button(part)
        if self._grid is None:
            titles = ["merged", *(self.folders[row].name for row in rows[1:])]
            layout = {"height": "28px", "margin": "2px", "width": "110px"}
            labels = [ipywidgets.HTML(html.escape(one), layout=layout) for one in titles]
            self._titles = ipywidgets.VBox(labels)
            self._grid = ipywidgets.HBox()
        columns = (self._titles, *list(self._columns.values())[:MOST])
        if columns != self._grid.children:
            self._grid.children = columns
        return [self._grid]

    def told(self, key):
        """Return where a file is, what is in it, and why it is seen or not."""
        row, name = key
        verdicts = self.verdicts()
        if row == "merged":
            row = next(row for row, one in verdicts if one == name)  # the uppermost comes first
        word, path = verdicts[row, name], self.folders[row] / self.below / name
        why = {
            SEEN: "merged shows this one: no folder above has the name",
            JOINED: "a folder: merged shows what is in it and in those of the same name above and below",
            HIDDEN: "it is there, but a folder above has the name, or is opaque, and wins",
            GONE: "a whiteout: the name is gone from merged, whatever lies below",
        }[word]
        return [f"{name} in {self.folders[row].name}{what(path)}", why, str(path)]


def _verdict(path, seen, closed):
    """Return what becomes of a file, after those above it; note in `seen` what is decided of its name."""
    status, above = path.lstat(), seen.get(path.name)
    folder = stat.S_ISDIR(status.st_mode)
    if closed or above == SEEN:
        return HIDDEN
    if above == JOINED and not folder:
        seen[path.name] = SEEN  # what lies below a file is not joined any more
        return HIDDEN
    if whiteouts.is_whiteout(status, path):
        seen[path.name] = SEEN
        return GONE
    seen[path.name] = JOINED if folder and not whiteouts.is_opaque(path) else SEEN
    return JOINED if folder and (above or seen[path.name] == JOINED) else SEEN


def _is_folder(path):
    return path.is_dir() and not path.is_symlink()


def _closes(folder):
    """Tell whether nothing below this folder is seen: it is opaque, or deleted, or no folder."""
    return os.path.lexists(folder) and (not _is_folder(folder) or whiteouts.is_opaque(folder))


def stack(lowers, upper=None, below="."):
    """Return the picture of a stack of folders, the lowest first. Raise BadValue if one is none."""
    for folder in (*lowers, *([upper] if upper else ())):
        if not os.path.isdir(folder):
            raise BadValue(f"{folder} is not a folder", "the lowerdirs, lowest first, then the upperdir")
    return Stack(lowers, upper, below)
