"""Images cross over: what labkit builds runs in Docker and in Podman and is what skopeo reads of it.

What Docker saves is the same here, file by file.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from trees import differences, snapshot

from labkit.build import builder
from labkit.images import archives, catalog, digests
from labkit.lessons.beside import engine
from tests.oci.test_runtime_docker import Podman

pytestmark = [
    pytest.mark.usefixtures("needs_root", "own_root"),
    pytest.mark.skipif(engine.missing() is not None, reason=str(engine.missing())),
]

MARKS = ("trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.uuid")


@pytest.fixture(scope="module")
def docker():
    with engine.private() as found:
        yield found


@pytest.fixture(scope="module")
def podman(tmp_path_factory):
    if not shutil.which("podman"):
        pytest.fail("podman is not installed: it is in vagrant/packages")
    # Its own crun refuses a machine that has both cgroup versions; runc is what Docker runs.
    made = Podman(tmp_path_factory.mktemp("podman"), runtime="runc")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def crossing(tmp_path):
    """An image with a bit of everything, built here and saved; yields (Image, archive)."""
    (tmp_path / "context").mkdir()
    (tmp_path / "context/f").write_text("copied\n")
    (tmp_path / "context/Dockerfile").write_text(
        """\
FROM busybox
ENV WHO=lab
LABEL made.by=labkit
WORKDIR /work
COPY f .
RUN rm /bin/vi && rm -r /home && mkdir /home
RUN echo built > built && chown 7:8 built && chmod 4755 built
EXPOSE 80
STOPSIGNAL SIGINT
USER 1000
ENTRYPOINT ["sh", "-c"]
CMD ["cat f built; echo $WHO; id -u; ls /bin/vi; stat -c %a:%u:%g built"]
"""
    )
    image = builder.build(tmp_path / "context", "crossing:1", say=lambda line: None)
    archives.save("crossing:1", tmp_path / "crossing.tar")
    return image, tmp_path / "crossing.tar"


def assert_ran(done):
    assert done.stdout.splitlines() == ["copied", "built", "lab", "1000", "4755:7:8"], done.stderr
    assert "/bin/vi: No such file" in done.stderr, "/bin/vi is whited out"


def test_image_built_by_labkit_runs_here(crossing):
    words = [sys.executable, "-m", "labkit", "run", "--rm", "--network", "none", "crossing:1"]
    assert_ran(subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL))


def test_image_built_by_labkit_runs_in_docker_unchanged(docker, crossing):
    image, archive = crossing
    docker("load", "-i", str(archive))
    told = json.loads(docker("image", "inspect", "crossing:1"))[0]
    assert told["Id"] == image.id, "the same config, so the same id"
    assert told["RootFS"]["Layers"] == list(image.diff_ids)
    assert_ran(docker.ask("run", "--rm", "crossing:1"))


def test_image_built_by_labkit_runs_in_podman_unchanged(podman, crossing):
    image, archive = crossing
    podman("load", "-i", archive)
    told = json.loads(podman("image", "inspect", "crossing:1"))[0]
    assert f"sha256:{told['Id']}" == image.id, "the same config, so the same id"
    assert told["RootFS"]["Layers"] == list(image.diff_ids)
    assert told["Digest"] == image.digest, "podman keeps the manifest too, as it is"
    assert_ran(podman.run("--rm", "crossing:1", check=False))


def test_image_built_by_labkit_passes_skopeo_inspect(crossing):
    """What skopeo says of the store and of the saved file is what labkit says of its image."""
    image, archive = crossing
    manifest, config = catalog.read(catalog.store(), image.digest)
    for place in (f"oci:{catalog.store().folder}:crossing:1", f"oci-archive:{archive}:crossing:1"):
        told = json.loads(skopeo("inspect", place))
        assert told["Digest"] == image.digest
        assert told["Layers"] == [part["digest"] for part in manifest["layers"]]
        assert told["Env"] == list(image.config.env) and told["Labels"] == {"made.by": "labkit"}
        assert (told["Os"], told["Architecture"]) == catalog.wanted_platform()
        assert digests.digest(skopeo("inspect", "--raw", place)) == image.digest
        assert digests.digest(skopeo("inspect", "--config", "--raw", place)) == image.id
        assert json.loads(skopeo("inspect", "--config", place))["config"] == config["config"]
    told = json.loads(skopeo("inspect", f"docker-archive:{archive}:crossing:1"))
    assert told["Layers"] == list(image.diff_ids), "in Docker's own format layers are named by what they hold"
    assert os.path.getsize(archive) > sum(part["size"] for part in manifest["layers"])


def skopeo(*words):
    return subprocess.run(["skopeo", *map(str, words)], check=True, capture_output=True, timeout=60).stdout


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
    image = catalog.get("busybox")
    archives.save("busybox", tmp_path / "b.tar")
    (again,) = archives.load(tmp_path / "b.tar", name="x")
    assert again.id == image.id
