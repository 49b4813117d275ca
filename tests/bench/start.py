"""Start to exit of `true`: from a notebook, against the C runtimes and the bare syscalls."""

import os
import select

import contestants
import peers
from contestants import notebook, ratio, shell
from report import Report

from labkit.container import launch, spawner, standard_mounts
from labkit.container.life import Container
from labkit.ground.errors import LabError
from labkit.isolation import mounts, security

LIMITS = {"memory": peers.MEMORY, "cpu_quota": peers.QUOTA, "cpu_period": 100_000, "pids_limit": peers.PIDS}

RATIOS = (
    ("labkit, from 400 MB", "crun"),
    ("labkit, from 400 MB", "runc"),
    ("labkit, from 400 MB", "C, only the syscalls"),
    ("labkit, from 400 MB", "labkit, from 60 MB"),
    ("labkit, from 400 MB", "crun, its own overlay"),
    ("labkit, from 400 MB", "runc, its own overlay"),
    ("C, only the syscalls", "crun"),  # nobody who does all of these steps gets below this
    ("labkit, namespaces only", "bwrap"),
)


def whole_container(image="busybox"):
    """Prepare labkit's container with everything: overlay, three limits, six namespaces, seccomp."""

    def once(_number):
        with Container(image, ["true"], **LIMITS).start() as box:
            if box.wait():
                raise LabError("the container failed")

    return once


def namespaces_only(scene):
    """Prepare labkit's clone with what bwrap does: six namespaces, a root, /proc and /dev."""

    def prepare():
        steps = [
            one
            for one in standard_mounts.kernel_filesystems()
            if getattr(one, "target", "").startswith(("/proc", "/dev"))
        ]
        kinds = ("mnt", "uts", "ipc", "pid", "net", "cgroup")
        plan = mounts.Plan(mounts.BindRoot(scene["rootfs"], scene["rootfs"]), tuple(steps)).sorted()
        job = launch.Job(
            (
                *launch.furnish(plan, kinds),
                *launch.inside(("true",), ("PATH=/bin:/usr/bin",), capabilities=security.choose()),
            ),
            launch.at_birth(kinds),
        )
        keeper = spawner.current()

        def once(_number):
            spawned = keeper.spawn(job, (0, 1, 2))
            select.select([spawned.pidfd], [], [])
            if keeper.status(spawned):
                raise LabError("the container failed")
            os.close(spawned.pidfd)

        return once

    return prepare


def floor(scene):
    """Return the C program's contestant."""
    return shell(
        lambda number: [
            scene["floor"],
            scene["lowerdir"],
            f"{scene['folder']}/c{number}",
            f"c{number}",
            f"{scene['folder']}/bases",
            f"{scene['folder']}/filter",
            "true",
        ]  # fmt: skip
    )


def runtime(name, scene):
    """Return the contestant of an OCI runtime whose root was mounted for it beforehand."""
    return shell(lambda number: peers.runtime(name, scene, number), apart=True)


def runtime_and_overlay(name, scene):
    """Return the contestant that mounts an overlay for each container, as podman does for a runtime."""
    bundle = peers.bundle(scene, f"own-{name}")
    return shell(
        lambda number: peers.runtime(name, scene, number, bundle),
        apart=True,
        around=lambda number: peers.own_overlay(scene, bundle, number),
    )


def measure(options):
    """Yield the Report."""
    with peers.scene() as scene:
        everything = {
            "labkit, from 400 MB": notebook(400, whole_container),
            "labkit, from 60 MB": notebook(60, whole_container),
            "C, only the syscalls": floor(scene),
            "crun": runtime("crun", scene),
            "crun, its own overlay": runtime_and_overlay("crun", scene),
            "runc": runtime("runc", scene),
            "runc, its own overlay": runtime_and_overlay("runc", scene),
        }
        bare = {
            "labkit, namespaces only": notebook(400, namespaces_only(scene)),
            "bwrap": shell(lambda _: peers.bwrap(scene)),
        }
        times = contestants.race(everything, options.rounds) | contestants.race(bare, options.rounds)
    mounted = {"crun": "before", "runc": "before", "bwrap": "none", "labkit, namespaces only": "none"}
    yield Report(
        "start to exit of `true`",
        f"{options.rounds} rounds, milliseconds",
        ("min", "median", "p99", "overlay"),
        [(*contestants.row(name, spent), mounted.get(name, "timed")) for name, spent in times.items()],
        ratios=[(a, b, ratio(times, a, b)) for a, b in RATIOS],
        notes=[
            "overlay: `timed`, mounted and unmounted for each container within its time;",
            "         `before`, one for all, mounted beforehand; `none`, a bind mount",
        ],
        shown=(1, "median [ms]"),
        raw=times,
    )
