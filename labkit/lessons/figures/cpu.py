"""CPU time, drawn: a quota used up in each period, use over time against the limit, shares under contention.

All take a `sampling.Trace`. Quotas and periods are in µs, as the kernel has them;
what is drawn is in ms and in CPUs (1 is one CPU all of the time).
"""

import numpy
from matplotlib.figure import Figure

from labkit.cgroups.hierarchies import Hierarchy
from labkit.lessons import figures
from labkit.lessons.watch.sampling import Trace


def periods(trace: Trace, quota: float, period: float, count: int = 8) -> Figure:
    """Draw `count` periods from the middle of a trace: CPU used since each began, and when none was to be had.

    A new period is where the kernel counted one (nr_periods); the quota is the line.
    """
    starts = numpy.flatnonzero(numpy.diff(trace["nr_periods"]) > 0) + 1
    first = max(0, (len(starts) - count) // 2)
    starts = starts[first : first + count + 1]
    figure, axes = figures.new(10, 4)
    axes.axhline(quota / 1000, color=figures.BLACK, linestyle="--", linewidth=1.6)
    longest = 0.0
    for begin, end in zip(starts[:-1], starts[1:], strict=True):
        time = 1000 * (trace.time[begin : end + 1] - trace.time[starts[0]])
        used = (trace["usage_usec"][begin : end + 1] - trace["usage_usec"][begin]) / 1000
        used[-1] = used[-2]  # the last sample belongs to the next period
        longest = max(longest, used.max())
        axes.plot(time, used, color=figures.BLUE)
        axes.plot([time[-1]] * 2, [used[-1], 0], color=figures.BLUE, linewidth=1, linestyle=":")
        if trace["nr_throttled"][end] > trace["nr_throttled"][begin]:  # counted as the period ends
            stopped = time[numpy.argmax(used >= used.max() - 0.05)]
            axes.axvspan(stopped, time[-1], color=figures.ORANGE, alpha=0.3, linewidth=0)
    until = 1000 * (trace.time[starts[-1]] - trace.time[starts[0]])
    top = 1.32 * max(longest, quota / 1000)
    axes.text(1.01 * until, quota / 1000, f"quota\n{quota / 1000:g} ms", va="bottom", fontweight="bold")
    axes.set(ylim=(0, top), xlim=(0, 1.12 * until), xlabel="time [ms]", ylabel="CPU used in this period [ms]")
    axes.set_title(f"Runs, is throttled, runs again: a new quota every {period / 1000:g} ms")
    axes.plot([], [], color=figures.BLUE, label="runs")
    axes.fill_between([], [], color=figures.ORANGE, alpha=0.3, label="throttled")
    axes.legend(loc="upper left", ncols=2, frameon=True, edgecolor="none", framealpha=1)
    return figure


def throttling(
    trace: Trace,
    quota: figures.Limit,
    period: figures.Limit,
    window: float | None = None,
    title: str = "Use against quota, and the time held back",
) -> Figure:
    """Draw CPU use and throttled time over the same time, averaged over `window` s (one period by default).

    `quota` and `period` may be lists of (s, µs): the limit was changed while it ran.
    """
    quotas, periods = (value if isinstance(value, list) else [(0.0, value)] for value in (quota, period))
    shares = [(when, q / p) for (when, q), (_, p) in zip(quotas, periods, strict=True)]
    window = window or max(periods[-1][1] / 1e6, 0.1)
    figure, (above, below) = figures.new(10, 5.4, rows=2, sharex=True, height_ratios=[3, 2])
    ends, used = trace.steps("usage_usec", window)
    _, held = trace.steps("throttled_usec", window)
    most = figures.limit(above, shares, trace.until, "quota ÷ period", colour=figures.BLACK)
    above.step(ends, used / 1e6, where="pre", color=figures.BLUE, label="used")
    above.set(ylabel="CPUs", ylim=(0, 1.4 * (used / 1e6).max(initial=most)), title=title)
    above.legend(loc="upper right", ncols=2)
    below.fill_between(ends, held / 1e6, step="pre", color=figures.ORANGE, alpha=0.75, linewidth=0)
    below.set(ylabel="throttled [s per s]", ylim=(0, 1.1 * (held / 1e6).max(initial=0.9)))
    below.set(xlabel="time [s]", xlim=(0, 1.02 * trace.until))
    return figure


def contention(
    trace: Trace, weights: dict[str, int], window: float = 0.1, title: str = "Everyone wants the whole CPU"
) -> Figure:
    """Draw what each of several cgroups got of what all got, over time and in total, against its weight's share.

    `weights` is {label: weight}; the trace has "label.usage_usec".
    """
    figure, (left, right) = figures.new(11, 4.4, columns=2, width_ratios=[3, 2])
    used = {label: trace.growth(f"{label}.usage_usec", window) for label in weights}
    total = sum(growth for _, growth in used.values())
    whole = max(1, sum(trace.total(f"{label}.usage_usec") for label in weights))
    for row, (label, weight) in enumerate(weights.items()):
        colour, ideal = figures.PALETTE[row], 100 * weight / sum(weights.values())
        ends, growth = used[label]
        left.plot(ends, 100 * growth / numpy.maximum(total, 1), color=colour)
        left.axhline(ideal, color=colour, linestyle="--", linewidth=1.4)
        measured = 100 * trace.total(f"{label}.usage_usec") / whole
        right.barh(row, measured, color=colour, height=0.6)
        right.plot([ideal, ideal], [row - 0.4, row + 0.4], color=figures.BLACK, linestyle="--", linewidth=1.8)
        right.text(max(measured, ideal) + 2, row, f"{measured:.1f} %" if len(trace) else "", va="center")
    left.set(xlabel="time [s]", ylabel="share of the CPU [%]", ylim=(0, 100), xlim=(0, 1.02 * trace.until), title=title)
    right.set_yticks(range(len(weights)), [f"{label}: weight {weight}" for label, weight in weights.items()])
    right.set(xlabel="share [%], dashed: by weight", xlim=(0, 100))
    right.invert_yaxis()
    right.grid(axis="y", visible=False)
    return figure


def hierarchies(trees: list[Hierarchy]) -> Figure:
    """Draw which controller is in which tree: one row a tree, its controllers beside it.

    `trees` are `hierarchies.Hierarchy`.
    """
    trees = [tree for tree in trees if tree.controllers or tree.version == 2]
    figure, axes = figures.new(10.5, 0.42 * len(trees) + 0.6)
    title = "Which controller is in which tree on this machine"
    figures.blank(axes, title, xlim=(-0.2, 10.5), ylim=(-len(trees) + 0.4, 0.6))
    for row, tree in enumerate(trees):
        colour = figures.BLUE if tree.version == 2 else figures.ORANGE
        look = {"color": "white", "fontweight": "bold", "fontsize": 13, "bbox": figures.tag(colour)}
        figures.text(axes, 0, -row, f"v{tree.version}", ha="left", **look)
        figures.text(axes, 0.7, -row, tree.mount, ha="left", family="monospace")
        if not tree.controllers:
            figures.text(axes, 3.9, -row, "no controller", ha="left", color=figures.GREY, style="italic")
        for column, name in enumerate(tree.controllers):
            figures.text(axes, 3.9 + 1.1 * column, -row, name, ha="left", bbox=figures.tag(figures.PALE))
    return figure
