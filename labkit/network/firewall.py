"""Which packets of a bridge go where: one nft table a network, and what its chains are for.

    way_out             what leaves gets the host's own address (masquerade)
    ways_in             a published port: the target is rewritten to the container (dnat)
    ways_in_from_here   the same for what the host itself sends, so 127.0.0.1:PORT works
    forward             bridges don't see each other; from elsewhere only answers and published ports
    guard               what the host's loopback switch would let in from containers

A table is loaded whole, in one transaction, in place of the one before; nobody
ever sees half of it. No rule of anybody else's is touched.
See nft(8), "route_localnet" in the kernel's ip-sysctl.
"""

import contextlib
import ipaddress
import re
import socket
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from labkit.ground import state
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, InUse, LabError, from_oserror
from labkit.ground.typed import TypedDict

GROUP = 27499  # the link group of all our bridges: rules tell them by it


@dataclass(frozen=True)
class Port:
    """A port of the host that leads to one of a container."""

    host: int
    container: int
    protocol: str = "tcp"
    address: str = "127.0.0.1"

    @classmethod
    def parse(cls, text: object) -> "Port":
        """Return the Port of docker's `[ADDRESS:]HOST:CONTAINER[/udp]`, else on the loopback. Raises BadValue."""
        ports, slash, protocol = str(text).lower().partition("/")
        *before, host, container = ports.rsplit(":", 2) if ports.count(":") else ("", "")
        address = before[0] if before else "127.0.0.1"
        try:
            if not str(text).isascii():  # int() knows the digits of forty scripts
                raise ValueError
            port = cls(int(host), int(container), protocol if slash else "tcp", str(ipaddress.IPv4Address(address)))
            if not (0 < port.host < 65536 and 0 < port.container < 65536 and port.protocol in ("tcp", "udp")):
                raise ValueError
        except ValueError:
            raise BadValue(
                f"published port {text!r} can't be read",
                "write HOST:CONTAINER, ADDRESS:HOST:CONTAINER or HOST:CONTAINER/udp; 8000-8002:80-82 is three of them",
            ) from None
        return port

    @classmethod
    def parse_all(cls, text: object) -> "tuple[Port, ...]":
        """Return the Ports of a text in which host and container may be ranges of one length. Raises BadValue."""
        found = re.fullmatch(r"(.*:)?(\d{1,5})-(\d{1,5}):(\d{1,5})-(\d{1,5})(/.*)?", str(text), re.ASCII)
        if not found:
            return (cls.parse(text),)
        host, last, container, last_inside = map(int, found.groups()[1:5])
        if last < host or last - host != last_inside - container:
            raise BadValue(f"published ports {text!r} are ranges of two lengths", "as 8000-8002:80-82")
        before, after = found[1] or "", found[6] or ""
        return tuple(cls.parse(f"{before}{host + i}:{container + i}{after}") for i in range(last - host + 1))

    def __str__(self) -> str:
        return f"{self.address}:{self.host}->{self.container}/{self.protocol}"


class User(TypedDict):
    """A container on a network, as the network's file has it."""

    address: str
    names: list[str]
    ports: list[tuple[str, int, str, int]]  # address, host's port, protocol, container's port


class Record(TypedDict):
    """A network's file."""

    bridge: str
    subnet: str
    subnet6: str | None
    world: bool  # the host passed packets on when the rules were loaded
    users: dict[str, User]


def table(name: str) -> str:
    """Return the name of the nft table of the network `name`."""
    return f"{state.label()}-{name}"


def rules(table: str, known: Record) -> list[str]:
    """Return the lines of a network's nft table."""
    bridge, subnet = known["bridge"], known["subnet"]
    from_here, from_elsewhere = _ways_in(known["users"].values())
    chains = {
        # With route_localnet the host takes 127.x from its bridge: from containers it must not.
        "guard": ("filter hook prerouting priority raw", [f'iifname "{bridge}" ip daddr 127.0.0.0/8 drop']),
        "ways_in": ("nat hook prerouting priority dstnat", from_elsewhere),
        "ways_in_from_here": ("nat hook output priority -100", from_here),
        "way_out": (
            "nat hook postrouting priority srcnat",
            [
                f'ip saddr {subnet} oifname != "{bridge}" masquerade',
                # To a neighbour's published port by the host's address: the answer must come back this way too.
                f'ip saddr {subnet} oifname "{bridge}" ct status dnat masquerade',
                f'ip saddr 127.0.0.0/8 oifname "{bridge}" masquerade',
                *([f'ip6 saddr {known["subnet6"]}/64 oifname != "{bridge}" masquerade'] if known["subnet6"] else []),
            ],
        ),
        "forward": (
            "filter hook forward priority filter",
            [
                f'iifname "{bridge}" oifname "{bridge}" accept',
                # From elsewhere, other bridges too, only answers and published ports come in.
                f'oifname "{bridge}" ct state established,related accept',
                f'oifname "{bridge}" ct status dnat accept',
                f'oifname "{bridge}" drop',
                # The bridge forwards, so that published ports are reached from it: see bridge. The host may not.
                *(
                    []
                    if known["world"]
                    else [
                        f'meta nfproto ipv4 iifname "{bridge}" ct status dnat accept',
                        f'meta nfproto ipv4 iifname "{bridge}" drop',
                    ]
                ),
            ],
        ),
    }
    body = [
        line
        for chain, (hook, rules) in chains.items()
        for line in (f"chain {chain} {{", f"type {hook}; policy accept;", *rules, "}")
    ]
    # Named before it is deleted, or the first time there would be nothing to delete.
    return [f"table inet {table}", f"delete table inet {table}", f"table inet {table} {{", *body, "}"]


def _ways_in(users: Iterable[User]) -> tuple[list[str], list[str]]:
    """Return the rules of the published ports, for what the host itself sends and for what comes from elsewhere."""
    from_here, from_elsewhere = [], []
    for user in users:
        for address, host, protocol, container in user["ports"]:
            match = "fib daddr type local" if address == "0.0.0.0" else f"ip daddr {address}"
            rule = f"{match} {protocol} dport {host} dnat ip to {user['address']}:{container}"
            from_here.append(rule)
            if not address.startswith("127."):
                from_elsewhere.append(rule)
    return from_here, from_elsewhere


def load(table: str, known: Record) -> None:
    """Put the rules of a network in force, in place of those before."""
    tool(["nft", "-f", "-"], rules(table, known))
    if any(user["ports"] for user in known["users"].values()):
        _let_loopback_in(known["bridge"])


def remove_rules(table: str) -> None:
    """Remove one of our nft tables if it is there."""
    try:
        tool(["nft", "-f", "-"], [f"table inet {table}", f"delete table inet {table}"])
    except LabError:
        if _is_there(table):  # a kernel without nftables has no table to remove
            raise


def _is_there(table: str) -> bool:
    with contextlib.suppress(LabError):
        tool(["nft", "list", "table", "inet", table], [])
        return True
    return False


def _let_loopback_in(bridge: str) -> None:
    """Let 127.0.0.1:PORT lead to the bridge; the switch is that of our own bridge alone."""
    turn(f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet", "1")


def turn(switch: str, value: str) -> None:
    """Write a kernel switch, one of a link of our own. Raises KernelError."""
    try:
        Path(switch).write_text(value)
    except OSError as error:
        raise from_oserror(error, f"writing {switch}") from None


def tool(command: Sequence[str], lines: Iterable[str]) -> None:
    """Give some lines to a command. Raises LabError with its first word on it."""
    text = "\n".join(lines) + "\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines() or ["it did not say why"]
        raise LabError(
            f"`{' '.join(command)}` failed: {why[0]}",
            "CAP_NET_ADMIN is needed; `lab doctor` shows what this kernel has",
        )


def listing(name: str) -> list[str]:
    """Return the lines of the nft table of the network `name`, as the kernel has them now."""
    command = ["nft", "list", "table", "inet", table(name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line.strip() for line in done.stdout.splitlines()]


def free_port() -> int:
    """Return a TCP port of the loopback that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def check_free(ports: Iterable[Port], taken: Iterable[tuple[int, str]]) -> None:
    """Raise InUse if one of the ports is among `taken`, (port, protocol), or a program of the host listens there."""
    taken = set(taken)
    for port in ports:
        if (port.host, port.protocol) in taken:
            raise InUse(
                f"port {port.host}/{port.protocol} is published by another container",
                "`lab ps`; choose another port",
            )
        taken.add((port.host, port.protocol))
        kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections don't count
            try:
                probe.bind((port.address, port.host))
            except OSError as error:
                raise InUse(
                    f"port {port.address}:{port.host} can't be published: {error.strerror}",
                    "`ss -tlnp` shows who has it",
                ) from None
