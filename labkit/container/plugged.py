"""A container on a bridge: its place is taken before the clone, its cable laid after.

The cable ends in the container's own net namespace, so there must be one: while the
child waits for its `go`, the parent moves one end of a veth pair into it. See bridge.
"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labkit.container.launch import ParentStep
from labkit.container.networking import Unplugged
from labkit.ground.errors import Unsupported
from labkit.network import bridge

if TYPE_CHECKING:
    from labkit.container.spec import Spec


class OnHost(Unplugged):
    """The host's own links: only the names of servers are to be handed in."""

    def resolv_conf(self) -> str:
        return bridge.resolv_conf()


class Plugged(OnHost):
    """A bridge of that name; `auto` is one if there can be one."""

    def __init__(self, spec: "Spec") -> None:
        self.name = "bridge" if spec.network == "auto" else spec.network
        self.ports = spec.ports
        self.may_fail = spec.network == "auto" and not spec.ports

    def preview(self, number: str) -> tuple[ParentStep, ...]:
        return (PlugIn(bridge.preview(self.name, number)),)

    def join(self, number: str, names: tuple[str | None, ...]) -> tuple[dict[str, str], tuple[ParentStep, ...]]:
        try:
            plug = bridge.join(self.name, number, names, self.ports)
        except Unsupported as error:
            if not self.may_fail:
                raise
            bridge.unplug(self.name, number)
            # Asked for by nobody: a container without it is still one, if that is said.
            print(f"no network but the container's own loopback: {error}", file=sys.stderr)
            return {}, ()
        return {"network": self.name, "address": plug.address}, (PlugIn(plug),)


@dataclass(frozen=True)
class PlugIn(ParentStep):
    """Lay the cable into the child's net namespace."""

    plug: bridge.Plug

    def describe(self) -> list[str]:
        return self.plug.describe()

    def execute(self, pid: int) -> None:
        bridge.plug_in(self.plug, pid)
