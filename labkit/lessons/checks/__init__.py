"""An exercise's check: it asks the kernel whether the thing is so, and never reads the answer's text.

    @exercise
    def outside_number(box, answer):
        yield isinstance(answer, int), "your answer is a number", "…", "…"
        yield box.pid == answer, "it is the number of …", "a hint", "a bigger hint"

A check is a generator of requirements: (holds, what is required, hint, bigger hint).
It is followed until the first that does not hold, so a later one may rely on the
earlier ones. The first failure shows the hint, every further one the bigger hint.
What comes back is a Result: true or false, and its repr is what to read. Tried in a
notebook, it counts for the participant's progress: see `lessons`.
"""

import functools

from labkit.ground.errors import LabError
from labkit.lessons import coursework

_failures: dict[str, int] = {}  # exercise: how often it was tried in vain


class Result:
    """What a check found: which requirements hold, and a hint for the first that does not."""

    def __init__(self, held, missing=None, hint=None):
        self.held = held
        self.missing = missing
        self.hint = hint

    @property
    def passed(self):
        """Whether all holds."""
        return self.missing is None

    def __bool__(self):
        return self.passed

    def __repr__(self):
        lines = [f"  right    {text}" for text in self.held]
        if self.passed:
            return "\n".join([*lines, "Done."])
        return "\n".join([*lines, f"  not yet  {self.missing}", f"Hint: {self.hint}"])


def exercise(check):
    """Make a generator of requirements into a check that returns a Result."""

    def tried(*arguments, **words):
        held = []
        try:
            for holds, text, *hints in check(*arguments, **words):
                if not holds:
                    return _failed(check, held, text, hints)
                held.append(text)
        except LabError as error:
            return _failed(check, held, error.message, [error.hint or "look at the message above"])
        _failures.pop(check, None)
        return Result(held)

    @functools.wraps(check)
    def checked(*arguments, **words):
        result = tried(*arguments, **words)
        if coursework.in_notebook():
            coursework.note(name, result.passed)
        return result

    name = checked.exercise = f"{check.__module__.rpartition('.')[2]}.{check.__name__}"
    return checked


def _failed(check, held, text, hints):
    tries = _failures[check] = _failures.get(check, 0) + 1
    return Result(held, text, hints[min(tries, len(hints)) - 1] if hints else "")
