"""A small world for network tests: a host with a network namespace of its own, and somebody outside.

    def work(world):
        ...                       # here containers may be started
    worlds.inside(work)

      outside 203.0.113.2 ───veth─── 203.0.113.1 the host, which forwards ── containers

The machine's own links, rules and switches are not in it.
"""

import contextlib
import os
import subprocess
import sys
import time

from labkit import in_child
from labkit.container import spawner
from labkit.ground import syscalls as sc

HOST, OUTSIDE = "203.0.113.1", "203.0.113.2"


class World:
    """What is outside."""

    def __init__(self, pid):
        self.pid = pid

    def outside(self, code, *arguments, **options):
        """Start Python code outside; return the process."""
        command = [
            "nsenter",
            f"--net=/proc/{self.pid}/ns/net",
            sys.executable,
            "-SEc",
            code,
            *map(str, arguments),
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)

    def fetch_from_outside(self, address, port):
        """Return what a TCP connection from outside to (address, port) brings, or the error's name."""
        return self.outside(FETCH, address, port).communicate(timeout=30)[0].strip()


FETCH = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1) as one: print(one.recv(100).decode())
except OSError as error: print(type(error).__name__)
"""
SERVE = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as door:
    print("ready", flush=True)
    one, peer = door.accept()
    one.sendall(b"hello " + peer[0].encode()); one.close()
"""


def fetch(address, port):
    """Return what a TCP connection from here brings, or the error's name."""
    return subprocess.run(
        [sys.executable, "-SEc", FETCH, address, str(port)], capture_output=True, text=True
    ).stdout.strip()


def inside(work, forwarding=True):
    """Call `work(world)` in a child that is such a host; return what it returns."""

    def host():
        spawner._current = (os.getpid(), spawner.Here())
        sc.unshare(sc.CLONE_NEWNET | sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        here = proc_net()
        with subprocess.Popen(["unshare", "--net", "sleep", "60"]) as outside:
            try:
                while proc_net(outside.pid) == here:
                    time.sleep(0.005)
                lines = f"link set lo up\nlink add world type veth peer name eth0 netns {outside.pid}\naddress add {HOST}/24 dev world\nlink set world up\n"
                _ip(["ip"], lines)
                lines = f"link set lo up\naddress add {OUTSIDE}/24 dev eth0\nlink set eth0 up\nroute add 10.128.0.0/9 via {HOST}\n"
                _ip(["nsenter", f"--net=/proc/{outside.pid}/ns/net", "ip"], lines)
                with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
                    file.write("01"[forwarding])
                return work(World(outside.pid))
            finally:
                outside.kill()

    return in_child(host)


def proc_net(pid="self"):
    """Return the name of a process's network namespace."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/net")


def _ip(command, lines):
    subprocess.run([*command, "-batch", "-"], input=lines, text=True, check=True)
