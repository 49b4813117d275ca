"""What goes to another program through its unix socket: an fd, with a word beside it.

    the terminal's master side    to who will read it         --console-socket
    the seccomp listener          to who answers syscalls     linux.seccomp.listenerPath
    a pidfd of the process        to who watches over it      --pidfd-socket

See SCM_RIGHTS in unix(7), seccomp_unotify(2).
"""

import json
import os
import socket

from labkit.ground.errors import LabError, from_oserror
from labkit.ground.typed import Any


def terminal(path: str, fd: int) -> None:
    """Send a terminal's master side, and close it here. Raises KernelError."""
    try:
        _send(path, b"/dev/pts/0", fd)
    except OSError as error:
        raise from_oserror(error, f"sending the terminal to {path}") from None
    os.close(fd)


def listener(seccomp: dict[str, Any], state: dict[str, Any], pid: int, fd: int) -> None:
    """Send a seccomp listener of the process `pid` to who `linux.seccomp` names. Raises LabError.

    See ContainerProcessState in the runtime specification, config-linux.md.
    """
    path = seccomp["listenerPath"]
    words = {"ociVersion": state["ociVersion"], "fds": ["seccompFd"], "pid": pid}
    words |= {"metadata": seccomp.get("listenerMetadata") or "", "state": state}
    try:
        _send(path, json.dumps(words).encode(), fd)
    except OSError as error:
        raise LabError(
            f"linux.seccomp.listenerPath {path}: failed to connect with seccomp agent: {error.strerror}",
            "it listens before the container is made",
        ) from None


def pidfd(path: str, fd: int) -> None:
    """Send a process's pidfd: its number may be another's one day, this never. Raises KernelError."""
    try:
        _send(path, b"pidfd", fd)
    except OSError as error:
        raise from_oserror(error, f"sending the pidfd to {path}") from None


def _send(path: str, words: bytes, fd: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.connect(path)
        socket.send_fds(door, [words], [fd])
