"""What a container may do: capabilities, syscalls, and the last step before its program."""

import ctypes
import errno
import fcntl
import json
import os
import struct
import subprocess
import sys
import time

import pytest

from labkit import in_child
from labkit.container import spawner
from labkit.container.life import Container, run
from labkit.container.spec import Spec
from labkit.ground import errors, proc, state
from labkit.ground import syscalls as sc
from labkit.ground.errors import BadValue, CommandError, KernelError, LabError, NotFound, Unsupported
from labkit.isolation import last_exec, seccomp, security
from labkit.lessons.beside import engine
from labkit.lessons.checks import locks as check
from labkit.lessons.scenes import inspection
from labkit.lessons.scenes.unlocked import Unlocked


@pytest.fixture(autouse=True)
def _root(needs_root):
    pass


def sh(script, **words):
    return run("busybox", ["sh", "-c", script], show=False, **words)


def status(**words):
    text = sh("cat /proc/self/status", **words).output
    return dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)


# ---- capabilities ----


def test_root_in_a_container_has_dockers_fourteen_capabilities_in_every_set():
    found = status()
    here = proc.process(os.getpid()).cap_bnd
    expected = f"{security.mask(security.DEFAULT) & here:016x}"
    assert {found[name] for name in ("CapPrm", "CapEff", "CapBnd")} == {expected}
    assert {found[name] for name in ("CapInh", "CapAmb")} == {"0" * 16}


def test_what_its_maker_could_hand_down_is_not_handed_down():
    # The bounding set says nothing of the inheritable one, which stays over exec: see CVE-2022-24769.
    words = [sys.executable, "-m", "labkit", "run", "--rm", "busybox", "grep", "CapInh", "/proc/self/status"]
    done = subprocess.run(["setpriv", "--inh-caps", "+chown,+net_admin", *words], capture_output=True, text=True)
    assert done.stdout.split() == ["CapInh:", "0" * 16], done.stderr


def test_a_user_that_is_not_root_has_none_and_can_win_none():
    found = status(user="1000")
    assert {found[name] for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {"0" * 16}
    assert found["NoNewPrivs"] == "1"


@pytest.mark.parametrize(
    "add, drop, expected",
    [
        ((), ("ALL",), 0),
        (("NET_ADMIN",), ("ALL",), security.mask(["NET_ADMIN"])),
        ((), ("cap_chown",), security.mask(security.DEFAULT) & ~security.mask(["CHOWN"])),
    ],
)
def test_capabilities_are_added_and_dropped_one_at_a_time(add, drop, expected):
    assert int(status(cap_add=add, cap_drop=drop)["CapBnd"], 16) == expected & proc.process(os.getpid()).cap_bnd


def test_a_capability_that_does_not_exist_is_refused():
    with pytest.raises(BadValue, match="capability 'FLY'"):
        Spec.make("busybox", "true", cap_add=["FLY"])


def test_a_capability_that_this_machine_lacks_is_named():
    missing = security.names(~proc.process(os.getpid()).cap_bnd & (1 << len(security.CAPABILITIES)) - 1)
    if not missing:
        pytest.skip("this machine's bounding set is complete")
    with pytest.raises(Unsupported, match=missing[0]):
        Spec.make("busybox", "true", cap_add=missing[:1])


def test_a_further_command_gets_no_more_than_the_first():
    with Container("busybox", "sleep 30").start() as box:
        text = box.exec("cat /proc/self/status").output
    found = dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)
    first = status()
    for name in (
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapInh",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
    ):
        assert found[name] == first[name], name


# ---- seccomp ----


def test_the_filter_is_on_by_default_and_off_when_told_so():
    assert status()["Seccomp"] == "2"
    assert status(security_opt=["seccomp=unconfined"])["Seccomp"] == "0"


def _call(name, *arguments):
    """Return the errno of a syscall made under the default filter, 0 if it worked."""
    numbers = seccomp.known()
    program = seccomp.program("default", security.choose())

    def work():
        security.no_new_privs()
        seccomp.install(program)
        call = ctypes.CDLL(None, use_errno=True).syscall
        return ctypes.get_errno() if call(numbers.get(name, name), *arguments) == -1 else 0

    return in_child(work)


# Arguments that no kernel takes: should the filter fail, nothing happens.
@pytest.mark.parametrize(
    "name", ["mount", "unshare", "setns", "keyctl", "bpf", "pivot_root", "io_uring_setup", "userfaultfd"]
)
def test_a_forbidden_syscall_fails_with_eperm(name):
    assert _call(name, -1, -1, -1, -1, -1) == errno.EPERM


def test_new_namespaces_are_forbidden_to_clone_too():
    assert _call("clone", sc.CLONE_NEWUSER | 17, 0, 0, 0, 0) == errno.EPERM


def test_what_the_filter_does_not_know_is_enosys_so_that_programs_fall_back():
    assert _call("clone3", 0, 0) == errno.ENOSYS
    assert _call(max(seccomp.known().values()) + 1) == errno.ENOSYS
    assert _call(2**31 - 1) == errno.ENOSYS


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86-64 has x32 numbers")
def test_the_numbers_of_another_abi_are_no_way_around():
    assert _call(0x40000000 | seccomp.known()["mount"], 0, 0, 0, 0, 0) == errno.ENOSYS


@pytest.mark.parametrize("family, expected", [(38, errno.EPERM), (40, errno.EPERM), (1, 0), (2, 0)])
def test_sockets_but_those_that_reach_past_the_container(family, expected):
    assert _call("socket", family, 1, 0) == expected


def test_ordinary_programs_notice_nothing():
    done = sh(
        "echo a | sed s/a/b/; (sleep 0.01 & wait); mkdir /x; ln -s /x /y; chmod 700 /x; kill -0 $$ && date > /dev/null && echo fine"
    )
    assert done.output == "b\nfine\n" and done.code == 0


def test_a_capability_brings_back_its_syscalls():
    assert "mount" in seccomp.forbidden(security.DEFAULT)
    assert "mount" not in seccomp.forbidden((*security.DEFAULT, "SYS_ADMIN"))
    assert sh("mount -t tmpfs none /mnt && echo yes", cap_add=["SYS_ADMIN"]).output == "yes\n"


def test_every_forbidden_name_is_one_that_libseccomp_knows_somewhere():
    library = seccomp._library()
    names = [name for _, _, text in seccomp.FORBIDDEN for name in text.split()]
    unknown = [name for name in names if library.seccomp_syscall_resolve_name(name.encode()) == -1]
    assert unknown == [] and len(names) == len(set(names))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_default_profile_compiles_for_both_processors(machine, monkeypatch):
    here = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*here[:4], machine)))
    names = seccomp.known()
    assert {"openat", "execve", "clone", "socket"} <= set(names)
    assert ("open" in names) == (machine == "x86_64")


@pytest.fixture
def profile(tmp_path):
    def write(**words):
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(words))
        return str(path)

    return write


def test_a_profile_in_dockers_words_is_obeyed(profile):
    path = profile(
        defaultAction="SCMP_ACT_ALLOW",
        syscalls=[
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30},
            {
                "names": ["chmod", "fchmodat"],
                "action": "SCMP_ACT_ERRNO",
                "includes": {"caps": ["CAP_SYS_ADMIN"]},
            },
            {"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["a_call_of_the_future"], "action": "SCMP_ACT_ERRNO"},
        ],
    )
    done = sh("mkdir /x; chmod 700 /tmp && echo chmod; ln -s a b; echo $?", security_opt=[f"seccomp={path}"])
    assert "Read-only file system" in done.output and "chmod\n" in done.output
    assert done.output.endswith("159\n")  # 128 + SIGSYS


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"defaultAction": "SCMP_ACT_FLY"},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": 7},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [1], "action": "SCMP_ACT_ERRNO"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99999}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
                                                          "args": [{"index": 9, "value": 0, "op": "SCMP_CMP_EQ"}]}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
                                                          "args": [{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]}]},
    ],
)  # fmt: skip
def test_a_broken_profile_is_refused_before_anything_is_made(profile, words):
    with pytest.raises(BadValue, match="can't be read"):
        Spec.make("busybox", "true", security_opt=["seccomp=" + profile(**words)])


def test_a_profile_that_is_no_json_or_not_there_is_refused(tmp_path):
    (tmp_path / "p").write_bytes(b"\xff{" * 100)
    with pytest.raises(BadValue):
        Spec.make("busybox", "true", security_opt=[f"seccomp={tmp_path}/p"])
    (tmp_path / "deep").write_text("[" * 100000)
    with pytest.raises(BadValue):
        Spec.make("busybox", "true", security_opt=[f"seccomp={tmp_path}/deep"])
    with pytest.raises(NotFound):
        Spec.make("busybox", "true", security_opt=["seccomp=/no/such"])
    with pytest.raises(BadValue):
        Spec.make("busybox", "true", security_opt=["label=x"])
    with pytest.raises(BadValue, match="privileges"):
        Spec.make("busybox", "true", security_opt=["no-new-privileges=false"])
    for words in (["seccomp:unconfined", "no-new-privileges:true"], ["no-new-privileges=true", "seccomp=unconfined"]):
        assert Spec.make("busybox", "true", security_opt=words).seccomp == "unconfined"


def test_a_profile_that_forbids_exec_says_that_the_command_could_not_be_executed(profile):
    path = profile(defaultAction="SCMP_ACT_ALLOW", syscalls=[{"names": ["execve"], "action": "SCMP_ACT_ERRNO"}])
    with pytest.raises(CommandError, match="EPERM"):
        sh("true", security_opt=[f"seccomp={path}"])


def test_the_compiled_filter_is_kept_and_cheap():
    words = ("default", security.choose())
    first = seccomp.program(*words)
    started = time.perf_counter()
    for _ in range(20):
        assert seccomp.program(*words) == first
    assert (time.perf_counter() - started) / 20 < 0.005
    assert any(state.run_dir("seccomp").iterdir())


def test_without_libseccomp_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setattr(seccomp.ctypes, "CDLL", lambda *_: (_ for _ in ()).throw(OSError()))
    with pytest.raises(Unsupported, match="libseccomp2"):
        seccomp.known()


# ---- the last step ----


def test_the_sealed_program_can_not_be_written_to_by_anyone():
    with os.fdopen(last_exec.program(), "rb") as file:
        for change in (lambda: os.pwrite(file.fileno(), b"x", 0), lambda: os.ftruncate(file.fileno(), 0)):
            with pytest.raises(PermissionError):
                change()
        assert fcntl.fcntl(file.fileno(), fcntl.F_GET_SEALS) == 0b1111, "all of SEAL, SHRINK, GROW, WRITE"


def _handed_over(*argv, program=None):
    """Return (what the program reported, its exit status) for argv handed to it on fd 3."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        program = program or os.dup2(last_exec.program(), 50)
        os.dup2(write_end, last_exec.CHANNEL)
        os.set_inheritable(last_exec.CHANNEL, True)
        os.execve(program, list(argv), {"WORD": "handed on"})
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        return pipe.read(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_sealed_program_hands_on_arguments_and_environment_and_closes_its_channel():
    test = '[ "$0" = name ] && [ "$1" = one ] && [ $# = 1 ] && [ "$WORD" = "handed on" ] && [ ! -e /proc/self/fd/3 ]'
    assert _handed_over("/bin/sh", "sh", "-c", test, "name", "one") == (b"", 0)


def test_the_sealed_program_reports_the_errno_of_exec():
    assert _handed_over("/no/such", "x") == (struct.pack("=i", errno.ENOENT), 127)
    assert _handed_over("/etc/passwd", "x") == (struct.pack("=i", errno.EACCES), 127)


def test_the_program_for_the_other_processor_is_what_the_listing_says():
    import shutil

    if not shutil.which("qemu-aarch64-static"):
        pytest.skip("the arm64 program was read, not run: apt-get install qemu-user-static")
    with_file = "/var/tmp/labkit-laststep-arm64"
    try:
        with open(with_file, "wb") as file:
            file.write(last_exec.elf("aarch64"))
        qemu = shutil.which("qemu-aarch64-static")
        os.chmod(with_file, 0o755)
        assert _handed_over("qemu", "-0", "/no/such", with_file, "x", program=qemu) == (
            struct.pack("<i", errno.ENOENT),
            127,
        )
        assert _handed_over("qemu", "-0", "/bin/sh", with_file, "sh", "-c", "exit 7", program=qemu) == (
            b"",
            7,
        )
    finally:
        os.unlink(with_file)


def test_proc_self_exe_as_the_command_is_the_sealed_program_and_not_python():
    assert sh("true").code == 0
    with Container("busybox", ["/proc/self/exe", "/bin/readlink", "/proc/self/exe"]).start() as box:
        assert box.wait(30) == 127  # it runs once more, without its channel, and ends


def test_the_children_words_are_read_as_a_strangers():

    import socket

    from labkit.container import joining, launch

    pidfd = os.pidfd_open(os.getpid())
    job = launch.Job((*joining.join(1, (), ()), *launch.inside(("true",))))
    # The number of a process that is none of our children: taken for the container, it would be killed with it.
    for message in (b'["pid", 1]', b'["pid", "1"]'):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            theirs.send(message)
            theirs.close()
            with pytest.raises(LabError, match="can't be read"):
                spawner.follow(job, ours, spawner.Spawned(os.getpid(), pidfd))
    os.close(pidfd)
    job = launch.Job(launch.inside(("true",)))
    for message in (b"not json", b"[" * 100000, b'["pid", 1]', b'["terminal", null]', b'["error", {"kind": "__import__"}]',
                    b'["error", {"kind": "KernelError", "attributes": {"message": 7}}]', b'{"a": 1}', b"\xff\xfe"):  # fmt: skip
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            theirs.send(message)
            theirs.close()
            with pytest.raises(LabError):
                spawner.follow(job, ours, spawner.Spawned(os.getpid(), -1))


def test_an_error_comes_back_over_the_channel_as_the_same_kind():
    error = KernelError("mount(2)", errno.EBUSY, "/x")
    back = errors.from_plain(json.loads(json.dumps(errors.to_plain(error))))
    assert type(back) is KernelError and str(back) == str(error) and back.errno == errno.EBUSY


def test_the_process_that_joins_has_no_more_power_than_the_container(monkeypatch):
    """With CAP_SYS_PTRACE a container could take over what enters it: full power must stay outside."""
    from labkit.container import steps

    read_end, write_end = os.pipe()
    real = steps.find_user

    def look(user):
        os.write(write_end, str(sc.capget()[1]).encode())
        return real(user)

    with Container("busybox", "sleep 30", cap_drop=["ALL"]).start() as box, os.fdopen(read_end, "rb") as pipe:
        monkeypatch.setattr(steps, "find_user", look)
        monkeypatch.setattr(spawner, "_current", (os.getpid(), spawner.Here()))
        assert box.exec("true").code == 0
        os.close(write_end)
        assert set(security.names(int(pipe.read()))) <= {"SETPCAP", "SETUID", "SETGID", "CHOWN"}


def test_the_sealed_step_costs_little_beside_the_exec_itself():
    def spent(through_it):
        """Return the CPU seconds of a process from its fork to its end: others' load does not count."""
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            if through_it:
                program = os.dup2(last_exec.program(), 50)
                os.dup2(write_end, last_exec.CHANNEL)
                os.execve(program, ["/bin/busybox", "true"], {})
            os.execve("/bin/busybox", ["true"], {})
        used = os.wait4(pid, 0)[2]
        os.close(read_end)
        os.close(write_end)
        return used.ru_utime + used.ru_stime

    with_it, without = (min(spent(way) for _ in range(60)) for way in (True, False))
    assert with_it < 1.5 * without


# ---- the exercises of chapter 11 ----


GIVES = ["sh", "-c", "touch /mine && chown 33 /mine && exec sleep 60"]


@pytest.mark.parametrize(
    "command, words, missing",
    [
        (GIVES, {"cap_drop": ["ALL"], "cap_add": ["CHOWN"]}, None),
        (GIVES, {}, "nothing else"),
        (GIVES, {"cap_drop": ["ALL"]}, "it runs"),
        ("sleep 60", {"cap_drop": ["ALL"]}, "is in force"),
        ("sleep 60", {"cap_drop": ["ALL"], "cap_add": ["CHOWN"]}, "belongs to user 33"),
    ],
)
def test_least_power(command, words, missing):
    with Container("busybox", command, **words).start() as box:
        if missing == "it runs":
            box.wait(30)
        result = check.least_power(box)
    assert result.passed if missing is None else missing in result.missing, result


@pytest.mark.parametrize(
    "action, names, missing",
    [
        ("SCMP_ACT_ALLOW", ["mkdir", "mkdirat"], None),
        ("SCMP_ACT_ALLOW", ["rmdir"], "mkdir fails"),
        ("SCMP_ACT_ERRNO", ["mkdir", "mkdirat"], "a container starts"),
        ("SCMP_ACT_ALLOW", ["mkdir", "mkdirat", "symlink", "symlinkat"], "other calls"),
        ("SCMP_ACT_FLY", ["mkdir"], "a container starts"),
    ],
)
def test_a_filter_of_ones_own(profile, action, names, missing):
    path = profile(defaultAction=action, syscalls=[{"names": names, "action": "SCMP_ACT_ERRNO"}])
    result = check.forbids_only_mkdir(path)
    assert result.passed if missing is None else missing in result.missing, result


FOUR = ("no_new_privs", "seccomp", "capabilities", "pid_namespace")


@pytest.mark.parametrize("off", FOUR)
def test_the_lock_that_is_off_is_the_only_right_answer(off):
    with Unlocked("busybox", "sleep 60", unlocked=(off,)).start() as box:
        assert [answer for answer in (*FOUR, "door", None) if check.lock_left_off(box, answer)] == [off]


# ---- beside the real Docker ----


def test_locks_are_dockers_but_for_the_differences_that_are_explained():
    if reason := engine.missing():
        pytest.skip(f"no Docker to compare with: {reason}")
    mine = inspection.read(sh(inspection.PROBE).output)
    with engine.private() as docker:
        theirs = inspection.read(docker("run", "--rm", "busybox", "sh", "-c", inspection.PROBE))
        refused = {}
        for script in (
            "mount -t tmpfs none /mnt",
            "unshare -U true",
            "unshare -n true",
            "dmesg",
            "chroot / true",
            "mknod /x c 1 3",
            "hostname x",
        ):
            done = docker("run", "--rm", "busybox", "sh", "-c", f"{script} >/dev/null 2>&1; echo $?").strip()
            refused[script] = done, sh(f"{script} >/dev/null 2>&1; echo $?").output.strip()
    assert mine["capabilities"] == theirs["capabilities"]
    assert mine["seccomp"] == theirs["seccomp"] == "a filter"
    assert set(theirs["masked"]) <= set(mine["masked"]), "Docker covers something that labkit leaves open"
    assert set(theirs["read_only"]) <= set(mine["read_only"]) | set(mine["masked"])
    assert "nobody has explained" not in "\n".join(inspection.compare(mine, theirs))
    assert {script: pair for script, pair in refused.items() if pair[0] != pair[1]} == {}
