"""A module that is loaded when something of it is first asked for.

    subprocess = Later("subprocess")

For commands that live a tenth of a second, and of which each needs little. Not for what
is done in a container: there is no file to load it from.
"""

import sys

from labkit.ground.typed import Any


class Later:
    """It stands for the module, by all of its names."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        __import__(self._name)
        return getattr(sys.modules[self._name], name)
