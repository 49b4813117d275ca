"""Sizes, counts and lists as people write them, as numbers; what can't be meant is a BadValue.

Digits here are 0 to 9: Python's int() also takes those of forty other scripts,
underscores and spaces, and none of that is meant in a limit.
"""

import os
import re
import stat
from pathlib import Path

from labkit.ground.errors import BadValue, Unsupported

UNLIMITED = -1  # docker's word for it; the kernel's is "max" (v2, pids) or -1 (v1)
MAX_BYTES = (1 << 63) - 1


def whole(name: str, value: int | None, least: int, most: int, unlimited: bool = False) -> int | None:
    """Return `value` if it is None or a whole number in least..most, else raise BadValue."""
    if value is None or (unlimited and value == UNLIMITED):
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadValue(f"{name} {value!r} is not a whole number")
    if not least <= value <= most:
        raise BadValue(f"{name} {value} is not in {least}..{most}", "-1 means no limit" if unlimited else None)
    return value


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)i?b?", re.ASCII | re.IGNORECASE)


def parse_size(name: str, value: object) -> int:
    """Return a number of bytes from "32m", "1.5g", "4096" or 4096; UNLIMITED from -1."""
    from decimal import Decimal  # only who has such a limit waits for it

    text = str(value).strip()
    if text == "-1":
        return UNLIMITED
    match = _SIZE.fullmatch(text) if not isinstance(value, bool) and len(text) < 40 else None
    if not match:
        raise BadValue(f"{name} {value!r} is not a size", "a number and b, k, m or g, like 32m; -1 means no limit")
    power = "kmgtp".find(match[2].lower()) + 1 if match[2] else 0
    size = int(Decimal(match[1]) * 1024**power)
    if size > MAX_BYTES:
        raise BadValue(f"{name} {value!r} is more than the kernel can count ({MAX_BYTES} bytes)")
    return size


def parse_count(name: str, value: object) -> int:
    """Return a whole number from text or a number; UNLIMITED from -1."""
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"-1|\d{1,18}", text, re.ASCII):
        raise BadValue(
            f"{name} {value!r} is not a whole number", "digits only; -1 means no limit where there can be one"
        )
    return int(text)


def parse_list(name: str, value: object) -> set[int]:
    """Return the set of numbers that a list like "0-2,5" means. See cpuset(7), List format."""
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", value, re.ASCII):
        raise BadValue(f"{name} {value!r} is not a list of CPUs", "numbers and ranges, like 0-2,5")
    found: set[int] = set()
    for part in value.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first):
            raise BadValue(f"{name} {value!r} has a range that runs backwards: {part}")
        found.update(range(int(first), int(last or first) + 1))
    return found


def disk_of(folder: str | Path) -> str:
    """Return the major:minor of the disk that a folder's files are on. Raise Unsupported if there is none.

    A folder knows its device. If that is a partition, a limit belongs on the whole
    disk: the kernel takes none for a part. See stat(2), sysfs(5).
    """
    number = os.stat(folder).st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    if not device.exists():
        raise Unsupported(
            f"{folder} is on no block device, and only those can be limited",
            "put labkit's files on a disk: LABKIT_ROOT=/folder",
        )
    whole_disk = device.parent if (device / "partition").exists() else device
    return (whole_disk / "dev").read_text().strip()


def device_number(path: str) -> str:
    """Return the major:minor of the block device at `path`; major:minor is returned as it is."""
    if re.fullmatch(r"\d+:\d+", path, re.ASCII):
        return path
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise BadValue(f"device {path!r}: {getattr(error, 'strerror', error)}", "`lsblk -p` lists them") from None
    if not stat.S_ISBLK(status.st_mode):
        raise BadValue(f"{path} is not a block device", "`lsblk -p` lists them")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
