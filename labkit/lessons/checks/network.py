"""Checks of chapter 10: who is connected with whom, asked of the kernel."""

from labkit.ground import proc
from labkit.lessons.checks import exercise
from labkit.network import bridge


def _addresses(link):
    return [entry["local"] for entry in link.get("addr_info", ()) if entry["family"] == "inet"]


def _kind(link):
    return link.get("linkinfo", {}).get("info_kind")


@exercise
def cabled(left, right):
    """A veth pair joins two rooms, both ends have an address and are up, and one reaches the other."""
    yield (
        proc.namespace(left.pid, "net") != proc.namespace(right.pid, "net"),
        "the rooms are two namespaces",
        "open two rooms",
    )
    ends = [{link["ifname"]: link for link in room.links() if _kind(link) == "veth"} for room in (left, right)]
    yield (
        all(ends), "there is an end of a veth pair in each",
        "`left.ip('link add cable type veth …')`: where does the other end go?",
        "left.ip(f'link add cable type veth peer name cable netns {right.pid}')",
    )  # fmt: skip
    pair = [
        (one, other)
        for one in ends[0].values()
        for other in ends[1].values()
        if one.get("link_index") == other["ifindex"]
    ]
    yield (
        bool(pair),
        "the two are ends of one cable",
        "each room has a cable, but they lead elsewhere",
        "make one pair, with a peer",
    )
    one, other = pair[0]
    yield (
        bool(_addresses(one) and _addresses(other)), "both ends have an address",
        "an end without an address is heard by nobody",
        "left.ip('address add 10.1.0.1/24 dev cable'), and the other one for right",
    )  # fmt: skip
    yield (
        "UP" in one["flags"] and "UP" in other["flags"], "both ends are switched on",
        "a new link is down", "left.ip('link set cable up'), right.ip('link set cable up')",
    )  # fmt: skip
    yield (
        left.reaches(_addresses(other)[0]) and right.reaches(_addresses(one)[0]), "a ping gets an answer, both ways",
        "are the addresses in one subnet?", "10.1.0.1/24 and 10.1.0.2/24 are: the first three numbers are the same",
    )  # fmt: skip


@exercise
def switched(switch, *rooms):
    """A bridge in one room joins all the others."""
    bridges = {link["ifname"]: link for link in switch.links() if _kind(link) == "bridge"}
    yield (
        bool(bridges),
        "there is a bridge",
        "`ip link add NAME type bridge`",
        "switch.ip('link add br0 type bridge')",
    )
    plugged = [link for link in switch.links() if link.get("master") in bridges]
    yield (
        len(plugged) >= len(rooms), f"{len(rooms)} cables are plugged into it",
        "an end of each cable stays with the bridge: `ip link set END master BRIDGE`",
        "switch.ip('link set to_a master br0'), and so for each",
    )  # fmt: skip
    down = [link["ifname"] for link in [*bridges.values(), *plugged] if "UP" not in link["flags"]]
    yield (
        not down,
        "all of it is switched on",
        f"still down: {', '.join(down)}",
        f"switch.ip('link set {down[0] if down else ''} up')",
    )
    addresses = [
        next((a for link in room.links() if _kind(link) == "veth" for a in _addresses(link)), None) for room in rooms
    ]
    yield (
        all(addresses),
        "every room has an address",
        "`ip address add … dev …` in each room",
        "like 10.2.0.1/24, 10.2.0.2/24 …",
    )
    unheard = [
        (room.name, address) for room in rooms for address, other in zip(addresses, rooms, strict=True)
        if other is not room and not room.reaches(address)
    ]  # fmt: skip
    yield (
        not unheard,
        "everybody reaches everybody",
        f"not yet: {unheard[:1]}",
        "is its end up, in the room too?",
    )


@exercise
def apart(first, second, third):
    """Three containers: the first two reach each other, the third reaches neither."""
    boxes = (first, second, third)
    yield all(box.status == "running" for box in boxes), "three containers run", "start them with `.start()`"
    addresses = [box.record().get("address") for box in boxes]
    yield (
        all(addresses),
        "each has an address",
        "`network=` says which bridge",
        "Container('busybox', 'sleep 600', network='red')",
    )

    def reach(box, address):
        return box.exec(["ping", "-c", "1", "-W", "1", address]).code == 0

    yield (
        reach(first, addresses[1]) and reach(second, addresses[0]), "the first and the second reach each other",
        "they have to be on one bridge", "give both the same network=",
    )  # fmt: skip
    yield (
        not any((reach(first, addresses[2]), reach(third, addresses[0]), reach(third, addresses[1]))),
        "the third reaches neither, and is reached by none", "it is on their bridge", "give it a network= of its own",
    )  # fmt: skip
    names = bridge.record(first.record()["network"])["users"]
    yield third.id not in names, "and it is not in their hosts file", "it is on their network"
