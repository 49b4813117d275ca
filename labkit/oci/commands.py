"""labkit-runtime: the command line by which Docker and Podman start their containers.

    dockerd --add-runtime labkit=/…/vagrant/labkit-runtime
    docker run --runtime labkit busybox ps

Docker does not make containers. It prepares a folder, the bundle, and has a program
make one of it: runc, usually. What that program is called with is fixed, so any
other that understands the same words can take its place. This one is labkit's.

    create start state kill delete      the specification's five
    run exec ps list pause resume       runc's, which Docker, Podman and
    update events features spec         people use as well

Errors go to stderr, and with --log as one JSON line to a file, where Docker's shim
looks for the sentence that it shows. See runtime.md of the runtime specification.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from labkit.ground.errors import BadValue, CommandError, LabError, NotFound, Unsupported, from_oserror
from labkit.ground.later import Later
from labkit.ground.typed import TYPE_CHECKING, Any, NoReturn
from labkit.oci import VERSION, lifecycle

if TYPE_CHECKING:
    from argparse import Namespace

    from labkit.container.channel import Spawned

# What only one of the commands needs, and each is a process of its own.
argparse, arguments, re, time = map(Later, ("argparse", "labkit.ground.arguments", "re", "time"))
signals, state = Later("labkit.ground.signals"), Later("labkit.ground.state")
subprocess, quantities = Later("subprocess"), Later("labkit.cgroups.quantities")
attach, spawner = Later("labkit.container.attach"), Later("labkit.container.spawner")
named_file, bundle = Later("labkit.ground.named_file"), Later("labkit.oci.bundle")
resources, terms = Later("labkit.oci.resources"), Later("labkit.oci.terms")
handed, syscalls, signal = map(Later, ("labkit.oci.handed", "labkit.ground.syscalls", "signal"))
cgroupfs, usage = Later("labkit.cgroups.cgroupfs"), Later("labkit.oci.usage")

# What runc can and labkit can't: refused by name, with why.
_NOT_HERE = {
    "checkpoint": "to freeze a container to disk needs CRIU",
    "restore": "to bring one back from disk needs CRIU",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = _read(argv)
    try:
        status = options.do(options) or 0
        sys.stdout.flush()
        return status
    except CommandError as error:
        _log(options, "error", error)
        failed = error.exit_status if options.command == "run" else 1
    except LabError as error:
        _log(options, "error", error)
        failed = 1
    except OSError as error:
        _log(options, "error", from_oserror(error, f"{options.command}"))
        failed = 1
    return 255 if options.command == "exec" else failed  # runc's: a program's own status is seldom that


def _log(options: Namespace, level: str, error: object) -> None:
    """Say it to the person on stderr, and to the program that called in the file it named."""
    text = str(error)
    if isinstance(error, CommandError):
        # Docker and Podman look for these words, as Go writes them, to know 126 from 127.
        text = f"{error.message}: exec {error.command}: {os.strerror(error.errno).lower()}"
    print(f"labkit-runtime: {'warning: ' if level == 'warning' else ''}{text}", file=sys.stderr)
    if not options.log:
        return
    told = {"level": level, "msg": text.replace("\n", " "), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    line = (
        json.dumps(told)
        if options.log_format == "json"
        else " ".join(f"{name}={json.dumps(text)}" for name, text in told.items())
    )
    with contextlib.suppress(OSError), open(options.log, "a") as file:
        file.write(line + "\n")


def _warn(options: Namespace, warnings: Iterable[object]) -> None:
    for warning in warnings:
        _log(options, "warning", warning)


# ---- the commands ----


def _box(options: Namespace) -> lifecycle.Box:
    return lifecycle.Box(options.root or lifecycle.default_root(), options.id)


def _create(options: Namespace) -> None:
    box = _box(options)
    spawned = _made(options, box, survives=True)
    os.close(spawned.pidfd)


def _sockets() -> int:
    """Return how many listening sockets systemd's socket activation has handed over. See sd_listen_fds(3)."""
    number = os.environ.get("LISTEN_FDS", "")
    return _count(number) if number.isdigit() else 0


def _made(options: Namespace, box: lifecycle.Box, survives: bool) -> Spawned:
    if options.no_pivot:
        raise Unsupported(
            "--no-pivot: labkit never leaves a container in a chroot", "a root filesystem that is not the initramfs"
        )
    spawned = box.create(
        options.bundle,
        config=options.config,
        console=options.console_socket,
        keep_fds=options.preserve_fds,
        sockets=_sockets(),
        systemd_cgroup=options.systemd_cgroup or options.cgroup_manager == "systemd",
        survives=survives,
        new_keyring=not options.no_new_keyring,
    )
    _warn(options, box.warnings)
    try:
        _tell(options, spawned)
    except BaseException:
        box.delete(force=True)
        raise
    return spawned


def _tell(options: Namespace, spawned: Spawned) -> None:
    """Tell whoever called which process it is, by the ways that were asked for; nobody is told: it ends."""
    try:
        if options.pidfd_socket:
            handed.pidfd(options.pidfd_socket, spawned.pidfd)
        if options.pid_file:
            with named_file.writing(options.pid_file) as file:
                file.write(str(spawned.pid).encode())
    except BaseException:
        syscalls.pidfd_send_signal(spawned.pidfd, signal.SIGKILL)
        raise


def _start(options: Namespace) -> None:
    _box(options).start()


def _run(options: Namespace) -> int:
    box = _box(options)
    spawned = _made(options, box, survives=options.detach)
    try:
        # Before its program runs: a signal that comes then is already for it.
        with attach.caught() as wakeup:
            box.start()
            if options.detach:
                return 0
            code = _in_front(spawned, wakeup)
    except BaseException:
        with contextlib.suppress(NotFound):  # a failed poststart hook has done so already
            box.delete(force=True)
        raise
    if not options.keep:
        _warn(options, box.delete(force=True))
    return code


def _in_front(spawned: Spawned, wakeup: Any) -> int:
    """Be in front of a process until it ends: its terminal, if it has one, and signals; return its status."""
    if spawned.terminal is not None:
        attach.foreground(spawned, [None] * 3, [None] * 2, True, lambda: None, wakeup)
    else:
        attach.pump_signals(spawned, wakeup)
    return spawner.reap(spawned.pidfd)


def _exec(options: Namespace) -> int:
    box = _box(options)
    spawned = box.exec(
        _process(options, box), console=options.console_socket, keep_fds=options.preserve_fds, survives=options.detach,
        paused=options.ignore_paused, below=_below(options.cgroup),
    )  # fmt: skip
    _warn(options, box.warnings)
    _tell(options, spawned)
    if options.detach:
        return 0
    with attach.caught() as wakeup:
        return _in_front(spawned, wakeup)


def _below(words: Sequence[str]) -> dict[str, str]:
    """Return {controller: folder} of runc's `--cgroup CONTROLLER,…:FOLDER`; '' is for every tree."""
    found: dict[str, str] = {}
    for word in words:
        names, path = word.split(":", 1) if ":" in word else (None, word)
        if len(words) > 1 and names is None:
            raise BadValue(
                f"exec --cgroup {word}: missing CONTROLLER: before it", "one folder for all, or one for each"
            )
        for name in [""] if names is None else names.split(","):
            if name in found or (names is not None and not name):
                raise BadValue(f"exec --cgroup {word}: a controller comes twice, or has no name")
            found[name] = path
    return found


def _process(options: Namespace, box: lifecycle.Box) -> dict[str, Any]:
    """Return the `process` object of an exec: a file's, or the container's own with the words given."""
    if options.process:
        if options.args:
            raise BadValue("exec: --process and a command together", "the command is in the file")
        return bundle.read_json(options.process)
    box.record()  # or it is said that there is none
    process = dict(box.config().get("process") or {})
    if not options.args:
        raise BadValue("exec: no command", "labkit-runtime exec ID COMMAND")
    process.update(args=options.args, terminal=options.tty, consoleSize=None)
    process.update(env=[*(process.get("env") or ()), *options.env], cwd=options.cwd or process["cwd"])
    user = dict(process.get("user") or {})
    if options.user:
        numbers = options.user.split(":")
        if not all(number.isdigit() for number in numbers) or len(numbers) > 2:
            raise BadValue(f"exec: --user {options.user!r}", "numbers: UID or UID:GID")
        user.update(zip(("uid", "gid"), map(int, numbers), strict=False))
    user["additionalGids"] = [*(user.get("additionalGids") or ()), *options.additional_gids]
    process["user"] = user
    if options.no_new_privs:
        process["noNewPrivileges"] = True
    if options.apparmor:
        process["apparmorProfile"] = options.apparmor
    power = dict(process.get("capabilities") or {})
    for name in ("bounding", "effective", "permitted", *(["ambient"] if power.get("inheritable") else [])):
        power[name] = [*(power.get(name) or ()), *options.cap]
    process["capabilities"] = power
    return process


def _state(options: Namespace) -> None:
    words = _box(options).state()
    if words["status"] == "creating":  # who waits for an answer would call `start` too soon
        raise NotFound(f"container {options.id} does not exist", "it is just being made")
    print(json.dumps(words, indent=2))


def _kill(options: Namespace) -> None:
    # 0 sends nothing, and fails where there is nobody to send it to: kill(2).
    number = 0 if options.signal == "0" else signals.number(options.signal)
    _box(options).kill(number, options.all)


def _delete(options: Namespace) -> None:
    box = _box(options)
    try:
        _warn(options, box.delete(options.force))
    except NotFound:
        if not options.force:
            raise


def _ps(options: Namespace) -> None:
    box = _box(options)
    pids = box.pids()
    if options.format == "json":
        print(json.dumps(pids))
        return
    table = subprocess.run(
        ["ps", *(options.args or ["-ef"])], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    column = table[0].split().index("PID")
    print("\n".join([table[0], *(line for line in table[1:] if line.split()[column] in map(str, pids))]))


def _list(options: Namespace) -> None:
    root = options.root or lifecycle.default_root()
    if options.root and not os.path.isdir(root):
        raise NotFound(f"there is no folder {root}", "--root is the one that the containers were made with")
    found = [box.state() for box in lifecycle.boxes(root)]
    if options.format == "json":
        print(json.dumps(found, separators=(",", ":")))
    elif options.quiet:
        print("".join(f"{one['id']}\n" for one in found), end="")
    else:
        names = ("id", "pid", "status", "bundle", "created", "owner")
        rows = [[name.upper() for name in names], *([str(one[name]) for name in names] for one in found)]
        widths = [max(11, *map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print(" ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)).rstrip())


def _pause(options: Namespace) -> None:
    _box(options).governed().freeze()


def _resume(options: Namespace) -> None:
    _box(options).governed().thaw()


def _update(options: Namespace) -> None:
    given: dict[str, Any] = {}
    if options.resources:
        given = bundle.read_json("/dev/stdin" if options.resources == "-" else options.resources)
    for flag, (part, name, number) in _LIMITS.items():
        if text := getattr(options, flag.replace("-", "_")):
            given.setdefault(part, {})[name] = getattr(quantities, number)(f"--{flag}", text) if number else text
    # In a file 0 is Docker's word for "not said"; whoever types it means that no process may be added.
    if options.pids_limit == "0":
        given["pids"]["limit"] = 1
    box = _box(options)
    box.update(given)
    _warn(options, box.warnings)


_LIMITS = {
    "memory": ("memory", "limit", "parse_size"),
    "memory-swap": ("memory", "swap", "parse_size"),
    "memory-reservation": ("memory", "reservation", "parse_size"),
    "kernel-memory": ("memory", "kernel", "parse_size"),
    "kernel-memory-tcp": ("memory", "kernelTCP", "parse_size"),
    "cpu-quota": ("cpu", "quota", "parse_count"),
    "cpu-period": ("cpu", "period", "parse_count"),
    "cpu-burst": ("cpu", "burst", "parse_count"),
    "cpu-share": ("cpu", "shares", "parse_count"),
    "cpu-idle": ("cpu", "idle", "parse_count"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime", "parse_count"),
    "cpu-rt-period": ("cpu", "realtimePeriod", "parse_count"),
    "cpuset-cpus": ("cpu", "cpus", None),
    "cpuset-mems": ("cpu", "mems", None),
    "pids-limit": ("pids", "limit", "parse_count"),
    "blkio-weight": ("blockIO", "weight", "parse_count"),
}


def _events(options: Namespace) -> None:
    box = _box(options)
    record = box.record()
    if box.status(record) == "stopped":
        raise NotFound(f"container with id {box.id} is not running", "its numbers went with its cgroup")
    group = box.governed()
    for data in [usage.stats(group)] if options.stats else usage.watched(group, options.interval):
        told = {"type": "stats", "id": box.id, "data": data} if data else {"type": "oom", "id": box.id}
        print(json.dumps(told, separators=(",", ":")), flush=True)


def _seconds(text: str) -> float:
    """Return the seconds in Go's `1m30s`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|us|m|s)", text, re.ASCII)
    seconds = sum(float(number) * {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6}[unit] for number, unit in parts)
    if "".join(map("".join, parts)) != text or seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time above 0, like 5s or 100ms")
    return seconds


def _features(_: Namespace) -> None:
    print(json.dumps(terms.features(), indent=2))


def _spec(options: Namespace) -> None:
    path = os.path.join(options.bundle, "config.json")
    if os.path.exists(path):
        raise BadValue(f"{path} is there already", "remove it first, or name another --bundle")
    config = terms.rootless_example() if options.rootless else terms.example()
    if cgroupfs.trees()[0].version == 1:
        # v1's folders have names that programs expect to see: runc's example shows them too.
        config["linux"]["namespaces"].remove({"type": "cgroup"})
    state.write_json(path, config, sync=False)
    os.chmod(path, 0o644)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) > 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of fds")
    return int(text)


# ---- its words ----

# Each is as argparse has it: its names, and what is said of it. A line in which every word is known
# and in its place, as those that Docker says are, is read without: loading argparse takes longer than
# all that `start` does. Any other line, help and mistakes too, is argparse's.
Word = tuple[tuple[str, ...], dict[str, Any]]
YES: dict[str, Any] = {"action": "store_true"}
REST = "..."  # argparse.REMAINDER

_TOP: tuple[Word, ...] = (
    (("--root",), {"help": "the folder that keeps containers"}),
    (("--log",), {"help": "a file that errors are added to"}),
    (("--log-format",), {"choices": ("text", "json"), "default": "text"}),
    (("--log-level",), {"help": "taken, and not needed: what is logged is always worth it"}),
    (("--debug",), YES),  # likewise
    (("--systemd-cgroup",), YES),  # cgroupsPath is SLICE:PREFIX:NAME, and systemd makes it
    # crun's words for the same choice.
    (("--cgroup-manager",), {"choices": ("cgroupfs", "systemd"), "help": "who makes the cgroup"}),
)

_ID: Word = (("id",), {"metavar": "ID"})
_REST: Word = (("args",), {"nargs": REST})
_BUNDLE: Word = (("--bundle", "-b"), {"default": "."})
_FORM: Word = (("--format", "-f"), {"choices": ("table", "json"), "default": "table"})
_CONSOLE: tuple[Word, ...] = (
    (("--console-socket",), {}),
    (("--pid-file",), {}),
    (("--pidfd-socket",), {}),
    (("--preserve-fds",), {"type": _count, "default": 0}),
)
_MAKE: tuple[Word, ...] = (
    _BUNDLE,
    (("--config", "-f"), {}),
    *_CONSOLE,
    (("--no-pivot",), YES),
    (("--no-new-keyring",), YES),
    _ID,
)
_FURTHER: tuple[Word, ...] = (
    *_CONSOLE,
    (("--process", "-p"), {}), (("--detach", "-d"), YES), (("--tty", "-t"), YES), (("--cwd",), {}),
    (("--env", "-e"), {"action": "append", "default": []}), (("--user", "-u"), {}),
    (("--additional-gids", "-g"), {"action": "append", "type": int, "default": []}),
    (("--cap", "-c"), {"action": "append", "default": []}), (("--no-new-privs",), YES), (("--apparmor",), {}),
    (("--cgroup",), {"action": "append", "default": []}), (("--ignore-paused",), YES), _ID, _REST,
)  # fmt: skip

# Its function, its words, what it is for.
_COMMANDS: dict[str, tuple[Callable[[Namespace], int | None], tuple[Word, ...], str]] = {
    "create": (_create, _MAKE, "make a container of a bundle; its program waits"),
    "start": (_start, (_ID,), "let its program run"),
    "run": (_run, (*_MAKE, (("--detach", "-d"), YES), (("--keep",), YES)), "create, start, wait, delete"),
    "state": (_state, (_ID,), "tell what it is doing, as JSON"),
    "kill": (
        _kill,
        ((("--all", "-a"), YES), _ID, (("signal",), {"nargs": "?", "default": "SIGTERM"})),
        "send it a signal",
    ),
    "delete": (_delete, ((("--force", "-f"), YES), _ID), "take away what is left of it"),
    "exec": (_exec, _FURTHER, "run a further process in it"),
    "ps": (_ps, (_FORM, _ID, _REST), "list its processes"),
    "list": (_list, (_FORM, (("--quiet", "-q"), YES)), "list containers"),
    "pause": (_pause, (_ID,), "freeze it"),
    "resume": (_resume, (_ID,), "let it go on"),
    "update": (
        _update,
        ((("--resources", "-r"), {}), *(((f"--{flag}",), {}) for flag in _LIMITS), _ID),
        "change its limits",
    ),
    "events": (
        _events,
        ((("--stats",), YES), (("--interval",), {"type": _seconds, "default": 5.0}), _ID),
        "tell what it uses, as JSON, again and again",
    ),
    "features": (_features, (), "tell what this runtime can, as JSON"),
    "spec": (_spec, (_BUNDLE, (("--rootless",), YES)), "write a config.json"),
}


def _read(argv: Sequence[str]) -> Namespace:
    """Return what a line says. Ends with argparse's words and status 2 for one that says nothing."""
    return _plain(argv) or _thoroughly(argv)


class _Words:
    """What was said, by name, with what is taken for said otherwise."""

    def __init__(self, words: Iterable[Word]) -> None:
        self.flags: dict[str, tuple[str, dict[str, Any]]] = {}
        self.places: list[tuple[str, dict[str, Any]]] = []
        self.said: dict[str, Any] = {}
        for names, about in words:
            # --log-format's value is log_format; where several names are, the long one is first.
            name = names[0].lstrip("-").replace("-", "_")
            self.said[name] = about.get("default", False if about.get("action") == "store_true" else None)
            if names[0].startswith("-"):
                self.flags.update(dict.fromkeys(names, (name, about)))
            else:
                self.places.append((name, about))

    def flag(self, word: str, rest: list[str]) -> bool:
        """Take a flag, and its value from `rest`; tell whether both are plain."""
        flag, equals, value = word.partition("=")
        name, about = self.flags.get(flag, ("", {"type": None}))
        if about is YES:
            self.said[name] = True
            return not equals
        if about.keys() - {"default", "help", "choices"} or (equals and not flag.startswith("--")):
            return False
        if not equals:
            value = rest.pop() if rest else "-"
        self.said[name] = value
        return (equals or not value.startswith("-")) and value in about.get("choices", (value,))

    def place(self, values: list[str]) -> bool:
        """Take what has no flag; tell whether it is plain."""
        least = sum("nargs" not in about for _, about in self.places)
        plain = all(about.get("nargs") != REST for _, about in self.places)
        self.said.update(zip((name for name, _ in self.places), values, strict=False))
        return plain and least <= len(values) <= len(self.places)


def _plain(argv: Sequence[str]) -> Namespace | None:
    """Return what a line says, as argparse would; None if that had better look at it."""
    rest = list(reversed(argv))
    words = first = _Words(_TOP)
    name, values = "", list[str]()
    while rest:
        word = rest.pop()
        if word.startswith("-"):
            if not words.flag(word, rest):
                return None
        elif name:
            values.append(word)
        elif word in _COMMANDS:
            name, words = word, _Words(_COMMANDS[word][1])
        else:
            return None
    if not name or not words.place(values):
        return None
    said: Any = _Said()
    vars(said).update(first.said, **words.said, command=name, do=_COMMANDS[name][0])
    found: Namespace = said
    return found


class _Said:
    """An argparse.Namespace, by what it holds."""


def _thoroughly(argv: Sequence[str]) -> Namespace:
    parser = arguments.Parser(prog="labkit-runtime", description="an OCI runtime")
    parser.add_argument("--version", "-v", action="version", version=f"labkit-runtime version 0.1.0\nspec: {VERSION}")
    for names, about in _TOP:
        parser.add_argument(*names, **about)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (function, known, help) in _COMMANDS.items():
        sub = commands.add_parser(name, help=help)
        for names, about in known:
            sub.add_argument(*names, **about)
        sub.set_defaults(do=function)
    for name, why in _NOT_HERE.items():
        sub = commands.add_parser(name, help=f"not here: {why}")
        sub.add_argument("rest", nargs=REST)
        sub.set_defaults(do=_refuse, why=why)
    options, strange = parser.parse_known_args(argv)
    if strange and options.command not in _NOT_HERE:
        parser.error(f"unknown words: {' '.join(strange)}")
    return options


def _refuse(options: Namespace) -> NoReturn:
    raise Unsupported(f"labkit-runtime has no {options.command}: {options.why}", "runc has it")
