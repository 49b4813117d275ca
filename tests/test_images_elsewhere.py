"""Images cross over: what labkit builds runs in Docker, what Docker saves is the same file by file here."""

import json

import pytest
from trees import differences, snapshot

from labkit import archives, build, engine, images
from labkit.container import Container

pytestmark = [
    pytest.mark.usefixtures("needs_root"),
    pytest.mark.skipif(engine.missing() is not None, reason=str(engine.missing())),
]

MARKS = ("trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.uuid")


@pytest.fixture(scope="module")
def docker():
    with engine.private() as found:
        yield found


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / "labkit-root"))


def test_image_built_by_labkit_runs_in_docker_unchanged(docker, tmp_path):
    (tmp_path / "context").mkdir()
    (tmp_path / "context/f").write_text("copied\n")
    (tmp_path / "context/Dockerfile").write_text(
        """\
FROM busybox
ENV WHO=lab
WORKDIR /work
COPY f .
RUN rm /bin/vi && rm -r /home && mkdir /home
RUN echo built > built && chown 7:8 built && chmod 4755 built
USER 1000
ENTRYPOINT ["sh", "-c"]
CMD ["cat f built; echo $WHO; id -u; ls /bin/vi; stat -c %a:%u:%g built"]
"""
    )
    image = build.build(tmp_path / "context", "crossing:1", say=lambda line: None)
    archives.save("crossing:1", tmp_path / "crossing.tar")
    docker("load", "-i", str(tmp_path / "crossing.tar"))
    told = json.loads(docker("image", "inspect", "crossing:1"))[0]
    assert told["Id"] == image.id, "the same config, so the same id"
    assert told["RootFS"]["Layers"] == list(image.diff_ids)
    theirs = docker("run", "--rm", "crossing:1", check=False)
    with Container("crossing:1").start() as box:
        box.wait()
        ours = box.logs()
    for output in (theirs, ours):
        lines = [line for line in output.splitlines() if "/bin/vi" not in line]
        assert lines == ["copied", "built", "lab", "1000", "4755:7:8"], output


def test_image_saved_by_docker_is_the_same_file_by_file(docker, tmp_path, monkeypatch):
    script = (
        "echo new > /new; ln /new /new2; ln -s /new /link; rm /bin/vi; rm -r /home; mkdir /home; "
        "echo h > /home/h; "
        "chown 12:34 /new; chmod 6711 /new; mkfifo /pipe; mkdir -p -m 1777 /deep/er; "
        "touch -d '2001-02-03 04:05:06' /deep/er; "
        "rm /etc/group; mkdir /etc/group; dd if=/dev/zero of=/zeros bs=1M count=3"
    )
    docker("run", "--name", "changed", "busybox", "sh", "-c", script)
    docker("commit", "changed", "theirs:1")
    docker("save", "-o", str(tmp_path / "theirs.tar"), "theirs:1")
    told = json.loads(docker("image", "inspect", "theirs:1"))[0]
    places = told["GraphDriver"]["Data"]
    folders = [places["UpperDir"], *places.get("LowerDir", "").split(":")]

    (image,) = archives.load(tmp_path / "theirs.tar")
    assert image.id == told["Id"] and image.name == "theirs:1"
    assert len(folders) == len(image.layers) == 2
    for theirs, ours in zip(reversed(folders), image.layers, strict=True):
        before, after = snapshot(theirs, ignore=MARKS), snapshot(ours, ignore=MARKS)
        assert len(after) > 10
        assert differences(_seconds(before), _seconds(after)) == []
    docker("rm", "changed")


def _seconds(tree):
    """Docker writes whole seconds; whiteouts and the root have no time worth keeping."""
    kept = {}
    for path, said in tree.items():
        said = dict(said)
        said["time"] = said["time"] // 10**9
        if path == b"." or said.get("device") == (0, 0):
            said = {key: said.get(key) for key in ("device",)}
        kept[path] = said
    return kept


def test_image_pushed_by_labkit_is_what_docker_calls_it(tmp_path):
    """The id is the hash of the config, whoever computes it."""
    image = images.get("busybox")
    archives.save("busybox", tmp_path / "b.tar")
    (again,) = archives.load(tmp_path / "b.tar", name="x")
    assert again.id == image.id
