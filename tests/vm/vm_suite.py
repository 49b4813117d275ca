"""The lab's own tests once more, on cgroup v2 under systemd: in a virtual machine made from its box.

Emulated, everything takes ten times as long. So what runs there by default is what
asks the kernel for a cgroup, the network beside the Docker that runs there, the engines
that labkit is compared with and runs for, and the chapters about them; LAB_TEST_VM=all
runs all that asks the kernel anything. What both kernels made of the same tests is
printed side by side, file by file.
"""

import os
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
from vm.machine import REPO, Machine, NoAnswer, the_disk

CGROUPS = """
test_cgroups test_delegation test_container test_checks_memory test_sampling test_reclaiming test_chapter12 04 05
test_network 10 test_neighbours 01 13 test_seat
""".split()  # noqa: SIM905
# Tests of the host's own tools and of the network's registries, not of the kernel.
LEFT_OUT = """
test_lab_script test_hosts test_workshop test_coursework test_store_crash
test_hostile_layers test_layers test_registry test_images_elsewhere test_vm test_browser test_bench
test_seat_image test_machines
""".split()  # noqa: SIM905
FILES = {path.stem: path.relative_to(REPO) for path in sorted((REPO / "tests").rglob("test_*.py"))}
CHAPTERS = [f"{number:02}" for number in range(14)]
WORDS = ("passed", "failed", "skipped")


def chosen():
    """Return what runs, as `lab test` calls it, and the seconds that it may take: three times what it does alone."""
    if os.environ.get("LAB_TEST_VM") != "all":
        return [name if name.isdigit() else str(FILES[name]) for name in CGROUPS], 2400
    return [str(file) for name, file in FILES.items() if name not in LEFT_OUT] + CHAPTERS, 7200


@pytest.mark.slow
def test_the_lab_passes_its_tests_on_cgroup_v2_under_systemd(capsys):
    words, seconds = chosen()
    with capsys.disabled():
        disk = the_disk()
        for attempt in (1, 2):
            print("\n\non cgroup v2, in a virtual machine:" if attempt == 1 else "\n\nonce more, in a new one:")
            try:
                status, there = _run_there(disk, words, seconds)
                break
            except NoAnswer as error:
                print(error)
        else:
            pytest.skip("the virtual machine was gone twice, see above: not all was tested on cgroup v2")
        here = _earlier() or _now(words)
        _print_side_by_side(there, {file: here[file] for file in there})
    assert status == 0, "see above what failed in the virtual machine, twice"


def _run_there(disk, words, seconds):
    """Run the tests in a new machine, and once more those that failed; return the last exit status and the counts."""
    with Machine.boot(disk) as machine:
        assert "memory" in machine.run("cat /sys/fs/cgroup/cgroup.controllers")
        # Docker starts at the first question, and brings links and tables that no test has made.
        machine.run("docker info")
        flags = "-q --tb=short --durations=10 --junitxml=/root/v2.xml"
        status = _test(machine, f"{' '.join(words)} {flags}", seconds)
        there = counts(machine.run("cat /root/v2.xml"))
        if again := [word for word in words if _failed(word, there)]:
            # Where a second takes ten, what measures time can miss. What is broken fails twice.
            print(f"\nonce more: {' '.join(again)}")
            status = _test(machine, f"{' '.join(again)} -q --tb=short", seconds)
        return status, there


def _failed(word, there):
    """Tell whether something failed of a file or a chapter, by its name as `lab test` takes it."""
    name = Path(word).stem
    return any(count["failed"] for file, count in there.items() if file == name or file.startswith(f"{name}-"))


def _test(machine, words, seconds):
    seat = "LAB_TEST_SEAT=1 " if os.environ.get("LAB_TEST_VM") == "all" else ""
    command = f"cd /vagrant && {seat}LAB_NO_APT=1 timeout {seconds} vagrant/lab test {words}"
    status = machine.stream(command, seconds + 60)
    if status == 124:
        print(machine.console()[-2000:])
        pytest.skip(f"not done in {seconds} s, this machine emulates too slowly: not all was tested on cgroup v2")
    if status == 255:
        raise NoAnswer(f"the machine is gone:\n{machine.console()[-4000:]}")
    return status


def _print_side_by_side(there, here):
    """Print what each file's tests did on both kernels."""
    head = "".join(f"{word:>9}" for word in WORDS)
    print(f"\n{'the same tests on two kernels':36}{'cgroup v2, in the VM':>27}{'here':>27}\n{'':36}{head}{head}")
    for file in [*sorted(there), ""]:
        row = [_of(side, file)[word] for side in (there, here) for word in WORDS]
        print(f"{file or 'all':36}{''.join(f'{number:9}' for number in row)}")


def _of(side, file):
    """Return the file's counter, or the sum of all."""
    return side[file] if file else sum(side.values(), Counter())


def counts(report):
    """Return {file: how many tests did what} of a report in JUnit's XML."""
    found = defaultdict(Counter)
    for case in ElementTree.fromstring(report).iter("testcase"):
        kinds = {child.tag for child in case}
        word = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[re.sub(r"^(tests\.([a-z]+\.)?|notebooks\.)", "", case.get("classname"))][word] += 1
    return found


def _earlier():
    """Return the same of what this run of `lab test` has done before, on this machine."""
    reports = Path(os.environ["LAB_TEST_REPORTS"]).glob("*.xml")
    return defaultdict(
        Counter, {file: count for report in reports for file, count in counts(report.read_text()).items()}
    )


def _now(words):
    """Return the same by running them here."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "here.xml")
        command = [REPO / "vagrant" / "lab", "test", *words, "-q", f"--junitxml={report}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert report.exists(), done.stdout + done.stderr
        return counts(report.read_text())
