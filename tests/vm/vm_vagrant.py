"""`vagrant up` for real: with libvirt, emulated, from the lab's own box, and without a network.

Nothing of the user's Vagrant is touched: home, box and state lie in a folder of the
test's own. libvirt's daemons are started if they don't run, and ended again.
"""

import glob
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
from vm.machine import REPO, free_port, make_tree

from labkit.cgroups import emptying

GROUPS = "/sys/fs/cgroup/*/machine"  # libvirt's, in the root of each tree
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("needs_root")]


@pytest.fixture(scope="module")
def clone():
    """A copy of the working tree that Vagrant may write into, and the environment to call it with."""
    folder = Path(tempfile.mkdtemp(prefix="lab-vagrant-", dir="/var/tmp"))
    folder.chmod(0o755)
    make_tree(folder / "lab")
    yield folder / "lab"
    shutil.rmtree(folder)


def vagrant(clone, *words, check=True, **environment):
    """Call vagrant in the clone; return what it printed, or with check=False what it complained of."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("LAB_", "VAGRANT_"))}
    aside = {"VAGRANT_HOME": str(clone.parent / "home"), "VAGRANT_CHECKPOINT_DISABLE": "1", "LAB_EMULATE": "1"}
    done = subprocess.run(
        ["vagrant", *words], cwd=clone, env=keep | aside | environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout if check else done.stderr


# For Vagrantfile.local. A network of the test's own, of which no way leads out of this machine.
NO_WAY_OUT = """
config.vm.provider "libvirt" do |v|
  v.management_network_name = "lab-offline"
  v.management_network_address = "192.168.223.0/24"
  v.management_network_mode = "none"
end
"""

# A provider whose machines are said to run, somewhere else.
A_CLOUD = """
class Cloud < Vagrant.plugin("2")
  class Provider < Vagrant.plugin("2", :provider)
    def action(_name) = Vagrant::Action::Builder.new
    def state = Vagrant::MachineState.new(:running, "running", "")
  end
  name "cloud"
  provider("cloud") { Provider }
end
config.vm.box = nil
config.vm.provider "cloud"
"""


@pytest.fixture(scope="module")
def libvirt():
    """Run libvirt's daemons, where no systemd does."""
    started, tables, groups = [], _tables(), set(glob.glob(GROUPS))
    if _virsh("version").returncode:
        Path("/run/libvirt").mkdir(exist_ok=True)
        for name in ("virtlogd", "libvirtd"):
            started.append(subprocess.Popen([name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 60
        while _virsh("version").returncode:
            assert time.monotonic() < deadline, "libvirtd does not answer"
            time.sleep(0.5)
    before = _images()
    yield
    for name in _images() - before:  # the box, of which Vagrant leaves a copy in libvirt's pool
        _virsh("vol-delete", "--pool", "default", name)
    _virsh("net-destroy", "lab-offline")
    _virsh("net-undefine", "lab-offline")
    if started:
        _virsh("net-destroy", "default")
        for daemon in reversed(started):
            daemon.terminate()
            daemon.wait()
        # It leaves these for its next start.
        for table in _tables() - tables:
            subprocess.run(["nft", "delete", "table", *table.split()], check=True)
        for group in set(glob.glob(GROUPS)) - groups:
            emptying.remove_tree(group)


def _tables():
    said = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    return {line.removeprefix("table ") for line in said.splitlines()}


def _virsh(*words):
    return subprocess.run(["virsh", "-c", "qemu:///system", *words], capture_output=True, text=True, check=False)


def _images():
    words = _virsh("vol-list", "--pool", "default").stdout.split()
    return {word for word in words if word.startswith("docker-deep-dive-")}


@pytest.fixture(scope="module")
def box(clone):
    """The offline box, made as an instructor makes it."""
    file = clone.parent / "lab.box"
    subprocess.run([REPO / "vagrant" / "box" / "build", "libvirt", file], check=True, stdout=subprocess.DEVNULL)
    return str(file)


@pytest.mark.parametrize("seats", ["0", "1", "30"])
def test_the_vagrantfile_is_valid_for_any_number_of_seats(clone, libvirt, seats):
    said = vagrant(clone, "validate", LAB_SEATS=seats)
    assert "validated successfully" in said


@pytest.mark.parametrize(
    "environment, says",
    [
        ({"LAB_CPUS": "two"}, "LAB_CPUS=two can't be used"),
        ({"LAB_MEMORY": "1"}, "a number from 768"),
        ({"LAB_PORT": "80"}, "LAB_PORT=80"),
        ({"LAB_SEATS": "1000"}, "LAB_SEATS=1000"),
        ({"LAB_SHARE": "floppy"}, "no way to share a folder"),
        ({"LAB_BOX": "/no/such.box"}, "there is no file /no/such.box"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(clone, libvirt, environment, says):
    said = vagrant(clone, "status", check=False, **environment)
    assert says in said and "→" in said and "Traceback" not in said and ".rb:" not in said


def test_a_room_larger_than_this_computer_is_refused_before_anything_is_made(clone, libvirt, box):
    said = vagrant(clone, "up", check=False, LAB_SEATS="200", LAB_BOX=box)
    assert said.count("fewer seats") == 1 and "running" not in vagrant(clone, "status")


@pytest.fixture
def local(clone):
    """Return a function that writes Vagrantfile.local; it is gone after the test."""
    yield (clone / "Vagrantfile.local").write_text
    (clone / "Vagrantfile.local").unlink()


def test_in_a_cloud_no_port_is_waited_for_and_ssh_brings_the_page_here(clone, local):
    local(A_CLOUD)
    try:
        said = vagrant(clone, "up", "--provider", "cloud", LAB_SEATS="2", LAB_MEMORY="1000000", LAB_EMULATE="0")
        for number in ("01", "02"):
            seat = json.loads((clone / f".vagrant/lab/seat-{number}.json").read_text())
            assert f"vagrant ssh seat-{number} -- -N -L {seat['port']}:127.0.0.1:8888" in said
            assert f"http://127.0.0.1:{seat['port']}/lab" in said and seat["token"] in said
    finally:
        shutil.rmtree(clone / ".vagrant")


def test_vagrant_up_ends_at_a_jupyterlab_that_answers_without_any_network(clone, libvirt, local, box, capsys):
    local(NO_WAY_OUT)
    with socket.socket() as busy:  # the usual port is taken
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = str(busy.getsockname()[1])
        started = time.monotonic()
        try:
            said = vagrant(clone, "up", LAB_BOX=box, LAB_PORT=taken)
            with capsys.disabled():
                print(f"\nvagrant up, offline and emulated: {time.monotonic() - started:.0f} s")
            assert f"port {taken} is taken" in said and "the lab is up" in said
            seat = json.loads((clone / ".vagrant/lab/default.json").read_text())
            address = f"http://127.0.0.1:{seat['port']}"
            assert address in said and seat["token"] in said
            assert _status(f"{address}/api/contents?token={seat['token']}") == 200
            assert _status(f"{address}/api/contents?token=wrong") == 403
            assert "default" not in vagrant(clone, "ssh", "-c", "ip route", LAB_BOX=box)
            assert "cgroup memory" in vagrant(clone, "ssh", "-c", "lab doctor", LAB_BOX=box)
            # What is written there is on this machine's disk.
            vagrant(clone, "ssh", "-c", "echo mine | sudo tee /vagrant/notebooks/mine.txt", LAB_BOX=box)
            assert (clone / "notebooks/mine.txt").read_text() == "mine\n"
            (clone / "notebooks/mine.txt").unlink()
            again = vagrant(clone, "up", LAB_BOX=box)
            assert "installing" not in again and address in again
        finally:
            vagrant(clone, "destroy", "-f")
    assert not (clone / ".vagrant/lab/default.json").exists()


def test_two_seats_of_a_room_have_a_port_a_token_and_a_copy_each(clone, libvirt, local, box, capsys):
    local(NO_WAY_OUT)
    started = time.monotonic()
    try:
        said = vagrant(clone, "up", LAB_BOX=box, LAB_SEATS="2", LAB_PORT=str(free_port()))
        with capsys.disabled():
            print(f"\ntwo seats, offline and emulated: {time.monotonic() - started:.0f} s")
        seats = [json.loads((clone / f".vagrant/lab/seat-0{number}.json").read_text()) for number in (1, 2)]
        lines = (clone / ".vagrant/lab/seats.txt").read_text().splitlines()
        assert len(lines) == 2 and all(line in said for line in lines)
        for seat, other, line in zip(seats, reversed(seats), lines, strict=True):
            address = f"http://127.0.0.1:{seat['port']}"
            assert address in line and seat["token"] in line
            assert _status(f"{address}/api/contents?token={seat['token']}") == 200
            assert _status(f"{address}/api/contents?token={other['token']}") == 403
        vagrant(clone, "ssh", "seat-02", "-c", "echo mine | sudo tee /vagrant/notebooks/mine.txt", LAB_BOX=box)
        assert not (clone / "notebooks/mine.txt").exists()
        assert "mine" not in vagrant(clone, "ssh", "seat-01", "-c", "ls /vagrant/notebooks", LAB_BOX=box)
    finally:
        vagrant(clone, "destroy", "-f", LAB_BOX=box)
    assert not (clone / ".vagrant/lab/seats.txt").exists()


def _status(url):
    try:
        with urllib.request.urlopen(url, timeout=120) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
