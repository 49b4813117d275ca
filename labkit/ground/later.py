"""A module that is loaded when something of it is first asked for.

    bundle = Later("labkit.oci.bundle")

For a command of which each call needs little: `start` opens a gate, and nothing of what
makes a container.
"""

import importlib
from typing import Any


class Later:
    """It stands for the module, by all of its names."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)
