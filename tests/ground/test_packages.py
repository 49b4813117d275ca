"""packages: what to install is named as this system names it."""

import shutil

import pytest

from labkit.ground import packages, state


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """Return a function that makes an apt-cache which knows these packages only."""

    def knows(*names):
        script = tmp_path / "apt-cache"
        script.write_text(
            f'#!/bin/sh\ncase " {" ".join(names)} " in *" $2 "*) echo "Package: $2" ;; *) exit 100 ;; esac\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return knows


def test_dockers_client_is_named_as_this_system_names_it(apt):
    apt("docker.io", "docker-cli")  # Debian 13
    assert packages.advice("dockerd", "docker") == "apt-get install docker.io docker-cli"
    apt("docker.io")  # Debian 12
    assert packages.advice("dockerd", "docker") == "apt-get install docker.io"


def test_without_apt_a_name_is_said_all_the_same(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert packages.bringing("docker") == "docker.io"
    assert packages.bringing("no-such-command") == "no-such-command"


def test_every_command_of_the_list_is_found_in_it():
    lines = [line.split() for line in (state.REPO / "vagrant/packages").read_text().splitlines() if line[:1] not in "#"]
    assert shutil.which("sh") and len(lines) > 40
    for _, package, proof, *_ in lines:
        assert packages.bringing(proof) in {
            name for _, names, other, *_ in lines if other == proof for name in names.split("|")
        }, package
