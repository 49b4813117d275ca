"""`lab bench`: that it reads what it is given, refuses what it can't, and takes its own state away again.

What it measures is no matter of a test.
"""

import os
import subprocess
import sys

import pytest

from labkit.ground import state

XML = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="notebooks.04-cpu.ipynb" name="Cell 0" time="1.25"/>
<testcase classname="notebooks.04-cpu.ipynb" name="Cell 1" time="30.5"/>
<testcase classname="tests.test_cli" name="test_it" time="99"/>
<testcase classname="notebooks.05-memory.ipynb" name="Cell 0" time="2"/>
</testsuite></testsuites>"""
LINES = """
1.05s setup    notebooks/04-cpu.ipynb::Cell 0
0.20s call     notebooks/04-cpu.ipynb::Cell 0
30.50s call     notebooks/04-cpu.ipynb::Cell 1
99.00s call     tests/test_cli.py::test_it
2.00s setup    notebooks/05-memory.ipynb::Cell 0
"""


def bench(*words):
    """Run `lab bench`; return how it ended."""
    env = os.environ | {"PYTHONPATH": str(state.REPO)}
    return subprocess.run(
        [sys.executable, "-P", "-m", "labkit", "bench", *map(str, words)],
        env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("text", [XML, LINES], ids=["junit xml", "durations"])
def test_bench_tells_how_long_each_chapter_took_and_which_cell(tmp_path, text):
    (tmp_path / "run").write_text(text)
    done = bench("chapters", "--chapters", tmp_path / "run", "--figure", tmp_path / "b.png")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["04-cpu", "31.8", "2", "Cell", "1", "30.5"] in rows
    assert ["05-memory", "2.0", "1", "Cell", "0", "2.0"] in rows
    assert "test_it" not in done.stdout
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert not (state.lib_dir() / "bench").exists(), "its own state is gone"


@pytest.mark.parametrize("text", ["", "no such lines", "<testsuites><testca", "<a/>"])
def test_bench_says_what_a_file_without_chapters_lacks(tmp_path, text):
    (tmp_path / "run").write_text(text)
    done = bench("chapters", "--chapters", tmp_path / "run")
    assert done.returncode == 1
    assert "not measured" in done.stdout and "→" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("words", [["speed"], ["start", "--rounds", "0"]])
def test_bench_refuses_words_that_it_does_not_know_before_it_measures(words):
    done = bench(*words)
    assert done.returncode == 2
    assert "usage: lab bench" in done.stderr and "Traceback" not in done.stderr
