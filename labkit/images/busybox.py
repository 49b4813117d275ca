"""The first image, made offline from one file: the machine's own static busybox.

A root filesystem needs surprisingly little. One program without libraries, under
269 names; a few small files that other programs expect; a few empty folders. It is
written as a true layer, config and manifest, so that from here on it is an image
like any other, and Docker and Podman can run it too.

No time, no user name and no folder of this machine goes in: the same busybox makes
the same bytes, so everyone who has it has the same digest.
"""

import io
import os
import struct
import subprocess
import tarfile

from labkit.ground.errors import NotFound, Unsupported, from_oserror
from labkit.images import digests, layout
from labkit.images.catalog import BUSYBOX

_WHERE = ("/bin/busybox", "/usr/bin/busybox")

_FILES = {
    "etc/passwd": """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
""",
    "etc/group": """\
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
tty:x:5:
disk:x:6:
mail:x:8:
www-data:x:33:
users:x:100:
nogroup:x:65534:
""",
    "etc/os-release": 'NAME="busybox"\nID=busybox\nPRETTY_NAME="busybox, made by labkit"\n',
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "etc/resolv.conf": "",
    "etc/hostname": "",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_FOLDERS = {
    "": 0o755,
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "lib": 0o755,
    "mnt": 0o755,
    "opt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sbin": 0o755,
    "srv": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "usr": 0o755,
    "usr/bin": 0o755,
    "usr/sbin": 0o755,
    "usr/lib": 0o755,
    "var": 0o755,
    "var/log": 0o755,
    "var/spool": 0o755,
    "var/spool/mail": 0o755,
    "var/tmp": 0o1777,
    "var/www": 0o755,
}


def make(store: layout.Layout) -> str:
    """Write the base image into a Layout under BUSYBOX; return its manifest's digest.

    Raises NotFound without a static busybox, which the package busybox-static has.
    """
    path, data = _busybox()
    tar = _layer(path, data)
    diff_id = digests.digest(tar)
    config, config_size = store.add_json(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "config": {
                "Cmd": ["sh"],
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created_by": f"labkit: {path} under all its names"}],
        }
    )
    # Stored plain: compressors differ from version to version, and with them the digest.
    manifest, _ = store.add_json(
        {
            "schemaVersion": 2,
            "mediaType": layout.MANIFEST,
            "config": {"mediaType": layout.CONFIG, "digest": config, "size": config_size},
            "layers": [{"mediaType": layout.LAYER, "digest": store.add(tar), "size": len(tar)}],
        }
    )
    store.set_name(BUSYBOX, manifest)
    return manifest


def _busybox() -> tuple[str, bytes]:
    for path in _WHERE:
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise from_oserror(error, f"reading {path}") from None
        if is_static(data):
            return path, data
    raise NotFound("this machine has no static busybox", "apt-get install busybox-static (`lab up` does)")


def is_static(elf: bytes) -> bool:
    """Tell whether an ELF program runs without a loader: it has no PT_INTERP segment. See elf(5)."""
    PT_INTERP = 3
    if elf[:4] != b"\x7fELF" or len(elf) < 64 or elf[4] != 2:  # 2: 64 bit
        return False
    order = "<" if elf[5] == 1 else ">"
    (offset,) = struct.unpack_from(order + "Q", elf, 32)
    size, count = struct.unpack_from(order + "HH", elf, 54)
    if offset + size * count > len(elf):
        return False
    return all(struct.unpack_from(order + "I", elf, offset + size * index)[0] != PT_INTERP for index in range(count))


def _names(path: str) -> list[str]:
    """Return every name busybox answers to, with its folder, as busybox itself lists them."""
    try:
        listed = subprocess.run([path, "--list"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unsupported(f"{path} --list failed: {error}", "reinstall busybox-static") from None
    return sorted(set(listed.stdout.split()) - {"busybox"})


def _layer(path: str, data: bytes) -> bytes:
    """Return the layer's tar: folders, files, busybox once, and a hard link to it for each other name."""
    out = io.BytesIO()
    tar = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed below
    for name, mode in _FOLDERS.items():
        tar.addfile(_entry(name or ".", mode, tarfile.DIRTYPE))
    _file(tar, "bin/busybox", data, 0o755)
    for name in _names(path):
        _link(tar, os.path.join("bin", name))
    _link(tar, "usr/bin/env")  # where every script's first line looks for it
    for name, text in _FILES.items():
        _file(tar, name, text.encode(), 0o644)
    tar.close()
    return out.getvalue()


def _entry(name: str, mode: int, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)  # owner 0:0, time 0
    entry.mode, entry.type = mode, kind
    return entry


def _file(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = _entry(name, mode, tarfile.REGTYPE)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _link(tar: tarfile.TarFile, name: str) -> None:
    entry = _entry(name, 0o755, tarfile.LNKTYPE)
    entry.linkname = "bin/busybox"
    tar.addfile(entry)
