"""What a Dockerfile promises beside BuildKit: lines, words, mounts, triggers, and what stays in the image's config."""

import io
import os
import stat
import subprocess
import tarfile

import pytest

from labkit.build import builder, modes, words
from labkit.container.life import Container
from labkit.ground import ledger, state
from labkit.ground.errors import BadValue, LabError, NotFound
from labkit.images import catalog
from labkit.storage import roots, volumes

pytestmark = pytest.mark.usefixtures("needs_root", "own_root")


@pytest.fixture
def folder(tmp_path):
    """A build folder with a few files."""
    found = tmp_path / "context"
    for path, text in {"f": "f", "g": "g", "d/in": "in", "secret": "s3cret"}.items():
        (found / path).parent.mkdir(parents=True, exist_ok=True)
        (found / path).write_text(text)
    return found


@pytest.fixture
def make(folder):
    """Build a Dockerfile's text, given as text or bytes; return the Image."""

    def make(text, name="made:1", say=lambda line: None, **options):
        (folder / "Dockerfile").write_bytes(text if isinstance(text, bytes) else text.encode())
        return builder.build(folder, name, say=say, **options)

    return make


def printed(image, command):
    """Return what a command prints in a container of the image."""
    with Container(image.digest, command).start() as box:
        box.wait()
        return box.logs()


# Lines and words


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfFROM busybox\nRUN echo hi >/x\n",
        b"FROM busybox\r\nRUN echo \\\r\n  hi >/x\r\n",
        b"from\tbusybox\nrun\t\techo hi >/x",
        b"# syntax=docker/dockerfile:1\n# escape=`\nFROM busybox\nRUN echo `\n# between\n\n hi >/x\n",
        b"FROM busybox\nRUN <<EOF\necho hi >/x\nEOF\n",
        b"FROM busybox\nRUN <<-EOF\n\techo hi >/x\n\tEOF\n",
        b"FROM busybox\nRUN cat <<EOF >/x && true\nhi\nEOF\n",
        b"FROM busybox\nRUN cat << 'EOF' >/x\nhi\nEOF\n",
        b'FROM busybox\nRUN <<EOF\n#!/bin/awk -f\nBEGIN { print "hi" >"/x" }\nEOF\n',
        b"FROM busybox\nCOPY <<EOF /x\nhi\nEOF\n",
        b"FROM busybox\nARG W=hi\nCOPY <<x /\n${W}\nx\n",
        b'FROM busybox\nRUN ["sh", "-c", "echo hi >/x"]\n',
    ],
)
def test_a_file_as_people_write_it_is_read(make, text):
    assert printed(make(text), "cat /x") == "hi\n" and ledger.entries() == []


def test_only_a_newline_ends_a_line(make):
    image = make("FROM busybox\nLABEL a='x\u2028y' b=\"x\u0085y\" c='x\ry'\nENV F='\f'\n")
    assert image.config.labels == {"a": "x\u2028y", "b": "x\u0085y", "c": "x\ry"} and "F=\f" in image.config.env


def test_text_in_utf_16_is_told_from_a_wrong_instruction(make):
    with pytest.raises(BadValue, match="UTF-8"):
        make("FROM busybox\n".encode("utf-16"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'$A'", "$A"),
        ('"$A"', "1"),
        (r"\$A", "$A"),
        (r'"\d\$A\""', r'\d$A"'),
        (r"'\'", "\\"),
        ("$Q", 'say "hi" \\ $A'),
        ('"<$Q>"', '<say "hi" \\ $A>'),
        ("${NO:-${ALSO:-$A}}", "1"),
        ("${A:+'$A'}", "$A"),
        ("${P#*/}", "b/c.tar.gz"),
        ("${P##*/}", "c.tar.gz"),
        ("${P%.*}", "a/b/c.tar"),
        ("${P%%.*}", "a/b/c"),
        ("${P/b/x}", "a/x/c.tar.gz"),
        ("${P//[a-z]}", None),
        ("${NO?gone}", None),
        ("'open", None),
        ('"open', None),
        ("${A", None),
        ("${}", None),
    ],
)
def test_a_word_means_what_it_means_to_docker(text, value):
    variables = {"A": "1", "Q": 'say "hi" \\ $A', "P": "a/b/c.tar.gz", "EMPTY": ""}
    if value is None:
        with pytest.raises(BadValue):
            words.expand(text, variables)
    else:
        assert words.expand(text, variables) == value


@pytest.mark.parametrize(
    "text",
    [
        "FROM a\nRUN --bogus=1 x",
        "FROM a\nCOPY --chown=1 --chown=2 a b",
        "FROM a\nRUN --mount=type=ssh x",
        "FROM a\nRUN --mount=type=bind,shoe=1 x",
        "FROM a\nCOPY --from=$X a b",
        "# syntax=a\n# syntax=b\nFROM a",
        "# syntax=somebody/else:1\nFROM a",
        "# escape=x\nFROM a",
        "FROM a AS 1st",
    ],
)
def test_what_docker_refuses_unread_is_refused(make, text):
    with pytest.raises(BadValue, match="Dockerfile"):
        make(text)


@pytest.mark.parametrize(
    "line",
    [
        "STOPSIGNAL BANANA",
        "RUN --network=host true",
        "RUN --security=insecure true",
        "COPY none* /x/",
        "COPY [1, 2] /x/",
        "COPY f g /x",
        "COPY --chmod=rwx f /x",
        "COPY f /bin/busybox/x",
        "COPY d /bin/busybox",
        "RUN --mount=type=secret,id=no,required true",
        "RUN --mount=target=/proc/x true",
    ],
)
def test_what_can_not_be_done_is_refused_with_its_line_and_leaves_nothing(make, line):
    with pytest.raises((BadValue, NotFound), match="line 2"):
        make(f"FROM busybox\n{line}\n")
    assert "made:1" not in catalog.store().names() and ledger.entries() == []


def test_in_a_document_quotes_are_text_and_a_backslash_goes(make):
    """Whatever the Dockerfile's own escape sign is."""
    body = """\\"a\\" "$V" '$V' it's \\$V \\\\ \\n ${V:-"x"} ${W:-"x"} `$V"""
    image = make(f"# escape=`\nFROM busybox\nARG V=v\nCOPY <<x /f\n{body}\nx\nCOPY <<'x' /g\n{body}\nx\n")
    assert printed(image, "cat /f /g") == f"""\"a\" "v" 'v' it's $V \\ n v "x" `v\n{body}\n"""


# Mounts of RUN


def test_mount_is_there_for_its_run_and_in_no_layer(make, folder):
    (folder / ".dockerignore").write_text("secret\n")
    image = make(
        "FROM busybox AS one\nRUN mkdir /o && echo stage >/o/s\nFROM busybox\n"
        "RUN --mount=target=/in --mount=type=bind,from=one,source=/o,target=/o,rw --mount=type=tmpfs,target=/t "
        "cat /in/f /o/s >/x; ls /in >/names; echo no >/o/s; touch /t/t; echo no >/in/f || echo locked >>/x\n"
    )
    assert printed(image, "cat /x") == "fstage\nlocked\n" and "secret" not in printed(image, "cat /names")
    assert sorted(os.listdir(image.layers[-1])) == ["names", "x"] and (folder / "f").read_text() == "f"
    assert ledger.entries() == []


def test_what_a_mount_brings_decides_whether_its_run_is_done_again(make, folder):
    text, said = "FROM busybox\nRUN --mount=source=f,target=/f cat /f >/x\n", []
    make(text)
    assert printed(make(text, say=said.append), "cat /x") == "f" and any("in the cache" in line for line in said)
    (folder / "f").write_text("other")
    assert printed(make(text), "cat /x") == "other"


def test_secret_is_seen_by_its_run_only(make):
    lines = "RUN --mount=type=secret,id=key cat /run/secrets/key >/len; stat -c %a /run/secrets/key >/mode; wc -c </len >/n; rm /len\n"
    image = make(f"FROM busybox\n{lines}RUN ls /run/secrets/key >/gone 2>&1 || true\n", secrets={"key": b"12345"})
    assert printed(image, "cat /n /mode") == "5\n400\n" and "No such file" in printed(image, "cat /gone")
    image = make("FROM busybox\nRUN --mount=type=secret,id=key,env=K echo ${#K} >/n\n", secrets={"key": b"1234567"})
    assert printed(image, "cat /n") == "7\n" and not any(pair.startswith("K=") for pair in image.config.env)


def test_cache_is_found_again_by_the_next_build(make):
    text = "FROM busybox\nRUN --mount=type=cache,target=/c,uid=7,mode=0700 {} /c/it; stat -c %u:%a /c >/who\n"
    assert printed(make(text.format("echo kept >")), "cat /who") == "7:700\n"
    image = make(text.format("cp /c/it /x; cat"))
    assert printed(image, "cat /x") == "kept\n" and not os.path.exists(os.path.join(image.layers[-1], "c"))
    assert [one.name.startswith("build-cache-") for one in volumes.all()] == [True]


# Copying


def test_archive_keeps_its_owners_and_the_target_its_own(make, folder):
    with tarfile.open(folder / "t.tar.xz", "w:xz") as tar:
        for name, owner in ((".", 5), ("x", 77)):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE if name == "." else tarfile.REGTYPE
            entry.uid = entry.gid = owner
            entry.mode = 0o700
            tar.addfile(entry, io.BytesIO())
    (folder / "zeros").write_bytes(bytes(4096))
    image = make("FROM busybox\nADD t.tar.xz zeros /tmp/\nADD --chown=9 t.tar.xz /nine/\n")
    assert printed(image, "stat -c %u:%a /tmp /tmp/x /nine/x /nine") == "0:1777\n77:700\n9:700\n9:755\n"
    assert printed(image, "stat -c %s /tmp/zeros") == "4096\n"


def test_capability_and_setuid_go_with_a_file(make, folder):
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(folder / "f", "security.capability", capability)
    (folder / "g").chmod(0o6755)
    image = make(
        "FROM busybox AS one\nCOPY f g /a/\nFROM busybox\nCOPY --from=one /a/* /b/\nCOPY --from=one --chown=3 /a/g /\n"
    )
    where = state.lib_dir("build") / "seen"
    where.mkdir()
    with roots.mounted(image.layers, None, None, where):
        assert os.getxattr(where / "b/f", "security.capability") == capability
        assert [stat.S_IMODE(os.stat(where / name).st_mode) for name in ("b/g", "g")] == [0o6755] * 2


def test_link_copies_beside_what_the_image_has(make):
    text = "FROM busybox\nRUN mkdir /real; ln -s real /way\n{} f /way/\n"
    assert printed(make(text.format("COPY")), "ls /real") == "f\n"
    assert printed(make(text.format("COPY --link")), "sh -c 'ls /real; ls /way'") == "f\n"


def test_link_that_leads_nowhere_is_written_through(make):
    image = make("FROM busybox\nRUN ln -s /no/where /l\nCOPY f /l\nCOPY d /l2\nCOPY d /\n")
    assert printed(image, "cat /no/where /l /l2/in /in") == "ffinin"


def test_what_is_excluded_is_not_copied_and_no_reason_to_copy_again(make, folder):
    """Patterns are said of what is in a folder, from there on; a file of the list goes by its own name."""
    (folder / "d/sub").mkdir()
    (folder / "d/sub/in").write_text("deep")
    os.symlink("nowhere", folder / "loose")
    text = (
        "FROM busybox\nARG P=loose\nCOPY --exclude=sub/* --exclude=!sub/keep --exclude=$P --exclude=*g d ? loos? /x/\n"
    )
    said = []
    assert printed(make(text), "sh -c 'cd /x; find | sort'") == ".\n./f\n./in\n./sub\n"
    (folder / "d/sub/in").write_text("other")
    (folder / "g").write_text("other")
    make(text, say=said.append)
    assert sum("in the cache" in line for line in said) == 1
    (folder / "d/sub/keep").write_text("keep")
    assert printed(make(text), "ls /x/sub") == "keep\n"


def test_mode_in_words_is_what_chmod_makes_of_it(make, tmp_path):
    for text in "u=rwX,go=rX a+x o= g=u,o=g -w+X u+s,g+s,o+t u-x,a=r =rwxt a-rwx ug=rw,o-rwx+X g-s".split():
        for before in (0o640, 0o6751, 0o1777):
            for folder in (False, True):
                path = tmp_path / "it"
                path.mkdir() if folder else path.touch()
                path.chmod(before)
                subprocess.run(["chmod", "--", text, path], check=True, umask=0)
                wanted = stat.S_IMODE(path.stat().st_mode)
                path.rmdir() if folder else path.unlink()
                assert oct(modes.Mode.parse(text).of(before, folder)) == oct(wanted), (text, oct(before), folder)
    image = make("FROM busybox\nCOPY --chmod=u=rwX,go=rX d /d/e/\n")
    assert printed(image, "stat -c %a /d /d/e /d/e/in") == "755\n755\n644\n"


# Stages, triggers, config


def test_stage_that_nobody_needs_is_read_and_not_built(make):
    image = make("FROM busybox AS no\nRUN false\nFROM busybox AS yes\nRUN echo yes >/x\nFROM yes\nENV A=1\n")
    assert printed(image, "cat /x") == "yes\n"
    with pytest.raises(LabError, match="status 1"):
        make("FROM busybox AS no\nRUN false\nFROM scratch\nRUN --mount=from=no,target=/x true\n")


def test_onbuild_happens_once_in_the_image_built_on_it(make):
    make("FROM busybox\nONBUILD COPY f /from-base\nONBUILD RUN echo >>/times\n", name="base:1")
    assert catalog.get("base:1").config.on_build == ("COPY f /from-base", "RUN echo >>/times")
    image = make("FROM base:1\n", name="child:1")
    assert printed(image, "wc -c /from-base /times").split()[::2][:2] == ["1", "1"] and image.config.on_build == ()
    assert printed(make("FROM child:1\nRUN true\n"), "wc -c /times").startswith("1 ")


def test_what_only_docker_reads_survives_build_upon_build(make):
    make('FROM busybox\nHEALTHCHECK --interval=1m30s --retries=3 CMD true\nSHELL ["/bin/sh", "-ec"]\n', name="base:1")
    image = make("FROM base:1\nSTOPSIGNAL SIGRTMIN+3\nEXPOSE 53/UDP 8000-8001\nVOLUME /a /b\nCMD exit\n")
    config = image.config
    assert config.others["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Interval": 90 * 10**9, "Retries": 3}
    assert config.shell == ("/bin/sh", "-ec") and config.cmd == ("/bin/sh", "-ec", "exit")
    assert (config.stop_signal, config.volumes) == ("SIGRTMIN+3", ("/a", "/b"))
    assert config.exposed_ports == ("53/udp", "8000/tcp", "8001/tcp")
    with pytest.raises(LabError):
        make("FROM base:1\nRUN false; true\n")


def test_a_declared_volume_is_the_containers_own_is_filled_from_the_image_and_goes_with_it(make):
    make("FROM busybox\nRUN mkdir /d && echo first >/d/f && chown -R 7 /d\nVOLUME /d /new\n", name="base:1")
    image = make("FROM base:1\nRUN echo later >/d/g\n")  # a RUN writes into its layer, as in BuildKit
    with Container(image.digest, "sleep 60").start() as box:
        assert (
            box.exec(["sh", "-c", "stat -c %u /d/f; cat /d/*; echo >/d/h; echo >/new/i"]).output == "7\nfirst\nlater\n"
        )
        assert [change.path for change in box.changes()] == ["/new"], "what is written there met overlayfs"
        assert len(volumes.all()) == 2 and f" {volumes.all()[0].path} to " in "\n".join(box.describe())
    assert volumes.all() == []
    volumes.create("mine")
    with Container(image.digest, "ls /d", volumes=["mine:/d", "/other"]).start() as box:
        box.wait()
        assert box.logs() == "f\ng\n" and len(volumes.all()) == 3
    assert [one.name for one in volumes.all()] == ["mine"]
    assert printed(image, "ls /d") == "f\ng\n"


def test_arguments_of_the_platform_and_before_from_are_known_where_they_are_asked_for(make):
    image = make(
        "ARG V=1\nFROM --platform=$BUILDPLATFORM busybox\nARG V\nARG TARGETARCH\nENV A=$V.$TARGETARCH.$TARGETOS\n"
    )
    assert f"A=1.{catalog.wanted_platform()[1]}." in image.config.env


def test_an_instruction_is_told_as_it_was_written(make):
    line = "RUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t true"
    told = []
    make(f"FROM busybox\n{line}\n", say=told.append)
    assert any(line in one for one in told), told
