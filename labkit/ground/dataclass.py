"""`dataclasses`, without what they cost.

The standard library's decorator writes the source of each class's methods and compiles
it, and imports what reads sources (inspect, ast, dis). labkit has more than a hundred
such classes, and a command of it lives for a tenth of a second: half of that went
there. Here the methods are written once, for all classes, and ask the class for its
fields.

What is here means what it means in `dataclasses`, and to a type checker it is that.
What labkit does not use is not here.
"""

from labkit.ground.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import asdict as asdict
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import fields as fields
    from dataclasses import replace as replace
else:
    _NONE = object()  # no default: None may be one

    class field:
        """What is said of a field beyond its name and type."""

        def __init__(self, *, default=_NONE, default_factory=None, hash=True, compare=True):
            self.default, self.default_factory = default, default_factory
            self.compare, self.hash = compare, compare and hash

    def dataclass(cls=None, *, frozen=False):
        """Make the annotated names of a class its fields. A frozen one's can't be set, and it has a hash."""
        if cls is None:
            return lambda cls: dataclass(cls, frozen=frozen)
        known = {name: one for base in cls.__mro__[:0:-1] for name, one in vars(base).get("__fields__", {}).items()}
        for name, kind in cls.__annotations__.items():
            if "ClassVar" not in repr(kind):  # the library's or our own
                said = vars(cls).get(name, _NONE)
                known[name] = one = said if isinstance(said, field) else field(default=said)
                if one.default.__hash__ is None:
                    raise ValueError(f"{cls.__name__}.{name}: all would share this one: default_factory")
                one.name, one.type = name, kind
                if one is said:
                    delattr(cls, name) if one.default is _NONE else setattr(cls, name, one.default)
        cls.__fields__, cls.__match_args__ = known, tuple(known)
        for name, method in (_METHODS | (_FROZEN if frozen else {})).items():
            if name not in vars(cls):
                setattr(cls, name, method)
        return cls

    def fields(one):
        """Return the fields of a data class, or of one of its instances."""
        return tuple(one.__fields__.values())

    def replace(one, /, **changes):
        """Return another like it but for the changes."""
        return type(one)(**{name: getattr(one, name) for name in one.__fields__} | changes)

    def asdict(one):
        """Return its fields as a dict, those of data classes in it too."""
        if hasattr(one, "__fields__"):
            return {name: asdict(getattr(one, name)) for name in one.__fields__}
        if isinstance(one, dict):
            return {name: asdict(value) for name, value in one.items()}
        return type(one)(map(asdict, one)) if isinstance(one, list | tuple) else one

    # ---- what each class gets ----

    def _init(self, /, *values, **named):
        known = self.__fields__
        given = dict(zip(known, values, strict=False)) | named
        if len(given) < len(values) + len(named) or not given.keys() <= known.keys():
            raise TypeError(f"{type(self).__name__} is made of {', '.join(known)}, each once: not of {values}, {named}")
        state = vars(self)  # past a __setattr__ that refuses
        for name, one in known.items():
            if name in given:
                state[name] = given[name]
            elif one.default_factory:
                state[name] = one.default_factory()
            elif one.default is not _NONE:
                state[name] = one.default
            else:
                raise TypeError(f"{type(self).__name__} needs {name!r}")
        if hasattr(self, "__post_init__"):
            self.__post_init__()

    def _repr(self):
        told = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__fields__)
        return f"{type(self).__qualname__}({told})"

    def _eq(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name, one in self.__fields__.items() if one.compare)

    def _hash(self):
        return hash(tuple(getattr(self, name) for name, one in self.__fields__.items() if one.hash))

    def _setattr(self, name, value):
        raise AttributeError(f"{type(self).__name__} is frozen: replace() gives another one, with another {name!r}")

    def _delattr(self, name):
        _setattr(self, name, None)

    _METHODS = {"__init__": _init, "__repr__": _repr, "__eq__": _eq, "__hash__": None}
    _FROZEN = {"__hash__": _hash, "__setattr__": _setattr, "__delattr__": _delattr}
