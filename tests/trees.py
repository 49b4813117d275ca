"""Trees of files, made and compared entry by entry."""

import hashlib
import os
import stat


def snapshot(root, times=True, ignore=()):
    """Return {path: everything that can be said of it} for a folder and all in it.

    Hard links are told by the first of their names, which alone has the data: busybox has 400.
    `times=False` leaves out those of folders: a merged view or another tool may touch them.
    """
    first, found = {}, {}
    root = os.fsencode(root)
    for path in sorted(_all(root)):
        status = os.lstat(path)
        name = os.path.relpath(path, root)
        said = {"mode": oct(status.st_mode), "owner": (status.st_uid, status.st_gid)}
        said["xattrs"] = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
            if key not in ignore
        }
        if times or not stat.S_ISDIR(status.st_mode):
            said["time"] = status.st_mtime_ns
        if not stat.S_ISDIR(status.st_mode):
            said["same as"] = first.setdefault((status.st_dev, status.st_ino), name)
        if stat.S_ISREG(status.st_mode) and said["same as"] == name:
            with open(path, "rb") as file:
                said["data"] = (status.st_size, hashlib.file_digest(file, "sha256").hexdigest())
        if stat.S_ISLNK(status.st_mode):
            said["to"] = os.readlink(path)
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            said["device"] = (os.major(status.st_rdev), os.minor(status.st_rdev))
        found[name] = said
    return found


def _all(root):
    yield root
    for path, folders, files in os.walk(root):
        for name in folders + files:
            yield os.path.join(path, name)


def differences(one, other):
    """Return what differs between two snapshots, a line each: an assertion's message."""
    lines = []
    for path in sorted(one.keys() | other.keys()):
        if path not in one or path not in other:
            lines.append(f"{path}: only in the {'first' if path in one else 'second'}")
            continue
        for key in sorted(one[path].keys() | other[path].keys()):
            if one[path].get(key) != other[path].get(key):
                lines.append(f"{path}: {key} is {one[path].get(key)} and {other[path].get(key)}")
    return lines
