"""A blob is named by what is in it: `sha256:` and the hash of its bytes.

A layer has two such names. Its *diffID* is the hash of the plain tar, and says
what the layer is. Its *digest* is the hash of the file as it is stored and sent,
often compressed: two compressors give one layer two digests and the same diffID.

    blob (digest) ──decompress──▸ tar (diffID) ──apply──▸ folder

Both are checked while the bytes go by, never in a second pass: what was checked
is then what was used. A small blob can claim to be endless when it is unpacked
(a bomb), so the stream also counts, and stops at its limits.
See the OCI image specification, descriptor.md and layer.md.
"""

import contextlib
import hashlib
import re
import sys
import zlib
from collections.abc import Callable, Iterator

from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadArchive, BadValue, Unsupported
from labkit.ground.later import Later
from labkit.ground.typed import Any

bz2, lzma = Later("bz2"), Later("lzma")  # few layers are packed so
Progress = Callable[[int], object]  # called with the bytes so far
BLOCK = 1 << 18  # bytes a read: large enough for speed, small enough for a progress bar
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_XZ, _BZIP2 = b"\xfd7zXZ\0", b"BZh"


@dataclass(frozen=True)
class Limits:
    """What a layer may cost when it is unpacked: far above real layers, far below a full disk."""

    size: int = 16 << 30  # bytes, of the tar and of all files in it
    entries: int = 1_000_000
    ratio: int = 250  # tar bytes for one stored byte …
    ratio_from: int = 1 << 30  # … counted only past this many: small sparse files shrink more


def digest(data: bytes) -> str:
    """Return the digest of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check(text: object, what: str = "digest") -> str:
    """Return `text` if it is a sha256 digest, else raise BadValue."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise BadValue(f"{what} {text!r} is not a digest", "sha256: and 64 hexadecimal digits")
    return text


def check_archived(text: object) -> str:
    """Return `text` if it is a digest, else raise BadArchive: a manifest said it, not a participant."""
    try:
        return check(text)
    except BadValue as error:
        raise BadArchive(f"a manifest names a blob by {text!r:.80}", error.hint) from None


def hex_of(text: str) -> str:
    """Return the 64 hexadecimal digits of a digest: a safe file name."""
    return check(text).removeprefix("sha256:")


class Hashed:
    """A binary stream, read or written through here, that hashes and counts what goes by."""

    def __init__(self, stream: Any, progress: Progress | None = None) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self._progress = progress
        self.size = 0

    def _saw(self, data: bytes) -> bytes:
        self._hash.update(data)
        self.size += len(data)
        if self._progress:
            self._progress(self.size)
        return data

    def read(self, size: int = -1) -> bytes:
        return self._saw(self._stream.read(size))

    def write(self, data: bytes) -> int:
        self._saw(data)
        return self._stream.write(data)

    def tell(self) -> int:
        return self.size

    @property
    def digest(self) -> str:
        """The digest of all bytes so far."""
        return "sha256:" + self._hash.hexdigest()


class TarStream:
    """The plain tar inside a blob, read once from front to end: counted, hashed, limited.

    `blob` is a binary stream; gzip and zstd are known by their first bytes. After
    `finish()` the properties `digest` and `diff_id` hold for the whole blob.
    """

    def __init__(self, blob: Any, limits: Limits | None = None, progress: Progress | None = None) -> None:
        self._blob = Hashed(blob, progress)
        self._limits = limits or Limits()
        first = self._blob.read(512)
        # A plain blob is the tar itself, and to hash it is the half of reading it: once, then.
        compressed = first.startswith((_GZIP, _ZSTD, _XZ, _BZIP2))
        joined = _Joined(_decompressed(first, self._blob))
        self._plain: Hashed | _Counted = Hashed(joined) if compressed else _Counted(joined)

    def read(self, size: int = -1) -> bytes:
        data = self._plain.read(size)
        size, limits = self._plain.size, self._limits
        if size > limits.size:
            raise BadArchive(f"the layer unpacks to more than {limits.size} bytes", "a bomb, or Limits(size=…)")
        if size > limits.ratio_from and size > limits.ratio * self._blob.size:
            raise BadArchive(
                f"{self._blob.size} stored bytes unpack to more than {size}",
                f"no honest layer shrinks {limits.ratio} to 1: a bomb, or Limits(ratio=…)",
            )
        return data

    def finish(self, digest: str | None = None, diff_id: str | None = None) -> None:
        """Read to the end and compare with the digests promised. Raises BadArchive."""
        while self.read(BLOCK):
            pass
        for promised, found, what in ((digest, self.digest, "blob"), (diff_id, self.diff_id, "tar inside")):
            if promised is not None and promised != found:
                raise BadArchive(
                    f"the {what} has digest {found}, but {promised} was promised",
                    "it was damaged or exchanged on the way: fetch it again",
                )

    @property
    def size(self) -> int:
        """Bytes of plain tar so far."""
        return self._plain.size

    @property
    def digest(self) -> str:
        """The digest of the blob as stored."""
        return self._blob.digest

    @property
    def diff_id(self) -> str:
        """The digest of the plain tar."""
        return self._plain.digest if isinstance(self._plain, Hashed) else self.digest


class _Counted:
    """A stream of which it is counted only how much was read."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.size = 0

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self.size += len(data)
        return data


class _Joined:
    """A read(size) over a generator of byte blocks: as many bytes as asked, fewer only at the end."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        parts, wanted = [], size
        while wanted > 0:
            if not self._rest:
                self._rest = memoryview(next(self._blocks, b""))
                if not self._rest:
                    break
            parts.append(self._rest[:wanted])
            self._rest = self._rest[len(parts[-1]) :]
            wanted -= len(parts[-1])
        return b"".join(parts)


def _decompressed(first: bytes, blob: Hashed) -> Iterator[bytes]:
    """Yield the plain bytes of a blob whose first bytes are given, block by block."""
    if first.startswith(_GZIP):
        return _gunzip(first, blob)
    if first.startswith(_ZSTD):
        return _unzstd(first, blob)
    if first.startswith(_XZ):
        return _streams(first, blob, lambda: lzma.LZMADecompressor(memlimit=1 << 28), "xz")
    if first.startswith(_BZIP2):
        return _streams(first, blob, bz2.BZ2Decompressor, "bzip2")
    return _plain(first, blob)


def has_no_word(first: bytes) -> bool:
    """Tell whether a blob that begins so is compressed by what no media type of a layer names: bzip2, xz."""
    return first.startswith((_XZ, _BZIP2))


def _streams(data: bytes, blob: Hashed, begin: Callable[[], Any], kind: str) -> Iterator[bytes]:
    """Yield what xz or bzip2 hold: one stream after the other."""
    while data:
        stream = begin()
        while not stream.eof:
            try:
                plain = stream.decompress(data, BLOCK)
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise BadArchive(f"the layer is not sound {kind}: {error}", "it was damaged: fetch it again") from None
            if plain:
                yield plain
            data = b""
            if stream.needs_input and not stream.eof and not (data := blob.read(BLOCK)):
                raise BadArchive(f"the layer's {kind} stream stops before its end", "it was cut short: fetch it again")
        data = _after_padding(stream.unused_data, blob)


def _after_padding(data: bytes, blob: Hashed) -> bytes:
    """Return what comes after zeros, to the end of the blob if need be: a compressed file may be padded with them."""
    while not (data := data.lstrip(b"\0")) and (more := blob.read(BLOCK)):
        data = more
    return data


def _plain(first: bytes, blob: Hashed) -> Iterator[bytes]:
    while first:
        yield first
        first = blob.read(BLOCK)


def _gunzip(data: bytes, blob: Hashed) -> Iterator[bytes]:
    # A gzip file may be several members end to end (pigz, estargz write such).
    member = zlib.decompressobj(16 + zlib.MAX_WBITS)
    while data:
        try:
            plain = member.decompress(data, BLOCK)
        except zlib.error as error:
            raise BadArchive(f"the layer is not sound gzip: {error}", "it was damaged: fetch it again") from None
        if plain:
            yield plain
        data = member.unused_data if member.eof else member.unconsumed_tail
        if member.eof:
            data = _after_padding(data, blob)
            if data:
                member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        elif not data:
            data = blob.read(BLOCK)
    if not member.eof:
        raise BadArchive("the layer's gzip stream stops before its end", "it was cut short: fetch it again")


def _unzstd(first: bytes, blob: Hashed) -> Iterator[bytes]:
    zstandard = _zstandard()
    data, member, output = first, None, True
    while data:
        member = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        output = False
        while data:
            # decompressobj has no limit on what one call returns, so feed it little:
            # 1 KiB of zstd is at most some tens of MiB of zeros.
            part, data = data[:1024], data[1024:]
            try:
                plain = member.decompress(part)
            except zstandard.ZstdError as error:
                raise BadArchive(f"the layer is not sound zstd: {error}", "it was damaged: fetch it again") from None
            if plain:
                yield plain
            if member.eof:
                data, output = member.unused_data + data, True
                break
            data = data or blob.read(BLOCK)
        data = data or blob.read(BLOCK)
    if not output:
        raise BadArchive("the layer's zstd stream stops before its end", "it was cut short: fetch it again")


def _zstandard() -> Any:
    if sys.flags.no_site:  # `lab run` does without packages, until a layer wants one
        import site

        site.main()
    try:
        import zstandard
    except ImportError:
        raise Unsupported("zstd layers need the Python package zstandard", "`lab up` installs it") from None
    return zstandard


@contextlib.contextmanager
def compressed(out: Any, how: str | None) -> Iterator[Any]:
    """Give a stream whose writes arrive in `out` plain (None), by "gzip" or by "zstd".

    No name and no time goes into the file: the same bytes in, the same bytes out.
    """
    if how is None:
        yield out
    elif how == "gzip":
        import gzip

        with gzip.GzipFile("", "wb", 6, out, mtime=0) as stream:
            yield stream
    elif how == "zstd":
        with _zstandard().ZstdCompressor(level=3).stream_writer(out, closefd=False) as stream:
            yield stream
    else:
        raise BadValue(f"compression {how!r}", "None, 'gzip' or 'zstd'")
