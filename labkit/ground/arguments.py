"""`argparse`, told how wide the terminal is.

It would find out by way of shutil, for every word that a command knows, and shutil
brings every compressor with it: a tenth of a short command's time. And it would look
for a translation of its own words, beside which labkit's would be English still.
"""

import argparse
import os

from labkit.ground.typed import Any

argparse._ = lambda text: text  # type: ignore[attr-defined]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no word for another that it begins."""

    def __init__(self, **words: Any) -> None:
        try:
            width = os.get_terminal_size().columns
        except OSError:
            width = 80
        help = lambda prog: argparse.HelpFormatter(prog, width=width - 2)  # noqa: E731
        super().__init__(formatter_class=help, allow_abbrev=False, **words)
