"""labkit-runtime does what the runtime specification says, as Docker and Podman would ask for it."""

import errno
import fcntl
import functools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from labkit.cgroups import cgroup, devices, limits
from labkit.ground import errors, ledger, proc, state
from labkit.ground import syscalls as sc
from labkit.ground.errors import BadValue, Unsupported
from labkit.isolation import mount_options, sysctls
from labkit.oci import bundle, commands, hooks, lifecycle, resources, systemd
from tests.bundles import RUNTIME, Bundle, make_rootfs

pytestmark = pytest.mark.usefixtures("needs_root")


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory):
    return make_rootfs(tmp_path_factory.mktemp("bundle") / "rootfs")


@pytest.fixture
def reachable():
    """A folder to which user 100000 of the host has a way too."""
    folder = Path(tempfile.mkdtemp(prefix=f"{state.label()}-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def box(tmp_path, rootfs):
    made = Bundle(tmp_path / "bundle", rootfs)
    yield made
    made.delete()
    assert made.left() == []


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


# ---- the specification's five ----


def test_a_command_loads_nothing_that_only_others_need():
    words = "import sys; from labkit.oci.commands import main; main(['--root', '/nowhere', 'state', 'x']); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", words], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "labkit.oci.lifecycle" in loaded
    assert not {"labkit.oci.bundle", "labkit.container.steps", "labkit.cgroups.cgroup", "subprocess"} & set(loaded)
    # The library's dear ones: each costs `start` what itself does.
    assert not {"argparse", "ctypes", "pathlib", "typing", "gettext", "locale"} & set(loaded)


@pytest.mark.parametrize(
    "line",
    [
        "--root /r --log /l --log-format json start one",
        "--systemd-cgroup --log=/l create --bundle /b --pid-file=/p --console-socket /s one",
        "delete --force one",
        "delete one -f",
        "kill one",
        "kill --all one 9",
        "state one",
        "list -q --format json",
        "features",
        "update --memory 8m --pids-limit=-1 one",
    ],
)
def test_a_plain_line_means_what_argparse_makes_of_it(line):
    plain = commands._plain(line.split())
    assert plain is not None and vars(plain) == vars(commands._thoroughly(line.split()))


@pytest.mark.parametrize(
    "line",
    [
        "", "start", "start one two", "start --force one", "start one --log /l", "--log", "--log --debug start one",
        "--log-format yaml start one", "--debug=yes start one", "create -b=/b one", "delete -- one", "kill one -9",
        "--help", "start --help", "checkpoint one", "ps one", "exec one true", "create --preserve-fds 1 one", "no-such one",
    ],
)  # fmt: skip
def test_any_other_line_is_left_to_argparse(line):
    assert commands._plain(line.split()) is None


def test_program_does_not_run_before_start(box):
    assert box.shell("echo here; exec sleep 100").create("--pid-file", box.folder / "pid").returncode == 0
    words = box.state()
    assert words["status"] == "created"
    assert words["pid"] == int((box.folder / "pid").read_text())
    assert proc.namespace(words["pid"], "pid") != proc.namespace("self", "pid")
    assert box.output() == ""
    assert box("start", box.id).returncode == 0
    wait_for(lambda: box.output() == "here\n")
    assert box.state()["status"] == "running"
    assert box("kill", box.id, "KILL").returncode == 0
    wait_for(lambda: box.state()["status"] == "stopped")
    assert box.state()["pid"] == 0
    assert box("delete", box.id).returncode == 0
    assert "does not exist" in box("state", box.id).stderr


def test_waiting_process_is_the_hosts_and_cannot_be_looked_into(box):
    box.shell("sleep 100").create()
    status = Path(f"/proc/{box.state()['pid']}/mem").stat()
    assert status.st_uid == 0, "a process with the host's power must not be dumpable"


def test_start_is_possible_once_only(box):
    box.shell("sleep 100").create()
    both = [subprocess.Popen(box.command("start", box.id), stderr=subprocess.PIPE) for _ in range(2)]
    codes = sorted(one.wait(20) for one in both)
    for one in both:
        one.stderr.close()
    assert codes == [0, 1]
    done = box("start", box.id)
    assert done.returncode == 1
    assert "running state" in done.stderr


def test_a_taken_id_is_refused_and_the_first_one_lives(box):
    box.shell("sleep 100").create()
    again = box.create()
    assert again.returncode == 1
    assert "container with id exists: box" in again.stderr
    assert box.state()["status"] == "created"


def test_command_not_found_is_said_at_create_and_leaves_nothing(box):
    done = box.set("process.args", ["nonsense"]).create()
    assert done.returncode == 1
    assert "'nonsense'" in done.stderr and "No such file or directory" in done.stderr
    assert box.left() == []


@pytest.mark.parametrize("path, word", [("/no/such", "ENOENT"), ("/etc/passwd/x", "ENOTDIR"), ("/etc/passwd", "EACCES"), ("/etc", "EACCES")])  # fmt: skip
def test_path_that_is_no_program_is_said_at_create_too(box, path, word):
    done = box.set("process.args", [path]).create()
    assert done.returncode == 1
    assert f"exec of '{path}'" in done.stderr and word in done.stderr
    assert box.left() == []


def test_start_says_why_the_program_can_not_be_executed(box, rootfs):
    (rootfs / "bin/garbage").write_bytes(b"\x7fELF garbage")
    (rootfs / "bin/garbage").chmod(0o755)
    assert box.set("process.args", ["garbage"]).create().returncode == 0
    done = box("start", box.id)
    assert done.returncode == 1
    assert "ENOEXEC" in done.stderr


def test_one_that_waits_is_not_ended_by_what_would_not_end_its_program(box):
    # A ^C typed too early: to the first process of a pid namespace a signal that it does not handle is nothing.
    box.shell("echo up").create()
    for name in ("INT", "TERM", "HUP"):
        assert box("kill", box.id, name).returncode == 0
    time.sleep(0.3)
    assert box.state()["status"] == "created"
    assert box("start", box.id).returncode == 0


def test_start_of_one_that_was_killed_while_waiting(box):
    box.shell("true").create()
    box("kill", box.id, "KILL")
    wait_for(lambda: box.state()["status"] == "stopped")
    assert box("start", box.id).returncode == 1
    assert box("delete", box.id).returncode == 0


def test_running_one_is_not_deleted_without_force(box):
    box.shell("sleep 100").create()
    box("start", box.id)
    done = box("delete", box.id)
    assert done.returncode == 1
    assert "not stopped" in done.stderr
    assert box.state()["status"] == "running"
    assert box("delete", "--force", box.id).returncode == 0
    assert box.left() == []


def test_kill_of_a_stopped_one_says_so_in_the_words_that_docker_knows(box):
    box.run("--keep")
    done = box("kill", box.id, "TERM")
    assert done.returncode == 1
    assert "container not running" in done.stderr


def test_kill_ends_all_where_no_pid_namespace_would(box):
    box.config["linux"]["namespaces"].remove({"type": "pid"})
    box.shell("sleep 100 & exec sleep 100").create()
    box("start", box.id)
    group = lifecycle.Box(box.root, box.id).cgroup()
    wait_for(lambda: len(group.procs()) == 2)
    assert box("kill", box.id, "KILL").returncode == 0
    wait_for(lambda: not group.procs())


def test_kill_all_reaches_each_process(box):
    box.shell(
        "trap 'echo one' USR1; sh -c \"trap 'echo two' USR1; echo up; while :; do sleep .05; done\" & while :; do sleep .05; done"
    )
    box.create()
    box("start", box.id)
    wait_for(lambda: "up" in box.output())
    box("kill", "--all", box.id, "USR1")
    wait_for(lambda: {"one", "two"} <= set(box.output().split()))


def test_run_hands_on_the_exit_status_and_leaves_nothing(box):
    done = box.shell("echo out; echo err >&2; exit 7").run()
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert box.left() == []


def test_run_hands_on_signals(box):
    box.shell("trap 'exit 9' TERM; echo up; while :; do sleep .05; done").write()
    with subprocess.Popen(
        box.command("run", "--bundle", box.folder, box.id), stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout.readline() == "up\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 9


def test_a_container_outlives_its_maker_and_is_its_subreapers_child(box):
    script = (
        "import os, subprocess, sys; from labkit.ground import syscalls; syscalls.prctl(36, 1); subprocess.run(sys.argv[1:], check=True);"
        f"p = int(open('{box.folder}/pid').read()); os.kill(p, 9); print(os.waitpid(p, 0)[0] == p)"
    )
    box.shell("sleep 100").write()
    words = box.command("create", "--bundle", box.folder, "--pid-file", box.folder / "pid", box.id)
    done = subprocess.run(
        [os.sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=30,
        env={**os.environ, "PYTHONPATH": str(RUNTIME.parent.parent)},
    )  # fmt: skip
    assert done.stdout == "True\n", done.stderr


# ---- the public schema ----


def _schema(name):
    import jsonschema
    import referencing

    folder = Path("/usr/share/gocode/src/github.com/opencontainers/runtime-spec/schema")
    if not folder.exists():
        pytest.fail("golang-github-opencontainers-specs-dev is not installed: it is in vagrant/packages")

    def load(uri):
        text = json.loads((folder / uri.rsplit("/", 1)[-1]).read_text())
        return referencing.Resource.from_contents(text, default_specification=referencing.jsonschema.DRAFT4)

    import referencing.jsonschema

    registry = referencing.Registry(retrieve=load)
    return jsonschema.Draft4Validator({"$ref": f"http://oci/{name}"}, registry=registry)


def test_spec_writes_what_the_public_schema_allows(box):
    assert box("spec", "--bundle", box.folder).returncode == 0
    config = json.loads((box.folder / "config.json").read_text())
    _schema("config-schema.json").validate(config)
    assert not _schema("config-schema.json").is_valid({**config, "root": {}}), "the schema must be the real one"
    assert box("spec", "--bundle", box.folder).returncode == 1, "it never writes over one"
    (box.folder / "config.json").unlink()
    assert box("spec", "--rootless", "--bundle", box.folder).returncode == 0
    config = json.loads((box.folder / "config.json").read_text())
    _schema("config-schema.json").validate(config)
    box.config = {**config, "root": box.config["root"], "process": {**config["process"], "terminal": False}}
    box.shell("id -u; cat /proc/self/uid_map")
    done = box.run()
    assert done.stdout.split() == ["0", "0", str(os.geteuid()), "1"], done.stderr


def test_state_is_as_the_public_schema_has_it_at_each_moment(box):
    schema = _schema("state-schema.json")
    box.set("annotations", {"org.example": "yes"}).shell("sleep 100").create()
    schema.validate(box.state())
    assert box.state()["annotations"] == {"org.example": "yes"}
    box("start", box.id)
    schema.validate(box.state())
    box("kill", box.id, "9")
    wait_for(lambda: box.state()["status"] == "stopped")
    schema.validate(box.state())


# ---- what is refused ----

NOTIFY = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]}
MAPS = [{"containerID": 0, "hostID": 100000, "size": 65536}]
REFUSED = [
    ("ociVersion", "2.0.0", "ociVersion"),
    ("ociVersion", "0.9.0", "ociVersion"),
    ("process.selinuxLabel", "system_u:x", "process.selinuxLabel"),
    ("process.cwd", "relative", "process.cwd"),
    ("process.args", [], "process.args"),
    ("process.env", ["NOVALUE"], "process.env"),
    ("process.rlimits", [{"type": "RLIMIT_LUCK", "soft": 1, "hard": 1}], "RLIMIT_LUCK"),
    ("process.rlimits", [{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}], "RLIMIT_NOFILE"),
    ("linux.intelRdt", {"closID": "x"}, "linux.intelRdt"),
    ("linux.personality", {"domain": "BSD"}, "linux.personality"),
    ("linux.personality", {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}, "linux.personality"),
    ("linux.sysctl", {"kernel.core_pattern": "|/bin/sh"}, "kernel.core_pattern"),
    ("linux.sysctl", {"vm.overcommit_memory": "1"}, "vm.overcommit_memory"),
    ("linux.sysctl", {"net.../../kernel.hostname": "1"}, "net..."),
    ("linux.namespaces", [{"type": "mount"}, {"type": "mount"}], "twice"),
    ("linux.namespaces", [{"type": "mount"}, {"type": "moon"}], "moon"),
    ("linux.namespaces", [{"type": "mount", "path": "/proc/self/ns/mnt"}], "mount by path"),
    ("linux.resources.rdma", {"mlx5": {"hcaHandles": 3}}, "linux.resources.rdma"),
    ("linux.resources.network", {"classID": 1}, "linux.resources.network"),
    ("linux.resources.unified", {"../../x": "1"}, "unified"),
    ("linux.seccomp", {**NOTIFY, "listenerPath": "/no/such/socket"}, "failed to connect with seccomp agent"),
    ("linux.seccomp", NOTIFY, "without listenerPath"),
    ("linux.seccomp", {"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"}, "default action"),
    ("linux.seccomp", {**NOTIFY, "syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]}, "write syscall"),
    ("linux.seccomp", {"defaultAction": "SCMP_ACT_PANIC"}, "SCMP_ACT_PANIC"),
    ("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_TEA"]}, "FLAG_TEA"),
    ("linux.rootfsPropagation", "sideways", "sideways"),
    ("linux.cgroupsPath", "../../escape", "`..`"),
    ("hooks", {"prestart": [{"path": "relative"}]}, "hooks.prestart"),
    ("hooks", {"someday": []}, "hooks.someday"),
    ("linux.timeOffsets", {"boottime": {"secs": 5}}, "linux.timeOffsets"),
    ("process.scheduler", {"policy": "SCHED_LUCK"}, "SCHED_LUCK"),
    ("process.scheduler", {"policy": "SCHED_BATCH", "flags": ["FLAG_X"]}, "FLAG_X"),
    ("process.scheduler", {"policy": "SCHED_BATCH", "nice": 20}, "scheduler.nice"),
    ("process.scheduler", {"policy": "SCHED_FIFO"}, "scheduler.priority"),
    ("process.scheduler", {"policy": "SCHED_BATCH", "runtime": 5000}, "SCHED_DEADLINE"),
    ("process.scheduler", {"policy": "SCHED_DEADLINE", "deadline": 5000}, "requires `runtime`"),
    ("process.scheduler", {"policy": "SCHED_DEADLINE", "runtime": 5000}, "requires `deadline`"),
    ("process.scheduler", {"policy": "SCHED_DEADLINE", "runtime": 9, "deadline": 5000}, "between 1024"),
    ("process.scheduler", {"policy": "SCHED_DEADLINE", "runtime": 9000, "deadline": 5000}, "<= deadline"),
    ("process.ioPriority", {"class": "IOPRIO_CLASS_TEA"}, "IOPRIO_CLASS_TEA"),
    ("process.ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 8}, "ioPriority.priority"),
    ("linux.memoryPolicy", {}, "invalid memory policy mode"),
    ("linux.memoryPolicy", {"mode": "MPOL_BIND"}, "at least 1 node"),
    ("linux.memoryPolicy", {"mode": "MPOL_DEFAULT", "nodes": "0-7"}, "requires 0 nodes but got 8"),
    ("linux.memoryPolicy", {"mode": "MPOL_BIND", "nodes": "0-9876543210"}, "invalid memory policy node"),
    ("linux.memoryPolicy", {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_X"]}, "invalid memory policy flag"),
    ("windows", {"layerFolders": ["x"]}, "windows"),
    ("root.path", "/no/such/root", "/no/such/root"),
    ("mounts", [{"destination": "", "type": "tmpfs"}], "mounts[0]"),
    ("mounts", [{"destination": "/x", "source": "/tmp", "options": ["bind", "idmap"]}], "no user namespace of its own"),
    (
        "mounts",
        [{"destination": "/x", "source": "/tmp", "options": ["bind"], "uidMappings": MAPS}],
        "specified together",
    ),
    ("mounts", [{"destination": "/x", "type": "tmpfs", "uidMappings": MAPS, "gidMappings": MAPS}], "only a bind"),
    ("linux.netDevices", {"eth/0": {}}, "link's name"),
    ("linux.netDevices", {"nosuchlink": {}}, "nosuchlink"),
    ("mounts", [{"destination": "/x", "source": "/x"}], "mounts[0]"),
    ("mounts", [{"destination": "/data", "type": "tmpfs", "options": ["idmap"]}], "idmap"),
    ("mounts", [{"destination": "/data", "source": "/no/such/source", "options": ["bind"]}], "/no/such/source"),
    ("mounts", [{"destination": "/data", "type": "nosuchfs"}], "nosuchfs"),
    ("mounts", [{"destination": "/..", "source": "/tmp", "options": ["bind"]}], "the root itself"),
    ("mounts", [{"destination": "/etc", "source": "/etc/passwd", "options": ["bind"]}], "Not a directory"),
    ("process.oomScoreAdj", 5000, "oomScoreAdj 5000"),
    ("process.apparmorProfile", "nosuch-profile", "AppArmor"),
]


@pytest.mark.parametrize("path, value, word", REFUSED, ids=[f"{path}-{word}" for path, _, word in REFUSED])
def test_what_can_not_be_done_is_refused_by_name_and_leaves_nothing(box, path, value, word):
    done = box.set(path, value).create()
    assert done.returncode == 1
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert box.left() == []


WRONG = [
    ("linux.devices", [{"path": "/dev/x", "type": "c", "major": "1"}], "linux.devices[0].major must be a whole number"),
    ("linux.sysctl", {"net.ipv4.ip_forward": ["1"]}, "linux.sysctl.net.ipv4.ip_forward must be a text"),
    ("linux.timeOffsets", {"boottime": {"secs": 1 << 70}}, "linux.timeOffsets.boottime.secs must be"),
    ("linux.resources.devices", [{"allow": "no"}], "linux.resources.devices[0].allow must be true or false"),
    ("linux.resources.cpu", {"idle": True}, "linux.resources.cpu.idle must be a whole number"),
    ("process.env", ["A=b", None], "process.env[1] must be a text"),
    ("hooks", {"poststop": [{"path": "/bin/true", "args": "true"}]}, "hooks.poststop[0].args must be a list"),
    ("annotations", {"a": 1}, "annotations.a must be a text"),
]


@pytest.mark.parametrize("path, value, word", WRONG, ids=[word.split()[0] for _, _, word in WRONG])
def test_a_value_of_another_kind_is_refused_by_its_place(box, path, value, word):
    box.set(path, value).write()
    with pytest.raises(BadValue) as caught:
        bundle.read(str(box.folder))
    assert word in str(caught.value)


def test_a_label_for_mounts_is_needed_only_where_selinux_runs(box, monkeypatch, tmp_path):
    box.set("linux.mountLabel", "system_u:object_r:container_file_t:s0").write()
    monkeypatch.setattr(bundle, "_SELINUX", str(tmp_path / "none"))
    assert any("linux.mountLabel is ignored" in one for one in bundle.read(str(box.folder)).warnings)
    monkeypatch.setattr(bundle, "_SELINUX", str(tmp_path))
    with pytest.raises(errors.Unsupported, match="mountLabel"):
        bundle.read(str(box.folder))


def test_what_is_null_is_not_said(box):
    box.set("linux.resources", {"pids": None, "devices": None}).set("annotations", None).set("process.rlimits", None)
    assert bundle.read(str(box.write().folder))


@pytest.mark.parametrize("wrong", [7, "text", ["list"], {"a": "dict"}])
def test_a_config_of_another_shape_is_refused_and_leaves_nothing(box, wrong):
    paths = ["process", "root", "linux", "mounts", "hooks", "annotations", "hostname"]
    paths += [
        "process.user",
        "process.args",
        "process.capabilities",
        "process.rlimits",
        "process.env",
        "linux.namespaces",
        "linux.resources",
    ]
    paths += [
        "linux.seccomp",
        "linux.sysctl",
        "linux.devices",
        "linux.maskedPaths",
        "linux.resources.memory",
        "linux.resources.devices",
    ]
    whole = json.dumps(box.config)
    for path in paths:
        box.config = json.loads(whole)
        done = box.set(path, wrong).create()
        assert "Traceback" not in done.stderr and "labkit itself" not in done.stderr, (path, done.stderr)
        if done.returncode == 0:
            box.delete()
        assert box.left() == [], path


def test_every_1_x_version_is_read(box):
    for version in ("1.0.0", "1.0.2-dev", "1.1.0", "1.3.7+x"):
        assert box.set("ociVersion", version).run().returncode == 0


def test_words_that_the_specification_does_not_have_are_ignored_but_not_in_silence(box):
    log = box.folder / "log.json"
    box.set("linux.moonPhase", "full").write()
    done = box("run", "--bundle", box.folder, box.id, global_words=("--log", str(log), "--log-format", "json"))
    assert done.returncode == 0
    line = json.loads(log.read_text())
    assert line["level"] == "warning"
    assert "linux.moonPhase" in line["msg"]


def test_capabilities_that_can_not_be_given_are_left_out_and_warned_of(box):
    power = {name: ["CAP_FLY", "CAP_KILL", "CAP_CHOWN"] for name in ("bounding", "effective", "permitted", "ambient")}
    box.set("process.capabilities", {**power, "inheritable": ["CAP_KILL"]}).shell("grep ^CapAmb: /proc/self/status")
    done = box.run()
    assert done.stdout.split() == ["CapAmb:", f"{1 << 5:016x}"]
    assert "no FLY to give" in done.stderr and "can't raise ambient capability CAP_CHOWN" in done.stderr


def test_errors_go_to_the_log_as_one_json_line_each(box):
    log = box.folder / "log.json"
    done = box("state", "nobody", global_words=("--log", str(log), "--log-format", "json"))
    assert done.returncode == 1
    line = json.loads(log.read_text())
    assert line["level"] == "error" and "nobody does not exist" in line["msg"] and line["time"].endswith("Z")


def test_commands_of_runc_that_are_not_here_are_refused_by_name(box):
    for word in ("checkpoint", "restore"):
        assert f"no {word}" in box(word, "--image-path", "x", box.id).stderr
    assert "--no-pivot" in box.run("--no-pivot").stderr


def test_systemd_cgroup_is_refused_where_systemd_does_not_rule(box):
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd is PID 1 here")
    box.write()
    done = box("create", "--bundle", box.folder, box.id, global_words=("--systemd-cgroup",))
    assert done.returncode == 1
    assert "--systemd-cgroup" in done.stderr
    assert box.left() == []


def test_systemd_makes_the_scope_where_it_rules(box):
    if not os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd is not PID 1 here")
    box.set("linux.cgroupsPath", "machine.slice:lab:scoped").set("linux.resources.pids", {"limit": 33}).shell(
        "sleep 100"
    ).write()
    with open(box.folder / "err", "w+") as err:
        words = box.command("create", "--bundle", box.folder, box.id, global_words=("--systemd-cgroup",))
        code = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=err, stderr=err, timeout=60).returncode
    assert code == 0, (box.folder / "err").read_text()
    places = proc.cgroups(box.state()["pid"])
    assert "/machine.slice/lab-scoped.scope" in places.values()
    assert lifecycle.Box(box.root, box.id).cgroup().read("pids.max").strip() == "33"
    box.delete()
    listed = subprocess.run(["systemctl", "is-active", "lab-scoped.scope"], capture_output=True, text=True).stdout
    assert listed.strip() != "active"


def test_a_slices_name_says_where_its_folder_is():
    assert systemd.Unit("x.scope", "a-b-c.slice").path == "/a.slice/a-b.slice/a-b-c.slice/x.scope"
    assert systemd.Unit("x.scope", "-.slice").path == "/x.scope"


# ---- hooks ----


def _hook(box, when, script="true"):
    path = box.folder / f"hook-{when}"
    path.write_text(f"#!/bin/sh\n(echo -n '{when} '; cat; echo) >> {box.folder}/hooks\n{script}\n")
    path.chmod(0o755)
    box.config.setdefault("hooks", {}).setdefault(when, []).append(
        {"path": str(path), "args": ["x"], "env": ["PATH=/bin:/usr/bin"]}
    )


def _seen(box):
    lines = (box.folder / "hooks").read_text().splitlines()
    return [(line.split(" ", 1)[0], json.loads(line.split(" ", 1)[1])) for line in lines]


def test_hooks_on_the_host_run_in_their_order_and_are_told_the_state(box):
    for when in ("poststop", "poststart", "createRuntime", "prestart"):
        _hook(box, when)
    box.shell("sleep 100").create()
    assert [when for when, _ in _seen(box)] == ["prestart", "createRuntime"]
    pid = box.state()["pid"]
    assert all(
        words["pid"] == pid and words["id"] == "box" and words["status"] == "creating" for _, words in _seen(box)
    )
    box("start", box.id)
    assert _seen(box)[2][0] == "poststart" and _seen(box)[2][1]["status"] == "running"
    box("delete", "--force", box.id)
    assert _seen(box)[3][0] == "poststop" and _seen(box)[3][1]["status"] == "stopped"


def test_create_container_hook_sees_the_hosts_files_and_the_containers_namespaces(box, rootfs):
    _hook(
        box,
        "createContainer",
        f"readlink /proc/self/ns/uts > {box.folder}/uts; hostname > {box.folder}/name; pwd > {box.folder}/pwd",
    )
    box.set("hostname", "inside").shell("readlink /proc/self/ns/uts")
    done = box.run()
    assert (box.folder / "uts").read_text() == done.stdout
    assert (box.folder / "name").read_text() == "inside\n"
    assert (box.folder / "pwd").read_text() == f"{rootfs}\n"


def test_start_container_hook_runs_in_the_container_after_start(box, rootfs):
    (rootfs / "bin/hook").write_text("#!/bin/sh\ncat > /data/state\necho hook\n")
    (rootfs / "bin/hook").chmod(0o755)
    box.config["hooks"] = {"startContainer": [{"path": "/bin/hook", "env": ["PATH=/bin"]}]}
    box.shell("cat /data/state").create()
    assert not (rootfs / "data/state").exists()
    box("start", box.id)
    wait_for(lambda: box.output())
    assert json.loads(box.output())["id"] == "box"
    (rootfs / "data/state").unlink()


@pytest.mark.parametrize("when", ["prestart", "createRuntime", "createContainer"])
def test_hook_that_fails_before_the_program_ends_the_container(box, when):
    _hook(box, when, "echo no wine >&2; exit 3")
    done = box.create()
    assert done.returncode == 1
    assert f"error running {when} hook #0" in done.stderr and "no wine" in done.stderr
    assert box.left() == []


def test_hook_that_fails_after_the_start_ends_and_deletes_the_container(box):
    _hook(box, "poststart", "exit 3")
    _hook(box, "poststop")
    box.shell("sleep 100").create()
    done = box("start", box.id)
    assert done.returncode == 1
    assert "error running poststart hook #0" in done.stderr
    assert box.left() == []
    assert [when for when, _ in _seen(box)] == ["poststart", "poststop"]


def test_hook_without_an_environment_has_its_callers(box, rootfs):
    _hook(box, "createRuntime", f"echo $LABKIT_ROOT > {box.folder}/root")
    box.config["hooks"]["createRuntime"][0].pop("env", None)
    box.config["hooks"]["startContainer"] = [{"path": "/bin/sh", "args": ["sh", "-c", "test $COLOUR = red"]}]
    box.config["process"]["env"] = ["PATH=/bin", "COLOUR=red"]
    assert box.shell("true").run().returncode == 0
    assert (box.folder / "root").read_text().strip() == os.environ["LABKIT_ROOT"]


def test_hook_that_hangs_is_killed_after_its_time(box):
    _hook(box, "prestart", "exec sleep 60")
    box.config["hooks"]["prestart"][0]["timeout"] = 1
    done = box.create()
    assert done.returncode == 1
    assert "more than 1 s" in done.stderr


# ---- what a process is given ----


def test_exec_makes_no_working_directory(running, rootfs):
    done = running("exec", "--cwd", "/data/typo", running.id, "true")
    assert done.returncode == 255 and "ENOENT" in done.stderr
    assert not (rootfs / "data/typo").exists()


def test_priorities_of_the_config_are_the_processs(box):
    box.config["process"]["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    box.config["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 2}
    box.config["linux"]["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0"}
    box.shell("cut -d' ' -f19,41 /proc/self/stat; ionice; head -1 /proc/self/numa_maps")
    words = box.run().stdout.split()
    assert words[:5] == ["7", "3", "best-effort:", "prio", "2"] and "bind:0" in words


def test_working_directory_is_made_before_a_read_only_root_is_sealed(box, rootfs):
    box.set("root.readonly", True).set("process.cwd", "/data/new/folder").shell("pwd; touch x; sleep 100").create()
    box("start", box.id)
    wait_for(lambda: "ead-only" in (box.folder / "err").read_text())
    assert box.output() == "/data/new/folder\n"
    assert "ENOENT" in box("exec", "--cwd", "/no/such/folder", box.id, "true").stderr
    shutil.rmtree(rootfs / "data/new")


def test_empty_home_is_the_users(box):
    box.set("process.env", ["PATH=/bin", "HOME="]).set("process.user", {"uid": 1000, "gid": 1000})
    assert box.shell("echo $HOME").run().stdout == "/home/ana\n"


def test_terminal_and_a_read_only_dev_and_a_tmpfs_behind_a_link(box, rootfs):
    (rootfs / "data/way").symlink_to("/data/there")
    (rootfs / "data/there").mkdir()
    dev = next(mount for mount in box.config["mounts"] if mount["destination"] == "/dev")
    dev["options"] = [*dev["options"], "ro"]
    box.config["mounts"].append({"destination": "/data/way", "type": "tmpfs", "source": "x", "options": ["ro"]})
    done = box.set("process.terminal", True).shell("ls /dev/console; touch /data/there/x").run()
    (rootfs / "data/way").unlink()
    assert "/dev/console" in done.stdout and "ead-only" in done.stdout, done.stderr


def test_read_only_dev_is_furnished_and_then_sealed(box):
    dev = next(mount for mount in box.config["mounts"] if mount["destination"] == "/dev")
    dev["options"] = [*dev["options"], "ro"]
    assert "ead-only" in box.shell("echo > /dev/null; echo > /dev/tea").run().stderr


def test_clock_offsets_have_nanoseconds(box):
    box.config["linux"]["namespaces"].append({"type": "time"})
    box.config["linux"]["timeOffsets"] = {"monotonic": {"secs": 7, "nanosecs": 5}, "boottime": {"secs": 9}}
    assert box.shell("cat /proc/self/timens_offsets").run().stdout.split() == [
        "monotonic",
        "7",
        "5",
        "boottime",
        "9",
        "0",
    ]


def test_what_means_nothing_is_warned_of_and_let_pass(box):
    bind = {"destination": "/mnt", "source": "/tmp", "options": ["bind", "size=1m"]}
    box.config["mounts"].append(bind)
    box.set("linux.resources.memory", {"kernel": 1 << 30, "tea": 1}).set("linux.resources.CPU", {"Cpus": "0"})
    done = box.shell("true").run()
    assert done.returncode == 0
    for word in ("size=1m", "memory.kernel is ignored", "memory.tea is no word", "resources.CPU is no word"):
        assert word in done.stderr


def without_mount_namespace(box):
    box.config["linux"]["namespaces"] = [one for one in box.config["linux"]["namespaces"] if one["type"] != "mount"]
    return proc.mounts()


def test_without_a_mount_namespace_its_mounts_are_the_hosts_until_it_is_deleted(box, rootfs):
    before = without_mount_namespace(box)
    box.shell("exec sleep 60").create()
    try:
        here = {mount.target: mount for mount in proc.mounts()}
        assert here[str(rootfs)].propagation == () and str(rootfs / "proc") in here
        assert box("start", box.id).returncode == 0
        done = box("exec", box.id, "sh", "-c", "readlink /proc/self/ns/mnt; ls /etc")
        assert done.stdout.splitlines()[0] == os.readlink("/proc/self/ns/mnt"), done.stderr
        assert done.stdout.splitlines()[1:] == sorted(os.listdir(rootfs / "etc"))
    finally:
        box("delete", "--force", box.id)
    assert proc.mounts() == before


def test_what_the_host_had_mounted_there_is_not_taken_away(box, rootfs):
    sc.mount(str(rootfs), str(rootfs), None, sc.MS_BIND)
    try:
        before = without_mount_namespace(box)
        box.config["hooks"] = {"createRuntime": [{"path": "/bin/false"}]}
        assert box.shell("true").run().returncode and proc.mounts() == before
        box.config["hooks"] = {}
        box.config["linux"]["resources"] = {"cpu": {"cpus": "9999"}}  # that fails before anything is mounted
        assert box.shell("true").run().returncode and proc.mounts() == before
    finally:
        sc.umount2(str(rootfs), sc.MNT_DETACH)


def test_with_the_hosts_network_a_user_namespace_is_shown_the_hosts_sysfs(box):
    box.config["linux"]["namespaces"] = [{"type": kind} for kind in ("mount", "pid", "user")]
    box.config["linux"].update(
        {f"{name}Mappings": [{"containerID": 0, "hostID": 0, "size": 1}] for name in ("uid", "gid")}
    )
    box.config["mounts"] = [
        mount for mount in box.config["mounts"] if mount["destination"] in ("/proc", "/dev", "/sys")
    ]
    box.set("hostname", "").shell(
        "ls /sys/class/net; ls /sys/fs/cgroup; touch /sys/kernel/x 2>&1; grep -c ' /sys' /proc/mounts"
    )
    done = box.run()
    assert done.stdout.splitlines()[0:1] == sorted(os.listdir("/sys/class/net"))[0:1], done.stderr
    assert "Read-only" in done.stdout


def test_exec_into_a_folder_below_its_cgroup(box):
    box.shell("sleep 100").create()
    box("start", box.id)
    group = lifecycle.Box(box.root, box.id).cgroup()
    for folder in group.folders:
        (folder.path / "below").mkdir()
    cpuset = group.path("cpuset")
    if group.version("cpuset") == 1:
        done = box("exec", "--cgroup", "below", box.id, "true")
        assert done.returncode == 255 and "cpuset.cpus or cpuset.mems is empty" in done.stderr
        for name in ("cpuset.cpus", "cpuset.mems"):
            (cpuset / "below" / name).write_text((cpuset / name).read_text())
    show = ("cat", "/proc/self/cgroup")
    done = box("exec", "--cgroup", "below", box.id, *show)
    places = [line.rpartition(":")[2] for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert sum(place.endswith("/below") for place in places) == len(group.folders)
    if group.version("pids") == 1:
        lines = box("exec", "--cgroup", "pids:below", box.id, *show).stdout.splitlines()
        assert [line for line in lines if line.endswith("/below")] == [line for line in lines if ":pids:" in line]
    for word, says in (("../x", "bad sub cgroup path"), ("nowhere", "no such file"), ("tea:/", "unknown controller")):
        done = box("exec", "--cgroup", word, box.id, "true")
        assert done.returncode == 255 and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("word", ["create", "exec"])
def test_a_pidfd_goes_to_who_listens(box, word):
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(box.folder / "door"))
        door.listen()
        flag = ("--pidfd-socket", box.folder / "door")
        box.shell("sleep 100").create(*(flag if word == "create" else ()))
        box("start", box.id)
        if word == "exec":
            more = box.command("exec", "-d", "--pid-file", box.folder / "pid", *flag, box.id, "sleep", "100")
            subprocess.run(more, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        with door.accept()[0] as peer:
            _, (pidfd,), _, _ = socket.recv_fds(peer, 100, 1)
        pid = box.state()["pid"] if word == "create" else int((box.folder / "pid").read_text())
        assert f"Pid:\t{pid}\n" in Path(f"/proc/self/fdinfo/{pidfd}").read_text()
        os.close(pidfd)


@pytest.mark.parametrize("flag", ["--pidfd-socket", "--pid-file", "--console-socket"])
def test_of_a_process_that_nobody_could_be_told_of_nothing_stays(box, flag):
    box.shell("exec sleep 100").create()
    box("start", box.id)
    group, nowhere = lifecycle.Box(box.root, box.id).cgroup(), box.folder / "no" / "where"
    more = box.config["process"] | {"args": ["sleep", "100"], "terminal": flag == "--console-socket"}
    (box.folder / "process.json").write_text(json.dumps(more))
    done = box("exec", "-d", "--process", box.folder / "process.json", flag, nowhere, box.id)
    assert done.returncode == 255 and str(nowhere) in done.stderr
    wait_for(lambda: len(group.procs()) == 1)
    second = Bundle(box.folder / "second", box.config["root"]["path"], "second")
    second.config["process"]["terminal"] = flag == "--console-socket"
    assert second.create(flag, nowhere).returncode == 1
    assert second.left() == []


@pytest.mark.parametrize("words", [["a", "cpu:b"], ["a", "b"], ["cpu:a", "cpu:b"], ["cpu,,pids:a"], [":a"]])
def test_exec_into_two_folders_of_one_tree_is_refused(words):
    with pytest.raises(BadValue):
        commands._below(words)


def test_exec_into_a_folder_that_only_some_trees_have(box):
    box.shell("sleep 100").create()
    box("start", box.id)
    first, *others = lifecycle.Box(box.root, box.id).cgroup().folders
    if not others:
        pytest.skip("one tree")
    (others[-1].path / "below").mkdir()
    done = box("exec", "--cgroup", "below", box.id, "cat", "/proc/self/cgroup")
    assert done.returncode == 0, done.stderr
    places = {names: place for _, names, place in (line.split(":", 2) for line in done.stdout.splitlines())}
    assert sorted(places.values()).count("/below") == 1
    assert "memory" not in places or places["memory"] == "/"


def test_one_that_is_just_being_made_is_not_there_yet_for_who_waits_for_it(box):
    script = f"{' '.join(box.command('state', box.id))} >{box.folder}/said 2>&1; echo $? >>{box.folder}/said"
    box.set("hooks.createRuntime", [{"path": "/bin/sh", "args": ["sh", "-c", script]}]).shell("sleep 100").create()
    said = (box.folder / "said").read_text()
    assert "does not exist" in said and said.endswith("\n1\n")
    assert box.state()["status"] == "created"


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
@pytest.mark.parametrize("place", ["linux.cgroupsPath", "hostname", "process.args", "annotations"])
def test_a_text_that_the_kernel_cannot_be_told_is_refused_by_its_place(box, place, text):
    value = {"process.args": ["true", text], "annotations": {text: "x"}}.get(place, text)
    done = box.set(place, value).run()
    assert done.returncode == 1 and place.rpartition(".")[2] in done.stderr and "NUL" in done.stderr
    assert "Traceback" not in done.stderr and box.left() == []


def test_the_domains_name_may_be_said_twice_but_not_differently(box):
    box.set("domainname", "here").set("linux.sysctl", {"kernel.domainname": "here"})
    assert box.shell("cat /proc/sys/kernel/domainname").run().stdout == "here\n"
    assert "differ" in box.set("domainname", "there").run().stderr


@pytest.mark.parametrize("words", [{"rootfsPropagation": "shared"}, {"namespaces": [{"type": "user"}]}])
def test_what_takes_a_mount_namespace_is_refused_without_one(box, words):
    without_mount_namespace(box)
    box.config["linux"].update(words)
    done = box.shell("true").run()
    assert done.returncode and "mount" in done.stderr and "Traceback" not in done.stderr


def test_mount_and_uts_namespaces_are_joined_by_path(box):
    with subprocess.Popen(["unshare", "--mount", "--uts", "sleep", "60"]) as other:
        try:
            wait_for(lambda: proc.namespaces(other.pid)["mnt"] != proc.namespaces()["mnt"])
            time.sleep(0.1)
            theirs = proc.namespaces(other.pid)
            box.config["linux"]["namespaces"] = [
                {"type": "pid"},
                *(
                    {"type": kind, "path": f"/proc/{other.pid}/ns/{name}"}
                    for kind, name in (("mount", "mnt"), ("uts", "uts"))
                ),
            ]
            box.set("hostname", "joined").shell("hostname; readlink /proc/self/ns/mnt; readlink /proc/self/ns/uts")
            done = box.run()
        finally:
            other.kill()
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.split()[0] == "joined" and str(theirs["mnt"]) in done.stdout and str(theirs["uts"]) in done.stdout
    )
    assert socket.gethostname() != "joined"


def test_domainname_said_twice_is_refused(box):
    box.set("domainname", "lab").set("linux.sysctl", {"kernel.domainname": "other"})
    assert "kernel.domainname" in box.create().stderr and box.left() == []


def test_listening_sockets_are_handed_on(box):
    done = box.shell("echo $LISTEN_FDS $LISTEN_PID").run(env={**os.environ, "LISTEN_FDS": "1"})
    assert done.stdout == "1 1\n"


def test_process_settings_arrive(box):
    box.config["process"].update(
        cwd="/data",
        env=["PATH=/bin", "COLOUR=red"],
        user={"uid": 1000, "gid": 1000, "additionalGids": [5, 7], "umask": 0o077},
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
        oomScoreAdj=321,
        noNewPrivileges=True,
    )
    box.shell(
        "id; pwd; echo $COLOUR $HOME; umask; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; grep NoNewPrivs /proc/self/status"
    )
    lines = box.run().stdout.splitlines()
    assert lines[0] == "uid=1000(ana) gid=1000(ana) groups=5,7"
    assert lines[1:] == ["/data", "red /home/ana", "0077", "100", "200", "321", "NoNewPrivs:\t1"]


def test_user_may_open_its_own_output_again(box):
    box.set("process.user", {"uid": 1000, "gid": 1000})
    assert box.shell("echo ok > /proc/self/fd/1").run().stdout == "ok\n"


def test_each_of_the_five_capability_sets_is_what_was_said(box):
    chown, kill, raw = "CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"
    box.set("process.user", {"uid": 1000, "gid": 1000})
    box.set(
        "process.capabilities",
        {
            "bounding": [chown, kill, raw],
            "permitted": [chown, kill],
            "effective": [chown],
            "inheritable": [kill],
            "ambient": [kill],
        },
    )
    status = dict(line.split(":\t") for line in box.shell("grep ^Cap /proc/self/status").run().stdout.splitlines())
    # exec of a plain program by a user other than 0: permitted and effective are what was ambient.
    assert status == {
        "CapInh": "0000000000000020", "CapPrm": "0000000000000020", "CapEff": "0000000000000020",
        "CapBnd": "0000000000002021", "CapAmb": "0000000000000020",
    }  # fmt: skip


def test_privilege_by_exec_stays_possible_unless_forbidden(box):
    for wanted in (True, False):
        done = box.set("process.noNewPrivileges", wanted).shell("grep NoNewPrivs /proc/self/status").run()
        assert done.stdout.split() == ["NoNewPrivs:", str(int(wanted))]


def test_personality_is_the_configs_for_a_further_process_too(box):
    machine = os.uname().machine
    box.set("linux.personality", {"domain": "LINUX32"}).shell("uname -m; sleep 100").create()
    box("start", box.id)
    wait_for(lambda: box.output())
    assert box.output().strip() == box("exec", box.id, "uname", "-m").stdout.strip() != machine
    box.delete()
    assert box.set("linux.personality", {"domain": "LINUX"}).shell("uname -m").run().stdout.strip() == machine


@pytest.mark.parametrize("no_new_privs", [True, False])
def test_seccomp_listener_gets_the_fd_and_the_state_and_decides(box, no_new_privs):
    path, listener = _console(box)
    words = {**NOTIFY, "listenerPath": path, "listenerMetadata": "mine"}
    box.set("process.noNewPrivileges", no_new_privs).set("linux.seccomp", words)
    box.shell("mkdir /data/x; sleep 100").create()
    with listener, listener.accept()[0] as peer:
        message, (fd,), _, _ = socket.recv_fds(peer, 1 << 16, 2)
    told = json.loads(message)
    assert told["fds"] == ["seccompFd"] and told["metadata"] == "mine" and told["pid"] == box.state()["pid"]
    assert (told["state"]["id"], told["state"]["status"], told["state"]["pid"]) == ("box", "creating", told["pid"])
    box("start", box.id)
    SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND = 0xC0502100, 0xC0182101
    request = bytearray(80)
    fcntl.ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, request)
    fcntl.ioctl(
        fd,
        SECCOMP_IOCTL_NOTIF_SEND,
        bytearray(struct.pack("=QqiI", *struct.unpack_from("Q", request), 0, -errno.EXDEV, 0)),
    )
    os.close(fd)
    wait_for(lambda: "ross-device" in (box.folder / "err").read_text())


@pytest.mark.parametrize("no_new_privs", [True, False])
def test_seccomp_profile_of_the_config_is_on(box, no_new_privs):
    box.set("process.noNewPrivileges", no_new_privs)
    rule = {"names": ["mkdir", "mkdirat", "close_range"], "action": "SCMP_ACT_ERRNO", "errnoRet": 16}
    box.set(
        "linux.seccomp",
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": [rule]},
    )
    done = box.shell("grep Seccomp: /proc/self/status; mkdir /data/x").run()
    assert done.stdout.split() == ["Seccomp:", "2"]
    assert "Resource busy" in done.stderr or "Device or resource busy" in done.stderr
    box.create()
    box("start", box.id)


@pytest.mark.parametrize("no_new_privs", [True, False])
def test_a_hook_in_the_container_is_under_its_filter(box, no_new_privs):
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL"}
    box.set("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    box.config["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "exec mkdir /tmp/hooked"]}]}
    box.config["process"]["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    done = box.set("process.noNewPrivileges", no_new_privs).run()
    assert done.returncode and "startContainer hook failed with signal: bad system call" in done.stderr


def test_two_values_for_one_argument_mean_either(box):
    either = [{"index": 0, "value": number, "op": "SCMP_CMP_EQ"} for number in (0o22, 0o27)]
    words = {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": either}
    box.set("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [words]})
    # A umask that can't be set says nothing: it is as it was.
    done = box.shell("for mask in 0022 0027 0077; do umask 0000; umask $mask; umask; done").run()
    assert done.stdout.split() == ["0000", "0000", "0077"], done.stderr


def test_seccomp_filter_holds_an_exec_too(box):
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    box.set("process.noNewPrivileges", False).set(
        "linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    )
    box.shell("sleep 100").create()
    box("start", box.id)
    assert "not permitted" in box("exec", box.id, "mkdir", "/data/x").stderr


def test_created_one_holds_nothing_that_its_caller_had_open(box):
    read, write = os.pipe()
    os.set_inheritable(write, True)
    box.shell("true").create(close_fds=False)
    os.close(write)
    os.set_blocking(read, False)
    assert os.read(read, 1) == b"", "the pipe has an end before `start`"
    os.close(read)
    assert box("start", box.id).returncode == 0


def test_fds_are_preserved_and_no_others(box):
    box.shell("echo three >&3; ls /proc/self/fd").write()
    with open(box.folder / "out", "wb") as out:
        command = box.command("run", "--bundle", box.folder, "--preserve-fds", "1", box.id)
        script = f"exec 3>{box.folder}/three 4</dev/null; exec {' '.join(map(str, command))}"
        assert subprocess.run(["sh", "-c", script], stdout=out, stdin=subprocess.DEVNULL, timeout=30).returncode == 0
    assert (box.folder / "three").read_text() == "three\n"
    # 4 is `ls` itself, reading the folder
    assert box.output().split() == ["0", "1", "2", "3", "4"]


# ---- namespaces ----


def test_an_apparmor_profile_is_taken_on_by_the_program_and_by_one_that_comes_in_later(box):
    if not Path("/sys/kernel/security/apparmor").exists():
        pytest.skip("this kernel has no AppArmor: that a profile is refused by name is tested above")
    box.set("process.apparmorProfile", "unconfined").set(
        "process.args", ["sleep", "60"]
    )  # the one that is loaded everywhere
    assert box.create().returncode == 0
    assert box("start", box.id).returncode == 0
    process = box.config["process"] | {"args": ["cat", "/proc/self/attr/current"]}
    (box.folder / "process.json").write_text(json.dumps(process))
    done = box("exec", "--process", box.folder / "process.json", box.id)
    assert (done.returncode, done.stdout.strip()) == (0, "unconfined"), done.stderr
    process["apparmorProfile"] = "nosuch-profile"
    (box.folder / "process.json").write_text(json.dumps(process))
    done = box("exec", "--process", box.folder / "process.json", box.id)
    assert done.returncode and "AppArmor profile nosuch-profile is not loaded" in done.stderr
    box.delete()


def test_sysctls_are_written_in_the_containers_own_namespaces(box):
    before = Path("/proc/sys/kernel/msgmax").read_text(), Path("/proc/sys/net/ipv4/ip_default_ttl").read_text()
    box.set("linux.sysctl", {"kernel.msgmax": "1234", "net.ipv4.ip_default_ttl": "33"})
    assert box.shell("cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_default_ttl").run().stdout.split() == [
        "1234",
        "33",
    ]
    assert before == (
        Path("/proc/sys/kernel/msgmax").read_text(),
        Path("/proc/sys/net/ipv4/ip_default_ttl").read_text(),
    )


def test_sysctl_of_a_namespace_that_is_the_hosts_is_refused(box):
    box.config["linux"]["namespaces"] = [{"type": "mount"}, {"type": "pid"}]
    done = box.set("linux.sysctl", {"net.ipv4.ip_forward": "1"}).set("hostname", "").create()
    assert done.returncode == 1 and "no net namespace of its own" in done.stderr


def test_hostname_without_a_uts_namespace_is_refused(box):
    box.config["linux"]["namespaces"] = [{"type": "mount"}]
    done = box.create()
    assert done.returncode == 1 and "would rename the host" in done.stderr


def test_namespaces_are_joined_by_path(box, tmp_path, rootfs):
    box.shell("sleep 100").create()
    pid = box.state()["pid"]
    other = Bundle(tmp_path / "other", rootfs, "other")
    other.config["linux"]["namespaces"] = [
        {"type": "mount"}, {"type": "cgroup"},
        *({"type": name, "path": f"/proc/{pid}/ns/{file}"} for name, file in (("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid"))),
    ]  # fmt: skip
    done = (
        other.set("hostname", "")
        .shell("for k in net ipc uts pid mnt; do readlink /proc/self/ns/$k; done; echo $$")
        .run()
    )
    lines = done.stdout.split()
    assert done.returncode == 0, done.stderr
    assert lines[:4] == [f"{kind}:[{proc.namespace(pid, kind)}]" for kind in ("net", "ipc", "uts", "pid")]
    assert lines[4] != f"mnt:[{proc.namespace(pid, 'mnt')}]"
    assert lines[5] != "1", "another process is PID 1 in there"
    assert other.left() == []


def test_user_namespace_maps_ids_and_may_join_a_hosts_namespace(box, tmp_path, reachable):
    box.shell("sleep 100").create()
    pid = box.state()["pid"]
    other = Bundle(tmp_path / "other", make_rootfs(reachable / "rootfs"), "other")
    other.config["linux"]["namespaces"] = [
        {"type": "mount"}, {"type": "pid"}, {"type": "user"}, {"type": "uts"}, {"type": "ipc"},
        {"type": "network", "path": f"/proc/{pid}/ns/net"},
    ]  # fmt: skip
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    other.set("linux.uidMappings", mapping).set("linux.gidMappings", mapping)
    # sysfs belongs to the network namespace, and that is another user namespace's.
    other.config["mounts"] = [one for one in other.config["mounts"] if one["type"] not in ("sysfs", "cgroup")]
    other.shell(
        "id; cat /proc/self/uid_map; readlink /proc/self/ns/net; touch /tmp/mine || echo no; echo ok > /proc/self/fd/2"
    )
    done = other.run()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("uid=0(root)")
    assert lines[1].split() == ["0", "100000", "65536"]
    assert lines[2] == f"net:[{proc.namespace(pid, 'net')}]"


def test_a_network_of_another_owner_than_the_user_namespace_is_joined_with_it(box, tmp_path, reachable):
    root = make_rootfs(reachable / "root")
    holder = Bundle(tmp_path / "holder", root, "holder")
    holder.config["linux"]["namespaces"].append({"type": "user"})
    holder.set("linux.uidMappings", MAPS).set("linux.gidMappings", MAPS).shell("sleep 100").create()
    box.shell("sleep 100").create()
    both = Bundle(tmp_path / "both", root, "both")
    users, net = f"/proc/{holder.state()['pid']}/ns/user", f"/proc/{box.state()['pid']}/ns/net"
    both.config["linux"]["namespaces"] = [
        *({"type": kind} for kind in ("mount", "pid", "uts", "ipc")),
        {"type": "user", "path": users},
        {"type": "network", "path": net},
    ]
    both.config["mounts"] = [one for one in both.config["mounts"] if one["type"] not in ("sysfs", "cgroup")]
    wanted = os.readlink(users) + "\n" + os.readlink(net) + "\n"
    look = "readlink /proc/self/ns/user; readlink /proc/self/ns/net"
    try:
        assert both.shell(f"{look}; sleep 100").create().returncode == 0, both.output()
        both("start", "both")
        assert both("exec", "both", "sh", "-c", look).stdout == wanted
    finally:
        both.delete()
        holder.delete()


def test_files_of_an_idmapped_bind_belong_to_others(box, tmp_path):
    share = tmp_path / "share"
    (share / "below").mkdir(parents=True)
    for number, name in ((0, "zero"), (5, "five"), (70000, "far")):
        (share / name).touch()
        os.chown(share / name, number, number)
    maps = {"uidMappings": MAPS, "gidMappings": [{"containerID": 0, "hostID": 200000, "size": 65536}]}
    box.config["mounts"] += [
        {"destination": "data/a", "source": str(share), "options": ["bind", "idmap"], **maps},
        {"destination": "/data/b", "source": str(share), "options": ["rbind", "ridmap"], **maps},
        {"destination": "/data/c", "source": str(share), "options": ["bind"]},
    ]
    box.shell("cd /data; stat -c %u:%g a/zero a/five a/far b/five c/five; touch c/mine && echo still mine")
    done = box.run()
    nobody = f"{Path('/proc/sys/kernel/overflowuid').read_text().strip()}:65534"
    assert done.stdout.split("\n")[:-1] == [
        "100000:200000",
        "100005:200005",
        nobody,
        "100005:200005",
        "5:5",
        "still mine",
    ]


def test_idmap_takes_the_ids_of_a_user_namespace_that_is_joined(box, tmp_path, reachable):
    root = make_rootfs(reachable / "root")
    (reachable / "share").mkdir()
    (reachable / "share/five").touch()
    os.chown(reachable / "share/five", 5, 6)
    holder = Bundle(tmp_path / "holder", root, "holder")
    holder.config["linux"]["namespaces"].append({"type": "user"})
    holder.set("linux.uidMappings", MAPS).set("linux.gidMappings", MAPS).shell("sleep 100").create()
    try:
        box.config["root"]["path"] = str(root)
        box.config["linux"]["namespaces"].append({"type": "user", "path": f"/proc/{holder.state()['pid']}/ns/user"})
        mount = {"destination": "/data", "source": str(reachable / "share"), "options": ["bind", "idmap"]}
        box.config["mounts"].append(mount)
        done = box.shell("stat -c %u:%g /data/five").run()
    finally:
        holder.delete()
    assert done.stdout == "5:6\n", done.stderr


@pytest.mark.parametrize("own_users", [False, True])
@pytest.mark.parametrize("option", ["rbind", "idmap"])
def test_source_of_a_bind_may_be_what_was_mounted_before_it(box, reachable, option, own_users):
    root = make_rootfs(reachable / "root")
    (reachable / "share").mkdir()
    (reachable / "share/word").touch()
    subprocess.run(["chown", "-Rh", "100000:100000" if own_users else "0:0", reachable], check=True)
    maps = {"uidMappings": MAPS, "gidMappings": MAPS}
    if own_users:
        box.config["linux"]["namespaces"].append({"type": "user"})
        box.config["linux"].update(maps)
    box.config["root"]["path"] = str(root)
    box.config["mounts"] += [
        {"destination": "/data/a", "source": str(reachable / "share"), "options": ["rbind"]},
        {
            "destination": "/data/b",
            "source": f"{root}/data/a",
            "options": ["rbind", option],
            **(maps if option == "idmap" else {}),
        },
    ]
    done = box.shell("stat -c %u /data/b/word").run()
    nobody = Path("/proc/sys/kernel/overflowuid").read_text().strip()
    # A file of 100000 outside is 0 inside; shown under ids that begin there, it is that much further.
    wanted = {(False, "rbind"): "0", (True, "rbind"): "0", (False, "idmap"): "100000", (True, "idmap"): nobody}
    assert done.stdout.strip() == wanted[own_users, option], done.stderr


def test_link_of_the_host_becomes_the_containers_with_what_it_has(box):
    if shutil.which("ip") is None:
        pytest.skip("no ip(8)")
    name = f"lo{os.getpid() % 100000}"
    ip = functools.partial(subprocess.run, check=True)
    ip(["ip", "link", "add", name, "mtu", "1789", "type", "veth", "peer", "name", f"{name}p"])
    try:
        ip(["ip", "address", "add", "192.0.2.77/32", "dev", name])
        ip(["ip", "address", "add", "192.0.2.78/32", "scope", "host", "dev", name])
        box.set("linux.netDevices", {name: {"name": "inside%d"}}).shell("ip address show dev inside0")
        said = box.run()
        assert "mtu 1789" in said.stdout and "192.0.2.77/32" in said.stdout and ",UP" in said.stdout, said.stderr
        assert "192.0.2.78" not in said.stdout
        box.config["linux"]["namespaces"] = [
            one for one in box.config["linux"]["namespaces"] if one["type"] != "network"
        ]
        assert "without a network namespace" in box.run().stderr
    finally:
        subprocess.run(["ip", "link", "del", f"{name}p"], stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("joined", [False, True], ids=["all its own", "beside a network that is joined"])
def test_what_only_the_host_may_reach_can_be_bound_into_a_user_namespace(tmp_path, reachable, joined):
    """Podman 5 keeps /etc/hosts of such a container in a folder that is another user's, and shut to all others."""
    shut = reachable / "shut"
    shut.mkdir(0o700)
    (shut / "hosts").write_text("reached")
    os.chown(shut, 300000, 300000)
    box = Bundle(tmp_path / "other", make_rootfs(reachable / "rootfs"), "other")
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    box.set("linux.uidMappings", mapping).set("linux.gidMappings", mapping)
    net = {"type": "network", "path": "/proc/self/ns/net"} if joined else {"type": "network"}
    kinds = ("mount", "pid", "user", "uts", "ipc")
    box.config["linux"]["namespaces"] = [*({"type": kind} for kind in kinds), net]
    box.config["mounts"] = [one for one in box.config["mounts"] if one["type"] not in ("sysfs", "cgroup")]
    bind = {"destination": "/hosts", "source": str(shut / "hosts"), "options": ["bind", "rprivate"]}
    box.config["mounts"].append(bind)
    (reachable / "rootfs" / "hosts").touch()
    done = box.shell("cat /hosts").run()
    assert (done.returncode, done.stdout) == (0, "reached"), done.stderr


# ---- mounts ----


def test_a_word_with_an_r_is_for_every_mount_of_the_tree(box, tmp_path):
    (tmp_path / "share/below").mkdir(parents=True)
    inside = f'mount -t tmpfs -o noatime x {tmp_path}/share/below && exec $0 "$@"'
    words = {
        "/data/a": ["rnoatime", "relatime"],
        "/data/b": ["rstrictatime"],
        "/data/c": ["rnosuid", "rnorelatime", "rro"],
    }
    for target, options in words.items():
        mount = {"destination": target, "source": str(tmp_path / "share"), "options": ["rbind", *options]}
        box.config["mounts"].append(mount)
    box.write().shell("cat /proc/self/mountinfo").write()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside, *box.command("run", "--bundle", box.folder, box.id)],
        capture_output=True,
        text=True,
    )
    found = {mount.target: set(mount.options) for mount in proc.parse_mounts(done.stdout)}
    assert found["/data/a"] == {"rw", "relatime"} and found["/data/a/below"] == {"rw", "noatime"}, done.stderr
    assert found["/data/b"] == found["/data/b/below"] == {"rw"}
    assert found["/data/c"] == found["/data/c/below"] == {"ro", "nosuid", "relatime"}


def test_mount_options_become_what_mountinfo_shows(box, tmp_path):
    (tmp_path / "share").mkdir()
    cases = {
        "/data/a": (["rbind", "ro", "nosuid", "nodev", "noexec"], {"ro", "nosuid", "nodev", "noexec"}),
        "/data/b": (["bind", "ro", "rw", "noatime"], {"rw", "noatime"}),
        "/data/c": (["bind", "nosymfollow", "nodiratime", "strictatime"], {"rw", "nosymfollow", "nodiratime"}),
    }
    for target, (options, _) in cases.items():
        box.config["mounts"].append(
            {"destination": target, "source": str(tmp_path / "share"), "type": "bind", "options": options}
        )
    box.config["mounts"].append(
        {
            "destination": "/data/t",
            "type": "tmpfs",
            "source": "mine",
            "options": ["size=64k", "mode=700", "nosuid", "relatime"],
        }
    )
    found = {mount.target: mount for mount in proc.parse_mounts(box.shell("cat /proc/self/mountinfo").run().stdout)}
    above = max((one for one in proc.mounts() if str(tmp_path).startswith(one.target)), key=lambda one: len(one.target))
    kept = {"relatime", "noatime"} & set(above.options)  # what a bind mount takes over from where it is from
    for target, (_, wanted) in cases.items():
        assert set(found[target].options) == wanted | (kept if not wanted & {"noatime", "nodiratime"} else set())
    assert found["/data/t"].source == "mine" and set(found["/data/t"].options) == {"rw", "nosuid", "relatime"}
    assert {"size=64k", "mode=700"} <= set(found["/data/t"].super_options)


def test_recursive_read_only_reaches_a_mount_below(box, tmp_path):
    (tmp_path / "share/below").mkdir(parents=True)
    script = f'mount -t tmpfs x {tmp_path}/share/below; exec "$@"'
    for word, wanted in (("ro", "yes"), ("rro", "no")):
        box.config["mounts"] = [m for m in box.config["mounts"] if m["destination"] != "/data/s"] + [
            {"destination": "/data/s", "source": str(tmp_path / "share"), "options": ["rbind", word]}
        ]
        box.shell("touch /data/s/below/x 2>/dev/null && echo yes || echo no").write()
        command = ["unshare", "-m", "sh", "-c", script, "sh", *box.command("run", "--bundle", box.folder, box.id)]
        assert subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip() == wanted


@pytest.mark.parametrize(
    "spread, comes_in, goes_out", [("rprivate", False, False), ("rslave", True, False), ("rshared", True, True)]
)
def test_later_mounts_come_through_as_the_propagation_says(box, tmp_path, spread, comes_in, goes_out):
    share = tmp_path / "share"
    for name in ("in", "out"):
        (share / name).mkdir(parents=True)
    box.config["mounts"].append({"destination": "/data", "source": str(share), "options": ["rbind", spread]})
    box.set("linux.rootfsPropagation", spread)
    for name in ("bounding", "effective", "permitted"):
        box.config["process"]["capabilities"][name] = ["CAP_SYS_ADMIN"]
    box.set("process.noNewPrivileges", True)
    box.shell(
        "echo up; until test -e /data/go; do sleep .02; done; mount -t tmpfs out /data/out; cat /proc/self/mountinfo; sleep 100"
    ).write()
    # A namespace of our own, with a shared mount in it: the host's stay out of this.
    script = f"""
    mount -t tmpfs share {share}; mkdir {share}/in {share}/out; mount --make-shared {share}
    {" ".join(map(str, box.command("create", "--bundle", box.folder, box.id)))} > {box.folder}/out 2> {box.folder}/err || exit 1
    {" ".join(map(str, box.command("start", box.id)))} || exit 1
    until grep -q up {box.folder}/out; do sleep .02; done
    mount -t tmpfs in {share}/in; touch {share}/go
    until grep -q " - mqueue " {box.folder}/out; do sleep .02; done; sleep .1
    grep -q "out rw" /proc/self/mountinfo && echo goes-out
    """
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=40)
    inside = box.output()
    assert done.returncode in (0, 1) and "up" in inside, done.stderr + (box.folder / "err").read_text()
    assert ("/data/in " in inside) is comes_in
    assert ("goes-out" in done.stdout) is goes_out


def test_tmpcopyup_keeps_what_the_image_has_there(box):
    box.config["mounts"].append(
        {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=1m"]}
    )
    assert "root:x:0:0" in box.shell("cat /etc/passwd; echo x > /etc/new; mount | grep ' /etc '").run().stdout


def test_tmpfs_has_the_images_mode_or_is_everybodys(box, rootfs):
    (rootfs / "data/mine").mkdir(mode=0o751)
    os.chown(rootfs / "data/mine", 5, 6)
    (rootfs / "data/mine/f").touch()
    os.chown(rootfs / "data/mine/f", 7, 8)
    for target, words in (("/data/mine", ["tmpcopyup"]), ("/data/fresh", [])):
        box.config["mounts"].append({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": words})
    done = box.shell("stat -c '%a %u %g' /data/mine /data/mine/f /data/fresh; cat /proc/self/mounts").run()
    shutil.rmtree(rootfs / "data/mine")
    assert done.stdout.splitlines()[:3] == ["751 5 6", "644 7 8", "1777 0 0"]
    # It is the filesystem's own: a remount keeps it.
    assert "mode=751" in next(line for line in done.stdout.splitlines() if " /data/mine " in line)


def test_no_mount_goes_through_a_link_out_of_the_root(box, tmp_path):
    root = make_rootfs(tmp_path / "evil")
    (root / "way").symlink_to("/../../../../../../etc")
    (root / "proc").rmdir()
    (root / "proc").symlink_to("/etc")
    box.config["root"]["path"] = str(root)
    done = box.shell("true").create()
    assert done.returncode == 1 and "symbolic link" in done.stderr
    (root / "proc").unlink()
    (root / "proc").mkdir()
    (tmp_path / "outside").mkdir()
    (root / "data/gone").symlink_to(f"../../../../..{tmp_path}/outside/deep")
    (root / "data/loop").symlink_to("loop/x")
    box.config["mounts"].append({"destination": "/data/gone/er", "type": "tmpfs", "source": "gone"})
    assert " /data/gone" not in (said := box.shell("cat /proc/self/mounts").run().stdout) and "gone " in said
    assert list((tmp_path / "outside").iterdir()) == [] and (root / f".{tmp_path}/outside/deep/er").is_dir()
    box.config["mounts"][-1]["destination"] = "/data/loop/x"
    assert "/data/loop" in box.run().stderr
    box.config["mounts"][-1] = {"destination": f"{root}/data/host", "type": "tmpfs", "source": "said"}
    assert "said /data/host " in box.run().stdout
    box.config["mounts"].append({"destination": "/way/sub", "type": "tmpfs", "source": "x"})
    done = box.shell("ls -d /etc/sub").run()
    assert done.stdout == "/etc/sub\n" and not os.path.exists("/etc/sub"), done.stderr


def test_masked_and_read_only_paths_and_a_read_only_root(box):
    box.set("root.readonly", True)
    box.shell("wc -c < /proc/keys; echo x > /proc/sys/kernel/hostname; touch /x; touch /dev/shm/x && echo shm")
    done = box.run()
    assert done.stdout.split() == ["0", "shm"]
    assert done.stderr.count("Read-only file system") == 2, done.stderr


def test_devices_are_made_with_their_owner_and_mode_and_opened_only_if_allowed(box):
    node = {"path": "/dev/myzero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 0, "gid": 5}
    host = next(path for path in ("/dev/fuse", "/dev/loop-control") if os.path.exists(path))
    major, minor = os.major(os.stat(host).st_rdev), os.minor(os.stat(host).st_rdev)
    box.set(
        "linux.devices", [node, {"path": "/dev/locked", "type": "c", "major": major, "minor": minor, "fileMode": 0o666}]
    )
    box.set("linux.resources.devices", [{"allow": False, "access": "rwm"}])
    done = box.shell("stat -c '%a %g %t:%T' /dev/myzero; head -c 3 /dev/myzero | wc -c; : < /dev/locked").run()
    assert done.stdout.split() == ["640", "5", "1:5", "3"]
    assert "not permitted" in done.stderr
    box.config["linux"]["resources"]["devices"].append(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "r"}
    )
    assert box.shell(": < /dev/locked && echo opened; : > /dev/locked").run().stdout == "opened\n"


def test_a_rule_for_both_types_of_device_is_for_those_numbers_only():
    # `--device-cgroup-rule "a 10:* rw"`; the kernel's v1 would allow all devices for it.
    found = resources.read({"devices": [{"allow": False}, {"allow": True, "type": "a", "major": 10, "access": "rw"}]})
    assert found.rules[:2] == (devices.Rule("c", 10, None, "rw"), devices.Rule("b", 10, None, "rw"))


# ---- terminals ----


def _console(box):
    path = str(box.folder / "console")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    listener.settimeout(20)
    return path, listener


def test_terminal_is_sent_to_the_console_socket(box):
    path, listener = _console(box)
    box.set("process.terminal", True).set("process.consoleSize", {"height": 33, "width": 99})
    box.shell("test -t 0 && test -t 2 && ls -l /dev/console | head -c 1; stty size 2>/dev/null; exec sleep 100")
    done = box.create("--console-socket", path)
    assert done.returncode == 0, done.stderr
    with listener, listener.accept()[0] as peer:
        _, (terminal,), _, _ = socket.recv_fds(peer, 64, 1)
    assert os.get_terminal_size(terminal) == (99, 33)
    box("start", box.id)
    assert os.read(terminal, 64).startswith(b"c")
    os.close(terminal)


def test_terminal_needs_somebody_to_take_it(box):
    done = box.set("process.terminal", True).create()
    assert done.returncode == 1 and "--console-socket" in done.stderr
    box.set("process.terminal", False)
    assert "--console-socket" in box.create("--console-socket", "/x").stderr


# ---- a further process ----


@pytest.fixture
def running(box):
    box.set("process.env", ["PATH=/bin", "COLOUR=red"]).shell("sleep 100").create()
    assert box("start", box.id).returncode == 0
    return box


def test_exec_joins_everything_and_hands_on_the_status(running):
    done = running(
        "exec",
        running.id,
        "sh",
        "-c",
        "for k in mnt uts ipc pid net cgroup; do readlink /proc/self/ns/$k; done; echo $COLOUR; exit 5",
    )
    pid = running.state()["pid"]
    assert done.returncode == 5
    assert done.stdout.split() == [
        *(f"{kind}:[{proc.namespace(pid, kind)}]" for kind in ("mnt", "uts", "ipc", "pid", "net", "cgroup")),
        "red",
    ]


def test_exec_takes_runcs_words(running):
    done = running("exec", "--user", "1000:1000", "--additional-gids", "7", "--env", "COLOUR=blue", "--cwd", "/data", running.id,
                   "sh", "-c", "id; echo $COLOUR; pwd")  # fmt: skip
    assert done.stdout.splitlines() == ["uid=1000(ana) gid=1000(ana) groups=7", "blue", "/data"]
    assert running("exec", running.id, "nonsense").returncode == 255
    missing = running("exec", "nobody", "true")
    assert missing.returncode == 255 and "does not exist" in missing.stderr


def test_exec_goes_before_others_as_its_process_file_says(running):
    process = {
        "args": ["cut", "-d ", "-f19", "/proc/self/stat"],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
    }
    process |= {"scheduler": {"policy": "SCHED_OTHER", "nice": -5}, "ioPriority": {"class": "IOPRIO_CLASS_RT"}}
    (running.folder / "process.json").write_text(json.dumps(process))
    done = running("exec", "--process", running.folder / "process.json", running.id)
    assert done.stdout == "-5\n", done.stderr


def test_exec_of_a_process_file_detached_with_a_terminal(running):
    path, listener = _console(running)
    process = {
        "terminal": True,
        "args": ["sh", "-c", "echo hello; sleep 100"],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
    }
    (running.folder / "process").write_text(json.dumps(process))
    done = running("exec", "--process", running.folder / "process", "--detach", "--pid-file", running.folder / "pid2",
                   "--console-socket", path, running.id)  # fmt: skip
    assert done.returncode == 0, done.stderr
    pid = int((running.folder / "pid2").read_text())
    assert pid in json.loads(running("ps", "--format", "json", running.id).stdout)
    with listener, listener.accept()[0] as peer:
        _, (terminal,), _, _ = socket.recv_fds(peer, 64, 1)
    assert os.read(terminal, 64) == b"hello\r\n"
    os.close(terminal)
    assert "sleep 100" in running("ps", running.id).stdout


def test_exec_of_a_process_from_a_pipe(running):
    process = {"args": ["id"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 1000, "gid": 5, "additionalGids": [7]}}
    script = (
        f"{' '.join(running.command('exec', '--process', '/dev/fd/3', running.id))} 3< <(echo '{json.dumps(process)}')"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.stdout == "uid=1000(ana) gid=5 groups=7\n", done.stderr


def test_exec_goes_to_a_folder_that_is_not_its_users(running, rootfs):
    (rootfs / "data/shut").mkdir(0o700)
    os.chown(rootfs / "data/shut", 42, 42)
    done = running("exec", "--cwd", "/data/shut", running.id, "sh", "-c", "pwd")
    shutil.rmtree(rootfs / "data/shut")
    assert done.stdout == "/data/shut\n", done.stderr


def test_exec_is_on_the_cpus_that_its_process_names(running):
    process = {"cwd": "/", "env": ["PATH=/bin"], "args": ["grep", "Cpus_allowed_list", "/proc/self/status"]}
    every = running("exec", running.id, *process["args"]).stdout.split()[1]
    last = max(os.sched_getaffinity(0))
    for words, wanted in (({"initial": "0", "final": str(last)}, str(last)), ({"final": "0"}, "0"), ({}, every)):
        (running.folder / "process").write_text(json.dumps({**process, "execCPUAffinity": words}))
        bound = subprocess.run(
            ["taskset", "-c", "0", *running.command("exec", "--process", running.folder / "process", running.id)],
            capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert bound.stdout.split()[1:] == [wanted], bound.stderr
    (running.folder / "process").write_text(json.dumps({**process, "execCPUAffinity": {"final": "many"}}))
    assert "execCPUAffinity.final" in running("exec", "--process", running.folder / "process", running.id).stderr


@pytest.mark.skipif(not os.path.isdir("/sys/kernel/mm/hugepages/hugepages-2048kB"), reason="no huge pages of 2 MiB")
def test_huge_pages_are_limited_where_the_kernel_counts_them(box):
    if not any("hugetlb" in tree.offered() for tree in cgroup.cgroupfs.trees() if tree.version == 2):
        pytest.skip("hugetlb is not in the v2 tree")
    box.set("linux.resources.hugepageLimits", [{"pageSize": "2MB", "limit": 4 << 20}]).shell("sleep 100").create()
    folder = Path(json.loads((box.root / box.id / "state.json").read_text())["cgroup"][-1])
    assert (folder / "hugetlb.2MB.max").read_text() == (folder / "hugetlb.2MB.rsvd.max").read_text() == "4194304\n"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"hugepageLimits": [{"pageSize": "2MB/../x", "limit": 1}]}, "hugepageLimits: pageSize '2MB/../x'"),
        ({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}, "hugepageLimits 3MB: "),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": -1}]}, "hugepageLimits 2MB: limit -1 is no number"),
        ({"rdma": {"mlx5_1": {"hcaHandles": 3}}}, "linux.resources.rdma: this machine has no rdma controller"),
        ({"rdma": {"mlx5_1 x": {"hcaHandles": 3}}}, "linux.resources.rdma: 'mlx5_1 x' is no device's name"),
        ({"rdma": {"mlx5_1": {"hcaObjects": True}}}, "rdma.mlx5_1.hcaObjects must be a whole number"),
    ],
)
def test_a_rare_limit_that_cannot_be_is_refused_by_name(box, words, why):
    done = box.set("linux.resources", words).create()
    assert done.returncode == 1
    assert why in done.stderr
    assert box.left() == []


def test_exec_in_one_that_does_not_run_is_refused(box):
    box.run("--keep")
    assert "not running" in box("exec", box.id, "true").stderr


def test_pause_and_resume(running):
    assert running("pause", running.id).returncode == 0
    assert running.state()["status"] == "paused"
    assert "paused" in running("exec", running.id, "true").stderr
    assert running("resume", running.id).returncode == 0
    assert running.state()["status"] == "running"


# ---- the cgroup ----


def test_resources_are_what_the_cgroup_says(box):
    box.set("linux.resources.memory", {"limit": 32 << 20}).set("linux.resources.pids", {"limit": 77})
    box.set("linux.resources.cpu", {"quota": 25_000, "period": 50_000, "shares": 512, "cpus": "0"})
    box.shell("sleep 100").create()
    group = lifecycle.Box(box.root, box.id).cgroup()
    assert int(group.read("memory.max")) == 32 << 20
    assert group.read("pids.max").strip() == "77"
    quota = (
        group.read("cpu.max")
        if group.version("cpu") == 2
        else group.read("cpu.cfs_quota_us") + group.read("cpu.cfs_period_us")
    )
    assert quota.split() == ["25000", "50000"]
    assert group.read("cpuset.cpus").strip() == "0"
    if group.version("cpu") == 1:
        assert group.read("cpu.shares").strip() == "512"
    assert box.state()["pid"] in group.procs()
    assert box("update", "--pids-limit", "88", box.id).returncode == 0
    assert group.read("pids.max").strip() == "88"
    assert box("update", "--memory", "50M", box.id).returncode == 0
    assert int(group.read("memory.max")) == 50 << 20
    assert "--memory" in box("update", "--memory", "50X", box.id).stderr


def test_more_can_be_mounted_among_the_cgroup_trees_of_v1_and_they_stay_read_only(box, tmp_path):
    (tmp_path / "there").touch()
    if cgroup.cgroupfs.trees()[0].version == 2:
        pytest.skip("cgroup v2 is one tree: there is no folder for another mount in it")
    bind = {"destination": "/sys/fs/cgroup/more", "source": str(tmp_path), "options": ["bind"]}
    box.config["mounts"].append(bind)
    done = box.shell("ls /sys/fs/cgroup/more; mkdir /sys/fs/cgroup/x").run()
    assert "there" in done.stdout.split() and "Read-only" in done.stderr


def test_an_empty_mount_option_is_none(box):
    # `podman run --systemd always` has one.
    mount = {"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["rw", "tmpcopyup", ""]}
    box.config["mounts"].append(mount)
    assert box.shell("grep ' /data ' /proc/mounts").run().stdout.startswith("tmpfs /data tmpfs rw")


def test_a_memory_limit_alone_leaves_swap_free(box):
    # How `--memory-swap -1` comes from Docker and Podman: as nothing.
    box.set("linux.resources.memory", {"limit": 32 << 20}).shell("sleep 100").create()
    group = lifecycle.Box(box.root, box.id).cgroup()
    name = "memory.memsw.limit_in_bytes" if group.version("memory") == 1 else "memory.swap.max"
    try:
        swap = group.read(name).strip()
    except Unsupported as error:
        pytest.skip(f"this kernel does not count swap: {error.message}")
    assert swap == "max" or int(swap) > 1 << 50


def test_update_takes_every_word_and_what_is_not_said_stays(box):
    box.set("linux.resources.memory", {"limit": 32 << 20}).set("linux.resources.cpu", {"quota": 50_000})
    box.shell("sleep 100").create()
    group = lifecycle.Box(box.root, box.id).cgroup()
    v1 = group.version("cpu") == 1

    def quota():
        return group.read("cpu.cfs_quota_us").strip() if v1 else group.read("cpu.max").split()[0]

    assert box("update", "--cpu-period", "200000", "--cpu-burst", "1000", box.id).returncode == 0
    assert quota() == "50000" and int(group.read("cpu.max.burst")) == 1000
    assert box("update", "--cpu-burst", "0", box.id).returncode == 0
    assert int(group.read("cpu.max.burst")) == 0
    assert "more than the quota" in box("update", "--cpu-burst", "60000", box.id).stderr
    assert box("update", "--memory-swap", "-1", "--memory-reservation", "8M", box.id).returncode == 0
    assert int(group.read("memory.max")) == 32 << 20 and int(group.read("memory.low")) == 8 << 20
    for number, wanted in (("-1", "max"), ("40", "40"), ("0", "1")):
        assert box("update", "--pids-limit", number, box.id).returncode == 0
        assert group.read("pids.max").strip() == wanted
    done = subprocess.run(
        box.command("update", "--resources", "-", box.id), capture_output=True, text=True, timeout=30,
        input=json.dumps({"cpu": {"idle": 1, "cpus": "0", "mems": "0"}, "pids": {"limit": 0}, "memory": {"kernel": 9}, "tea": {}}),
    )  # fmt: skip
    assert done.returncode == 0 and "memory.kernel is ignored" in done.stderr and "resources.tea" in done.stderr
    assert group.read("cpu.idle").strip() == "1" and group.read("cpuset.cpus").strip() == "0"
    assert group.read("pids.max").strip() == "1" and quota() == "50000"
    box("kill", box.id, "KILL")
    wait_for(lambda: box.state()["status"] == "stopped")
    assert "not running" in box("update", "--memory", "1g", box.id).stderr


def test_real_time_is_given_through_the_folders_above_where_the_kernel_has_it(box):
    box.set("linux.cgroupsPath", f"{state.label()}/deep/er").set("linux.resources.cpu", {"realtimeRuntime": 2000})
    box.set("process.scheduler", {"policy": "SCHED_FIFO", "priority": 1}).shell(
        "cut -d' ' -f41 /proc/self/stat"
    ).write()
    done = box.run()
    try:
        group = cgroup.Cgroup.at(f"{state.label()}/deep")
        if group.version("cpu") == 2 or not (group.path("cpu") / "cpu.rt_runtime_us").exists():
            assert done.returncode and "realtimeRuntime" in done.stderr
            return
        assert done.stdout == "1\n", done.stderr
        # More than the parent has is refused, and by name.
        done = box.set("linux.resources.cpu", {"realtimeRuntime": 990_000}).run()
        assert done.returncode and "cpu.rt_runtime_us" in done.stderr
    finally:
        for folder in group.folders:
            cgroup.emptying.remove_tree(str(folder.path))


def test_events_tell_what_its_cgroup_counts(running):
    event = json.loads(running("events", "--stats", running.id).stdout)
    assert (event["type"], event["id"]) == ("stats", running.id)
    data, group = event["data"], lifecycle.Box(running.root, running.id).cgroup()
    assert data["pids"]["current"] == len(group.procs()) and data["cpu"]["usage"]["total"] > 0
    assert 0 < data["memory"]["usage"]["usage"] <= data["memory"]["usage"]["max"]
    assert data["cpuset"]["mems"] == [0] and {"hugetlb", "blkio", "intel_rdt", "network_interfaces"} <= set(data)
    running("update", "--memory", "16M", running.id)
    words = running.command("events", "--interval", "100ms", running.id)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watching:
        assert json.loads(watching.stdout.readline())["data"]["memory"]["usage"]["limit"] == 16 << 20
        running("exec", running.id, "sh", "-c", "x=$(head -c 64m /dev/zero | tr '\\0' x)")
        told = [
            json.loads(line)
            for line in iter(watching.stdout.readline, "")
            if '"oom"' in line or running("kill", running.id, "KILL")
        ]
        assert {"type": "oom", "id": running.id} in told
        assert watching.wait(20) == 0, "it ends with its container"
    assert "no time" in running("events", "--interval", "soon", running.id).stderr


def test_kill_0_sends_nothing_and_tells_whether_it_lives(running):
    assert running("kill", running.id, "0").returncode == 0
    assert running.state()["status"] == "running"
    assert running("kill", running.id, "KILL").returncode == 0
    wait_for(lambda: running.state()["status"] == "stopped")
    assert running("kill", running.id, "0").returncode == 1


@pytest.mark.parametrize(
    "number, good", [("a+b_c.d-e", True), ("_x", True), ("..", False), ("a/b", False), ("", False)]
)
def test_an_id_is_what_runc_takes(number, good):
    if good:
        assert lifecycle.check_id(number) == number
        return
    with pytest.raises(BadValue, match="container id"):
        lifecycle.check_id(number)


def test_cgroups_path_is_where_the_processes_are_and_goes_with_the_container(box):
    name = f"{state.label()}/deep/er"
    box.set("linux.cgroupsPath", name).shell("sleep 100").create()
    pid = box.state()["pid"]
    paths = [path for path in proc.cgroups(pid).values() if path.endswith(name)]
    assert paths
    group = lifecycle.Box(box.root, box.id).cgroup()
    folders = [folder.path for folder in group.folders]
    box.delete()
    assert not any(folder.exists() for folder in folders)
    for folder in folders:  # what is above it is its caller's
        cgroup.emptying.remove_tree(str(folder.parent))


def test_who_comes_second_into_a_cgroup_ends_nobody_there(box):
    name = f"{state.label()}/shared-by-two"
    box.set("linux.cgroupsPath", name).shell("sleep 100").create()
    second = box("create", "--bundle", box.folder, "second")
    assert second.returncode == 1 and "not empty" in second.stderr
    assert box.state()["status"] == "created"


def test_a_frozen_cgroup_is_refused_and_nothing_hangs_in_it(box):
    if not (trees := [tree for tree in cgroup.cgroupfs.trees() if tree.version == 2 or "freezer" in tree.controllers]):
        pytest.skip("no freezer here")
    above = cgroup.cgroupfs.place(trees[-1], f"{state.label()}/icy")
    above.mkdir(parents=True)
    file, cold, warm = ("cgroup.freeze", "1", "0") if trees[-1].version == 2 else ("freezer.state", "FROZEN", "THAWED")
    try:
        (above / file).write_text(cold)
        done = box.set("linux.cgroupsPath", f"{state.label()}/icy/{box.id}").run()
        assert done.returncode == 1 and f"unexpectedly frozen: {above}" in done.stderr
    finally:
        (above / file).write_text(warm)
        cgroup.cgroupfs.remove_tree(str(above))


def test_one_that_somebody_froze_in_a_freezer_of_his_own_can_be_deleted(box):
    tree = next((one for one in cgroup.cgroupfs.hierarchies.hierarchies() if one.controllers == ("freezer",)), None)
    if tree is None or tree.version == 2:
        pytest.skip("no v1 freezer here")
    box.shell("sleep 100").create()
    box("start", box.id)
    other = cgroup.cgroupfs.place(tree, f"/{state.label()}-cold")
    other.mkdir()
    try:
        (other / "tasks").write_text(str(box.state()["pid"]))
        (other / "freezer.state").write_text("FROZEN")
        done = box("delete", "--force", box.id)
        assert done.returncode == 0, done.stderr
    finally:
        (other / "freezer.state").write_text("THAWED")
        box.delete()
        cgroup.cgroupfs.remove_tree(str(other))


def test_parent_made_by_somebody_else_may_be_bare(box):
    places = [cgroup.cgroupfs.place(tree, f"{state.label()}/pod") for tree in cgroup.cgroupfs.trees()]
    for place in places:
        place.mkdir(parents=True)
    try:
        done = box.set("linux.cgroupsPath", f"{state.label()}/pod/{box.id}").run()
    finally:
        for place in places:
            cgroup.emptying.remove_tree(str(place))
    assert done.returncode == 0, done.stderr


def test_resources_are_translated_word_by_word():
    found = resources.read(
        {
            "memory": {"limit": 100 << 20, "swap": 150 << 20, "reservation": 50 << 20},
            "cpu": {"shares": 2048, "period": 50_000, "mems": "0"},
            "pids": {"limit": -1},
            "blockIO": {
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}],
                "weightDevice": [{"major": 8, "minor": 0, "weight": 444}, {"major": 8, "minor": 1, "weight": None}],
            },
            "devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            ],
            "unified": {"memory.high": "1000000"},
        }
    )
    assert found.limits == limits.Limits(
        memory=100 << 20, memory_swap=50 << 20, memory_low=50 << 20, cpu_quota=-1, cpu_period=50_000, cpu_weight=200, pids=-1,
        io=(limits.IoLimit("8:0", rbps=1024),),
    )  # fmt: skip
    assert [name for name, _, _ in found.files] == ["cpuset.mems", "memory.high"]
    assert found.disk_weights == ("8:0 444",)
    assert str(found.rules[0]) == "c 10:229 rw", "the config's own come first, as v1 lists them"
    assert resources.read({"memory": {"kernelTCP": 1 << 24}}).tcp == 1 << 24
    assert resources.read({"devices": [{"allow": True, "access": "rwm"}]}).rules is None
    with pytest.raises(errors.Unsupported, match="takes back"):
        resources.read(
            {"devices": [{"allow": True, "access": "rwm"}, {"allow": False, "type": "c", "major": 1, "minor": 3}]}
        )


def test_lab_clean_takes_away_what_was_forgotten(tmp_path, rootfs, monkeypatch):
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / "labkit-root"))
    box = Bundle(tmp_path / "bundle", rootfs)
    box.root = lifecycle.default_root()
    box.shell("sleep 100").create()
    pid = box.state()["pid"]
    assert [entry.kind for entry in ledger.entries()] == ["oci"]
    assert ledger.clean()[1], "its process lives, so it is kept"
    ledger.clean(everything=True)
    assert ledger.entries() == [] and box.left() == []
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or proc.stat_fields(pid)[0] == "Z")


# ---- small things ----


def test_features_names_what_there_is(box):
    words = json.loads(box("features").stdout)
    assert words["hooks"] == list(hooks.NAMES)
    assert set(words["linux"]["namespaces"]) == set(bundle.KINDS)
    assert "rro" in words["mountOptions"] and "SCMP_ACT_ERRNO" in words["linux"]["seccomp"]["actions"]
    assert "MPOL_BIND" in words["linux"]["memoryPolicy"]["modes"] and words["linux"]["netDevices"] == {"enabled": True}
    assert words["linux"]["mountExtensions"]["idmap"] == {"enabled": True}
    assert "SECCOMP_FILTER_FLAG_LOG" in words["linux"]["seccomp"]["supportedFlags"]


def test_list_shows_each(running):
    assert running("list", "--quiet").stdout == "box\n"
    assert json.loads(running("list", "--format", "json").stdout)[0]["status"] == "running"


def test_options_of_a_mount_are_parsed_once_and_completely():
    found = mount_options.parse(["rbind", "ro", "nosuid", "suid", "rslave"])
    assert (found.attrs, found.bind, found.recursive) == (1, True, True)
    assert mount_options.parse(["size=1m", "sync"]).data == ("size=1m", "sync")
    assert sysctls.check("net.core.somaxconn", 5, ("net",)) == ("net.core.somaxconn", "5")
