"""A module that is loaded when something of it is first asked for.

    subprocess = Later("subprocess")

For commands that live a tenth of a second, and of which each needs little. Not for what
is done in a container: there is no file to load it from.
"""

import importlib
from typing import Any


class Later:
    """It stands for the module, by all of its names."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)
