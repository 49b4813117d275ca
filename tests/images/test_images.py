"""Images: one busybox is one image everywhere; a broken store says so; an archive goes out and in."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import threading

import pytest
from tars import entry, folder, symlink, tar
from trees import differences, snapshot

from labkit.ground import ledger, state
from labkit.ground.errors import BadArchive, BadValue, InUse, KernelError, LabError, NotFound, Unsupported
from labkit.images import archives, busybox, catalog, commit, diff, digests, layout
from labkit.storage import garbage, roots

pytestmark = pytest.mark.usefixtures("needs_root")


def add_image(store, name, *tars, config=None):
    """Put an image of these layers' tars into a store; return its manifest's digest."""
    diff_ids = [digests.digest(data) for data in tars]
    inner = {"config": config or {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    made, size = store.add_json({"architecture": "amd64", "os": "linux"} | inner)
    parts = [{"mediaType": layout.LAYER, "digest": store.add(data), "size": len(data)} for data in tars]
    manifest, _ = store.add_json(
        {
            "schemaVersion": 2,
            "mediaType": layout.MANIFEST,
            "config": {"mediaType": layout.CONFIG, "digest": made, "size": size},
            "layers": parts,
        }
    )
    store.set_name(layout.normal(name), manifest)
    return manifest


ONE, TWO, THREE = (tar(folder("."), entry(name, data=name.encode())) for name in ("one", "two", "three"))

# The base image


def test_base_image_is_made_offline_on_first_use_and_found_after(own_root):
    assert catalog.all() == []
    image = catalog.get("busybox")
    assert image.name == "busybox:latest"
    assert catalog.get("busybox:latest") == image == catalog.get(image.id[7:15]) == catalog.get(image.digest)
    assert catalog.all() == [image]
    assert image.config.cmd == ("sh",) and image.config.env[0].startswith("PATH=")


def test_same_busybox_makes_the_same_digest(tmp_path, monkeypatch):
    found = set()
    for name in ("one", "two"):
        monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / name))
        found.add((catalog.get("busybox").digest, catalog.get("busybox").id))
    assert len(found) == 1


def test_base_image_has_what_programs_expect(own_root):
    root = catalog.get("busybox").layers[0]
    names = os.listdir(f"{root}/bin")
    assert {"sh", "ls", "ps", "mount", "busybox"} <= set(names) and len(names) > 200
    assert os.lstat(f"{root}/bin/sh").st_ino == os.lstat(f"{root}/bin/busybox").st_ino, "one file, many names"
    assert stat.S_IMODE(os.lstat(f"{root}/tmp").st_mode) == 0o1777
    assert stat.S_IMODE(os.lstat(f"{root}/root").st_mode) == 0o700
    for name in ("etc/passwd", "etc/group", "etc/os-release", "etc/hosts", "etc/resolv.conf", "usr/bin/env"):
        assert os.path.isfile(f"{root}/{name}"), name
    done = subprocess.run(["chroot", root, "/usr/bin/env", "sh", "-c", "id -un"], capture_output=True, text=True)
    assert done.stdout == "root\n"


def test_busybox_with_a_loader_is_not_static():
    with open("/bin/busybox", "rb") as file:
        assert busybox.is_static(file.read())
    with open("/bin/ls", "rb") as file:
        assert not busybox.is_static(file.read())
    assert (
        not busybox.is_static(b"#!/bin/sh\n")
        and not busybox.is_static(b"")
        and not busybox.is_static(b"\x7fELF" + bytes(80)[:40])
    )


def test_without_a_static_busybox_it_says_what_to_install(own_root, monkeypatch):
    monkeypatch.setattr(busybox, "_WHERE", ("/bin/ls", "/nowhere"))
    with pytest.raises(NotFound, match="busybox-static"):
        catalog.get("busybox")


def test_many_who_ask_at_once_get_one_image(own_root):
    found = []
    threads = [threading.Thread(target=lambda: found.append(catalog.get("busybox"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(image.digest for image in found)) == 1


def test_skopeo_and_umoci_read_our_store(own_root):
    image = catalog.get("busybox")
    path = state.lib_dir("images")
    said = subprocess.run(
        ["skopeo", "--insecure-policy", "inspect", f"oci:{path}:busybox:latest"],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["Digest"] == image.digest
    listed = subprocess.run(["umoci", "ls", "--layout", path], capture_output=True, text=True)
    assert "busybox:latest" in listed.stdout


# Names


@pytest.mark.parametrize(
    "name, whole",
    [
        ("busybox", "busybox:latest"),
        ("a/b", "a/b:latest"),
        ("localhost:5000/a/b:1.2", "localhost:5000/a/b:1.2"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
        ("docker.io/library/alpine:3.20", "docker.io/library/alpine:3.20"),
        ("a__b-c.d", "a__b-c.d:latest"),
    ],
)
def test_name_is_completed(name, whole):
    assert layout.normal(name) == whole


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "a:",
        ":a",
        "a b",
        "../a",
        "a/../b",
        "/a",
        "a/",
        "a//b",
        "-a",
        "a:b:c/d e",
        "a\n",
        "a" * 300,
        "é",
        None,
        7,
        "a@b",
        "--help",
        "a:" + "t" * 129,
        "http://a",
    ],
)
def test_name_that_is_none_is_refused(name):
    with pytest.raises(BadValue):
        layout.normal(name)


def test_unknown_image_is_told_with_those_there_are(own_root):
    catalog.get("busybox")
    with pytest.raises(NotFound, match="busybox:latest"):
        catalog.get("nope")
    with pytest.raises(NotFound):
        catalog.get("sha256:" + "0" * 64)


def test_image_can_not_be_changed_by_who_holds_it(own_root):
    with pytest.raises(AttributeError):
        catalog.get("busybox").name = "x"


# Layers


def test_layer_in_two_images_is_stored_and_unpacked_once(own_root):
    add_image(catalog.store(), "a", ONE, TWO)
    add_image(catalog.store(), "b", ONE, THREE)
    a, b = catalog.get("a"), catalog.get("b")
    assert a.layers[0] == b.layers[0] and a.layers[1] != b.layers[1]
    assert len(os.listdir(state.lib_dir("layers"))) == 3
    blobs = os.listdir(state.lib_dir("images") / "blobs/sha256")
    assert len(blobs) == 3 + 2 + 2, "three layers, two configs, two manifests"


def test_layer_that_stands_twice_in_one_image_is_mounted(own_root):
    add_image(catalog.store(), "twice", ONE, TWO, ONE)
    made = roots.driver().prepare(catalog.get("twice"), "test-twice")
    with roots.mounted(made.lowerdirs, made.upperdir, made.workdir, made.merged) as root:
        assert sorted(os.listdir(root)) == ["one", "two"]
    roots.driver().remove("test-twice")


def test_config_is_read_in_full(own_root):
    config = {
        "Env": ["A=1"],
        "Entrypoint": ["/e"],
        "Cmd": ["c", "d"],
        "WorkingDir": "/w",
        "User": "u:g",
        "StopSignal": "SIGINT",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Volumes": {"/data": {}},
        "Labels": {"k": "v"},
    }
    add_image(catalog.store(), "c", ONE, config=config)
    assert catalog.get("c").config == catalog.ImageConfig(
        env=("A=1",),
        entrypoint=("/e",),
        cmd=("c", "d"),
        workdir="/w",
        user="u:g",
        stop_signal="SIGINT",
        exposed_ports=("53/udp", "80/tcp"),
        volumes=("/data",),
        labels={"k": "v"},
    )


@pytest.mark.parametrize(
    "config",
    [
        {"Env": "A=1"},
        {"Env": [1]},
        {"Cmd": {"a": 1}},
        {"Cmd": ["a\0b"]},
        {"User": 7},
        {"Labels": {"a": 1}},
        {"Volumes": ["/x"]},
        {"WorkingDir": ["/"]},
        [1],
        "text",
    ],
)
def test_config_that_is_none_is_refused(own_root, config):
    add_image(catalog.store(), "c", ONE, config=config)
    with pytest.raises(BadArchive):
        catalog.get("c")


def damage_blob(store, digest):
    path = store.path(digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damaged_store_is_noticed_and_nothing_is_kept_of_it(own_root):
    store = catalog.store()
    digest = add_image(store, "d", ONE)
    damage_blob(store, digests.digest(ONE))
    with pytest.raises(BadArchive, match="promised"):
        catalog.get("d")
    assert not any(path.name == "diff" for path in state.lib_dir("layers").rglob("*"))
    add_image(store, "d", ONE)  # which replaces it
    assert catalog.get("d").layers
    damage_blob(store, digest)
    with pytest.raises(BadArchive, match="other contents"):
        catalog.get("d")
    add_image(store, "d", ONE)
    assert catalog.get("d").layers


@pytest.mark.parametrize(
    "manifest",
    [{}, {"config": 1}, {"config": {}, "layers": []}, {"layers": "x"}, {"manifests": []}, [], 7, None],
)
def test_manifest_that_is_none_is_refused(own_root, manifest):
    store = catalog.store()
    digest, _ = store.add_json(manifest)
    store.set_name("m:latest", digest)
    with pytest.raises(LabError):
        catalog.get("m")


def test_manifest_that_points_outside_the_store_is_refused(own_root):
    store = catalog.store()
    part = {"digest": "sha256:../../../../etc/passwd", "size": 1}
    digest, _ = store.add_json({"config": part, "layers": [part]})
    store.set_name("m:latest", digest)
    with pytest.raises(BadArchive, match="names a blob by"):
        catalog.get("m")


def test_index_that_is_damaged_is_told(own_root):
    catalog.store()
    (state.lib_dir("images") / "index.json").write_text("{")
    with pytest.raises(LabError, match="index.json"):
        catalog.all()


# Removing


def test_removed_image_leaves_what_others_need(own_root):
    add_image(catalog.store(), "a", ONE, TWO)
    add_image(catalog.store(), "b", ONE, THREE)
    before = snapshot(catalog.get("b").layers[0])
    catalog.get("a")
    assert garbage.remove("a") > 0
    assert differences(before, snapshot(catalog.get("b").layers[0])) == []
    assert not catalog.layer_folder(digests.digest(TWO)).exists()
    with pytest.raises(NotFound):
        catalog.get("a")
    garbage.remove("b")
    assert os.listdir(state.lib_dir("layers")) == os.listdir(state.lib_dir("images") / "blobs/sha256") == []


def test_layer_that_a_container_stands_on_is_never_taken(own_root):
    add_image(catalog.store(), "a", ONE, TWO)
    made = roots.driver().prepare(catalog.get("a"), "test-holds")
    with pytest.raises(InUse, match="test-holds"):
        garbage.remove("a")
    garbage.remove("a", force=True)
    garbage.collect()
    with roots.mounted(made.lowerdirs, made.upperdir, made.workdir, made.merged) as root:
        assert (root / "one").read_text() == "one"
    roots.driver().remove("test-holds")
    assert garbage.collect() > 0
    assert os.listdir(state.lib_dir("layers")) == []


def test_image_with_two_names_goes_with_the_second(own_root):
    add_image(catalog.store(), "a", ONE)
    catalog.tag("a", "b:2")
    garbage.remove("a")
    assert (catalog.get("b:2").layers[0] + "/one",) and os.path.exists(catalog.get("b:2").layers[0] + "/one")


def test_container_is_not_stood_on_a_layer_that_went(own_root):
    add_image(catalog.store(), "a", ONE)
    image = catalog.get("a")
    garbage.remove("a")
    with pytest.raises(NotFound, match="removed"):
        roots.driver().prepare(image, "test-late")
    assert not (state.lib_dir("containers") / "test-late").exists()


# Archives


def test_saved_image_is_the_same_when_it_is_loaded(own_root, monkeypatch):
    add_image(catalog.store(), "a:1", ONE, TWO)
    add_image(catalog.store(), "b", ONE)
    first = catalog.get("a:1")
    before = [snapshot(path) for path in first.layers]
    archives.save(["a:1", "b"], own_root / "both.tar")
    archives.save(["b", "a:1"], own_root / "again.tar")
    assert (own_root / "both.tar").read_bytes() == (own_root / "again.tar").read_bytes()
    monkeypatch.setenv("LABKIT_ROOT", str(own_root / "second"))
    loaded = archives.load(own_root / "both.tar")
    assert [(image.name, image.digest, image.id) for image in loaded][0] == (
        first.name,
        first.digest,
        first.id,
    )
    assert [image.name for image in loaded] == ["a:1", "b:latest"]
    assert [snapshot(path) for path in catalog.get("a:1").layers] == before


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_skopeo_reads_what_we_save_as_both_formats(own_root, transport):
    image = catalog.get("busybox")
    archives.save("busybox", own_root / "b.tar")
    done = subprocess.run(
        ["skopeo", "--insecure-policy", "copy", f"{transport}:{own_root}/b.tar", f"oci:{own_root}/out:x"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    _, config = catalog.read(layout.Layout(own_root / "out"), layout.Layout(own_root / "out").names()["x"])
    assert config["rootfs"]["diff_ids"] == list(image.diff_ids)


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_skopeo_writes_is_loaded(own_root, monkeypatch, transport, wrapped):
    image = catalog.get("busybox")
    path, name = own_root / "s.tar", "some/where:7"
    done = subprocess.run(
        [
            "skopeo",
            "--insecure-policy",
            "copy",
            f"oci:{state.lib_dir('images')}:busybox:latest",
            f"{transport}:{path}:{name}",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if wrapped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setenv("LABKIT_ROOT", str(own_root / "second"))
    seen = []
    (loaded,) = archives.load(path, progress=lambda done, total: seen.append((done, total)))
    assert loaded.name == name and loaded.diff_ids == image.diff_ids
    assert seen[-1] == (path.stat().st_size,) * 2


def test_old_dockers_links_between_layers_are_followed(own_root):
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [digests.digest(ONE)] * 2}}).encode()
    listed = json.dumps(
        [{"Config": "c.json", "RepoTags": ["old:1"], "Layers": ["a/layer.tar", "b/layer.tar"]}]
    ).encode()
    data = tar(
        entry("c.json", data=config),
        entry("a/layer.tar", data=ONE),
        symlink("b/layer.tar", "../a/layer.tar"),
        entry("manifest.json", data=listed),
    )
    (own_root / "old.tar").write_bytes(data)
    (image,) = archives.load(own_root / "old.tar")
    assert image.diff_ids == (digests.digest(ONE),) * 2
    assert image.id == digests.digest(config), "the id is what docker called it"


def docker_archive(layers=("a.tar",), config=None, names=("h:1",), extra=(), **more):
    config = json.dumps({"rootfs": {"diff_ids": [digests.digest(ONE)]}}).encode() if config is None else config
    listed = json.dumps([{"Config": "c.json", "RepoTags": list(names), "Layers": list(layers)} | more]).encode()
    return tar(entry("c.json", data=config), entry("a.tar", data=ONE), entry("manifest.json", data=listed), *extra)


HOSTILE = {
    "nothing in it": tar(),
    "a layer, not an image": ONE,
    "not a tar": b"banana" * 1000,
    "cut": docker_archive()[:2000],
    "names a file of the host": docker_archive(layers=["/etc/passwd"]),
    "names a file above": docker_archive(layers=["../../etc/passwd"]),
    "names what it has not": docker_archive(layers=["b.tar"]),
    "links out": docker_archive(layers=["l"], extra=[symlink("l", "/etc/passwd")]),
    "links in a circle": docker_archive(layers=["l"], extra=[symlink("l", "m"), symlink("m", "l")]),
    "entry outside": docker_archive(extra=[entry("../../x", data=b"x")]),
    "wrong diffID": docker_archive(config=json.dumps({"rootfs": {"diff_ids": [digests.digest(TWO)]}}).encode()),
    "too few diffIDs": docker_archive(config=json.dumps({"rootfs": {"diff_ids": []}}).encode()),
    "config is no JSON": docker_archive(config=b"{"),
    "config is a list": docker_archive(config=b"[]"),
    "config nests without end": docker_archive(config=b"[" * 100_000),
    "name with a slash too many": docker_archive(names=["a//b"]),
    "name that is a path": docker_archive(names=["../../x"]),
    "manifest.json is no list": tar(entry("manifest.json", data=b"{}")),
    "index.json without manifests": tar(entry("index.json", data=b"{}")),
    "index names a path": tar(
        entry(
            "index.json",
            data=json.dumps({"manifests": [{"digest": "sha256:../../x", "annotations": {}}]}).encode(),
        )
    ),
    "index names a lie": tar(
        entry("index.json", data=json.dumps({"manifests": [{"digest": "sha256:" + "1" * 64}]}).encode()),
        entry(
            "blobs/sha256/" + "1" * 64,
            data=b'{"config": {"digest": "sha256:%b"}, "layers": []}' % (b"2" * 64),
        ),
        entry("blobs/sha256/" + "2" * 64, data=b"{}"),
    ),
    "hostile layer inside": None,
}
_EVIL = tar(symlink("a", "/etc"), entry("a/labkit-was-here", data=b"x"))
HOSTILE["hostile layer inside"] = tar(
    entry(
        "c.json",
        data=json.dumps({"rootfs": {"diff_ids": [digests.digest(ONE), digests.digest(_EVIL)]}}).encode(),
    ),
    entry("a.tar", data=ONE),
    entry("b.tar", data=_EVIL),
    entry(
        "manifest.json",
        data=json.dumps([{"Config": "c.json", "RepoTags": ["h:1"], "Layers": ["a.tar", "b.tar"]}]).encode(),
    ),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_is_refused_and_no_name_is_given(own_root, name):
    catalog.get("busybox")
    before = catalog.store().names()
    (own_root / "h.tar").write_bytes(HOSTILE[name])
    with pytest.raises((BadArchive, BadValue)) as caught:
        archives.load(own_root / "h.tar")
    assert caught.value.hint
    assert catalog.store().names() == before
    assert ledger.entries() == []
    left = [path for path in state.lib_dir("images").rglob("*") if ".tmp" in path.name or ".load" in path.name]
    assert left == [] and not os.path.exists("/etc/labkit-was-here")
    garbage.collect()
    assert len(os.listdir(state.lib_dir("images") / "blobs/sha256")) == 3, "what it left is garbage, and goes"


def test_archive_of_many_processors_gives_ours(own_root):
    store = layout.Layout(own_root / "l").create()
    mine, other = add_image(store, "mine", ONE), add_image(store, "other", TWO)
    system, machine = catalog.wanted_platform()
    wrong = "arm64" if machine != "arm64" else "amd64"
    index = {
        "schemaVersion": 2,
        "manifests": [
            {"digest": other, "size": 1, "platform": {"os": system, "architecture": wrong}},
            {"digest": mine, "size": 1, "platform": {"os": system, "architecture": machine}},
        ],
    }
    digest, size = store.add_json(index)
    (own_root / "l/index.json").write_text(
        json.dumps({"manifests": [{"digest": digest, "size": size, "annotations": {layout.REF_NAME: "many:1"}}]})
    )
    subprocess.run(["tar", "-C", own_root / "l", "-cf", own_root / "many.tar", "."], check=True)
    (image,) = archives.load(own_root / "many.tar")
    assert (image.digest, image.name) == (mine, "many:1")
    index["manifests"].pop()
    digest, size = store.add_json(index)
    (own_root / "l/index.json").write_text(json.dumps({"manifests": [{"digest": digest}]}))
    subprocess.run(["tar", "-C", own_root / "l", "-cf", own_root / "many.tar", "."], check=True)
    with pytest.raises(Unsupported, match=machine):
        archives.load(own_root / "many.tar", name="x")


def test_image_by_name_and_digest_is_that_one_though_the_name_has_moved(own_root):
    old = catalog.get("busybox")
    catalog.tag("busybox", "kept:1")
    new = commit.commit(old, None, "busybox:latest", "other")
    assert catalog.get(f"busybox@{new.digest}").name == "busybox:latest"
    assert catalog.get(f"busybox:latest@{old.digest}").digest == old.digest != new.digest
    with pytest.raises(NotFound, match="sha256:0"):
        catalog.get("busybox@sha256:" + "0" * 64)
    with pytest.raises(BadValue, match="no digest"):
        catalog.get("busybox@sha256:12")


def test_archive_without_a_name_takes_the_one_given(own_root):
    (own_root / "n.tar").write_bytes(docker_archive(names=[]))
    with pytest.raises(BadValue, match="name="):
        archives.load(own_root / "n.tar")
    (image,) = archives.load(own_root / "n.tar", name="mine")
    assert image.name == "mine:latest"


def test_save_that_fails_leaves_no_half_file(own_root):
    catalog.get("busybox")
    with pytest.raises(LabError):
        archives.save("busybox", own_root / "no-such-folder/b.tar")
    with pytest.raises(NotFound):
        archives.save(["busybox", "nope"], own_root / "b.tar")
    assert not (own_root / "b.tar").exists()
    assert [path.name for path in own_root.iterdir()] == ["labkit-root"]


def test_load_of_a_missing_file_says_so(own_root):
    with pytest.raises(NotFound):
        archives.load(own_root / "nope.tar")


def test_saved_tar_has_nothing_of_this_machine_in_it(own_root):
    catalog.get("busybox")
    archives.save("busybox", own_root / "b.tar")
    with tarfile.open(own_root / "b.tar") as file:
        for member in file:
            assert (member.uid, member.gid, member.mtime, member.uname) == (0, 0, 0, "")
    shutil.rmtree(state.lib_dir("layers"))
    (image,) = archives.load(io.BytesIO and own_root / "b.tar")
    assert os.path.exists(image.layers[0])


@pytest.mark.parametrize("named", ["every one", "the image's only", "an index of indexes"])
def test_one_name_for_several_processors_in_a_flat_index_is_one_image(own_root, named):
    """As docker buildx writes it, with what it says about the build beside; what is not ours need not be there."""
    store = layout.Layout(own_root / "l").create()
    mine = add_image(store, "mine", ONE)
    system, machine = catalog.wanted_platform()
    name = {"annotations": {layout.REF_NAME: "flat:1"}}
    ours = {"digest": mine, "size": 1, "platform": {"os": system, "architecture": machine}}
    others = [
        {"digest": "sha256:" + "a" * 64, "size": 1, "platform": {"os": system, "architecture": "riscv64"}},
        {"digest": "sha256:" + "b" * 64, "size": 1, "platform": {"os": "unknown", "architecture": "unknown"}},
    ]
    entries = [one | name for one in (others[0], ours, others[1])]
    if named != "every one":
        entries = [store.add_json({"manifests": [*others, ours]})]
        if named != "the image's only":
            only = store.add_json({"manifests": others[:1]})
            inside = [{"digest": digest, "size": size} for digest, size in (only, *entries)]
            entries = [store.add_json({"manifests": inside})]
        entries = [{"digest": digest, "size": size} | name for digest, size in entries]
    (own_root / "l/index.json").write_text(json.dumps({"manifests": entries}))
    subprocess.run(["tar", "-C", own_root / "l", "-cf", own_root / "flat.tar", "."], check=True)
    (image,) = archives.load(own_root / "flat.tar")
    assert (image.digest, image.name) == (mine, "flat:1")


@pytest.mark.parametrize(
    "squeeze", [bz2.compress, lzma.compress, gzip.compress, lambda data: gzip.compress(data) + bytes(512)]
)
def test_archive_is_read_from_a_pipe_however_it_was_compressed(own_root, squeeze):
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as pipe, open(write_end, "wb") as into:
        writer = threading.Thread(target=lambda: (into.write(squeeze(docker_archive())), into.close()))
        writer.start()
        (image,) = archives.load(pipe)
        writer.join()
    assert image.name == "h:1" and len(image.layers) == 1


@pytest.mark.parametrize("squeeze", [bz2.compress, lzma.compress])
def test_layer_compressed_by_what_no_manifest_can_name_is_kept_plain(own_root, squeeze):
    config = json.dumps({"rootfs": {"diff_ids": [digests.digest(ONE)]}}).encode()
    listed = json.dumps([{"Config": "c.json", "RepoTags": ["h:1"], "Layers": ["a.tar"]}]).encode()
    data = tar(entry("c.json", data=config), entry("a.tar", data=squeeze(ONE)), entry("manifest.json", data=listed))
    (own_root / "n.tar").write_bytes(data)
    (image,) = archives.load(own_root / "n.tar")
    manifest, _ = catalog.read(catalog.store(), image.digest)
    assert manifest["layers"][0]["digest"] == digests.digest(ONE)


def test_layer_that_is_kept_elsewhere_is_named(own_root):
    store = layout.Layout(own_root / "l").create()
    digest = add_image(store, "mine", ONE)
    manifest = store.read_json(digest)
    gone = {"digest": "sha256:" + "c" * 64, "size": 1, "urls": ["https://example.org/layer"]}
    digest, size = store.add_json(manifest | {"layers": [*manifest["layers"], gone]})
    name = {"annotations": {layout.REF_NAME: "far:1"}}
    (own_root / "l/index.json").write_text(json.dumps({"manifests": [{"digest": digest, "size": size} | name]}))
    subprocess.run(["tar", "-C", own_root / "l", "-cf", own_root / "far.tar", "."], check=True)
    with pytest.raises(Unsupported, match="c{64}.*") as caught:
        archives.load(own_root / "far.tar")
    assert "example.org" in caught.value.hint


def test_image_is_saved_into_a_stream_as_into_a_file(own_root):
    catalog.get("busybox")
    archives.save("busybox", own_root / "b.tar")
    out = io.BytesIO()
    archives.save("busybox", out)
    assert out.getvalue() == (own_root / "b.tar").read_bytes()


@pytest.mark.parametrize("depth", [1500, 3000])
def test_changes_are_listed_as_deep_as_a_path_reaches(tmp_path, depth):
    inside = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=inside)
        below = os.open("d", os.O_RDONLY, dir_fd=inside)
        os.close(inside)
        inside = below
    os.close(inside)
    try:
        if depth == 1500:
            assert len(diff.changes(tmp_path)) == depth
        else:
            with pytest.raises(KernelError, match="ENAMETOOLONG"):
                diff.changes(tmp_path)
    finally:
        ledger.remove_tree(tmp_path / "d")  # pytest can't
