"""lab doctor: it tries, it names the reason, and it leaves nothing behind."""

import contextlib
import errno
import io
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import hosts
import pytest

from labkit.app import doctor, kernel_probes, machine_probes, probing
from labkit.ground import errors, state, syscalls
from labkit.ground.child import in_child
from labkit.isolation import namespaces


@pytest.fixture(autouse=True)
def afresh():
    doctor.find.cache_clear()
    yield
    doctor.find.cache_clear()


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A function that puts a command before all others on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(0o755)

    return put


def refuse(number):
    def refused(*arguments, **options):
        raise errors.KernelError("it", number)

    return refused


def test_every_line_of_the_table_says_what_is_lost_and_in_which_chapter():
    for probe in probing.PROBES.values():
        assert re.match(r"(\d\d(, \d\d)*( to \d\d)?|lab test): \w", probe.lost), probe.name


def test_every_kind_has_a_place_in_the_table():
    assert {probe.kind for probe in probing.PROBES.values()} - {""} == set(doctor.KINDS)


def test_the_eight_namespaces_are_in_the_table():
    names = [finding.name for finding in doctor.report()]
    assert [f"{kind} namespace" for kind in namespaces.KINDS] == names[:8]


def test_it_leaves_the_host_as_it_was(needs_root):
    with hosts.unchanged():
        doctor.report()


def test_its_mounts_reach_nobody_where_mounts_are_shared(needs_root):
    """systemd makes / shared, so that what is mounted in a new namespace shows in the old one too."""

    def look():
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SHARED)
        before = Path("/proc/self/mountinfo").read_text()
        doctor.report()
        return before, Path("/proc/self/mountinfo").read_text()

    before, after = in_child(look)
    assert after == before


def test_what_the_kernel_refuses_is_missing_and_its_errno_is_named(monkeypatch):
    monkeypatch.setattr(syscalls, "unshare", refuse(errno.EINVAL))
    finding = doctor.find("time namespace")
    assert not finding.found
    assert "EINVAL" in finding.detail


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("openat2", "openat2"),
        ("mount_setattr", "mount_setattr"),
        ("fsconfig", "fsopen"),
        ("pidfd", "pidfd_send_signal"),
        ("clone3 into a cgroup", "clone3"),
    ],
)
def test_a_missing_syscall_is_seen(monkeypatch, name, call, needs_root):
    monkeypatch.setattr(syscalls, call, refuse(errno.ENOSYS))
    finding = doctor.find(name)
    assert not finding.found and "ENOSYS" in finding.detail


def test_a_filesystem_that_no_kernel_has_is_missing(needs_root):
    with pytest.raises(errors.KernelError) as raised:
        kernel_probes._kernel_has("labfs")
    assert raised.value.errno == errno.ENODEV


def test_ext4_is_known_where_the_root_is_ext4(needs_root):
    if " - ext4 " not in Path("/proc/self/mountinfo").read_text():
        pytest.skip("nothing here is on ext4")
    kernel_probes._kernel_has("ext4")


def test_busybox_counts_only_if_it_is_static(command, needs_root):
    assert doctor.find("busybox").found
    doctor.find.cache_clear()
    command("busybox", Path(shutil.which("ls")).read_bytes())  # needs the C library
    finding = doctor.find("busybox")
    assert not finding.found and "static" in finding.detail


def test_a_docker_client_without_an_engine_is_told_apart(command):
    command("docker", '#!/bin/sh\necho "Docker version 1.2.3, build x"\n')
    command("dockerd", '#!/bin/sh\necho "dockerd: broken" >&2; exit 1\n')
    assert doctor.find("docker").detail == "1.2.3"
    engine = doctor.find("docker engine")
    assert not engine.found and "broken" in engine.detail


def test_every_command_that_can_be_missed_has_a_package_in_the_list():
    lines = [line.split() for line in (state.REPO / "vagrant/packages").read_text().splitlines() if line[:1] not in "#"]
    version = machine_probes._version
    tools = {p.look.args[0] for p in probing.PROBES.values() if getattr(p.look, "func", None) is version}
    assert len(tools) > 15 and tools <= {words[2].rpartition("/")[2] for words in lines}


def test_a_command_that_does_not_answer_is_no_help(command, monkeypatch):
    command("podman", "#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(probing, "PATIENCE", 0.2)
    assert doctor.find("podman").detail == "podman does not answer"


def test_a_missing_capability_is_named(needs_root):
    def without(name):
        syscalls.prctl(syscalls.PR_CAPBSET_DROP, 13)
        return doctor.find(name)

    finding = in_child(without, "all capabilities")
    assert not finding.found and "NET_RAW" in finding.detail


def test_a_kind_of_cgroup_can_be_asked_for_by_version():
    either = doctor.find("cgroup memory")
    one, two = (doctor.find(f"cgroup v{version} memory") for version in (1, 2))
    assert either.found == (one.found or two.found)
    assert not (one.found and two.found)


def test_a_name_that_nobody_knows_is_an_error_and_not_a_skip():
    with pytest.raises(errors.NotFound, match="warp drive"):
        doctor.find("warp drive")


def test_it_tells_the_kernel_that_it_runs_on():
    assert platform.release() in doctor.where()["kernel"]


def test_it_succeeds_where_the_main_chapters_can_be_done(capsys, needs_root):
    if any(probe.vital and not doctor.find(name).found for name, probe in probing.PROBES.items()):
        pytest.skip("they can't be done here, says lab doctor")
    assert doctor.main([]) == 0
    assert "Chapters 02" not in capsys.readouterr().out


def test_it_fails_where_the_main_chapters_can_not_be_done(capsys, monkeypatch):
    monkeypatch.setattr(syscalls, "mount", refuse(errno.EPERM))
    assert doctor.main([]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert "can't be done without" in last and "overlay" in last and "pid namespace" not in last


def test_what_is_missing_has_its_loss_below_it(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    doctor.main([])
    lines = capsys.readouterr().out.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("  NO  strace ")]
    assert "no command strace" in lines[at]
    assert "→ lost: 13:" in lines[at + 1]


def test_without_root_it_says_so_and_does_not_crash(needs_root):
    def as_nobody():
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        return doctor.main([])

    words = io.StringIO()
    with contextlib.redirect_stdout(words):
        status = in_child(as_nobody)
    assert status == 1
    assert "You are not root" in words.getvalue()
    assert "EPERM" in words.getvalue()


def test_it_agrees_with_the_unshare_command(needs_root):
    for kind, flag in {"uts": "--uts", "time": "--time", "user": "--user", "cgroup": "--cgroup"}.items():
        works = subprocess.run(["unshare", flag, "true"], capture_output=True).returncode == 0
        assert doctor.find(f"{kind} namespace").found == works
