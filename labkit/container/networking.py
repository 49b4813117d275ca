"""A container's network, or that it has none but its own loopback.

Only who has a network loads what makes one: bridges and firewalls are a room of
their own, and most containers do without. See `plugged`.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from labkit.container.launch import ParentStep

if TYPE_CHECKING:
    from labkit.container.spec import Spec


class Unplugged:
    """No cable: nothing is made, nothing is to be taken away."""

    def resolv_conf(self) -> str:
        """Return the text of its /etc/resolv.conf."""
        return ""

    def preview(self, number: str) -> tuple[ParentStep, ...]:
        """Return the steps that `join` would, as nearly as can be known."""
        return ()

    def join(self, number: str, names: tuple[str | None, ...]) -> tuple[dict[str, str], tuple[ParentStep, ...]]:
        """Give a container a place on it; return what is to be written down, and what its parent is to do."""
        return {}, ()


def of(spec: "Spec", alone: bool = False) -> Unplugged:
    """Return the network of a container; `alone` is who may have none."""
    if alone or spec.network == "none":
        return Unplugged()
    from labkit.container import plugged

    return plugged.OnHost() if spec.network == "host" else plugged.Plugged(spec)


def leave(network: str | None, number: str) -> None:
    """Take a container off the network that `join` wrote down, if it did."""
    if network:
        from labkit.network import bridge

        bridge.unplug(network, number)


def ports(texts: Iterable[Any]) -> tuple[Any, ...]:
    """Return the Ports that `HOST:CONTAINER` texts mean. Raises BadValue."""
    if not texts:
        return ()
    from labkit.network.bridge import Port

    return tuple(text if isinstance(text, Port) else Port.parse(text) for text in texts)
