"""The real Docker, beside ours: an engine of the lab's own, started for a cell and gone after it.

    with engine.private() as docker:
        print(docker("run", "--rm", "busybox", "ps"))

The chapters end with what Docker does here, and that is asked of Docker itself. A
`dockerd` gets folders, a socket and a cgroup that are ours, so nothing of it meets a
Docker that may run on this machine already: no bridge, no firewall rule, and its
mounts are in a mount namespace that ends with it. All that it starts is in one
cgroup, so one stroke ends it all. Its `busybox` is made of the same layer as ours.

Docker is not needed for the lab: without it `private` raises Unsupported, which says
what to install.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from labkit.cgroups import cgroupfs, hierarchies
from labkit.ground import ledger, packages, proc, state
from labkit.ground.errors import LabError, Unsupported
from labkit.images import catalog

# Debian's first: the client and the engine of one version, whatever else is on PATH.
_PATH = "/usr/bin:/usr/sbin:/bin:/sbin:/usr/local/bin:/usr/local/sbin"
Places = list[tuple[hierarchies.Hierarchy, Path]]  # a folder in each cgroup tree


def missing() -> str | None:
    """Return why no engine can be started here, or None."""
    if os.geteuid() != 0:
        return "an engine of one's own needs root"
    gone = [name for name in ("dockerd", "docker", "containerd", "runc") if not shutil.which(name, path=_PATH)]
    return f"no {', '.join(gone)} on this machine ({packages.advice(*gone)})" if gone else None


@contextlib.contextmanager
def private(
    images: Iterable[str] = ("busybox",),
    seconds: float = 60,
    runtimes: Mapping[str, str | Path] | None = None,
    default: str = "runc",
    network: bool = False,
    driver: str | None = None,
) -> "Iterator[Engine]":
    """Start an engine, hand it some of our images, yield it, and take all of it away.

    `runtimes` are {name: path} of OCI runtimes beside its own, `default` the one it uses unasked. With `network`
    it has a bridge and published ports, in a network namespace that is only its own. `driver` is the storage
    driver it has to take, in Docker's words ("overlay2", "vfs", …); unasked it chooses itself.
    Raises Unsupported without Docker, LabError if it doesn't answer in `seconds` or can't run that driver.
    """
    if reason := missing():
        raise Unsupported(f"no real Docker to compare with: {reason}")
    name = f"engine-{state.new_id()}"
    folder = state.lib_dir("engines") / name
    docker = Engine(folder)
    with ledger.made("folder", path=str(folder)):
        folder.mkdir(0o700)
        try:
            with own_cgroup(name) as places:
                docker.start(places, seconds, runtimes or {}, default, network, driver)
                for image in images:
                    docker.give(image)
                yield docker
        finally:
            docker.reap()


# containerd leaves orphans: they become children of this one process, outside the
# engine's cgroup, and not of the machine's PID 1. See PR_SET_CHILD_SUBREAPER in prctl(2).
_REAPER = f"""
import os, sys
sys.path.insert(0, {str(state.REPO)!r})
from labkit.ground import syscalls
syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
"""
REAPING = (sys.executable, "-S", "-E", "-c", _REAPER)


@contextlib.contextmanager
def own_cgroup(name: str) -> Iterator[Places]:
    """Make a folder in every cgroup tree, those without a controller of ours too: Docker uses all."""
    places = [(tree, tree.own / state.label() / name) for tree in hierarchies.hierarchies()]
    first, *also = (str(path) for _, path in places)
    with ledger.made("cgroup", path=first, also=also):
        for tree, path in places:
            cgroupfs.make_folder(tree, path).prepare()
        yield places


def entering(places: Places) -> list[str]:
    """Return lines of a shell script that put the shell into these cgroups."""
    lines = []
    for tree, path in places:
        home = path if tree.version == 1 else path / "daemon"
        home.mkdir(exist_ok=True)  # on v2 a folder with children may hold no process
        lines.append(f"echo $$ > {shlex.quote(str(home / 'cgroup.procs'))}")
    return lines


_NO_NETWORK = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")


class Engine:
    """One dockerd. Called with docker's own words it returns what docker prints; `ask` returns its complaints too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "s"
        self.process: Any = None  # the dockerd's Popen

    def __call__(self, *words: object, stdin: str | None = None) -> str:
        """Run one docker command; return its stdout. Raises LabError with docker's own complaint."""
        done = self.ask(*words, stdin=stdin)
        if done.returncode:
            raise LabError(f"docker {words[0]} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def ask(self, *words: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run one docker command; return its CompletedProcess, stdout and stderr apart.

        They are never one text: what docker warns of on one machine and not on another is no part of the answer.
        """
        command = [_found("docker"), "-H", f"unix://{self.socket}", *map(str, words)]
        # Where there is a buildx, `docker build` would be BuildKit's: it runs runc whatever runtime was named,
        # and makes cgroups from the root of v1's trees, which nobody takes away.
        env = {"PATH": _PATH, "HOME": str(self.folder), "DOCKER_CONFIG": str(self.folder), "DOCKER_BUILDKIT": "0"}
        source = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", **source)

    def start(
        self,
        places: Places,
        seconds: float,
        runtimes: Mapping[str, str | Path],
        default: str,
        network: bool,
        driver: str | None,
    ) -> None:
        """Start dockerd in its cgroup and wait until it answers."""
        v1 = any(tree.version == 1 and tree.controllers for tree, _ in places)
        lines = [*entering(places), *(f"umount -l {shlex.quote(mount)}" for mount in _other_trees(v1))]
        lines += ["ip link set lo up", *self._covering()]
        flags = [
            f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec", f"--pidfile={self.folder}/pid",
            f"--host=unix://{self.socket}", "--exec-opt=native.cgroupdriver=cgroupfs",
            *([] if network else _NO_NETWORK), *(f"--add-runtime={name}={path}" for name, path in runtimes.items()),
            f"--default-runtime={default}", *([f"--storage-driver={driver}"] if driver else ()),
            # v1: below the folder dockerd is in; v2: from the root of the tree.
            f"--cgroup-parent={'boxes' if v1 else f'/{state.label()}/{self.folder.name}'}",
        ]  # fmt: skip
        # --net always: told to have no bridge, dockerd takes away the docker0 that it finds.
        apart = ["unshare", "--mount", "--propagation=private", "--net"]
        script = "set -e\n" + "\n".join(lines) + "\nexec " + shlex.join([_found("dockerd"), *flags])
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [*REAPING, *apart, "sh", "-c", script],
                env={"PATH": _PATH, "HOME": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + seconds
        while "Server Version" not in self.ask("info").stdout:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self._refuse(driver)
            time.sleep(0.05)

    def _covering(self) -> list[str]:
        """Return lines that cover what dockerd writes to without being asked: it goes with its mount namespace."""
        upper, work = (self.folder / name for name in ("etc", "etc-work"))
        for path in (upper, work):
            path.mkdir()
        etc = f"mount -t overlay -o {shlex.quote(f'lowerdir=/etc,upperdir={upper},workdir={work}')} overlay /etc"
        return ["mount -t tmpfs tmpfs /run", "mount -t tmpfs tmpfs /opt", etc]

    def _refuse(self, driver: str | None) -> NoReturn:
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        # Its last word has no level; all before it is its diary.
        said = [line for line in lines if " level=" not in line][-1:] or lines[-3:]
        flag = f" -s {driver}" if driver else ""
        raise LabError(f"dockerd{flag} does not answer: {' '.join(said)[-600:]}", "`sudo dockerd --debug` says more")

    def reap(self) -> None:
        """Wait until all of it, which its cgroup's end has killed, is out of the process table."""
        if self.process:
            self.process.wait()

    def give(self, name: str) -> None:
        """Hand it one of our images, as `name`, made of the same layers."""
        image = catalog.get(name)
        if len(image.layers) != 1:
            raise LabError(f"{name} has {len(image.layers)} layers", "`lab save`, then docker load, keeps them apart")
        self._import(image, name)

    def _import(self, image: catalog.Image, name: str) -> None:
        archive = self.folder / "layer.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(image.layers[0], arcname=".")
        config = [f"ENV {pair}" for pair in image.config.env] + [f"CMD {json.dumps(list(image.config.cmd))}"]
        changes = [word for line in config for word in ("--change", line)]
        self("import", *changes, archive, name)
        archive.unlink()

    def pid(self, container: str) -> int:
        """Return the host's number of a container's first process."""
        return int(self("inspect", "--format", "{{.State.Pid}}", container))


def _found(program: str) -> str:
    return shutil.which(program, path=_PATH) or program


def _other_trees(v1: bool) -> list[str]:
    """Return where cgroup trees are mounted that labkit does not use beside v1's: Docker would make folders in them."""
    ours = {str(tree.mount) for tree in hierarchies.hierarchies() if tree.version == 1}
    return [
        mount.target
        for mount in proc.mounts()
        if v1 and mount.type in ("cgroup", "cgroup2") and mount.target not in ours
    ]
