"""The `lab` command: docker's words for what labkit does.

Each command is one function: it reads its words, calls one thing of the floors
below, prints, and returns an exit status. A LabError ends it with its message on
stderr and its own status: 125 if labkit failed, 126 or 127 if the command could
not be executed; else the status is the container's own, 128+n for signal n.
"""

import argparse
import contextlib
import os
import pickle
import sys
import time

from labkit.errors import BadValue, LabError, NotFound

COMMANDS = {}


def command(name, summary):
    """Register the function below as `lab NAME`."""

    def register(function):
        COMMANDS[name] = (function, summary)
        return function

    return register


def main(argv):
    """Run one `lab` command; return its exit status."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: lab COMMAND …        lab COMMAND --help says more\n")
        for name, (_, summary) in COMMANDS.items():
            print(f"  {name:10} {summary}")
        return 0
    name, *rest = argv
    try:
        if name not in COMMANDS:
            raise BadValue(f"lab has no command {name!r}", "`lab help` lists them")
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


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadValue(message, f"{self.prog} --help")


def _parser(name):
    return _Parser(prog=f"lab {name}", description=COMMANDS[name][1])


def _reference(name, argv, what="a container's name, id or the beginning of its id"):
    parser = _parser(name)
    parser.add_argument("container", help=what, nargs="+")
    return parser.parse_args(argv).container


# ---- containers ----


@command("run", "run a command in a new container")
def _run(argv):
    from labkit.container import Container
    from labkit.spec import Spec

    parser = _parser("run")
    add = parser.add_argument
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
    add("--userns", metavar="remap|FIRST[:COUNT]", help="a user namespace: root in it is FIRST outside, and nobody special")
    add("-u", "--user", metavar="USER[:GROUP]")
    add("--init", action="store_true", help="a small PID 1 that reaps and hands signals on")
    add("--read-only", action="store_true", help="seal the root filesystem")
    add("--network", default="auto", metavar="NAME", help="none, host, bridge (the default), or a bridge of that name")
    add("-p", "--publish", action="append", default=[], metavar="[ADDRESS:]HOST:CONTAINER[/udp]")
    add("--cap-add", action="append", default=[], metavar="CAP")
    add("--cap-drop", action="append", default=[], metavar="CAP")
    add("--security-opt", action="append", default=[], metavar="OPTION", help="seccomp=unconfined, seccomp=FILE")
    add("--time-offset", type=int, metavar="SECONDS", help="a time namespace, its clocks ahead")
    add("--explain", action="store_true", help="print what would be done, and do nothing")
    add("image")
    add("command", nargs=argparse.REMAINDER)
    words = vars(parser.parse_args(argv))
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
    from labkit import attach

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
    from labkit import attach

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
    from labkit.container import all_containers

    parser = _parser("ps")
    parser.add_argument("-a", "--all", action="store_true")
    parser.add_argument("-q", "--quiet", action="store_true", help="ids only")
    options = parser.parse_args(argv)
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
        rows.append((box.id, box.spec.image, text, _ago(record["created"]), status, str(record.get("pid", "")), box.name))
    if options.quiet:
        print(*(row[0] for row in rows), sep="\n", end="\n" if rows else "")
    else:
        _table("CONTAINER ID,IMAGE,COMMAND,CREATED,STATUS,PID,NAME", rows)


def _ago(then):
    seconds = int(time.time() - then)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _table(head, rows):
    rows = [head.split(","), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@command("top", "a container's processes, as the host numbers them and as it does")
def _top(argv):
    from labkit import proc
    from labkit.container import find

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
    _table("UID,PID,PPID,INSIDE,TIME,CMD", rows)


@command("exec", "run a further command in a container that runs")
def _exec(argv):
    from labkit import attach, spawner
    from labkit.container import find

    parser = _parser("exec")
    add = parser.add_argument
    add("-i", "--interactive", action="store_true")
    add("-t", "--tty", action="store_true")
    add("-e", "--env", action="append", default=[])
    add("-w", "--workdir")
    add("-u", "--user")
    add("container")
    add("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
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
            from labkit import syscalls

            syscalls.pidfd_send_signal(spawned.pidfd, 9)

        attach.foreground(spawned, pipes, None, options.interactive, kill)
        return spawner.reap(spawned.pidfd)


@command("stop", "end containers: SIGTERM, then SIGKILL after --time seconds")
def _stop(argv):
    from labkit.container import find

    parser = _parser("stop")
    parser.add_argument("-t", "--time", type=float, default=10)
    parser.add_argument("container", nargs="+")
    options = parser.parse_args(argv)
    for reference in options.container:
        find(reference).stop(options.time)
        print(reference)


@command("kill", "send a signal to containers, SIGKILL by default")
def _kill(argv):
    import signal

    from labkit.container import find

    parser = _parser("kill")
    parser.add_argument("-s", "--signal", default="KILL")
    parser.add_argument("container", nargs="+")
    options = parser.parse_args(argv)
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
    from labkit.container import find

    for reference in _reference("pause", argv):
        find(reference).pause()


@command("unpause", "thaw containers")
def _unpause(argv):
    from labkit.container import find

    for reference in _reference("unpause", argv):
        find(reference).unpause()


@command("wait", "wait until containers end; print their exit statuses")
def _wait(argv):
    from labkit.container import find

    for reference in _reference("wait", argv):
        print(find(reference).wait())


@command("rm", "remove containers that have ended; -f kills them first")
def _rm(argv):
    from labkit.container import find

    parser = _parser("rm")
    parser.add_argument("-f", "--force", action="store_true")
    parser.add_argument("container", nargs="+")
    options = parser.parse_args(argv)
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
    from labkit.container import find

    sys.stdout.write(find(_reference("logs", argv)[0]).logs())


@command("diff", "what a container changed in its root: A added, C changed, D deleted")
def _diff(argv):
    from labkit.container import find

    for change in find(_reference("diff", argv)[0]).changes():
        print(change.kind, change.path)


@command("images", "list the images")
def _images(argv):
    from labkit import images

    _parser("images").parse_args(argv)
    images.get("busybox")
    _table("IMAGE,ID,LAYERS,SIZE", [(i.name, i.id[7:19], str(len(i.layers)), f"{i.size} B") for i in images.all()])


@command("networks", "list the networks that containers are on")
def _networks(argv):
    from labkit import network

    _parser("networks").parse_args(argv)
    rows = []
    for name in network.all_networks():
        known = network.record(name)
        who = ", ".join((user["names"] or [number])[0] + " " + user["address"] for number, user in known["users"].items())
        rows.append((name, known["bridge"], known["subnet"], who))
    _table("NETWORK,BRIDGE,SUBNET,CONTAINERS", rows)


# ---- the host ----


@command("lsns", "every namespace on this machine, and who is in it")
def _lsns(argv):
    from labkit import namespaces

    parser = _parser("lsns")
    parser.add_argument("-t", "--type", choices=namespaces.KINDS, help="one kind only")
    kind = parser.parse_args(argv).type
    rows = [
        (str(one.inode), one.kind, str(one.processes), str(one.pid or ""), str(one.parent or ""), str(one.owner or ""), one.command[:60])
        for one in namespaces.survey()
        if kind in (None, one.kind)
    ]
    _table("INODE,KIND,PROCESSES,PID,PARENT,OWNER,COMMAND", rows)


@command("clean", "give back what was left behind; --all also ends what runs")
def _clean(argv):
    from labkit import ledger

    parser = _parser("clean")
    parser.add_argument("-a", "--all", action="store_true")
    undone, kept, failed = ledger.clean(everything=parser.parse_args(argv).all)
    for entry in undone:
        print(f"gave back: {entry}")
    if kept:
        groups = sorted({entry.group or str(entry) for entry in kept})
        print(f"kept, in use by a living process: {', '.join(groups)}\n  → `lab clean --all` ends and removes these too")
    for entry, error in failed:
        print(f"could not give back {entry}: {error}", file=sys.stderr)
    if not (undone or kept or failed):
        print("nothing of labkit's is left on this machine")
    return 125 if failed else 0


@command("doctor", "what this machine has of what the chapters need")
def _doctor(argv):
    from labkit import doctor

    return doctor.main(argv)


@command("up", "start JupyterLab with the chapters")
def _up(argv):
    from labkit import workshop

    return workshop.up(argv)


@command("reset", "get a fresh copy of a chapter; yours is kept beside it")
def _reset(argv):
    from labkit import lessons

    parser = _parser("reset")
    parser.add_argument("chapter", nargs="+", help="its number: 04")
    for number in parser.parse_args(argv).chapter:
        aside = lessons.reset(number)
        print(f"chapter {number} is fresh" + (f"; yours is kept as {aside.name}" if aside else ""))
    print("a page that shows it already: File, Reload from Disk")


@command("progress", "what you have passed; with a chapter's number each exercise of it")
def _progress(argv):
    from labkit import lessons

    parser = _parser("progress")
    parser.add_argument("chapter", nargs="?")
    print(lessons.progress(parser.parse_args(argv).chapter))


@command("room", "for an instructor: what each seat of a room has passed")
def _room(argv):
    from labkit import room

    return room.main(argv)


@command("test", "run all tests")
def _test(argv):
    from labkit import workshop

    return workshop.test(argv)
