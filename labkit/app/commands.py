"""What every `lab` command shares: how it is registered, how its words are read, how a table looks.

    @command("ps", "list the containers that run")
    def _ps(argv):
        options = parser("ps").parse_args(argv)
        …
        table("CONTAINER ID,IMAGE", rows)

The commands themselves are in `cli` (containers), `cli_images` and `cli_host`.
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence

from labkit.ground.errors import BadValue, LabError
from labkit.ground.later import Later
from labkit.ground.typed import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from argparse import ArgumentParser

arguments = Later("labkit.ground.arguments")  # what has no words needs no parser: it is a tenth of `lab ps`
Command = Callable[[list[str]], int | None]

COMMANDS: dict[str, tuple[Command, str]] = {}  # name: (function, what it does in a line)


def command(name: str, summary: str) -> Callable[[Command], Command]:
    """Register the function below as `lab NAME`."""

    def register(function: Command) -> Command:
        COMMANDS[name] = (function, summary)
        return function

    return register


def parser(name: str) -> "ArgumentParser":
    """Return an argument parser whose complaints are a BadValue."""
    about = COMMANDS[name.split()[0]][1]
    words: ArgumentParser = arguments.Parser(prog=f"lab {name}", description=about, add_help=False)

    def refused(message: str) -> NoReturn:
        raise BadValue(message, f"lab {name} --help")

    words.error = refused  # type: ignore[method-assign]
    short = () if name == "run" else ("-h",)  # there it is --hostname, as docker has it
    words.add_argument(*short, "--help", action="help", help="show this")
    return words


def each(name: str, words: Iterable[str], action: Callable[[str], object]) -> int:
    """Do something with each of several things; one that fails is told and keeps no other back. Return the status."""
    failed = 0
    for word in words:
        try:
            action(word)
        except LabError as error:
            complain(name, error)
            failed = 1
    return failed


def complain(name: str, error: object) -> None:
    """Print a failure as `lab` does, on stderr."""
    with contextlib.suppress(OSError):  # that stdout is full may be what there is to complain of
        sys.stdout.flush()
    print(visible(f"lab {name}: {error}", keep="\n"), file=sys.stderr)


def visible(text: str, keep: str = "") -> str:
    """Return a text with its control characters spelled out: what a container is called must not steer a terminal."""
    return "".join(
        sign if sign.isprintable() or sign in keep else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in text
    )


def table(head: str, rows: Iterable[Sequence[str]]) -> None:
    """Print rows of texts under a head, "A,B,C", in columns, one line a row whatever is in them."""
    lines = [head.split(","), *([visible(text) for text in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def size(count: float) -> str:
    """Return a number of bytes as people say it: 2.1 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
