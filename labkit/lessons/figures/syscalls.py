"""The syscalls that make a container, drawn in their order: for what, and how many."""

from matplotlib.figure import Figure

from labkit.lessons import figures
from labkit.lessons.watch import tracing

COLOURS = dict(zip(tracing.KINDS, figures.PALETTE, strict=False))


def timelines(traces: dict[str, list[tracing.Call]]) -> Figure:
    """Draw several containers' traces, {label: [tracing.Call]}, one above the other, from cgroup to exec.

    Each row is what a call is for. One step to the right is one call more: how long
    each takes is strace's doing, and is not drawn. 0 is the clone.
    """
    figure, all_axes = figures.new(10, 3.3 * len(traces), rows=len(traces), squeeze=False, sharex=True)
    kinds = list(tracing.KINDS)
    for axes, (label, calls) in zip(all_axes[:, 0], traces.items(), strict=True):
        clone = next(place for place, call in enumerate(calls) if call.kind == "namespaces")
        for row, kind in enumerate(kinds):
            places = [place - clone for place, call in enumerate(calls) if call.kind == kind]
            axes.vlines(places, row - 0.36, row + 0.36, color=COLOURS[kind], linewidth=2)
        counts = [sum(call.kind == kind for call in calls) for kind in kinds]
        axes.set_yticks(range(len(kinds)), [f"{kind}  {count}" for kind, count in zip(kinds, counts, strict=True)])
        axes.invert_yaxis()
        axes.axvline(0, color=figures.BLACK, linewidth=1, linestyle="--")
        axes.set_title(f"{label}: {len(calls)} calls")
        axes.grid(axis="y", visible=False)
    all_axes[-1, 0].set_xlabel("calls before and after the clone")
    return figure
