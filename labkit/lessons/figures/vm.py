"""A virtual machine beside a container, drawn: what each costs, and what each stands on."""

import math

from matplotlib.figure import Figure

from labkit.lessons import figures


def compare(measured: dict[str, dict[str, float]], note: str = "") -> Figure:
    """Draw {name: {"seconds": …, "memory": bytes, "disk": bytes}} as three panels of bars, on logarithmic scales."""
    what = (
        ("seconds", "first process after [s]", 1),
        ("memory", "memory held [MB]", 1e-6),
        ("disk", "disk of its own [MB]", 1e-6),
    )
    figure, panels = figures.new(11, 3.6, 1, 3)
    names = list(measured)
    for axes, (key, label, factor) in zip(panels, what, strict=True):
        values = [measured[name][key] * factor for name in names]
        floor = 10 ** (math.floor(math.log10(min((value for value in values if value > 0), default=1))) - 1)
        colours = (figures.ORANGE, figures.BLUE, figures.GREEN)
        for place, (value, colour) in enumerate(zip(values, colours, strict=False)):
            axes.bar(place, max(value, floor), 0.62, color=colour)
            axes.text(place, max(value, floor) * 1.12, _short(value), ha="center", fontweight="bold")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.set_ylim(floor, max(*values, floor) * 5)
        axes.set_xticks(range(len(names)), names)
        axes.set_title(label, fontsize=13)
        axes.grid(False, axis="x")
    figure.supxlabel(note, fontsize=11, color=figures.GREY)
    return figure


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def stacks(where: dict[str, str], guest: str | None = None) -> Figure:
    """Draw what a container and a virtual machine stand on, with the names that `doctor.where()` gives."""
    figure, axes = figures.new(11, 4.6)
    figures.blank(axes, "Where a program runs", xlim=(0, 12), ylim=(0, 5.4))
    look = {"color": "white", "fontweight": "bold"}
    virtual = where["virtualisation"]
    below = "a hypervisor, seen by this kernel" if not virtual.startswith("none") else "no hypervisor to be seen"
    figures.box(axes, 0.2, 0.1, 11.6, 0.8, figures.PALE, below, **(look | {"color": figures.BLACK}))
    kernel = where["kernel"].split("-")[0].split(" on ")[0]
    figures.box(axes, 0.2, 1.1, 11.6, 0.9, figures.GREY, f"this machine's kernel: {kernel}", **look)
    for x, name in ((0.2, "a program"), (2.5, "container"), (4.8, "container")):
        figures.box(axes, x, 2.2, 2.1, 0.9, figures.BLUE if name == "container" else figures.SKY, name, **look)
    figures.box(axes, 7.3, 2.2, 4.5, 0.8, figures.ORANGE, "qemu: one process", **look)
    figures.box(axes, 7.3, 3.1, 4.5, 0.8, figures.GREY, f"a kernel of its own: {guest or 'not started'}", **look)
    figures.box(axes, 7.3, 4.0, 4.5, 0.8, figures.GREEN, "the guest's first process", **look)
    figures.text(axes, 3.4, 3.5, "processes of this kernel:\nwhat differs is what each may see")
    return figure
