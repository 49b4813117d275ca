"""A container of a user with no privileges at all, and what it can't have, said by name."""

import errno
import json
import os
import re
import shutil
import subprocess

import pytest
from bundles import make_rootfs

from labkit.app import doctor
from labkit.container import rootless
from labkit.ground import proc, state, syscalls
from labkit.ground.child import in_child
from labkit.ground.errors import KernelError, Unsupported
from labkit.isolation import namespaces
from labkit.lessons.beside import ordinary_user

pytestmark = [pytest.mark.usefixtures("needs_root"), pytest.mark.requires("unprivileged user namespace")]


@pytest.fixture(scope="module")
def user():
    assert shutil.which("setpriv")
    with ordinary_user.at_home() as user:
        yield user


def ok(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_user_has_no_privileges(user):
    status = dict(line.split(":\t") for line in ok(user.run("cat", "/proc/self/status")).splitlines() if ":\t" in line)
    assert status["CapPrm"] == status["CapEff"] == "0" * 16 and status["NoNewPrivs"] == "1"
    assert user.run("cat", "/etc/shadow").returncode != 0


def test_sh_is_one_and_root_inside(user):
    said = ok(user.lab("run", "--rm", "busybox", "sh", "-c", "echo $$; id -u; cat /proc/self/uid_map"))
    assert said.split() == ["1", "0", "0", str(ordinary_user.UID), "1"]


def test_it_has_all_the_namespaces_that_roots_has(user):
    number = ok(user.lab("run", "-d", "--name", "kinds", "busybox", "sleep", "60")).strip()
    pid = int(ok(user.lab("ps")).splitlines()[1].split()[-2])
    ours, its = proc.namespaces(), proc.namespaces(pid)
    assert {kind for kind in ours if ours[kind] != its[kind]} == {"mnt", "uts", "ipc", "pid", "net", "cgroup", "user"}
    assert proc.process(pid).uid == ordinary_user.UID
    assert number in ok(user.lab("ps"))
    ok(user.lab("rm", "-f", "kinds"))


def test_its_life_goes_on_over_several_commands(user):
    ok(user.lab("run", "-d", "--name", "life", "busybox", "sh", "-c", "echo hello; touch /new; sleep 60"))
    assert "sleep 60" in ok(user.lab("exec", "life", "ps"))
    assert ok(user.lab("exec", "life", "id", "-u")) == "0\n"
    assert "sleep 60" in ok(user.lab("top", "life"))
    assert ok(user.lab("logs", "life")) == "hello\n"
    assert "A /new" in ok(user.lab("diff", "life"))
    assert ok(user.lab("stop", "-t", "0.1", "life")) == "life\n"
    assert "exited (137)" in ok(user.lab("ps", "-a"))
    ok(user.lab("rm", "life"))


def test_what_needs_root_is_refused_by_name_and_leaves_nothing(user):
    refusals = {
        ("--memory", "32m"): "memory",
        ("--cpus", "0.5"): "cpu",
        ("--pids-limit", "20"): "processes",
        ("--network", "bridge"): "network",
        ("-p", "8080:80"): "network",
        ("--userns", "remap"): "one id",
    }
    for words, reason in refusals.items():
        done = user.lab("run", *words, "busybox", "true")
        assert done.returncode == 125 and "without root" in done.stderr and reason in done.stderr, (words, done.stderr)
    assert ok(user.lab("ps", "-a")).splitlines()[1:] == []


def test_another_user_of_the_image_is_not_to_be_had(user):
    done = user.lab("run", "--rm", "--user", "33", "busybox", "true")
    assert done.returncode == 125 and "EINVAL" in done.stderr


def test_exit_status_and_a_missing_command_are_as_with_root(user):
    assert user.lab("run", "--rm", "busybox", "sh", "-c", "exit 7").returncode == 7
    assert user.lab("run", "--rm", "busybox", "no-such-thing").returncode == 127


def test_it_gets_no_power_over_the_host(user, tmp_path):
    said = user.lab(
        "run", "--rm", "-v", "/etc:/host:ro", "busybox", "sh", "-c", "cat /host/shadow; ls -ln /host/shadow"
    )
    assert "Permission denied" in said.stderr and "65534" in said.stdout


def test_a_tmp_folder_of_somebody_else_is_not_used(user):
    folder = f"/tmp/labkit-{ordinary_user.UID}"
    assert not os.path.exists(folder)
    os.mkdir(folder, 0o777)
    try:
        command = ("env", "-u", "XDG_RUNTIME_DIR", user.python, "-m", "labkit", "ps")
        done = user.run(*command)
        assert done.returncode == 125 and ("somebody else" in done.stderr or "EACCES" in done.stderr)
    finally:
        shutil.rmtree(folder)


def test_the_runtime_runs_the_config_that_it_writes_for_such_a_user(user):
    folder = user.home / "bundle"
    make_rootfs(folder / "rootfs")
    subprocess.run(["chown", "-R", f"{ordinary_user.UID}:{ordinary_user.UID}", folder], check=True)
    runtime = str(state.REPO / "vagrant/labkit-runtime")
    ok(user.run(runtime, "spec", "--rootless", "--bundle", folder))
    config = json.loads((folder / "config.json").read_text())
    config["process"].update(terminal=False, args=["sh", "-c", "id -u; test $1 != stay || sleep 60", "sh", "go"])
    (folder / "config.json").write_text(json.dumps(config))
    done = user.run(runtime, "run", "--bundle", folder, "rootless")
    assert ok(done) == "0\n" and "no cgroup" in done.stderr
    config["process"]["args"][-1] = "stay"
    (folder / "config.json").write_text(json.dumps(config))
    ok(user.run("sh", "-c", f"{runtime} run -d --bundle {folder} rootless >/dev/null 2>&1"))
    pid = json.loads(ok(user.run(runtime, "state", "rootless")))["pid"]
    ticks = proc.start_ticks(pid)
    assert ok(user.run(runtime, "exec", "rootless", "id", "-u")) == "0\n"
    for word in ("pause", "ps"):
        assert "has no cgroup" in user.run(runtime, word, "rootless").stderr
    ok(user.run(runtime, "delete", "--force", "rootless"))
    assert not proc.is_running(pid, ticks)


def test_podman_of_such_a_user_starts_containers_with_the_runtime(user):
    folder = user.home / "podman"
    make_rootfs(folder / "rootfs")
    subprocess.run(["chown", "-R", f"{ordinary_user.UID}:{ordinary_user.UID}", folder], check=True)
    runtimes = ("runc", state.REPO / "vagrant/labkit-runtime")  # what runc can't do here says nothing of ours
    for runtime in runtimes:
        engine = ("podman", "--runtime", runtime, "--cgroup-manager", "cgroupfs")
        done = user.run(*engine, "run", "--rm", "--network", "none", "--rootfs", folder / "rootfs", "/bin/id", "-u")
        if runtime == "runc" and done.returncode:
            pytest.skip(f"podman can't be used without root here: {done.stderr[-300:]}")
    assert ok(done) == "0\n"


def test_the_ordinary_root_is_not_taken_for_rootless():
    assert not rootless.active() and in_child(rootless.active) is False


@pytest.mark.parametrize("refuses", ["the namespace", "all power in it"])
def test_ubuntus_restriction_is_named_with_what_allows_users_again(monkeypatch, tmp_path, own_root, refuses):
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/apparmor_restrict_unprivileged_userns").write_text("1\n")
    monkeypatch.setattr(namespaces.refusal, "__defaults__", (tmp_path,))
    unshare, no = syscalls.unshare, {"the namespace": syscalls.CLONE_NEWUSER, "all power in it": syscalls.CLONE_NEWNS}

    def ubuntu(flags):
        if flags & no[refuses]:
            raise KernelError("unshare(2)", errno.EACCES)
        unshare(flags)

    monkeypatch.setattr(syscalls, "unshare", ubuntu)
    said = "EACCES.*kernel.apparmor_restrict_unprivileged_userns is 1.*sudo sysctl .*_userns=0"
    with pytest.raises(Unsupported, match=f"(?s){said}"):
        in_child(rootless.enter)
    finding = doctor.find.__wrapped__("unprivileged user namespace")
    assert not finding.found and re.search(said, finding.detail)


def test_a_machine_without_such_a_setting_has_nothing_to_name(tmp_path):
    assert namespaces.refusal(tmp_path) is None
