"""Tars made by hand, honest and not: what the tests of layers unpack."""

import io
import tarfile


def entry(name, kind=tarfile.REGTYPE, data=b"", **fields):
    """Return (TarInfo, data)."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    info.mode = fields.pop("mode", 0o755 if kind == tarfile.DIRTYPE else 0o644)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name, **fields):
    return entry(name, tarfile.DIRTYPE, **fields)


def link(name, to):
    return entry(name, tarfile.LNKTYPE, linkname=to)


def symlink(name, to):
    return entry(name, tarfile.SYMTYPE, linkname=to)


def tar(*entries, form=tarfile.PAX_FORMAT):
    """Return the bytes of a tar of these entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as file:
        for info, data in entries:
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def pax(**records):
    """Return the block(s) of a raw pax header; keys with dots by **{"a.b": …}, values as bytes."""
    body = b""
    for key, value in records.items():
        text = b" " + key.encode() + b"=" + value + b"\n"
        size = len(text) + len(str(len(text)))
        size = len(text) + len(str(size))
        body += str(size).encode() + text
    return raw("pax", tarfile.XHDTYPE, len(body)) + pad(body)


def pad(data):
    return data + b"\0" * (-len(data) % 512)


def raw(name, kind, size, linkname="", checksum=None, size_field=None):
    """Return one 512-byte header as we like it, sound or not."""
    header = bytearray(512)
    header[: len(name)] = name.encode("utf-8", "surrogateescape")
    header[100:108] = b"0000644\0"
    header[108:116] = header[116:124] = b"0000000\0"
    header[124:136] = size_field or b"%011o\0" % size
    header[136:148] = b"00000000000\0"
    header[148:156] = b" " * 8
    header[156:157] = kind
    header[157 : 157 + len(linkname)] = linkname.encode()
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % (sum(header) if checksum is None else checksum)
    return bytes(header)


END = bytes(1024)
