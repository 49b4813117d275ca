"""labkit: a container, one kernel idea a module.

Read it from the bottom floor up. A module imports only from its own floor and
those below, so nobody meets an idea before the ones it is made of.

    8  the `lab` command             cli cli_images cli_host commands
       JupyterLab, tests, a room     workshop server room
    7  pictures, knobs, exercises    figures panels checks
       a participant's copies        lessons gaps workbench
       escapes, each really tried    museum exhibits inspection
       what this machine can do      doctor probing kernel_probes machine_probes
    6  numbers while it runs         sampling reader workloads measuring reclaiming
       the syscalls it made          tracing taught
       an OCI runtime                runtime oci oci_words bundle resources systemd
       others, really started        engine neighbours vm nobody
    5  a container's life            container roster spec attach rootless
       an image from instructions    build dockerfile context commit layer_cache
    4  who clones                    spawner
       from clone to exec            launch entering settings hooks gate channel users handover
    3  folders that outlive it       volumes
       images, here and elsewhere    images layout base registry archives garbage
       a root made of layers         storage drivers copyup listing
       a layer as a tar              layers unpack tarread layer_diff whiteouts digests rootdir
    2  links, addresses, ports       network wires firewall docker_user
       what root may do in there     security seccomp devices
       how much it may use           cgroups cgroupfs controllers stats events hierarchies limits
                                     quantities cgls delegation
       what it sees of the files     mounts inroot mount_options rootfs idmap
       what it sees at all           namespaces
    1  what there is, what we made   proc ledger
       where kernel work is done     child
    0  words, places, doors          errors state syscalls durable

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
    "Limits": "limits",
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
