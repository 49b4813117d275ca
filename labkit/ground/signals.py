"""Signals by the names and numbers that people give them: TERM, sigterm, 15, SIGRTMIN+3. See signal(7)."""

import re
import signal

from labkit.ground.errors import BadValue

_REAL_TIME = {"RTMIN": signal.SIGRTMIN, "RTMAX": signal.SIGRTMAX}


def number(word: str) -> int:
    """Return the number of a signal. Raises BadValue for what is none."""
    name = word.strip().upper().removeprefix("SIG")
    found = 0
    if re.fullmatch(r"[0-9]{1,3}", name):
        found = int(name)
    elif match := re.fullmatch(r"(RTMIN|RTMAX)([+-][0-9]{1,2})?", name, re.ASCII):
        found = _REAL_TIME[match[1]] + int(match[2] or 0)
        found = found if signal.SIGRTMIN <= found <= signal.SIGRTMAX else 0
    elif f"SIG{name}" in signal.Signals.__members__:
        found = signal.Signals[f"SIG{name}"]
    if not 0 < found <= signal.SIGRTMAX:
        raise BadValue(f"there is no signal {word!r}", "signal(7) lists them; SIGRTMIN+n is one too")
    return int(found)


class Interrupted(BaseException):
    """A signal that ends what this process does. No Exception: nobody takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number
