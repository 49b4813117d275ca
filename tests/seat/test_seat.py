"""A seat's entry point in a real privileged container, on whichever cgroup version this machine has.

Its root filesystem is this machine's own, bound read-only: that takes no minutes to build. What the Dockerfile
makes is tested in test_seat_image.
"""

import subprocess

import pytest
from seat import seats

from labkit.ground import state
from labkit.lessons.beside import engine

pytestmark = [
    pytest.mark.usefixtures("needs_root"),
    pytest.mark.skipif(engine.missing() is not None, reason=str(engine.missing())),
]
SHARED = ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", str(state.REPO))
LAB = ("env", f"PYTHONPATH={state.REPO}", "python3", "-m", "labkit")


@pytest.fixture(scope="module")
def docker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seat")
    (folder / "root").mkdir()
    subprocess.run(["tar", "-C", folder / "root", "-cf", folder / "empty.tar", "."], check=True)
    with seats.engine_for_seats(folder) as made:
        made("import", folder / "empty.tar", "nothing")
        yield made


def run(docker, *words, options=("--privileged",)):
    """Run a command behind a seat's entry point; return its CompletedProcess."""
    shared = [word for path in SHARED for word in ("-v", f"{path}:{path}:ro")]
    store = ["-v", "/var/lib/labkit", "-v", "/var/tmp", "-v", "/tmp"]
    entry = ["--entrypoint", str(state.REPO / "vagrant/seat/entry")]
    return docker.ask("run", "--rm", *options, *shared, *store, *entry, "nothing", *words)


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
