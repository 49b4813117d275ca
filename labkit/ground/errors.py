"""What a participant reads when something fails.

    LabError                a failure labkit understands        exit status 125
     ├─ KernelError         the kernel said no: carries the errno
     ├─ BadValue            a limit, name, path or flag that can't be meant
     │   └─ Damaged         a file of the lab's own that is not as the lab wrote it
     ├─ NotFound            no such image, container, file
     ├─ InUse               a name is taken, a layer is in use
     ├─ Unsupported         this kernel or machine has no such thing, by name
     ├─ BadArchive          a layer or image that is broken or hostile
     └─ CommandError        the container was built, its command did not start
                            exit status 126 (can't be executed) or 127 (not found)

Every message says what failed, on which path, the errno's name, and what to do
about it. `str(error)` is that message; nothing else needs to be printed.
"""

import errno as _errno
import os

from labkit.ground.typed import Any


def errno_name(number: int) -> str:
    """Name an errno, with the C library's sentence: `EBUSY (Device or resource busy)`."""
    return f"{_errno.errorcode.get(number, number)} ({os.strerror(number)})"


class LabError(Exception):
    """A failure labkit understands. `hint` is what to do about it."""

    exit_status = 125

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross a pipe from child to parent: rebuild without calling __init__
        # again, whose arguments differ from kind to kind.
        return _rebuild, (type(self), self.args, self.__dict__)

    def _render_traceback_(self) -> list[str]:
        # IPython calls this instead of printing a traceback. A LabError's message
        # is written to be read alone; the frames above it would only hide it.
        return [f"{type(self).__name__}: {self}"]


def _rebuild(kind: type["LabError"], args: tuple[object, ...], attributes: dict[str, Any]) -> "LabError":
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


def to_plain(error: LabError) -> dict[str, object]:
    """Return a LabError as texts and numbers, to be sent where a pickle must not be trusted."""
    kept = {key: value for key, value in error.__dict__.items() if isinstance(value, str | int | None)}
    return {"kind": type(error).__name__, "attributes": kept}


def from_plain(plain: Any) -> LabError:
    """Return the LabError that `to_plain` made this of; whatever else it is, it becomes a LabError that says so."""
    try:
        kind, attributes = globals()[plain["kind"]], dict(plain["attributes"])
        if not (issubclass(kind, LabError) and isinstance(attributes["message"], str)):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        return LabError(f"a message that can't be read: {str(plain)[:200]!r}")
    return _rebuild(kind, (attributes["message"],), attributes)


# What an errno usually means where labkit meets it. A caller with a better
# sentence passes its own hint.
_HINTS = {
    _errno.EPERM: "this needs root (CAP_SYS_ADMIN): run it with sudo, or in the lab's VM",
    _errno.EACCES: "check the permissions of every folder on that path",
    _errno.ENOSYS: "this kernel does not have that syscall: `lab doctor` names what is lost",
    _errno.ENOSPC: "no space (or no more namespaces, cgroups or watches) left: `lab clean`, then `df -h`",
    _errno.EBUSY: "something still uses it: `lab ps`, then `lab clean`",
    _errno.EMFILE: "too many open files in this process: restart the kernel",
    _errno.EROFS: "that is mounted read-only",
}


class KernelError(LabError):
    """The kernel refused. `errno` is its reason, `call` the syscall or the file written."""

    def __init__(self, call: str, errno: int | None, on: object = None, hint: str | None = None) -> None:
        errno = errno or 0  # an OSError may have none
        what = f"{call} failed" + (f" on {on}" if on else "")
        super().__init__(f"{what}: {errno_name(errno)}", hint or _HINTS.get(errno))
        self.call = call
        self.errno = errno
        self.on = on


class BadValue(LabError):
    """A value that can't be meant: nothing was changed."""


class Damaged(BadValue):
    """A file of the lab's own that holds something else than the lab wrote. `path` is the file's."""

    def __init__(self, path: object, why: str) -> None:
        super().__init__(f"{path} is damaged: {why}", "`lab clean` sets it aside, kept under another name; then again")
        self.path = str(path)


class NotFound(LabError):
    """No such image, container, volume or file."""


class InUse(LabError):
    """A name that is taken, or a thing that something still uses."""


class Unsupported(LabError):
    """This kernel or machine lacks something; the message names it and what is lost."""


class BadArchive(LabError):
    """A layer or image that is broken or hostile: refused, nothing was kept."""


class CommandError(LabError):
    """The container was built but its command did not start."""

    def __init__(self, command: str, errno: int) -> None:
        not_found = errno in (_errno.ENOENT, _errno.ENOTDIR)
        hint = (
            "it must be an executable file for this machine's processor, "
            "and the interpreter its first line names must be in the image"
        )
        if not_found:
            hint = "no such file on the container's PATH: `lab run IMAGE ls /bin` shows what there is"
        if errno == _errno.E2BIG:
            hint = 'a word of more than 128 KiB, or more in all than the stack has room for: see execve(2), "Limits"'
        super().__init__(f"exec of {command!r:.200} in the container failed: {errno_name(errno)}", hint)
        self.errno = errno
        self.command = command
        self.exit_status = 127 if not_found else 126


def from_oserror(error: OSError, doing: str, hint: str | None = None) -> KernelError:
    """Turn an OSError into a KernelError that says what was being done."""
    return KernelError(doing, error.errno, error.filename, hint)
