"""Layers: what goes into a tar comes out of it again, and two tools read it alike."""

import gzip
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tars import END, entry, folder, link, pax, raw, symlink, tar
from trees import differences, snapshot

from labkit.ground.errors import BadValue, Unsupported
from labkit.images import digests, layers, layout, whiteouts
from labkit.storage import roots

pytestmark = pytest.mark.usefixtures("needs_root")


def unpack(tmp_path, data, name="layer", **options):
    layers.apply(io.BytesIO(data), tmp_path / name, **options)
    return tmp_path / name


def pack(folder, compression=None, **options):
    out = io.BytesIO()
    names = layers.diff(folder, out, compression, **options)
    return out.getvalue(), names


# Applying


def test_files_folders_links_get_their_contents_modes_and_owners(tmp_path):
    root = unpack(
        tmp_path,
        tar(
            folder("d", mode=0o2750, uid=7, gid=8),
            entry("d/f", data=b"hello", mode=0o4755, uid=1000, gid=50),
            symlink("s", "d/f"),
            link("h", "d/f"),
            entry("pipe", tarfile.FIFOTYPE, mode=0o622),
        ),
    )
    status = os.lstat(root / "d/f")
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o4755, 1000, 50), "setuid survives chown"
    assert stat.S_IMODE(os.lstat(root / "d").st_mode) == 0o2750
    assert os.readlink(root / "s") == "d/f"
    assert os.lstat(root / "h").st_ino == status.st_ino and status.st_nlink == 2
    assert stat.S_ISFIFO(os.lstat(root / "pipe").st_mode)
    assert stat.S_IMODE(os.lstat(root / "pipe").st_mode) == 0o622, "whatever the umask"


def test_time_of_a_folder_is_the_tars_though_files_were_made_in_it_later(tmp_path):
    root = unpack(tmp_path, tar(folder("d", mtime=1000), entry("d/f", mtime=2000), folder(".", mtime=3000)))
    assert [os.lstat(root / name).st_mtime for name in ("d", "d/f", ".")] == [1000, 2000, 3000]


def test_times_keep_their_nanoseconds_and_may_lie_before_1970(tmp_path):
    root = unpack(tmp_path, pax(mtime=b"-1.500000001") + raw("a", b"0", 0) + END)
    assert os.lstat(root / "a").st_mtime_ns == -1_500_000_001


def test_folder_that_is_not_listed_is_made(tmp_path):
    root = unpack(tmp_path, tar(entry("a/b/c", data=b"x")))
    assert (root / "a/b/c").read_text() == "x"
    assert stat.S_IMODE(os.lstat(root / "a").st_mode) == 0o755


def test_symlink_that_stays_inside_is_followed_as_a_program_would(tmp_path):
    root = unpack(tmp_path, tar(folder("usr/lib"), symlink("lib", "usr/lib"), entry("lib/x", data=b"x")))
    assert (root / "usr/lib/x").read_text() == "x"
    assert os.path.islink(root / "lib")


def test_of_two_entries_with_one_name_the_later_counts(tmp_path):
    root = unpack(
        tmp_path,
        tar(entry("a", data=b"1"), entry("./a", data=b"2"), folder("b"), entry("b/c"), entry("b", data=b"f")),
    )
    assert (root / "a").read_text() == "2"
    assert (root / "b").read_text() == "f"


def test_folder_listed_twice_keeps_what_is_in_it(tmp_path):
    root = unpack(tmp_path, tar(folder("d", mode=0o700), entry("d/f", data=b"x"), folder("d", mode=0o711)))
    assert (root / "d/f").exists() and stat.S_IMODE(os.lstat(root / "d").st_mode) == 0o711


def test_xattrs_are_set_whatever_bytes_they_hold(tmp_path):
    value = bytes(range(256))
    info = entry("a", pax_headers={"SCHILY.xattr.user.all": value.decode("utf-8", "surrogateescape")})
    root = unpack(tmp_path, tar(info))
    assert os.getxattr(root / "a", "user.all") == value


def test_file_capability_survives(tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up/ping").write_text("x")
    capability = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep
    os.setxattr(tmp_path / "up/ping", "security.capability", capability)
    os.chown(tmp_path / "up", 5, 5)
    root = unpack(tmp_path, pack(tmp_path / "up")[0])
    assert os.getxattr(root / "ping", "security.capability") == capability


def test_zeros_become_holes(tmp_path):
    data = bytes(1 << 20) + b"end" + bytes(3 << 20) + b"x"
    root = unpack(tmp_path, gzip.compress(tar(entry("a", data=data))))
    status = os.lstat(root / "a")
    assert (root / "a").read_bytes() == data
    assert status.st_size == len(data) and status.st_blocks * 512 <= 4 * 4096


@pytest.mark.parametrize("form", ["0.0", "0.1", "1.0", "gnu"])
def test_sparse_tars_of_gnu_tar_are_read(tmp_path, form):
    with open(tmp_path / "sparse", "wb") as file:
        file.seek(1 << 20)
        file.write(b"middle" * 1000)
        file.truncate(4 << 20)
    kind = ["--format=gnu"] if form == "gnu" else ["--format=pax", f"--sparse-version={form}"]
    subprocess.run(["tar", "-C", tmp_path, *kind, "-S", "-cf", tmp_path / "t.tar", "sparse"], check=True)
    assert os.path.getsize(tmp_path / "t.tar") < 1 << 20
    layers.apply(tmp_path / "t.tar", tmp_path / "layer")
    assert (tmp_path / "layer/sparse").read_bytes() == (tmp_path / "sparse").read_bytes()
    assert os.lstat(tmp_path / "layer/sparse").st_blocks * 512 < 64 << 10


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_long_links(tmp_path, form):
    long = "/".join(["folder-with-a-long-name"] * 20)
    root = unpack(tmp_path, tar(entry(long, data=b"x"), symlink("s", long), link("h", long), form=form))
    assert (root / long).read_text() == "x" and os.readlink(root / "s") == long
    assert os.path.samefile(root / "h", root / long)


def test_names_that_are_not_utf8(tmp_path):
    name = b"caf\xe9"
    (tmp_path / "up").mkdir()
    with open(os.path.join(os.fsencode(tmp_path), b"up", name), "w"):
        pass
    root = unpack(tmp_path, pack(tmp_path / "up")[0])
    assert os.listdir(os.fsencode(root)) == [name]


def test_zstd_is_found_by_a_command_that_started_without_packages():
    code = "from labkit.images.digests import _zstandard; print(_zstandard().__name__)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout == "zstandard\n", done.stderr


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_a_layer_has_one_diff_id_and_a_digest_for_each_compression(tmp_path, compression):
    (tmp_path / "up").mkdir()
    (tmp_path / "up/f").write_bytes(b"some text " * 10_000)
    plain, (diff_id, _, _) = pack(tmp_path / "up")
    data, names = pack(tmp_path / "up", compression)
    assert names == (diff_id, digests.digest(data), len(data)) and diff_id == digests.digest(plain)
    applied = layers.apply(io.BytesIO(data), tmp_path / "layer", digest=names[1], diff_id=diff_id)
    assert (applied.digest, applied.diff_id, applied.size) == (names[1], diff_id, len(plain))


def test_gzip_of_several_members_is_read_to_its_end(tmp_path):
    data = tar(entry("a", data=os.urandom(3000)))
    parts = b"".join(gzip.compress(data[at : at + 1000]) for at in range(0, len(data), 1000))
    applied = layers.apply(io.BytesIO(parts), tmp_path / "layer")
    assert applied.diff_id == digests.digest(data)


def test_progress_counts_the_stored_bytes_to_the_last(tmp_path):
    seen = []
    data = gzip.compress(tar(entry("a", data=os.urandom(1 << 20))))
    unpack(tmp_path, data, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == len(data)


# Whiteouts


def test_whiteout_becomes_overlayfs_mark(tmp_path):
    root = unpack(tmp_path, tar(folder("d"), entry("d/.wh.gone")))
    assert whiteouts.is_whiteout(os.lstat(root / "d/gone"))
    assert os.listdir(root / "d") == ["gone"]


def test_opaque_folder_becomes_overlayfs_mark(tmp_path):
    root = unpack(tmp_path, tar(folder("d"), entry("d/.wh..wh..opq"), entry("d/new")))
    assert whiteouts.is_opaque(root / "d") and os.listdir(root / "d") == ["new"]
    root = unpack(tmp_path, tar(folder("d"), entry("d/.wh..wh..opq")), "user", userxattr=True)
    assert os.getxattr(root / "d", "user.overlay.opaque") == b"y"


BELOW = [
    folder("d"),
    entry("d/old", data=b"old"),
    entry("f", data=b"old"),
    folder("e/deep"),
    entry("e/deep/x", data=b"x"),
    folder("x", pax_headers={"SCHILY.xattr.user.k": "v"}),
    entry("x/in"),
]
ABOVE = {
    "a file deleted": ([entry(".wh.f")], {"f"}),
    "a folder deleted": ([entry(".wh.d")], {"d", "d/old"}),
    "deleted before it is made again": ([entry(".wh.f"), entry("f", data=b"new")], set()),
    "deleted after it is made again": ([entry("f", data=b"new"), entry(".wh.f")], set()),
    "a folder deleted, then made again": ([entry(".wh.d"), folder("d"), entry("d/new")], {"d/old"}),
    "a folder made again, then deleted": ([folder("d"), entry("d/new"), entry(".wh.d")], {"d/old"}),
    "opaque after its files": ([folder("d"), entry("d/new"), entry("d/.wh..wh..opq")], {"d/old"}),
    "opaque before its files": ([folder("d"), entry("d/.wh..wh..opq"), entry("d/new")], {"d/old"}),
    "opaque above a deep folder": ([folder("e"), entry("e/.wh..wh..opq"), folder("e/deep")], {"e/deep/x"}),
    "a folder made of a file": ([folder("f"), entry("f/in")], set()),
    "a file made of a folder": ([entry("d", data=b"file")], {"d/old"}),
    "a folder listed again without its xattr": ([folder("x")], set()),
    "a folder deleted, then only named": ([entry(".wh.d"), entry("d/new")], {"d/old"}),
    "a folder deleted, then what is in it": ([entry(".wh.d"), entry("d/.wh.old"), entry("d/.wh..wh..opq")], {"d"}),
    "the root opaque": ([entry(".wh..wh..opq"), entry("new")], {"f", "d", "d/old"}),
    "nothing to delete": ([entry(".wh.never-there")], set()),
}


@pytest.mark.parametrize("case", ABOVE)
def test_merged_by_the_kernel_and_applied_flat_show_the_same(tmp_path, case):
    """Overlayfs stacks the two folders; the flat drivers apply one tar onto the other. One result."""
    entries, gone = ABOVE[case]
    below, above = tar(*BELOW), tar(*entries)
    lowers = [unpack(tmp_path, below, "below"), unpack(tmp_path, above, "above")]
    (tmp_path / "merged").mkdir()
    (tmp_path / "flat").mkdir()
    for data in (below, above):
        layers.apply_onto(io.BytesIO(data), tmp_path / "flat", flat=True)
    with roots.mounted(roots.seen([str(lower) for lower in lowers]), None, None, tmp_path / "merged"):
        merged = snapshot(tmp_path / "merged", times=False, ignore=("trusted.overlay.opaque",))
    flat = snapshot(tmp_path / "flat", times=False)
    assert differences(merged, flat) == []
    for path in gone:
        assert os.fsencode(path) not in flat


def test_aufs_books_in_old_layers_are_left_out(tmp_path):
    root = unpack(tmp_path, tar(folder(".wh..wh.plnk"), entry(".wh..wh.aufs"), entry("a")))
    assert os.listdir(root) == ["a"]


@pytest.mark.parametrize("flat", [False, True])
def test_a_file_whose_data_is_in_aufs_books_has_its_names_and_the_books_are_gone(tmp_path, flat):
    data = tar(
        folder(".wh..wh.plnk"),
        entry(".wh..wh.plnk/10.99", data=b"twice", mode=0o4755, uid=7),
        folder(".wh..wh.orph/deep"),
        link("a", ".wh..wh.plnk/10.99"),
        link("d/b", ".wh..wh.plnk/10.99"),
    )
    root = tmp_path / "layer"
    if flat:
        root.mkdir()
        layers.apply_onto(io.BytesIO(data), root, flat=True)
    else:
        unpack(tmp_path, data)
    assert sorted(os.listdir(root)) == ["a", "d"]
    status = os.lstat(root / "a")
    assert (root / "d/b").read_bytes() == b"twice" and os.lstat(root / "d/b").st_ino == status.st_ino
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_nlink) == (0o4755, 7, 2)


# Taking a layer


def test_the_same_folder_makes_the_same_bytes_whatever_order_it_was_filled_in(tmp_path):
    for name, order in (("one", "abc"), ("two", "cab")):
        (tmp_path / name).mkdir()
        for letter in order:
            (tmp_path / name / letter).write_text(letter)
            os.utime(tmp_path / name / letter, (5, 5))
        os.utime(tmp_path / name, (6, 6))
    for compression in (None, "gzip", "zstd"):
        assert pack(tmp_path / "one", compression) == pack(tmp_path / "two", compression)
    with tarfile.open(fileobj=io.BytesIO(pack(tmp_path / "one")[0])) as file:
        assert file.getnames() == [".", "a", "b", "c"], "by name, the same in every process"


def test_clamp_is_the_latest_time_in_a_layer(tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up/new").write_text("")
    (tmp_path / "up/old").write_text("")
    os.utime(tmp_path / "up/old", (5, 5))
    root = unpack(tmp_path, pack(tmp_path / "up", clamp=1000)[0])
    assert os.lstat(root / "new").st_mtime == 1000 and os.lstat(root / "old").st_mtime == 5


def test_what_a_container_did_becomes_a_layer_that_does_it_again(tmp_path):
    for name in ("lower/d", "lower/e", "upper", "work", "merged", "again"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("d/a", "d/b", "e/c", "f"):
        (tmp_path / "lower" / name).write_text(name)
    with roots.mounted(tmp_path / "lower", tmp_path / "upper", tmp_path / "work", tmp_path / "merged") as merged:
        (merged / "f").unlink()
        (merged / "d/a").write_text("changed")
        (merged / "e/c").unlink()
        (merged / "e").rmdir()
        (merged / "e").mkdir()
        (merged / "e/new").write_text("new")
        os.link(merged / "d/b", merged / "linked")
        before = snapshot(merged, ignore=("trusted.overlay.opaque",))
    assert [str(change) for change in layers.changes(tmp_path / "upper", [tmp_path / "lower"])] == [
        "C /d",
        "C /d/a",
        "C /d/b",
        "C /e",
        "D /e/c",
        "A /e/new",
        "D /f",
        "A /linked",
    ]
    layer = unpack(tmp_path, pack(tmp_path / "upper")[0])
    with roots.mounted([tmp_path / "lower", layer], None, None, tmp_path / "again") as again:
        assert differences(before, snapshot(again, ignore=("trusted.overlay.opaque",))) == []


def test_upperdir_whose_data_is_elsewhere_is_no_layer(tmp_path):
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/f").write_bytes(b"x" * 100_000)
    options = ("metacopy=on", "redirect_dir=on")
    folders = (tmp_path / "lower", tmp_path / "upper", tmp_path / "work", tmp_path / "merged")
    with roots.mounted(*folders, options=options) as merged:
        (merged / "f").chmod(0o600)
    with pytest.raises(Unsupported, match="metacopy"):
        pack(tmp_path / "upper")


def test_name_that_would_be_read_as_a_whiteout_is_no_layer(tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up/.wh.trick").write_text("")
    with pytest.raises(BadValue, match="whiteouts"):
        pack(tmp_path / "up")


# Every tree: out and in again

_NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=30).filter(
    lambda name: name not in (".", "..") and not name.startswith(".wh.") and len(name.encode()) <= 200
)
_OWNER = st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 2**32 - 2))
_TIME = st.integers(-(2**31) * 10**9, 2**33 * 10**9)
_XATTRS = st.dictionaries(
    st.sampled_from(["user.a", "user.b=c", "trusted.x", "security.other"]).filter(lambda name: "=" not in name),
    st.binary(max_size=60),
    max_size=2,
)
_FILE = st.one_of(
    st.binary(max_size=300), st.integers(1, 3).map(lambda pages: bytes(4096 * pages) + b"x" + bytes(5000))
)
_MODE = st.integers(0, 0o7777)


def _node(children):
    common = {"owner": _OWNER, "time": _TIME, "mode": _MODE}
    return st.one_of(
        st.fixed_dictionaries(
            {"kind": st.just("folder"), "in": children, "opaque": st.booleans(), "xattrs": _XATTRS, **common}
        ),
        *_leaves(common),
    )


def _leaves(common):
    return (
        st.fixed_dictionaries({"kind": st.just("file"), "data": _FILE, "xattrs": _XATTRS, **common}),
        st.fixed_dictionaries(
            {
                "kind": st.just("symlink"),
                "to": st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=300),
                **common,
            }
        ),
        st.fixed_dictionaries(
            {
                "kind": st.just("device"),
                "number": st.tuples(st.integers(1, 300), st.integers(0, 300)),
                "type": st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]),
                **common,
            }
        ),
        st.fixed_dictionaries({"kind": st.just("pipe"), **common}),
        st.fixed_dictionaries({"kind": st.just("whiteout")}),
        st.fixed_dictionaries({"kind": st.just("link")}),  # to the first file
    )


_COMMON = {"owner": _OWNER, "time": _TIME, "mode": _MODE}
_TREES = st.recursive(
    st.dictionaries(_NAMES, st.one_of(*_leaves(_COMMON)), max_size=5),
    lambda inner: st.dictionaries(_NAMES, _node(inner), max_size=4),
    max_leaves=20,
)


def grow(path, tree, files):
    for name, node in tree.items():
        here = os.path.join(path, name)
        kind = node["kind"]
        if kind == "folder":
            os.mkdir(here)
            grow(here, node["in"], files)
            if node["opaque"]:
                whiteouts.set_opaque(here)
        elif kind == "file":
            with open(here, "wb") as file:
                file.write(node["data"])
            files.append(here)
        elif kind == "symlink":
            os.symlink(node["to"], here)
        elif kind == "device":
            os.mknod(here, node["type"], os.makedev(*node["number"]))
        elif kind == "pipe":
            os.mkfifo(here)
        elif kind == "whiteout":
            os.mknod(here, stat.S_IFCHR, 0)
            continue
        elif kind == "link":
            if files:
                os.link(files[0], here)
            continue
        os.chown(here, *node["owner"], follow_symlinks=False)
        if kind != "symlink":
            os.chmod(here, node["mode"])
        for key, value in node.get("xattrs", {}).items():
            os.setxattr(here, key, value)
        os.utime(here, ns=(node["time"], node["time"]), follow_symlinks=False)


@given(tree=_TREES, compression=st.sampled_from([None, "gzip", "zstd"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_diff_then_apply_is_the_identity_on_every_tree(tree, compression):
    with tempfile.TemporaryDirectory() as place:
        up = os.path.join(place, "up")
        os.mkdir(up)
        grow(up, tree, [])
        data, names = pack(up, compression)
        layer = os.path.join(place, "layer")
        layers.apply(io.BytesIO(data), layer, digest=names[1], diff_id=names[0], devices=True)
        assert differences(whitened(snapshot(up)), whitened(snapshot(layer))) == []
        assert pack(layer, compression) == (data, names), "and the digest is the same again"


def whitened(tree):
    """A whiteout has no owner, time or second name worth keeping: it is only a mark."""
    return {
        path: {"device": (0, 0)} if said.get("device") == (0, 0) and said["mode"].startswith("0o2") else said
        for path, said in tree.items()
    }


# Another tool's word: umoci, the OCI's own unpacker


def _image_of(folder, *tars):
    """Make an OCI layout with one image of these layers."""
    store = layout.Layout(folder).create()
    config, size = store.add_json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digests.digest(data) for data in tars]},
        }
    )
    manifest, _ = store.add_json(
        {
            "schemaVersion": 2,
            "mediaType": layout.MANIFEST,
            "config": {"mediaType": layout.CONFIG, "digest": config, "size": size},
            "layers": [{"mediaType": layout.LAYER, "digest": store.add(data), "size": len(data)} for data in tars],
        }
    )
    store.set_name("test", manifest)
    return store


def test_unpacked_as_umoci_unpacks(tmp_path):
    if subprocess.run(["which", "umoci"], capture_output=True).returncode:
        pytest.skip("umoci is not here: apt-get install umoci")
    value = bytes(range(200, 256)).decode("utf-8", "surrogateescape")
    tars = [
        tar(
            folder(".", mode=0o755, mtime=9),
            folder("etc", mtime=5),
            entry("etc/passwd", data=b"root", mtime=6, mode=0o600),
            folder("bin", mtime=7),
            entry("bin/su", data=b"elf", mode=0o4755, uid=0, gid=50, mtime=8),
            link("bin/su2", "bin/su"),
            symlink("sbin", "bin"),
            symlink("abs", "/etc/passwd"),
            folder("var/cache", mode=0o1777, uid=33, gid=44, mtime=3),
            entry("var/cache/a", data=b"a"),
            entry("var/cache/b", data=b"b"),
            folder("var/keep", mtime=4),
            entry("var/keep/k", data=bytes(100_000) + b"k"),
            entry("dev-null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            entry("pipe", tarfile.FIFOTYPE),
            entry("n" * 180, data=b"long", mtime=11),
            entry("x", data=b"x", pax_headers={"SCHILY.xattr.user.k": value}),
        ),
        tar(
            folder("etc", mtime=50),
            entry("etc/.wh.passwd"),
            entry("etc/new", data=b"new", mtime=60),
            folder("var/cache", mode=0o700, mtime=70),
            entry("var/cache/.wh..wh..opq"),
            entry("var/cache/c", data=b"c"),
            entry(".wh.pipe"),
            entry("bin/su", data=b"other", mode=0o755, mtime=80),
            folder("abs2"),
        ),
        tar(
            entry(".wh.var"),
            folder("var", mtime=1),
            entry("var/only", data=b"only", mtime=2),
            entry("x", data=b"", mtime=3),
        ),
    ]
    _image_of(tmp_path / "image", *tars)
    subprocess.run(
        ["umoci", "unpack", "--image", f"{tmp_path}/image:test", tmp_path / "bundle"],
        check=True,
        capture_output=True,
    )
    theirs = snapshot(tmp_path / "bundle/rootfs", times=False)
    lowers = [unpack(tmp_path, data, f"layer{number}", devices=True) for number, data in enumerate(tars)]
    (tmp_path / "flat").mkdir()
    for data in tars:
        layers.apply_onto(io.BytesIO(data), tmp_path / "flat", flat=True, devices=True)
    (tmp_path / "merged").mkdir()
    with roots.mounted(roots.seen([str(lower) for lower in lowers]), None, None, tmp_path / "merged"):
        merged = snapshot(tmp_path / "merged", times=False, ignore=("trusted.overlay.opaque",))
    assert len(theirs) == 14
    assert differences(theirs, snapshot(tmp_path / "flat", times=False)) == []
    assert differences(theirs, merged) == []
    assert json.loads((tmp_path / "image/oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
