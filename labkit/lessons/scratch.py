"""A folder for as long as a block runs, in the ledger before it is there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from labkit.ground import ledger, state


@contextlib.contextmanager
def folder(parent: Path | None = None, name: str = "", mode: int = 0o777) -> Iterator[Path]:
    """Make a folder on the disk that labkit's files are on (or in `parent`), yield it, take it away."""
    place = (parent or state.lib_dir("chapters")) / (name or state.new_id())
    with ledger.made("folder", path=str(place)):
        place.mkdir(mode)
        yield place
