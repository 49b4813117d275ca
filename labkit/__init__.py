"""labkit: a container, one kernel idea a module.

Read it from the bottom floor up; a module imports only from floors below it.

    8  cli workshop server                  the `lab` command, JupyterLab
    7  figures panels checks doctor         pictures, knobs, exercises
       workbench gaps lessons room          a place to try pieces; a participant's copies and progress
    6  sampling tracing                     what a cgroup said, at a fixed rate; syscalls, by strace
       oci runtime                          Docker's and Podman's words for the same
    5  container                            the floors below put together
    4  spawner                              the process that clones
    3  layers storage images volumes        where a root filesystem comes from
    2  namespaces mounts cgroups security   what the kernel does for a container
       seccomp network firewall
    1  proc ledger child                    what there is, what we made, where we work
    0  errors state syscalls                words, places, the kernel's doors

`import labkit` is cheap: the names below are loaded when first used.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "LabError": "errors",
    "Container": "container",
    "run": "container",
    "begin": "container",
    "Image": "images",
    "Cgroup": "cgroups",
    "in_child": "child",
    "progress": "lessons",
}


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"labkit.{_HOME[name]}"), name)
    try:
        return importlib.import_module(f"labkit.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"labkit.{name}":
            raise
    raise AttributeError(f"module 'labkit' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_HOME})
