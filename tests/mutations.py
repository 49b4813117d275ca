r"""Break labkit in one place at a time, and see that the chapter or test that should notice does.

    python tests/mutations.py             # all of them
    python tests/mutations.py stop ports  # those with one of these words in their name
    python tests/mutations.py --check     # only see that each place is there, once

Run by name, not in CI, and not under nice(1): chapter 02 prints what ps says of a process.
Each is done in a copy of the tree, never in place, with a state of its own. What has noticed
is run in a copy that is whole too, once: who fails there has noticed nothing. Nothing belongs
here whose chapter or test would then change the host itself: chapter 03 really writes to
core_pattern, so that lock is not taken off.

A mutation that nobody notices is a sentence that nothing holds: give it an assertion in a
cell, or a test with a name. Exit status 1 if there is one.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).parents[1]
SECONDS = 400  # what hangs has been noticed

# A block each: its name; the file, and after `--` what must fail (a chapter's number, or a test
# file and a part of a test's name); the lines as they are (-) and as they become (+), without their indentation.
ALL = r"""
a sysctl is written wherever its path leads
isolation/sysctls.py -- 11
-with open(path, "w", opener=_of_this_proc) as file:
+with open(path, "w") as file:

the console is bound by the terminal's name
container/steps.py -- lessons/test_escapes.py console
-terminal = mounts.clone_tree("", slave, recursive=False)
+terminal = mounts.clone_tree("/dev/pts/0", recursive=False)

two bridges are not kept apart
network/firewall.py -- 10
-f'oifname "{bridge}" drop',

stop kills at once
container/life.py -- 02
-syscalls.pidfd_send_signal(pidfd, number)
-if not select.select([pidfd], [], [], timeout)[0]:
+if True:

a new volume stays empty
storage/volumes.py -- 07
-if empty:
+if False:

only the bounding set is cut
isolation/security.py -- isolation/test_security.py handed_down
-sc.capset(mask(sets.effective), mask(sets.permitted), mask(sets.inheritable))

the bounding set is left
isolation/security.py -- isolation/test_security.py fourteen
-sc.prctl(sc.PR_CAPBSET_DROP, place)
+pass

no_new_privs is left off
isolation/security.py -- isolation/test_security.py a_user_that_is_not_root
-sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
+pass

ports are open to all
network/firewall.py -- network/test_network.py published_port_is_on_the_hosts_loopback
-address = before[0] if before else "127.0.0.1"
+address = before[0] if before else "0.0.0.0"

ports are reached through 127.0.0.1 from a container
network/firewall.py -- network/test_network.py does_not_reach_the_hosts_loopback
-"guard": ("filter hook prerouting priority raw", [f'iifname "{bridge}" ip daddr 127.0.0.0/8 drop']),
+"guard": ("filter hook prerouting priority raw", []),

a volume's path is walked outside its root
storage/volumes.py -- storage/test_volumes.py can_not_fill
-fd = inroot.open_in_root(rootfs_fd, target, os.O_RDONLY | os.O_DIRECTORY)
+fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)

a full volume is filled too
storage/volumes.py -- storage/test_volumes.py filled
-if any(data.iterdir()):
-return False

what leaves keeps the container's address
network/firewall.py -- network/test_network.py leaves_with_the_hosts_address
-f'ip saddr {subnet} oifname != "{bridge}" masquerade',

only the beginning of a blob is hashed
images/digests.py -- 09
-self._hash.update(data)
+self._hash.update(data[:1])

a whiteout is a device of another number
images/whiteouts.py -- 06
-os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
+os.mknod(name, stat.S_IFCHR, os.makedev(1, 3), dir_fd=parent)

a path of an image leads out of its root
isolation/inroot.py -- storage/test_volumes.py link_in_the_image
-resolve = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
+resolve = sc.RESOLVE_NO_MAGICLINKS

interrupts are not masked
container/standard_mounts.py -- 03
-"/proc/interrupts",  # timing of keystrokes and of the other tenants

swap is counted twice
cgroups/limits.py -- cgroups/test_limits.py memory_swap
-return total - memory
+return total

a signal is off by one in the exit status
container/spawner.py -- container/test_container.py over_its_memory
-return result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status
+return result.si_status if result.si_code == os.CLD_EXITED else 127 + result.si_status

what a child prints is lost
ground/child.py -- 01
-sys.stdout.write(decode(bytes(received[output])))
+decode(bytes(received[output]))

only the number out here is read
ground/proc.py -- 02
-nspid=tuple(int(number) for number in status["NSpid"].split()),
+nspid=(int(status["Pid"]),),

the oldest is given back first
ground/ledger.py -- ground/test_ledger.py newest_first
-for entry in reversed(entries()):
+for entry in entries():

a number that came back is taken for the owner
ground/proc.py -- ground/test_ledger.py number_came_back
-return int(fields[19]) == ticks and fields[0] not in "ZX"
+return fields[0] not in "ZX"

a folder is removed through a mount
ground/ledger.py -- ground/test_ledger.py folder_with_a_mount
-if inside:
+if False:

what could not be given back is struck out
ground/ledger.py -- ground/test_ledger.py cannot_be_given_back
-_UNDOERS[entry.kind](**entry.what)
-strike(entry)
+strike(entry)
+_UNDOERS[entry.kind](**entry.what)

a lock keeps nobody out
ground/state.py -- network/test_network.py many_at_once
-fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
+pass

no filter is installed
isolation/seccomp.py -- 11
-if program:
-sc.seccomp(sc.SECCOMP_SET_MODE_FILTER, 0, program)
+pass

clone makes new namespaces past the filter
isolation/seccomp.py -- isolation/test_security.py forbidden_to_clone_too
-namespaces = 0x7E020000  # sched.h: all CLONE_NEW… that clone(2) takes
+namespaces = 0

the last program can be written to
isolation/last_exec.py -- isolation/test_security.py sealed_program_can_not_be_written
-seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
+seals = fcntl.F_SEAL_SEAL

a mask covers nothing
isolation/mounts.py -- 03
-attach(cover, target)
+pass

the old root stays mounted
isolation/mounts.py -- container/test_container.py old_root_is_gone
-sc.umount2(".", sc.MNT_DETACH)

a disk opens from a container's root
isolation/mounts.py -- storage/test_storage.py device_node_in_a_root
-# nodev: a container may have CAP_MKNOD, but a disk it makes a node for stays shut.
-attrs: int = NODEV
+attrs: int = 0

a mount is led on by an image's link
isolation/inroot.py -- 03
-resolve |= sc.RESOLVE_NO_SYMLINKS
+pass

users are mapped as groups are
isolation/namespaces.py -- 01
-for name, mapping in (("uid_map", uid_map), ("gid_map", gid_map)):
+for name, mapping in (("uid_map", gid_map), ("gid_map", gid_map)):

an image's files keep the host's ids
isolation/idmap.py -- isolation/test_userns.py images_files_belong
-sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH, attr_set=sc.MOUNT_ATTR_IDMAP, userns_fd=users)

a container's boot clock is the host's
isolation/namespaces.py -- isolation/test_isolation.py other_clocks
-f"monotonic {monotonic} {nanoseconds[0]}\nboottime {boottime} {nanoseconds[1]}\n"
+f"monotonic {monotonic} {nanoseconds[0]}\n"

a slave mount is a private one
isolation/mount_options.py -- oci/test_runtime.py later_mounts_come_through
-_SPREAD = {"private": sc.MS_PRIVATE, "slave": sc.MS_SLAVE, "shared": sc.MS_SHARED, "unbindable": sc.MS_UNBINDABLE}
+_SPREAD = {"private": sc.MS_PRIVATE, "slave": sc.MS_PRIVATE, "shared": sc.MS_SHARED, "unbindable": sc.MS_UNBINDABLE}

a sysctl is written wherever /proc leads
isolation/sysctls.py -- isolation/test_sysctls.py never_led_elsewhere
-resolve = sc.RESOLVE_NO_XDEV | sc.RESOLVE_NO_SYMLINKS
+resolve = 0

a k is a thousand
cgroups/quantities.py -- 05
-size = int(Decimal(match[1]) * 1024**power)
+size = int(Decimal(match[1]) * 1000**power)

a limit is set on a partition
cgroups/quantities.py -- cgroups/test_limits.py belongs_on_the_disk
-whole_disk = device.parent if (device / "partition").exists() else device
+whole_disk = device

a quota is twice what was said
cgroups/limits.py -- 04
-quota = int(Decimal(text) * period)
+quota = int(2 * Decimal(text) * period)

a weight is written as shares as it is
cgroups/limits.py -- cgroups/test_limits.py shares_of_1024
-PER_SHARE = 1024 / DEFAULT_WEIGHT  # kernel/sched/core.c, cpu_weight_write_u64()
+PER_SHARE = 1.0

half of what was used is told
cgroups/cgroup.py -- 04
-found.update((name, value) for name, value in folder.stats().items() if value is not None)
+found.update((name, value // 2) for name, value in folder.stats().items() if value is not None)

the CPUs that were named are not written
cgroups/limits.py -- 04
-found["cpuset_cpus"] = _present_cpus(str(words["cpuset_cpus"]))
+_present_cpus(str(words["cpuset_cpus"]))

one process more than was said
cgroups/limits.py -- lessons/test_checks_memory.py held_takes
-found["pids"] = pids  # 0 and -1 are docker's "no limit"
+found["pids"] = pids + 1

a frozen group goes on
cgroups/cgroup.py -- cgroups/test_cgroups.py frozen_processes_use_no_cpu
-self.write("cgroup.freeze", int(frozen))
+self.write("cgroup.freeze", 0)

news of a kill is lost
cgroups/events.py -- 05
-self._seen += new
-return new
+return 0

every device opens
cgroups/devices.py -- cgroups/test_cgroups.py only_dockers_devices
-return b"".join([*code, _instruction(_MOVE, _R0, constant=0), _instruction(_EXIT)])
+return b"".join([*code, _instruction(_MOVE, _R0, constant=1), _instruction(_EXIT)])

a port leads to the same number inside
network/firewall.py -- network/test_network.py published_port_is_on_the_hosts_loopback
-rule = f"{match} {protocol} dport {host} dnat ip to {user['address']}:{container}"
+rule = f"{match} {protocol} dport {host} dnat ip to {user['address']}:{host}"

answers are not let in
network/firewall.py -- network/test_network.py leaves_with_the_hosts_address
-f'oifname "{bridge}" ct state established,related accept',

a port that is taken is given again
network/firewall.py -- network/test_network.py port_that_is_taken
-if (port.host, port.protocol) in taken:
+if False:

neighbours are not written down
network/bridge.py -- 10
-_write_hosts(known)
-return replace(_plug(known, container, address), hairpin=bool(ports))
+return replace(_plug(known, container, address), hairpin=bool(ports))

all have one address
network/bridge.py -- network/test_network.py many_at_once
-if str(address) not in used:
+if True:

name servers of the host's loopback are handed in
network/bridge.py -- network/test_network.py name_servers
-line for line in lines if not line.replace("\t", " ").startswith(("nameserver 127.", "nameserver ::1"))
+line for line in lines

the bridge passes nothing on
network/bridge.py -- network/test_network.py reached_from_a_neighbour
-firewall.turn(f"/proc/sys/net/ipv4/conf/{bridge}/forwarding", "1")
+pass

a promised digest is not compared
images/digests.py -- images/test_hostile_layers.py another_digest
-if promised is not None and promised != found:
+if False:

a path of a layer may lead upward
images/rootdir.py -- 06
-if part == "..":
+if False:

a whiteout takes nothing away in a flat root
images/unpack.py -- images/test_layers.py applied_flat
-elif self.flat and tuple(parts) not in self._ours:
-self.root.remove(parts)

an opaque folder gets no mark
images/whiteouts.py -- images/test_layers.py opaque_folder
-os.setxattr(path, XATTRS[userxattr] + "opaque", b"y")
+pass

who walks a tree believes that .. is where he came from
ground/trees.py -- ground/test_ledger.py moved_while_it_is_read
-if not os.path.samestat(os.fstat(folder), known):
+if False and known:

the host's network is joined by the power of another's user namespace
oci/moments.py -- oci/test_runtime.py another_owner
-others = [pair for pair in others if pair[0] == "mnt" or not _joined(*pair)]
+others = list(others)

a layer's files come in another order
images/diff.py -- images/test_layers.py whatever_order
-return iter(sorted(entries, key=lambda entry: os.fsencode(entry.name)))
+return iter(sorted(entries, key=lambda entry: os.fsencode(entry.name), reverse=True))

holes are filled with zeros
images/unpack.py -- images/test_layers.py zeros_become_holes
-if not block[at] and _ZEROS.startswith(page := block[at : at + _PAGE]):
+if not block[at] and not _ZEROS.startswith(page := block[at : at + _PAGE]):

a line that made no layer is not marked
images/commit.py -- 09
-history.append({"created_by": created_by} | ({} if layer is not None else {"empty_layer": True}))
+history.append({"created_by": created_by})

what was changed is said to be added
images/diff.py -- 06
-found.append(Change(shown, "C" if _visible(inside, lowerdirs) else "A"))
+found.append(Change(shown, "A"))

the lowest layer lies on top
storage/roots.py -- 06
-tops = tuple(dict.fromkeys(reversed(lowerdirs)))
+tops = tuple(dict.fromkeys(lowerdirs))

only what is said of a file is copied up
storage/roots.py -- lessons/test_copyup.py cost_the_whole_file
-DEFAULT_OPTIONS = ("metacopy=off", "redirect_dir=off", "index=off")
+DEFAULT_OPTIONS = ("metacopy=on", "redirect_dir=on", "index=off")

a volume that is mounted is removed
storage/volumes.py -- storage/test_volumes.py mounted_somewhere
-if user is not None:
+if False:

a hard link counts twice
storage/roots.py -- storage/test_storage.py hard_link_once
-if (status.st_dev, status.st_ino) not in seen:
+if True:

a layer that a container stands on is collected
storage/garbage.py -- images/test_images.py container_stands_on
-needed = _folders(layout) | set(layers_in_use())
+needed = _folders(layout)

a copy is another name of the same file
storage/roots.py -- 08
-command = ["cp", "-a", *flags, "--sparse=auto", "--reflink=never", "-T", str(source), str(target)]
+command = ["cp", "-al", *flags, "--sparse=auto", "--reflink=never", "-T", str(source), str(target)]

a read-only volume can be written to
container/spec.py -- container/test_container.py read_only_volume
-attrs = nodev | (mounts.RDONLY if self.read_only else 0)
+attrs = nodev

a read-only root can be written to
container/spec.py -- 03
-*([mounts.Seal("/")] if self.read_only else []),

/sys can be written to
container/standard_mounts.py -- 03
-Filesystem("sysfs", "/sys", (), RDONLY | NOSUID | NODEV | NOEXEC),
+Filesystem("sysfs", "/sys", (), NOSUID | NODEV | NOEXEC),

a container writes its own limits
container/standard_mounts.py -- cgroups/test_cgroups.py raise_its_own_limit
-sealed: int = RDONLY | NOSUID | NODEV | NOEXEC,
+sealed: int = NOSUID | NODEV | NOEXEC,

a container sees where in the tree it is
container/launch.py -- 01
-*([CgroupNamespace()] if "cgroup" in kinds else []),

a container has the host's name
container/launch.py -- isolation/test_isolation.py hosts_name
-*([SetHostName(hostname)] if hostname else []),

a container's loopback stays down
container/launch.py -- 11
-*([LoopbackUp()] if "net" in kinds else []),

open files are handed down
container/launch.py -- container/test_container.py no_fd_of_ours
-CloseFds(),

a container has its maker's keyring
container/launch.py -- lessons/test_escapes.py two_locks
-NewKeyring(),

there is no init
container/spec.py -- 02
-return (standard_mounts.INIT, "--", *argv) if self.init else argv
+return argv

what its maker ignored stays ignored
container/steps.py -- container/test_pid1.py ignores_is_not_ignored
-if signal.getsignal(number) not in (signal.SIG_DFL, None):
+if False:

exec leaves one namespace out
container/joining.py -- container/test_container.py exec_is_in_all
-namespaces.enter(pidfd, self.kinds)
+namespaces.enter(pidfd, tuple(kind for kind in self.kinds if kind != "ipc"))

exec is in no cgroup
container/life.py -- container/test_container.py exec_is_in_all
-job = self.altered(Job(steps, entry=self._entry(self.pid)))
+job = self.altered(Job(steps))

a kill for want of memory is not told
container/life.py -- 05
-self.oom_killed = bool(self.cgroup.oom_kills())
+self.oom_killed = False

without root a limit is taken in silence
container/rootless.py -- container/test_rootless.py refused_by_name
-if wanted := spec.limits.describe():
+if False:

the cache does not look at what is copied
build/layer_cache.py -- 09
-made_of,

nothing is remembered of a build
build/layer_cache.py -- 09
-if not self.cache:
+if True:

a RUN that fails makes a layer
build/layer_cache.py -- build/test_build.py run_that_fails
-if code := box.wait():
+if (code := box.wait()) and False:

what a container is mounted on is in its layer
build/layer_cache.py -- build/test_build.py mount_points_of_the_engine
-_drop_mount_points(box.rootfs, [volume.target for volume in mounts.volumes])

--chmod is not heard
build/builder.py -- 09
-return Copier("", owner, self._mode(instruction, mode) if mode else None, ignore.Ignored(excluded))
+return Copier("", owner, None, ignore.Ignored(excluded))

what is left out stays left out
build/ignore.py -- build/test_build.py dockerignore_leaves
-if line.keeps == ignored and any(line.pattern.match(one) for one in above):
+if not line.keeps and any(line.pattern.match(one) for one in above):

create starts the program
oci/gate.py -- oci/test_runtime.py does_not_run_before_start
-while os.read(fd, 1) != b"1":
-pass
+pass

who waits is said to run
oci/lifecycle.py -- 13
-if gate.is_shut(self.folder):
-return "created"

what can't be done is let pass
oci/bundle.py -- 13
-if value:
-raise Unsupported(f"{full}: {_NOT_HERE[full]}", "leave it out of config.json")
+pass

a config's readonly is not heard
oci/bundle.py -- 13
-if bundle.config["root"].get("readonly"):
+if False:

a config's masks are left out
oci/bundle.py -- oci/test_runtime.py masked_and_read_only
-steps += [mounts.Mask(path) for path in dict.fromkeys(_paths(linux, "maskedPaths"))]

a config's memory limit is not set
oci/resources.py -- oci/test_runtime.py resources_are_what
-return {"memory": limit, "memory_swap": beyond, "memory_low": words.get("reservation") or None}
+return {"memory_low": words.get("reservation") or None}

a hook that fails stops nothing
oci/hooks.py -- oci/test_runtime.py hook_that_fails_before
-if done.returncode:
+if False:

kill --all reaches one
oci/lifecycle.py -- oci/test_runtime.py kill_all_reaches
-for pid in group.procs():
+for pid in group.procs()[:1]:

any process of the container is the right answer
lessons/checks/pid1.py -- container/test_pid1.py outside_number
-proc.process(answer).nspid[-1] == inside,
+True,

the one byte is not written
lessons/watch/copyup.py -- 07
-file.write(b"x")
+pass

a whiteout is shown as any device
lessons/watch/listing.py -- 06
-if whiteouts.is_whiteout(status, path):
-return f"  [whiteout: character device {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}]"

a program takes a quarter of what it says
lessons/watch/workloads.py -- lessons/test_checks_memory.py fits_takes
-f"while (n < {megabytes // step}) {{ kept[n++] = block; {pause} }} "
+f"while (n < {megabytes // (4 * step)}) {{ kept[n++] = block; {pause} }} "

the museum leaves every lock on
lessons/scenes/unlocked.py -- 11
-for name in self.unlocked:
-steps = OTHERWISE.get(name, lambda same: same)(steps)

a participant's gap is filled
lessons/gaps.py -- lessons/test_coursework.py marked_gap
-return asked + (shown or f"{asked[: asked.index('#')]}...\n")
+return asked + match[2]

what was passed is forgotten by the next try
lessons/coursework.py -- lessons/test_coursework.py once_passed
-if entry["passed"] is None:
+if True:

nobody owns a namespace
lessons/watch/lsns.py -- 01
-relations[kind, inode] = (above, owner)
+relations[kind, inode] = (above, None)
"""


@dataclass(frozen=True)
class Mutation:
    """What is broken: the lines `old` become `new` in `file`, and `notices` (pytest's words) must fail."""

    name: str
    file: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    notices: tuple[str, ...]

    @classmethod
    def parse(cls, block: str) -> "Mutation":
        """Return the Mutation that a block of ALL says."""
        name, where, *lines = block.splitlines()
        file, _, who = where.partition(" -- ")
        old, new = (tuple(line[1:] for line in lines if line[0] == sign) for sign in "-+")
        test, *part = who.split()
        if test.isdigit():
            (chapter,) = (REPO / "notebooks").glob(f"{test}-*.ipynb")
            return cls(name, file, old, new, (f"notebooks/{chapter.name}",))
        return cls(name, file, old, new, (f"tests/{test}", *(("-k", *part) if part else ())))

    def broken(self, text: str) -> str:
        """Return the file's text, broken. Raises SystemExit if there is not one such place in it."""
        lines = text.split("\n")
        bare = tuple(line.strip() for line in lines)
        size = len(self.old)
        places = [at for at in range(len(lines)) if bare[at : at + size] == self.old]
        if len(places) != 1:
            sys.exit(f"{self.name}: {self.file} has it {len(places)} times, not once")
        (at,) = places
        indent = lines[at][: len(lines[at]) - len(bare[at])]
        lines[at : at + size] = [indent + line for line in self.new]
        return "\n".join(lines)


def tree(folder: Path, mutation: Mutation | None) -> Path:
    """Copy what is run, break it, and return where."""
    home = folder / "lab"
    for name in ("labkit", "notebooks", "tests", "vagrant"):
        shutil.copytree(REPO / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "pyproject.toml", home)
    if mutation:
        path = home / "labkit" / mutation.file
        path.write_text(mutation.broken(path.read_text()))
    return home


def failure(notices: tuple[str, ...], mutation: Mutation | None) -> str:
    """Run what should notice in a copy that is broken, or whole; return what failed first, "" if nothing did."""
    # Below /var/tmp, as tests are: an upperdir can't lie on every kind of /tmp.
    with tempfile.TemporaryDirectory(prefix="mutation-", dir="/var/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # chapter 02 has an ordinary user run it
        home = tree(Path(folder), mutation)
        words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *notices]
        if notices[0].endswith(".ipynb"):
            words += ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", "tests/nbval-sanitize.cfg"]
        # What others leave on the host meanwhile proves nothing: a test must fail.
        env = os.environ | {"PYTHONPATH": str(home), "LABKIT_ROOT": f"{folder}/state", "LAB_TEST_IGNORE": "."}
        try:
            done = subprocess.run(words, cwd=home, env=env, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return f"still ran after {SECONDS} s"
        finally:
            subprocess.run([sys.executable, "-m", "labkit", "clean", "--all"], cwd=home, env=env, capture_output=True)
    if done.returncode not in (0, 1):
        what = mutation.name if mutation else "whole"
        sys.exit(f"{what}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) \S*?::(.*)", done.stdout, re.MULTILINE)
    return re.sub(r"\x1b\[\d*m", "", failed[1]) if failed else ""


@functools.cache
def fails_whole(file: str, parts: tuple[str, ...]) -> str:
    """Return what fails of a file's noticers where nothing is broken."""
    return failure((file, *(("-k", " or ".join(parts)) if all(parts) else ())), None)


def main(words: list[str]) -> int:
    """Try those that were asked for; print a row for each; return 1 if one was not noticed."""
    found = [Mutation.parse(block) for block in ALL.strip().split("\n\n")]
    for mutation in found:
        mutation.broken((REPO / "labkit" / mutation.file).read_text())
    wanted = [one for one in found if not words or any(word in one.name for word in words)]
    missed = 0
    for mutation in wanted:
        file, *part = mutation.notices
        parts = dict.fromkeys(one.notices[-1] if part else "" for one in wanted if one.notices[0] == file)
        begun = time.monotonic()
        failed = failure(mutation.notices, mutation)
        took = f"{time.monotonic() - begun:4.0f} s"
        said = "noticed" if failed else "MISSED"
        if failed and (otherwise := fails_whole(file, tuple(parts))):
            said, failed = "FAILS WHOLE", otherwise
        missed += said != "noticed"
        print(f"{said:11} {took}  {mutation.name:53} {mutation.file:29} {file}: {failed}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
