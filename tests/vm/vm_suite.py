"""The lab's own tests once more, on cgroup v2 under systemd: in a virtual machine made from its box.

What runs there is what asks the kernel something. Emulated, it takes ten times as
long; so what is the same on every kernel, the shell script that installs and the
browser for two, stays out. The counts of both kernels are printed side by side.
"""

from collections import Counter
from xml.etree import ElementTree

import pytest
from vm.machine import Machine, the_disk

# Tests of the host's own tools and of the network's registries, not of the kernel.
LEFT_OUT = """
test_lab_script test_hosts test_whole_run test_workshop test_lessons test_store_crash
test_hostile_layers test_layers test_registry test_images_elsewhere test_runtime_docker test_vm
""".split()  # noqa: SIM905
CHAPTERS = ("02", "04", "06", "12")
# Seconds for all of it. Beside nothing else it takes about half of that.
PATIENCE = 1500


@pytest.mark.slow
def test_the_lab_passes_its_tests_on_cgroup_v2_under_systemd(capsys, request):
    words = ["tests", *CHAPTERS, "--ignore=tests/browser", "--ignore=tests/bench", "-q", "--tb=short", "--durations=10"]
    words += [f"--ignore=tests/{name}.py" for name in LEFT_OUT]
    with capsys.disabled():
        print("\n\non cgroup v2, in a virtual machine:")
        with Machine.boot(the_disk()) as machine:
            assert "memory" in machine.run("cat /sys/fs/cgroup/cgroup.controllers")
            status = machine.stream(
                f"cd /vagrant && LAB_NO_APT=1 timeout {PATIENCE} vagrant/lab test {' '.join(words)} --junitxml=/root/v2.xml"
            )
            if status != 124:
                _print_side_by_side(_counts_there(machine.run("cat /root/v2.xml")), _counts_here(request.config))
    assert status == 0, "see above what failed in the virtual machine" if status != 124 else f"not done in {PATIENCE} s"


def _print_side_by_side(there, here):
    """Print how many tests did what on both kernels; `here` is empty if they did not run before in this run."""
    print(f"\nthe same tests on two kernels{'':12}{'cgroup v2, in the VM':>22}{'here':>12}")
    for word in ("passed", "failed", "skipped"):
        print(f"{word:41}{there[word]:22}{here[word] if here else 'not run':>12}")


def _counts_there(report):
    """Count what the VM reported, a word each."""
    counts = Counter()
    for case in ElementTree.fromstring(report).iter("testcase"):
        kinds = {child.tag for child in case}
        counts["failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"] += 1
    return counts


def _counts_here(config):
    """Count what the same tests did on this machine, earlier in this run of pytest."""
    stats = config.pluginmanager.get_plugin("terminalreporter").stats
    counts = Counter()
    for word in ("passed", "failed", "skipped"):
        for report in stats.get(word, ()):
            counts[word] += _ran_there(report.nodeid) and (report.when == "call" or word != "passed")
    return +counts


def _ran_there(nodeid):
    place, name = nodeid.partition("::")[0].rsplit("/", 1)
    if place == "notebooks":
        return name[:2] in CHAPTERS
    return place == "tests" and name.removesuffix(".py") not in LEFT_OUT
