"""Layers and what they cost, drawn: where a file is seen from, copy-up, containers by the dozen."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from labkit.images import whiteouts
from labkit.lessons import figures
from labkit.lessons.watch import listing
from labkit.lessons.watch.copyup import Cost

_FOLDERS = (figures.SKY, figures.GREEN, figures.PURPLE, figures.YELLOW)


def stack(lowers: Sequence[str | Path], upper: str | Path | None = None, title: str = "Who wins") -> Figure:
    """Draw folders as overlayfs stacks them: a column for each name, seen from above.

    Read from the folders themselves. `lowers` are in the order of an image's layers, the
    lowest first. What is seen in merged is filled; what is hidden is pale; a whiteout is a cross.
    """
    folders = [*map(Path, lowers), *([Path(upper)] if upper else [])]
    verdicts = listing.verdicts(folders)
    names = sorted({name for _, name in verdicts})
    width, top = max(2.6, 2.0 + 1.45 * len(names)), len(folders)
    figure, axes = figures.new(min(width * 1.25, 11), 1.1 + 0.85 * (top + 1))
    figures.blank(axes, title, xlim=(-1.6, len(names) - 0.4), ylim=(-0.5, top + 0.5))
    winners: dict[str, int] = {}
    for (row, name), word in verdicts.items():
        column, path, colour = names.index(name), folders[row] / name, _colour(folders, row, upper)
        gone = whiteouts.is_whiteout(path.lstat(), path)
        _cell(axes, column, row, name, colour, pale=word == listing.HIDDEN, gone=gone)
        if word in (listing.SEEN, listing.JOINED) and winners.setdefault(name, row) == row:
            _cell(axes, column, top, name, colour)
            arrow = {"arrowstyle": "-|>", "color": figures.GREY, "linestyle": ":"}
            axes.annotate("", (column, top - 0.31), (column, row + 0.33), arrowprops=arrow)
    for row, folder in enumerate([*folders, None]):
        label = folder.name if folder else "merged"
        weight = "normal" if folder else "bold"
        figures.text(axes, -0.65, row, label, ha="right", fontsize=13, fontweight=weight)
    return figure


def _colour(folders: list[Path], row: int, upper: str | Path | None) -> str:
    return figures.ORANGE if upper and row == len(folders) - 1 else _FOLDERS[row % len(_FOLDERS)]


def _cell(axes: Axes, column: int, row: int, name: str, colour: str, pale: bool = False, gone: bool = False) -> None:
    edge = {"edge": colour, "line": "--" if pale else "-", "opaque": 0.55 if pale else 1}
    ink = {"fontsize": 10 if gone else 12, "color": figures.GREY if pale else "black", "linespacing": 0.95}
    words = f"{name}\n(whiteout)" if gone else name
    figures.box(axes, column - 0.42, row - 0.3, 0.84, 0.6, "white" if pale or gone else colour, words, **edge, **ink)
    if gone and not pale:
        for end in (0.24, -0.24):
            axes.plot([column - 0.36, column + 0.36], [row - end, row + end], color=figures.RED, alpha=0.35)


def size(number: float, _: object = None) -> str:
    """Return bytes in words: 1 KB, 64 MB."""
    for unit in ("B", "KB", "MB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.0f} GB"


def copy_up(
    series: Mapping[str, Sequence[Cost]], title: str = "What the first change of a file costs", most: int = 0
) -> Figure:
    """Draw time and upperdir bytes against the file's size, both axes logarithmic.

    `series` is {label: [copyup.Cost, …]}. With `most`, the largest size, the axes stay the same whatever is in it.
    """
    figure, (left, right) = figures.new(11, 4.6, columns=2)
    # Where two lines lie on each other, the wide one below still shows at the edges.
    looks = zip(figures.PALETTE, "osD^vP", (7, 3.5, 2.2, 2.2, 2.2, 2.2), strict=False)
    for (label, costs), (colour, marker, width) in zip(series.items(), looks, strict=False):
        sizes = [cost.size for cost in costs]
        style = {"color": colour, "marker": marker, "label": label, "markersize": 5 + width, "linewidth": width}
        left.plot(sizes, [cost.seconds * 1000 for cost in costs], **style)
        right.plot(sizes, [cost.upper or float("nan") for cost in costs], **style)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=32))
        axes.xaxis.set_major_formatter(FuncFormatter(size))
        axes.set(xlabel="size of the file")
    left.set(yscale="log", ylabel="time of the first change [ms]")
    left.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    right.set_yscale("log", base=2)
    right.yaxis.set_major_locator(LogLocator(base=32))
    right.yaxis.set_major_formatter(FuncFormatter(lambda number, _: size(number)))
    right.set(ylabel="bytes it put into the upperdir")
    if most:
        left.set(xlim=(1 << 9, 2 * most), ylim=(1e-2, 1e4))
        right.set(xlim=(1 << 9, 2 * most), ylim=(1 << 9, 2 * most))
    none = [label for label, costs in series.items() if costs and not any(cost.upper for cost in costs)]
    if none:  # a logarithm has no place for nothing
        right.set_ylim(bottom=1 << 9)
        words = "\n".join(f"{label}: none" for label in none)
        right.text(0.98, 0.03, words, transform=right.transAxes, ha="right", fontsize=11)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=12)
    return figure


def pieces(costs: Sequence[Cost], title: str = "The same bytes, in fewer or more files") -> Figure:
    """Draw the time of copy-ups of the same bytes in more and more files: a list of copyup.Cost."""
    figure, axes = figures.new(9, 4)
    times = [cost.seconds * 1000 for cost in costs]
    axes.plot([cost.files for cost in costs], times, color=figures.BLUE, marker="o")
    axes.set(xscale="log", yscale="log", xlabel="number of files", ylabel="time until each is copied up [ms]")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    axes.set(ylim=(0.5 * times[0], None))
    axes.set_title(f"{title}: {size(costs[0].size)} in all")
    return figure


def containers(
    found: dict[str, list[tuple[int, int, float]]], image_size: int, title: str = "Many containers of one image"
) -> Figure:
    """Draw disk and start time of 1 to N containers: {driver: [(containers, bytes, seconds), …]}."""
    figure, (left, right) = figures.new(11, 4.6, columns=2)
    for (driver, points), colour, marker in zip(found.items(), figures.PALETTE, "osD^", strict=False):
        counts = [point[0] for point in points]
        style = {"color": colour, "marker": marker, "label": driver, "markersize": 7}
        left.plot(counts, [point[1] / (1 << 20) for point in points], **style)
        right.plot(counts, [point[2] for point in points], **style)
    line = image_size / (1 << 20)
    left.axhline(line, color="black", linestyle="--", linewidth=1.4)
    last = max(point[0] for points in found.values() for point in points)
    left.text(last, line, f"the image: {size(image_size)}", ha="right", va="bottom", fontsize=11)
    left.set(xlabel="containers", ylabel="disk that they take [MB]", ylim=(-0.03 * left.get_ylim()[1], None))
    right.set(xlabel="containers", ylabel="time to start them all [s]", ylim=(0, None))
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=12)
    return figure


def drivers(found: dict[str, dict[str, float]], title: str = "The same image, the same work") -> Figure:
    """Draw what each storage driver took: {what was measured [unit]: {driver: number}}, a panel for each."""
    columns = 2
    rows = -(-len(found) // columns)
    names = list(next(iter(found.values())))
    figure, grid = figures.new(11, 0.7 + rows * (0.75 + 0.36 * len(names)), rows, columns, squeeze=False)
    for axes, (what, values) in zip(grid.flat, found.items(), strict=False):
        label, _, unit = what.rpartition(" [")
        bars = axes.barh(names, [values[name] for name in names], color=figures.PALETTE, height=0.68)
        axes.bar_label(bars, [_plain(values[name]) for name in names], padding=4, fontsize=11)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1.18 * max([*values.values(), 1e-9])), xlabel=unit.rstrip("]"))
        axes.set_title(label, fontsize=13)
        axes.grid(axis="y", visible=False)
    for axes in grid.flat[len(found) :]:
        figures.blank(axes)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def _plain(number: float) -> str:
    return f"{number:.0f}" if number >= 10 or number == 0 else f"{number:.1f}" if number >= 0.1 else f"{number:.2g}"


def shared(stacks: dict[str, list[tuple[str, str]]], title: str = "Layers that images share") -> Figure:
    """Draw images as stacks of layers: {image: [(diffID, text), …]}, the lowest first.

    A layer that stands at the same height in neighbouring images is drawn once, as wide as they are.
    """
    names, columns = list(stacks), list(stacks.values())
    height = max(map(len, columns))
    figure, axes = figures.new(min(3.4 * len(names), 12), 1.0 + 0.8 * height)
    figures.blank(axes, title, xlim=(-0.5, len(names) - 0.5), ylim=(-0.5, height + 0.15))
    colours: dict[str, str] = {}
    for row in range(height):
        column = 0
        while column < len(names):
            end = column + 1
            if row < len(columns[column]):
                diff_id, text = columns[column][row]
                while end < len(names) and columns[end][row : row + 1] == [(diff_id, text)]:
                    end += 1
                colour = colours.setdefault(diff_id, figures.PALETTE[len(colours) % len(figures.PALETTE)])
                words, wide = f"{text}\n{diff_id.removeprefix('sha256:')[:12]}", end - column - 0.08
                look = {"edge": colour, "opaque": 0.35, "fontsize": 11, "linespacing": 1.3}
                figures.box(axes, column - 0.46, row - 0.42, wide, 0.8, colour, words, **look)
            column = end
    for column, (name, stack) in enumerate(zip(names, columns, strict=True)):
        figures.text(axes, column, len(stack) - 0.32, name, fontsize=13, fontweight="bold")
    return figure
