"""The syscalls that make a container, drawn as a timeline: when, for what, and how many."""

from labkit import figures, tracing

COLOURS = dict(zip(tracing.KINDS, figures.PALETTE, strict=False))


def timelines(traces):
    """Draw several containers' traces, {label: [tracing.Call]}, one above the other, from clone to exec.

    Each row is what a call is for; time 0 is the clone. Times are in milliseconds,
    and strace's own stops are in them.
    """
    figure, all_axes = figures.new(10, 3.3 * len(traces), rows=len(traces), squeeze=False, sharex=True)
    kinds = list(tracing.KINDS)
    for axes, (label, calls) in zip(all_axes[:, 0], traces.items(), strict=True):
        zero = next(call.at for call in calls if call.kind == "namespaces")
        for row, kind in enumerate(kinds):
            times = [1000 * (call.at - zero) for call in calls if call.kind == kind]
            axes.vlines(times, row - 0.34, row + 0.34, color=COLOURS[kind], linewidth=2.2)
        counts = [sum(call.kind == kind for call in calls) for kind in kinds]
        axes.set_yticks(range(len(kinds)), [f"{kind}  {count}" for kind, count in zip(kinds, counts, strict=True)])
        axes.invert_yaxis()
        axes.axvline(0, color=figures.BLACK, linewidth=1, linestyle="--")
        axes.set_title(f"{label}: {len(calls)} calls")
        axes.grid(axis="y", visible=False)
    all_axes[-1, 0].set_xlabel("time after the clone, slowed by strace [ms]")
    return figure
