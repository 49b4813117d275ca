"""Rooms with no network but what you plug in: empty network namespaces, cables, and the packets of a link.

    with netrooms.room("left") as left, netrooms.room("right") as right:
        left.ip(f"link add cable type veth peer name cable netns {right.pid}")
        with netrooms.listening(left, "cable") as seen:
            left.run("busybox ping -c 1 10.0.0.2")
        print(seen.packets)

A room is a process that sleeps in a new network namespace; a namespace lives as long
as somebody is in it. A packet socket (AF_PACKET) gets a copy of every frame that
passes a link, as tcpdump does it; here a child listens, in the namespace of the link.
See veth(4), packet(7), network_namespaces(7).
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from labkit.ground import ledger, proc
from labkit.ground.dataclass import dataclass, field
from labkit.ground.errors import LabError
from labkit.lessons.watch.measuring import until


@dataclass(frozen=True)
class Room:
    """An empty network namespace, by the process that keeps it."""

    name: str
    pid: int

    def ip(self, words: str) -> None:
        """Run ip(8) in it. Raises LabError with what ip says."""
        done = self._do(["ip", *words.split()])
        if done.returncode:
            raise LabError(f"ip {words}: {done.stderr.strip()}")
        print(done.stdout, end="")

    def run(self, words: str | list[str], show: bool = True) -> int:
        """Run a command in it; print its stdout, what it complains of if it fails, and return its exit status."""
        done = self._do(words.split() if isinstance(words, str) else words)
        if show:
            print(done.stdout, end="")
            # A warning is no answer: some machines have one to give, others have not.
            print(done.stderr if done.returncode else "", end="")
        return done.returncode

    def links(self) -> list[dict[str, Any]]:
        """Return its links as ip(8) has them: a list of dictionaries with ifname, flags, link_index, linkinfo …"""
        return json.loads(self._do(["ip", "-json", "-details", "address"]).stdout)

    def reaches(self, address: str) -> bool:
        """Tell whether one of three pings from here gets an answer: a cable just plugged in takes up to a second."""
        ping = ["busybox", "ping", "-c", "1", "-W", "1", address]
        return any(self.run(ping, show=False) == 0 for _ in range(3))

    def _do(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        where = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--"]
        return subprocess.run([*where, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)


@contextlib.contextmanager
def room(name: str) -> Iterator[Room]:
    """Make an empty network namespace; it is gone with the block, and all links in it."""
    room = open_room(name)
    try:
        yield room
    finally:
        close_room(room)


_keepers: dict = {}


def open_room(name: str) -> Room:
    """Make an empty network namespace that stays until `close_room`, or until this process ends."""
    here = os.readlink("/proc/self/ns/net")
    # It reads from us: when we die, whatever happens, it ends and the namespace with it.
    keeper = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    ledger.write("process", pid=keeper.pid, ticks=proc.start_ticks(keeper.pid))
    place = f"/proc/{keeper.pid}/ns/net"
    until(lambda: keeper.poll() is not None or os.readlink(place) != here, 10, pause=0.002)
    if keeper.poll() is not None or os.readlink(place) == here:
        raise LabError("no new network namespace", "`lab doctor` shows what this kernel has")
    _keepers[keeper.pid] = keeper
    return Room(name, keeper.pid)


def close_room(room: Room) -> None:
    """End a room."""
    keeper = _keepers.pop(room.pid, None)
    if keeper:
        keeper.kill()
        keeper.stdin.close()
        keeper.wait()
    for entry in ledger.entries():
        if entry.kind == "process" and entry.what.get("pid") == room.pid:
            ledger.undo(entry)


def close_all() -> None:
    """End all rooms that this process opened."""
    for pid in list(_keepers):
        close_room(Room("", pid))


def host_links() -> list[dict[str, Any]]:
    """Return the links of this process's own network namespace, as ip(8) has them."""
    return json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True).stdout)


# ---- packets ----


@dataclass(frozen=True)
class Packet:
    """One frame that passed a link, as far as it can be told in a line."""

    when: float  # seconds since the listening began
    source: str
    target: str
    what: str  # ARP question, ICMP echo request, TCP SYN, TCP 12 bytes …
    size: int

    def __repr__(self) -> str:
        return f"{self.source:>15} → {self.target:15} {self.what} ({self.size} bytes)"


@dataclass
class Seen:
    """What was heard; filled when the listening ends."""

    packets: list = field(default_factory=list)


_LISTEN = """
import socket, sys, time
door = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
door.bind((sys.argv[1], 0))
print("listening", flush=True)
begin = time.monotonic()
while True:
    frame, (_, _, kind, *_) = door.recvfrom(65536)
    print(time.monotonic() - begin, frame.hex(), flush=True)
"""


@contextlib.contextmanager
def listening(place: Room | int, link: str, settle: float = 0.15) -> Iterator[Seen]:
    """Copy what passes `link` in a Room (or a process id's namespace) while the block runs; yield Seen.

    IPv6's housekeeping (neighbours, routers, groups) is left out: it comes by itself.
    """
    pid = getattr(place, "pid", place)
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", "--", sys.executable, "-SEuc", _LISTEN, link]
    listener: Any = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    seen = Seen()
    try:
        if listener.stdout.readline() != "listening\n":
            raise LabError(f"can't listen on {link}: {listener.stderr.read().strip().splitlines()[-1]}")
        yield seen
        time.sleep(settle)  # the last answers may still be on their way
        listener.kill()
        for line in listener.communicate()[0].splitlines():
            when, frame = line.split()
            if packet := read_frame(float(when), bytes.fromhex(frame)):
                seen.packets.append(packet)
    finally:
        listener.kill()
        listener.communicate()


def read_frame(when: float, frame: bytes) -> Packet | None:
    """Return the Packet of an Ethernet frame, or None for what is not shown. See RFC 791, 826, 793."""
    try:
        (kind,) = struct.unpack("!H", frame[12:14])
        body = frame[14:]
        if kind == 0x0806:  # ARP
            asks = struct.unpack("!H", body[6:8])[0] == 1
            source, target = socket.inet_ntoa(body[14:18]), socket.inet_ntoa(body[24:28])
            hardware = ":".join(f"{byte:02x}" for byte in body[8:14])
            what = f"ARP: who has {target}?" if asks else f"ARP: it is {hardware}"
        elif kind == 0x0800:
            length, total, protocol = (body[0] & 15) * 4, struct.unpack("!H", body[2:4])[0], body[9]
            source, target = socket.inet_ntoa(body[12:16]), socket.inet_ntoa(body[16:20])
            what = _said(protocol, body[length:total])
        else:
            return None
    except (struct.error, IndexError, OSError):  # cut short, or no packet at all: anybody may send anything
        return None
    return Packet(when, source, target, what, len(frame))


def _said(protocol: int, data: bytes) -> str:
    if protocol == socket.IPPROTO_ICMP:
        kinds = {8: "ICMP echo request", 0: "ICMP echo reply", 3: "ICMP unreachable"}
        return kinds.get(data[0], f"ICMP type {data[0]}")
    if protocol == socket.IPPROTO_TCP:
        payload = data[(data[12] >> 4) * 4 :]
        text = (payload.splitlines() or [b""])[0][:28].decode(errors="replace")
        if payload and text.isprintable():
            return f"TCP: “{text}”"
        flags = [name for bit, name in ((2, "SYN"), (16, "ACK"), (1, "FIN"), (4, "RST")) if data[13] & bit]
        return f"TCP {' '.join(flags)}" + (f", {len(payload)} bytes" if payload else "")
    if protocol == socket.IPPROTO_UDP:
        return f"UDP, {len(data) - 8} bytes"
    return f"IP protocol {protocol}"
