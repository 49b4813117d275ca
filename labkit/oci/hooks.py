"""Programs of somebody else, run at fixed moments of a container's life.

Docker's network comes into a container by one: dockerd names itself as the prestart
hook, is told the container's pid, and moves a veth into that pid's network namespace.

    prestart, createRuntime    namespaces and mounts are there; run on the host
    createContainer            the same moment; in the container's namespaces and root, before pivot_root
    startContainer             `start` was said; in the container, before its program
    poststart                  the program runs; on the host
    poststop                   the container is deleted; on the host

Each reads the container's state, as JSON, on its standard input. One that fails
ends the container, poststart's too; poststop's is only reported. One that brings no
environment has its caller's: the runtime's own, or inside the program's.
See the runtime specification, "POSIX-platform Hooks".
"""

import json
import os
import signal
from collections.abc import Callable, Iterable

from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, LabError, from_oserror
from labkit.ground.later import Later
from labkit.ground.typed import Any

subprocess = Later("subprocess")

ON_CREATE = ("prestart", "createRuntime")
IN_CONTAINER = ("createContainer", "startContainer")
NAMES = (*ON_CREATE, *IN_CONTAINER, "poststart", "poststop")


@dataclass(frozen=True)
class Hook:
    """One program: its file, its arguments (with its own name first), its whole environment, seconds it may take.

    `number` is its place among those of its moment.
    """

    when: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] | None = None
    timeout: int | None = None
    number: int = 0


def read(words: dict[str, Any] | None) -> tuple[Hook, ...]:
    """Return the Hooks in a config's `hooks`, in their order. Raises BadValue, and names the hook."""
    found = []
    for when, entries in (words or {}).items():
        if when not in NAMES:
            raise BadValue(f"hooks.{when} is no hook", "there are: " + ", ".join(NAMES))
        for number, entry in enumerate(entries or ()):
            path, timeout = entry.get("path"), entry.get("timeout")
            if not isinstance(path, str) or not path.startswith("/"):
                raise BadValue(f"hooks.{when}: path {path!r} must be absolute")
            if timeout is not None and (not isinstance(timeout, int) or timeout <= 0):
                raise BadValue(f"hooks.{when}: timeout {timeout!r} must be a number of seconds above 0")
            env = None if entry.get("env") is None else tuple(entry["env"])
            found.append(Hook(when, path, tuple(entry.get("args") or ()), env, timeout, number))
    if found:  # most have none; and in the container there is no file to load it from
        subprocess.run  # noqa: B018
    return tuple(found)


def run(
    hooks: Iterable[Hook],
    moments: Iterable[str],
    state: dict[str, Any],
    env: dict[str, str] | None = None,
    lock: Callable[[], object] | None = None,
) -> None:
    """Run the hooks of these moments, one after the other; `state` goes to each. Raises LabError for one that fails.

    `env` is that of a hook without one of its own; None: this process's. `lock` is what
    its process does to itself before it executes the hook.
    """
    for when in moments:
        for hook in hooks:
            if hook.when == when:
                _run(hook, state, env, lock)


def _run(
    hook: Hook, state: dict[str, Any], env: dict[str, str] | None, lock: Callable[[], object] | None = None
) -> None:
    what = f"error running {hook.when} hook #{hook.number}: {hook.when} hook"  # as runc says it
    place = state["rootfs" if hook.when == "createContainer" else "bundle"]
    try:
        done = subprocess.run(
            [*(hook.args or (hook.path,))],
            executable=hook.path,
            env=env if hook.env is None else dict(pair.partition("=")[::2] for pair in hook.env),
            input=json.dumps(state).encode(),
            capture_output=True,
            timeout=hook.timeout,
            cwd=place if os.path.isdir(place) else "/",
            preexec_fn=lock,  # this process has one thread
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{what} {hook.path} took more than {hook.timeout} s and was killed") from None
    except subprocess.SubprocessError as error:
        raise LabError(f"{what} {hook.path}: {error}") from None
    except OSError as error:
        raise from_oserror(error, f"{what} {hook.path}") from None
    if done.returncode:
        number = done.returncode
        how = f"exit code {number}" if number > 0 else f"signal: {(signal.strsignal(-number) or str(-number)).lower()}"
        raise LabError(
            f"{what} failed with {how}: {hook.path}: "
            + (done.stderr or done.stdout).decode(errors="replace").strip()[-500:]
        )
