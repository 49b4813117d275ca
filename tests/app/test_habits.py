"""The habits that a machine can hold: the linter, the formatter, the type checker, shellcheck."""

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
    """Return the repo's shell scripts: what git knows and a shell runs."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=state.REPO, capture_output=True, text=True, check=False)
    files = [state.REPO / name for name in listed.stdout.split("\0") if name]
    if not files:  # a copy without its history
        files = [path for part in (".ci", "vagrant") for path in (state.REPO / part).rglob("*") if path.is_file()]
    return [path for path in files if _is_shell(path)]


def _is_shell(path):
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        first = file.readline(80)
    return first.startswith(b"#!") and first.split()[-1].rpartition(b"/")[2] in (b"sh", b"bash")


def said(command, cache):
    tool = TOOLS / command[0]
    if not tool.exists():
        tool = shutil.which(command[0])
    assert tool, f"{command[0]} is not installed: it is in requirements.txt"
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
