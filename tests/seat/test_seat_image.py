"""The seat's image, built once by a real engine from Debian's packages, and what README says may be done with it.

Base image and packages come as on any machine of Debian's: no registry of images is asked.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time

import pytest
from seat import hubs, seats
from vm import machine

from labkit.lessons import coursework
from labkit.lessons.beside import engine

ALL = os.environ.get("LAB_TEST_VM") == "all"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("needs_root"),
    pytest.mark.skipif(engine.missing() is not None, reason=str(engine.missing())),
    pytest.mark.skipif(not ALL, reason="a whole image is built and tried, some ten minutes: LAB_TEST_VM=all lab test"),
]
CHAPTERS = ("02", "04", "06", "07", "11", "12")
IMAGE = "docker-deep-dive"
TOKEN = "a-token-of-the-test"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the working tree: what an image is made of, and what Vagrant may write into."""
    folder = tmp_path_factory.mktemp("clone") / "lab"
    machine.make_tree(folder)
    return folder


@pytest.fixture(scope="module")
def docker(clone, tmp_path_factory):
    """An engine that has built the image."""
    folder = tmp_path_factory.mktemp("seat")
    with seats.engine_for_seats(folder, seconds=120, network=True) as made:
        import_debian(made, folder)
        with seats.a_way_out(made) as proxy:
            use_proxy(made, httpProxy=proxy, httpsProxy=proxy)
            made("build", "--network=host", "-t", IMAGE, "-f", clone / "vagrant/seat/Dockerfile", clone)
        # The old builder's cache tells a build that was given a proxy, whichever, from one that was not.
        use_proxy(made, noProxy="127.0.0.1")
        yield made


def use_proxy(docker, **setting):
    (docker.folder / "config.json").write_text(json.dumps({"proxies": {"default": setting}}))


def import_debian(docker, folder):
    """Give the engine an image `debian:trixie` that is made of Debian's packages."""
    root = folder / "root"
    words = ["--variant=minbase", "--include=ca-certificates"]
    machine.debian(root, *words, suite="trixie", capture_output=True)
    # A network that looks into TLS has a certificate of its own.
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
    (root / "etc/pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
    subprocess.run(["tar", "-C", root, "-cf", folder / "debian.tar", "."], check=True)
    docker("import", folder / "debian.tar", "debian:trixie")
    subprocess.run(["rm", "-rf", "--one-file-system", root, folder / "debian.tar"], check=True)


@pytest.fixture(scope="module")
def seat(docker, request):
    """The name of a seat that runs as README says, and has printed its address."""
    begin = time.monotonic()
    words = ["--privileged", "-p", "127.0.0.1:8888:8888", "-e", f"LAB_TOKEN={TOKEN}"]
    docker("run", "-d", "--name", "lab", *words, IMAGE)
    while f"token={TOKEN}" not in docker("logs", "lab"):
        assert time.monotonic() < begin + 120, docker.ask("logs", "lab")
        time.sleep(0.2)
    used = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", "lab").split("/")[0]
    size = int(docker("image", "inspect", "--format", "{{.Size}}", IMAGE)) >> 20
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\na seat as a container: up in {time.monotonic() - begin:.0f} s, {used} of memory, {size} MB of image")
    return "lab"


def test_jupyterlab_answers_on_the_published_port_to_its_token_only(docker, seat):
    address = "http://127.0.0.1:8888/api/contents?token="
    assert seats.status(docker, address + TOKEN) == 200
    assert seats.status(docker, address + "wrong") == 403
    assert f"http://127.0.0.1:8888/lab/tree/00-start-here.ipynb?token={TOKEN}" in docker("logs", seat)


def test_doctor_misses_nothing_that_the_main_chapters_need(docker, seat):
    done = docker.ask("exec", seat, "lab", "doctor")
    assert done.returncode == 0 and "yes a container with limits" in done.stdout, done.stdout + done.stderr


def test_a_container_is_held_by_its_limits(docker, seat):
    words = ["--memory", "32m", "--cpus", "0.5", "--pids-limit", "20", "busybox"]
    assert docker("exec", seat, "lab", "run", *words, "echo", "started") == "started\n"
    done = docker.ask("exec", seat, "lab", "run", *words, "sh", "-c", "tail /dev/zero")
    assert done.returncode == 137, done


def test_a_real_engine_runs_in_it_for_the_comparisons(docker, seat):
    code = "from labkit.lessons.beside import engine\nwith engine.private() as d: print(d('run', 'busybox', 'echo', 'nested'))"
    python = ["/opt/docker-deep-dive/venv/bin/python", "-c", code]
    done = docker.ask("exec", "-w", "/lab", seat, *python)
    assert "nested" in done.stdout, done.stderr


def test_the_chapters_pass_in_it(docker, seat):
    done = docker.ask("exec", "-e", "LAB_NO_APT=1", seat, "lab", "test", *CHAPTERS, "-q", "--tb=short")
    passed = re.search(r"all is well: (\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 15 * len(CHAPTERS), done.stdout[-3000:] + done.stderr


def test_vagrant_ends_at_the_same_address(docker, clone):
    if not shutil.which("vagrant"):
        pytest.skip("vagrant is not here")
    home = clone.parent / "home"
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("LAB_", "VAGRANT_", "LABKIT_"))}
    own = {"VAGRANT_HOME": str(home), "VAGRANT_CHECKPOINT_DISABLE": "1", "LAB_PORT": "8899"}
    own |= {
        "PATH": engine._PATH,
        "DOCKER_HOST": f"unix://{docker.socket}",
        "DOCKER_CONFIG": str(docker.folder),
        "DOCKER_BUILDKIT": "0",
    }

    def vagrant(*words):
        command = ["nsenter", "-t", str(seats.pid(docker)), "-n", "vagrant", *words]
        return subprocess.run(
            command, cwd=clone, env=keep | own, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )

    try:
        up = vagrant("up", "--provider=docker")
        seat = json.loads((clone / ".vagrant/lab/default.json").read_text())
        address = f"http://127.0.0.1:8899/lab/tree/00-start-here.ipynb?token={seat['token']}"
        assert "the lab is up" in up.stdout and address in up.stdout, up.stdout + up.stderr
        assert seats.status(docker, f"http://127.0.0.1:8899/api/contents?token={seat['token']}") == 200
        assert "yes a container with limits" in docker("exec", "docker-deep-dive", "lab", "doctor")
        assert (clone / ".participant/00-start-here.ipynb").exists(), "the copies are not on the host"
        again = vagrant("up")
        assert address in again.stdout, again.stdout + again.stderr
    finally:
        vagrant("destroy", "-f")
    assert not (clone / ".vagrant/lab/default.json").exists()


def test_jupyterhub_gives_two_users_a_seat_each_and_the_instructor_sees_both(docker, tmp_path):
    if not shutil.which("npm"):
        pytest.skip("npm is not here, by which JupyterHub's proxy is installed")
    with seats.a_way_out(docker) as proxy:
        use_proxy(docker, httpProxy=proxy, httpsProxy=proxy)
        docker("build", "--network=host", "-t", "docker-deep-dive-hub", hubs.HUB)
    (docker.folder / "config.json").unlink()
    users = {"ada": secrets.token_hex(16), "bob": secrets.token_hex(16), "room": secrets.token_hex(32)}
    with hubs.running(docker, tmp_path, users) as address:
        assert "/hub/login" in hubs.log_in(docker, "ada", users["bob"])[0]
        for name, no_entry in {"ada": "404", "bob": "403"}.items():  # nobody is there; and: somebody, but not for you
            page, of_the_other = hubs.log_in(docker, name, users[name])
            assert page == f"{address}/user/{name}/lab/tree/00-start-here.ipynb" and of_the_other == no_entry
            words = ["--memory", "32m", "--cpus", "0.5", "busybox", "echo", name]
            assert docker("exec", f"jupyter-{name}", "lab", "run", *words) == f"{name}\n"
        passed = next(check for chapter in coursework.contents() if chapter.number == "04" for check in chapter.checks)
        note = f"from labkit.lessons import coursework; coursework.note({passed!r}, True)"
        docker("exec", "-w", "/lab", "jupyter-ada", "/opt/docker-deep-dive/venv/bin/python", "-c", note)
        lab = [*hubs.inside(docker), sys.executable, "-m", "labkit", "room", f"{address}/hub?token={users['room']}"]
        rows = subprocess.run(lab, capture_output=True, text=True, check=True).stdout.splitlines()[2:]
        assert [row.split()[0] for row in rows] == ["ada", "bob"] and rows[0].split().count("1") == 1, rows
