"""The network of containers: who is plugged in where, and the packets that cross a cable."""

import json
import subprocess
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from labkit.lessons import figures
from labkit.lessons.scenes.netrooms import Packet
from labkit.network import bridge


def switchboard(name: str = "bridge") -> Figure:
    """Draw a network as the kernel has it: bridge, cables, containers; read by ip(8) and from labkit's record."""
    known = bridge.record(name)
    ports = json.loads(_says("ip", "-json", "link", "show", "master", known["bridge"]))
    gateway = next(
        address["local"]
        for address in json.loads(_says("ip", "-json", "address", "show", known["bridge"]))[0]["addr_info"]
        if address["family"] == "inet"
    )
    users = {bridge.link_of(number): user for number, user in known["users"].items()}
    figure, axes = figures.new(9.5, 4.2)
    width = max(len(ports), 2)
    title = "Cables on a switch: a veth pair for each container"
    figures.blank(axes, title, xlim=(0, width), ylim=(0, 4.1))
    figures.box(axes, 0.05, 0.1, width - 0.1, 2.05, figures.PALE)
    axes.text(0.12, 0.2, "the host's network namespace", color=figures.GREY, fontsize=11)
    words = f"{known['bridge']}: a bridge, and the host on it as {gateway}"
    figures.box(axes, 0.2, 0.62, width - 0.4, 0.62, figures.ORANGE, words)
    for place, port in enumerate(sorted(ports, key=lambda port: port["ifindex"])):
        user = users.get(port["ifname"], {"address": "?", "names": ["?"]})
        middle = place + 0.5
        axes.plot([middle, middle], [1.24, 3.05], color=figures.BLACK, linewidth=2.5, zorder=1)
        figures.text(axes, middle + 0.03, 1.82, port["ifname"], fontsize=11, ha="left")
        figures.text(axes, middle + 0.03, 2.72, "eth0", fontsize=11, ha="left")
        figures.box(axes, place + 0.1, 3.0, 0.8, 0.95, figures.SKY, f"{user['names'][0]}\n{user['address']}")
    axes.axhline(2.3, color=figures.GREY, linestyle=(0, (4, 3)), linewidth=1.2)
    words = "each container in a network namespace of its own"
    figures.text(axes, width / 2, 2.3, words, color=figures.GREY, fontsize=11, bbox=figures.tag("white"))
    return figure


def _says(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


_COLOURS = (
    ("ARP", figures.ORANGE),
    ("ICMP", figures.GREEN),
    ("TCP:", figures.BLUE),
    ("TCP", figures.SKY),
    ("", figures.GREY),
)


def ladder(
    packets: Sequence[Packet], left: str, right: str, names: Mapping[str, str] | None = None, most: int = 16
) -> Figure:
    """Draw packets between two addresses as a ladder: time goes down, an arrow is a packet."""
    names = names or {}
    shown = packets[:most]
    figure, axes = figures.new(9.5, 1.5 + 0.42 * max(len(shown), 3))
    title = f"What crossed the cable: {len(packets)} packets"
    figures.blank(axes, title, xlim=(-0.3, 1.16), ylim=(len(shown) + 0.4, -1.3))
    for place, address in ((0, left), (1, right)):
        axes.plot([place, place], [-0.35, len(shown) - 0.2], color=figures.GREY, linewidth=2)
        figures.text(axes, place, -0.8, f"{names.get(address, '')} {address}".strip(), fontweight="bold")
    begin = shown[0].when if shown else 0
    for row, packet in enumerate(shown):
        start, end = (0, 1) if packet.source == left else (1, 0)
        colour = next(colour for mark, colour in _COLOURS if packet.what.startswith(mark))
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 2.2, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (end, row + 0.28), (start, row + 0.08), arrowprops=arrow)
        figures.text(axes, 0.5, row + 0.08, packet.what, va="bottom", fontsize=11)
        when = f"{(packet.when - begin) * 1000:.2f} ms"
        figures.text(axes, -0.06, row + 0.15, when, ha="right", fontsize=10, color=figures.GREY)
    return figure
