"""Where labkit keeps things on disk, so that a crash at any moment leaves them readable.

Two places, as the Filesystem Hierarchy Standard has them:

    /run/labkit       containers, ledger, locks: true until the next reboot
    /var/lib/labkit   images, layers, volumes, writable layers: kept

`LABKIT_ROOT=/some/folder` puts both below that folder (`run/`, `lib/`), so tests
and a second user never share them. Three tools keep them sound: a file is
replaced whole or not at all, a name is taken by one process only, and a lock is
the kernel's, so it is gone with the process that held it.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.ground.errors import BadValue, from_oserror

# The clone that this is: labkit lies in it, beside notebooks, vagrant and tests.
REPO = Path(__file__).resolve().parents[2]

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


def run_dir(*parts: str) -> Path:
    """Return (and make) a folder that lasts until the next reboot."""
    return _made("run", "/run/labkit", parts)


def lib_dir(*parts: str) -> Path:
    """Return (and make) a folder that is kept."""
    return _made("lib", "/var/lib/labkit", parts)


def _made(short: str, default: str, parts: tuple[str, ...]) -> Path:
    root = os.environ.get("LABKIT_ROOT")
    where = (f"{root}/{short}" if root else _users_own(short) or default, *parts)
    path = _seen.get(where)
    if path is not None and os.path.isdir(path):
        return path
    home, path = Path(where[0]), Path(*where)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if home.parent == Path("/tmp") and (home.is_symlink() or home.stat().st_uid != os.getuid()):
            raise BadValue(f"{home} is somebody else's", "set XDG_RUNTIME_DIR to a folder of your own")
    except OSError as error:
        raise from_oserror(error, f"making {path}") from None
    _seen[where] = path
    return path


_seen: dict[tuple[str | Path, ...], Path] = {}  # folders that this process has made or looked at before


# The user id of an ordinary user who is root only in a user namespace: see rootless.
ROOTLESS = "LABKIT_ROOTLESS"


def _users_own(short: str) -> Path | None:
    """Return an ordinary user's folder, or None for root. See the XDG Base Directory Specification."""
    uid = os.environ.get(ROOTLESS) or os.geteuid()
    if int(uid) == 0:
        return None
    if short == "lib":
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share", "labkit")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime, "labkit") if runtime else Path(f"/tmp/labkit-{uid}")


def label() -> str:
    """Return the name that marks kernel objects as this state's: `labkit`, or `labkit-` and a hash of LABKIT_ROOT."""
    root = os.environ.get("LABKIT_ROOT")
    return _label(os.path.abspath(root)) if root else "labkit"


@functools.cache
def _label(root: str) -> str:
    return "labkit-" + hashlib.sha256(root.encode()).hexdigest()[:8]


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it can safely be a file name and a host name, else raise BadValue."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadValue(
            f"{what} {name!r} can't be used",
            "letters, digits, `_`, `.` and `-`, starting with a letter or digit, 128 at most",
        )
    return name


def new_id() -> str:
    """Return a fresh container id: 12 hexadecimal digits, as docker shows them."""
    return os.urandom(6).hex()


def write_atomic(path: str | Path, data: str | bytes, mode: int = 0o600, sync: bool = True) -> None:
    """Replace the file at `path` whole: readers see the old text or the new, never half.

    Written beside it, synced, then renamed over it; rename(2) is atomic. What need
    not outlive a power cut, only the death of processes, can spare the sync.
    """
    folder, name = os.path.split(path)
    if isinstance(data, str):
        data = data.encode()
    scratch = os.path.join(folder, f".{name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(fd, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(fd)
        os.rename(scratch, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # it was never made, or the disk is read-only
            os.unlink(scratch)
        raise from_oserror(error, f"writing {path}") from None


def write_json(path: str | Path, value: object, sync: bool = True) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_atomic(path, json.dumps(value, sort_keys=True) + "\n", sync=sync)


def read_json(path: str | Path) -> Any:
    """Return the JSON at `path`, or None if there is no such file."""
    try:
        with open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_oserror(error, f"reading {path}") from None
    except ValueError:
        raise BadValue(f"{path} is not JSON", "it is damaged: `lab clean` removes it") from None


@contextlib.contextmanager
def lock(name: str, shared: bool = False) -> Iterator[None]:
    """Hold the lock `name` until the block ends. See flock(2): it dies with its holder."""
    path = run_dir("locks") / name
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
