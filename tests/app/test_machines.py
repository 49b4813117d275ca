"""The lab on a machine as Windows gives it: line ends in a clone, a folder without Unix modes, no systemd."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import pytest
from vm.machine import free_port, make_tree

from labkit.ground import state

# As WSL shows a folder of Windows: everything may be done by everybody, and no mode or owner can be changed.
LIKE_MNT_C = """
mount --make-rprivate /
mkdir -p /var/lib/labkit /run/labkit; mount -t tmpfs tmpfs /var/lib/labkit; mount -t tmpfs tmpfs /run/labkit
bindfs -p 0777 -u 1000 -g 1000 --chmod-deny --chown-deny --xattr-none "$1" "$2"
LAB_NO_APT=1 LAB_VENV="$3" exec "$2/vagrant/lab" up --port "$4"
"""


@pytest.fixture
def folder(tmp_path):
    make_tree(tmp_path / "disk")
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


def test_a_chapter_is_opened_and_saved_in_a_folder_without_unix_modes(needs_root, folder):
    if not shutil.which("bindfs"):
        pytest.skip("no command bindfs (apt-get install bindfs)")
    words = [folder.parent / "disk", folder, os.path.dirname(os.path.dirname(sys.executable)), str(free_port())]
    environment = {name: value for name, value in os.environ.items() if name != "LABKIT_ROOT"}
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec", LIKE_MNT_C, "sh"]
    with subprocess.Popen([*apart, *words], env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = next(line for line in process.stdout if line.startswith("http://"))
            server, _, token = address.strip().partition("/lab/tree/")[0], *address.strip().partition("?token=")[1:]
            url = f"{server}/api/contents/00-start-here.ipynb?token={token}"
            with urllib.request.urlopen(url, timeout=60) as answer:
                chapter = json.load(answer)
            chapter["content"]["cells"][0]["source"] = "mine"
            saving = urllib.request.Request(url, json.dumps(chapter).encode(), method="PUT")
            with urllib.request.urlopen(saving, timeout=60) as answer:
                assert answer.status == 200
        finally:
            process.send_signal(signal.SIGKILL)
    assert "mine" in (folder.parent / "disk/.participant/00-start-here.ipynb").read_text()


def test_a_clone_made_on_windows_has_unix_line_ends(tmp_path):
    make_tree(tmp_path / "tree")
    windows = ["git", "-c", "core.autocrlf=true", "-c", "core.eol=crlf", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*windows, *words], cwd=tmp_path / "tree", check=True, stderr=subprocess.DEVNULL)
    subprocess.run([*windows, "clone", "-q", "tree", "clone"], cwd=tmp_path, check=True)
    files = [path for path in (tmp_path / "clone").rglob("*") if path.is_file() and ".git" not in path.parts]
    changed = [path.name for path in files if path.read_bytes() != _in_the_tree(path, tmp_path).read_bytes()]
    assert len(files) > 200 and not changed


def test_the_dev_container_is_the_seat_of_the_readme():
    text = (state.REPO / ".devcontainer/devcontainer.json").read_text()
    settings = json.loads(re.sub(r"(?m)^\s*//.*$", "", text))
    dockerfile = (state.REPO / ".devcontainer" / settings["build"]["dockerfile"]).resolve()
    assert dockerfile == state.REPO / "vagrant/seat/Dockerfile"
    assert (state.REPO / ".devcontainer" / settings["build"]["context"]).resolve() == state.REPO
    assert settings["privileged"] and not settings["overrideCommand"], "else the entry point is not run, or can't"
    assert set(settings["forwardPorts"]) == set(map(int, re.findall(r"(?m)^EXPOSE (\d+)", dockerfile.read_text())))


def test_a_seat_that_jupyterhub_starts_says_where_the_package_is_that_it_lacks(needs_root, own_root):
    hub = os.environ | {"JUPYTERHUB_SERVICE_URL": "http://0.0.0.0:8888/user/ada/"}
    done = subprocess.run([sys.executable, "-m", "labkit", "up"], env=hub, capture_output=True, text=True)
    assert done.returncode == 125 and "vagrant/hub/Dockerfile" in done.stderr and not done.stdout


def _in_the_tree(path, folder):
    return folder / "tree" / path.relative_to(folder / "clone")
