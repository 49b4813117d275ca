"""Build: each instruction does what Docker's reference says; what was built before is not built again."""

import json
import os
import stat
import subprocess
import tarfile

import hosts
import pytest
from trees import differences, snapshot

from labkit.build import builder, dockerfile, words
from labkit.build.ignore import Ignored
from labkit.container.life import Container
from labkit.ground import ledger, state
from labkit.ground.errors import BadValue, LabError, NotFound
from labkit.images import catalog, digests
from labkit.storage import garbage, roots

pytestmark = pytest.mark.usefixtures("needs_root", "own_root")


@pytest.fixture
def make(tmp_path):
    """Build a Dockerfile's text, with files beside it; return (Image, lines said)."""

    def make(text, name="made:1", files=None, **options):
        folder = tmp_path / "context"
        folder.mkdir(exist_ok=True)
        for path, contents in (files or {}).items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(contents)
        (folder / "Dockerfile").write_text(text)
        said = []
        return builder.build(folder, name, say=said.append, **options), said

    return make


class seen:
    """An image's files, merged, for the block."""

    def __init__(self, image, tmp_path):
        self.image, self.at = image, tmp_path / f"seen-{state.new_id()}"

    def __enter__(self):
        self.at.mkdir()
        roots.mount(self.image.layers, None, None, self.at)
        return self.at

    def __exit__(self, *_):
        roots.unmount(self.at)


# Reading


def read_words(text):
    return [(one.line, one.word, one.text) for one in dockerfile.parse(text)]


def test_lines_go_on_after_a_backslash_past_comments_and_empty_lines():
    text = "# first\nFROM a\n\nRUN one \\\n  # in the middle\n\n  two \\\n  three\nCMD x"
    assert read_words(text) == [(2, "FROM", "a"), (4, "RUN", "one   two   three"), (9, "CMD", "x")]


def test_another_escape_sign_and_a_script():
    text = "# escape=`\nFROM a\nRUN one `\n two\nRUN <<END\nline 1\n  line 2\nEND\nCMD x"
    read = dockerfile.parse(text)
    assert [one.word for one in read] == ["FROM", "RUN", "RUN", "CMD"]
    assert read[1].text == "one  two" and read[2].heredocs[0].body == "line 1\n  line 2\n"


@pytest.mark.parametrize(
    "text, value",
    [
        ("$A", "1"),
        ("${A}b", "1b"),
        ("$Ab", ""),
        ("${NO:-x}", "x"),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY-x}", ""),
        ("${A:-x}", "1"),
        ("${A:+x}", "x"),
        ("${NO:+x}", ""),
        (r"\$A", "$A"),
        ("a$", "a$"),
        ("$A$A", "11"),
    ],
)
def test_variables(text, value):
    assert words.expand(text, {"A": "1", "EMPTY": ""}) == value


def test_pairs_with_quotes_and_the_old_form():
    def pairs(text):
        return dockerfile.parse(f"FROM a\nENV {text}")[1].pairs({})

    assert pairs("A=1 B=\"two words\" C='$x' D=a\\ b") == [
        ("A", "1"),
        ("B", "two words"),
        ("C", "$x"),
        ("D", "a b"),
    ]
    assert pairs("A one two") == [("A", "one two")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment",
        "RUN x",
        "FROM",
        "FROM a b",
        "FROM a\nBANANA x",
        "FROM busybox\nHEALTHCHECK x",
        "FROM a\nRUN",
        "FROM a\nRUN <<END\nnever",
        "FROM busybox\nENV A",
        "FROM busybox\nCOPY x",
        "FROM busybox\nEXPOSE banana",
        "FROM busybox\nEXPOSE 99999",
        "FROM busybox\nSHELL sh",
        "FROM busybox\nCOPY --banana=1 a b",
        "FROM busybox\nARG 1=2",
        "FROM busybox\nCOPY --chown=me a b",
        "FROM busybox\nADD http://x/y /z",
        "FROM busybox\nENV A=${B",
    ],
)
def test_dockerfile_that_can_not_be_meant_is_refused_with_its_line(make, text):
    with pytest.raises(BadValue) as caught:
        make(text, files={"a": "a"})
    assert caught.value.hint and ("line" in str(caught.value) or "FROM" in str(caught.value))
    assert "made:1" not in catalog.store().names() and ledger.entries() == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ADD https://example.org/x.tar /", "x.tar is on the network.*fetch it into the build folder"),
        ("ADD git@example.org:x.git /", "is on the network"),
    ],
)
def test_what_only_docker_builds_is_refused_with_what_to_do_instead(make, line, said):
    with pytest.raises(BadValue, match=f"(?s)line 2: .*{said}"):
        make(f"FROM busybox\n{line}")


# Owners by name

NAMES = "FROM scratch\nCOPY etc /etc\n"
PASSWD = "root:x:0:0::/:/bin/sh\nweb:x:101:102::/:/bin/sh\nmany:x:99999999999:1::/:\n\xb2:x:\xb2:\xb2::/:\n"
FILES = {"etc/passwd": PASSWD, "etc/group": "root:x:0:\nstaff:x:50:web\n", "file": "x"}


@pytest.mark.parametrize(
    ("owner", "ids"),
    [("web", (101, 102)), ("web:staff", (101, 50)), ("7:staff", (7, 50)), ("web:8", (101, 8)), ("7", (7, 7))],
)
def test_owner_by_name_is_whom_the_image_itself_calls_so(make, tmp_path, owner, ids):
    """Not whom this machine calls so; a name alone has its own group, a number the same one, as in BuildKit."""
    image, _ = make(f"{NAMES}COPY --chown={owner} file /file", files=FILES)
    with seen(image, tmp_path) as at:
        status = os.stat(at / "file")
        assert (status.st_uid, status.st_gid) == ids


UNKNOWN = ["nobody", "web:nogroup", "many", "\xb2", "4294967295", "-1", "web:-1"]


@pytest.mark.parametrize("owner", UNKNOWN)
def test_owner_that_the_image_does_not_know_is_refused(make, owner):
    with pytest.raises(BadValue, match="line 3: COPY: --chown=.*"):
        make(f"{NAMES}COPY --chown={owner} file /file", files=FILES)
    assert "made:1" not in catalog.store().names() and ledger.entries() == []


def test_owner_is_never_looked_up_outside_the_image(make, tmp_path):
    """Its passwd may be a link to ours, a pipe that nobody writes to, a device, or not there."""
    (tmp_path / "outside").write_text("spy:x:666:666::/:/bin/sh\n")
    for number, line in enumerate(
        (
            f"ln -sf {tmp_path}/outside /etc/passwd",
            f"ln -sf ../../../../../../../..{tmp_path}/outside /etc/passwd",
            "ln -sf /proc/1/root/etc/passwd /etc/passwd",
            "rm -f /etc/passwd; mkfifo /etc/passwd",
            "rm -f /etc/passwd; mkdir /etc/passwd",
            "rm /etc/passwd",
        )
    ):
        with pytest.raises(BadValue, match="no user 'spy'"):
            text = f"FROM busybox\nRUN {line}\nCOPY --chown=spy file /f"
            make(text, name=f"spy:{number}", files={"file": "x"})
    assert ledger.entries() == []


# Building


def test_every_instruction(make, tmp_path):
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "in").write_text("packed")
    with tarfile.open(folder / "packed.tar", "w") as tar:
        tar.add(folder / "in", "in")
    image, said = make(
        """
ARG BASE=busybox
FROM $BASE
LABEL who="the lab" what=test
ARG VERSION=1
ENV GREETING=hello NAME=$VERSION
WORKDIR /app
COPY file sub/ ./
ADD packed.tar /unpacked/
RUN echo "$GREETING $NAME $VERSION" > made && rm /bin/vi && echo printed
USER 1000:1000
EXPOSE 80 53/udp
VOLUME ["/list"]
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["cat made"]
""",
        files={"file": "file", "sub/one": "1", "sub/deep/two": "2"},
        args={"VERSION": "7"},
    )
    config = image.config
    assert config.labels == {"who": "the lab", "what": "test"}
    assert "GREETING=hello" in config.env and "NAME=7" in config.env and not any("VERSION" in one for one in config.env)
    assert (config.workdir, config.user, config.stop_signal) == ("/app", "1000:1000", "SIGINT")
    assert config.exposed_ports == ("53/udp", "80/tcp") and config.volumes == ("/list",)
    assert config.entrypoint == ("/bin/sh", "-c") and config.cmd == ("cat made",)
    with seen(image, tmp_path) as root:
        assert (root / "app/file").read_text() == "file" and (root / "app/one").read_text() == "1"
        assert (root / "app/deep/two").read_text() == "2" and not (root / "app/sub").exists()
        assert (root / "unpacked/in").read_text() == "packed"
        assert (root / "app/made").read_text() == "hello 7 7\n" and not (root / "bin/vi").exists()
    assert "printed" in said and any(line.startswith("Step 2/14 : LABEL") for line in said)
    assert len(image.layers) == 1 + 4, "base, WORKDIR, COPY, ADD, RUN"
    with Container("made:1").start() as box:
        assert box.wait() == 0 and box.logs() == "hello 7 7\n"
    assert [entry for entry in ledger.entries() if entry.kind != "process"] == []


def test_what_run_changed_is_all_that_its_layer_holds(make):
    image, _ = make("FROM busybox\nRUN echo x > /new")
    assert sorted(os.listdir(image.layers[-1])) == ["new"]
    image, _ = make("FROM busybox\nRUN true")
    assert len(image.layers) == 1, "nothing changed: no layer"


def test_mount_points_of_the_engine_are_not_in_a_layer(make, tmp_path):
    image, _ = make('FROM busybox AS b\nFROM scratch\nCOPY --from=b /bin /bin\nRUN ["/bin/touch", "/x"]')
    assert sorted(os.listdir(image.layers[-1])) == ["x"]


def test_stages_copy_from_each_other_and_from_images(make, tmp_path):
    text = """
FROM busybox AS one
RUN mkdir /out && cd /out && echo built > file && chown 12:34 file && chmod 640 file && ln -s file link
FROM scratch AS two
COPY --from=one /out /here
COPY --from=0 /out/file /single
COPY --from=busybox /etc/passwd /etc/
FROM two
COPY --from=two --chown=5 --chmod=600 /single /owned
"""
    image, _ = make(text)
    with seen(image, tmp_path) as root:
        assert sorted(os.listdir(root)) == ["etc", "here", "owned", "single"]
        status = os.stat(root / "here/file")
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12, 34, 0o640)
        assert os.readlink(root / "here/link") == "file"
        assert (root / "single").read_text() == "built\n" and (root / "etc/passwd").read_text().startswith("root")
        assert os.stat(root / "owned").st_uid == 5 and stat.S_IMODE(os.stat(root / "owned").st_mode) == 0o600
    image, _ = make(text, name="first:1", target="one")
    assert len(image.layers) == 2
    with pytest.raises(BadValue, match="no stage"):
        make(text, target="three")


@pytest.mark.parametrize(
    "line, path",
    [
        ("COPY f /a", "a"),
        ("COPY f /a/", "a/f"),
        ("COPY f /tmp", "tmp/f"),
        ("COPY f a", "work/a"),
        ("COPY f .", "work/f"),
        ("COPY f g /a/", "a/g"),
        ("COPY d /a", "a/in"),
        ("COPY d/ /a/", "a/in"),
        ('COPY ["f", "/with space/x"]', "with space/x"),
        ("COPY *.txt /t/", "t/one.txt"),
        ("COPY ../../f /a", "a"),
        ("COPY f /deep/er/x", "deep/er/x"),
        ("COPY . /all", "all/d/in"),
        ("COPY f /link/x", "target/x"),
    ],
)
def test_copy_goes_where_docker_puts_it(make, tmp_path, line, path):
    files = {"f": "f", "g": "g", "d/in": "in", "one.txt": "1"}
    image, _ = make(f"FROM busybox\nWORKDIR /work\nRUN mkdir /target && ln -s target /link\n{line}", files=files)
    with seen(image, tmp_path) as root:
        assert (root / path).is_file()
        status = os.stat(root / path)
        assert (status.st_uid, status.st_gid) == (0, 0)


def test_copy_keeps_the_targets_own_mode_and_owner(make, tmp_path):
    image, _ = make("FROM busybox\nCOPY f /tmp/", files={"f": "f"})
    with seen(image, tmp_path) as root:
        assert stat.S_IMODE(os.stat(root / "tmp").st_mode) == 0o1777
        assert stat.S_IMODE(os.stat(root).st_mode) == 0o755


def test_copy_can_not_leave_the_build_folder_or_the_root(make, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "context").mkdir()
    os.symlink("../secret", tmp_path / "context/way-out")
    with pytest.raises(NotFound, match="line 2: .*no way-out"):
        make("FROM busybox\nCOPY way-out /x")
    with pytest.raises(NotFound):
        make("FROM busybox\nCOPY ../secret /x")
    # An image whose folder is a symlink to the host's: the copy stays in the image's root.
    (tmp_path / "victim").mkdir()
    text = f"FROM busybox\nRUN ln -s {tmp_path}/victim /out && mkdir -p {tmp_path}/victim\nCOPY f /out/"
    image, _ = make(text, files={"f": "f"})
    assert os.listdir(tmp_path / "victim") == []
    with seen(image, tmp_path) as root:
        assert (root / str(tmp_path / "victim/f").lstrip("/")).read_text() == "f"
    # And what is copied out of an image is never the host's.
    with pytest.raises(NotFound):
        make(f"FROM busybox AS a\nRUN ln -s {tmp_path}/secret /s\nFROM scratch\nCOPY --from=a /s /s")


def test_a_context_deeper_than_a_layer_may_be_is_refused_by_name(make, tmp_path):
    (tmp_path / "context" / "/".join("d" * 300)).mkdir(parents=True)
    with pytest.raises(BadValue, match="the build folder is deeper than 256 folders"):
        make("FROM busybox\nCOPY . /x")


def test_dockerignore_leaves_things_out(make, tmp_path):
    (tmp_path / "context/keep").mkdir(parents=True)
    files = {
        "a.log": "",
        "b.txt": "",
        "keep/c.log": "",
        "keep/d.log": "",
        "deep/x/e.log": "",
        ".dockerignore": "# logs\n**/*.log\n!keep/d.log\n",
    }
    image, _ = make("FROM busybox\nCOPY . /all/", files=files)
    with seen(image, tmp_path) as root:
        found = {str(path.relative_to(root / "all")) for path in (root / "all").rglob("*") if path.is_file()}
    assert found == {"b.txt", "keep/d.log", ".dockerignore", "Dockerfile"}


def test_ignore_patterns():
    ignored = Ignored("a\n*/b\n**/c\nd?\n")
    names = ("a", "a/x", "b", "x/b", "x/y/b", "c", "x/y/c", "d1", "d12", "e")
    assert {name for name in names if ignored(name)} == {"a", "a/x", "x/b", "c", "x/y/c", "d1"}


@pytest.mark.parametrize("text", ["[", "[a", "a\\", "!"])
def test_ignore_pattern_that_can_not_be_read_lets_nothing_slip_through(make, text):
    with pytest.raises(BadValue, match="dockerignore"):
        make("FROM busybox\nCOPY . /x", files={".dockerignore": f"{text}\n"})


# The cache


TEXT = "FROM busybox\nARG A=1\nENV E=1\nCOPY f /f\nRUN cat /f > /g; echo $RANDOM > /chance\nRUN echo last"


def hits(said):
    return sum("in the cache" in line for line in said)


def test_same_build_comes_from_the_cache_and_is_the_same_image(make):
    first, said = make(TEXT, files={"f": "1"})
    assert hits(said) == 0
    second, said = make(TEXT, name="made:2")
    assert hits(said) == 3 and second.digest == first.digest
    third, said = make(TEXT, name="made:3", cache=False)
    assert hits(said) == 0 and third.diff_ids != first.diff_ids


def test_what_changed_and_what_follows_is_built_again(make):
    make(TEXT, files={"f": "1"})
    _, said = make(TEXT, files={"f": "2"})
    assert hits(said) == 0  # the copied contents
    _, said = make(TEXT, args={"A": "2"})
    assert hits(said) == 1  # COPY does not see it, RUN does
    _, said = make(TEXT.replace("E=1", "E=2"))
    assert hits(said) == 1
    _, said = make(TEXT.replace("echo last", "echo other"))
    assert hits(said) == 2


def test_time_of_a_copied_file_does_not_count(make, tmp_path):
    make(TEXT, files={"f": "1"})
    os.utime(tmp_path / "context/f", (1, 1))
    _, said = make(TEXT)
    assert hits(said) == 3


def test_cache_of_layers_that_are_gone_is_no_hit(make):
    make(TEXT, files={"f": "1"})
    garbage.remove("made:1")
    image, said = make(TEXT)
    assert hits(said) <= 1 and os.path.exists(image.layers[-1])


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: b"\0" * len(data)])
def test_every_blob_that_a_build_finds_damaged_is_made_anew(make, damage):
    whole, _ = make(TEXT, files={"f": "1"})
    store = catalog.store()
    layers = [layer["digest"] for layer in catalog.read(store, whole.digest)[0]["layers"]]
    for path in sorted((store.folder / "blobs/sha256").iterdir()):
        if f"sha256:{path.name}" not in layers or damage(b"12") != b"\0\0":  # a layer's length is looked at, no more
            path.write_bytes(damage(path.read_bytes()))
    garbage.drop_broken_names()
    image, _ = make(TEXT)
    assert catalog.get("made:1").diff_ids == image.diff_ids
    for layer in catalog.read(store, image.digest)[0]["layers"]:
        assert digests.digest(store.path(layer["digest"]).read_bytes()) == layer["digest"]


# Failing


def test_run_that_fails_names_line_and_last_words_and_leaves_nothing(make):
    with hosts.unchanged():
        with pytest.raises(LabError, match="line 3.*status 3") as caught:
            make("FROM busybox\nRUN echo one > /one\nRUN echo bad luck; exit 3")
        assert caught.value.hint == "bad luck"
        assert "made:1" not in catalog.store().names()
        assert os.listdir(state.lib_dir("containers")) == [] and os.listdir(state.lib_dir("build")) == []
    garbage.collect()
    assert len(os.listdir(state.lib_dir("layers"))) == 1


def test_unknown_base_and_missing_dockerfile_are_told(make, tmp_path):
    with pytest.raises(NotFound, match="nope"):
        make("FROM nope")
    with pytest.raises(NotFound):
        builder.build(tmp_path, "x")
    with pytest.raises(NotFound):
        builder.build(tmp_path / "nowhere", "x")
    with pytest.raises(BadValue):
        make("FROM busybox", name="Not A Name")


def test_build_in_the_way_of_garbage_collection_loses_nothing(make):
    """While a build holds the store, whoever collects waits: its layers have no name yet."""
    import threading

    waiting = []

    def say(line):
        if line.startswith("Step 3") and not waiting:
            waiting.append(threading.Thread(target=garbage.collect))
            waiting[0].start()

    image, _ = make("FROM busybox\nRUN echo 1 > /one\nRUN echo 2 > /two")
    garbage.remove("made:1")
    folder = state.lib_dir("..").resolve().parent / "context"
    image = builder.build(folder, "made:2", say=say, cache=False)
    waiting[0].join(10)
    assert all(os.path.exists(path) for path in catalog.get("made:2").layers) and len(image.layers) == 3


def test_tools_of_others_read_what_was_built(make, tmp_path):
    image, _ = make('FROM busybox\nCOPY f /f\nRUN rm /bin/ls && echo x > /x\nCMD ["sh"]', files={"f": "1"})
    path = state.lib_dir("images")
    said = subprocess.run(
        ["skopeo", "--insecure-policy", "inspect", "--config", f"oci:{path}:made:1"],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    config = json.loads(said.stdout)
    assert [one["created_by"] for one in config["history"]][1:] == [
        "COPY f /f",
        "RUN rm /bin/ls && echo x > /x",
        'CMD ["sh"]',
    ]
    unpacked = subprocess.run(
        ["umoci", "unpack", "--image", f"{path}:made:1", tmp_path / "bundle"], capture_output=True, text=True
    )
    assert unpacked.returncode == 0, unpacked.stderr
    with seen(image, tmp_path) as root:
        ignore = ("trusted.overlay.opaque", "trusted.overlay.origin", "trusted.overlay.impure")
        ours = snapshot(root, times=False, ignore=ignore)
    assert differences(ours, snapshot(tmp_path / "bundle/rootfs", times=False, ignore=ignore)) == []


def test_a_build_beside_a_running_container_takes_away_its_own_mounts_only(tmp_path):
    from labkit.container.life import Container

    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY file /file\n")
    (tmp_path / "file").write_text("x")
    with Container("busybox", "sleep 60").start() as box:
        builder.build(tmp_path, "beside", say=lambda _: None)
        assert box.status == "running"
