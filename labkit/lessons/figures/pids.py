"""Process numbers, drawn: the same processes seen from two PID namespaces, and numbers that are never given back."""

from labkit.lessons import figures


def two_views(processes, title="The same processes, counted twice"):
    """Draw each process with its number outside on the left and inside on the right.

    `processes` are `proc.Process`, as `box.top()` returns them: NSpid has both numbers.
    """
    processes = sorted(processes, key=lambda process: process.nspid[-1])
    figure, axes = figures.new(9, 0.62 * len(processes) + 1.2)
    figures.blank(axes)
    axes.set(xlim=(0, 10), ylim=(-len(processes), 0.8))
    axes.set_title(title)
    for x, words, colour in (
        (2, "outside: the host counts", figures.GREY),
        (8, "inside: the container counts", figures.BLUE),
    ):
        axes.text(x, 0.35, words, ha="center", color=colour, fontweight="bold")
    rows = {process.pid: -row - 0.5 for row, process in enumerate(processes)}
    for process in processes:
        y = rows[process.pid]
        parent = rows.get(process.ppid)
        _number(axes, 2, y, process.pid, figures.GREY)
        _number(axes, 8, y, process.nspid[-1], figures.BLUE)
        axes.annotate("", (7.0, y), (3.0, y), arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "linestyle": ":"})
        axes.text(5, y, process.name, ha="center", va="center", bbox={"facecolor": "white", "edgecolor": "none"})
        if parent is not None:
            for x in (0.8, 9.2):  # who started whom: a bracket beside the numbers
                inner = x + (0.35 if x < 5 else -0.35)
                axes.plot([inner, x, x, inner], [parent, parent, y, y], color=figures.GREY, linewidth=1.3)
    return figure


def _number(axes, x, y, number, colour):
    axes.text(
        x, y, str(number), ha="center", va="center", color="white", fontsize=15, fontweight="bold",
        bbox={"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "none"},
    )  # fmt: skip


def held_numbers(samples, limit):
    """Draw how many numbers zombies hold as time goes on: {label: [(seconds, zombies)]}, and the limit."""
    figure, axes = figures.new(9, 4)
    for (label, points), colour in zip(samples.items(), (figures.RED, figures.GREEN), strict=False):
        axes.step(*zip(*points, strict=True), where="post", color=colour, label=label)
    axes.axhline(limit, color=figures.BLACK, linestyle="--", linewidth=1.5)
    axes.text(0, limit, f"the limit: {limit} processes, living or dead", va="bottom")
    axes.set(xlabel="time [s]", ylabel="zombies", ylim=(-0.6, limit * 1.2), title="A zombie keeps its number")
    axes.legend(loc="center right")
    return figure
