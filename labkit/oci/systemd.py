"""Where systemd rules the cgroup tree, it makes the container's folder: a scope, asked for by D-Bus.

systemd is one manager of cgroups beside others, and a tree has room for one only. So
Docker and Podman can have their runtime ask it: `--systemd-cgroup`, and a path like
`machine.slice:libpod:ID`, which stands for the unit libpod-ID.scope in machine.slice.
A scope is a unit around processes that somebody else started: it needs one to begin,
and goes with the last. Its name says where its folder is: a-b.slice is in a.slice.
See systemd.scope(5), systemd.slice(5), org.freedesktop.systemd1(5).
"""

import os
import shutil
import subprocess
import time

from labkit.ground import proc
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, LabError, Unsupported

_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


@dataclass(frozen=True)
class Unit:
    """A scope of one container. `path` is its place in the cgroup tree."""

    name: str
    slice: str

    @property
    def path(self) -> str:
        """The folder, from the tree's root."""
        parts = self.slice.removesuffix(".slice").split("-")
        steps = (
            ["-".join(parts[: number + 1]) + ".slice" for number in range(len(parts))]
            if self.slice != "-.slice"
            else []
        )
        return "/" + "/".join([*steps, self.name])

    def start(self, pid: int, seconds: float = 10) -> None:
        """Have systemd make the scope around a process, and wait until it is in there."""
        call = [
            "busctl", "call", *_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", self.name, "replace",
            "5", "Description", "s", f"labkit container {self.name}", "Slice", "s", self.slice, "Delegate", "b", "true",
            "DefaultDependencies", "b", "false", "PIDs", "au", "1", str(pid), "0",
        ]  # fmt: skip
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode:
            raise LabError(
                f"systemd did not make {self.name}: {done.stderr.strip()}",
                "journalctl -u dbus, or without --systemd-cgroup",
            )
        deadline = time.monotonic() + seconds
        while self.path not in proc.cgroups(pid).values():
            if time.monotonic() > deadline:
                raise LabError(f"systemd has not moved process {pid} to {self.path} after {seconds} s")
            time.sleep(0.005)


def stop(name: str) -> None:
    """Have systemd forget a scope; fine if it has already, as it does some time after the last process."""
    subprocess.run(
        ["busctl", "call", *_MANAGER, "StopUnit", "ss", name, "replace"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def unit(place: str, number: str) -> Unit:
    """Return the Unit of a `slice:prefix:name`.

    Raise Unsupported where systemd does not rule, BadValue for another form.
    """
    if not os.path.isdir("/run/systemd/system") or not shutil.which("busctl"):
        raise Unsupported(
            "--systemd-cgroup: systemd is not PID 1 here", "the cgroupfs manager: docker's native.cgroupdriver=cgroupfs"
        )
    parts = place.split(":") if place else ["system.slice", "labkit", number]
    if len(parts) != 3 or not parts[2] or not (parts[0] or "system.slice").endswith(".slice") or "/" in place:
        raise BadValue(
            f"linux.cgroupsPath {place!r}",
            "with --systemd-cgroup it is SLICE:PREFIX:NAME, like machine.slice:libpod:web",
        )
    prefix = f"{parts[1]}-" if parts[1] else ""
    return Unit(f"{prefix}{parts[2]}.scope", parts[0] or "system.slice")
