"""A bundle: a folder with a root filesystem and a config.json, read into what labkit does.

The runtime specification is how Docker, Podman and containerd tell a runtime what a
container shall be. It says the same as a Spec does, in more words, because its
readers are programs: every mount, mask, capability and device one by one. So this
module only translates; the Job that comes out is the one that `lab run` makes too.

    namespaces    clone or join by path          process.capabilities   five sets
    mounts        a plan, in the order given     linux.resources        limits, devices
    maskedPaths   steps after the mounts         hooks                  hooks

What labkit can't do is refused, and named by its place in the file: a container that
silently lacks a lock is worse than none. Words that the specification does not have
are returned as warnings, for it says that readers must let them pass.
See https://github.com/opencontainers/runtime-spec.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from labkit.cgroups import quantities
from labkit.cgroups.cgroup import Cgroup
from labkit.container import joining, launch, standard_mounts
from labkit.container.channel import Step
from labkit.container.entry import Entry
from labkit.container.launch import Job, ParentStep
from labkit.container.steps import GoTo, MakePrivate, PivotRoot, WriteSysctls
from labkit.ground import proc
from labkit.ground.dataclass import dataclass, field, replace
from labkit.ground.errors import BadValue, NotFound, Unsupported, from_oserror
from labkit.ground.typed import Any
from labkit.isolation import mount_options, mounts, namespaces, seccomp, security, sysctls
from labkit.oci import hooks, hostmounts, links, moments, priorities, resources, settings, shape

# the specification's word: ours
KINDS = {
    "mount": "mnt",
    "network": "net",
    "pid": "pid",
    "ipc": "ipc",
    "uts": "uts",
    "user": "user",
    "cgroup": "cgroup",
    "time": "time",
}

_KNOWN = {
    "": "ociVersion root process hostname domainname mounts hooks annotations linux",
    "root": "path readonly",
    "process": "terminal consoleSize user args env cwd capabilities rlimits noNewPrivileges apparmorProfile "
    "oomScoreAdj scheduler ioPriority execCPUAffinity",
    "process.user": "uid gid umask additionalGids",
    "linux": "uidMappings gidMappings sysctl resources cgroupsPath namespaces devices seccomp rootfsPropagation "
    "maskedPaths readonlyPaths timeOffsets memoryPolicy personality netDevices",
}
# What the specification has and labkit has not, with what is lost without it.
_NOT_HERE = {
    "process.selinuxLabel": "labkit sets no SELinux labels",
    "process.commandLine": "that is for Windows",
    "linux.mountLabel": "labkit sets no SELinux labels",
    "linux.intelRdt": "labkit does not part the processor's cache",
    **{name: "that is for another system than Linux" for name in ("windows", "solaris", "vm", "zos", "freebsd")},
}
_SELINUX = "/sys/fs/selinux"  # there if the kernel runs SELinux


@dataclass(frozen=True)
class Bundle:
    """A config.json and where it lies. Made by `read`."""

    path: str
    config: dict[str, Any]
    warnings: tuple[str, ...] = ()
    process: dict[str, Any] = field(default_factory=dict)

    @property
    def linux(self) -> dict[str, Any]:
        """Its `linux` part."""
        return self.config.get("linux") or {}

    @property
    def rootfs(self) -> str:
        """The absolute path of its root filesystem."""
        return os.path.realpath(os.path.join(self.path, self.config["root"]["path"]))

    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of namespace that are the container's own, made or joined."""
        return tuple(KINDS[entry["type"]] for entry in self.linux.get("namespaces") or ())

    def resources(self, v1_cpu: bool = False) -> resources.Resources:
        """Return what its cgroup is to be told."""
        return resources.read(self.linux.get("resources"), v1_cpu)

    def hooks(self) -> tuple[hooks.Hook, ...]:
        """Return its Hooks."""
        return hooks.read(self.config.get("hooks"))

    def owner(self) -> tuple[int, int]:
        """Return (uid, gid) that the container's user has outside of its user namespace."""
        user = self.process.get("user") or {}
        uid, gid = (_outside(user.get(name, 0), _maps(self.linux, f"{name}Mappings")) for name in ("uid", "gid"))
        return uid, gid


def read(path: str, config_file: str | None = None) -> Bundle:
    """Return the Bundle in a folder. Raises NotFound, BadValue or Unsupported, and names the place in the file."""
    path = os.path.abspath(path)
    file = Path(config_file or Path(path, "config.json"))
    config = read_json(file)
    version = config.get("ociVersion")
    if not isinstance(version, str) or not re.match(r"1\.\d+\.\d+", version):
        raise Unsupported(f"{file}: ociVersion {version!r}", "labkit reads version 1 of the specification, any 1.x.y")
    shape.check(config, shape.CONFIG)
    warnings = [
        *_strange("", config),
        *_strange("root", config.get("root") or {}),
        *_strange("linux", config.get("linux") or {}),
    ]
    if not (config.get("root") or {}).get("path"):
        raise BadValue(f"{file}: root.path is missing", "the folder that becomes /")
    process = config.get("process") or {}
    warnings += [*check_process(process), *resources.ignored((config.get("linux") or {}).get("resources"))]
    for number, words in enumerate(config.get("mounts") or ()):
        options = mount_options.parse(words.get("options") or ())
        if options.bind and options.data:
            warnings.append(
                f"mounts[{number}]: {','.join(options.data)} is for a filesystem, and no bind has one: ignored"
            )
    bundle = Bundle(path, config, tuple(warnings), process)
    if not os.path.isdir(bundle.rootfs):
        raise NotFound(
            f"{file}: root.path is {bundle.rootfs}, and there is no such folder", "put the files of the root there"
        )
    return bundle if "mnt" in bundle.kinds() else _among_the_hosts_mounts(bundle)


def _among_the_hosts_mounts(bundle: Bundle) -> Bundle:
    """Check a bundle without a mount namespace: what can't be done without one is refused."""
    if "user" in bundle.kinds():
        raise BadValue(
            "linux.namespaces has user and no mount: who is root in there only may not mount for the host",
            "add a mount namespace",
        )
    if bundle.linux.get("rootfsPropagation"):
        raise BadValue("linux.rootfsPropagation without a mount namespace: it would be the host's", "leave it out")
    return replace(bundle, warnings=(*bundle.warnings, hostmounts.WARNING))


@contextlib.contextmanager
def shaped(what: str = "config.json") -> Iterator[None]:
    """Turn what a text in place of a list, or a missing word, leads to into a BadValue."""
    try:
        yield
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise BadValue(
            f"{what} has another shape than the specification's: {missing}", "config.md of the runtime specification"
        ) from None


def read_json(file: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises NotFound or BadValue."""
    try:
        data = Path(file).read_bytes()
        value = json.loads(data)
    except FileNotFoundError:
        raise NotFound(f"there is no {file}", "`labkit-runtime spec` writes one to begin with") from None
    except OSError as error:
        raise from_oserror(error, f"reading {file}") from None
    except (ValueError, RecursionError) as error:
        raise BadValue(f"{file} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadValue(f"{file} holds no JSON object")
    if b"\\u0000" in data or b"\\ud" in data.lower():
        _check_texts(value, str(file))
    return value


def _check_texts(value: object, where: str) -> None:
    """Refuse a text that the kernel can't be told: a C string ends at NUL, and half a surrogate is no letter."""
    if isinstance(value, dict):
        for name, one in value.items():
            _check_texts(name, f"a name in {where}")
            _check_texts(one, f"{where}: {name}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            _check_texts(one, f"{where}[{number}]")
    elif isinstance(value, str) and ("\0" in value or any(0xD800 <= ord(letter) <= 0xDFFF for letter in value)):
        raise BadValue(f"{where}: {value!r} has a NUL or half a letter in it", "no path, name or word may have one")


def check_process(process: dict[str, Any]) -> list[str]:
    """Return warnings about a `process` object; raise BadValue or Unsupported for what can't be done."""
    shape.check(process, shape.PROCESS, "process")
    args, cwd = process.get("args"), process.get("cwd")
    if not isinstance(args, list) or not args or not all(isinstance(word, str) and "\0" not in word for word in args):
        raise BadValue("process.args must be a list of at least one text")
    if not isinstance(cwd, str) or not cwd.startswith("/"):
        raise BadValue(f"process.cwd {cwd!r} is not an absolute path")
    for pair in process.get("env") or ():
        if not isinstance(pair, str) or "=" not in pair[1:] or "\0" in pair:
            raise BadValue(f"process.env: {pair!r} is not NAME=value")
    strange = [*_strange("process", process), *_strange("process.user", process.get("user") or {})]
    return [*strange, *_power(process.get("capabilities"))[1]]


def _strange(where: str, words: dict[str, Any]) -> list[str]:
    """Refuse what is not here; return a warning for each word that the specification does not have."""
    found = []
    for name, value in words.items():
        full = f"{where}.{name}".lstrip(".")
        if full == "linux.mountLabel" and value and not os.path.isdir(_SELINUX):
            found.append(f"{full} is ignored: this kernel runs no SELinux, and nothing asks for labels")
        elif full in _NOT_HERE:
            if value:
                raise Unsupported(f"{full}: {_NOT_HERE[full]}", "leave it out of config.json")
        elif name not in _KNOWN[where].split():
            found.append(f"{full} is no word of the specification, and is ignored")
    return found


# ---- a process ----


def process_words(
    process: dict[str, Any], linux: dict[str, Any], at_listener: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Return what a `process` object means, for the first process or a further one: the words of `moments.inside`."""
    user = process.get("user") or {}
    power, _ = _power(process.get("capabilities"))
    size = process.get("consoleSize")
    return {
        "argv": tuple(process["args"]),
        "env": tuple(process.get("env") or ()),
        "cwd": process["cwd"],
        "ids": (user.get("uid", 0), user.get("gid", 0), tuple(user.get("additionalGids") or ())),
        "power": power,
        "terminal": bool(process.get("terminal")),
        "console_size": (size["height"], size["width"]) if size and size.get("height") else None,
        "filters": _filters(linux.get("seccomp"), power.bounding, at_listener),
        # To gain privilege by exec stays possible, as with docker, unless the config forbids it.
        "no_new_privs": bool(process.get("noNewPrivileges")),
        "priorities": (
            priorities.scheduler(process.get("scheduler")),
            priorities.io_priority(process.get("ioPriority")),
            priorities.memory_policy(linux.get("memoryPolicy")),
        ),
        "settings": settings.Settings(
            rlimits=tuple(
                settings.check_rlimit(one["type"], one["soft"], one["hard"]) for one in process.get("rlimits") or ()
            ),
            oom_score_adj=settings.check_oom_score_adj(process.get("oomScoreAdj")),
            umask=user.get("umask", 0o022),
            apparmor=process.get("apparmorProfile") or None,
            personality=settings.personality(linux.get("personality")),
        ),
    }


def _power(words: dict[str, Any] | None) -> tuple[security.Sets, list[str]]:
    """Return the capability sets that can be given, and warnings: less power than asked for is no lock less."""
    asked = {
        name: [str(one).upper().removeprefix("CAP_") for one in (words or {}).get(name) or ()]
        for name in ("bounding", "effective", "permitted", "inheritable", "ambient")
    }
    here = security.choose(("ALL",))
    given = {name: tuple(one for one in names if one in here) for name, names in asked.items()}
    lacking = sorted({one for names in asked.values() for one in names} - set(here))
    vain = set(given["ambient"]) - (set(given["permitted"]) & set(given["inheritable"]))
    given["ambient"] = tuple(one for one in given["ambient"] if one not in vain)
    return security.Sets(**given), [
        *(f"process.capabilities: this machine has no {one} to give, and goes on without" for one in lacking),
        *(f"can't raise ambient capability CAP_{one}: not permitted, or not inheritable" for one in sorted(vain)),
    ]


def _filters(
    words: dict[str, Any] | None, capabilities: tuple[str, ...], at_listener: Callable[[int, int], None] | None
) -> tuple[moments.InstallFilterOfConfig, ...]:
    """Return the step that installs the filter of a `linux.seccomp`, if there is one."""
    if not words:
        return ()
    flags = 0
    for name in words.get("flags") or ():
        if name not in seccomp.FLAGS:
            raise Unsupported(f"linux.seccomp.flags: labkit sets no {name}", "there are: " + ", ".join(seccomp.FLAGS))
        flags |= seccomp.FLAGS[name]
    asked = {name for rule in words.get("syscalls") or () if rule["action"] == _NOTIFY for name in rule["names"]}
    if words.get("defaultAction") == _NOTIFY:
        raise BadValue("linux.seccomp: SCMP_ACT_NOTIFY cannot be used as the default action", "name the syscalls")
    # Until the listener has its fd nobody answers.
    for name in asked & {"write", "sendmsg", "recvmsg"}:
        raise BadValue(f"linux.seccomp: SCMP_ACT_NOTIFY cannot be used for the {name} syscall", "the fd goes out by it")
    if asked and not words.get("listenerPath"):
        raise BadValue("linux.seccomp: SCMP_ACT_NOTIFY without listenerPath", "a socket that somebody listens on")
    program = seccomp.kept(seccomp.parse(words, capabilities, "linux.seccomp"))
    # Whoever listens waits for the fd, even if no rule asks him yet.
    listens = at_listener if words.get("listenerPath") else None
    return (moments.InstallFilterOfConfig(program, "of the config", flags, listens),)


_NOTIFY = "SCMP_ACT_NOTIFY"


# ---- the first process: its namespaces and its root ----


def job(
    bundle: Bundle,
    group: Cgroup,
    entry: Entry,
    parent: tuple[ParentStep, ...] = (),
    *,
    gate: str,
    state: dict[str, Any],
    at_hooks: Callable[[int], None],
    at_listener: Callable[[int, int], None],
    **how: Any,
) -> Job:
    """Return the Job of a bundle's container in a cgroup.

    `gate` is the folder of the one it waits at, `state` is what hooks in it are told,
    `at_hooks` runs those on the host, `at_listener` takes its pid and the fd of its
    seccomp listener. `how` goes to `moments.inside`.
    """
    linux, config, found = bundle.linux, bundle.config, bundle.hooks()
    made, paths = _namespaces(linux.get("namespaces") or ())
    words = process_words(bundle.process, linux, at_listener)
    checked = tuple(sysctls.check(name, value, bundle.kinds()) for name, value in (linux.get("sysctl") or {}).items())
    for name in ("hostname", "domainname"):
        if not isinstance(config.get(name, ""), str):
            raise BadValue(f"{name} {config[name]!r} is no text")
        if config.get(name) and "uts" not in made and _is_own("uts", dict(paths).get("uts")):
            raise BadValue(
                f"{name} is set, and the container has no uts namespace of its own", "it would rename the host"
            )
    written = (linux.get("sysctl") or {}).get("kernel.domainname")
    if config.get("domainname") and written not in (None, config["domainname"]):
        raise BadValue("domainname and linux.sysctl kernel.domainname are the same thing, and differ", "say it once")
    if devices := linux.get("netDevices") or {}:
        links.check(devices)
        if "net" not in made and _is_own("net", dict(paths).get("net")):
            raise BadValue("linux.netDevices without a network namespace of the container's own")
    at_root: tuple[Step, ...] = (
        *([moments.MoveLinks(devices)] if devices else []),
        *([moments.HooksOnHost(at_hooks), moments.HooksInside(found, "createContainer", state)] if found else []),
        *([WriteSysctls(checked)] if checked else []),
    )
    last = words["no_new_privs"] and not moments.before_the_gate(words["filters"])
    filters = words["filters"] if last else ()  # or they are there by then
    at_gate: tuple[Step, ...] = (
        moments.WaitAtGate(),
        *(
            [moments.HooksInside(found, "startContainer", {**state, "status": "created"}, words["env"], filters)]
            if found
            else []
        ),
    )
    map_ids = launch.MapIds(_maps(linux, "uidMappings"), _maps(linux, "gidMappings")) if "user" in made else None
    plan = _plan(bundle, group)
    first = moments.furnish(
        plan,
        made,
        paths=paths,
        clocks=_clocks(linux.get("timeOffsets"), "time" in made),
        names=(config.get("hostname") or None, config.get("domainname") or None),
        map_ids=map_ids,
        spread=mount_options.propagation(linux["rootfsPropagation"]) if linux.get("rootfsPropagation") else None,
        at_root=at_root,
    )
    if "mnt" not in bundle.kinds():
        first = launch.instead(launch.instead(first, MakePrivate), PivotRoot, hostmounts.Chroot())
    return Job(
        (
            moments.TakeCpus(),
            moments.ComeToGate(gate),
            *_host_proc(words),
            *first,
            *moments.inside(words, console=True, ready=at_gate, **how),
        ),
        () if paths else launch.at_birth(made),
        entry,
        (*parent, *moments.oom_score(words), *([map_ids] if map_ids and not paths else [])),
        # To show files under other ids takes power over their filesystem, and a pid that is found in this /proc.
        # Who is not root has it only in there.
        sources_first=os.geteuid() == 0
        and ("user" in (*made, *dict(paths)) or any(getattr(step, "id_maps", None) for step in plan.steps)),
    )


def further(
    process: dict[str, Any],
    pid: int,
    entry: Entry,
    linux: dict[str, Any],
    at_listener: Callable[[int, int], None],
    **how: Any,
) -> Job:
    """Return the Job of a further process in the container whose first one is `pid`. See `job`."""
    kinds = own_kinds(pid)
    words = process_words(process, linux, at_listener)
    # Or no filter can be installed where no_new_privs does not allow it to anyone, nor a place before others taken.
    more = ["SYS_ADMIN"] if words["filters"] and not words["no_new_privs"] else []
    more += ["SYS_NICE"] if process.get("scheduler") or process.get("ioPriority") else []
    steps = joining.join(pid, kinds, (*words["power"].bounding, *more))
    inside = moments.inside(words, console=False, **how)
    if "mnt" not in kinds:
        steps = launch.before(steps, joining.LeavePowerOutside, hostmounts.ChrootLike(pid))
    if "user" not in kinds:
        # Into a folder that is not the user's own, by the power that the next step leaves outside.
        steps = launch.before(steps, joining.LeavePowerOutside, GoTo(words["cwd"], makes=False))
        inside = launch.instead(inside, GoTo)
    initial, final = (_cpus(process, when) for when in ("initial", "final"))
    if initial:
        os.sched_setaffinity(0, initial)  # this process has nothing else to do: its child begins there
    if final or not initial:
        steps = (moments.TakeCpus(final or moments.EVERY_CPU), *steps)
    return Job((*_host_proc(words), *steps, *inside), entry=entry, parent=moments.oom_score(words))


def _cpus(process: dict[str, Any], when: str) -> tuple[int, ...]:
    text = (process.get("execCPUAffinity") or {}).get(when)
    return tuple(sorted(quantities.parse_list(f"process.execCPUAffinity.{when}", text))) if text else ()


def _host_proc(words: dict[str, Any]) -> tuple[Step, ...]:
    profile = words["settings"].apparmor
    return (moments.OpenHostProc(profile),) if profile else ()


def _namespaces(entries: Iterable[dict[str, Any]]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    made: list[str] = []
    paths: list[tuple[str, str]] = []
    for entry in entries:
        kind = KINDS.get(str(entry.get("type")))
        if kind is None:
            raise BadValue(f"linux.namespaces: {entry.get('type')!r} is no kind of namespace", ", ".join(KINDS))
        if kind in made or kind in dict(paths):
            raise BadValue(f"linux.namespaces: {entry['type']} comes twice")
        path = entry.get("path")
        if not path:
            made.append(kind)
        elif kind == "mnt" and _is_own(kind, path):
            raise Unsupported("linux.namespaces: mount by path, and it is the host's", "its mounts would be the host's")
        elif not path.startswith("/"):
            raise BadValue(f"linux.namespaces: path {path!r} must be absolute")
        else:
            paths.append((kind, path))
    return tuple(made), tuple(paths)


def _is_own(kind: str, path: str | None) -> bool:
    """Tell whether a namespace is the host's: that of this process, or of process 1. No path means it."""
    if not path:
        return True
    try:
        wanted = os.stat(path)
    except OSError as error:
        raise from_oserror(error, f"joining the {kind} namespace {path}") from None
    for pid in ("self", "1"):
        with contextlib.suppress(OSError):  # process 1's may be none of our business
            if os.path.samestat(wanted, os.stat(f"/proc/{pid}/ns/{kind}")):
                return True
    return False


def _clocks(words: dict[str, Any] | None, has_time: bool) -> tuple[int, int, tuple[int, int]]:
    """Return what ShiftClocks takes. Raises BadValue for offsets without a time namespace of its own."""
    if words and not has_time:
        raise BadValue("linux.timeOffsets is set, and no time namespace is made", "add one to linux.namespaces")
    clocks = [(words or {}).get(name) or {} for name in ("monotonic", "boottime")]
    seconds, nanoseconds = ([clock.get(unit, 0) for clock in clocks] for unit in ("secs", "nanosecs"))
    return seconds[0], seconds[1], (nanoseconds[0], nanoseconds[1])


def _maps(linux: dict[str, Any], name: str) -> tuple[tuple[int, int, int], ...]:
    return tuple((one["containerID"], one["hostID"], one["size"]) for one in linux.get(name) or ())


def _outside(number: int, table: Iterable[tuple[int, int, int]]) -> int:
    for inside, outside, length in table:
        if inside <= number < inside + length:
            return outside + number - inside
    return number


def _plan(bundle: Bundle, group: Cgroup) -> mounts.Plan:
    linux = bundle.linux
    steps: list[mounts.MountStep] = []
    for number, words in enumerate(bundle.config.get("mounts") or ()):
        steps += _mount(bundle, group, words, f"mounts[{number}]")
    # A /dev that is bound from the host is not the container's to furnish.
    if not any(step.target == "/dev" and step.options.bind for step in steps if isinstance(step, mount_options.Mount)):
        steps += _devices(bundle)
    own = [step for step in steps if isinstance(step, mount_options.Mount)]
    later = [step for step in own if step.is_empty_and_read_only()]
    # That of v1's trees too, or nothing more could be mounted among them: Podman brings systemd's.
    seals = [
        step for step in steps if isinstance(step, mounts.Seal) and step.target not in [mount.target for mount in own]
    ]
    steps = [step.writable() if step in later else step for step in steps if step not in seals]
    if bundle.process.get("terminal"):
        steps.append(mounts.Place("/dev/console", folder=False))
    if bundle.process:
        steps.append(mounts.Place(os.path.normpath(bundle.process["cwd"])))
    steps += [*(mounts.Seal(step.target, follow=True) for step in later), *seals]
    steps += [mounts.Mask(path) for path in dict.fromkeys(_paths(linux, "maskedPaths"))]
    steps += [mounts.ReadOnly(path) for path in dict.fromkeys(_paths(linux, "readonlyPaths"))]
    if bundle.config["root"].get("readonly"):
        steps.append(mounts.Seal("/"))
    root = mounts.BindRoot if "mnt" in bundle.kinds() else hostmounts.RootForAll
    return mounts.Plan(root(bundle.rootfs, bundle.rootfs, 0), tuple(steps))


def _mount(bundle: Bundle, group: Cgroup, words: dict[str, Any], where: str) -> Iterable[mounts.MountStep]:
    target, kind = words.get("destination"), words.get("type") or "none"
    if not isinstance(target, str) or not target:
        raise BadValue(f"{where}: destination {target!r} is no path")
    # Old tools leave the first / out, or say where it is on the host.
    target = os.path.normpath("/" + target.removeprefix(f"{bundle.rootfs}/").lstrip("/"))
    if target == "/":
        raise BadValue(f"{where}: destination / is the root itself", "root.path names the folder that becomes /")
    source, options, inside = words.get("source") or "", list(words.get("options") or ()), False
    parsed = mount_options.parse(options)
    if kind in ("bind", "rbind") and not parsed.bind:
        parsed = replace(parsed, bind=True, recursive=kind == "rbind")
    if kind.startswith("cgroup") and not parsed.bind:
        sealed = replace(parsed, data=())
        return standard_mounts.cgroup_filesystems(target, group, "cgroup" in bundle.kinds(), sealed.attrs)
    if kind == "sysfs" and "user" in bundle.kinds() and "net" not in bundle.kinds():
        # A new sysfs takes power over the network namespace that it shows. Without what is mounted in the host's.
        return [mounts.Bind("/sys", target, parsed.attrs | mounts.RDONLY, recursive=False)]
    if parsed.bind:
        if not source:
            raise BadValue(f"{where}: a bind mount needs a source")
        source = os.path.join(bundle.path, source)
        inside = source.startswith(f"{bundle.rootfs}/")
        if inside:
            source = source.removeprefix(bundle.rootfs)
    elif kind == "none":
        raise BadValue(f"{where}: {target} has neither a type nor the option bind")
    id_maps = _id_maps(bundle, words, where, implied=parsed.idmap is not None)
    if id_maps and not parsed.bind:
        raise Unsupported(f"{where}: labkit shows only a bind under other ids (idmap)", "leave the mappings out")
    return [mount_options.Mount(kind, source, target, parsed, tuple(options), id_maps=id_maps, inside=inside)]


def _id_maps(
    bundle: Bundle, words: dict[str, Any], where: str, implied: bool
) -> tuple[namespaces.IdMap, namespaces.IdMap] | str | None:
    """Return the ids under which a mount's files are shown: its own, or if `implied` those of the user namespace."""
    own = _maps(words, "uidMappings"), _maps(words, "gidMappings")
    if bool(own[0]) != bool(own[1]):
        raise BadValue(f"{where}: uidMappings and gidMappings must be specified together")
    if own[0] or not implied:
        return own if own[0] else None
    users: dict[str, Any] = next((one for one in bundle.linux.get("namespaces") or () if one["type"] == "user"), {})
    maps = _maps(bundle.linux, "uidMappings"), _maps(bundle.linux, "gidMappings")
    if not users or not (maps[0] or users.get("path")):
        raise BadValue(f"{where}: idmap without uidMappings, and the container has no user namespace of its own")
    return str(users["path"]) if users.get("path") else maps


def _paths(linux: dict[str, Any], name: str) -> list[str]:
    found = linux.get(name) or []
    if not isinstance(found, list) or not all(isinstance(path, str) and path.startswith("/") for path in found):
        raise BadValue(f"linux.{name} must be a list of absolute paths")
    return found


def _devices(bundle: Bundle) -> list[mounts.MountStep]:
    steps: list[mounts.MountStep] = []
    apart = mounts.NOSUID | mounts.NOEXEC if "user" in bundle.kinds() else 0
    for number, words in enumerate(bundle.linux.get("devices") or ()):
        path, kind = words.get("path"), words.get("type")
        if not isinstance(path, str) or not path.startswith("/") or kind not in ("c", "b", "u", "p"):
            raise BadValue(f"linux.devices[{number}]: path {path!r} and type {kind!r} can't be meant")
        path = os.path.normpath(path)
        if "user" in bundle.kinds():  # a user namespace may not mknod: the host's own node, bound
            steps.append(mounts.Bind(path, path, apart, recursive=False))
            continue
        major, minor, uid, gid = (words.get(name, 0) for name in ("major", "minor", "uid", "gid"))
        mode = words.get("fileMode", 0o666)
        steps.append(mount_options.Device(path, kind, major, minor, mode & 0o777, uid, gid))
    steps += [
        mounts.Bind(f"/dev/{name}", f"/dev/{name}", apart, recursive=False, follow=True)
        for name in standard_mounts.DEVICES
    ]
    core = [mounts.Symlink("/proc/kcore", "/dev/core")] if os.path.exists("/proc/kcore") else []  # runc's, and old
    return [*steps, *standard_mounts.device_links(), *core]


def own_kinds(pid: int) -> tuple[str, ...]:
    """Return the kinds of namespace in which a process is not in the caller's."""
    mine, its = proc.namespaces(), proc.namespaces(pid)
    return tuple(kind for kind in namespaces.KINDS if its.get(kind) != mine.get(kind))
