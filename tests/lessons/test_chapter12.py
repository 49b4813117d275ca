"""Chapter 12's container keeps the promises of labkit's own; its checks see what is missing; a broken one is caught."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types

import pytest

from labkit.ground import ledger, proc, state
from labkit.ground import syscalls as sc
from labkit.ground.errors import KernelError, LabError
from labkit.images import catalog
from labkit.isolation import security
from labkit.lessons import checks
from labkit.lessons.checks import build, promises
from labkit.lessons.scenes.workbench import bench
from labkit.lessons.watch import tracing
from labkit.lessons.watch.measuring import until

pytestmark = pytest.mark.usefixtures("needs_root")

CHAPTER = state.REPO / "notebooks" / "12-your-own-container.ipynb"


def _source():
    """Return the script as the chapter writes it: its head, the functions of the `piece` cells, its foot."""
    cells = [cell for cell in json.loads(CHAPTER.read_text())["cells"] if cell["cell_type"] == "code"]
    texts = {"".join(cell["source"]): cell["metadata"].get("tags", []) for cell in cells}
    writer = next(text for text in texts if "inspect.getsource" in text)
    constants = {}
    for node in ast.parse(writer).body:
        if isinstance(node, ast.Assign) and node.targets[0].id in ("HEAD", "FOOT"):
            constants[node.targets[0].id] = ast.literal_eval(node.value)
    pieces = [text for text, tags in texts.items() if "piece" in tags]
    named = re.findall(r"\w+", " ".join(re.findall(r"pieces \+?= \[(.*)\]", writer)))
    assert named == [re.search(r"def (\w+)", piece)[1] for piece in pieces], "a piece is not written into the script"
    return "\n\n\n".join([constants["HEAD"], *pieces, constants["FOOT"]]) + "\n"


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("chapter12") / "mycontainer.py"
    path.write_text(_source())
    return path


@pytest.fixture(scope="module")
def my():
    """The chapter's functions, as a module."""
    module = types.ModuleType("mycontainer")
    exec(compile(_source(), "mycontainer.py", "exec"), module.__dict__)  # noqa: S102 - the chapter's own text
    return module


@pytest.fixture(scope="module")
def layers():
    return catalog.get("busybox").layers


@pytest.fixture(autouse=True)
def first_try():
    checks.forget()


@pytest.fixture
def complete(my, layers):
    def steps():
        my.name_it()
        my.make_private()
        root = my.make_root(layers)
        my.furnish(root)
        my.pivot(root)
        my.give_up_power()

    return steps


# ---- the promises ----


@pytest.mark.parametrize("promise", promises.ALL, ids=lambda promise: promise.__name__)
def test_the_chapters_container(promise, script):
    assert not promise(promises.script(script))


@pytest.mark.parametrize("promise", promises.ALL, ids=lambda promise: promise.__name__)
def test_labkits_container(promise):
    assert not promise(promises.labkits_own())


@pytest.mark.parametrize("kind", ["NS", "UTS", "IPC", "PID", "NET"])
def test_a_container_that_would_be_the_host_stops_before_it_changes_anything(kind, tmp_path, script):
    path = tmp_path / "open.py"
    text = script.read_text().replace("| sc.CLONE_NEWPID |", "| 0 |" if kind == "PID" else "| sc.CLONE_NEWPID |")
    path.write_text(text.replace(f"sc.CLONE_NEW{kind} ", "0 ").replace(f"| sc.CLONE_NEW{kind}\n", "\n"))
    assert f"sc.CLONE_NEW{kind}" not in path.read_text().replace("sc.CLONE_NEWCGROUP", "")
    # On a sacrificial copy of the host, if the catch should not hold.
    sandbox = ["unshare", "--mount", "--uts", "--propagation", "private", sys.executable, str(path)]
    code, _, complaint = promises.runner(sandbox)(["hostname"])
    assert code == 1 and "nothing was done" in complaint
    assert ledger.entries() == []


def test_a_script_that_is_killed_takes_its_container_along_and_clean_takes_its_cgroups(script):
    with subprocess.Popen([sys.executable, str(script), "sleep", "60"]) as one:
        assert until(lambda: any(proc.cmdline(pid) == ["sleep", "60"] for pid in proc.children(one.pid)))
        (pid,) = proc.children(one.pid)
        ticks = proc.start_ticks(pid)
        one.kill()
    assert until(lambda: not proc.is_running(pid, ticks))
    (entry,) = ledger.entries()
    folders = [entry.what["path"], *entry.what["also"]]
    assert all(map(os.path.isdir, folders))
    assert ledger.clean()[0] == [entry] and not any(map(os.path.isdir, folders))


def test_the_script_is_about_a_hundred_lines_of_code():
    lines = [line.strip() for line in _source().splitlines()]
    assert 90 <= sum(bool(line) and not line.startswith(("#", '"""')) for line in lines) <= 115


PIVOT = 'sc.pivot_root(".", ".")\n    sc.umount2(".", sc.MNT_DETACH)'
# promise: what is replaced in the script, by what; seen to fail one by one
BROKEN = [
    ("is_number_one", "| sc.CLONE_NEWPID ", ""),
    ("has_a_name", "    name_it()\n", ""),
    ("has_a_network_of_its_own", " | sc.CLONE_NEWNET", ""),
    (
        "sees_only_itself",
        'sc.mount("proc", f"{root}/proc", "proc",',
        'sc.mount("/proc", f"{root}/proc", None, sc.MS_BIND |',
    ),
    ("has_a_root_of_its_own", "os.chdir(root)", 'os.chdir(root); sc.mount("/etc", "mnt", None, sc.MS_BIND)'),
    ("has_no_way_to_the_hosts_files", PIVOT, 'os.mkdir("old")\n    sc.pivot_root(".", "old")'),
    ("opens_no_disk", "    give_up_power()\n", ""),
    ("commands_no_kernel", " | sc.MS_RDONLY", ""),
    ("keeps_little_power", "sc.prctl(sc.PR_CAPBSET_DROP, number)", "pass"),
    ("keeps_little_power", "sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)", "pass"),
    ("dies_of_too_much_memory", "32 << 20", "1 << 30"),
    ("dies_of_too_much_memory", "128 - code", "-code"),
    ("holds_a_fork_bomb", '"pids.max": 20', '"pids.max": 2000'),
    ("changes_no_image", "{desk}/{name}", "/var/tmp/{state.label()}-{name}"),
    ("ends_with_its_commands_status", "127 if isinstance", "1 if isinstance"),
    ("leaves_nothing_behind", "with ledger.made(", "with contextlib.nullcontext(ledger.write)("),
]


@pytest.mark.parametrize("name, right, wrong", BROKEN, ids=[f"{row[0]}-{number}" for number, row in enumerate(BROKEN)])
def test_a_broken_container_is_caught(name, right, wrong, tmp_path, script):
    text = script.read_text()
    assert right in text, f"the chapter has no {right!r} any more: break it another way"
    text = text.replace(right, wrong)
    if name == "leaves_nothing_behind":
        text = text.replace("nullcontext(ledger.write)(", "nullcontext(ledger.write(").replace(
            "also=others)", "also=others))"
        )
    if name == "changes_no_image":
        text = text.replace("os.mkdir(folder, 0o755)", "os.makedirs(folder, exist_ok=True)")
    path = tmp_path / "broken.py"
    path.write_text(text)
    try:
        assert getattr(promises, name)(promises.script(path))
    finally:
        ledger.clean()
        for folder in ("upper", "work", "root"):
            shutil.rmtree(f"/var/tmp/{state.label()}-{folder}", ignore_errors=True)


def _times(before, made, spent, after):
    """Return what the promise's shell prints: uptime and `times`, its own and its children's, before and after."""
    none = "0m0.000s 0m0.000s"
    return f"up {before}\n{made}\n{none}\nup {after}\n{made}\n{spent}\n"


@pytest.mark.parametrize("spent", ["0m0.980s 0m0.010s", "0m0.000s 0m0.000s", "sh: not found"])
def test_more_or_less_than_half_a_cpu_is_caught(spent):
    # Not with a broken container: a busy machine gives nobody more than that.
    assert promises.gets_half_a_cpu(lambda words: (0, _times("0.00", "0m0.140s 0m0.180s", spent, "1.00"), ""))


def test_half_a_cpu_is_half_of_the_time_that_really_passed():
    late = _times("10.00", "0m0.000s 0m0.000s", "0m0.980s 0m0.010s", "12.00")
    assert not promises.gets_half_a_cpu(lambda words: (0, late, ""))
    assert promises.gets_half_a_cpu(lambda words: (0, late.replace("up 12", "up 11"), ""))


def test_what_a_container_used_while_it_was_made_is_not_counted():
    slow = _times("10.00", "0m0.300s 0m0.400s", "0m0.450s 0m0.010s", "11.00")
    assert not promises.gets_half_a_cpu(lambda words: (0, slow, ""))


# ---- the checks: passed by the chapter's own pieces, and by no wrong answer ----


def flags(*names):
    return lambda: sc.clone3(sum(getattr(sc, f"CLONE_NEW{name}") for name in names), signal.SIGCHLD)[0]


ALL = ("NS", "UTS", "IPC", "PID", "NET")


def test_every_check_passes_on_the_chapters_own_container(my, complete):
    with my.limited() as members, bench(my.new_namespaces, complete) as box:
        for file in members:
            file.write_text(str(box.pid))
        for check in (
            build.new_namespaces, build.hostname, build.private, build.root,
            build.furnished, build.pivoted, build.limits, build.power,
        ):  # fmt: skip
            assert check(box).passed, f"{check.__name__}\n{check(box)}"
    assert build.execute(my.execute)


def fails(check, *steps, clone=None, at=None):
    """Run the check on a box with these steps twice; assert that it fails, at this requirement, with a bigger hint."""
    checks.forget()
    with bench(clone or flags(*ALL), *steps) as box:
        first, second = check(box), check(box)
    assert not first.passed
    assert first.hint and second.hint != first.hint
    assert at is None or at in first.missing, first
    return first.hint, second.hint


@pytest.mark.parametrize("clone", [lambda: None, *(flags(*set(ALL) - {name}) for name in ALL)], ids=["none", *ALL])
def test_new_namespaces_misses_each_kind(clone):
    first, second = fails(build.new_namespaces, clone=clone)
    assert first != second


def test_hostname_fails_on_wrong_names_and_on_the_hosts_namespace():
    fails(build.hostname, at="inside")
    fails(build.hostname, lambda: sc.sethostname("my-container"), at="inside")
    fails(build.hostname, lambda: sc.sethostname("mycontainer"), clone=flags("NS", "PID"), at="outside")


def test_private_fails_on_shared_and_on_slave_and_when_only_the_root_is_private():
    fails(build.private, at="no mount made in the box")
    fails(build.private, lambda: sc.mount(None, "/", None, sc.MS_REC | sc.MS_SLAVE), at="no mount made outside")
    fails(build.private, lambda: sc.mount(None, "/", None, sc.MS_PRIVATE), at="no mount made in the box")


def test_root_fails_on_nothing_on_a_read_only_one_and_on_one_that_stays(my, layers, tmp_path):
    desk = state.run_dir("mycontainer")

    def overlay(options, flags=sc.MS_NODEV):
        def mount():
            my.make_private()
            sc.mount("overlay", str(desk), "overlay", flags, options)

        return mount

    for name in ("upper", "work", "empty"):
        (tmp_path / name).mkdir()
    lower = f"lowerdir={layers[0]}"
    kept = f"upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    fails(build.root, my.make_private, at="an overlay is mounted")
    fails(build.root, overlay(f"lowerdir={tmp_path}/empty,{kept}"), at="below is the image's layer")
    fails(build.root, overlay(f"{lower}:{tmp_path}/empty"), at="below is the image's layer")
    fails(build.root, overlay(f"{lower},{kept}"), at="the upperdir goes")
    fails(build.root, lambda: my.make_root(layers), at="outside, nobody sees it")


@pytest.mark.parametrize(
    "right, wrong, at",
    [
        ('sc.mount("proc",', 'print("proc",', "its /proc shows one process"),
        (
            'sc.mount("proc", f"{root}/proc", "proc",',
            'sc.mount("/proc", f"{root}/proc", None, sc.MS_BIND |',
            "its /proc",
        ),
        (" | sc.MS_RDONLY", "", "read-only"),
        ('sc.mount("tmpfs", f"{root}/dev"', 'print("tmpfs"', "tmpfs"),
        ('"zero": 5', '"zero": 3', "/dev/zero is device 1:5"),
        ("os.chmod(", "print(", "everybody"),
        ("    quiet =", '    os.mknod(f"{root}/dev/sda", stat.S_IFBLK, os.makedev(8, 0))\n    quiet =', None),
    ],
)
def test_furnished_misses(right, wrong, at, script, layers):
    text = script.read_text()
    assert right in text
    if at is None:  # a disk on the new /dev, after it is mounted
        text = (
            text + '\nold = furnish\ndef furnish(root):\n    old(root)\n    os.mknod(f"{root}/dev/sda", stat.S_IFBLK)\n'
        )
        right = wrong = "\0"
        at = "no disk"
    module = types.ModuleType("broken")
    exec(text.replace(right, wrong), module.__dict__)  # noqa: S102

    def steps():
        module.make_private()
        module.furnish(module.make_root(layers))

    fails(build.furnished, steps, at=at)


def test_pivoted_fails_on_chroot_and_on_an_old_root_left_behind(my, layers):
    def ending(*last):
        def steps():
            my.make_private()
            os.chdir(my.make_root(layers))
            for step in last:
                step()

        return steps

    fails(build.pivoted, ending(lambda: os.chroot(".")), at="the root of its mount table")
    fails(build.pivoted, ending(), at="the root of its mount table")
    fails(build.pivoted, ending(lambda: os.mkdir("old"), lambda: sc.pivot_root(".", "old")), at="the host's root")
    fails(build.pivoted, ending(lambda: sc.pivot_root(".", ".")))


def test_limits_fails_outside_a_cgroup_and_without_limits(my):
    fails(build.limits, at="a cgroup of its own")
    wrong = types.ModuleType("wrong")
    exec(_source().replace("write_text(str(value))", "exists()"), wrong.__dict__)  # noqa: S102
    with wrong.limited() as members, bench(my.new_namespaces) as box:
        for file in members:
            file.write_text(str(box.pid))
        result = build.limits(box)
    assert not result and "at most" in result.missing


def test_power_fails_on_full_power_on_a_wide_bounding_set_and_without_no_new_privs(my):
    keep = security.mask(["CHOWN", "SETUID"])

    def drop_all():
        for number in range(security.last_capability() + 1):
            if not keep >> number & 1:
                sc.prctl(sc.PR_CAPBSET_DROP, number)

    fails(build.power, at="none of them reaches")
    fails(build.power, lambda: sc.capset(keep, keep, 0), at="exec can't give more")
    fails(build.power, lambda: sc.capset(0, 0, 0), at="it keeps some")
    fails(build.power, drop_all, lambda: sc.capset(keep, keep, 0), at="no_new_privs")


def test_execute_fails_when_it_comes_back_and_on_other_statuses():
    assert "came back" in build.execute(lambda argv: None).hint
    assert build.execute(lambda argv: os._exit(0)).missing.startswith("a command that ends with 7")

    def always_127(argv):
        try:
            os.execvpe(argv[0], argv, {"PATH": "/bin:/usr/bin"})
        except OSError:
            os._exit(127)

    assert build.execute(always_127).missing.startswith("a file that is no program")


def test_container_fails_on_a_script_that_does_nothing_and_on_one_without_a_container(tmp_path):
    nothing, host = tmp_path / "nothing.py", tmp_path / "host.py"
    nothing.write_text("")
    host.write_text("import os, sys; os.execvp(sys.argv[1], sys.argv[1:])")
    assert build.container(nothing).missing == build.container(host).missing == "Its first process is number 1"


# ---- the workbench, the trace ----


def test_the_workbench_keeps_mistakes_from_the_host():
    name, before = os.uname().nodename, len(proc.mounts())

    def mistake():
        sc.sethostname("mistake")
        sc.mount("tmpfs", "/mnt", "tmpfs", 0)

    with bench(lambda: None, mistake) as box:
        assert box.pid == box.outside
        assert "/mnt" in [mount.target for mount in proc.mounts(box.pid)]
        assert os.uname().nodename == name
        assert len(proc.mounts()) == before
    assert not os.path.exists(f"/proc/{box.pid}")


def test_the_workbench_raises_what_a_piece_raises_and_leaves_nothing():
    before = proc.children(os.getpid())
    with pytest.raises(KernelError, match="EINVAL|ENODEV"), bench(flags(*ALL), lambda: sc.mount("x", "/", "nofs", 0)):
        pass
    wrong = flags(*ALL), lambda: os.mknod("/no/where")
    with pytest.raises(KernelError, match=r"os.mknod.* in .*ENOENT"), bench(*wrong):
        pass
    with pytest.raises(LabError, match="before it could be looked at"), bench(flags(*ALL), lambda: os._exit(0)):
        pass
    with pytest.raises(LabError, match="took too long"), bench(flags(*ALL), signal.pause, timeout=0.2):
        pass
    assert proc.children(os.getpid()) == before


def test_a_trace_holds_the_containers_own_calls_in_order(script):
    if not shutil.which("strace"):
        pytest.skip("strace is not here: apt-get install strace")
    calls = tracing.of_a_container(tracing.trace([sys.executable, str(script), "true"]))
    names = [call.name for call in calls if call.name in ("clone3", "sethostname", "pivot_root", "umount2", "execve")]
    assert names == ["clone3", "sethostname", "pivot_root", "umount2", "execve"]
    assert {call.kind for call in calls} == set(tracing.KINDS)


def test_a_call_that_strace_wrote_in_two_halves_is_one_call():
    text = '7 10.5 mount("a", "b" <unfinished ...>\n8 10.6 setsid() = 8\n7 11.0 <... mount resumed>, NULL, 0, NULL) = -1 EPERM (x)\n'
    first, second = tracing.parse(text)
    assert (first.name, first.failed, first.at, second.name) == ("mount", True, 0, "setsid")
