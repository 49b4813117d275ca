"""The way from `Container.start` to clone3 and back can be read: which files, in which order, and how much that is."""

import ast
import re
from pathlib import Path

import pytest

import labkit
from labkit.container.life import Container
from labkit.ground import state

PATH = re.findall(r"^    ((?:container|isolation)\.\w+) ", labkit.__doc__, re.M)
FILES = [Path(labkit.__file__).parent / f"{name.replace('.', '/')}.py" for name in PATH]


def test_the_path_is_short_and_has_no_long_function():
    assert len(PATH) == len(set(PATH)) <= 20
    assert sum(len(file.read_text().splitlines()) for file in FILES) <= 3500
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40, f"{file}: {node.name}"


def test_readme_names_the_same_files_in_the_same_order():
    assert re.findall(r"`((?:container|isolation)\.\w+)`", (state.REPO / "README.md").read_text()) == PATH


def test_each_step_of_a_container_and_who_does_it_is_on_the_path(needs_root, own_root):
    jobs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Container, "altered", lambda self, job: jobs.append(job) or job)
        with Container("busybox", ["true"], memory="32m").start() as box:
            assert box.wait() == 0
    (job,) = jobs
    plans = [step.plan for step in job.steps if hasattr(step, "plan")]
    steps = [*job.steps, job.entry, *plans, *(step for plan in plans for step in (plan.root, *plan.steps)), box]
    homes = {type(step).__module__.removeprefix("labkit.") for step in steps}
    assert homes <= set(PATH) and len(steps) > 30, homes - set(PATH)
