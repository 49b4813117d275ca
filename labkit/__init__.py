"""labkit: a container, one kernel idea a module.

Its rooms, from the ground up. A room imports only from those above it in this list, so
whoever reads downwards meets no idea before the ones it is made of. Each room's own
docstring says in which order to read it.

    ground      what is there, what did we make, how do we ask the kernel
    isolation   what does a process see, and what may it do
    cgroups     how much may it use, and what has it used: v1 and v2
    network     how does a packet get in and out
    images      what is an image, and a layer from a stranger
    storage     how do layers become a root; volumes
    container   from a spec to a running process and its end
    build       from instructions to an image
    oci         the same container as Docker's runtime
    lessons     pictures, knobs, exercises, the museum, the others
    app         the `lab` command, the doctor, JupyterLab, a room

The way of one container, from `Container("busybox", ["true"]).start()` to clone3(2) and
back, is these files, in reading order. What they ask of other rooms (an image's folders,
a root to mount, a cgroup, the ledger) can be taken at its docstring's word meanwhile.

    container.life              created, running, exited, gone
    container.spec              what it shall be, said before anything is made
    container.standard_mounts   /proc, /dev, /sys and the masks
    isolation.mounts            its root as a plan: a list of mounts
    isolation.inroot            a path in a root that is not trusted
    container.launch            the way from clone to exec, in its order
    container.steps             what each of the steps does
    isolation.namespaces        the eight views
    isolation.security          capabilities, one by one
    isolation.users             who a process becomes
    isolation.last_exec         the last exec goes through a stranger
    container.entry             into its cgroup: by birth, or by its own hand
    container.channel           what child and parent say meanwhile
    container.spawner           who clones, listens, and reaps
    container.records           what is written down about it

`import labkit` is cheap: the names below are loaded when first used.
"""

import sys

__version__ = "0.1.0"

# The short names that chapters use: where each is at home.
_HOME = {
    "LabError": "ground.errors:LabError",
    "in_child": "ground.child:in_child",
    "Cgroup": "cgroups.cgroup:Cgroup",
    "Limits": "cgroups.limits:Limits",
    "Image": "images.catalog:Image",
    "Container": "container.life:Container",
    "run": "container.life:run",
    "begin": "container.life:begin",
    "progress": "lessons.coursework:progress",
    "errors": "ground.errors",
    "state": "ground.state",
    "syscalls": "ground.syscalls",
    "ledger": "ground.ledger",
    "namespaces": "isolation.namespaces",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        module, _, thing = _HOME[name].partition(":")
        home = _loaded(f"labkit.{module}")
        return getattr(home, thing) if thing else home
    try:
        return _loaded(f"labkit.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"labkit.{name}":
            raise
    raise AttributeError(f"module 'labkit' has no attribute {name!r}")


def _loaded(name: str) -> object:
    __import__(name)
    return sys.modules[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
