"""The `lab` command: docker's words for what labkit does.

Each command is one function: it reads its words, calls one thing of the floors
below, prints, and returns an exit status. A LabError ends it with its message on
stderr and its own status: 125 if labkit failed, 126 or 127 if the command could
not be executed; else the status is the container's own, 128+n for signal n.
"""

import argparse
import contextlib
import importlib
import os
import pickle
import sys
import time

from labkit.app.commands import COMMANDS, command, parser, table
from labkit.ground.errors import BadValue, LabError, NotFound

# Where the other commands are; loaded when a name is not found here.
_ELSEWHERE = ("labkit.app.cli_images", "labkit.app.cli_host")


# What an ordinary user does as such; for all else `rootless` makes them root of a namespace.
_AS_ONESELF = ("up", "down", "test", "doctor", "lsns", "cgls", "bench", "reset", "progress", "room")


def main(argv):
    """Run one `lab` command; return its exit status."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        _load_all()
        print("usage: lab COMMAND …        lab COMMAND --help says more\n")
        for name, (_, summary) in COMMANDS.items():
            print(f"  {name:10} {summary}")
        return 0
    name, *rest = argv
    try:
        if name not in COMMANDS:
            _load_all()
        if name not in COMMANDS:
            raise BadValue(f"lab has no command {name!r}", "`lab help` lists them")
        if os.geteuid() != 0 and name not in _AS_ONESELF:
            from labkit.container import rootless

            rootless.enter()
        status = COMMANDS[name][0](rest)
        sys.stdout.flush()
        return status or 0
    except LabError as error:
        print(f"lab {name}: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `lab ps | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def _load_all():
    for module in _ELSEWHERE:
        importlib.import_module(module)


def _reference(name, argv, what="a container's name, id or the beginning of its id"):
    words = parser(name)
    words.add_argument("container", help=what, nargs="+")
    return words.parse_args(argv).container


# ---- containers ----


@command("run", "run a command in a new container")
def _run(argv):
    from labkit.container.life import Container
    from labkit.container.spec import Spec

    words = parser("run")
    add = words.add_argument
    add("-i", "--interactive", action="store_true", help="hand one's own input on")
    add("-t", "--tty", action="store_true", help="give it a terminal")
    add("-d", "--detach", action="store_true", help="leave it running, print its id")
    add("--rm", action="store_true", help="remove it when it ends")
    add("--name")
    add("--hostname")
    add("-m", "--memory", metavar="SIZE", help="64m, 1g: at most so much memory")
    add("--memory-swap", metavar="SIZE", help="memory and swap together")
    add("--cpus", metavar="N", help="0.5: half of one CPU")
    add("--cpu-shares", metavar="N", help="weight against others, usually 1024")
    add("--cpuset-cpus", metavar="LIST", help="0-1,3: only on these CPUs")
    add("--pids-limit", metavar="N", help="at most so many processes and threads")
    add("-v", "--volume", action="append", default=[], dest="volumes", metavar="SOURCE:TARGET[:ro]")
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
    add("command", nargs=argparse.REMAINDER)
    words = vars(words.parse_args(argv))
    detach, explain = words.pop("detach"), words.pop("explain")
    box = Container.of(Spec.make(words.pop("image"), words.pop("command"), **words))
    if explain:
        for number, line in enumerate(box.describe(), 1):
            print(f"{number:3}  {line}")
        return 0
    if box.spec.tty and box.spec.interactive and not detach and not os.isatty(0):
        raise BadValue("the input device is not a TTY", "leave out -t, or run it in a terminal")
    return _detached(box) if detach else _attached(box)


def _attached(box):
    from labkit.container import attach

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: box.delete() if box.spec.rm or box.status != "exited" else None)
        stdio, pipes = _pipes(stack, box.spec.interactive, box.spec.tty)
        box.start(stdio)
        _close_all(stdio)
        attach.foreground(box.spawned, pipes, box.open_log(stack), box.spec.interactive, box.kill)
        return box.wait()


def _pipes(stack, interactive, tty):
    """Return (the container's three fds, our three ends of them)."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    if tty:
        return [null, null, null], (None, None, None)
    theirs_in, ours_in = os.pipe2(os.O_CLOEXEC) if interactive else (null, None)
    ours_out, theirs_out = os.pipe2(os.O_CLOEXEC)
    ours_err, theirs_err = os.pipe2(os.O_CLOEXEC)
    stack.callback(_close_all, [ours_out, ours_err])
    return [theirs_in, theirs_out, theirs_err], (ours_in, ours_out, ours_err)


def _close_all(fds):
    for fd in set(fds):
        os.close(fd)


def _detached(box):
    """Fork a keeper, which is the container's parent until it ends; print the id."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    if os.fork() == 0:
        try:
            _keep(box, write_end)
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        report = pipe.read()
    if not report:
        raise LabError("the container's keeper died before it was started", "`lab clean`, then again")
    error = pickle.loads(report)
    if error:
        raise error
    print(box.id)
    return 0


def _keep(box, report):
    from labkit.container import attach

    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    try:
        box.start()
        os.write(report, pickle.dumps(None))
    except BaseException as error:
        known = isinstance(error, LabError)
        os.write(report, pickle.dumps(error if known else LabError(f"labkit itself failed: {error!r}")))
        return
    os.close(report)
    if box.spawned.terminal is not None:
        with contextlib.ExitStack() as stack:
            attach.pump(box.spawned.pidfd, {box.spawned.terminal: [box.open_log(stack)]})
    box.wait()
    if box.spec.rm:
        box.delete()


@command("ps", "list the containers that run; -a lists all")
def _ps(argv):
    from labkit.container.life import all_containers

    words = parser("ps")
    words.add_argument("-a", "--all", action="store_true")
    words.add_argument("-q", "--quiet", action="store_true", help="ids only")
    options = words.parse_args(argv)
    rows = []
    for box in all_containers():
        status = box.status
        if status not in ("running", "paused") and not options.all:
            continue
        record = box.record()
        if status == "exited":
            status = f"exited ({record.get('code')})" + (", oom-killed" if record.get("oom_killed") else "")
        text = " ".join(box.spec.command)
        text = text if len(text) <= 24 else text[:23] + "…"
        rows.append(
            (box.id, box.spec.image, text, _ago(record["created"]), status, str(record.get("pid", "")), box.name)
        )
    if options.quiet:
        print(*(row[0] for row in rows), sep="\n", end="\n" if rows else "")
    else:
        table("CONTAINER ID,IMAGE,COMMAND,CREATED,STATUS,PID,NAME", rows)


def _ago(then):
    seconds = int(time.time() - then)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


@command("top", "a container's processes, as the host numbers them and as it does")
def _top(argv):
    from labkit.container.life import find
    from labkit.ground import proc

    (reference,) = _reference("top", argv)[:1]
    box = find(reference)
    box._must_run()
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
def _exec(argv):
    from labkit.container import attach, spawner
    from labkit.container.life import find

    words = parser("exec")
    add = words.add_argument
    add("-i", "--interactive", action="store_true")
    add("-t", "--tty", action="store_true")
    add("-e", "--env", action="append", default=[])
    add("-w", "--workdir")
    add("-u", "--user")
    add("container")
    add("command", nargs=argparse.REMAINDER)
    options = words.parse_args(argv)
    if options.tty and options.interactive and not os.isatty(0):
        raise BadValue("the input device is not a TTY", "leave out -t, or run it in a terminal")
    if not options.command:
        raise BadValue("lab exec needs a command", "lab exec CONTAINER COMMAND")
    box = find(options.container)
    with contextlib.ExitStack() as stack:
        stdio, pipes = _pipes(stack, options.interactive, options.tty)
        spawned = box.exec(
            options.command, env=options.env, workdir=options.workdir, user=options.user, tty=options.tty, stdio=stdio
        )
        _close_all(stdio)

        def kill():
            from labkit.ground import syscalls

            syscalls.pidfd_send_signal(spawned.pidfd, 9)

        attach.foreground(spawned, pipes, None, options.interactive, kill)
        return spawner.reap(spawned.pidfd)


@command("stop", "end containers: SIGTERM, then SIGKILL after --time seconds")
def _stop(argv):
    from labkit.container.life import find

    words = parser("stop")
    words.add_argument("-t", "--time", type=float, default=10)
    words.add_argument("container", nargs="+")
    options = words.parse_args(argv)
    for reference in options.container:
        find(reference).stop(options.time)
        print(reference)


@command("kill", "send a signal to containers, SIGKILL by default")
def _kill(argv):
    import signal

    from labkit.container.life import find

    words = parser("kill")
    words.add_argument("-s", "--signal", default="KILL")
    words.add_argument("container", nargs="+")
    options = words.parse_args(argv)
    name = "SIG" + options.signal.upper().removeprefix("SIG")
    if options.signal.isdigit() and 0 < int(options.signal) < signal.NSIG:
        number = int(options.signal)
    elif name in signal.Signals.__members__:
        number = signal.Signals[name]
    else:
        raise BadValue(f"there is no signal {options.signal!r}", "signal(7) lists them")
    for reference in options.container:
        box = find(reference)
        box._must_run() if box.status != "paused" else None
        box.kill(number)
        print(reference)


@command("pause", "freeze containers")
def _pause(argv):
    from labkit.container.life import find

    for reference in _reference("pause", argv):
        find(reference).pause()


@command("unpause", "thaw containers")
def _unpause(argv):
    from labkit.container.life import find

    for reference in _reference("unpause", argv):
        find(reference).unpause()


@command("wait", "wait until containers end; print their exit statuses")
def _wait(argv):
    from labkit.container.life import find

    for reference in _reference("wait", argv):
        print(find(reference).wait())


@command("rm", "remove containers that have ended; -f kills them first")
def _rm(argv):
    from labkit.container.life import find

    words = parser("rm")
    words.add_argument("-f", "--force", action="store_true")
    words.add_argument("container", nargs="+")
    options = words.parse_args(argv)
    for reference in options.container:
        box = find(reference)
        if box.status in ("running", "paused"):
            if not options.force:
                raise BadValue(f"{reference} is {box.status}", f"lab stop {reference}, or lab rm -f {reference}")
            box.kill()
            box.wait()
        box.delete()
        print(reference)


@command("logs", "what a container printed")
def _logs(argv):
    from labkit.container.life import find

    sys.stdout.write(find(_reference("logs", argv)[0]).logs())


@command("diff", "what a container changed in its root: A added, C changed, D deleted")
def _diff(argv):
    from labkit.container.life import find

    for change in find(_reference("diff", argv)[0]).changes():
        print(change.kind, change.path)
