"""The way through the chapters, as a picture."""

import itertools
import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from labkit.lessons import figures
from labkit.lessons.coursework import Chapter

# The question that a column asks, the first chapter in it, its colour.
QUESTIONS = (
    ("Where am I?", "00", figures.GREY),
    ("What does a process see?", "01", figures.BLUE),
    ("How much may it use?", "04", "#A85F00"),
    ("Where do its files come from?", "06", "#007A59"),
    ("What gets in and out?", "10", "#A34A78"),
    ("Can I build it myself?", "12", figures.BLACK),
)


def way(chapters: Sequence[Chapter]) -> Figure:
    """Draw every chapter, a column a question, from left to right."""
    firsts = [first for _, first, _ in QUESTIONS]
    columns = itertools.groupby(chapters, lambda chapter: sum(first <= chapter.number for first in firsts) - 1)
    figure, axes = figures.new(11, 4.4)
    figures.blank(axes, "The way through the chapters", xlim=(0, len(QUESTIONS)), ylim=(5.0, 0))
    for place, group in columns:
        question, _, colour = QUESTIONS[place]
        figures.text(axes, place + 0.46, 0.42, textwrap.fill(question, 17), fontsize=10.5, color=colour)
        for row, chapter in enumerate(group):
            words = textwrap.fill(f"{chapter.number} {chapter.title}", 16, break_on_hyphens=False)
            look = {"color": "white", "fontsize": 10.5, "fontweight": "bold"}
            figures.box(axes, place + 0.02, 0.92 + row, 0.88, 0.88, colour, words, **look)
        if place:
            arrow = {"arrowstyle": "-|>", "color": figures.BLACK, "linewidth": 1.8}
            axes.annotate("", (place + 0.02, 1.36), (place - 0.1, 1.36), arrowprops=arrow)
    return figure
