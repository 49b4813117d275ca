"""The same Dockerfile given to Docker's BuildKit and to labkit: what comes out is the same, or both refuse it.

Each test lets hypothesis make inputs, asks labkit first, and then Docker: all that labkit took in one
build, what it refused one by one. A run has a fixed set; LABKIT_DIFFERENTIAL=300 makes it larger.

Left out is what BuildKit itself has changed since Docker 20.10, or does beside what Docker's reference says:

    several sources without a slash at the target     refused by the reference; BuildKit lets the last one win
    a pattern that nothing matches, and nothing else   an error in Docker's reference, nothing at all in BuildKit
    ${A-x} ${A#x} ${A/x/y} ${A?} <<EOF --link          came after 20.10
    two backslashes at the end of a line               went on in the next in 20.10
    a backslash before a letter in .dockerignore       means what it means in Go's regular expressions: \\d is a digit
    a pattern before the last slash, as in */in        20.10 finds nothing there
    ADD --chown of an archive                          its files have that owner since
    --chmod                                            since 20.10 it is said of the folders made for it, too
"""

import json
import os
import re
import stat
import subprocess
import tarfile
import tempfile

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from labkit.build import builder
from labkit.ground import state
from labkit.ground.errors import LabError
from labkit.lessons.beside import engine
from labkit.storage import roots

COUNT = int(os.environ.get("LABKIT_DIFFERENTIAL", "0"))
pytestmark = [
    pytest.mark.usefixtures("needs_root"),
    pytest.mark.skipif(engine.missing() is not None, reason=str(engine.missing())),
]


@pytest.fixture(scope="module")
def docker():
    """An engine of our own, whose client builds with BuildKit. No RUN is built there: it would leave cgroups."""
    before = os.environ.get("LABKIT_ROOT")
    # Short: containerd's socket is below it, and has 108 bytes.
    with tempfile.TemporaryDirectory(prefix=f"{state.label()}-") as folder:
        os.environ["LABKIT_ROOT"] = folder
        try:
            with engine.private(images=()) as found:
                yield found
        finally:
            os.environ.pop("LABKIT_ROOT") if before is None else os.environ.update(LABKIT_ROOT=before)


def buildkit(docker, folder, *words):
    """Build `folder` there; return None, or what was refused."""
    command = ["docker", "-H", f"unix://{docker.socket}", "build", "--progress=plain", *words, str(folder)]
    env = {
        "PATH": engine._PATH,
        "HOME": str(docker.folder),
        "DOCKER_CONFIG": str(docker.folder),
        "DOCKER_BUILDKIT": "1",
    }
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if "buildx" in done.stderr:
        pytest.skip("this client has no BuildKit of its own")
    assert not done.returncode or any(
        word in done.stderr for word in ("failed to solve", "error from sender", "ERROR: ")
    ), done.stderr[-500:]
    return done.stderr[-600:] if done.returncode else None


def made_of(strategy, few):
    """Return distinct examples of a strategy, always the same."""
    found = {}

    @settings(
        max_examples=COUNT or few,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(one):
        found[repr(one)] = one

    collect()
    return list(found.values())


def told(wrong, cases):
    """Return the differences, one a line."""
    return "\n".join([f"{len(wrong)} of {len(cases)} differ (the input, Docker, labkit):", *map(repr, wrong)])


def refused(function, *arguments):
    """Return (what the function returns, None), or (None, why labkit refuses)."""
    try:
        return function(*arguments), None
    except LabError as error:
        return None, str(error)


# ENV

PIECES = [
    *["a", "b ", "x=y", "é", "$A", "${A}", "$B", "${B}", "$NO", "${NO}", "${A}b", "$Ab", "$$", "$", "$1", "a$", "$A$B"],
    *["${NO:-x}", "${E:-x}", "${A:+x}", "${NO:+x}", "${E:+x}", "${NO:-$A}"],
    *["${NO:-${A}}", "${NO:-${ALSO:-$B}}", "${A:+${B}}", '${NO:-"q r"}', "${NO:-'$A'}", "${NO:-a b}", "${NO:-\\}}", "${A:-"],
    *["\\", "\\\\", "\\$A", "\\a", "\\ ", '\\"', "\\'", '"', "'", '""', "''", '"$A"', "'$A'", '"\\$A"', '"\\a"', '"a b"'],
    *["'a b'", '"\'"', "'\"'", '"\\\\"', "'\\'", '"${B}"', "'${B}'", "\t", " ", " OTHER=2", " OTHER='$A'", "#", "[x]", "<", "*", "${}"],
    *["${:x}", "${A", "${A:x}", "$-", "$@", "$?", "$#", "${A}}", "{$A}", "\u00a0", "\u2028", "%", "~", ";", "&&", "|"],
]  # fmt: skip
VALUES = (
    st.lists(st.sampled_from(PIECES), max_size=5).map("".join).filter(lambda text: not re.search(r"\\[ \t]*$", text))
)
BEFORE = 'FROM scratch\nENV A=one B="two words" E="" Q="\\"q\\" \'s\' \\\\ \\$A"\n'


@pytest.mark.slow
def test_env_has_the_values_that_docker_gives_it(docker, tmp_path):
    ours, wrong = {}, []
    values = [value for value in made_of(st.tuples(VALUES, st.booleans()), 120)]
    for number, (value, old) in enumerate(values):
        line = f"ENV V{number}{' ' if old else '='}{value}".replace("OTHER=", f"W{number}=")
        (tmp_path / "Dockerfile").write_text(f"{BEFORE}{line}\n")
        found, why = refused(env_of_labkit, f"{BEFORE}{line}\n")
        if why is None:
            ours[line] = found
        elif buildkit(docker, tmp_path) is None:
            wrong.append((line, "Docker takes it", why))
    lines = list(ours)
    while lines:
        (tmp_path / "Dockerfile").write_text(BEFORE + "\n".join(lines) + "\n")
        refusal = buildkit(docker, tmp_path, "-t", "env")
        if refusal is None:
            break
        lines = halved(docker, tmp_path, lines, wrong)
    theirs = dict(pair.split("=", 1) for pair in json.loads(docker("inspect", "-f", "{{json .Config.Env}}", "env")))
    for line in lines:
        for name, value in ours[line].items():
            if theirs.get(name) != value:
                wrong.append((line, theirs.get(name), value))
    assert not wrong, told(wrong, values)


def halved(docker, folder, lines, wrong):
    """Return the lines without one that Docker refuses, which is found by halving."""
    good, rest = [], lines
    while len(rest) > 1:
        half = rest[: len(rest) // 2]
        (folder / "Dockerfile").write_text(BEFORE + "\n".join(half) + "\n")
        if buildkit(docker, folder) is None:
            good, rest = good + half, rest[len(half) :]
        else:
            good, rest = good, half
    wrong.append((rest[0], "Docker refuses it", None))
    return [line for line in lines if line != rest[0]]


def env_of_labkit(text):
    """Return what the last line of a Dockerfile sets, by labkit."""
    folder = state.lib_dir("build") / "context"
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(text)
    env = builder.build(folder, "env", say=lambda line: None).config.env
    found = dict(pair.split("=", 1) for pair in env)
    return {name: value for name, value in found.items() if name[0] in "VW"}


# .dockerignore

NAMES = ["a", "b", "c.txt", "d.log", ".env", "x y", "é", "a.b", "ab"]
PARTS = ["*", "**", "?", "*.txt", "*.*", ".*", "[ab]", "[^a]", "[a-c]*", "?.txt", "a*", "**b", "a**", "\\.env", "x\\ y", "\\*", "..", ".", ""]  # fmt: skip
PLAIN = lambda parts: [part for part in parts[:-1] if part in NAMES]  # noqa: E731
PATTERN = st.builds(
    # 20.10 looks into a folder for what is taken back only if the words above it are plain.
    lambda sign, lead, parts, end: (
        sign + lead + "/".join(parts if "!" not in sign else [*PLAIN(parts), *parts[-1:]]) + end
    ),
    st.sampled_from(["", "", "", "!", "!", "! ", " ", "#"]),
    st.sampled_from(["", "", "", "/", "./", "//"]),
    st.lists(st.sampled_from([*NAMES, *PARTS]), min_size=1, max_size=3),
    st.sampled_from(["", "", "", "/", " ", "\t", "\r"]),
)
IGNORE = st.tuples(st.sampled_from(["", "", "\ufeff"]), st.lists(PATTERN, min_size=1, max_size=5))


@pytest.mark.slow
def test_dockerignore_leaves_out_what_docker_leaves_out(docker, tmp_path):
    folder = tmp_path / "context"
    for one in NAMES[:5]:
        for two in NAMES:
            (folder / one / two).mkdir(parents=True)
            for three in NAMES[::2]:
                (folder / one / two / three).write_text("x")
    for name in NAMES[5:]:
        (folder / name).write_text("x")
    (folder / "a/empty").mkdir()
    (folder / "a/link").symlink_to("../b")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /x/\n")
    wrong, cases = [], made_of(IGNORE, 30)
    for number, (mark, lines) in enumerate(cases):
        text = mark + "\n".join(lines)
        (folder / ".dockerignore").write_text(text, newline="")
        ours, why = refused(lambda: files(seen(builder.build(folder, "ignore", say=lambda line: None))))
        out = tmp_path / f"{number}.tar"
        refusal = buildkit(docker, folder, "--output", f"type=tar,dest={out}")
        if (why is None) != (refusal is None):
            wrong.append((text, refusal, why))
        elif why is None:
            theirs = files(in_tar(out))
            if theirs != ours:
                wrong.append(
                    (text, "only Docker:", sorted(theirs - ours)[:9], "only labkit:", sorted(ours - theirs)[:9])
                )
    assert not wrong, told(wrong, cases)


# COPY, ADD

SOURCES = ["f", "./f", "/f", "../f", "g.txt", "suid", "d", "d/", "d/in", "d/sub", "lf", "ld", "ld/in", "la", "over", "two", ".", "f/"]  # fmt: skip
WILD = ["*.txt", "?.txt", "d/*", "d/s*", "[fg]*", "d/sub/d*", "l*", "d/[^s]*", "no*"]
ARCHIVES = ["t.tar", "t.tgz", "t.tar.bz2", "t.tar.xz", "zeros", "not.tar", "top.tar", "*.tar.*"]
TARGETS = ["/new", "/new/", "/dir", "/dir/", "/dir/.", "/file", "/dir/old", "/lf", "/ld", "/ld/", "/ld/x", "/dl", "/a/b/c", "/a/b/"]  # fmt: skip
TARGETS += [".", "./", "x", "x/", "..", "../y", "/", "/dir/../z", "/owned", "/owned/", "/dir/sub", "/la/q", "/file/x"]
OWNERS = ["", "", "", "--chown=7 ", "--chown=7:8 ", "--chown=web ", "--chown=web:staff ", "--chown=7:staff "]


def copy_line(word, flag, sources, target, listed):
    """Return a line of COPY or ADD."""
    if listed:
        return f"{word} {flag}{json.dumps([*sources, target])}"
    return f"{word} {flag}{' '.join(sources)} {target}"


COPIES = st.one_of(
    st.builds(copy_line, st.sampled_from(["COPY", "ADD"]), st.sampled_from(OWNERS), st.sampled_from(SOURCES).map(lambda x: [x]),
              st.sampled_from(TARGETS), st.booleans()),
    st.builds(copy_line, st.sampled_from(["COPY", "ADD"]), st.sampled_from(OWNERS),
              st.lists(st.sampled_from([*SOURCES, *WILD]), min_size=2, max_size=3).filter(lambda found: found != ["no*"] * len(found)),
              st.sampled_from([target for target in TARGETS if target.endswith("/")]), st.booleans()),
    st.builds(copy_line, st.sampled_from(["COPY", "ADD"]), st.sampled_from(OWNERS), st.sampled_from(WILD[:-1]).map(lambda x: [x]),
              st.sampled_from([target for target in TARGETS if target.endswith("/")]), st.booleans()),
    st.builds(copy_line, st.just("ADD"), st.just(""), st.sampled_from(ARCHIVES).map(lambda x: [x]), st.sampled_from(TARGETS),
              st.booleans()),
    st.builds(copy_line, st.just("COPY --from=base"), st.sampled_from([" ", *(f" {owner}" for owner in OWNERS)]),
              st.sampled_from(["/file", "/dir", "/dir/", "/lf", "/ld", "/ld/old", "/owned", "/owned/*", "/su*", "/dir/sub", "/no"]).map(lambda x: [x]),
              st.sampled_from([target for target in TARGETS if target.endswith("/")]), st.booleans()),
)  # fmt: skip


def entries_of(path, *entries, mode="w"):
    """Write a tar of (name, kind, what, owner, mode)."""
    import io

    with tarfile.open(path, mode) as tar:
        for name, kind, what, owner, bits in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.uid, entry.gid, entry.mode, entry.mtime = kind, owner, owner, bits, 1
            if kind == tarfile.REGTYPE:
                entry.size = len(what)
                tar.addfile(entry, io.BytesIO(what))
            else:
                entry.linkname = what
                tar.addfile(entry)


@pytest.fixture
def world(tmp_path):
    """A build folder, and the Dockerfile's lines for a base to copy onto."""
    file, folder, link, hard = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
    context = tmp_path / "context"
    for path, text in {"f": "f", "g.txt": "g", "h.txt": "h", "d/in": "in", "d/sub/deep": "deep", "over/dir": "a file",
                       "two/dir/old": "new", "two/lf": "not a link", "not.tar": "no tar", "suid": "s"}.items():  # fmt: skip
        (context / path).parent.mkdir(parents=True, exist_ok=True)
        (context / path).write_text(text)
    for path, bits in {"d": 0o700, "d/sub": 0o750, "f": 0o640, "suid": 0o4755, "d/in": 0o600, "two/dir": 0o711}.items():
        (context / path).chmod(bits)
    for name, target in {"lf": "f", "ld": "d", "la": "/d/in", "d/inside": "in"}.items():
        (context / name).symlink_to(target)
    os.link(context / "d/in", context / "d/in2")
    (context / "zeros").write_bytes(bytes(4096))
    packed = [("top", file, b"t", 77, 0o644), ("home", folder, "", 88, 0o700), ("home/x", file, b"x", 88, 0o4755),
              ("home/y", hard, "home/x", 88, 0o4755), ("to", link, "top", 5, 0o777), ("deep/er/z", file, b"z", 9, 0o600)]  # fmt: skip
    for name, mode in {"t.tar": "w", "t.tgz": "w:gz", "t.tar.bz2": "w:bz2", "t.tar.xz": "w:xz"}.items():
        entries_of(context / name, *packed, mode=mode)
    entries_of(
        context / "top.tar",
        ("./", folder, "", 66, 0o711),
        ("./old", file, b"other", 66, 0o600),
        ("sub", link, "old", 1, 0o777),
    )
    entries_of(
        context / "base.tgz",
        *[(name, folder, "", 0, 0o755) for name in ("dir", "dir/sub", "work", "etc")],
        *[("dir/old", file, b"old", 0, 0o644), ("file", file, b"file", 0, 0o600), ("owned", folder, "", 42, 0o770)],
        *[("lf", link, "file", 0, 0o777), ("ld", link, "dir", 0, 0o777), ("dl", link, "/nowhere/x", 0, 0o777)],
        *[("la", link, "/dir", 0, 0o777), ("owned/in", file, b"in", 42, 0o604), ("suid", file, b"s", 3, 0o4711)],
        ("etc/passwd", file, b"root:x:0:0::/:/bin/sh\nweb:x:101:102::/:/bin/sh\n", 0, 0o644),
        ("etc/group", file, b"root:x:0:\nweb:x:102:\nstaff:x:50:web\n", 0, 0o644),
        mode="w:gz",
    )
    return context, "FROM scratch AS base\nADD base.tgz /\nWORKDIR /work\n"


@pytest.mark.slow
def test_copy_and_add_put_things_where_docker_puts_them(docker, world, tmp_path):
    context, base = world
    ours, wrong, cases = {}, [], made_of(COPIES, 90)
    (context / ".dockerignore").write_text("Dockerfile\n.dockerignore\nbase.tgz\n!base.tgz\n")

    def write(lines, last=""):
        stages = "".join(f"FROM base AS c{number}\n{line}\n" for number, line in enumerate(lines))
        (context / "Dockerfile").write_text(f"{base}{stages}{last}")

    for line in cases:
        write([line])
        found, why = refused(lambda: seen(builder.build(context, "copied", say=lambda line: None)))
        if why is None:
            ours[line] = found
        elif buildkit(docker, context) is None:
            wrong.append((line, "Docker takes it", why))
    lines = list(ours)
    for start in range(0, len(lines), 60):
        some = lines[start : start + 60]
        while True:
            collected = "".join(f"COPY --from=c{number} / /c{number}/\n" for number in range(len(some)))
            write(some, f"FROM scratch\n{collected}")
            out = tmp_path / "out.tar"
            if buildkit(docker, context, "--output", f"type=tar,dest={out}") is None:
                break
            bad = [line for line in some if write([line]) or buildkit(docker, context) is not None]
            wrong += [(line, "Docker refuses it") for line in bad]
            some = [line for line in some if line not in bad]
            assert bad
        theirs = in_tar(out)
        for number, line in enumerate(some):
            prefix = f"c{number}/"
            there = {path.removeprefix(prefix): what for path, what in theirs.items() if path.startswith(prefix)}
            if there != ours[line]:
                wrong.append(
                    (line, sorted(there.items() - ours[line].items()), sorted(ours[line].items() - there.items()))
                )
    assert not wrong, told(wrong, cases)


# What came out


def files(found):
    """Return the paths of all but folders: 20.10 makes some that are left out with all that is in them."""
    return {path for path, (kind, *_) in found.items() if kind != stat.S_IFDIR}


def seen(image):
    """Return what an image's root holds: {path: (kind, mode, owner, group, what it begins with)}."""
    found = {}
    where = state.lib_dir("build") / "seen"
    where.mkdir(exist_ok=True)
    if not image.layers:
        return found
    with roots.mounted(image.layers, None, None, where):
        for path, folders, files in os.walk(where):
            for name in (*folders, *files):
                one = os.path.join(path, name)
                status = os.lstat(one)
                inside = os.path.relpath(one, where)
                kind = stat.S_IFMT(status.st_mode)
                what = os.readlink(one) if stat.S_ISLNK(kind) else b""
                if stat.S_ISREG(kind):
                    with open(one, "rb") as file:
                        what = file.read(40)
                mode = 0 if stat.S_ISLNK(kind) else stat.S_IMODE(status.st_mode)
                found[inside] = (kind, mode, status.st_uid, status.st_gid, what)
    return found


def in_tar(path):
    """Return the same of a tar."""
    found = {}
    with tarfile.open(path) as tar:
        for entry in tar:
            name = os.path.normpath(entry.name)
            if entry.islnk():
                found[name] = found[os.path.normpath(entry.linkname)]
                continue
            kind = stat.S_IFLNK if entry.issym() else stat.S_IFDIR if entry.isdir() else stat.S_IFREG
            what = entry.linkname if entry.issym() else tar.extractfile(entry).read(40) if entry.isreg() else b""
            found[name] = (kind, 0 if entry.issym() else entry.mode, entry.uid, entry.gid, what)
    return found
