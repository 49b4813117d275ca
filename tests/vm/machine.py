"""A virtual machine from the lab's own box, for what this machine's kernel can't show.

    with Machine.boot(disk, tree) as machine:
        machine.run("uname -r")

It is booted as a laptop boots it: by the box's own boot loader, with systemd and
cgroup v2. The disk is only read, all writing goes to a file that is gone at the end.
The working tree comes as a second disk, since reading that is the fastest way in for an
emulated machine; how to log in comes through QEMU's firmware device, from where
systemd takes the key of root. See systemd.system-credentials(7).
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


class NoAnswer(Exception):
    """A virtual machine did not come up, or answers no more: an emulated kernel has been seen to lock up."""


class Machine:
    """A running virtual machine that answers over ssh."""

    def __init__(self, folder, process, port):
        self.folder, self.process, self.port = folder, process, port

    @classmethod
    @contextlib.contextmanager
    def boot(cls, disk, cpus=2, memory=3072, network=False, patience=400):
        """Boot `disk` with the working tree at /vagrant; end it, whatever happens, with the block.

        `memory` in MiB, `patience` in seconds until ssh answers.
        """
        folder = Path(tempfile.mkdtemp(prefix="lab-vm-", dir="/var/tmp"))
        process = None
        try:
            _make_key(folder)
            make_tree_disk(folder / "tree.img")
            (folder / "console").touch()
            port = free_port()
            with open(folder / "qemu.log", "wb") as log:
                process = subprocess.Popen(
                    _command(folder, disk, port, cpus, memory, network),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=die_with_parent,
                )
            machine = cls(folder, process, port)
            machine._wait(patience)
            machine.run("mkdir -p /vagrant && mount -o noatime /dev/disk/by-label/lab-tree /vagrant")
            # An emulated kernel has been seen to lock up: then it ends, and its console says where.
            machine.run("dmesg -n 5; sysctl -qw kernel.watchdog_thresh=60 kernel.softlockup_panic=1 kernel.panic=1")
            yield machine
        finally:
            if process:
                process.kill()
                process.wait()
            shutil.rmtree(folder)

    def ssh(self, command):
        """Return the words that run `command` in the machine, as root."""
        options = [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=60",
        ]
        options += ["ServerAliveInterval=30", "ServerAliveCountMax=6"]  # a kernel that locked up closes no connection
        flags = [word for option in options for word in ("-o", option)]
        return ["ssh", "-F", "none", *flags, "-i", self.folder / "key", "-p", str(self.port), "root@127.0.0.1", command]

    def run(self, command, timeout=300):
        """Run a shell command in the machine; return what it printed. Raise if it fails."""
        try:
            done = subprocess.run(self.ssh(command), capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            raise NoAnswer(f"the VM did not answer to `{command}`:\n{self.console()[-3000:]}") from None
        if done.returncode:
            raise RuntimeError(f"in the VM, `{command}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def stream(self, command, timeout=None):
        """Run a shell command in the machine, its output on ours; return its exit status, as timeout(1) does."""
        try:
            return subprocess.run(self.ssh(command), stdin=subprocess.DEVNULL, timeout=timeout, check=False).returncode
        except subprocess.TimeoutExpired:
            return 124

    def console(self):
        """Return what the machine wrote on its serial line."""
        return (self.folder / "console").read_text(errors="replace")

    def _wait(self, patience):
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise NoAnswer(f"qemu ended: {(self.folder / 'qemu.log').read_text()}")
            if "Kernel panic" in self.console():
                raise NoAnswer(f"the VM's kernel gave up:\n{self.console()[-2000:]}")
            # ssh itself waits for an answer, so this loop is an idle one.
            done = subprocess.run(self.ssh("true"), capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return
            time.sleep(2)
        raise NoAnswer(f"the VM did not answer in {patience} s: {done.stderr}\n{self.console()[-3000:]}")


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def the_disk():
    """Return the path of the box's disk, of LAB_TEST_DEBIAN; make it if its inputs have changed: some minutes."""
    words = ["--disk", os.environ.get("LAB_TEST_DEBIAN", "bookworm")]
    done = subprocess.run([REPO / "vagrant" / "box" / "build", *words], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def _make_key(folder):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", folder / "key"], check=True)


def free_port():
    """Return a port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def _command(folder, disk, port, cpus, memory, network):
    """Return QEMU's words: emulation only, because a nested KVM may be there and hang."""
    restrict = "off" if network else "on"
    drive = "format={},if=virtio,file={},cache=unsafe"
    return [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(cpus), "-m", str(memory)),
        *("-display", "none", "-monitor", "none", "-serial", f"file:{folder}/console"),
        *("-drive", drive.format("qcow2", disk) + ",snapshot=on"),
        *("-drive", drive.format("raw", folder / "tree.img")),
        *("-nic", f"user,model=virtio,restrict={restrict},hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-rng-pci", "-no-reboot"),
        "-fw_cfg",
        f"name=opt/io.systemd.credentials/ssh.authorized_keys.root,file={folder}/key.pub",
    ]


def debian(root, *words, suite="bookworm", **options):
    """Fill `root` with Debian's packages, by default Debian 12's, as mmdebstrap's `words` say; `options` are subprocess.run's.

    In a pid and a mount namespace of its own: whatever ends it, nothing stays mounted or running.
    """
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = ["mmdebstrap", "--quiet", "--mode=root", *words, suite, root]
    subprocess.run([*alone, *command], check=True, **options)


def make_tree(folder):
    """Copy what git knows, or would, of the working tree to a new `folder`."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", REPO, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listing.decode().split("\0")):
        if (REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, folder / name)


def make_tree_disk(image, size="1G"):
    """Write an ext4 disk that holds the working tree."""
    with tempfile.TemporaryDirectory(dir=image.parent) as tree:
        make_tree(Path(tree))
        subprocess.run(["truncate", "-s", size, image], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "lab-tree", "-d", tree, image], check=True)


if __name__ == "__main__":  # python machine.py DISK COMMAND…: try something in a VM by hand
    with Machine.boot(sys.argv[1], network=bool(os.environ.get("LAB_VM_NETWORK"))) as trial:
        print(f"up: {' '.join(map(str, trial.ssh('')))}", flush=True)
        sys.exit(trial.stream(" ".join(sys.argv[2:]) or "sleep infinity"))
