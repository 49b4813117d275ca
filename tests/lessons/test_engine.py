"""A real Docker of the lab's own: it stores as it is told, and what it cannot do it says in its own words."""

import pytest

from labkit.ground import ledger
from labkit.ground.errors import LabError
from labkit.lessons.beside import engine

pytestmark = [
    pytest.mark.usefixtures("needs_root"),
    pytest.mark.skipif(engine.missing() is not None, reason=str(engine.missing())),
]


@pytest.fixture(scope="module")
def drivers():
    with engine.private() as docker:
        if docker("info", "--format", "{{.Driver}}").strip() == "overlayfs":
            pytest.skip(
                "this Docker keeps its images in containerd's store, which has snapshotters in place of drivers"
            )


@pytest.mark.usefixtures("drivers")
@pytest.mark.parametrize("driver", ["overlay2", "vfs", "fuse-overlayfs"])
def test_engine_stores_by_the_driver_it_was_given(driver):
    with engine.private(driver=driver) as docker:
        assert docker("info", "--format", "{{.Driver}}").strip() == driver
        assert docker("run", "--rm", "busybox", "echo", "ran") == "ran\n"
        assert (docker.folder / "data" / driver).is_dir()
    assert ledger.entries() == []


@pytest.mark.usefixtures("drivers")
def test_engine_that_cannot_run_a_driver_says_why_and_leaves_nothing():
    with (
        pytest.raises(LabError, match="-s nonsense does not answer: .*driver not supported"),
        engine.private(driver="nonsense"),
    ):
        pass
    assert ledger.entries() == []


def test_a_build_is_the_engines_own_whatever_plugins_the_client_has(tmp_path, monkeypatch):
    client = tmp_path / "docker"
    client.write_text('#!/bin/sh\nprintf "%s" "$DOCKER_BUILDKIT"\n')
    client.chmod(0o755)
    monkeypatch.setattr(engine, "_PATH", f"{tmp_path}:{engine._PATH}")
    assert engine.Engine(tmp_path)("build", ".") == "0", "BuildKit leaves cgroups, and asks no runtime of ours"
