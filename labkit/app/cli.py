"""The `lab` command: docker's words for what labkit does.

Each command is one function: it reads its words, calls one thing of the floors
below, prints, and returns an exit status. A LabError ends it with its message on
stderr and its own status: 125 if labkit failed, 126 or 127 if the command could
not be executed; else the status is the container's own, 128+n for signal n.
"""

import contextlib
import importlib
import io
import os
import re
import sys
import time
from io import FileIO

from labkit.app.commands import COMMANDS, command, complain, each, parser, table, visible
from labkit.ground.errors import BadValue, LabError, NotFound, from_oserror
from labkit.ground.signals import Interrupted
from labkit.ground.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from labkit.container.life import Container

# Where the other commands are; loaded when a name is not found here.
_ELSEWHERE = ("labkit.app.cli_images", "labkit.app.cli_host")


# What an ordinary user does as such; for all else `rootless` makes them root of a namespace.
_AS_ONESELF = ("up", "down", "test", "doctor", "lsns", "cgls", "bench", "reset", "progress", "room")


def main(argv: list[str]) -> int:
    """Run one `lab` command; return its exit status."""
    _open_what_is_closed()
    name = argv[0] if argv else "help"
    try:
        status = _status_of(name, argv[1:])
        sys.stdout.flush()
        return status
    except LabError as error:
        return _failed(name, error, error.exit_status)
    except Interrupted as error:
        return error.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `lab ps | head -1`
        return 0
    except OSError as error:
        return _failed(name, from_oserror(error, "reading or writing"), LabError.exit_status)
    except Exception as error:  # noqa: BLE001 - nobody is to read a traceback
        if os.environ.get("LAB_TRACEBACK"):
            raise
        hint = "that is a mistake in labkit; LAB_TRACEBACK=1 shows where"
        return _failed(name, LabError(f"labkit itself failed: {error!r}", hint), LabError.exit_status)
    finally:
        for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
            try:
                stream.flush()
            except OSError:  # what could not be written now can't be at the end either
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _open_what_is_closed() -> None:
    """Have fds 0, 1 and 2 open: else a file of ours would get the number, and be written to as if it were stdout."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, "r" if fd == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in a notebook it is Jupyter's own, and takes every text
            stream.reconfigure(errors="backslashreplace")


def _failed(name: str, error: LabError, status: int) -> int:
    with contextlib.suppress(OSError):  # stderr may be what is full
        complain(name, error)
    return status


def _status_of(name: str, rest: list[str]) -> int:
    if name in ("-h", "--help", "help"):
        _load_all()
        print("usage: lab COMMAND …        lab COMMAND --help says more\n")
        for known, (_, summary) in COMMANDS.items():
            print(f"  {known:10} {summary}")
        return 0
    if name not in COMMANDS:
        _load_all()
    if name not in COMMANDS:
        raise BadValue(f"lab has no command {name!r}", "`lab help` lists them")
    if os.geteuid() != 0 and name not in _AS_ONESELF:
        from labkit.container import rootless

        rootless.enter()
    return COMMANDS[name][0](rest) or 0


def _load_all() -> None:
    for module in _ELSEWHERE:
        importlib.import_module(module)


_WHICH = "a container's name, id or the beginning of its id"


def _found(name: str, argv: list[str]) -> "Container":
    """Return the one container that a command is about."""
    from labkit.container.life import find

    words = parser(name)
    words.add_argument("container", help=_WHICH)
    return find(words.parse_args(argv).container)


def _several(name: str) -> "ArgumentParser":
    words = parser(name)
    words.add_argument("container", help=_WHICH, nargs="+")
    return words


# ---- containers ----


@command("run", "run a command in a new container")
def _run(argv: list[str]) -> int:
    from labkit.container.life import Container
    from labkit.container.spec import Spec

    words = parser("run")
    add = words.add_argument
    add("-i", "--interactive", action="store_true", help="hand one's own input on")
    add("-t", "--tty", action="store_true", help="give it a terminal")
    add("-d", "--detach", action="store_true", help="leave it running, print its id")
    add("--rm", action="store_true", help="remove it when it ends")
    add("--name")
    add("-h", "--hostname")
    add("-m", "--memory", metavar="SIZE", help="64m, 1g: at most so much memory")
    add("--memory-swap", metavar="SIZE", help="memory and swap together")
    add("--cpus", metavar="N", help="0.5: half of one CPU")
    add("--cpu-shares", metavar="N", help="weight against others, usually 1024")
    add("--cpuset-cpus", metavar="LIST", help="0-1,3: only on these CPUs")
    add("--pids-limit", metavar="N", help="at most so many processes and threads")
    add("-v", "--volume", action="append", default=[], dest="volumes", metavar="[SOURCE:]TARGET[:ro,nocopy]")
    add("-e", "--env", action="append", default=[], metavar="NAME=VALUE")
    add("-w", "--workdir", metavar="FOLDER")
    add("-u", "--user", metavar="USER[:GROUP]")
    add("--init", action="store_true", help="a small PID 1 that reaps and hands signals on")
    add("--read-only", action="store_true", help="seal the root filesystem")
    add("--network", default="auto", metavar="NAME", help="none, host, bridge (the default), or a bridge of that name")
    add("-p", "--publish", action="append", default=[], metavar="[ADDRESS:]HOST:CONTAINER[/udp]")
    add("--cap-add", action="append", default=[], metavar="CAP")
    add("--cap-drop", action="append", default=[], metavar="CAP")
    add("--security-opt", action="append", default=[], metavar="OPTION", help="seccomp=unconfined, seccomp=FILE")
    add(
        "--userns",
        metavar="remap|FIRST[:COUNT]",
        help="a user namespace: root in it is FIRST outside, and nobody special",
    )
    add("--time-offset", type=int, metavar="SECONDS", help="a time namespace, its clocks ahead")
    add("--explain", action="store_true", help="print what would be done, and do nothing")
    add("image")
    add("command", nargs="...")
    options = vars(words.parse_args(argv))
    detach, explain = options.pop("detach"), options.pop("explain")
    for word in ("name", "hostname", "workdir", "cpuset_cpus"):  # docker: as if it were not said
        options[word] = options[word] or None
    options["network"] = options["network"] or "auto"
    box = Container.of(Spec.make(options.pop("image"), options.pop("command"), **options))
    if explain:
        for number, line in enumerate(box.describe(), 1):
            print(f"{number:3}  {visible(line)}")
        return 0
    if not detach:
        _want_a_terminal(box.spec)
    return _detached(box) if detach else _attached(box)


def _want_a_terminal(options: Any) -> None:
    if options.tty and options.interactive and not os.isatty(0):
        raise BadValue("the input device is not a TTY", "leave out -t, or run it in a terminal")


def _attached(box: "Container") -> int:
    from labkit.container import attach, networking

    # From the first moment: who is killed in the middle of a start leaves half a container.
    with attach.caught() as signals, contextlib.ExitStack() as stack:
        stack.callback(lambda: box.delete() if box.spec.rm or box.status != "exited" else None)
        stdio, pipes = _pipes(stack, box.spec.interactive, box.spec.tty, box.spec.userns)
        box.start(stdio, attach.size_of(0))
        networking.stay(box.spec)
        signals.check()
        _close_all(stdio)
        log = stack.enter_context(contextlib.closing(box.log()))
        keep = [log.keep(1), log.keep(2)]
        lost = attach.foreground(box.spawned, pipes, keep, box.spec.interactive, box.kill, signals)
        return _ended("run", int(box.wait() or 0), lost, log.error)


def _ended(name: str, status: int, lost: OSError | None, log: OSError | None = None) -> int:
    """Tell of output that is lost; return the container's own exit status, unless that would hide the loss."""
    if log:
        _failed(name, from_oserror(log, "keeping a copy for `lab logs`"), 0)
    if lost:
        _failed(name, from_oserror(lost, "writing the container's output"), 0)
    return status or (LabError.exit_status if lost else 0)


def _pipes(
    stack: contextlib.ExitStack, interactive: bool, tty: bool, userns: tuple[int, int] | None
) -> tuple[list[int], list[FileIO | None]]:
    """Return (the container's three fds, our three ends of them)."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    if tty:
        return [null, null, null], [None, None, None]
    (theirs_in, ours_in) = os.pipe2(os.O_CLOEXEC) if interactive else (null, None)
    (ours_out, theirs_out), (ours_err, theirs_err) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    theirs = [theirs_in, theirs_out, theirs_err]
    if userns:  # its root may give them to any user of its own, but only what belongs to one of those
        for fd in theirs[0 if interactive else 1 :]:
            with contextlib.suppress(OSError):  # who may not, is told when it comes to the start
                os.fchown(fd, userns[0], userns[0])
    ours = [ours_in is not None and FileIO(ours_in, "wb") or None, FileIO(ours_out), FileIO(ours_err)]
    for pipe in filter(None, ours):
        stack.enter_context(pipe)
    return theirs, ours


def _close_all(fds: list[int]) -> None:
    for fd in set(fds):
        os.close(fd)


def _detached(box: "Container") -> int:
    """Fork a keeper, which is the container's parent until it ends; print the id."""
    import pickle

    from labkit.container import attach

    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    if os.fork() == 0:
        try:
            _keep(box, write_end)
        finally:
            os._exit(0)
    os.close(write_end)
    with attach.caught() as signals:
        with os.fdopen(read_end, "rb") as pipe:
            report = pipe.read()
        if not report:
            raise LabError("the container's keeper died before it was started", "`lab clean`, then again")
        if error := pickle.loads(report):
            raise error
        try:
            signals.check()
        except Interrupted:
            _remove(box.id)
            raise
    print(box.id)
    return 0


def _keep(box: "Container", report: int) -> None:
    import pickle

    from labkit.container import attach, networking

    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    with contextlib.ExitStack() as stack:
        try:
            # With -i nobody writes to its input, and it stays open: `cat` waits, as docker has it.
            stdio, pipes = _pipes(stack, box.spec.interactive, box.spec.tty, box.spec.userns)
            box.start(stdio)
            networking.stay(box.spec)
            log = stack.enter_context(contextlib.closing(box.log()))
            os.write(report, pickle.dumps(None))
        except BaseException as error:
            known = isinstance(error, LabError)
            os.write(report, pickle.dumps(error if known else LabError(f"labkit itself failed: {error!r}")))
            return
        os.close(report)
        _close_all(stdio)
        attach.behind(box.spawned, pipes, [log.keep(1), log.keep(2)])
        box.wait()
    if box.spec.rm:
        box.delete()


@command("ps", "list the containers that run; -a lists all")
def _ps(argv: list[str]) -> None:
    from labkit.container import records

    every, quiet = _ps_words(argv) if argv else (False, False)
    rows = []
    damaged: list[LabError] = []
    for record in records.read_all(damaged):
        status, spec = records.status(record), record["spec"]
        if status not in ("running", "paused") and not every:
            continue
        if status == "exited":
            status = f"exited ({record.get('code')})" + (", oom-killed" if record.get("oom_killed") else "")
        text = " ".join(spec["command"])
        text = text if len(text) <= 24 else text[:23] + "…"
        name, pid = spec["name"] or record["id"], str(record.get("pid", ""))
        rows.append((record["id"], spec["image"], text, _ago(record["created"]), status, pid, name))
    if quiet:
        print(*(row[0] for row in rows), sep="\n", end="\n" if rows else "")
    else:
        table("CONTAINER ID,IMAGE,COMMAND,CREATED,STATUS,PID,NAME", rows)
    for error in damaged:
        complain("ps", error)


def _ps_words(argv: list[str]) -> tuple[bool, bool]:
    words = parser("ps")
    words.add_argument("-a", "--all", action="store_true")
    words.add_argument("-q", "--quiet", action="store_true", help="ids only")
    options = words.parse_args(argv)
    return options.all, options.quiet


def _ago(then: float) -> str:
    seconds = int(time.time() - then)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


@command("top", "a container's processes, as the host numbers them and as it does")
def _top(argv: list[str]) -> None:
    from labkit.ground import proc

    box = _found("top", argv)
    box.must_be("running", "paused")
    tick = os.sysconf("SC_CLK_TCK")
    rows = []
    for process in box.top():
        with contextlib.suppress(NotFound):
            seconds = process.cpu_ticks // tick
            words = " ".join(proc.cmdline(process.pid)) or f"[{process.name}]"
            spent = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
            rows.append((str(process.uid), str(process.pid), str(process.ppid), str(process.nspid[-1]), spent, words))
    table("UID,PID,PPID,INSIDE,TIME,CMD", rows)


@command("exec", "run a further command in a container that runs")
def _exec(argv: list[str]) -> int:
    from labkit.container import attach, spawner
    from labkit.container.life import find
    from labkit.ground import syscalls

    words = parser("exec")
    add = words.add_argument
    add("-i", "--interactive", action="store_true")
    add("-t", "--tty", action="store_true")
    add("-e", "--env", action="append", default=[])
    add("-w", "--workdir")
    add("-u", "--user")
    add("container")
    add("command", nargs="...")
    options = words.parse_args(argv)
    _want_a_terminal(options)
    if not options.command:
        raise BadValue("lab exec needs a command", "lab exec CONTAINER COMMAND")
    box = find(options.container)
    with attach.caught() as signals, contextlib.ExitStack() as stack:
        stdio, pipes = _pipes(stack, options.interactive, options.tty, box.spec.userns)
        asked = {name: getattr(options, name) for name in ("env", "workdir", "user", "tty")}
        spawned = box.exec(options.command, **asked, stdio=stdio, console_size=attach.size_of(0))
        _close_all(stdio)
        kill = lambda: syscalls.pidfd_send_signal(spawned.pidfd, 9)  # noqa: E731
        lost = attach.foreground(spawned, pipes, [None, None], options.interactive, kill, signals)
        return _ended("exec", spawner.reap(spawned.pidfd), lost)


@command("stop", "end containers: their stop signal, then SIGKILL after --time seconds")
def _stop(argv: list[str]) -> int:
    from labkit.container.life import find

    words = _several("stop")
    words.add_argument("-t", "--time", default="10", metavar="SECONDS", help="-1: never SIGKILL")
    options = words.parse_args(argv)
    if not re.fullmatch(r"-1|\d{1,8}(\.\d{1,3})?", options.time, re.ASCII):
        raise BadValue(f"{options.time!r} is no time to wait", "seconds, or -1 for no end")
    seconds = None if options.time == "-1" else float(options.time)

    def stop(reference: str) -> None:
        find(reference).stop(seconds)
        print(reference)

    return each("stop", options.container, stop)


@command("kill", "send a signal to containers, SIGKILL by default")
def _kill(argv: list[str]) -> int:
    from labkit.container.life import find
    from labkit.ground import signals

    words = _several("kill")
    words.add_argument("-s", "--signal", default="KILL")
    options = words.parse_args(argv)
    number = signals.number(options.signal)

    def kill(reference: str) -> None:
        box = find(reference)
        box.must_be("running", "paused")
        box.kill(number)
        print(reference)

    return each("kill", options.container, kill)


@command("pause", "freeze containers")
def _pause(argv: list[str]) -> int:
    from labkit.container.life import find

    def pause(reference: str) -> None:
        find(reference).pause()
        print(reference)

    return each("pause", _several("pause").parse_args(argv).container, pause)


@command("unpause", "thaw containers")
def _unpause(argv: list[str]) -> int:
    from labkit.container.life import find

    def unpause(reference: str) -> None:
        box = find(reference)
        box.must_be("paused")
        box.unpause()
        print(reference)

    return each("unpause", _several("unpause").parse_args(argv).container, unpause)


@command("wait", "wait until containers end; print their exit statuses")
def _wait(argv: list[str]) -> int:
    from labkit.container.life import find

    return each("wait", _several("wait").parse_args(argv).container, lambda one: print(find(one).wait(), flush=True))


@command("rm", "remove containers that have ended; -f kills them first")
def _rm(argv: list[str]) -> int:
    from labkit.container.life import find

    words = _several("rm")
    words.add_argument("-f", "--force", action="store_true")
    words.add_argument("-v", "--volumes", action="store_true", help="its anonymous volumes too: they always go with it")
    options = words.parse_args(argv)

    def remove(reference: str) -> None:
        try:
            box = find(reference)
        except NotFound as error:
            if not options.force:
                raise
            complain("rm", error)  # that it is not there is what was wanted
            return
        if not options.force and box.status in ("running", "paused"):
            raise BadValue(f"{reference} is {box.status}", f"lab stop {reference}, or lab rm -f {reference}")
        _remove(box.id)
        print(reference)

    return each("rm", options.container, remove)


def _remove(number: str) -> None:
    """Kill a container if it runs, and remove it."""
    from labkit.container.life import find

    with contextlib.suppress(NotFound):  # with --rm its keeper may be faster
        box = find(number)
        if box.status in ("running", "paused"):
            box.kill()
            box.wait()
        box.delete()


@command("logs", "what a container printed, on stdout and stderr as it did; -f goes on until it ends")
def _logs(argv: list[str]) -> None:
    from labkit.container import output
    from labkit.container.life import find

    words = parser("logs")
    words.add_argument("-f", "--follow", action="store_true")
    words.add_argument("container", help=_WHICH)
    options = words.parse_args(argv)
    box = find(options.container)

    def lives() -> bool:
        time.sleep(0.1)
        return box.status in ("running", "paused")

    sinks = {1: sys.stdout.buffer, 2: sys.stderr.buffer}
    for stream, data in output.pieces(box.folder, lives if options.follow else None):
        sinks[stream].write(data)
        sinks[stream].flush()


@command("diff", "what a container changed in its root: A added, C changed, D deleted")
def _diff(argv: list[str]) -> None:
    for change in _found("diff", argv).changes():
        print(change.kind, visible(change.path))
