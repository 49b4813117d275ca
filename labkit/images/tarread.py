"""A tar from a stranger, read entry by entry, with a limit on all that it can ask for.

A tar is 512-byte blocks: a header (name, size, owner, mode, a checksum), then the
file's data, then the next header; two blocks of zeros are the end mark. What fits in
no header (long names, xattrs, fractions of a second) stands in an extended header
before it, whose size is again only a number that the writer chose.

Python's tarfile knows every dialect, and trusts: a header that claims a terabyte is
read into memory, a broken one is taken for the end. This module stands around it and
makes each of these a BadArchive. See pax(1), tar(5).
"""

import tarfile
from collections.abc import Iterator
from decimal import Decimal

from labkit.ground.errors import BadArchive
from labkit.ground.typed import IO, Any
from labkit.images.rootdir import shown

_XATTR = "SCHILY.xattr."  # where pax headers keep them: star's key, which docker and all others took over
_HEADER = 1 << 20  # bytes one extended header may have: Linux's own limits need 64 KiB of xattrs
_LABELS = ("security.selinux", "security.ima", "security.evm")  # the host's policy, not the image's
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class Reader:
    """The entries of a tar stream, once, from front to end.

    After the loop `whole` tells whether the tar had its end mark. Raises BadArchive,
    and the kinds in DAMAGE where tarfile can make no sense of the bytes.
    """

    def __init__(self, stream: Any, limits: Any) -> None:
        self._source = _Source(stream)
        self._limits = limits
        self._tar: Any = None
        self.entries = 0
        self._bytes = 0

    @property
    def whole(self) -> bool:
        """Whether the end mark has been read."""
        return self._source.whole

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        source = self._source
        source.headers()
        try:
            self._tar = tarfile.open(  # type: ignore[call-overload]  # noqa: SIM115 - nothing to close: the stream is the caller's
                fileobj=source,
                mode="r|",
                bufsize=1 << 16,
                tarinfo=_Entry,
                encoding="utf-8",
                errors="surrogateescape",
            )
        except tarfile.ReadError as error:
            if str(error) != "empty file":
                raise
            source.whole = True  # a layer of no bytes at all is one that changes nothing
            return
        while (entry := self._tar.next()) is not None:
            source.data()
            self._count(entry)
            yield entry
            self._tar.members.clear()  # tarfile keeps each entry; a layer may have a million
            source.headers()
        source.data()

    def _count(self, entry: tarfile.TarInfo) -> None:
        self.entries += 1
        self._bytes += entry.size
        if self.entries > self._limits.entries:
            raise BadArchive(f"the layer has more than {self._limits.entries} entries", "a bomb, or Limits(entries=…)")
        if self._bytes > self._limits.size:
            raise BadArchive(
                f"the layer's files come to more than {self._limits.size} bytes", "a bomb, or Limits(size=…)"
            )

    def data(self, entry: tarfile.TarInfo) -> IO[bytes]:
        """Return the file object of the entry the loop is at; read it before going on."""
        return self._tar.extractfile(entry)


# What tarfile raises when the bytes make no sense.
DAMAGE = (tarfile.TarError, ValueError, LookupError, ArithmeticError)


class _Entry(tarfile.TarInfo):
    """tarfile's reader, with a limit on what a header may ask it to hold in memory."""

    @classmethod
    def fromtarfile(cls, tar: Any) -> "_Entry":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # a block of zeros
            tar.fileobj.fileobj.whole = True
            raise
        except tarfile.TruncatedHeaderError:  # type: ignore[attr-defined]
            raise BadArchive(
                "the layer's tar stops in the middle of a header", "it was cut short: fetch it again"
            ) from None
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            # Left to itself, tarfile takes a broken header for the end, and half a layer for all of it.
            raise BadArchive(f"the layer's tar has a broken header: {error}", "it is damaged: fetch it again") from None

    def _proc_member(self, tar: Any) -> Any:
        extended = self.type in _EXTENDED
        if self.size < 0 or (extended and self.size > _HEADER):
            raise BadArchive(f"the layer's tar has a header of {self.size} bytes", "a bomb: don't use it")
        return super()._proc_member(tar)  # type: ignore[misc]


class _Source:
    """What tarfile reads from: while it reads headers, it gets only so much."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.whole = False
        self.left: int | None = None

    def read(self, size: int) -> bytes:
        if self.left is not None:
            self.left -= size
            if self.left < 0:
                raise BadArchive("the layer's tar has an endless header", "a bomb: don't use it")
        return self._stream.read(size)

    def headers(self) -> None:
        self.left = 4 * _HEADER

    def data(self) -> None:
        self.left = None


def nanoseconds(entry: tarfile.TarInfo) -> int:
    """Return an entry's time, with its fraction of a second if it has one."""
    try:
        seconds = Decimal(entry.pax_headers.get("mtime", entry.mtime))
        if abs(seconds) < 1 << 40:
            return int(seconds * 1_000_000_000)
    except ArithmeticError:
        pass
    raise BadArchive(f"{shown(entry.name)} of the layer has a time no file can have", "it is damaged: fetch it again")


def xattrs(entry: tarfile.TarInfo) -> dict[str, bytes]:
    """Return {name: bytes} of an entry's xattrs; labels of the host's own policy are left out."""
    return {
        key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
        for key, value in entry.pax_headers.items()
        if key.startswith(_XATTR) and not is_label(key.removeprefix(_XATTR))
    }


def is_label(xattr: str) -> bool:
    """Tell whether an xattr is a label by which this host's policy judges a file: never an image's to set."""
    return xattr in _LABELS
