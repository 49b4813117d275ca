"""Who a process becomes: the names and numbers of the image's own /etc/passwd and /etc/group.

To the kernel a user is a number, and so is a group. The names are in two text files
of whoever's root it is: `--user nginx` may be 101 in one image and 33 in the next. So
they are read in the container, after pivot_root, and as from a stranger.
See passwd(5), group(5).
"""

import os
import stat

from labkit.ground.errors import NotFound

_MOST = 1 << 18  # bytes that are read of a file


def home_of(uid: int) -> str:
    """Return the home folder of a number, `/` if it has none."""
    homes = [entry[5] for entry in _colon_file("/etc/passwd", 7) if entry[2] == str(uid)]
    return homes[0] if homes and homes[0] else "/"


def find_user(text: str) -> tuple[int, int, tuple[int, ...], str]:
    """Return (uid, gid, groups, home) of a user as the /etc/passwd and group of this root have it."""
    name, _, group = str(text).partition(":")
    name = name or "0"  # `:1000` is root in another group
    uid, gid, home, login = None, 0, "/", name
    for entry in _colon_file("/etc/passwd", 7):
        if name == entry[0] or name == entry[2]:
            login, uid, gid, home = entry[0], int(entry[2]), int(entry[3]), entry[5] or "/"
            break
    if uid is None:
        uid = _number(name, "user", "/etc/passwd")
    members = _colon_file("/etc/group", 4)
    if group:
        ids = [int(entry[2]) for entry in members if entry[0] == group]
        return uid, ids[0] if ids else _number(group, "group", "/etc/group"), (), home
    groups = [int(entry[2]) for entry in members if login in entry[3].split(",")]
    return uid, gid, tuple(sorted({gid, *groups})), home


def _colon_file(path: str, width: int) -> list[list[str]]:
    try:
        # Whoever's image it is may have put a pipe there, and wait that somebody reads it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        text = os.read(fd, _MOST).decode(errors="replace")
    except OSError:
        return []
    finally:
        os.close(fd)
    rows = [line.split(":") for line in text.splitlines()]
    return [row for row in rows if len(row) >= width and _is_id(row[2]) and (width == 4 or _is_id(row[3]))]


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 11 and int(text) < 2**32 - 1


def _number(text: str, what: str, where: str) -> int:
    if _is_id(text) and int(text) < 2**31:
        return int(text)
    raise NotFound(f"no {what} {text!r} in the image's {where}", "a number is always possible: `--user 1000`")
