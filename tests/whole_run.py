"""For every run of pytest, chapters under nbval too: a LABKIT_ROOT of its own, and the host given back.

Hooks and not fixtures, because what nbval collects knows no fixtures; a plugin
that pyproject.toml names and not a conftest, because chapters are in another folder.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from labkit.container import spawner
from labkit.network import bridge
from tests import hosts

_before = pytest.StashKey()
_found = pytest.StashKey()
_made_root = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption(
        "--host-each",
        action="store_true",
        help="compare the host after every test, to find out which one left what",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    # For what the tests start: notebook kernels, commands.
    repo = str(Path(__file__).parent.parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if repo not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [repo, *paths]))
    # Tests start the command by the thousand: who wants no compiled files waits for the compiler each time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if "LABKIT_ROOT" not in os.environ:
        # /var/tmp is a disk where /tmp may be memory: layers are made of files.
        root = tempfile.mkdtemp(prefix="labkit-", dir="/var/tmp")
        os.environ["LABKIT_ROOT"] = config.stash[_made_root] = root
        # Below it, tmp_path too carries the name by which runs side by side tell their mounts apart.
        config.option.basetemp = config.option.basetemp or f"{root}/tmp"


def pytest_unconfigure(config):
    root = config.stash.get(_made_root, None)
    if root:
        del os.environ["LABKIT_ROOT"]
        # Never through a mount that a test forgot: it may lead to the host's own files.
        if f" {root}/" not in Path("/proc/self/mountinfo").read_text():
            shutil.rmtree(root, ignore_errors=True)


def pytest_sessionstart(session):
    session.config.stash[_before] = hosts.Host.snapshot()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    if not item.config.option.host_each:
        return (yield)
    before = hosts.Host.snapshot()
    result = yield
    give_back_the_bridge()
    for line in hosts.settled_difference(before, _ignored()):
        print(f"\n{item.nodeid} {line}", end="", file=sys.__stderr__)
    return result


def give_back_the_bridge():
    """Take away what `lab run` leaves for the next one. Everything else has to be gone by itself."""
    if bridge.LAB in (bridge.record("bridge") or {"users": ()})["users"]:
        bridge.unplug("bridge", bridge.LAB)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Fail what is skipped for want of a package: `lab test` installs them all, and nothing is lost unseen."""
    report = yield
    if report.skipped and "apt-get install" in str(report.longrepr) and "LAB_NO_APT" not in os.environ:
        report.outcome = "failed"
        report.longrepr = f"skipped, and not for the kernel's sake: {report.longrepr[2]} (LAB_NO_APT=1 lets it pass)"
    return report


def _ignored():
    """Return what LAB_TEST_IGNORE excuses: regular expressions with spaces between."""
    return os.environ.get("LAB_TEST_IGNORE", "").split()


def pytest_sessionfinish(session):
    if session.config.option.collectonly:
        return
    spawner.close()
    give_back_the_bridge()
    found = hosts.settled_difference(session.config.stash[_before], _ignored())
    session.config.stash[_found] = found
    if found and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    found = config.stash.get(_found, [])
    if found:
        terminalreporter.section("the tests did not give the host back as it was", red=True)
        for line in found:
            terminalreporter.line(line, red=True)


def pytest_report_header():
    return f"labkit's files of this run: {os.environ['LABKIT_ROOT']}; python {sys.executable}"
