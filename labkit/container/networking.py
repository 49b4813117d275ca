"""A container's network: a place on a bridge, or none but its own loopback.

The place is taken before the clone, the cable is laid after it: it ends in the
container's own net namespace, so there must be one. Only who has a network loads what
makes one: bridges and firewalls are a room of their own, and most containers do without.
"""

import importlib
import sys
from collections.abc import Iterable

from labkit.container.launch import ParentStep
from labkit.ground.errors import Unsupported
from labkit.ground.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.container.spec import Spec


def _bridge() -> Any:
    return importlib.import_module("labkit.network.bridge")


class Unplugged:
    """No cable: nothing is made, nothing is to be taken away."""

    def resolv_conf(self) -> str:
        """Return the text of its /etc/resolv.conf."""
        return ""

    def preview(self, number: str) -> tuple[ParentStep, ...]:
        """Return the steps that `join` would, as nearly as can be known."""
        return ()

    def join(self, number: str, names: Iterable[str | None]) -> tuple[dict[str, str], tuple[ParentStep, ...]]:
        """Give a container a place on it; return what is to be written down, and what its parent is to do."""
        return {}, ()


class OnHost(Unplugged):
    """The host's own links: only the names of servers are to be handed in."""

    def resolv_conf(self) -> str:
        return str(_bridge().resolv_conf())


class Plugged(OnHost):
    """A bridge of that name; `auto` is one if there can be one."""

    def __init__(self, spec: "Spec") -> None:
        self.name = "bridge" if spec.network == "auto" else spec.network
        self.ports = spec.ports
        self.may_fail = spec.network == "auto" and not spec.ports

    def preview(self, number: str) -> tuple[ParentStep, ...]:
        return (_bridge().preview(self.name, number),)

    def join(self, number: str, names: Iterable[str | None]) -> tuple[dict[str, str], tuple[ParentStep, ...]]:
        try:
            plug = _bridge().join(self.name, number, names, self.ports)
        except Unsupported as error:
            if not self.may_fail:
                raise
            leave(self.name, number)
            # Asked for by nobody: a container without it is still one, if that is said.
            print(f"no network but the container's own loopback: {error}", file=sys.stderr)
            return {}, ()
        return {"network": self.name, "address": plug.address}, (plug,)


def of(spec: "Spec", alone: bool = False) -> Unplugged:
    """Return the network of a container; `alone` is who may have none."""
    if alone or spec.network == "none":
        return Unplugged()
    return OnHost() if spec.network == "host" else Plugged(spec)


def leave(network: str | None, number: str) -> None:
    """Take a container off the network that `join` wrote down, if it did."""
    if network:
        _bridge().unplug(network, number)


def stay(spec: "Spec") -> None:
    """Have the bridge that every container gets unasked stay for the next one."""
    if isinstance(plugged := of(spec), Plugged) and plugged.name == "bridge":
        _bridge().stay("bridge")


def ports(texts: Iterable[Any]) -> tuple[Any, ...]:
    """Return the Ports that `HOST:CONTAINER` texts mean. Raises BadValue."""
    found: list[Any] = []
    for text in texts:
        port = _bridge().Port
        found += [text] if isinstance(text, port) else port.parse_all(text)
    return tuple(found)
