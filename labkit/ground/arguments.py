"""`argparse`, told how wide the terminal is.

It would find out by way of shutil, for every word that a command knows, and shutil
brings every compressor with it: a tenth of a short command's time.
"""

import argparse
import os
from typing import Any


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no word for another that it begins."""

    def __init__(self, **words: Any) -> None:
        try:
            width = os.get_terminal_size().columns
        except OSError:
            width = 80
        help = lambda prog: argparse.HelpFormatter(prog, width=width - 2)  # noqa: E731
        super().__init__(formatter_class=help, allow_abbrev=False, **words)
