"""Programs of somebody else, run at fixed moments of a container's life.

Docker's network comes into a container by one: dockerd names itself as the prestart
hook, is told the container's pid, and moves a veth into that pid's network namespace.

    prestart, createRuntime    namespaces and mounts are there; run on the host
    createContainer            the same moment; in the container's namespaces, before pivot_root
    startContainer             `start` was said; in the container, before its program
    poststart                  the program runs; on the host
    poststop                   the container is deleted; on the host

Each reads the container's state, as JSON, on its standard input. One that fails
before the program runs ends the container; one after it is only reported.
See the runtime specification, "POSIX-platform Hooks".
"""

import json
import os
import subprocess
from dataclasses import dataclass

from labkit.ground.errors import BadValue, LabError, from_oserror

ON_CREATE = ("prestart", "createRuntime")
IN_CONTAINER = ("createContainer", "startContainer")
NAMES = (*ON_CREATE, *IN_CONTAINER, "poststart", "poststop")


@dataclass(frozen=True)
class Hook:
    """One program: its file, its arguments (with its own name first), its whole environment, seconds it may take."""

    when: str
    path: str
    args: tuple = ()
    env: tuple = ()
    timeout: int | None = None


def read(words):
    """Return the Hooks in a config's `hooks`, in their order. Raises BadValue, and names the hook."""
    found = []
    for when, entries in (words or {}).items():
        if when not in NAMES:
            raise BadValue(f"hooks.{when} is no hook", "there are: " + ", ".join(NAMES))
        for entry in entries or ():
            path, timeout = entry.get("path"), entry.get("timeout")
            if not isinstance(path, str) or not path.startswith("/"):
                raise BadValue(f"hooks.{when}: path {path!r} must be absolute")
            if timeout is not None and (not isinstance(timeout, int) or timeout <= 0):
                raise BadValue(f"hooks.{when}: timeout {timeout!r} must be a number of seconds above 0")
            found.append(Hook(when, path, tuple(entry.get("args") or ()), tuple(entry.get("env") or ()), timeout))
    return tuple(found)


def run(hooks, moments, state):
    """Run the hooks of these moments, one after the other; `state` goes to each. Raises LabError for one that fails."""
    for when in moments:
        for hook in hooks:
            if hook.when == when:
                _run(hook, state)


def _run(hook, state):
    try:
        done = subprocess.run(
            [*(hook.args or (hook.path,))],
            executable=hook.path,
            env=dict(pair.partition("=")[::2] for pair in hook.env),
            input=json.dumps(state).encode(),
            capture_output=True,
            timeout=hook.timeout,
            cwd=state["bundle"] if os.path.isdir(state["bundle"]) else "/",
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"the {hook.when} hook {hook.path} took more than {hook.timeout} s and was killed") from None
    except OSError as error:
        raise from_oserror(error, f"running the {hook.when} hook {hook.path}") from None
    if done.returncode:
        raise LabError(
            f"the {hook.when} hook {hook.path} failed with status {done.returncode}: "
            + (done.stderr or done.stdout).decode(errors="replace").strip()[-500:]
        )
