"""Pictures of what the kernel did: one module a chapter, one style for all.

Every figure is drawn from what was just measured or read, never from a table of
expected values. It has units on its axes, the limit as a line, colours that a
colour-blind reader can tell apart, letters that can be read from the last row, and
a sentence that says what is to be seen (`alt`), for who can't see it.

A figure function returns a matplotlib Figure; `show` puts it into the notebook, as
HTML: an <img> has an alt, and JupyterLab gives none to an image/png.
Nothing below this floor imports it.
"""

import base64
import html
import io

from matplotlib.figure import Figure

# Okabe and Ito's colours: https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
GREY, PALE = "#767676", "#EDEDED"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW)

STYLE = {
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


def new(width=9.0, height=4.0, rows=1, columns=1, **options):
    """Return (Figure, axes) in the common style, in inches."""
    import matplotlib

    matplotlib.rcParams.update(STYLE)
    # Without pyplot: it would keep every figure alive until the kernel ends.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def blank(axes):
    """Take the axes' frame away, for a drawing that is no graph."""
    axes.set_axis_off()
    axes.grid(False)
    return axes


def png(figure, dpi=110):
    """Return the figure as the bytes of a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


def img(data, alt):
    """Return the HTML of a picture: the bytes of a PNG file, and what a screen reader says instead."""
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def values(figure):
    """Return in words where a figure's labelled lines end, and what stands at its bars: "limit 0.5 CPUs"."""
    words = []
    for axes in figure.axes:
        bars = [tick.get_text() for tick in axes.get_yticklabels()] if axes.containers else []
        if len(bars) == len(axes.texts):
            words += [f"{bar} {text.get_text()}" for bar, text in zip(bars, axes.texts, strict=True)]
        label = axes.get_ylabel()
        unit = label[label.index("[") + 1 :].rstrip("]") if "[" in label else label
        for line in axes.get_lines():
            heights = line.get_ydata()
            if not line.get_label().startswith("_") and len(heights):
                name = line.get_label()
                told = "" if "=" in name else f"{heights[-1]:.3g}"
                words.append(" ".join((name, told, "" if name.endswith(unit) else unit)))
    return ", ".join(" ".join(one.split()) for one in words)


def show(figure, alt):
    """Put the figure into the notebook, with `alt`, a sentence that says what is to be seen."""
    from IPython.display import display

    words = " ".join(alt.split())
    display({"text/html": img(png(figure), words), "text/plain": f"[picture: {words}]"}, raw=True)
