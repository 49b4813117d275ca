"""Pictures of what the kernel did: one module a chapter, one style for all.

Every figure is drawn from what was just measured or read, never from a table of
expected values. It has units on its axes, the limit as a line, colours that a
colour-blind reader can tell apart, letters that can be read from the last row, and
a sentence that says what is to be seen (`alt`), for who can't see it.

A figure function returns a matplotlib Figure; `show` puts it into the notebook, twice:
as HTML, for an <img> has an alt, and JupyterLab gives none to an image/png; and as that,
for code hosts, which take pictures out of HTML.
"""

import base64
import html
import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours: https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
GREY, PALE = "#767676", "#EDEDED"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW)

Limit = float | list[tuple[float, float]]  # or (s, limit): it was changed while it was sampled

STYLE: dict[Any, Any] = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
    "lines.linewidth": 2.2,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def new(width: float = 9.0, height: float = 4.0, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Return (Figure, axes) in the common style, in inches."""
    import matplotlib

    matplotlib.rcParams.update(STYLE)
    # Without pyplot: it would keep every figure alive until the kernel ends.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def blank(axes: Axes, title: str = "", **limits: tuple[float, float]) -> Axes:
    """Take the axes' frame away, for a drawing that is no graph."""
    axes.set(title=title, **limits)
    axes.set_axis_off()
    axes.grid(False)
    return axes


def text(axes: Axes, x: float, y: float, words: object, **look: Any) -> None:
    """Write words around a place."""
    middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 12}
    axes.text(x, y, str(words), **(middle | look))


def box(
    axes: Axes, x: float, y: float, width: float, height: float, colour: str, words: object = "", **look: Any
) -> None:
    """Draw a box with round corners and words in it; `look` is that of the words, or `edge` and `line` of the box."""
    from matplotlib.patches import FancyBboxPatch

    edge, line, alpha = look.pop("edge", "none"), look.pop("line", "-"), look.pop("opaque", 1)
    style = {"facecolor": colour, "edgecolor": edge, "linestyle": line, "linewidth": 2, "alpha": alpha}
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.06", **style))
    if words:
        text(axes, x + width / 2, y + height / 2, words, **look)


def tag(colour: str, pad: float = 0.3) -> dict[str, Any]:
    """Return the look of words in a box that is as large as they are."""
    return {"boxstyle": f"round,pad={pad}", "facecolor": colour, "edgecolor": "none"}


def limit(
    axes: Axes, limit: Limit, until: float, name: str, unit: str = "", scale: float = 1, colour: str = RED
) -> float:
    """Draw a limit, with its steps if it was changed; return the largest it was."""
    limits = limit if isinstance(limit, list) else [(0, limit)]
    times = [*(max(0, when) for when, _ in limits), until]
    values = [value / scale for _, value in (*limits, limits[-1])]
    label = f"{name} = {values[-1]:g}{unit}"
    axes.step(times, values, where="post", color=colour, linestyle="--", linewidth=1.8, label=label)
    return max(values)


def png(figure: Figure, dpi: int = 110) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


def img(data: bytes, alt: str) -> str:
    """Return the HTML of a picture: the bytes of a PNG file, and what a screen reader says instead."""
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def values(figure: Figure) -> str:
    """Return in words where a figure's labelled lines end, and what stands at its bars: "limit 0.5 CPUs"."""
    words = []
    for axes in figure.axes:
        bars = [tick.get_text() for tick in axes.get_yticklabels()] if axes.containers else []
        if len(bars) == len(axes.texts):
            words += [f"{bar} {text.get_text()}" for bar, text in zip(bars, axes.texts, strict=True)]
        label = axes.get_ylabel()
        unit = label[label.index("[") + 1 :].rstrip("]") if "[" in label else label
        for line in axes.get_lines():
            heights: Any = line.get_ydata()
            name = str(line.get_label())
            if not name.startswith("_") and len(heights):
                told = "" if "=" in name else f"{heights[-1]:.3g}"
                words.append(" ".join((name, told, "" if name.endswith(unit) else unit)))
    return ", ".join(" ".join(one.split()) for one in words)


def show(figure: Figure, alt: str) -> None:
    """Put the figure into the notebook, with `alt`, a sentence that says what is to be seen."""
    from IPython.display import display

    words, data = " ".join(alt.split()), png(figure)
    bare = base64.b64encode(data).decode()
    display({"text/html": img(data, words), "image/png": bare, "text/plain": f"[picture: {words}]"}, raw=True)
