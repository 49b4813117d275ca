"""`typing`, without what it costs.

To a type checker it is that. To Python the names in an annotation only have to be
there: nobody asks them anything at run time. The library's module takes as long to load
as all that `start` does, and each command is a process of its own.

What is here means what it means in `typing`. What labkit's commands do not use is not here.
"""

TYPE_CHECKING = False  # a checker takes it for True, whatever it says: that is its meaning

if TYPE_CHECKING:
    from typing import IO as IO
    from typing import Any as Any
    from typing import BinaryIO as BinaryIO
    from typing import ClassVar as ClassVar
    from typing import Generic as Generic
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import Self as Self
    from typing import TypedDict as TypedDict
    from typing import TypeVar as TypeVar
    from typing import cast as cast
else:

    class Any:
        """A name that can be said in an annotation, with `[…]` and `|` too."""

        def __class_getitem__(cls, _):
            return cls

    class BinaryIO(Any):
        """A file of bytes."""

    class IO(Any):
        """A file."""

    class ClassVar(Any):
        """Of the class, not of each instance: `dataclass` looks for it."""

    class Generic(Any):
        """A class that names a type of its own."""

    class NoReturn(Any):
        """It raises, or ends the process."""

    class Protocol(Any):
        """Whatever has these methods."""

    class Self(Any):
        """The class that it is called on."""

    class TypedDict(dict):
        """A dict that has these keys."""

    class TypeVar:
        """One type, the same wherever the name stands."""

        def __init__(self, name, bound=None):
            self.name, self.bound = name, bound

    def cast(_, value):
        """Return the value: only a checker takes it for something else."""
        return value
