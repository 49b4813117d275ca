"""Memory, processes, disk and the freezer, drawn: chapter 05.

All take a `sampling.Trace`. Sizes are drawn in MiB, rates in MiB a second. A limit may
be a list of (s, limit): it was changed while it was sampled.
"""

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.lessons import figures
from labkit.lessons.watch.sampling import Trace

MIB = 1 << 20


def growth(
    trace: Trace, limit: figures.Limit, high: figures.Limit | None = None, title: str = "It grows until it may not"
) -> Figure:
    """Draw memory in use against its limits in bytes, and mark when a process was killed for it.

    With memory_anon and memory_file in the trace it is drawn in two layers: what a
    program holds, and page cache, which can be given back.
    """
    figure, axes = figures.new(10, 4.4)
    time, total = trace.time, trace["memory_current"] / MIB
    if "memory_anon" in trace.values:
        anon, file = trace["memory_anon"] / MIB, trace["memory_file"] / MIB
        axes.stackplot(
            time, anon, file, colors=[figures.BLUE, figures.SKY], alpha=0.75,
            labels=["held by programs (anonymous)", "page cache (can be given back)"],
        )  # fmt: skip
    axes.plot(time, total, color=figures.BLACK, linewidth=1.6, label="all that is counted")
    top = 1.6 * max(figures.limit(axes, limit, trace.until, "limit", " MiB", MIB), total.max(initial=0))
    if high:
        figures.limit(axes, high, trace.until, "high", " MiB", MIB, figures.ORANGE)
    for number, when in enumerate(kills(trace)):
        # The counter is read after the memory is free: the peak is a little before.
        peak = total[(time > when - 0.1) & (time <= when)].max()
        axes.axvline(when, ymax=peak / top, color=figures.RED, linestyle=":")
        axes.plot(when, peak, marker="X", markersize=13, color=figures.RED, linestyle="none")
        if not number:  # one word for all of them: a panel has twenty
            axes.annotate("killed", (when, peak), (6, 10), textcoords="offset points", color=figures.RED, weight="bold")
    axes.set(xlabel="time [s]", ylabel="memory [MiB]", xlim=(0, 1.02 * trace.until), ylim=(0, top), title=title)
    axes.legend(loc="upper left", fontsize=12, ncols=2, columnspacing=1)
    return figure


def rivals(
    trace: Trace, limit: float, low: float, word: str = "memory.low", title: str = "Two groups, one limit"
) -> Figure:
    """Draw the page cache of two groups that share `limit` bytes; the first has `low` as its `word`."""
    figure, axes = figures.new(10, 4.4)
    first, second = (trace[f"{name}.memory_file"] / MIB for name in ("first", "second"))
    axes.stackplot(
        trace.time, first, second, colors=[figures.BLUE, figures.SKY], alpha=0.75,
        labels=["the first: read once", "the second: reads and reads"],
    )  # fmt: skip
    _line(axes, limit / MIB, f"limit of both: {limit / MIB:g} MiB", figures.RED)
    _line(axes, low / MIB, f"{word} of the first: {low / MIB:g} MiB", figures.BLACK)
    axes.set(xlabel="time [s]", ylabel="page cache [MiB]", xlim=(0, trace.time[-1]), title=title)
    axes.set_ylim(0, 1.4 * limit / MIB)
    axes.legend(loc="upper left", ncols=2)
    return figure


def kills(trace: Trace) -> list[float]:
    """Return the times at which oom_kills grew, in s."""
    if "oom_kills" not in trace.values:
        return []
    return list(trace.time[1:][numpy.diff(trace["oom_kills"]) > 0])


def processes(trace: Trace, limit: figures.Limit, title: str = "A fork bomb runs into pids.max") -> Figure:
    """Draw the number of processes against its limit, and the forks refused."""
    figure, (above, below) = figures.new(10, 5.2, rows=2, sharex=True, height_ratios=[3, 2])
    above.step(trace.time, trace["pids_current"], where="post", color=figures.BLUE, label="there are")
    most = max(figures.limit(above, limit, trace.until, "pids.max"), trace["pids_current"].max(initial=0))
    above.set(ylabel="processes", ylim=(0, 1.4 * most), title=title)
    above.legend(loc="upper right", ncols=2)
    below.step(trace.time, trace["pids_denied"] - trace["pids_denied"][:1], where="post", color=figures.RED)
    most = (trace["pids_denied"] - trace["pids_denied"][:1]).max(initial=1)
    below.set(ylabel="forks refused", xlabel="time [s]", xlim=(0, 1.02 * trace.until), ylim=(0, 1.05 * most))
    below.yaxis.get_major_locator().set_params(integer=True)
    return figure


def bandwidth(
    trace: Trace,
    limit: figures.Limit,
    name: str = "write_bytes",
    window: float = 0.5,
    title: str = "The disk is fast, the limit is the limit",
) -> Figure:
    """Draw how fast a group reads or writes (`name`) against its limit in bytes a second."""
    figure, axes = figures.new(10, 4)
    ends, rate = trace.steps(name, window)
    verb = {"write_bytes": "written", "read_bytes": "read"}[name]
    axes.fill_between(ends, rate / MIB, step="pre", color=figures.SKY, alpha=0.75, linewidth=0)
    axes.step(ends, rate / MIB, where="pre", color=figures.BLUE, linewidth=1.6, label=verb)
    most = figures.limit(axes, limit, trace.until, "limit", " MiB/s", MIB)
    axes.set(xlabel="time [s]", ylabel=f"{verb} [MiB/s]", title=title)
    axes.set(xlim=(0, 1.02 * trace.until), ylim=(0, 1.4 * max(most, (rate / MIB).max(initial=0))))
    axes.legend(loc="upper right", ncols=2)
    return figure


def freezing(trace: Trace, window: float = 0.05, title: str = "Frozen: there, but not running") -> Figure:
    """Draw CPU use over time with the stretches in which the group was frozen."""
    figure, axes = figures.new(10, 4)
    ends, used = trace.steps("usage_usec", window)
    axes.step(ends, used / 1e6, where="pre", color=figures.BLUE, label="CPU used")
    frozen = trace["frozen"] > 0
    axes.fill_between(
        trace.time, 0, 1, where=frozen, transform=axes.get_xaxis_transform(),
        color=figures.SKY, alpha=0.4, linewidth=0, label="frozen",
    )  # fmt: skip
    axes.set(xlabel="time [s]", ylabel="CPUs", ylim=(0, 1.35 * max(1.0, (used / 1e6).max(initial=0))), title=title)
    axes.set_xlim(0, 1.02 * trace.until)
    axes.legend(loc="upper right", ncols=2)
    return figure


def pressures(trace: Trace, window: float = 0.25, title: str = "Time lost by waiting") -> Figure:
    """Draw which part of the time tasks waited for CPU, memory and disk: PSI, as far as the trace has it."""
    figure, axes = figures.new(10, 4)
    colours = {"cpu": figures.BLUE, "memory": figures.ORANGE, "io": figures.GREEN}
    for name, colour in colours.items():
        if f"{name}_pressure_usec" in trace.values:
            ends, waited = trace.steps(f"{name}_pressure_usec", window)
            axes.step(ends, waited / 1e4, where="pre", color=colour, label=f"waits for {name}")
    axes.set(xlabel="time [s]", ylabel="some task waits [% of time]", ylim=(-2, 125), title=title)
    axes.set_yticks(range(0, 101, 20))
    axes.legend(loc="upper right", ncols=3)
    return figure


def _line(axes: Axes, value: float, text: str, colour: str) -> None:
    axes.axhline(value, color=colour, linestyle="--", linewidth=1.8)
    axes.annotate(
        text, (1, value), (-4, 6), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", color=colour, fontweight="bold", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )  # fmt: skip
