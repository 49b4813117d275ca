"""A layer from a stranger is refused: nothing outside its folder is touched, nothing half stays."""

import gzip
import io
import os
import re
import stat
import struct
import tarfile
import threading
import zlib

import pytest
import zstandard
from tars import END, entry, folder, link, pad, pax, raw, symlink, tar

from labkit.ground import ledger
from labkit.ground.errors import BadArchive, BadValue, InUse, LabError
from labkit.images import digests, layers

pytestmark = pytest.mark.usefixtures("needs_root")


@pytest.fixture
def place(tmp_path):
    """A folder with a victim beside the place where the layer goes; both must stay as they are."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/secret").write_text("untouched")
    (tmp_path / "target-parent").mkdir()
    return tmp_path


def look(place):
    found = {}
    for path, folders, files in os.walk(place):
        for name in folders + files:
            full = os.path.join(path, name)
            status = os.lstat(full)
            found[full] = (status.st_mode, status.st_uid, status.st_size, status.st_nlink, status.st_mtime_ns)
    return found


def refused(place, data, kind=BadArchive, match=None, **options):
    before, in_ledger = look(place), len(ledger.entries())
    with pytest.raises(kind, match=match) as caught:
        layers.apply(io.BytesIO(data), place / "target-parent/layer", **options)
    changed = {path for path, status in look(place).items() if before.get(path) != status}
    # Making and removing the scratch folder changes the time of the folder it was in, no more.
    assert changed <= {str(place / "target-parent")}
    assert set(look(place)) == set(before)
    assert (place / "victim/secret").read_text() == "untouched"
    assert len(ledger.entries()) == in_ledger
    assert "\n  → " in str(caught.value), "an error says what to do"
    return caught.value


XATTR = "SCHILY.xattr."
BIG = 1 << 40

HOSTILE = {
    # Names that lead out
    "dotdot at the front": tar(entry("../victim/secret", data=b"x")),
    "dotdot alone": tar(folder("..")),
    "dotdot in the middle": tar(folder("a"), entry("a/../../victim/secret", data=b"x")),
    "dotdot that stays inside": tar(folder("a"), entry("a/../b", data=b"x")),
    "dotdot at the end": tar(folder("a/..")),
    "dotdot by pax header": pax(path=b"../victim/secret") + raw("a", b"0", 0) + END,
    "dotdot by GNU long name": raw("././@LongLink", b"L", 17) + pad(b"../victim/secret\0") + raw("a", b"0", 0) + END,
    # Symlinks on the way
    "symlinked parent, absolute": tar(symlink("a", "/etc"), entry("a/labkit-was-here", data=b"x")),
    "symlinked parent, relative": tar(symlink("a", "../../victim"), entry("a/secret", data=b"x")),
    "symlinked parent, two steps": tar(symlink("a", ".."), symlink("b", "a/.."), entry("b/x", data=b"x")),
    "symlinked parent, deep": tar(folder("d"), symlink("d/a", "../../../victim"), entry("d/a/secret", data=b"x")),
    "symlinked parent of a folder": tar(symlink("a", "/tmp"), folder("a/labkit-was-here")),
    "symlinked parent, implied": tar(symlink("a", "/tmp"), entry("a/b/c/d", data=b"x")),
    "folder swapped for a symlink": tar(
        folder("a"), entry("a/x", data=b"x"), symlink("a", "../../victim"), entry("a/secret", data=b"x")
    ),
    "loop of symlinks": tar(symlink("a", "b"), symlink("b", "a"), entry("a/x", data=b"x")),
    "symlink to itself as parent": tar(symlink("a", "a"), entry("a/x", data=b"x")),
    "proc magic link": tar(symlink("a", "/proc/self/root"), entry("a/tmp/labkit-was-here", data=b"x")),
    "file as parent": tar(entry("a", data=b"x"), entry("a/b", data=b"x")),
    "symlink to nothing": tar(symlink("a", "")),
    # Hard links
    "hard link dotdot": tar(link("a", "../../victim/secret")),
    "hard link absolute": tar(link("a", "/etc/passwd")),
    "hard link through a symlink": tar(symlink("a", "../../victim"), link("b", "a/secret")),
    "hard link through an absolute symlink": tar(symlink("a", "/etc"), link("b", "a/passwd")),
    "hard link to nothing": tar(link("a", "not-there")),
    "hard link to a folder": tar(folder("d"), link("a", "d")),
    "hard link to the root": tar(link("a", ".")),
    "hard link to itself": tar(link("a", "a")),
    "hard link to a whiteout": tar(entry(".wh.a"), link("b", "a")),
    # Whiteouts
    "whiteout of the folder itself": tar(entry(".wh..")),
    "whiteout of the folder above": tar(entry(".wh...")),
    "whiteout of nothing": tar(entry(".wh.")),
    "whiteout of the folder above, deep": tar(folder("a"), entry("a/.wh...")),
    "whiteout through a symlink": tar(symlink("a", "../../victim"), entry("a/.wh.secret")),
    "opaque through a symlink": tar(symlink("a", "../../victim"), entry("a/.wh..wh..opq")),
    "whiteout as a folder": tar(entry(".wh.a/b", data=b"x")),
    # Overlayfs's own marks, smuggled
    "trusted.overlay.redirect": tar(folder("a", pax_headers={XATTR + "trusted.overlay.redirect": "/etc"})),
    "trusted.overlay.opaque": tar(folder("a", pax_headers={XATTR + "trusted.overlay.opaque": "y"})),
    "trusted.overlay.metacopy": tar(entry("a", pax_headers={XATTR + "trusted.overlay.metacopy": ""})),
    "user.overlay.redirect": tar(folder("a", pax_headers={XATTR + "user.overlay.redirect": "/etc"})),
    "overlay xattr on the root": tar(folder(".", pax_headers={XATTR + "trusted.overlay.origin": "x"})),
    # Devices and other kinds
    "block device": tar(entry("sda", tarfile.BLKTYPE, devmajor=8, devminor=0)),
    "character device": tar(entry("mem", tarfile.CHRTYPE, devmajor=1, devminor=1)),
    "unknown type": raw("a", b"Q", 0) + END,
    "root as a file": tar(entry(".", data=b"x")),
    "root as a symlink": tar(symlink("./", "/etc")),
    # Names no file can have
    "name of 300 bytes": tar(entry("n" * 300, data=b"x")),
    "path of 5000 bytes": tar(entry("/".join(["d" * 99] * 50), data=b"x")),
    "300 folders deep": tar(entry("/".join(["d"] * 300), data=b"x")),
    "deep by symlinks": tar(
        entry("/".join(["d"] * 200) + "/x"),
        symlink("a", "/".join(["d"] * 200)),
        entry("a/" + "/".join(["e"] * 100)),
    ),
    "NUL in a name": pax(path=b"a\0b") + raw("a", b"0", 0) + END,
    # Headers that lie
    "wrong checksum": tar(entry("ok", data=b"x"))[:1024] + raw("a", b"0", 0, checksum=1) + END,
    "negative size": raw("a", b"0", 0, size_field=b"\xff" * 12) + END,
    "size by pax is negative": pax(size=b"-512") + raw("a", b"0", 0) + END,
    "size is no number": raw("a", b"0", 0, size_field=b"banana\0\0\0\0\0\0") + END,
    "pax header of a terabyte": raw("pax", b"x", 0, size_field=b"\x80" + (BIG).to_bytes(11, "big")) + END,
    "long name of a terabyte": raw("l", b"L", 0, size_field=b"\x80" + (BIG).to_bytes(11, "big")) + END,
    "pax header of 2 MiB": raw("pax", b"x", 2 << 20) + bytes(2 << 20) + END,
    "many pax headers in a row": pax(comment=b"x") * 3000 + raw("a", b"0", 0) + END,
    "time is no number": pax(mtime=b"soon") + raw("a", b"0", 0) + END,
    "time is infinite": pax(mtime=b"inf") + raw("a", b"0", 0) + END,
    "time does not end": pax(mtime=b"1e999999") + raw("a", b"0", 0) + END,
    "owner out of range": pax(uid=b"99999999999999999999") + raw("a", b"0", 0) + END,
    "owner is negative": pax(uid=b"-5") + raw("a", b"0", 0) + END,
    "owner is 'leave it as it is'": pax(uid=b"4294967295") + raw("a", b"0", 0) + END,
    # Not a tar, or not all of it
    "text": b"<html>404 not found</html>" * 100,
    "short text": b"no",
    "half a header": tar(entry("a", data=b"x"))[:300],
    "half a second header": tar(entry("a"), entry("b"))[:700],
    "no end mark": tar(entry("a", data=b"x"))[:1024],
    "cut in the data": tar(entry("a", data=b"x" * 5000))[:2048],
    "gzip cut": gzip.compress(tar(entry("a", data=os.urandom(5000))))[:-100],
    "gzip cut to its header": gzip.compress(tar(entry("a")))[:10],
    "gzip with a wrong sum": gzip.compress(tar(entry("a")))[:-8] + bytes(8),
    "gzip of nonsense": b"\x1f\x8b\x08\0" + b"banana" * 100,
    "gzip then rubbish": gzip.compress(tar(entry("a"))) + b"rubbish",
    "zstd cut": zstandard.compress(tar(entry("a", data=os.urandom(5000))))[:-100],
    "zstd of nonsense": b"\x28\xb5\x2f\xfd" + b"banana" * 100,
    "zstd with an enormous window": b"\x28\xb5\x2f\xfd" + b"\x00\xf8" + b"\0" * 100,
}


# Why each is refused. A layer that is refused for another reason than the one it was
# made for would prove nothing.
REASONS = {
    r"dotdot|hard link dotdot": "leads upward",
    r"hard link absolute": "is a folder that is not there",
    r"symlinked parent|folder swapped|proc magic|(hard link|whiteout|opaque) through": "leads out of",
    r"loop of|symlink to itself": "is a loop of symlinks",
    r"file as parent": "is used as a folder",
    r"symlink to nothing": "is a symlink to nothing",
    r"hard link to (nothing|the root|itself)": "does not have",
    r"hard link to a (folder|whiteout)": "which is no file",
    r"whiteout of": "is a whiteout of",
    r"whiteout as a folder": "is inside a whiteout",
    r"(trusted|user)\.overlay|overlay xattr": "carries (trusted|user).overlay",
    r"(block|character) device": "is a device node",
    r"unknown type": "unknown type",
    r"root as": "would replace the layer's root",
    r"name of 300|NUL": "a name no file can have",
    r"path of 5000": "is too long",
    r"300 folders|deep by symlinks": "deeper than 256",
    r"wrong checksum|text|size is no number": "broken header",
    r"negative size|(pax header|long name) of": "a header of",
    # Python's own words, which are not the same in every 3.11.
    r"size by pax": "read length must be non-negative|invalid offset",
    r"many pax": "headers without end",
    r"time": "a time no file can have",
    r"owner": "has owner",
    r"short text|half a": "in the middle of a header",
    r"no end mark": "no end mark",
    r"cut in the data": "unexpected end of data",
    r"gzip (cut|of nonsense)": "gzip stream stops before its end",
    r"gzip (with|then)": "not sound gzip",
    r"zstd cut": "zstd stream stops before its end",
    r"zstd (of|with)": "not sound zstd",
}


def reason(name):
    (found,) = [words for pattern, words in REASONS.items() if re.match(pattern, name)]
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_layer_is_refused_for_what_it_is_and_nothing_is_kept(place, name):
    refused(place, HOSTILE[name], match=reason(name))


# Not "no end mark": with its digest promised nothing can have been cut off, and it is whole.
@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "no end mark"])
def test_a_matching_digest_makes_a_hostile_layer_no_better(place, name):
    """A registry can promise the digest of what it sends: that proves only that it was not damaged."""
    refused(place, HOSTILE[name], match=reason(name), digest=digests.digest(HOSTILE[name]))


def test_there_are_at_least_forty_hostile_layers():
    assert len(HOSTILE) >= 40


def test_hostile_names_can_not_write_to_the_terminal(place):
    error = refused(place, tar(entry("../\x1b[2Jboo", data=b"x")))
    assert "\x1b" not in str(error)


def test_device_is_made_only_when_it_is_allowed(place):
    data = tar(entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666))
    refused(place, data, match="device node")
    layers.apply(io.BytesIO(data), place / "target-parent/layer", devices=True)
    status = os.lstat(place / "target-parent/layer/null")
    assert stat.S_ISCHR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o666


def test_whiteout_as_a_device_is_refused_even_where_devices_are_allowed(place):
    refused(place, tar(entry("a", tarfile.CHRTYPE, devmajor=0, devminor=0)), match="own mark", devices=True)


def test_layer_of_another_digest_is_refused(place):
    data = gzip.compress(tar(entry("a", data=b"x")), mtime=0)
    wrong = "sha256:" + "0" * 64
    refused(place, data, match="promised", digest=wrong)
    refused(place, data, match="promised", diff_id=wrong)
    # The two names are not interchangeable.
    refused(place, data, match="promised", diff_id=digests.digest(data))


def test_bytes_after_the_end_mark_are_part_of_the_digest(place):
    data = tar(entry("a", data=b"x"))
    refused(place, data + b"more", match="promised", digest=digests.digest(data))


def test_size_is_limited(place):
    small = digests.Limits(size=1 << 20)
    data = gzip.compress(tar(entry("a", data=bytes(2 << 20))))
    refused(place, data, match="more than 1048576 bytes", limits=small)
    two = tar(entry("a", data=bytes(600_000)), entry("b", data=bytes(600_000)))
    refused(place, two, match="more than 1048576 bytes", limits=small)


def test_entries_are_limited(place):
    data = tar(*(entry(f"f{number}") for number in range(101)))
    refused(place, data, match="more than 100 entries", limits=digests.Limits(entries=100))


def test_ratio_is_limited(place):
    limits = digests.Limits(ratio=50, ratio_from=1 << 20)
    data = zstandard.compress(tar(entry("a", data=bytes(4 << 20))))
    refused(place, data, match="50 to 1", limits=limits)
    data = gzip.compress(tar(entry("a", data=bytes(4 << 20))))
    refused(place, data, match="50 to 1", limits=limits)


def test_bomb_of_zstd_does_not_fill_memory(place):
    # 40 MiB of tar in a few kilobytes: it must be read in small steps, not in one.
    compressor = zstandard.ZstdCompressor(level=19)
    data = compressor.compress(tar(entry("a", data=bytes(40 << 20))))
    assert len(data) < 10_000
    refused(place, data, limits=digests.Limits(size=1 << 20))


def test_sparse_file_of_an_exabyte_is_refused(place):
    size = str(1 << 60).encode()
    headers = {
        "GNU.sparse.major": b"1",
        "GNU.sparse.minor": b"0",
        "GNU.sparse.name": b"big",
        "GNU.sparse.realsize": size,
    }
    refused(place, pax(**headers) + raw("a", b"0", 512) + pad(b"0\n") + END, match="more than")


def test_sparse_map_without_end_is_refused(place):
    headers = {
        "GNU.sparse.major": b"1",
        "GNU.sparse.minor": b"0",
        "GNU.sparse.name": b"a",
        "GNU.sparse.realsize": b"1",
    }
    numbers = b"9999999999\n" + b"0\n" * (3 << 20)
    refused(place, pax(**headers) + raw("a", b"0", len(numbers)) + pad(numbers) + END, match="endless header")


def test_old_sparse_map_without_end_is_refused(place):
    header = bytearray(raw("a", b"S", 0))
    header[482] = 1  # isextended
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more = bytearray(512)
    more[504] = 1
    refused(place, bytes(header) + bytes(more) * 20_000 + END, match="endless header")


def test_folder_that_someone_swaps_for_a_symlink_while_it_is_unpacked_leads_nowhere(place):
    """A second process renames a folder away and puts a symlink there, over and over."""
    (place / "target-parent/work").mkdir()
    victim = place / "victim"
    done = threading.Event()
    work = place / "target-parent/work"

    def swap():
        number = 0
        while not done.is_set():
            number += 1
            try:
                os.rename(work / "a", work / f".aside{number}")
                os.symlink(victim, work / "a")
                os.unlink(work / "a")
                os.rename(work / f".aside{number}", work / "a")
            except OSError:
                continue

    data = tar(folder("a"), *(entry(f"a/f{number % 7}", data=b"x") for number in range(400)))
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        outcomes = set()
        for _ in range(20):
            try:
                layers.apply_onto(io.BytesIO(data), work)
                outcomes.add("unpacked")
            except LabError:
                outcomes.add("refused")
    finally:
        done.set()
        thread.join()
    assert outcomes <= {"unpacked", "refused"}
    assert os.listdir(victim) == ["secret"]
    assert (victim / "secret").read_text() == "untouched"


def test_layer_never_replaces_a_folder_that_has_something_in_it(place):
    (place / "target-parent/layer").mkdir()
    (place / "target-parent/layer/mine").write_text("mine")
    with pytest.raises(InUse):
        layers.apply(io.BytesIO(tar(entry("a"))), place / "target-parent/layer")
    assert (place / "target-parent/layer/mine").read_text() == "mine"


def test_hostile_layer_onto_a_flat_root_touches_nothing_outside(place):
    root = place / "target-parent"
    os.symlink("../victim", root / "way-out")
    for data in (
        tar(entry("way-out/.wh.secret")),
        tar(entry("way-out/.wh..wh..opq")),
        tar(entry("way-out/secret")),
    ):
        with pytest.raises(BadArchive):
            layers.apply_onto(io.BytesIO(data), root, flat=True)
    assert (place / "victim/secret").read_text() == "untouched"


def test_whiteout_of_a_symlink_removes_the_link_and_not_what_it_leads_to(place):
    root = place / "target-parent"
    os.symlink("../victim", root / "link")
    layers.apply_onto(io.BytesIO(tar(entry(".wh.link"))), root, flat=True)
    assert not os.path.lexists(root / "link")
    assert (place / "victim/secret").read_text() == "untouched"


def test_entry_that_replaces_a_symlink_leaves_alone_what_it_led_to(place):
    data = tar(symlink("a", str(place / "victim/secret")), entry("a", data=b"mine"))
    layers.apply(io.BytesIO(data), place / "target-parent/layer")
    assert (place / "target-parent/layer/a").read_text() == "mine"
    assert (place / "victim/secret").read_text() == "untouched"


def test_mode_and_owner_of_a_symlink_are_the_links_own(place):
    info = symlink("a", str(place / "victim/secret"))
    info[0].uid, info[0].mode = 1234, 0o777
    layers.apply(io.BytesIO(tar(info)), place / "target-parent/layer")
    assert os.lstat(place / "victim/secret").st_uid == 0
    assert os.lstat(place / "target-parent/layer/a").st_uid == 1234


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:abc", "md5:" + "0" * 64, "sha256:" + "g" * 64, "../../x", 7])
def test_digest_that_is_none_never_becomes_a_path(digest):
    with pytest.raises(BadValue):
        digests.hex_of(digest)


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_never_crash_and_never_leave_anything(place, seed):
    """Forty layers with random damage: unpacked or refused in words, nothing else."""
    import random

    chance = random.Random(seed)
    sound = tar(
        folder("d"),
        entry("d/f", data=b"x" * 700),
        symlink("s", "d/f"),
        link("h", "d/f"),
        entry(".wh.gone"),
        entry("n" * 150, data=b"y", pax_headers={XATTR + "user.a": "b", "mtime": "1.5"}),
    )
    if seed % 3:
        sound = gzip.compress(sound) if seed % 3 == 1 else zstandard.compress(sound)
    data = bytearray(sound)
    for _ in range(chance.randint(1, 12)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    before = look(place / "victim")
    try:
        layers.apply(io.BytesIO(bytes(data)), place / "target-parent/layer")
    except LabError:
        assert os.listdir(place / "target-parent") == []
    assert look(place / "victim") == before


def test_error_in_the_middle_of_the_stream_leaves_nothing(place):
    class Broken(io.BytesIO):
        def read(self, size=-1):
            data = super().read(size)
            if self.tell() > 3000:
                raise OSError(5, "Input/output error")
            return data

    with pytest.raises(LabError, match="EIO"):
        layers.apply(Broken(tar(entry("a", data=b"x" * 300_000))), place / "target-parent/layer")
    assert os.listdir(place / "target-parent") == []


def test_the_checks_of_this_file_see_a_change(place):
    """A check that can't fail proves nothing: an honest layer must not pass as refused."""
    with pytest.raises(pytest.fail.Exception):
        refused(place, tar(entry("a")))
    assert struct.calcsize("Q") == 8 and zlib.crc32(b"") == 0


@pytest.mark.parametrize("name", ["/etc/x", "///etc/x"])
def test_an_absolute_name_is_below_the_layers_root(tmp_path, name):
    layers.apply(io.BytesIO(tar(entry(name, data=b"x"))), tmp_path / "out")
    assert (tmp_path / "out/etc/x").read_text() == "x" and not os.path.exists("/etc/x")


def test_a_layer_of_no_bytes_changes_nothing(tmp_path):
    assert layers.apply(io.BytesIO(b""), tmp_path / "out").entries == 0
    assert os.listdir(tmp_path / "out") == []
