"""Chapter 09's checks take right work and refuse wrong work; its picture draws a shared layer once."""

import hashlib

import pytest

from labkit.build import builder
from labkit.lessons.checks import images as check
from labkit.lessons.figures import storage as drawn

NOTE = b"whoever has my name has me"
NAME = hashlib.sha256(NOTE).hexdigest()


def test_stored_by_name_takes_the_bytes_under_their_hash(tmp_path):
    (tmp_path / NAME).write_bytes(NOTE)
    assert check.stored_by_name(tmp_path, NOTE)


@pytest.mark.parametrize(
    "name, data",
    [
        (NAME, NOTE + b"\n"),
        ("note", NOTE),
        (f"sha256:{NAME}", NOTE),
        (hashlib.sha1(NOTE).hexdigest(), NOTE),
        (hashlib.sha256(b"other").hexdigest(), NOTE),
    ],
)
def test_stored_by_name_refuses_other_names_and_other_bytes(tmp_path, name, data):
    assert not check.stored_by_name(tmp_path, NOTE)  # nothing there
    (tmp_path / name).write_bytes(data)
    assert not check.stored_by_name(tmp_path, NOTE)


def test_stored_by_name_refuses_a_second_blob_that_lies(tmp_path):
    (tmp_path / NAME).write_bytes(NOTE)
    (tmp_path / ("0" * 64)).write_bytes(NOTE)
    assert not check.stored_by_name(tmp_path, NOTE)


@pytest.fixture
def made(tmp_path, needs_root):
    """Return a function that builds an image of a Dockerfile's lines, beside a `program` of these contents."""

    def made(name, *lines, program="first"):
        (tmp_path / "program").write_text(program)
        (tmp_path / "Dockerfile").write_text("\n".join(["FROM busybox", *lines]))
        return builder.build(tmp_path, name, say=lambda line: None)

    return made


WASTE = "dd if=/dev/urandom of=/big bs=1M count=1 2>/dev/null"
SUM = "sha256sum /big > /result"


def light(name="checks:light"):
    return check.without_ballast(name, kept="/result", ballast="/big", limit=100 << 10)


def test_without_ballast_takes_one_run(made):
    made("checks:light", f"RUN {WASTE} && {SUM} && rm /big")
    assert light()


@pytest.mark.parametrize(
    "lines",
    [
        [f"RUN {WASTE}", f"RUN {SUM}", "RUN rm /big"],
        [f"RUN {WASTE} && {SUM}"],
        [f"RUN {WASTE} && rm /big"],
        ["RUN echo done > /result"],
        [f"RUN {WASTE} && {SUM} && mv /big /bigger"],
    ],
)
def test_without_ballast_refuses_what_is_still_there_or_not_done(made, lines):
    made("checks:heavy", *lines)
    assert not light("checks:heavy")
    assert not light("checks:nothing-of-this-name")


SLOW = "RUN date +%N > /slow"


def twice(made, *lines, program=("first", "second")):
    for name, text in zip(("before", "after"), program, strict=True):
        made(f"checks:{name}", *lines, program=text)
    return check.remembered("checks:before", "checks:after", source="/program", made="/slow")


def test_remembered_takes_the_program_last(made):
    assert twice(made, SLOW, "COPY program /program")


@pytest.mark.parametrize(
    "lines",
    [
        ["COPY program /program", SLOW],
        ["COPY program /program"],
        [SLOW],
        ["COPY program /program", SLOW, "COPY program /program"],
    ],
)
def test_remembered_refuses_other_orders(made, lines):
    assert not twice(made, *lines)


def test_remembered_refuses_a_program_that_did_not_change(made):
    assert not twice(made, SLOW, "COPY program /program", program=("same", "same"))


def test_picture_draws_a_shared_layer_once_and_others_each():
    base, one, two = ("sha256:aa", "base"), ("sha256:bb", "one"), ("sha256:cc", "two")
    figure = drawn.shared({"a": [base], "b": [base, one], "c": [base, two]})
    assert len(figure.axes[0].patches) == 3
    apart = drawn.shared({"b": [base, one], "c": [two, one]})
    assert len(apart.axes[0].patches) == 3
