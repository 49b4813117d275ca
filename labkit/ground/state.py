"""Where labkit keeps things on disk, so that a crash at any moment leaves them readable.

Two places, as the Filesystem Hierarchy Standard has them:

    /run/labkit       containers, ledger, locks: true until the next reboot
    /var/lib/labkit   images, layers, volumes, writable layers: kept

`LABKIT_ROOT=/some/folder` puts both below that folder (`run/`, `lib/`), so tests
and a second user never share them. Three tools keep them sound: a file is
replaced whole or not at all, a name is taken by one process only, and a lock is
the kernel's, so it is gone with the process that held it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator

from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, Damaged, from_oserror
from labkit.ground.later import Later
from labkit.ground.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

fcntl, pathlib, zlib = Later("fcntl"), Later("pathlib"), Later("zlib")  # `start` does without

if TYPE_CHECKING:
    REPO: Path  # the clone that this is: labkit lies in it, beside notebooks, vagrant and tests
else:

    def __getattr__(name):
        if name != "REPO":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return pathlib.Path(__file__).resolve().parents[2]


_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


def run_dir(*parts: str) -> Path:
    """Return (and make) a folder that lasts until the next reboot."""
    return _made("run", "/run/labkit", parts)


def lib_dir(*parts: str) -> Path:
    """Return (and make) a folder that is kept."""
    return _made("lib", "/var/lib/labkit", parts)


def place(*parts: str) -> str:
    """Return where such a folder in `run_dir` is, or would be."""
    return "/".join((_top("run", "/run/labkit"), *parts))


def _top(short: str, default: str) -> str:
    root = os.environ.get("LABKIT_ROOT")
    return f"{root}/{short}" if root else _users_own(short) or default


def _made(short: str, default: str, parts: tuple[str, ...]) -> Path:
    where = (_top(short, default), *parts)
    path = _seen.get(where)
    if path is not None and os.path.isdir(path):
        return path
    home: Path = pathlib.Path(where[0])
    path = home.joinpath(*where[1:])
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if str(home.parent) == "/tmp" and (home.is_symlink() or home.stat().st_uid != os.getuid()):
            raise BadValue(f"{home} is somebody else's", "set XDG_RUNTIME_DIR to a folder of your own")
    except OSError as error:
        raise from_oserror(error, f"making {path}") from None
    _seen[where] = path
    return path


_seen: dict[tuple[str, ...], Path] = {}  # folders that this process has made or looked at before


# The user id of an ordinary user who is root only in a user namespace: see rootless.
ROOTLESS = "LABKIT_ROOTLESS"


def _users_own(short: str) -> str | None:
    """Return an ordinary user's folder, or None for root. See the XDG Base Directory Specification."""
    uid, runtime = os.environ.get(ROOTLESS) or os.geteuid(), os.environ.get("XDG_RUNTIME_DIR")
    # Root of a user namespace, as Podman makes one for a user, may be no more than that user.
    if int(uid) == 0 and (not runtime or os.access("/run", os.W_OK)):
        return None
    if short == "lib":
        return f"{os.environ.get('XDG_DATA_HOME') or os.path.expanduser('~/.local/share')}/labkit"
    return f"{runtime}/labkit" if runtime else f"/tmp/labkit-{uid}"


def label() -> str:
    """Return the name that marks kernel objects as this state's: `labkit`, or `labkit-` and a hash of LABKIT_ROOT."""
    root = os.environ.get("LABKIT_ROOT")
    return _label(os.path.abspath(root)) if root else "labkit"


@functools.cache
def _label(root: str) -> str:
    return f"labkit-{zlib.crc32(os.fsencode(root)):08x}"


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


@dataclass(frozen=True)
class Kind:
    """A kind of file of state: where such files are, and what is in them if nobody damaged them.

    A shape is a type, several (`int | None`), a pattern for a text, [shape] for a list,
    {str: shape} for an object of such, {"key": shape, …} for one that has these keys.
    """

    place: str  # below the root, a glob
    shape: Any
    json: bool = True  # else a text; with shape None any ordinary file


KINDS: list[Kind] = []


def kind(place: str, shape: Any, json: bool = True) -> Kind:
    """Return the Kind of what a module writes; `lab clean` looks through every one of them."""
    KINDS.append(Kind(place, shape, json))
    return KINDS[-1]


LOCK = kind("run/locks/*", None, json=False)


def read(path: str | os.PathLike[str], kind: Kind) -> Any:
    """Return what is in a file of state, None if there is none. Raises Damaged if it is not one of its kind."""
    if kind.json:
        return read_json(path, kind.shape)
    data = read_plain(path, -1 if kind.shape else 0)
    if data is None or kind.shape is None:
        return data
    text = data.decode(errors="replace")
    if wrong := _misfit(text, kind.shape):
        raise Damaged(path, wrong)
    return text


def read_json(path: str | os.PathLike[str], shape: Any = object) -> Any:
    """Return the JSON at `path`, None if there is no such file. Raises Damaged if it has not that shape."""
    data = read_plain(path)
    if data is None:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise Damaged(path, "it is not JSON" if data else "it is empty") from None
    if wrong := _misfit(value, shape):
        raise Damaged(path, wrong)
    return value


def read_plain(path: str | os.PathLike[str], most: int = -1) -> bytes | None:
    """Return the bytes of an ordinary file, None if there is none. Raises Damaged for a folder, a pipe, a device."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                with open(fd, "rb", closefd=False) as file:
                    return file.read(most)
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ELOOP):  # a socket, a link to itself
            raise from_oserror(error, f"reading {path}") from None
    raise Damaged(path, "it is no ordinary file")


def _misfit(value: object, shape: Any) -> str:
    """Return what is wrong with a value, an empty text if it fits the shape."""
    if isinstance(shape, re.Pattern):
        return "" if isinstance(value, str) and shape.fullmatch(value) else f"it has {str(value)[:60]!r}"
    if isinstance(shape, list):
        parts = value if isinstance(value, list) else [None]
        return next(filter(None, (_misfit(part, shape[0]) for part in parts)), "")
    if not isinstance(shape, dict):
        return "" if isinstance(value, shape) else f"it has {str(value)[:60]!r}"
    if not isinstance(value, dict):
        return f"it holds {str(value)[:60]!r} and no object"
    if str in shape:
        return next(filter(None, (_misfit(part, shape[str]) for part in value.values())), "")
    for key, wanted in shape.items():
        if key not in value or (wrong := _misfit(value[key], wanted)):
            return f"{key!r}: {wrong}" if key in value else f"it has no {key!r}"
    return ""


def damaged(elsewhere: Iterable[tuple[Path, Kind]] = ()) -> list[Damaged]:
    """Return what is wrong with each file of state that is damaged, those of every module that is loaded."""
    found = []
    for path, kind in itertools.chain(_places(), elsewhere):
        try:
            read(path, kind)
        except Damaged as error:
            found.append(error)
    return found


def _places() -> Iterator[tuple[Path, Kind]]:
    for kind in KINDS:
        top, _, pattern = kind.place.partition("/")
        for path in sorted((run_dir() if top == "run" else lib_dir()).glob(pattern)):
            if not path.name.endswith(".tmp"):  # that is just being written
                yield path, kind


def set_aside(error: Damaged) -> str:
    """Put a damaged file where nobody reads it, and return where; what it was can still be looked at."""
    tops = [folder for folder in (run_dir(), lib_dir()) if error.path.startswith(f"{folder}/")]
    top = tops[0] if tops else pathlib.Path(error.path).parent
    aside = top / "damaged" / f"{os.path.relpath(error.path, top).replace('/', '-')}.{new_id()}"
    try:
        aside.parent.mkdir(mode=0o700, exist_ok=True)
        os.rename(error.path, aside)
    except OSError as refusal:
        raise from_oserror(refusal, f"setting aside {error.path}") from None
    return str(aside)


@contextlib.contextmanager
def lock(name: str, shared: bool = False) -> Iterator[None]:
    """Hold the lock `name` until the block ends. See flock(2): it dies with its holder."""
    path = run_dir("locks") / name
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except IsADirectoryError:
        raise Damaged(path, "it is no ordinary file") from None
    except OSError as error:
        raise from_oserror(error, f"locking {path}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
