"""A network of its own: a cable, a switch, an address, and a way out that the host rewrites.

A new net namespace has one link, `lo`, and nothing reaches it. What brings it on:

    eth0 ──veth── lv0123…  ─┐
    eth0 ──veth── lv4567…  ─┼─ bridge ── host ── NAT ── the world
    eth0 ──veth── lv89ab…  ─┘  10.x.y.1

A veth pair is a cable: what goes in at one end comes out at the other, in another
namespace. A bridge is a switch. The host has an address on it and is the router;
leaving packets get the host's own address (masquerade), and a published port is the
way in (dnat). Names are a file: every container's /etc/hosts lists its neighbours.

Each network is one bridge and one nft table, made by its first user and taken away
with the last. `lab run` makes the lab itself a user of `bridge`, until `lab clean`:
like docker0 it is there for the next one. Nothing else of the host is changed, so one thing is left to it:
packets pass from one of its links to another only where net.ipv4.ip_forward is 1.
Without that a container reaches its neighbours and the host, and its published
ports work on the host's loopback; the world it does not reach.

The work is done by iproute2 and nft, in the words a person would type. Who is on a
network, and with which address, is a file that is changed under a lock.
See veth(4), bridge(8), ip-link(8), nft(8), network_namespaces(7).
"""

import contextlib
import hashlib
import ipaddress
import os
import shutil
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from labkit.ground import ledger, state, syscalls
from labkit.ground.dataclass import dataclass, replace
from labkit.ground.errors import InUse, LabError, Unsupported
from labkit.isolation import security
from labkit.network import beside_docker, firewall
from labkit.network.firewall import Port, Record, remove_rules, table, tool


@dataclass(frozen=True)
class Plug:
    """A container's place on a network: its cable and its addresses."""

    network: str
    bridge: str
    link: str  # the host's end of the cable
    address: str
    gateway: str
    address6: str | None = None
    gateway6: str | None = None
    hairpin: bool = False  # it has a published port, and may ask for it itself

    def outside(self, pid: int | str) -> list[str]:
        """Return the words for ip(8) on the host's side."""
        mac = "02:6c:" + ":".join(f"{int(part):02x}" for part in self.address.split("."))
        return [
            # The hardware address follows from the address: whoever remembers it from an earlier user is still right.
            f"link add {self.link} type veth peer name eth0 address {mac} netns {pid}",
            f"link set {self.link} master {self.bridge} alias {state.label()} up",
            # With br_netfilter the switch rewrites by itself, and would send nothing back where it came from.
            *([f"link set {self.link} type bridge_slave hairpin on"] if self.hairpin else []),
        ]

    def inside(self) -> list[str]:
        """Return the words for ip(8) in the container's namespace."""
        lines = [
            f"address add {self.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {self.gateway}",
        ]
        if self.address6:
            lines[1:1] = [f"address add {self.address6}/64 dev eth0 nodad"]
            lines.append(f"route add default via {self.gateway6}")
        return lines

    def describe(self) -> list[str]:
        """Return one line for each thing that is made."""
        return [f"ip {line}" for line in [*self.outside("CONTAINER"), *(f"(inside) {line}" for line in self.inside())]]

    def execute(self, pid: int) -> None:
        """Lay the cable into the net namespace of a process, which must be a waiting child of the caller."""
        _ip(self.outside(pid))
        _ip(self.inside(), pid)


# ---- the file: who is on which network ----


_USER = {"address": str, "names": [str], "ports": [list]}
NETWORK = state.kind(
    "run/networks/*.json", {"bridge": str, "subnet": str, "subnet6": str | None, "world": bool, "users": {str: _USER}}
)


def _folder() -> Path:
    return state.run_dir("networks")


def record(name: str) -> Record | None:
    """Return what is written down about a network: bridge, subnet, users; None if nobody is on it."""
    known: Record | None = state.read(_folder() / f"{name}.json", NETWORK)
    return known


def _records() -> list[tuple[str, Record]]:
    return [(name, known) for name in all_networks() if (known := record(name))]


def all_networks() -> list[str]:
    """Return the names of the networks that somebody is on."""
    return sorted(path.stem for path in _folder().glob("*.json"))


def preview(name: str, container: str) -> Plug:
    """Return the Plug that a container would get, as nearly as can be known. Nothing is made."""
    return _plug(record(name) or _new_record(name), container, None)


def join(name: str, container: str, names: Iterable[str] = (), ports: Sequence[Port] = ()) -> Plug:
    """Put a container on a network, making it if nobody is on it yet; return its Plug.

    `names` are what its neighbours will know it by. It is written in the ledger
    first. Raises Unsupported if this machine can't have a bridge, InUse for a
    published port that is taken.
    """
    state.check_name(name, "network name")
    for command, package in (("ip", "iproute2"), ("nft", "nftables")):
        if not shutil.which(command):
            raise Unsupported(f"the command `{command}` is not here", f"apt-get install {package}")
    if "NET_ADMIN" not in security.names(syscalls.capget()[0]):
        raise Unsupported(
            "this process can't make a bridge: it has no CAP_NET_ADMIN", "run it as root; or --network none"
        )
    with state.lock("network"):
        known = record(name) or _new_record(name)
        users = [user for _, other in _records() for user in other["users"].values()]
        firewall.check_free(ports, ((port, kind) for user in users for _, port, kind, _ in user["ports"]))
        address = _free_address(known)
        first = not known["users"].keys() - {LAB}  # what stayed may have lost its rules: `nft flush ruleset`
        stale = known["world"] != can_reach_the_world()
        known["world"] = can_reach_the_world()
        ledger.write("plug", network=name, container=container)
        known["users"][container] = {
            "address": address,
            "names": [word for word in dict.fromkeys(names) if word],
            "ports": [(port.address, port.host, port.protocol, port.container) for port in ports],
        }
        state.write_json(_folder() / f"{name}.json", known, sync=False)
        if not (known["users"].keys() - {container} and _is_there(known["bridge"])):
            _make_bridge(known)
        if first or ports or stale:
            firewall.load(table(name), known)
        beside_docker.let_pass(known["bridge"])  # each time: Docker may have been started since
        _write_hosts(known)
        return replace(_plug(known, container, address), hairpin=bool(ports))


LAB = "lab"  # among a network's users: nobody's container, on the host's own address


def stay(name: str) -> None:
    """Have a network that is there stay when its last container goes, until `lab clean`; making it anew is slow.

    Not within a chapter, which gives back all that it makes.
    """
    known = record(name)
    if known is None or LAB in known["users"] or ledger.current_scope():
        return
    with state.lock("network"):
        if known := record(name):
            ledger.write("plug", network=name, container=LAB)
            gateway = str(ipaddress.ip_network(known["subnet"])[1])
            known["users"][LAB] = {"address": gateway, "names": [], "ports": []}
            state.write_json(_folder() / f"{name}.json", known, sync=False)


@ledger.undoes("plug")
def unplug(network: str, container: str) -> None:
    """Take a container off a network, and with the last one the network itself. The ledger's kind `plug`."""
    with state.lock("network"):
        known = record(network)
        if known is None:  # it is gone; or its file was set aside, and then all of it but its name is unknown
            if not (_is_there(_bridge(network)) or _is_there(link_of(container))):
                return
            known = {"bridge": _bridge(network), "subnet": "", "subnet6": None, "world": False, "users": {}}
        gone = known["users"].pop(container, None)
        remove_link(link_of(container))  # it goes with the container's namespace, but that may take a moment
        if known["users"]:
            state.write_json(_folder() / f"{network}.json", known, sync=False)
            if gone and gone["ports"]:
                firewall.load(table(network), known)
            _write_hosts(known)
            return
        remove_link(known["bridge"])
        remove_rules(table(network))
        beside_docker.take_back(known["bridge"])
        (_folder() / f"{network}.json").unlink(missing_ok=True)


def _mark(name: str) -> bytes:
    return hashlib.sha256(f"{state.label()} {name}".encode()).digest()


def _bridge(name: str) -> str:
    return state.label() if name == "bridge" else f"lb{_mark(name).hex()[:10]}"


def _new_record(name: str) -> Record:
    mark = _mark(name)
    taken = _host_subnets()
    start = int.from_bytes(mark[:2], "big")
    for number in range(1 << 12):
        # 10.128.0.0/9 in pieces of 256 addresses; another LABKIT_ROOT begins elsewhere.
        place = (start + number) % (1 << 15)
        subnet = ipaddress.IPv4Network((0x0A800000 + (place << 8), 24))
        if not any(subnet.overlaps(other) for other in taken):
            break
    else:
        raise LabError("no free subnet in 10.128.0.0/9", "`ip route` shows who has them")
    six = f"fd6c:{mark.hex()[0:4]}:{mark.hex()[4:8]}:{mark.hex()[8:12]}::" if has_ipv6() else None
    world = can_reach_the_world()
    return {"bridge": _bridge(name), "subnet": str(subnet), "subnet6": six, "world": world, "users": {}}


def _host_subnets() -> list[ipaddress.IPv4Network]:
    """Return the IPv4 networks that this host has routes to, the default route aside."""
    found = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        words = line.split()
        target, mask = (int.from_bytes(bytes.fromhex(words[place]), "little") for place in (1, 7))
        if mask:
            found.append(ipaddress.IPv4Network((target, mask.bit_count())))
    return found


def has_ipv6() -> bool:
    """Tell whether new links get IPv6 here (net.ipv6.conf.default.disable_ipv6)."""
    switch = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    return switch.exists() and switch.read_text().strip() == "0"


def _free_address(known: Record) -> str:
    used = {user["address"] for user in known["users"].values()}
    _, gateway, *hosts = list(ipaddress.ip_network(known["subnet"]))[:-1]
    for address in hosts:
        if str(address) not in used:
            return str(address)
    raise InUse(
        f"all {len(hosts)} addresses of {known['subnet']} are given out",
        "another --network, or end some containers",
    )


def link_of(container: str) -> str:
    """Return the name of the host's end of a container's cable."""
    return f"lv{container[:12]}"


def _plug(known: Record, container: str, address: str | None) -> Plug:
    first = str(ipaddress.ip_network(known["subnet"])[1])
    address = address or _free_address(known)
    six = known["subnet6"]
    last = int(address.rpartition(".")[2])
    name = next((name for name, other in _records() if other["bridge"] == known["bridge"]), "")
    return Plug(name, known["bridge"], link_of(container), address, first, six and f"{six}{last:x}", six and f"{six}1")


def _write_hosts(known: Record) -> None:
    """Write everybody's /etc/hosts anew, into the same file: the containers have it mounted."""
    lines = {user["address"]: " ".join(user["names"]) for user in known["users"].values()}
    for container, user in known["users"].items():
        path = state.run_dir("containers") / container / "hosts"
        own = {address: names for address, names in lines.items() if names and address != user["address"]}
        text = hosts_file([(user["address"], " ".join(user["names"]))] + sorted(own.items()))
        # It may be just being made, or removed.
        with contextlib.suppress(OSError), open(path, "r+") as file:
            file.write(text)
            file.truncate()


def hosts_file(lines: Iterable[tuple[str, str]] = ()) -> str:
    """Return the text of an /etc/hosts: the loopback, and (address, names) lines."""
    loopback = [("127.0.0.1", "localhost"), ("::1", "localhost ip6-localhost ip6-loopback")]
    return "".join(f"{address}\t{names}\n" for address, names in [*loopback, *lines] if names)


def resolv_conf() -> str:
    """Return the text of a container's /etc/resolv.conf: the host's, without servers on the host's own loopback."""
    for path in ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"):
        with contextlib.suppress(OSError):
            lines = Path(path).read_text(errors="replace").splitlines()
            reachable = [
                line for line in lines if not line.replace("\t", " ").startswith(("nameserver 127.", "nameserver ::1"))
            ]
            return "".join(f"{line}\n" for line in reachable)
    return ""


def can_reach_the_world() -> bool:
    """Tell whether this host passes packets from one link to another (net.ipv4.ip_forward)."""
    return Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"


# ---- links ----


def _make_bridge(known: Record) -> None:
    bridge = known["bridge"]
    remove_link(bridge)  # a crash may have left it
    first = ipaddress.ip_network(known["subnet"])[1]
    lines = [
        f"link set {bridge} group {firewall.GROUP} alias {state.label()}",
        f"address add {first}/24 dev {bridge}",
        f"link set {bridge} up",
    ]
    if known["subnet6"]:
        lines.insert(2, f"address add {known['subnet6']}1/64 dev {bridge} nodad")
    try:
        _ip([f"link add {bridge} type bridge"])
        # Before it is up: a container that plays the router would become the host's own (CVE-2020-13401).
        if os.path.exists("/proc/sys/net/ipv6"):
            firewall.turn(f"/proc/sys/net/ipv6/conf/{bridge}/accept_ra", "0")
        _ip(lines)
        # A port published on the host's address is rewritten to a container's: from a bridge that is forwarding.
        firewall.turn(f"/proc/sys/net/ipv4/conf/{bridge}/forwarding", "1")
    except LabError as error:
        raise Unsupported(
            f"this machine can't have a bridge: {error.message}", "modprobe bridge; or --network none"
        ) from None


def remove_link(name: str) -> None:
    """Remove a link if it is there."""
    if _is_there(name):
        with contextlib.suppress(LabError):  # the other end's namespace went, and the link with it
            _ip([f"link delete {name}"])
        if _is_there(name):
            raise LabError(f"the link {name} does not go", f"ip link delete {name}")


def _is_there(link: str) -> bool:
    # Not by /sys/class/net: that shows the network namespace of whoever mounted /sys.
    return any(name == link for _, name in socket.if_nameindex())


def _ip(lines: Iterable[str], pid: int | None = None) -> None:
    """Give some lines to ip(8), in the net namespace of a process if given."""
    where = ["nsenter", f"--net=/proc/{pid}/ns/net"] if pid else []
    tool([*where, "ip", "-batch", "-"], lines)
