"""vagrant/lab: what it says when it can't go on, and that it installs once and then gets out of the way.

Most tests run the script in a clone of its own, with an empty requirements.txt,
no apt, and a `labkit` and a `pip` of three lines: what is judged is the script.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from labkit.ground import state

REPO = state.REPO
TOOLS = """
sh awk cat cksum df dirname flock id ls mkdir mv readlink rm sed sleep sort touch tr uname
""".split()  # noqa: SIM905


class Lab:
    """A clone of the lab's script, and the world it runs in."""

    def __init__(self, folder):
        self.folder = folder
        self.clone = folder / "my clone"  # a space in the name, as people have
        self.venv = folder / "venv"
        self.commands = folder / "commands"  # first on PATH
        for name in ("vagrant", "labkit"):
            (self.clone / name).mkdir(parents=True)
        self.commands.mkdir()
        self.script = self.clone / "vagrant" / "lab"
        shutil.copy(REPO / "vagrant" / "lab", self.script)
        (self.clone / "requirements.txt").write_text("# none\n")
        self.packages("all  something  sh  why")
        (self.clone / "labkit" / "__main__.py").write_text("import sys; print('labkit', sys.argv[1:])\n")
        self.environment = {
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "LAB_VENV": str(self.venv),
            "LAB_PYTHON": str(self.command("quick-python", _QUICK_PYTHON.format(python=sys.executable))),
            "LAB_NO_APT": "1",
        }

    def packages(self, text):
        (self.clone / "vagrant" / "packages").write_text(f"# when package proof why\n{text}\n")

    def command(self, name, text):
        """Put a command before all others on PATH."""
        path = self.commands / name
        path.write_text("#!/bin/sh\n" + textwrap.dedent(text))
        path.chmod(0o755)
        return path

    def start(self, *arguments, before=(), **changes):
        environment = {**self.environment, **changes}
        return subprocess.Popen(
            [*before, self.script, *arguments],
            env={name: value for name, value in environment.items() if value is not None},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments, **options):
        """Run it; return (exit status, stdout, stderr)."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def refusal(self, *arguments, **options):
        """Run what must fail: return the sentence and what to do about it."""
        status, out, err = self.run(*arguments, **options)
        assert status != 0 and out == ""
        sentence, advice = err[err.rindex("lab: ") :].split("\n  → ")
        assert "Traceback" not in err and "\n" not in sentence
        return sentence, advice


# Everything but `-m venv` is real; that would take seconds for the sake of a real pip.
_QUICK_PYTHON = """
    [ "$1" = -m ] || exec {python} "$@"
    for folder; do :; done
    {python} -m venv --without-pip "$folder"
    sleep "${{VENV_TAKES:-0}}"
    pip=$(echo "$folder"/lib/python3*/site-packages)/pip
    mkdir "$pip"
    cat >"$pip/__init__.py" </dev/null
    echo 'import os, sys; print("Collecting x"); sys.exit("PIP_FAILS" in os.environ)' >"$pip/__main__.py"
"""


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


@pytest.fixture
def installed(lab):
    assert lab.run("help")[0] == 0
    return lab


# ---- where it can't work -------------------------------------------------------


def test_on_a_mac_it_sends_people_to_vagrant(lab):
    lab.command("uname", "echo Darwin")
    sentence, advice = lab.refusal("up")
    assert "Darwin" in sentence and "Linux kernel" in sentence
    assert "vagrant up" in advice


def test_without_root_it_says_sudo_and_the_same_command(needs_root):
    # Not below pytest's folder, which only root may enter.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        lab = Lab(Path(folder))
        nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        sentence, advice = lab.refusal("run", "-it", "base", before=nobody)
        assert "root" in sentence
        assert advice == f"sudo {lab.script} run -it base\n"
        assert not lab.venv.exists()


def test_an_old_python_is_named_with_its_version(lab):
    sentence, advice = lab.refusal("up", LAB_PYTHON=str(lab.command("python3.9", "echo 3.9")))
    assert "3.9" in sentence and "3.11" in sentence
    assert "LAB_PYTHON" in advice


def test_a_python_that_is_not_there_is_named(lab):
    sentence, advice = lab.refusal("up", LAB_PYTHON="/nowhere/python3")
    assert "/nowhere/python3" in sentence and "3.11" in advice


def test_a_folder_with_a_colon_is_refused(lab):
    elsewhere = lab.folder / "a:b"
    shutil.copytree(lab.clone, elsewhere)
    lab.script = elsewhere / "vagrant" / "lab"
    sentence, _ = lab.refusal("up")
    assert "a:b" in sentence and "colon" in sentence


def test_without_apt_it_says_what_to_install_and_how_to_go_on(lab):
    lab.packages("all p1 sh why\nall p2 no-such-command why\ntest p3 strange-test-tool why")
    path = lab.folder / "few"
    path.mkdir()
    for tool in TOOLS:
        (path / tool).symlink_to(shutil.which(tool))
    # The script itself looks into /usr/sbin too; apt-get is not there.
    sentence, advice = lab.refusal("up", PATH=str(path), LAB_NO_APT=None)
    assert "apt-get" in sentence
    assert "no-such-command" in advice and "strange-test-tool" not in advice
    assert "LAB_NO_APT=1" in advice


def test_another_kind_of_machine_s_packages_are_not_wanted(lab):
    here, there = ("aarch64", "x86_64")[:: 1 if os.uname().machine == "aarch64" else -1]
    lab.packages(f"{here} p1 wanted-here why\n{there} p2 wanted-there why")
    status, _, err = lab.run("help")
    assert status == 0 and "wanted-here" in err and "wanted-there" not in err


def test_with_no_apt_wanted_it_goes_on_and_says_what_it_misses(lab):
    lab.packages("all p2 no-such-command why")
    status, out, err = lab.run("help")
    assert status == 0 and "labkit ['help']" in out
    assert "no-such-command" in err


def test_a_full_disk_is_told_in_numbers_before_anything_is_written(lab, needs_root):
    lab.venv.mkdir()
    on_a_small_disk = f'mount -t tmpfs -o size=9m none {lab.venv}; exec "$0" "$@"'
    small = ("unshare", "-m", "sh", "-c", on_a_small_disk)
    sentence, advice = lab.refusal("up", before=small)
    assert "9 MB" in sentence and "700 MB" in sentence
    assert "LAB_VENV" in advice


def test_a_folder_with_other_things_in_it_is_not_cleared(lab):
    lab.venv.mkdir()
    (lab.venv / "thesis").write_text("years of work")
    sentence, _ = lab.refusal("up")
    assert "other things" in sentence
    assert (lab.venv / "thesis").exists()


# ---- names that only some systems have ---------------------------------------------


@pytest.mark.parametrize(
    "known, wanted",
    [
        ("docker.io docker-cli", "docker-cli docker.io"),  # Debian 13
        ("docker.io", "docker.io"),  # Debian 12: the client is in the engine's package
    ],
)
def test_of_several_names_the_one_is_installed_that_this_system_has(lab, known, wanted):
    lab.packages("all docker.io dockerd-x why\nall docker-cli|docker.io docker-x why")
    lab.command("dpkg-query", "exit 1")
    lab.command("dpkg", "")
    # A fresh machine's apt knows no names before its lists are there.
    lab.command("apt-cache", f'[ -e {lab.folder}/lists ] && case " {known} " in *" $2 "*) ;; *) exit 100 ;; esac')
    lab.command(
        "apt-get",
        f'[ "$1" != update ] || touch {lab.folder}/lists; [ "$1" != install ] || echo "$@" >{lab.folder}/asked',
    )
    status, _, said = lab.run("ps", LAB_NO_APT=None)
    asked = (lab.folder / "asked").read_text().split()
    assert [word for word in asked if word.startswith("docker")] == wanted.split()
    assert status == 0 and f"to install: {wanted}\n" in said


# ---- registries out of reach -----------------------------------------------------


def test_when_apt_fails_it_names_the_packages_and_the_log(lab):
    lab.packages("all busybox-static no-such-command why")
    lab.command("dpkg-query", "exit 1")
    lab.command("dpkg", "")
    lab.command("apt-get", 'echo "E: Unable to fetch some archives"; exit 100')
    sentence, advice = lab.refusal("up", LAB_NO_APT=None)
    assert "busybox-static" in sentence and f"{lab.venv}.log" in sentence
    assert "what is installed stays" in advice
    assert "E: Unable to fetch" in Path(f"{lab.venv}.log").read_text()


def test_when_the_package_index_is_out_of_reach_it_says_so_and_goes_on_from_there_later(lab):
    """The one test with a real venv and pip: nobody listens on the port that pip is sent to."""
    (lab.clone / "requirements.txt").write_text("hypothesis==6.0.0\n")
    nowhere = {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_RETRIES": "0",
        "LAB_PYTHON": sys.executable,
    }
    sentence, advice = lab.refusal("up", **nowhere)
    assert "pip" in sentence and f"{lab.venv}.log" in sentence
    assert "package index" in advice
    assert "hypothesis==6.0.0" in Path(f"{lab.venv}.log").read_text()
    # What is installed stays: now there is nothing more to fetch, and no new venv to make.
    (lab.clone / "requirements.txt").write_text("# none\n")
    status, out, err = lab.run("help", **nowhere)
    assert (status, out) == (0, "labkit ['help']\n")
    assert "[3/3]" in err and "[2/3]" not in err


# ---- installing once --------------------------------------------------------------


def test_arguments_are_handed_on_as_they_are(lab):
    assert lab.run("run", "-it", "a b", "*", "")[1] == "labkit ['run', '-it', 'a b', '*', '']\n"


def test_a_link_to_it_works_from_anywhere(installed):
    link = installed.commands / "lab"
    link.symlink_to(installed.script)
    installed.script = link
    assert installed.run("ps")[1] == "labkit ['ps']\n"


def test_a_module_in_the_current_folder_does_not_get_in_the_way(installed):
    (installed.folder / "sys.py").write_text("")
    (installed.folder / "labkit.py").write_text("raise SystemExit('the wrong one')")
    in_folder = ("env", "-C", str(installed.folder))
    assert installed.run("ps", before=in_folder)[1] == "labkit ['ps']\n"


def test_what_handles_containers_does_not_wait_for_pythons_packages(installed):
    (installed.clone / "labkit" / "__main__.py").write_text("import sys; print('site' in sys.modules)\n")
    assert [installed.run(name)[1] for name in ("ps", "run", "up")] == ["False\n", "False\n", "True\n"]


def test_the_second_run_installs_nothing_and_says_nothing(installed):
    for name in ("apt-get", "dpkg-query"):
        installed.command(name, "echo called >&2; exit 1")
    assert installed.run("ps", LAB_NO_APT=None, PIP_FAILS="1") == (0, "labkit ['ps']\n", "")


def test_the_second_run_starts_no_process_but_python(installed):
    """Counted in system calls: a clock says what else this machine is doing."""
    trace = installed.folder / "trace"
    assert installed.run("ps", before=("strace", "-f", "-o", str(trace)))[0] == 0
    calls = trace.read_text().splitlines()
    programs = [number for number, line in enumerate(calls) if " execve(" in line and line.endswith("= 0")]
    assert len(programs) == 2, "the shell, which becomes Python"
    ours = calls[: programs[-1]]
    assert not [line for line in ours if line.split()[1].startswith(("fork(", "vfork(", "clone", "pipe"))]
    assert len(ours) < 150


@pytest.mark.parametrize("what", ["requirements.txt", "vagrant/packages"])
def test_a_list_of_another_moment_is_looked_at_even_if_it_is_an_older_one(installed, what):
    path = installed.clone / what
    path.write_text("# none but this\n" if what == "requirements.txt" else "all p no-such-command why\n")
    os.utime(path, (1, 1))
    assert "installing what" in installed.run("ps")[2]


def test_another_python_in_the_folder_is_noticed(installed):
    python = installed.venv / "bin" / "python"
    real = os.path.realpath(python)
    python.unlink()
    # The version is all that is other.
    python.write_text(f'#!/bin/sh\ncase $1 in -ISc) echo 3.99 ;; *) exec {real} "$@" ;; esac\n')
    python.chmod(0o755)
    assert "installing what" in installed.run("ps")[2]


def test_a_folder_that_was_removed_is_made_again(installed):
    shutil.rmtree(installed.venv)
    status, out, err = installed.run("ps")
    assert (status, out) == (0, "labkit ['ps']\n") and "[3/3]" in err


def test_a_clone_elsewhere_is_looked_at_by_itself(installed):
    other = shutil.copytree(installed.clone, installed.folder / "other")
    (other / "labkit" / "__main__.py").write_text("print('the other')\n")
    installed.script = other / "vagrant" / "lab"
    assert installed.run("ps")[1] == "the other\n"


def test_new_requirements_are_installed(installed):
    (installed.clone / "requirements.txt").write_text("# something new\n")
    assert "[3/3]" in installed.run("ps")[2]
    assert installed.run("ps")[2] == ""


def test_a_command_that_was_removed_brings_its_package_back(lab):
    tool = lab.command("the-tool", "")
    lab.packages("all the-package the-tool why")
    lab.command("dpkg-query", "printf installed")
    lab.command("dpkg", "")
    lab.command("apt-get", f'echo "$@" >>{lab.folder}/asked; touch {tool}; chmod +x {tool}')
    lab.environment["LAB_NO_APT"] = None
    lab.run("ps")
    assert not (lab.folder / "asked").exists()
    tool.unlink()
    assert lab.run("ps")[0] == 0
    assert "--reinstall the-package" in (lab.folder / "asked").read_text()


def test_a_daemon_that_a_package_starts_holds_nothing_up(lab):
    lab.packages("all p no-such-command why")
    lab.command("dpkg-query", "exit 1")
    lab.command("dpkg", "")
    # It keeps the pipe and, if it was given one, the lock.
    lab.command("apt-get", f'case "$*" in *install*) sleep 60 & echo $! >{lab.folder}/pid ;; esac')
    assert lab.run("ps", LAB_NO_APT=None)[:2] == (0, "labkit ['ps']\n")
    lock_is_free = subprocess.run(["flock", "-n", f"{lab.venv}.lock", "true"]).returncode == 0
    os.kill(int((lab.folder / "pid").read_text()), signal.SIGKILL)
    assert lock_is_free


def test_test_packages_wait_until_there_is_a_test(installed):
    installed.packages("all p1 sh why\ntest p2 no-such-command why")
    assert "no-such-command" not in installed.run("ps")[2]
    assert "no-such-command" in installed.run("test")[2]


def test_an_interrupted_installation_goes_on_at_the_next_run(lab):
    first = lab.start("ps", VENV_TAKES="30")
    while not (lab.venv / "pyvenv.cfg").exists():
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGTERM)
    first.communicate()
    assert lab.run("ps")[:2] == (0, "labkit ['ps']\n")


def test_a_failed_installation_is_tried_again_at_the_next_run(lab):
    assert lab.run("ps", PIP_FAILS="1")[0] != 0
    assert lab.run("ps")[:2] == (0, "labkit ['ps']\n")


def test_two_runs_at_once_install_once(lab):
    first = lab.start("ps", VENV_TAKES="1")
    while not (lab.venv / "pyvenv.cfg").exists():
        time.sleep(0.01)
    status, out, err = lab.run("ps")
    assert (status, out) == (0, "labkit ['ps']\n")
    assert "waiting" in err and "installing what" not in err
    assert "installing what" in first.communicate()[1]


# ---- the lists ----------------------------------------------------------------------


def test_every_requirement_is_pinned_once():
    lines = [line for line in (REPO / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    names = [line.split("==")[0] for line in lines]
    assert all(line.count("==") == 1 for line in lines)
    assert len(names) == len(set(names)) > 50
    assert not {"rfc3987-syntax", "lark"} & set(names), "`pip freeze` brings back what the top of the file leaves out"


def test_every_package_has_a_when_a_proof_and_a_reason():
    lines = [line for line in (REPO / "vagrant" / "packages").read_text().splitlines() if line and line[0] != "#"]
    for line in lines:
        when, _, _, why = line.split(maxsplit=3)
        assert when in ("all", "x86_64", "aarch64", "test", "bench", "box", "vm", "vagrant", "named") and len(why) > 10


def test_ci_runs_what_the_readme_says_and_nothing_else():
    lines = (REPO / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line and line[0] != "#"][-1] == "exec vagrant/lab test"
