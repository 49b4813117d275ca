"""Break labkit in one place at a time, and see that the chapter or test that should notice does.

    python tests/mutations.py             # all of them
    python tests/mutations.py stop ports  # those with one of these words in their name

Run by name, not in CI. Each is done in a copy of the tree, never in place, with a state of
its own. Nothing belongs here whose chapter or test would then change the host itself: chapter
03 really writes to core_pattern, so that lock is not taken off. A mutation that nobody notices is a sentence that nothing holds: give it an
assertion in a cell, or a test with a name. Exit status 1 if there is one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).parents[1]
SECONDS = 400  # what hangs has been noticed


@dataclass(frozen=True)
class Mutation:
    """What is broken: `old` becomes `new` in `file`, and `notices` (pytest's words) must fail."""

    name: str
    file: str
    old: str
    new: str
    notices: str


ALL = [
    Mutation(
        "a sysctl is written wherever its path leads",
        "isolation/sysctls.py",
        'open(path, "w", opener=_of_this_proc)',
        'open(path, "w")',
        "notebooks/11-locks.ipynb",
    ),
    Mutation(
        "the console is bound by the terminal's name",
        "container/steps.py",
        'mounts.clone_tree("", slave, recursive=False)',
        'mounts.clone_tree("/dev/pts/0", recursive=False)',
        "tests/lessons/test_escapes.py -k console",
    ),
    Mutation(
        "two bridges are not kept apart",
        "network/firewall.py",
        """                f'oifname "{bridge}" drop',\n""",
        "",
        "notebooks/10-network.ipynb",
    ),
    Mutation(
        "stop kills at once",
        "container/life.py",
        "syscalls.pidfd_send_signal(pidfd, number)\n                    if not select.select([pidfd], [], [], timeout)[0]:",
        "if True:",
        "notebooks/02-pid-1.ipynb",
    ),
    Mutation(
        "a new volume stays empty",
        "storage/volumes.py",
        "    if empty:\n        child.in_child(_fill_all",
        "    if False:\n        child.in_child(_fill_all",
        "notebooks/07-copy-on-write.ipynb",
    ),
    Mutation(
        "only the bounding set is cut",
        "isolation/security.py",
        "    sc.capset(mask(sets.effective), mask(sets.permitted), mask(sets.inheritable))\n",
        "",
        "tests/isolation/test_security.py -k handed_down",
    ),
    Mutation(
        "the bounding set is left",
        "isolation/security.py",
        "            sc.prctl(sc.PR_CAPBSET_DROP, place)\n",
        "            pass\n",
        "tests/isolation/test_security.py -k fourteen",
    ),
    Mutation(
        "no_new_privs is left off",
        "isolation/security.py",
        "    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)\n",
        "    pass\n",
        "tests/isolation/test_security.py -k a_user_that_is_not_root",
    ),
    Mutation(
        "ports are open to all",
        "network/firewall.py",
        'address = before[0] if before else "127.0.0.1"',
        'address = before[0] if before else "0.0.0.0"',
        "tests/network/test_network.py -k published_port_is_on_the_hosts_loopback",
    ),
    Mutation(
        "ports are reached through 127.0.0.1 from a container",
        "network/firewall.py",
        """[f'iifname "{bridge}" ip daddr 127.0.0.0/8 drop']""",
        "[]",
        "tests/network/test_network.py -k does_not_reach_the_hosts_loopback",
    ),
    Mutation(
        "a volume's path is walked outside its root",
        "storage/volumes.py",
        "fd = inroot.open_in_root(rootfs_fd, target, os.O_RDONLY | os.O_DIRECTORY)",
        "fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)",
        "tests/storage/test_volumes.py -k can_not_fill",
    ),
    Mutation(
        "a full volume is filled too",
        "storage/volumes.py",
        "    if any(data.iterdir()):\n        return False\n",
        "",
        "tests/storage/test_volumes.py -k filled",
    ),
    Mutation(
        "what leaves keeps the container's address",
        "network/firewall.py",
        """                f'ip saddr {subnet} oifname != "{bridge}" masquerade',\n""",
        "",
        "tests/network/test_network.py -k leaves_with_the_hosts_address",
    ),
    Mutation(
        "only the beginning of a blob is hashed",
        "images/digests.py",
        "        self._hash.update(data)\n",
        "        self._hash.update(data[:1])\n",
        "notebooks/09-images.ipynb",
    ),
    Mutation(
        "a whiteout is a device of another number",
        "images/whiteouts.py",
        "os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)",
        "os.mknod(name, stat.S_IFCHR, os.makedev(1, 3), dir_fd=parent)",
        "notebooks/06-layers.ipynb",
    ),
    Mutation(
        "a path of an image leads out of its root",
        "isolation/inroot.py",
        "resolve = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS",
        "resolve = sc.RESOLVE_NO_MAGICLINKS",
        "tests/storage/test_volumes.py -k link_in_the_image",
    ),
    Mutation(
        "interrupts are not masked",
        "container/standard_mounts.py",
        '    "/proc/interrupts",  # timing of keystrokes and of the other tenants\n',
        "",
        "notebooks/03-a-root-of-its-own.ipynb",
    ),
    Mutation(
        "swap is counted twice",
        "cgroups/limits.py",
        "    return total - memory\n",
        "    return total\n",
        "tests/cgroups/test_limits.py -k memory_swap",
    ),
    Mutation(
        "a signal is off by one in the exit status",
        "container/spawner.py",
        "else 128 + result.si_status",
        "else 127 + result.si_status",
        "tests/container/test_container.py -k over_its_memory",
    ),
]


def tree(folder: Path, mutation: Mutation) -> Path:
    """Copy what is run, break it, and return where. Raises SystemExit if there is no such place in the file."""
    home = folder / "lab"
    for name in ("labkit", "notebooks", "tests", "vagrant"):
        shutil.copytree(REPO / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "pyproject.toml", home)
    path = home / "labkit" / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        sys.exit(f"{mutation.name}: {mutation.file} has it {text.count(mutation.old)} times, not once")
    path.write_text(text.replace(mutation.old, mutation.new))
    return home


def noticed(mutation: Mutation) -> bool:
    """Break a copy, run what should notice, and tell whether it did."""
    # Below /var/tmp, as tests are: an upperdir can't lie on every kind of /tmp.
    with tempfile.TemporaryDirectory(prefix="mutation-", dir="/var/tmp", ignore_cleanup_errors=True) as folder:
        home = tree(Path(folder), mutation)
        words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutation.notices.split()]
        if ".ipynb" in mutation.notices:
            words += ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", "tests/nbval-sanitize.cfg"]
        env = os.environ | {"PYTHONPATH": str(home), "LABKIT_ROOT": f"{folder}/state"}
        try:
            done = subprocess.run(words, cwd=home, env=env, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return True
        finally:
            subprocess.run([sys.executable, "-m", "labkit", "clean", "--all"], cwd=home, env=env, capture_output=True)
    if done.returncode not in (0, 1):
        sys.exit(f"{mutation.name}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def main(words: list[str]) -> int:
    """Try those that were asked for; print a row for each; return 1 if one was not noticed."""
    missed = 0
    for mutation in ALL:
        if words and not any(word in mutation.name for word in words):
            continue
        began = time.monotonic()
        seen = noticed(mutation)
        missed += not seen
        took = f"{time.monotonic() - began:4.0f} s"
        print(f"{'noticed' if seen else 'MISSED ':8} {took}  {mutation.name:55} {mutation.notices}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
