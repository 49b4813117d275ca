"""What tests ask for: root, or a feature of this kernel or machine by the name `lab doctor` gives it."""

import os
import signal

import pytest

from tests.whole_run import give_back_the_bridge


def pytest_configure():
    # A shell lets what it puts into the background ignore these, nohup(1) the last; what tests start inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_bridge_stays():
    yield
    give_back_the_bridge()


@pytest.fixture
def needs_root():
    """Skip the test unless it may do everything."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def own_root(tmp_path, monkeypatch):
    """Give the test a LABKIT_ROOT of its own; return the folder that it is in."""
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / "labkit-root"))
    yield tmp_path
    give_back_the_bridge()


def pytest_runtest_setup(item):
    for marker in item.iter_markers("requires"):
        for name in marker.args:
            _require(name)


def _require(name):
    from labkit.app import doctor

    finding = doctor.find(name)
    if not finding.found:
        pytest.skip(f"{name} is not here: {finding.detail}")
