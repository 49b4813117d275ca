"""`lab room`: an instructor sees how far each seat is, and who is stuck where. No names.

A seat's progress is one small file, `progress.json` (see `lessons`), and comes one
of these ways:

    lab room /mnt/room              a shared folder, where each seat was started
                                    with `LAB_ROOM=/mnt/room lab up`
    lab room http://…/lab?token=…   the address that `lab up` printed on the seat,
                                    where the network lets one in (`--ip`)
    lab room http://…/hub?token=…   a JupyterHub with seats, see vagrant/hub
    lab room .vagrant/lab/seats.txt a list of addresses, as `LAB_SEATS=12 vagrant up`
                                    writes it: a name and an address a line

A seat is known by four random digits, its name in that list, or its address. What is read from it was
written by a stranger: it is checked, and what can't be meant is not shown.
"""

import argparse
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, NotFound
from labkit.ground.typed import Any
from labkit.lessons import coursework

MOST = 1 << 20  # bytes of one seat's file
STUCK = 4  # tries of one exercise, none passed

Source = tuple[str, Path | str]  # a name, and a file or an address


@dataclass(frozen=True)
class Seat:
    """One seat: how many checks of each chapter it has passed, when it last tried one, where it is stuck."""

    name: str
    passed: dict[str, int]  # chapter number: how many
    last: float | None = None
    stuck: str = ""
    problem: str = ""  # why nothing is known of it


def seats(places: list[str]) -> list[Seat]:
    """Return the Seats in folders, files and lists, or at addresses. One that can't be read says why in `problem`."""
    sources: list[Source] = []
    for place in places:
        path = Path(place)
        if place.startswith(("http://", "https://")) and urllib.parse.urlsplit(place).path.rstrip("/") == "/hub":
            sources += _of_hub(place)
        elif place.startswith(("http://", "https://")):
            sources.append((urllib.parse.urlsplit(place).netloc, place))
        elif path.is_dir():
            files = sorted(path.glob("seat-*.json"))
            sources += [(file.stem, file) for file in files] or [(place, path / "progress.json")]
        elif path.suffix == ".json":
            sources.append((path.stem if path.stem != "progress" else str(path.parent), path))
        elif path.exists():
            sources += _listed(path)
        else:
            raise NotFound(f"there is no folder or file {place}", "or an address that begins with http://")
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(_seat, sources))


def _listed(path: Path) -> list[Source]:
    """Return (name, address) of each line of a list."""
    found: list[Source] = []
    for line in path.read_text(errors="replace").splitlines():
        words = line.split()
        if words and words[-1].startswith(("http://", "https://")):
            found.append((words[0] if len(words) > 1 else urllib.parse.urlsplit(words[0]).netloc, words[-1]))
    if not found:
        raise BadValue(f"{path} has no address in it", "a name and an address that begins with http:// a line")
    return found


def _of_hub(place: str) -> list[Source]:
    """Return (user, address) of each seat that a JupyterHub has running, with the token that is in its own address."""
    parts = urllib.parse.urlsplit(place)
    try:
        users = json.loads(_asked(parts, "/hub/api/users?state=ready"))
        names = [user["name"] for user in users]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NotFound(f"{parts.scheme}://{parts.netloc}/hub lists no seats: {_why(error)}") from None
    return [
        (name, f"{parts.scheme}://{parts.netloc}/user/{urllib.parse.quote(name)}/lab?{parts.query}") for name in names
    ]


def _seat(source: Source) -> Seat:
    name, place = source
    try:
        text = place.read_bytes()[:MOST] if isinstance(place, Path) else _fetched(place)
        return _read(name, json.loads(text))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        return Seat(name, {}, problem=_why(error))


def _why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return {403: "the token is not right", 404: "nothing tried yet"}.get(error.code, f"HTTP {error.code}")
    if isinstance(error, FileNotFoundError):
        return "nothing tried yet"
    return str(getattr(error, "reason", error))[:80] if isinstance(error, OSError) else "its file is damaged"


def _fetched(address: str) -> str:
    """Return progress.json by JupyterLab's own contents API, with the address's own token."""
    parts = urllib.parse.urlsplit(address)
    base = parts.path.partition("/lab")[0].rstrip("/")  # below a JupyterHub there is one
    answer = _asked(parts, f"{base}/api/contents/progress.json?content=1&type=file&format=text")
    return json.loads(answer)["content"]


def _asked(parts: urllib.parse.SplitResult, path: str) -> bytes:
    """Return what a server says to the token of an address."""
    token = urllib.parse.parse_qs(parts.query).get("token", [""])[0]
    url = f"{parts.scheme}://{parts.netloc}{path}"
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=5) as answer:
        return answer.read(MOST)


def _read(name: str, record: dict[str, Any]) -> Seat:
    chapters = {check: chapter.number for chapter in coursework.contents() for check in chapter.checks}
    passed: dict[str, int] = {}
    stuck, last = "", record["last"]
    for check, entry in record["checks"].items():
        if check not in chapters:
            continue
        if entry["passed"]:
            passed[chapters[check]] = passed.get(chapters[check], 0) + 1
        elif int(entry["tries"]) >= STUCK:
            stuck = f"{chapters[check]} {check.partition('.')[2]}, {int(entry['tries'])} tries"
    if last is not None and not (isinstance(last, int | float) and math.isfinite(last)):
        raise ValueError("`last` is no time")
    return Seat(name, passed, last, stuck)


def table(found: list[Seat], now: float | None = None) -> list[str]:
    """Return lines of text: a row a seat, a column a chapter that has exercises."""
    now = time.time() if now is None else now
    chapters = [chapter for chapter in coursework.contents() if chapter.checks]
    rows = [["seat", *(chapter.number for chapter in chapters), "last", "stuck at"]]
    rows.append(["of", *(str(len(chapter.checks)) for chapter in chapters), "", ""])
    for seat in sorted(found, key=lambda seat: (bool(seat.problem), seat.name)):
        counts = [str(seat.passed.get(chapter.number, "·")) for chapter in chapters]
        minutes = "" if seat.last is None else f"{max(0, now - seat.last) // 60:.0f} min"
        rows.append([seat.name, *counts, minutes, seat.problem or seat.stuck])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def main(argv: list[str]) -> int:
    """Print the room once, or with --every again and again until Ctrl-C."""
    parser = argparse.ArgumentParser("lab room", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("place", nargs="+", help="a shared folder, a progress.json, or a seat's address")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="look again, until Ctrl-C")
    options = parser.parse_args(argv)
    if options.every is not None and not options.every >= 1:
        raise BadValue(f"--every {options.every:g} is too often", "one second or more")
    while True:
        lines = table(seats(options.place))
        if options.every is None:
            print(*lines, sep="\n")
            return 0
        print("\x1b[2J\x1b[H", *(f"{line}\n" for line in lines), sep="", flush=True)
        time.sleep(options.every)
