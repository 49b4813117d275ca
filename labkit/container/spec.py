"""What a container shall be, said completely before anything is made.

A Spec is frozen plain data. Docker's words go in (`memory="32m"`,
`volumes=["/data:/data:ro"]`), are checked here against what can be meant, and
nothing on the machine has changed yet: a bad word costs nothing to take back.
`describe()` prints what will happen as a numbered list, and the same steps are
what the child then does; there is no second description that could differ.
"""

import os
import re
import shlex
from dataclasses import dataclass, field, replace

from labkit.cgroups.limits import Limits
from labkit.container import rootless, standard_mounts
from labkit.container.launch import Job
from labkit.ground import state
from labkit.ground.errors import BadValue
from labkit.isolation import idmap, mounts, namespaces, seccomp, security
from labkit.isolation.settings import Settings

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

    @classmethod
    def parse(cls, text: str) -> "Volume":
        """Return the Volume of docker's `SOURCE:TARGET[:OPTION,…]`. Raises BadValue."""
        source, colon, rest = str(text).partition(":")
        target, _, words = rest.partition(":")
        options = set(words.split(",")) if words else set()
        if not colon or not source or "\0" in text:
            raise BadValue(f"volume {text!r} can't be read", "write SOURCE:TARGET or SOURCE:TARGET:ro")
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
        else:
            state.check_name(source, "volume name")
        return cls(source, target, "ro" in options, "nocopy" not in options)

    def step(self):
        """Return the mount step that puts it in place."""
        source = self.source
        if not source.startswith("/"):
            from labkit.storage import volumes

            source = str(volumes.path(source))
        attrs = mounts.NODEV | (mounts.RDONLY if self.read_only else 0)
        # follow: /var/run may be a link in the image, and leads to a place in its root.
        return mounts.Bind(source, self.target, attrs, follow=True)


# The last ones are about SELinux's labels and a Mac's file sharing: here there is nothing to be done for them.
_VOLUME_OPTIONS = {"ro", "rw", "nocopy", "z", "Z", "cached", "delegated", "consistent"}


@dataclass(frozen=True)
class Spec:
    """All that decides what a container is. Made by `Spec.make`."""

    image: str = "busybox"
    command: tuple = ()
    name: str | None = None
    hostname: str | None = None
    limits: Limits = field(default_factory=Limits)
    env: tuple = ()
    workdir: str | None = None
    user: str | None = None
    volumes: tuple = ()
    read_only: bool = False
    tty: bool = False
    interactive: bool = False
    rm: bool = False
    init: bool = False
    network: str = "none"  # none, host, bridge, another bridge's name, or auto: a bridge if there can be one
    ports: tuple = ()  # network.Port
    namespaces: tuple = ALWAYS
    userns: tuple | None = None  # the outer ids of the container's: first, how many
    clock_offsets: tuple | None = None
    capabilities: tuple = ()
    seccomp: str = "default"  # or a profile's path, or unconfined
    unlocked: tuple = ()  # names of security.LOCKS that are left off, to teach what they hold
    storage: str = "overlay"

    @classmethod
    def make(
        cls,
        image="busybox",
        command=(),
        *,
        limits=None,
        env=(),
        volumes=(),
        cap_add=(),
        cap_drop=(),
        security_opt=(),
        unlocked=(),
        network="none",
        publish=(),
        userns=None,
        time_offset=None,
        name=None,
        hostname=None,
        workdir=None,
        **words,
    ):
        """Return the Spec that docker's words mean. Raises BadValue or Unsupported, and changes nothing.

        `command` is a list, or a text that is split as a shell would. Words that are
        limits (memory, cpus, pids_limit, …) go to Limits.parse. `network` is none (the
        default here; `lab run` has a bridge), host, bridge, or any name: who says the
        same name is on the same bridge. `publish` are `HOST:CONTAINER` ports. `time_offset` in
        seconds gives it a time namespace whose boot and monotonic clocks are ahead.
        """
        own = {
            key: words.pop(key)
            for key in ("user", "read_only", "tty", "interactive", "rm", "init", "storage")
            if key in words
        }
        if limits is not None and words:
            raise BadValue(f"limits= and {', '.join(words)} together", "say each limit once")
        command = tuple(shlex.split(command) if isinstance(command, str) else map(str, command))
        if any("\0" in word for word in command):
            raise BadValue("the command has a NUL byte in it")
        if name is not None:
            state.check_name(name, "container name")
        if hostname is not None and not re.fullmatch(r"[^\s/#\0]{1,64}", hostname, re.ASCII):
            raise BadValue(f"host name {hostname!r} can't be used", "64 letters at most, no blank, `/` or `#`")
        if workdir is not None and not workdir.startswith("/"):
            raise BadValue(f"working directory {workdir!r} is not an absolute path")
        state.check_name(network, "network name")
        if publish and network in ("none", "host"):
            raise BadValue(f"a port can't be published on the network {network!r}", "--network bridge")
        kinds = [kind for kind in ALWAYS if not (kind == "net" and network == "host")]
        kinds = [kind for kind in kinds if f"{kind}_namespace" not in unlocked]
        if time_offset is not None:
            kinds.append("time")
        if userns := idmap.parse(userns):
            kinds.append("user")
        return cls(
            image,
            command,
            name=name,
            hostname=hostname,
            workdir=workdir,
            limits=limits or Limits.parse(**words),
            env=tuple(map(_env, env.items() if isinstance(env, dict) else env)),
            volumes=_volumes(volumes),
            network=network,
            ports=_ports(publish),
            namespaces=tuple(kinds),
            userns=userns,
            clock_offsets=None if time_offset is None else (int(time_offset), int(time_offset)),
            capabilities=_capabilities(cap_add, cap_drop, unlocked),
            seccomp=_seccomp(security_opt),
            unlocked=security.check_unlocked(unlocked),
            **own,
        )

    def argv(self, config):
        """Return what will be executed: the image's entrypoint, then the command given or the image's own."""
        argv = (*(config.entrypoint or ()), *(self.command or config.cmd or ()))
        if not argv:
            raise BadValue(f"no command: the image {self.image} names none", f"lab run {self.image} COMMAND")
        return (standard_mounts.INIT, "--", *argv) if self.init else argv

    def job(self, config, root_step, hostname, files=(), **where):
        """Return the Job: what the child does. `files` are (source, target) to bind, `where` its cgroup."""
        steps = [
            *standard_mounts.kernel_filesystems(devpts_gid=self._has_id(5)),
            *standard_mounts.cgroup_filesystems(),
            *standard_mounts.locks(),
            *(mounts.Bind(str(source), target, mounts.NODEV) for source, target in files),
            *(volume.step() for volume in self.volumes),
        ]
        if self.init:
            steps.append(standard_mounts.init())
        if self.read_only:
            steps.append(mounts.Seal("/"))
        if self.unlocked:
            root_step, steps = _unlock(self.unlocked, root_step, steps)
        return Job(
            argv=self.argv(config),
            env=self.environment(config, self.tty, first=(f"HOSTNAME={hostname}",)),
            cwd=self.workdir or config.workdir or "/",
            user=self.user or config.user or "0",
            namespaces=self.namespaces,
            plan=mounts.Plan(root_step, tuple(steps), self.unlocked).sorted(),
            hostname=hostname,
            capabilities=self.capabilities,
            terminal=self.tty,
            clock_offsets=self.clock_offsets,
            settings=Settings(sysctls=self._sysctls()),
            **self.ids(),
            **self.locks(),
            **where,
        )

    def environment(self, config, terminal, first=(), last=()):
        """Return the "NAME=value" of a process in it; of two values the later wins: the participant's."""
        words = (PATH, *first, *(("TERM=xterm",) if terminal else ()), *config.env, *self.env, *last)
        values = {}
        for word in words:
            name, equals, value = word.partition("=")
            if equals:
                values[name] = value
            elif word not in config.env:  # an image's word without a value says nothing, `-e NAME` takes away
                values.pop(name, None)
        return tuple(f"{name}={value}" for name, value in values.items())

    def _sysctls(self):
        if "net" not in self.namespaces:
            return ()
        # With mapped ids most of that range of groups does not exist.
        return _SYSCTLS[:1] if self.userns or rootless.active() else _SYSCTLS

    def _has_id(self, number):
        """Tell whether a user number exists in the container's user namespace."""
        return not rootless.active() and (not self.userns or number < self.userns[1])

    def ids(self):
        """Return what of a Job maps the container's ids to outer ones."""
        if not self.userns:
            return {}
        mapping = ((0, *self.userns),)
        return {"uid_map": mapping, "gid_map": mapping, "idmapped": True}

    def locks(self):
        """Return what of a Job keeps every process of the container in, the first and each further one."""
        off = "seccomp" in self.unlocked
        return {
            "seccomp": b"" if off else seccomp.program(self.seccomp, self.capabilities),
            "unlocked": self.unlocked,
        }


def _volumes(texts):
    volumes = tuple(one if isinstance(one, Volume) else Volume.parse(one) for one in texts)
    for number, one in enumerate(volumes):
        if one.target in (other.target for other in volumes[:number]):
            raise BadValue(f"two volumes on {one.target}: the second would hide the first", "give each its own target")
    return volumes


def _ports(texts):
    if not texts:
        return ()
    from labkit.network.bridge import Port

    return tuple(text if isinstance(text, Port) else Port.parse(text) for text in texts)


def _capabilities(add, drop, unlocked):
    if "capabilities" in unlocked:
        add = (*add, "ALL")
    return security.choose(add, drop)


def _seccomp(options):
    """Return the profile that docker's `--security-opt seccomp=…` words name."""
    word = "default"
    for option in options:
        key, _, value = str(option).partition("=")
        if option == "no-new-privileges":  # it is always on here
            continue
        if key != "seccomp" or not value:
            raise BadValue(f"security option {option!r} can't be meant", "seccomp=unconfined or seccomp=FILE")
        word = value if value in ("unconfined", "default") else os.path.abspath(value)
        seccomp.read(word) if word.startswith("/") else None
    return word


def _unlock(unlocked, root_step, steps):
    """Return the root step and the steps without those locks."""
    if "masks" in unlocked:
        steps = [step for step in steps if not isinstance(step, mounts.Mask)]
    if "read_only" in unlocked:
        steps = [step for step in steps if not isinstance(step, mounts.ReadOnly)]
    if "cgroup_read_only" in unlocked:
        steps = [
            replace(step, attrs=step.attrs & ~mounts.RDONLY) if getattr(step, "kind", "").startswith("cgroup") else step
            for step in steps
        ]
    if "nodev" in unlocked:
        root_step = replace(root_step, attrs=root_step.attrs & ~mounts.NODEV)
    return root_step, steps


def _env(pair):
    name, equals, value = pair if isinstance(pair, tuple) and len(pair) == 3 else _split(pair)
    if not name or "\0" in name + value:
        raise BadValue(f"environment variable {pair!r} can't be read", "write NAME=value")
    if not equals:  # `-e NAME` hands on the caller's own value, and takes the image's away if there is none
        return f"{name}={os.environ[name]}" if name in os.environ else name
    return f"{name}={value}"


def _split(pair):
    if isinstance(pair, tuple):
        return str(pair[0]), "=", str(pair[1])
    return str(pair).partition("=")


def describe(spec, job):
    """Return one line for everything that will happen, in the order it happens."""
    kinds = [f"{kind}: {namespaces.KINDS[kind][1]}" for kind in job.namespaces]
    return [
        *(f"new cgroup, {line}" for line in spec.limits.describe() or ["without a limit"]),
        *(f"new namespace, {line}" for line in kinds),
        f"sethostname {job.hostname}",
        *(job.network.describe() if job.network else ()),
        *(f"published port {port}" for port in spec.ports),
        *(f"sysctl {name}={value}" for name, value in job.settings.sysctls),
        *(job.plan.describe() if job.plan else ()),
        "new session" + (", on a new pseudo-terminal" if job.terminal else ""),
        "keep the capabilities " + " ".join(job.capabilities),
        f"become user {job.user}",
        *([] if "no_new_privs" in job.unlocked else ["no_new_privs"]),
        *(["seccomp: " + spec.seccomp] if job.seccomp else []),
        *(f"LEFT OFF: {name}, so it is not true that {security.LOCKS[name]}" for name in job.unlocked),
        f"exec {shlex.join(job.argv)} in {job.cwd}",
    ]
