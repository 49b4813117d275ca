"""The habits that a machine can hold: the linter, the formatter, the type checker, shellcheck."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.ground import state

TOOLS = Path(sys.executable).parent  # the virtual environment's, pinned in requirements.txt
TYPES = ("mypy", "-p", "labkit")
HABITS = {
    "linter": ("ruff", "check", "--no-cache", "."),
    "formatter": ("ruff", "format", "--no-cache", "--check", "."),
    "types": TYPES,
}


def shell_scripts():
    """Return the repo's shell scripts: what git knows, or would, and a shell runs."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=state.REPO, capture_output=True, text=True, check=False)
    files = [state.REPO / name for name in listed.stdout.split("\0") if name]
    if not files:  # a copy without its history
        files = [path for part in (".ci", "vagrant") for path in (state.REPO / part).rglob("*") if path.is_file()]
    return [path for path in files if _is_shell(path)]


def _is_shell(path):
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        first = file.readline(80)
    # The program may be /bin/sh, or what env(1) is to look for; words may follow it.
    return first.startswith(b"#!") and any(word.rpartition(b"/")[2] in (b"sh", b"bash") for word in first[2:].split())


def said(command, cache):
    tool = TOOLS / command[0]
    if not tool.exists():
        tool = shutil.which(command[0])
    assert tool, f"{command[0]} is not installed: it is in requirements.txt or vagrant/packages"
    words = ["--cache-dir", str(cache)] if command is TYPES else []
    return subprocess.run([tool, *command[1:], *words], cwd=state.REPO, capture_output=True, text=True)


@pytest.mark.parametrize("habit", HABITS)
def test_the_code_keeps_the(habit, tmp_path):
    done = said(HABITS[habit], tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_every_shell_script_passes_shellcheck(tmp_path):
    scripts = shell_scripts()
    names = {path.name for path in scripts}
    assert {"lab", "run", "provision.sh", "labkit-runtime"} <= names
    done = said(("shellcheck", "--severity=info", *map(str, scripts)), tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def mixtures(code):
    """Return the lines of Python code that make one text of a program's stdout and stderr."""
    tree = ast.parse(code)
    # What is only read when a test has failed is compared with nothing.
    messages = [node for node in ast.walk(tree) if isinstance(node, (ast.Assert, ast.Raise))]
    told = {id(inner) for node in messages for part in _words(node) for inner in ast.walk(part)}
    return sorted({node.lineno for node in ast.walk(tree) if id(node) not in told and _mixes(node)})


def _words(node):
    parts = (node.msg,) if isinstance(node, ast.Assert) else (node.exc,)
    return [part for part in parts if part is not None]


def _mixes(node):
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return {"stdout", "stderr"} <= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    named = getattr(node, "attr", None) or getattr(node, "id", None)
    return isinstance(node, (ast.Attribute, ast.Name)) and named in ("STDOUT", "getoutput", "getstatusoutput")


def python_code():
    """Yield (where, code) of every module, test and chapter's cell."""
    for part in ("labkit", "tests"):
        for path in sorted((state.REPO / part).rglob("*.py")):
            yield str(path.relative_to(state.REPO)), path.read_text()
    for path in sorted((state.REPO / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            code = "".join(cell["source"])
            if cell["cell_type"] == "code" and not code.startswith("%%"):
                yield f"{path.name} {cell['id']}", code


def test_no_programs_stdout_and_stderr_are_made_one_text():
    """What a program warns of on one machine and not on another must be in no comparison."""
    found = {where: lines for where, code in python_code() if (lines := mixtures(code))}
    assert not found, f"stdout and stderr are one text in {found}: capture_output=True, and compare stdout"


@pytest.mark.parametrize(
    "code, mixed",
    [
        ("subprocess.run(x, stdout=PIPE, stderr=subprocess.STDOUT)", True),
        ("run(x, stderr=STDOUT)", True),
        ("subprocess.getoutput(x)", True),
        ("said = done.stdout + done.stderr", True),
        ("print(done.stdout + '' + done.stderr.strip())", True),
        ("assert 'x' in done.stdout + done.stderr", True),
        ("assert done.stdout == 'x', done.stdout + done.stderr", False),
        ("subprocess.run(x, capture_output=True)", False),
        ("run(x, stdout=log, stderr=log)", False),
    ],
)
def test_a_mixture_is_seen(code, mixed):
    assert bool(mixtures(code)) is mixed
