"""What asks the kernel, on the other processor: an arm64 kernel of Debian's, emulated.

Debian's arm64 packages are unpacked and not installed, since no program of theirs runs on this
processor: a root that is good enough for Python, labkit and a handful of tools. There is no
systemd in it, and cgroup v2. What the kernel writes on its serial line comes to ours.
"""

import gzip
import importlib
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from vm.machine import debian, die_with_parent, make_tree

from labkit.lessons.beside import vm

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("needs_root")]

PACKAGES = """
python3 python3-numpy python3-hypothesis busybox-static util-linux mount procps iproute2 nftables libseccomp2 kmod tini
libcap2-bin e2fsprogs strace iptables coreutils bash linux-image-cloud-arm64
""".split()  # noqa: SIM905
TESTS = """
ground/test_ground isolation/test_namespaces isolation/test_isolation container/test_container isolation/test_security
lessons/test_escapes cgroups/test_cgroups storage/test_storage network/test_network
""".split()  # noqa: SIM905
PURE = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments")  # Python packages for any processor
SECONDS = 3600

# The first process of the memory disk: it finds the real one, and gives way.
INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
while read module; do /bin/busybox insmod "$module"; done </modules
while ! [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root
exec /bin/busybox switch_root /root /first
"""

FIRST = """#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 PYTHONPATH=/pure:/lab:/lab/tests
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t devtmpfs dev /dev; exec >/dev/ttyAMA0 2>&1
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm
mount --make-rshared /
/sbin/modprobe loop  # without udev nobody else asks for it
busybox hostname arm64; ip link set lo up
cd /lab
for name in {names}; do
    echo "file $name"
    timeout 1200 python3 -m pytest -q --color=no --tb=short -p no:cacheprovider tests/$name.py
    echo "status $name $?"
done
busybox poweroff -f
"""


def test_the_kernel_tests_pass_on_arm64(capsys):
    if platform.machine() != "x86_64":
        pytest.skip("this machine is no x86-64: where it is arm64, `lab test` itself shows this")
    with tempfile.TemporaryDirectory(prefix="lab-arm64-", dir="/var/tmp") as folder, capsys.disabled():
        folder = Path(folder)
        folder.chmod(0o755)
        root = folder / "root"
        unpack(root)
        disk, memory_disk = make_disk(folder, root), make_memory_disk(folder, root)
        print("\n\non arm64, in a virtual machine:")
        said = boot(next(root.glob("boot/vmlinuz*")), memory_disk, disk)
    statuses = dict(re.findall(r"^status (\w+) (\d+)\s*$", said, re.MULTILINE))
    assert statuses == dict.fromkeys(TESTS, "0")


def unpack(root):
    """Make the root of Debian's arm64 packages, the lab in it, and pytest."""
    debian(root, "--variant=extract", "--architectures=arm64", f"--include={','.join(PACKAGES)}")
    make_tree(root / "lab")
    for name in PURE:
        file = Path(importlib.import_module(name).__file__)
        if file.name == "__init__.py":
            shutil.copytree(file.parent, root / "pure" / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(file, root / "pure")
    # What installing would have made.
    (root / "bin/sh").symlink_to("busybox")
    for name in ("iptables", "ip6tables", "iptables-restore", "ip6tables-restore", "iptables-save", "ip6tables-save"):
        (root / "usr/sbin" / name).symlink_to("xtables-nft-multi")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "first").write_text(FIRST.format(names=" ".join(TESTS)))
    (root / "first").chmod(0o755)
    subprocess.run(["depmod", "-b", root, version(root)], check=True)


def version(root):
    """Return the kernel's version, by the folder of its modules."""
    return next(root.glob("lib/modules/*")).name


def make_disk(folder, root):
    """Write the root on an ext4 disk; return its path."""
    disk = folder / "disk.img"
    subprocess.run(["truncate", "-s", "6G", disk], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", root, disk], check=True)
    return disk


def make_memory_disk(folder, root):
    """Write the initramfs, with the modules that lead to the disk; return its path."""
    command = ["modprobe", "--show-depends", "-a", "-d", root, "-S", version(root), "virtio_pci", "virtio_blk", "ext4"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    modules = list(dict.fromkeys(Path(line.split()[1]) for line in lines if line.startswith("insmod")))
    files = [(name, 0o040755, b"") for name in ("bin", "dev", "root")]
    files += [("bin/busybox", 0o100755, (root / "bin/busybox").read_bytes()), ("init", 0o100755, INIT.encode())]
    files += [(module.name, 0o100644, module.read_bytes()) for module in modules]
    files.append(("modules", 0o100644, "".join(f"/{module.name}\n" for module in modules).encode()))
    path = folder / "initramfs"
    path.write_bytes(gzip.compress(vm.cpio(files), 1))
    return path


def boot(kernel, memory_disk, disk):
    """Boot it and wait until it switches itself off; print, and return, what it said."""
    command = [
        *(
            "qemu-system-aarch64",
            "-machine",
            "virt",
            "-cpu",
            "max",
            "-accel",
            "tcg,thread=multi",
            "-smp",
            "2",
            "-m",
            "3072",
        ),
        *("-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot", "-nic", "none"),
        *("-drive", f"format=raw,if=virtio,cache=unsafe,file={disk}"),
        *("-kernel", kernel, "-initrd", memory_disk, "-append", "console=ttyAMA0 loglevel=3 panic=-1"),
    ]
    said = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        preexec_fn=die_with_parent,
    ) as process:
        end = threading.Timer(SECONDS, process.kill)
        end.start()
        for line in process.stdout:
            print(line.rstrip(), flush=True)
            said.append(line)
        end.cancel()
    return "".join(said)
