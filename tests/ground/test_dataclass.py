"""labkit's data classes are the standard library's, class by class; only what they cost is another."""

import copy
import dataclasses
import pickle
import subprocess
import sys
import typing
from typing import Any, ClassVar

import pytest

from labkit.ground import dataclass as ours
from labkit.ground import state, typed


def classes(of):
    """Return the same classes, made by the one module or the other."""

    @of.dataclass(frozen=True)
    class Point:
        kind: ClassVar[str] = "point"
        x: int
        y: Any = None
        seen: str = of.field(default="", compare=False)
        names: dict = of.field(default_factory=dict, hash=False)

        def __post_init__(self):
            if self.x == 13:
                raise LookupError

    @of.dataclass(frozen=True)
    class Far(Point):
        y: int = 7
        z: tuple = ()

    @of.dataclass
    class Loose:
        """One that can change."""

        values: list = of.field(default_factory=list)

        def __repr__(self):
            return "loose"

    return Point, Far, Loose


USES = {
    "defaults": lambda Point, Far, Loose: [
        vars(one) for one in (Point(1), Point(1, 2, names={3: 4}), Far(x=5), Loose())
    ],
    "the order": lambda Point, Far, Loose: [list(vars(one)) for one in (Point(y=1, x=2), Far(z=1, x=2))],
    "nothing given": lambda Point, Far, Loose: Point(),
    "too many": lambda Point, Far, Loose: Point(1, 2, "", {}, 5),
    "an unknown name": lambda Point, Far, Loose: Point(1, w=2),
    "given twice": lambda Point, Far, Loose: Point(1, x=2),
    "refused by itself": lambda Point, Far, Loose: Point(13),
    "shown": lambda Point, Far, Loose: [repr(one) for one in (Point(1, "a"), Far(1, z=(2,)), Loose())],
    "equal": lambda Point, Far, Loose: [Point(1) == Point(1, seen="!"), Point(1) == Point(2), Point(1) == Far(1, None)],
    "its hash": lambda Point, Far, Loose: hash(Point(1, seen="!", names={2: 3})) == hash(Point(1)),
    "no hash": lambda Point, Far, Loose: hash(Loose()),
    "set": lambda Point, Far, Loose: setattr(Point(1), "x", 2),
    "set, new": lambda Point, Far, Loose: setattr(Point(1), "w", 2),
    "taken away": lambda Point, Far, Loose: delattr(Far(1), "x"),
    "set, loose": lambda Point, Far, Loose: setattr(Loose(), "values", 2),
    "of the class": lambda Point, Far, Loose: [Far.y, Point.kind, Point.seen, Far.__match_args__],
    "none of the class": lambda Point, Far, Loose: Point.names,
    "each its own": lambda Point, Far, Loose: Loose().values is Loose().values,
    "copied": lambda Point, Far, Loose: copy.deepcopy(Far(1, names={"a": 2})) == Far(1, names={"a": 2}),
}
OF = {
    "fields": lambda of, Far: [(one.name, one.type) for one in (*of.fields(Far), *of.fields(Far(1)))],
    "replaced": lambda of, Far: vars(of.replace(Far(1), z=(2,))),
    "replaced, unknown": lambda of, Far: of.replace(Far(1), w=2),
    "as a dict": lambda of, Far: of.asdict(Far(1, 2, names={"a": [Far(3)]}, z=(Far(4), None))),
    "a grandchild": lambda of, Far: vars(of.dataclass(frozen=True)(type("Farther", (Far,), {}))(1)),
    "a shared default": lambda of, Far: of.dataclass(type("Bad", (), {"__annotations__": {"x": list}, "x": []})),
}


def outcome(use, *words):
    """Return what it gives, or which kind of error."""
    try:
        return use(*words)
    except Exception as error:
        return type(error).__mro__[-4:]  # FrozenInstanceError is an AttributeError


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_data_class_is_as_the_standard_librarys(use):
    assert outcome(use, *classes(ours)) == outcome(use, *classes(dataclasses))


@pytest.mark.parametrize("use", OF.values(), ids=OF)
def test_what_is_done_with_a_data_class_too(use):
    assert outcome(use, ours, classes(ours)[1]) == outcome(use, dataclasses, classes(dataclasses)[1])


def test_one_goes_through_a_pipe():
    from labkit.container.spec import Spec

    spec = Spec.make("busybox", "true", memory="8m")
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_no_command_loads_the_standard_librarys():
    words = "import sys, labkit.oci.commands, labkit.container.life, labkit.app.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True).stdout.split()
    assert "labkit.ground.dataclass" in loaded and not {"dataclasses", "inspect"} & set(loaded)


def test_what_stands_for_a_type_is_called_as_the_librarys():
    ours = {name for name in vars(typed) if not name.startswith("_")}
    assert ours and ours <= set(vars(typing))
    assert typed.Any | None and typed.IO[bytes] | None and dict[str, typed.Any], "said in an annotation"
    assert typed.cast(int, "x") == "x"


def test_no_module_mixes_the_two():
    """`replace` and `fields` of the one know nothing of a class of the other."""
    texts = {path: path.read_text() for path in (state.REPO / "labkit").rglob("*.py")}
    assert [
        path for path, text in texts.items() if "\nfrom dataclasses" in text or "\nimport dataclasses" in text
    ] == []
