"""A virtual machine as small as a container, to stand beside one: qemu, a kernel, one program.

    with vm.start() as guest:
        print(guest.said["kernel"], guest.seconds)

A virtual machine is a pretended computer: a processor, memory, a serial line. It
needs a kernel of its own, started from the first instruction on, before its first
process can run. This one has Debian's kernel and, as its whole disk, an archive in
memory (an initramfs) of the same busybox that our image is made of. Its first
process says what it sees on the serial line, and then waits.

With KVM the real processor runs the guest; without, qemu translates its instructions
one by one (TCG), which is some ten times slower. Which of them works is tried out.
See qemu(1), "initramfs buffer format" in the kernel's documentation.
"""

import contextlib
import functools
import gzip
import os
import platform
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from labkit.cgroups import cgroup
from labkit.ground import packages, proc, state
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import LabError, Unsupported, from_oserror

# qemu's program and machine, the serial line's name in the guest, Debian's package of a kernel
_MACHINES = {
    "x86_64": ("qemu-system-x86_64", "pc", "ttyS0", "linux-image-cloud-amd64"),
    "aarch64": ("qemu-system-aarch64", "virt", "ttyAMA0", "linux-image-cloud-arm64"),
}
MEMORY = 128  # MB that the guest is given

_INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
echo "says kernel $(uname -r)"
echo "says boot $(cat /proc/sys/kernel/random/boot_id)"
echo "says processes $(ls /proc | grep -c '^[0-9]')"
echo "says memory $(grep MemTotal /proc/meminfo | tr -dc 0-9)"
echo "says hypervisor $(grep -c -w hypervisor /proc/cpuinfo)"
echo "says first $$"
exec sleep 100000
"""


def missing() -> str | None:
    """Return why no guest can be started here, or None."""
    if platform.machine() not in _MACHINES:
        return f"the lab has no guest for {platform.machine()}"
    program = _MACHINES[platform.machine()][0]
    return None if shutil.which(program) else f"no {program} on this machine ({packages.advice(program)})"


def cache() -> Path:
    """Return the folder for what is fetched or made once for this machine, whatever LABKIT_ROOT is."""
    path = Path(os.environ.get("LABKIT_CACHE", "/var/cache/labkit"))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_oserror(error, f"making {path}") from None
    return path


def kernel() -> Path:
    """Return the path of a kernel for the guest: this machine's own, else Debian's, fetched once and not installed.

    Raises Unsupported where there is neither.
    """
    own = Path("/boot", f"vmlinuz-{platform.release()}")
    if own.exists():
        return own
    path = cache() / "vmlinuz"
    if not path.exists():
        with state.lock("vm-kernel"):
            if not path.exists():
                _fetch(path)
    return path


def _fetch(path: Path) -> None:
    package = _MACHINES[platform.machine()][3]
    with tempfile.TemporaryDirectory(prefix="labkit-kernel-", dir=cache()) as folder:
        script = (
            f"name=$(apt-cache depends {package} | sed -n 's/.*Depends: //p' | grep '^linux-image' | head -1)\n"
            'apt-get download -q "$name" && dpkg-deb --fsys-tarfile ./*.deb | tar -x --wildcards "./boot/vmlinuz*"'
        )
        done = subprocess.run(["sh", "-ec", script], cwd=folder, capture_output=True, text=True)
        found = list(Path(folder).glob("boot/vmlinuz*"))
        if not found:
            raise Unsupported(
                f"no kernel for the guest: {(done.stderr or done.stdout).strip()[-200:]}", f"apt-get install {package}"
            )
        os.rename(found[0], path)


def initramfs() -> Path:
    """Return the path of the guest's whole disk: the busybox image's files and an /init, in a compressed cpio."""
    busybox = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), None)
    if busybox is None:
        raise Unsupported("no busybox on this machine", "apt-get install busybox-static (`lab up` does)")
    files = [(name, 0o040755, b"") for name in ("bin", "proc", "sys", "dev")]
    files += [("init", 0o100755, _INIT.encode()), ("bin/busybox", 0o100755, Path(busybox).read_bytes())]
    for name in ("sh", "mount", "echo", "uname", "cat", "ls", "grep", "tr", "sleep"):
        files.append((f"bin/{name}", 0o120777, b"busybox"))
    path = state.lib_dir("vm") / "initramfs"
    state.write_atomic(path, gzip.compress(cpio(files), 6, mtime=0), sync=False)
    return path


def cpio(files: list[tuple[str, int, bytes]]) -> bytes:
    """Return an archive in the "newc" format: (name, mode, content), and the trailer."""
    out = bytearray()
    for number, (name, mode, data) in enumerate([*files, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


@dataclass
class Guest:
    """A virtual machine whose first process runs."""

    pid: int  # of qemu: to this machine the whole guest is one process
    accelerator: str  # kvm or tcg
    seconds: float  # from the start of qemu to the guest's first process
    said: dict  # what that process saw: kernel, boot, processes, memory, hypervisor, first
    disk: int  # bytes of its kernel and initramfs

    @property
    def memory(self) -> int:
        """The bytes of this machine's memory that it holds now."""
        return held(self.pid)


def held(pid: int) -> int:
    """Return how much memory a process holds, in bytes; pages shared by n processes count as 1/n. See proc(5), Pss."""
    for line in proc.read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


@functools.cache
def accelerator(seconds: float = 6) -> str:
    """Return "kvm" if a guest comes up with it in some seconds, else "tcg". Tried once a boot and remembered."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    note = cache() / "accelerator"
    known = state.read_json(note)
    if known and known["boot"] == proc.boot_id():
        return known["accelerator"]
    try:
        with start("kvm", seconds):
            found = "kvm"
    except LabError:
        found = "tcg"
    state.write_json(note, {"boot": proc.boot_id(), "accelerator": found})
    return found


@contextlib.contextmanager
def start(accel: str | None = None, seconds: float = 90) -> Iterator[Guest]:
    """Start a guest, wait for its first process, yield the Guest, and end it.

    Raises Unsupported without qemu or a kernel, LabError if it says nothing for `seconds`.
    """
    if reason := missing():
        raise Unsupported(f"no virtual machine here: {reason}")
    accel = accel or accelerator()
    program, machine, line, _ = _MACHINES[platform.machine()]
    image, disk = kernel(), initramfs()
    command = [
        program, "-machine", machine, "-accel", accel, "-cpu", "host" if accel == "kvm" else "max", "-m", str(MEMORY),
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-kernel", str(image), "-initrd", str(disk), "-append", f"console={line} quiet panic=-1 mitigations=off",
    ]  # fmt: skip
    with cgroup.Cgroup.create(f"vm-{state.new_id()}") as group, tempfile.TemporaryFile() as complaints:
        # Born in a cgroup of ours: whatever happens here, `lab clean` ends it.
        enter = "".join(f"echo $$ > {shlex.quote(str(path))}; " for path in group.procs_files)
        process = subprocess.Popen(
            ["sh", "-c", f"{enter}exec {shlex.join(command)}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True,
        )  # fmt: skip
        begin = time.monotonic()
        try:
            said = _listen(process, begin + seconds, accel, complaints)
            size = sum(os.path.getsize(path) for path in (image, disk))
            yield Guest(process.pid, accel, time.monotonic() - begin, said, size)
        finally:
            process.kill()
            process.communicate()


def _listen(process: Any, deadline: float, accel: str, complaints: IO[bytes]) -> dict[str, str]:
    """Read the serial line until the guest's first process has said all; what qemu itself says is in `complaints`."""
    text, said = b"", {}
    while "first" not in said:
        if not select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
            raise LabError(f"the guest said nothing in time, with -accel {accel}", "a slow machine? start(seconds=…)")
        block = os.read(process.stdout.fileno(), 65536)
        if not block:
            complaints.seek(0)
            raise LabError(f"qemu ended: {(complaints.read() or text).decode(errors='replace').strip()[-300:]}")
        text += block
        for line in text.decode(errors="replace").split("\n")[:-1]:
            words = line.strip().split(" ", 2)
            if words[0] == "says" and len(words) == 3:
                said[words[1]] = words[2]
    return said
