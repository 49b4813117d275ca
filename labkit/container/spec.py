"""What a container shall be, said completely before anything is made.

A Spec is frozen plain data. Docker's words go in (`memory="32m"`,
`volumes=["/data:/data:ro"]`), are checked here against what can be meant, and
nothing on the machine has changed yet: a bad word costs nothing to take back. What
comes out is a Job: the steps that are printed (`lab run --explain`) and done.
"""

import os
import re
import shlex
import stat
from collections.abc import Callable, Iterable

from labkit.cgroups.limits import Limits
from labkit.container import launch, networking, rootless, standard_mounts
from labkit.container.entry import Entry
from labkit.container.launch import Job, ParentStep
from labkit.container.steps import InstallFilter, OpenTerminal
from labkit.ground import state
from labkit.ground.dataclass import dataclass, field, replace
from labkit.ground.errors import BadValue
from labkit.ground.typed import Any
from labkit.images.catalog import ImageConfig
from labkit.isolation import idmap, mounts, seccomp, security

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ALWAYS = ("mnt", "uts", "ipc", "pid", "net", "cgroup")
# In a network of one's own nobody else's port 80 can be taken: any user may have it, and any may ping, as in docker.
_SYSCTLS = (("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647"))


@dataclass(frozen=True)
class Volume:
    """A folder that the container shares: a host path, or a named volume's name."""

    source: str
    target: str
    read_only: bool = False
    copy: bool = True  # a new named volume gets what the image has there
    anonymous: bool = False  # its name is an id, and it goes with its container

    @classmethod
    def parse(cls, text: str) -> "Volume":
        """Return the Volume of docker's `SOURCE:TARGET[:OPTION,…]`, or of a TARGET alone. Raises BadValue."""
        anonymous = str(text).startswith("/") and ":" not in str(text)
        source, colon, rest = (f"{state.new_id()}:{text}" if anonymous else str(text)).partition(":")
        target, _, words = rest.partition(":")
        options = set(words.split(",")) if words else set()
        if not colon or not source or "\0" in text:
            raise BadValue(f"volume {text!r} can't be read", "write SOURCE:TARGET, SOURCE:TARGET:ro or TARGET")
        if unknown := options - _VOLUME_OPTIONS or {"ro", "rw"} <= options and options:
            raise BadValue(f"volume {text!r}: no option {','.join(sorted(unknown))}", "there is: ro, rw, nocopy, z, Z")
        if not target.startswith("/") or ".." in target.split("/"):
            raise BadValue(f"volume {text!r}: the target must be an absolute path without `..`")
        target = os.path.normpath(target)
        if target == "/" or target.split("/")[1] in ("proc", "sys", "dev"):
            raise BadValue(f"volume {text!r}: {target} is the container's own", "choose another target")
        if source.startswith("."):  # docker's own rule: what begins so is a path and no name
            source = os.path.abspath(source)
        if source.startswith("/"):
            if not os.path.exists(source):
                raise BadValue(f"volume {text!r}: {source} is not there", f"mkdir {source}")
            if _is_device(source) and not standard_mounts.is_harmless(source):
                hint = f"of devices only {', '.join(standard_mounts.DEVICES)}: /dev/null hides a file"
                raise BadValue(f"volume {text!r}: {source} is a device, and no container gets that here", hint)
        else:
            state.check_name(source, "volume name")
        return cls(source, target, "ro" in options, "nocopy" not in options, anonymous)

    def step(self) -> mounts.Bind:
        """Return the mount step that puts it in place."""
        source = self.source
        if not source.startswith("/"):
            from labkit.storage import volumes

            source = str(volumes.folder(source))
        nodev = 0 if standard_mounts.is_harmless(source) else mounts.NODEV  # `-v /dev/null:FILE` is to be readable
        attrs = nodev | (mounts.RDONLY if self.read_only else 0)
        # follow: /var/run may be a link in the image, and leads to a place in its root.
        return mounts.Bind(source, self.target, attrs, follow=True)


def _is_device(path: str) -> bool:
    mode = os.stat(path).st_mode
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


# The last ones are about SELinux's labels and a Mac's file sharing: here there is nothing to be done for them.
_VOLUME_OPTIONS = {"ro", "rw", "nocopy", "z", "Z", "cached", "delegated", "consistent"}


@dataclass(frozen=True)
class Spec:
    """All that decides what a container is. Made by `Spec.make`."""

    image: str = "busybox"
    command: tuple[str, ...] = ()
    name: str | None = None
    hostname: str | None = None
    limits: Limits = field(default_factory=Limits)
    env: tuple[str, ...] = ()
    workdir: str | None = None
    user: str | None = None
    volumes: tuple[Volume, ...] = ()
    read_only: bool = False
    tty: bool = False
    interactive: bool = False
    rm: bool = False
    init: bool = False
    network: str = "none"  # none, host, bridge, another bridge's name, or auto: a bridge if there can be one
    ports: tuple[Any, ...] = ()  # network.Port
    namespaces: tuple[str, ...] = ALWAYS
    userns: tuple[int, int] | None = None  # the outer ids of the container's: first, how many
    clock_offsets: tuple[int, int] | None = None
    capabilities: tuple[str, ...] = ()
    seccomp: str = "default"  # or a profile's path, or unconfined
    storage: str = "overlay"

    @classmethod
    def make(cls, image: str = "busybox", command: Iterable[Any] = (), **words: Any) -> "Spec":
        """Return the Spec that docker's words mean. Raises BadValue or Unsupported, and changes nothing.

        `command` is a list, or a text that is split as a shell would. Words that are
        limits (memory, cpus, pids_limit, …) go to Limits.parse. `network` is none (the
        default here; `lab run` has a bridge), host, bridge, or any name: who says the
        same name is on the same bridge. `publish` are `HOST:CONTAINER` ports. `time_offset` in
        seconds gives it a time namespace whose boot and monotonic clocks are ahead.
        """
        own = {word: words.pop(word) for word in (*_WORDS, *_AS_THEY_ARE) if word in words}
        if own.get("limits") is not None and words:
            raise BadValue(f"limits= and {', '.join(words)} together", "say each limit once")
        return cls(
            image,
            _command(command),
            limits=own.get("limits") or Limits.parse(**words),
            **{name: read(own) for name, read in _READ.items()},
            **{word: own[word] for word in _AS_THEY_ARE if word in own},
        )

    def with_volumes_of(self, config: ImageConfig) -> "Spec":
        """Return it with an anonymous volume for each folder that the image declares one for, as docker does.

        In a user namespace they would be nobody's: there such a folder stays in the writable layer.
        """
        taken = {one.target for one in self.volumes}
        paths = [] if self.userns else [os.path.normpath(f"/{path.lstrip('/')}") for path in config.volumes]
        declared = [Volume.parse(path) for path in paths if path not in taken]
        return replace(self, volumes=(*self.volumes, *declared))

    def argv(self, config: ImageConfig) -> tuple[str, ...]:
        """Return what will be executed: the image's entrypoint, then the command given or the image's own."""
        argv = (*(config.entrypoint or ()), *(self.command or config.cmd or ()))
        if not argv:
            raise BadValue(f"no command: the image {self.image} names none", f"lab run {self.image} COMMAND")
        return (standard_mounts.INIT, "--", *argv) if self.init else argv

    def job(
        self,
        config: ImageConfig,
        root: mounts.Root,
        hostname: str,
        files: Iterable[tuple[os.PathLike[str], str]] = (),
        entry: Entry = Entry(),  # noqa: B008 - it is frozen
        network: tuple[ParentStep, ...] = (),
        console_size: tuple[int, int] | None = None,
    ) -> Job:
        """Return the Job: all that is done. `files` are (source, target) to bind, `entry` the way into its cgroup."""
        steps = [
            *standard_mounts.kernel_filesystems(devpts_gid=self._has_id(5)),
            *standard_mounts.cgroup_filesystems(),
            *standard_mounts.locks(),
            *(mounts.Bind(str(source), target, mounts.NODEV) for source, target in files),
            *(volume.step() for volume in self.volumes),
            *([standard_mounts.init()] if self.init else []),
            *([mounts.Seal("/")] if self.read_only else []),
        ]
        plan = mounts.Plan(root, tuple(steps)).sorted()
        return Job(
            (
                *launch.furnish(plan, self.namespaces, hostname, self.clock_offsets or (0, 0), self._sysctls()),
                *launch.inside(
                    self.argv(config),
                    self.environment(config, self.tty, first=(f"HOSTNAME={hostname}",)),
                    self.workdir or config.workdir or "/",
                    self.user or config.user or "0",
                    self.capabilities,
                    OpenTerminal(size=console_size) if self.tty else None,
                    self.filters(),
                ),
            ),
            launch.at_birth(self.namespaces),
            entry,
            (*network, *self._ids(root)),
            sources_first=bool(self.userns),
        )

    def _ids(self, root: mounts.Root) -> tuple[ParentStep, ...]:
        if not self.userns:
            return ()
        mapping = ((0, *self.userns),)
        return launch.MapIds(mapping, mapping), launch.HandOverRoot(root)

    def filters(self) -> tuple[InstallFilter, ...]:
        """Return the step that puts every process of the container under its filter, the first and each further one."""
        program = seccomp.program(self.seccomp, self.capabilities)
        return (InstallFilter(program, self.seccomp),) if program else ()

    def environment(
        self, config: ImageConfig, terminal: bool, first: Iterable[str] = (), last: Iterable[str] = ()
    ) -> tuple[str, ...]:
        """Return the "NAME=value" of a process in it; of two values the later wins: the participant's."""
        words = (PATH, *first, *(("TERM=xterm",) if terminal else ()), *config.env, *self.env, *last)
        values: dict[str, str] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if equals:
                values[name] = value
            elif word not in config.env:  # an image's word without a value says nothing, `-e NAME` takes away
                values.pop(name, None)
        return tuple(f"{name}={value}" for name, value in values.items())

    def _sysctls(self) -> tuple[tuple[str, str], ...]:
        if "net" not in self.namespaces:
            return ()
        # With mapped ids most of that range of groups does not exist.
        return _SYSCTLS[:1] if self.userns or rootless.active() else _SYSCTLS

    def _has_id(self, number: int) -> bool:
        """Tell whether a user number exists in the container's user namespace."""
        return not rootless.active() and (not self.userns or number < self.userns[1])


# ---- a word, or a few, to a field each ----


def _command(words: Iterable[Any]) -> tuple[str, ...]:
    command = tuple(shlex.split(words) if isinstance(words, str) else map(str, words))
    if any("\0" in word for word in command):
        raise BadValue("the command has a NUL byte in it")
    return command


def _name(words: dict[str, Any]) -> str | None:
    name = words.get("name")
    return None if name is None else state.check_name(name, "container name")


def _hostname(words: dict[str, Any]) -> str | None:
    name: str | None = words.get("hostname")
    if name is not None and not re.fullmatch(r"[^\s/#\0]{1,64}", name, re.ASCII):
        raise BadValue(f"host name {name!r} can't be used", "64 letters at most, no blank, `/` or `#`")
    return name


def _workdir(words: dict[str, Any]) -> str | None:
    folder: str | None = words.get("workdir")
    if folder is not None and not folder.startswith("/"):
        raise BadValue(f"working directory {folder!r} is not an absolute path")
    return folder


def _environment(words: dict[str, Any]) -> tuple[str, ...]:
    env = words.get("env", ())
    return tuple(map(_env, env.items() if isinstance(env, dict) else env))


def _volumes(words: dict[str, Any]) -> tuple[Volume, ...]:
    volumes = tuple(one if isinstance(one, Volume) else Volume.parse(one) for one in words.get("volumes", ()))
    for number, one in enumerate(volumes):
        if one.target in (other.target for other in volumes[:number]):
            raise BadValue(f"two volumes on {one.target}: the second would hide the first", "give each its own target")
    return volumes


def _network(words: dict[str, Any]) -> str:
    return state.check_name(words.get("network", "none"), "network name")


def _ports(words: dict[str, Any]) -> tuple[Any, ...]:
    publish, network = words.get("publish", ()), words.get("network", "none")
    if publish and network in ("none", "host"):
        raise BadValue(f"a port can't be published on the network {network!r}", "--network bridge")
    return networking.ports(publish)


def _namespaces(words: dict[str, Any]) -> tuple[str, ...]:
    return (
        *(kind for kind in ALWAYS if not (kind == "net" and words.get("network") == "host")),
        *(["time"] if words.get("time_offset") is not None else []),
        *(["user"] if _userns(words) else []),
    )


def _userns(words: dict[str, Any]) -> tuple[int, int] | None:
    return idmap.parse(words.get("userns"))


def _clock_offsets(words: dict[str, Any]) -> tuple[int, int] | None:
    offset = words.get("time_offset")
    return None if offset is None else (int(offset), int(offset))


def _capabilities(words: dict[str, Any]) -> tuple[str, ...]:
    return security.choose(words.get("cap_add", ()), words.get("cap_drop", ()))


def _seccomp(words: dict[str, Any]) -> str:
    """Return the profile that docker's `--security-opt seccomp=…` words name."""
    word = "default"
    for option in words.get("security_opt", ()):
        key, _, value = str(option).partition("=" if "=" in str(option) else ":")  # docker's older sign
        if key == "no-new-privileges" and value in ("", "true"):  # it is always on here
            continue
        if key != "seccomp" or not value:
            raise BadValue(f"security option {option!r} can't be meant", "seccomp=unconfined or seccomp=FILE")
        word = value if value in ("unconfined", "default") else os.path.abspath(value)
        seccomp.read(word) if word.startswith("/") else None
    return word


def _env(pair: Any) -> str:
    name, equals, value = pair if isinstance(pair, tuple) and len(pair) == 3 else _split(pair)
    if not name or "\0" in name + value:
        raise BadValue(f"environment variable {pair!r} can't be read", "write NAME=value")
    if not equals:  # `-e NAME` hands on the caller's own value, and takes the image's away if there is none
        return f"{name}={os.environ[name]}" if name in os.environ else name
    return f"{name}={value}"


def _split(pair: Any) -> tuple[str, str, str]:
    if isinstance(pair, tuple):
        return str(pair[0]), "=", str(pair[1])
    return str(pair).partition("=")


# field: what reads it from the words
_READ: dict[str, Callable[[dict[str, Any]], Any]] = {
    "name": _name,
    "hostname": _hostname,
    "workdir": _workdir,
    "env": _environment,
    "volumes": _volumes,
    "network": _network,
    "ports": _ports,
    "namespaces": _namespaces,
    "userns": _userns,
    "clock_offsets": _clock_offsets,
    "capabilities": _capabilities,
    "seccomp": _seccomp,
}
_WORDS = (
    "limits name hostname workdir env volumes network publish userns time_offset cap_add cap_drop security_opt".split()
)
_AS_THEY_ARE = "user read_only tty interactive rm init storage".split()
