"""From a Debian with nothing of ours to a lab that answers: `vagrant/lab up`, once, in a root of Debian's packages."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
from vm import machine
from vm.machine import free_port, make_tree

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("needs_root")]

# The pid and the mount namespace are the root's own, so that its end takes all of it along.
ENTER = """
mount --rbind /dev {root}/dev; mount --rbind /sys {root}/sys; mount -t proc proc {root}/proc
exec chroot {root} env HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
"""


@pytest.fixture
def debian():
    """The root filesystem of a minimal Debian 12, with a clone of the lab in /lab."""
    folder = Path(tempfile.mkdtemp(prefix="lab-bare-", dir="/var/tmp"))
    folder.chmod(0o755)
    root = folder / "root"
    machine.debian(root, "--variant=apt", "--include=ca-certificates", capture_output=True)
    make_tree(root / "lab")
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    # A network that looks into TLS has a certificate of its own.
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
    yield root
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


def start(root, *words):
    """Run a command in the root; return its process. What it says of its progress goes to `progress(root)`."""
    flags = ["--mount", "--pid", "--fork", "--kill-child"]
    with open(progress(root), "w") as said:
        return subprocess.Popen(
            ["unshare", *flags, "sh", "-ec", ENTER.format(root=root), "sh", *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("LAB")},
        )  # fmt: skip


def progress(root):
    """Return the file with what the last command said on stderr."""
    return root.parent / "said"


def up(root):
    """Start the lab; return (its process, the address it printed, all it said of its progress)."""
    process = start(root, "/lab/vagrant/lab", "up", "--port", str(free_port()))
    for line in process.stdout:
        if line.startswith("http://"):
            return process, line.split()[0], progress(root).read_text()
    raise AssertionError(f"it ended with {process.wait()}:\n{progress(root).read_text()}")


def test_lab_up_on_a_bare_debian_ends_at_a_jupyterlab_that_answers(debian, capsys):
    for turn in ("first", "second"):
        started = time.monotonic()
        process, address, said = up(debian)
        try:
            with capsys.disabled():
                print(f"\nlab up on a bare Debian, {turn} run: {time.monotonic() - started:.0f} s")
            with urllib.request.urlopen(_contents(address), timeout=60) as answer:
                assert answer.status == 200
            assert ("installing" in said) == (turn == "first")
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _contents(address):
    """Return the address of the server's list of files, with the token."""
    server, _, rest = address.partition("/lab")
    return f"{server}/api/contents?{rest.partition('?')[2]}"
