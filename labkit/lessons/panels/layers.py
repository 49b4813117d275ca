"""The layer stack to be pressed: a row a folder, a column a name, and the cell that wins is the filled one.

stack(lowers, upper)                 as overlayfs sees them, the lowest layer first
stack(lowers, upper, below="conf")   the same for a folder in them
"""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.ground.errors import BadValue
from labkit.lessons import figures
from labkit.lessons.panels.live import Live, Part
from labkit.lessons.watch import listing
from labkit.lessons.watch.listing import GONE, HIDDEN, JOINED, SEEN, what

if TYPE_CHECKING:
    import ipywidgets


MOST = 8  # columns
_FOLDERS = (figures.SKY, figures.GREEN, figures.PURPLE, figures.YELLOW)


class Stack(Live):
    """Folders as overlayfs stacks them, read from the folders themselves."""

    _grid = None
    _columns: dict = {}

    def __init__(
        self, lowers: Sequence[str | Path], upper: str | Path | None = None, below: str = ".", name: str = "stack"
    ) -> None:
        self.folders = [*map(Path, lowers), *([Path(upper)] if upper else [])]
        self.upper, self.below = upper, below
        super().__init__(name)

    def parts(self) -> list[Part]:
        """Return a part for each file in each folder, the uppermost folder first, and merged before them."""
        verdicts = self.verdicts()
        winners = {name: row for (row, name), word in reversed(verdicts.items()) if word in (SEEN, JOINED)}
        merged = [Part(("merged", name), name, colour=self._colour(row)) for name, row in sorted(winners.items())]
        return merged + [
            Part(key, f"{key[1]} · {word}", 1, colour=self._colour(key[0], word)) for key, word in verdicts.items()
        ]

    def text(self) -> str:
        """Return the picture in words, a line a folder, the uppermost first and merged before it."""
        rows = [("merged", "merged"), *reversed([(row, folder.name) for row, folder in enumerate(self.folders)])]
        parts = self.parts()
        return "\n".join(
            f"{name:10}" + "   ".join(part.words for part in parts if part.key[0] == row) for row, name in rows
        )

    def _colour(self, row: int, word: str = SEEN) -> str:
        if word in (HIDDEN, GONE):
            return figures.PALE if word == HIDDEN else "white"
        top = self.upper and row == len(self.folders) - 1
        return figures.ORANGE if top else _FOLDERS[row % len(_FOLDERS)]

    def verdicts(self) -> dict[tuple[int, str], str]:
        """Return {(row, name): what becomes of it}; rows count from the lowest folder."""
        return listing.verdicts(self.folders, self.below)

    def arrange(self, parts: list[Part]) -> "list[ipywidgets.HBox]":
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
                self._columns[name] = ipywidgets.VBox(cells, layout={"flex": "0 0 auto"})
            for row, cell in zip(rows, self._columns[name].children, strict=True):
                part = by_key.get((row, name))
                cell.layout.visibility = "visible" if part else "hidden"
                if part:
                    self.buttons[part.key] = cell
                    self.button_of(part)
        if self._grid is None:
            titles = ["merged", *(folder.name for folder in reversed(self.folders))]
            layout = {"height": "28px", "margin": "2px", "width": "110px"}
            labels = [ipywidgets.HTML(html.escape(one), layout=layout) for one in titles]
            self._titles = ipywidgets.VBox(labels, layout={"flex": "0 0 auto"})
            self._grid = ipywidgets.HBox()
        columns = (self._titles, *list(self._columns.values())[:MOST])
        if columns != self._grid.children:
            self._grid.children = columns
        return [self._grid]

    def told(self, key: tuple[Any, str]) -> list[str]:
        """Return where a file is, what is in it, and why it is seen or not."""
        verdicts = self.verdicts()
        at, name = key
        # What merged shows: the uppermost comes first.
        row: int = next(place for place, one in verdicts if one == name) if at == "merged" else at
        word, path = verdicts[row, name], self.folders[row] / self.below / name
        why = {
            SEEN: "merged shows this one: no folder above has the name",
            JOINED: "a folder: merged shows what is in it and in those of the same name above and below",
            HIDDEN: "it is there, but a folder above has the name, or is opaque, and wins",
            GONE: "a whiteout: the name is gone from merged, whatever lies below",
        }[word]
        return [f"{name} in {self.folders[row].name}{what(path)}", why, str(path)]


def stack(lowers: Sequence[str | Path], upper: str | Path | None = None, below: str = ".") -> Stack:
    """Return the picture of a stack of folders, the lowest first. Raise BadValue if one is none."""
    for folder in (*lowers, *([upper] if upper else ())):
        if not os.path.isdir(folder):
            raise BadValue(f"{folder} is not a folder", "the lowerdirs, lowest first, then the upperdir")
    return Stack(lowers, upper, below)
