"""The process that clones: here if this process is small and alone, else in a helper.

clone3(2) copies the caller. From a notebook kernel that is dear (hundreds of
megabytes of page tables) and wrong (threads hold locks that the copy would wait
for, for ever). So a notebook starts one small clean process, the spawner, sends
it Jobs, and gets back a pid, a pidfd and perhaps a terminal:

    notebook  ──Job, three fds──▶  spawner  ──clone3──▶  container's first process
              ◀──pid, pidfd──────           ◀──error or exec────

The spawner is the parent of what it clones: it reaps it and remembers how it
ended. When the notebook dies, the socket between them closes, and the spawner
kills its children and ends. Nothing has to go right in the notebook for that.
The `lab` command is small and has one thread: it clones by itself.
"""

import contextlib
import gc
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, replace

from labkit.container import launch
from labkit.ground import proc, state
from labkit.ground import syscalls as sc
from labkit.ground.errors import CommandError, KernelError, LabError, NotFound, from_oserror, from_plain
from labkit.isolation import namespaces, settings


@dataclass
class Spawned:
    """A process that now runs the job's program."""

    pid: int
    pidfd: int
    terminal: int | None = None  # the master side, if the job asked for one


def spawn(job, stdio, at_hooks=None, enter=None):
    """Clone a process for `job` with `stdio` as its fds 0, 1 and 2; return when its program runs.

    With a gate in the job it returns when the process waits there. `at_hooks` is
    called with the pid at the moment of the hooks, before pivot_root; `enter` before
    anything else, to move the process to its cgroup in some other way. Raises what stopped it,
    CommandError if only the last step, exec, failed. The caller must have one thread. See clone3(2).
    """
    if job.plan and "user" in (*job.namespaces, *(kind for kind, _ in job.paths)):
        with job.plan.gathered() as plan:
            return _spawn(replace(job, plan=plan), stdio, at_hooks, enter)
    return _spawn(job, stdio, at_hooks, enter)


def _spawn(job, stdio, at_hooks, enter):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    into = None
    spawned = None
    try:
        if job.cgroup_into:
            into = os.open(job.cgroup_into, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # The cgroup and time namespaces come later, in the child: see launch.
        kinds = () if job.joins else [k for k in job.namespaces if k not in ("cgroup", "time")]
        pid, pidfd = sc.clone3(namespaces.flags(kinds) | sc.CLONE_PIDFD, signal.SIGCHLD, into)
        if pid == 0:
            ours.close()  # or it would wait for ever for a parent that was killed
            launch.become(job, theirs, stdio)
        theirs.close()
        spawned = Spawned(pid, pidfd)
        if enter:
            enter(pid)
        _prepare(job, pid)
        _go(ours, job, pid)
        spawned = _until_exec(ours, spawned, job, at_hooks)
        return spawned
    except OSError as error:
        _abandon(spawned)
        raise from_oserror(error, "starting a process in the container") from None
    except BaseException:
        _abandon(spawned)
        raise
    finally:
        ours.close()
        theirs.close()
        if into is not None:
            os.close(into)


def _prepare(job, pid):
    """Do for the waiting child what only its parent may."""
    if job.network is not None:
        from labkit.network import bridge

        bridge.plug_in(job.network, pid)
    if job.settings.oom_score_adj is not None:
        settings.set_oom_score_adj(pid, job.settings.oom_score_adj)
    if not job.paths:
        _map_ids(job, pid)


def _go(channel, job, pid):
    """Let the child go on; with it goes the root, where only the parent can make it."""
    if not job.idmapped:
        channel.send(b"go")
        return
    from labkit.isolation import idmap

    root = idmap.root(job.plan.root, pid)
    try:
        socket.send_fds(channel, [b"go"], [root])
    finally:
        os.close(root)


def _map_ids(job, pid):
    if "user" in job.namespaces and job.join is None:
        namespaces.map_ids(pid, job.uid_map, job.gid_map)


def _until_exec(channel, spawned, job, at_hooks=None):
    """Follow the child's messages until exec closes its end of the channel.

    They are read as from a stranger: in the end it is one, and in a container that
    runs already others may have got at it before.
    """
    first = spawned.pid
    while True:
        if job.joins and spawned.pid == first and channel not in select.select([channel, spawned.pidfd], [], [])[0]:
            raise LabError("the process that was to enter the container was killed", "`dmesg` may say by whom")
        try:
            message, fds, _, _ = socket.recv_fds(channel, 1 << 18, 1)
        except ConnectionResetError:  # it died with our `go` unread
            message = b""
        if not message and job.gate:
            raise LabError(
                "the container's process was killed before it was ready",
                "by the kernel, if its memory limit is less than some 6 MiB: `dmesg` says so",
            )
        if not message:
            break
        if len(message) == 4:  # the last step's errno, see last_exec
            raise CommandError(job.argv[0], int.from_bytes(message, sys.byteorder))
        kind, value = _read(message)
        if kind == "terminal" and job.terminal and spawned.terminal is None and fds:
            spawned.terminal = fds[0]
        elif kind == "created" and job.gate:
            break
        elif kind == "rlimits" and job.settings.rlimits:
            settings.set_rlimits(spawned.pid, job.settings.rlimits)
            channel.send(b"go")
        elif kind == "hooks" and job.hooks:
            at_hooks(spawned.pid)
            channel.send(b"go")
        elif kind == "pid" and job.joins and spawned.pid == first and _is_child(value):
            # It joined a pid namespace: its child is the one that counts.
            os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
            os.close(spawned.pidfd)
            spawned.pid, spawned.pidfd = value, os.pidfd_open(value)
            if job.paths:
                _map_ids(job, value)
            channel.send(b"go")
        else:
            raise from_plain(value)
    # The channel also closes when the child is killed before exec, by the OOM killer
    # for one: then it was labkit's code that died, and the exit status tells.
    return spawned


def _read(message):
    with contextlib.suppress(ValueError, RecursionError):
        match json.loads(message):
            case [str(kind), value]:
                return kind, value
    return "unreadable", message[:200]


def _is_child(pid):
    with contextlib.suppress(NotFound):
        return isinstance(pid, int) and int(proc.stat_fields(pid)[1]) == os.getpid()
    return False


def _abandon(spawned):
    if spawned is None:
        return
    with contextlib.suppress(KernelError):
        sc.pidfd_send_signal(spawned.pidfd, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED | WALL)
    os.close(spawned.pidfd)
    if spawned.terminal is not None:
        os.close(spawned.terminal)


def reap(pidfd):
    """Wait for a child; return its exit status as a shell has it: 128+n for signal n."""
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | WALL)
    return result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status


# linux/wait.h. A child made with exit signal 0 (`lab exec`) is waited for only with it.
WALL = 0x40000000


class Here:
    """Clone from this process itself."""

    def spawn(self, job, stdio):
        """See `spawn`."""
        return spawn(job, stdio)

    def status(self, spawned):
        """Return the exit status of an ended process, once."""
        return reap(spawned.pidfd)

    def lives(self):
        """Tell whether it can be asked."""
        return True

    def owner(self):
        """Return the process that is the parent of what is cloned."""
        return os.getpid()


class Helper:
    """A spawner process of one's own, started at the first job."""

    def __init__(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = f"import sys; sys.path.insert(0, {str(state.REPO)!r}); from labkit.container import spawner; "
        code += f"spawner.serve({theirs.fileno()})"
        with theirs:
            self.process = subprocess.Popen(
                # -S -E: nothing of site-packages; a small process forks fast.
                [sys.executable, "-S", "-E", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Ctrl-C in the notebook's terminal is not for the containers.
                start_new_session=True,
            )
        self.channel = ours
        self.mutex = threading.Lock()

    def lives(self):
        """Tell whether it can be asked: it may have been killed."""
        return self.process.poll() is None

    def _ask(self, request, fds=()):
        with self.mutex:
            try:
                # In a file: a message on a socket has an end, and a command may have 60,000 words.
                with open(os.memfd_create("request"), "w+b") as body:
                    pickle.dump(request, body)
                    body.flush()
                    socket.send_fds(self.channel, [b"request"], [body.fileno(), *fds])
                message, fds, _, _ = socket.recv_fds(self.channel, 1 << 18, 2)
            except OSError as error:
                raise from_oserror(error, "talking to the spawner") from None
        if not message:
            raise LabError("the spawner process has ended", "restart the notebook's kernel, then `lab clean`")
        succeeded, value = pickle.loads(message)
        if not succeeded:
            raise value
        return value, fds

    def spawn(self, job, stdio):
        """See `spawn`; done in the helper."""
        pid, fds = self._ask(("spawn", job), stdio)
        return Spawned(pid, *fds)

    def status(self, spawned):
        """Wait for a process; return its exit status, once."""
        select.select([spawned.pidfd], [], [])
        return self._ask(("status", spawned.pid))[0]

    def owner(self):
        """Return the process that is the parent of what is cloned."""
        return self.process.pid

    def close(self):
        """End the helper, and with it every process that it is the parent of."""
        self.channel.close()
        self.process.wait()


def serve(fd):
    """Be the spawner: answer requests on the socket `fd` until its other end closes."""
    channel = socket.socket(fileno=fd)
    channel.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # a child that collects garbage would look at all that is here, and so copy it
    running, ended = {}, {}
    while True:
        ready, _, _ = select.select([channel, *running], [], [])
        for pidfd in set(ready) & set(running):
            ended[running.pop(pidfd)] = reap(pidfd)
            os.close(pidfd)
        if channel in ready:
            message, fds, _, _ = socket.recv_fds(channel, 64, 4)
            if not message:
                break
            try:
                with open(fds.pop(0), "rb") as body:
                    body.seek(0)
                    request = pickle.load(body)
                answer, give = _answer(*request, fds, running, ended)
                reply = (True, answer)
            except LabError as error:
                reply, give = (False, error), []
            for stdio in fds:
                os.close(stdio)
            socket.send_fds(channel, [pickle.dumps(reply)], give)
            # The terminal is the notebook's alone; the pidfd is kept, to reap by.
            for terminal in give[1:]:
                os.close(terminal)
    for pidfd in running:
        with contextlib.suppress(KernelError):
            sc.pidfd_send_signal(pidfd, signal.SIGKILL)
        reap(pidfd)


def _answer(kind, value, stdio, running, ended):
    if kind == "spawn":
        spawned = spawn(value, stdio)
        running[spawned.pidfd] = spawned.pid
        terminal = [] if spawned.terminal is None else [spawned.terminal]
        return spawned.pid, [spawned.pidfd, *terminal]
    for pidfd, pid in list(running.items()):
        if pid == value and select.select([pidfd], [], [], 0)[0]:
            ended[running.pop(pidfd)] = reap(pidfd)
            os.close(pidfd)
    if value not in ended:
        raise NotFound(f"process {value} has not ended, or was not started here")
    return ended.pop(value), []


_current = None


def close():
    """End this process's helper, if it has one."""
    global _current
    if _current is not None and _current[0] == os.getpid():
        _current[1].close()
    _current = None


def current():
    """Return who clones for this process: itself if it has one thread and is no notebook, else a Helper."""
    global _current
    if _current is not None and _current[0] == os.getpid() and _current[1].lives():
        return _current[1]
    alone = int(proc.stat_fields("self")[17]) == 1 and "ipykernel" not in sys.modules
    if alone:
        return Here()
    _current = (os.getpid(), Helper())
    return _current[1]
