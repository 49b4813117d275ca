"""A file that the kernel treats as a disk: a loop device, taken and given back.

    with loop.attached("/var/lib/labkit/btrfs/pool.img") as device: …

The device is set to clear itself when the last mount of it goes, and it is in the
ledger by the file it stands on: its own number means nothing after it was given out
again. See loop(4).
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from labkit.ground import ledger, proc
from labkit.ground.errors import LabError, Unsupported, from_oserror

# linux/loop.h
LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LOOP_CLR_FD = 0x4C01
LO_FLAGS_AUTOCLEAR = 4

PATIENCE = 5  # seconds for the last user of a device to go


class _loop_info64(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("device", "inode", "rdevice", "offset", "sizelimit")),
        *((name, ctypes.c_uint32) for name in ("number", "encrypt_type", "encrypt_key_size", "flags")),
        ("file_name", ctypes.c_char * 64),
        ("crypt_name", ctypes.c_char * 64),
        ("encrypt_key", ctypes.c_ubyte * 32),
        ("init", ctypes.c_uint64 * 2),
    ]


class _loop_config(ctypes.Structure):
    _fields_ = [
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _loop_info64),
        ("reserved", ctypes.c_uint64 * 8),
    ]


@contextlib.contextmanager
def attached(file: str | Path) -> Iterator[str]:
    """Let a loop device stand on a file for the block; yield its path. It is in the ledger."""
    with ledger.made("loop", file=str(file)):
        path, fd = attach(file)
        try:
            yield path
        finally:
            os.close(fd)


def attach(file: str | Path) -> tuple[str, int]:
    """Return the path of a loop device that stands on a file, made if there is none yet; the fd holds it.

    Returns (path, fd): close the fd when the device is mounted, and it lives as long
    as the mount. Raises Unsupported without loop devices.
    """
    for path in devices_of(file, deleted=False):
        # One file under two devices would be two caches of one disk: it would be destroyed.
        return path, os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unsupported(f"no loop devices here: /dev/loop-control, {error.strerror}", "modprobe loop") from None
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(50):
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            path = f"/dev/loop{number}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            config = _loop_config(fd=backing)
            config.info.flags = LO_FLAGS_AUTOCLEAR
            config.info.file_name = os.fsencode(file)[-63:]
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, config)
                return path, device
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else took this number first
                    raise
        raise LabError("no free loop device", "losetup -a lists who has them")
    except OSError as error:
        raise from_oserror(error, f"attaching {file} to a loop device") from None
    finally:
        os.close(backing)
        os.close(control)


def devices_of(file: str | Path, deleted: bool = True) -> list[str]:
    """Return the loop devices that stand on a file, also on one of that name that was deleted."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            said = backing.read_text().rstrip("\n")
            if (said.removesuffix(" (deleted)") if deleted else said) == str(file):
                found.append(f"/dev/{backing.parent.parent.name}")
    return found


@ledger.undoes("loop")
def detach(file: str | Path) -> None:
    """Detach every loop device from a file; quiet if there is none. The ledger's kind `loop`."""
    deadline = time.monotonic() + PATIENCE
    while devices := devices_of(file):
        for path in devices:
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(fd, LOOP_CLR_FD)
                finally:
                    os.close(fd)
        late = time.monotonic() > deadline
        if all(_clears_itself(path) for path in devices) and (late or _mounted_elsewhere(devices)):
            # Somebody's mount namespace, made meanwhile, has a copy of the mount. The
            # device goes with that namespace: the kernel has been told, nobody need wait.
            return
        if late:
            raise LabError(f"{devices[0]} is still in use for {file}", f"findmnt {devices[0]}")
        time.sleep(0.01)


def _mounted_elsewhere(devices: Iterable[str]) -> bool:
    """Tell whether a process in another mount namespace than ours has one of these devices mounted."""
    seen = {proc.namespace("self", "mnt")}
    for pid in proc.pids():
        with contextlib.suppress(LabError):  # ended meanwhile
            namespace = proc.namespace(pid, "mnt")
            if namespace not in seen:
                seen.add(namespace)
                if any(mount.source in devices for mount in proc.mounts(pid)):
                    return True
    return False


def _clears_itself(path: str) -> bool:
    try:
        return Path("/sys/block", os.path.basename(path), "loop/autoclear").read_text().strip() == "1"
    except OSError:
        return True  # gone
