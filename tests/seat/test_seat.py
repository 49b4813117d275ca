"""A seat's entry point in a real privileged container, on whichever cgroup version this machine has.

Its root filesystem is this machine's own, bound read-only, with a copy of /etc: that takes no minutes to build. What the Dockerfile
makes is tested in test_seat_image.
"""

import os
import re
import subprocess
import sys

import pytest
from seat import seats

from labkit.ground import state
from labkit.lessons.beside import engine

pytestmark = [
    pytest.mark.usefixtures("needs_root"),
    pytest.mark.skipif(engine.missing() is not None, reason=str(engine.missing())),
]
SHARED = ("/usr", "/bin", "/sbin", "/lib", "/lib64", sys.base_prefix, str(state.REPO))
LAB = ("env", f"PYTHONPATH={state.REPO}", "python3", "-m", "labkit")


@pytest.fixture(scope="module")
def docker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seat")
    subprocess.run(["tar", "-C", "/", "-cf", folder / "etc.tar", "etc", "--no-recursion", "run", "opt"], check=True)
    with seats.engine_for_seats(folder) as made:
        made("import", folder / "etc.tar", "etc")
        yield made


def run(docker, *words, options=("--privileged",)):
    """Run a command behind a seat's entry point; return its CompletedProcess."""
    shared = [word for path in SHARED for word in ("-v", f"{path}:{path}:ro")]
    store = ["-v", "/var/lib/labkit", "-v", "/var/tmp", "-v", "/tmp"]
    entry = ["--entrypoint", str(state.REPO / "vagrant/seat/entry")]
    return docker.ask("run", "--rm", *options, *shared, *store, *entry, "etc", *words)


def test_a_container_with_limits_starts_in_a_seat(docker):
    limits = ["--memory", "32m", "--cpus", "0.5", "--pids-limit", "20"]
    done = run(docker, *LAB, "run", *limits, "busybox", "echo", "started")
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr


def test_doctor_in_a_seat_has_started_one(docker):
    done = run(docker, *LAB, "doctor")
    assert done.returncode == 0 and "yes a container with limits" in done.stdout, done.stdout + done.stderr


def test_a_container_that_is_not_privileged_is_told_so(docker):
    done = run(docker, *LAB, "doctor", options=())
    assert done.returncode == 1 and "docker run --privileged" in done.stderr and not done.stdout


@pytest.fixture(scope="module")
def venv(docker, tmp_path_factory):
    """The words that bring JupyterLab's Python into a seat: the engine has an /opt of its own, so of a copy.

    And matplotlib's list of fonts, as the Dockerfile makes it: on a slow machine a chapter would tell of its making.
    The chapters can be written beside: chapter 12 puts a program there.
    """
    copy, fonts = tmp_path_factory.mktemp("venv") / "venv", tmp_path_factory.mktemp("fonts")
    chapters = tmp_path_factory.mktemp("chapters") / "notebooks"
    subprocess.run(["cp", "-a", sys.prefix, copy], check=True)
    subprocess.run(["cp", "-a", state.REPO / "notebooks", chapters], check=True)
    environment = os.environ | {"MPLCONFIGDIR": str(fonts)}
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], env=environment, check=True)
    shared = {f"{copy}:{sys.prefix}:ro", f"{fonts}:/fonts", f"{chapters}:{state.REPO}/notebooks"}
    yield [*(word for one in shared for word in ("-v", one)), "-e", "MPLCONFIGDIR=/fonts"]
    subprocess.run(["rm", "-r", copy], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LAB_TEST_SEAT"), reason="chapters in a seat, some ten minutes: LAB_TEST_SEAT=1")
@pytest.mark.parametrize("chapter", ["02", "04", "06", "07", "11", "12"])
def test_a_chapter_passes_in_a_seat(docker, venv, chapter):
    # As vagrant/lab starts it: process 1 has to bury what others leave.
    python = ["tini-static", "--", *LAB[:2], sys.executable, *LAB[3:]]
    done = run(
        docker, *python, "test", chapter, "-p", "no:cacheprovider", "-q", "--tb=short", options=["--privileged", *venv]
    )
    passed = re.search(r"all is well: (\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 15, done.stdout[-3000:] + done.stderr
