"""What every `lab` command shares: how it is registered, how its words are read, how a table looks.

    @command("ps", "list the containers that run")
    def _ps(argv):
        options = parser("ps").parse_args(argv)
        …
        table("CONTAINER ID,IMAGE", rows)

The commands themselves are in `cli` (containers), `cli_images` and `cli_host`.
"""

import argparse

from labkit.ground.errors import BadValue

COMMANDS: dict[str, tuple] = {}  # name: (function, what it does in a line)


def command(name, summary):
    """Register the function below as `lab NAME`."""

    def register(function):
        COMMANDS[name] = (function, summary)
        return function

    return register


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadValue(message, f"{self.prog} --help")


def parser(name):
    """Return an argument parser whose complaints are a BadValue."""
    return _Parser(prog=f"lab {name}", description=COMMANDS[name.split()[0]][1])


def table(head, rows):
    """Print rows of texts under a head, "A,B,C", in columns."""
    rows = [head.split(","), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def size(count):
    """Return a number of bytes as people say it: 2.1 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return None
