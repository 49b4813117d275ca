"""How `lab doctor` tries things: a probe is one small function and a line on what is lost without it.

A probe does the thing itself, in a forked child whose namespaces go when it goes,
and returns a few words of detail. If it raises, the feature is not here, and the
error says why. The numbers in front of what is lost are the chapters'.
"""

import subprocess
from collections.abc import Callable

from labkit.ground import packages
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import Unsupported, from_oserror
from labkit.ground.typed import Any

PROBES: dict[str, "Probe"] = {}
PATIENCE = 20  # seconds for one command

Look = Callable[[], object]  # a few words of detail, or nothing


@dataclass(frozen=True)
class Probe:
    """A name, the function that tries it, and what is lost where it fails."""

    name: str
    kind: str
    lost: str
    vital: bool  # a lab without it is none: chapters 02, 04, 06 or 12 can't be done
    look: Look


def probe(name: str, kind: str, lost: str, vital: bool = False, look: Look | None = None) -> Any:
    """Register a probe: as a decorator, or with the function as `look`."""
    if look is None:
        return lambda function: probe(name, kind, lost, vital, function)
    PROBES[name] = Probe(name, kind, lost, vital, look)
    return look


def run(*command: str, **options: Any) -> str:
    """Run a command and return what it printed; what it complains of becomes the error."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            **options,
        )
    except FileNotFoundError:
        raise Unsupported(f"no command {command[0]} ({packages.advice(command[0])})") from None
    except OSError as error:
        raise from_oserror(error, f"running {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise Unsupported(f"{command[0]} does not answer") from None
    if done.returncode:
        raise Unsupported((done.stderr.strip() or f"{command[0]} ended with {done.returncode}").splitlines()[-1])
    return done.stdout.strip()
