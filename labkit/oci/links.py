"""linux.netDevices: links of the host that become the container's.

A link is in one network namespace at a time, and can be moved. What it was given as
its own (MTU, hardware address) goes with it; that it is up, and its addresses, do not,
so those that are permanent and for the whole world are given to it again in there.
What becomes of it afterwards is the namespace's affair: a physical one comes back when
the namespace ends, a virtual one ends with it. See network_namespaces(7), ip-link(8).
"""

import json

from labkit.ground.errors import BadValue, LabError
from labkit.ground.later import Later
from labkit.ground.typed import Any

subprocess = Later("subprocess")  # few containers get a link


def check(words: dict[str, Any]) -> None:
    """Raise BadValue for a name that no link can have."""
    for device, options in words.items():
        for name in (device, options.get("name") or device):
            if not isinstance(name, str) or not 0 < len(name) < 16 or name in (".", "..") or set(name) & set("/: \t\n"):
                raise BadValue(f"linux.netDevices: {name!r} can't be a link's name", "1 to 15 letters, no / : or space")


def move(words: dict[str, Any], pid: int) -> None:
    """Move links into the network namespace of a process and set them up there. Raises LabError."""
    for device, options in words.items():
        name = options.get("name") or device
        here = json.loads(_ip("-j", "address", "show", "dev", device))[0]
        _ip("link", "set", "dev", device, "down")
        _ip("link", "set", "dev", device, "netns", str(pid), *(("name", name) if name != device else ()))
        inside = ("nsenter", "-t", str(pid), "-n")
        if "%d" in name:  # the kernel has put a number there
            links = json.loads(_ip("-j", "link", "show", inside=inside))
            name = max(links, key=lambda link: int(link["ifindex"]))["ifname"]
        for one in here["addr_info"]:
            if one["scope"] == "global" and not one.get("dynamic"):
                place = f"{one['local']}/{one['prefixlen']}"
                _ip("address", "replace", place, "dev", name, inside=inside)
        _ip("link", "set", "dev", name, "up", inside=inside)


def _ip(*words: str, inside: tuple[str, ...] = ()) -> str:
    done = subprocess.run([*inside, "ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"linux.netDevices: ip {' '.join(words)}: {done.stderr.strip()}", "`ip link` lists the links")
    return done.stdout
