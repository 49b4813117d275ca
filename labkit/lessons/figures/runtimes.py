"""Two runtimes beside each other: how often each makes a call, chapter by chapter, and how long each takes."""

from labkit.lessons import figures
from labkit.lessons.watch import taught

RUNTIMES = (figures.GREY, figures.BLUE)


def beside(traces):
    """Draw {label: all calls} of two runtimes: a row a call, by the chapter that taught it; a bar is how often."""
    counted = {label: taught.counts(calls) for label, calls in traces.items()}
    names = sorted({name for found in counted.values() for name in found}, key=lambda name: (taught.TAUGHT[name], name))
    figure, axes = figures.new(10, 0.3 * len(names) + 1.6)
    for place, (label, found) in enumerate(counted.items()):
        rows = [row + (place - 0.5) * 0.4 for row in range(len(names))]
        bars = axes.barh(rows, [found[name] for name in names], 0.38, color=RUNTIMES[place], label=label)
        axes.bar_label(bars, [str(found[name]) if found[name] else "" for name in names], padding=3, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=11)
    most = max(count for found in counted.values() for count in found.values())
    before = None
    for row, name in enumerate(names):
        chapter = taught.TAUGHT[name]
        if chapter != before:
            axes.axhline(row - 0.5, color=figures.BLACK, linewidth=0.8)
            axes.text(
                most * 1.32, row - 0.3, taught.TITLES[chapter], ha="right", va="top", fontsize=11, color=figures.BLACK
            )
            before = chapter
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, most * 1.33)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("calls that succeeded, from the first process to the last")
    axes.legend(loc="lower right", ncols=2)
    return figure


def times(measured):
    """Draw {label: [seconds]}: every run a dot, the middle one a line."""
    figure, axes = figures.new(9, 0.8 * len(measured) + 1.4)
    for row, seconds in enumerate(measured.values()):
        values = sorted(1000 * one for one in seconds)
        middle = values[len(values) // 2]
        axes.plot(values, [row] * len(values), "o", color=RUNTIMES[row % 2], alpha=0.6, markersize=8)
        axes.vlines(middle, row - 0.3, row + 0.3, color=figures.BLACK)
        axes.text(middle, row - 0.33, f"{middle:.0f} ms", ha="center", va="bottom", fontsize=12)
    axes.set_yticks(range(len(measured)), measured)
    axes.set_ylim(len(measured) - 0.4, -0.8)
    axes.set_xlim(left=0)
    axes.set_xlabel("one container of `true`, from the command to its end [ms]")
    axes.grid(axis="y", visible=False)
    return figure
