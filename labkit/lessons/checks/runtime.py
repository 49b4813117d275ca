"""Checks of chapter 13: a config.json that says what it should, a gate that holds, a runtime that listens in."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from labkit.ground import child, ledger, proc, state
from labkit.ground import syscalls as sc
from labkit.ground.errors import LabError
from labkit.images import catalog
from labkit.lessons.checks import exercise
from labkit.oci import lifecycle


@exercise
def config(words):
    """A container made of a config is named web, may use 64 MiB and 20 processes, and can't write to its root."""
    with _created(words) as box:
        pid = box.record()["pid"]
        name = child.in_child(_hostname, pid)
        yield (
            name == "web",
            "its host name is web",
            f"it is {name!r}: `hostname` is at the top of the config",
            'config["hostname"] = "web"',
        )
        group = box.cgroup()
        for file, wanted, path in (("memory.max", 64 << 20, "memory"), ("pids.max", 20, "pids")):
            found = group.read(file).strip()
            yield (
                found == str(wanted),
                f"its cgroup's {path} limit is {wanted}",
                f"it is {found}: limits are in linux.resources, as numbers, in bytes and in processes",
                f'config["linux"]["resources"]["{path}"] = {{"limit": {wanted}}}',
            )
        root = child.in_child(_root_mount, pid)
        yield (
            "ro" in root.options,
            "its root is mounted read-only",
            "`root` in the config has two words: where it is, and whether it may be written",
            'config["root"]["readonly"] = True',
        )
        own = proc.namespace(pid, "pid") != proc.namespace("self", "pid")
        yield own, "and it still has process numbers of its own", "take no namespace away"


@contextlib.contextmanager
def _created(words):
    """Make a container of a config in folders of its own, created and not started; give it back."""
    folder = state.run_dir("checks") / f"bundle-{state.new_id()}"
    with ledger.made("folder", path=str(folder)):
        folder.mkdir()
        try:
            words = json.loads(json.dumps(words))
            shutil.copytree(catalog.get("busybox").layers[0], folder / "rootfs", symlinks=True)
            words["root"]["path"] = str(folder / "rootfs")
            words["process"]["terminal"] = False
            (folder / "config.json").write_text(json.dumps(words))
        except (TypeError, KeyError, AttributeError) as error:
            raise LabError(
                f"that is no config any more: {error!r}", "change single places of the example, and no more"
            ) from None
        box = lifecycle.Box(lifecycle.default_root(), f"check-{state.new_id()}")
        create = [lifecycle.PROGRAM, "--root", box.root, "create", "--bundle", folder, box.id]
        # Into a file: what was created keeps a pipe open for as long as it runs.
        with open(folder / "said", "w") as said:
            done = subprocess.run(create, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
        if done.returncode:
            raise LabError((folder / "said").read_text().strip().splitlines()[0], "the runtime refuses it by that name")
        try:
            yield box
        finally:
            subprocess.run(
                [lifecycle.PROGRAM, "--root", box.root, "delete", "--force", box.id], stdin=subprocess.DEVNULL
            )


def _hostname(pid):
    sc.setns(os.pidfd_open(pid), sc.CLONE_NEWUTS)
    return socket.gethostname()


def _root_mount(pid):
    return next(mount for mount in proc.mounts(pid) if mount.target == "/")


@exercise
def gate(wait, seconds=3.0):
    """`wait(path)` sleeps until somebody writes into the named pipe at `path`, then returns."""
    folder = state.run_dir("checks") / f"gate-{state.new_id()}"
    with ledger.made("folder", path=str(folder)):
        folder.mkdir()
        fifo = folder / "exec.fifo"
        os.mkfifo(fifo)
        pid = _call(wait, fifo)
        pidfd = os.pidfd_open(pid)
        try:
            time.sleep(0.3)
            ended = bool(select.select([pidfd], [], [], 0)[0])
            yield (
                not ended,
                "before the gate is opened, it waits",
                "it has returned, or failed, already: opening a pipe to read waits for a writer, and so does reading",
                "with open(path) as pipe: pipe.read()",
            )
            before = proc.process(pid).cpu_ticks
            time.sleep(0.3)
            process = proc.process(pid)
            yield (
                process.state.startswith("S") and process.cpu_ticks - before <= 2,
                "it sleeps, and uses no CPU",
                f"its state is {process.state}: asking again and again keeps a core busy; let the kernel wake it",
                "open(path) without O_NONBLOCK, then read",
            )
            opened = _open_it(fifo)
            yield (
                opened,
                "it waits at that pipe",
                "nobody has the pipe open for reading",
                "open(path), and no other file",
            )
            done = bool(select.select([pidfd], [], [], seconds)[0])
            yield (
                done,
                "when the gate is opened, it goes on",
                "a byte was written, and it still waits",
                "return after the first read",
            )
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.close(pidfd)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        yield code == 0, "without an error", "it raised an error", "it only has to return"


def _call(function, path):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            function(str(path))
            code = 0
        finally:
            os._exit(code)
    return pid


def _open_it(fifo):
    """Do what `start` does; return whether somebody was there."""
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with contextlib.suppress(BrokenPipeError):
        os.write(fd, b"1")
    os.close(fd)
    return True


@exercise
def listener(docker, log):
    """A runtime named spy lets Docker run a container, and writes down each time that it is called."""
    log = Path(log)
    log.write_text("")
    done = docker.ask("run", "-d", "--runtime", "spy", "busybox", "sleep", "60")
    number = done.stdout.strip()
    try:
        yield (
            re.fullmatch("[0-9a-f]{64}", number),
            "Docker can start a container with it",
            f"Docker says: {done.stderr.strip()[-300:]}",
            'the last line of the script hands everything on: exec labkit-runtime "$@"',
        )
        own = proc.namespace(docker.pid(number), "pid") != proc.namespace("self", "pid")
        yield own, "and it is a real one, with a PID namespace of its own", "exec labkit-runtime, or runc"
    finally:
        if number:
            docker.ask("rm", "-f", number)
    said = log.read_text()
    for word in ("create", "start", "delete"):
        yield (
            re.search(rf"(^|\s){word}\s", said, re.M),
            f"`{word}` was written down",
            f"{log} does not say so: write the words that it is called with, a line each time",
            f'echo "$@" >> {log}',
        )
    yield len(said.splitlines()) >= 3, "a line for each call", "add a line, and keep those that are there: >>"
