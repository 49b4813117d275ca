"""A Dockerfile built anew, and again with all of it in the cache: by labkit and by buildah.

buildah has its images in a folder of this benchmark and runs `RUN` by chroot: that
makes no namespaces and no cgroup, so its container is cheaper than labkit's. Its mounts
are in a mount namespace of its own, and end with it.
"""

import os
import statistics
import sys

import contestants
import peers
from contestants import command_succeeds, notebook, ratio
from report import Report

from labkit.build.builder import build
from labkit.ground import state
from labkit.images import catalog

DOCKERFILE = """\
FROM busybox
ENV GREETING=hello
WORKDIR /app
COPY words .
RUN echo $GREETING > said
RUN mkdir -p deep/er && cp words deep/er
CMD ["cat", "said"]
"""
CACHED, ANEW = "all in the cache", "nothing in the cache"


def in_notebook(area, cache):
    """Prepare labkit's build, in the process itself."""
    return notebook(60, lambda: lambda _: _named(build(area, "bench-built", cache=cache, say=lambda *_: None)))


def _named(image):
    return image.name  # an Image goes through no pipe that knows it not


def by_command(area, cache):
    """Return `lab build`'s contestant."""
    more = [] if cache else ["--no-cache"]
    words = [sys.executable, "-P", "-m", "labkit", "build", "-t", "bench-built", *more, str(area)]
    return contestants.shell(lambda _: words)


def buildah(folder, area, driver, cache):
    """Return buildah's contestant, with its images in `folder`. Its base image is labkit's own."""
    words = ["buildah", "--root", f"{folder}/{driver}", "--runroot", f"{folder}/{driver}-run"]
    words += ["--storage-driver", driver]
    more = [] if cache else ["--no-cache"]
    made = [
        *words,
        "build",
        "--isolation",
        "chroot",
        "--layers",
        "--pull-never",
        *more,
        "-t",
        "it",
        str(area),
    ]

    def make():
        peers.hide_unified()
        store = state.lib_dir("images")
        (pulled,) = command_succeeds([*words, "pull", "-q", f"oci:{store}:busybox:latest"]).split()
        command_succeeds([*words, "tag", pulled, "busybox:latest"])
        return lambda _: command_succeeds(made) and None

    return make


def _race(folder, area, cache, rounds, full):
    makers = {
        "labkit, in a notebook": in_notebook(area, cache),
        "lab build": by_command(area, cache),
        "buildah, overlay": buildah(folder, area, "overlay", cache),
    }
    if full:
        makers["buildah, vfs"] = buildah(folder, area, "vfs", cache)
    return contestants.race(makers, rounds, warm_up=1)


def measure(options):
    """Yield the Reports."""
    peers.need("buildah")
    catalog.get("busybox")
    with peers.scratch() as folder:
        area = folder / "area"
        area.mkdir()
        (area / "Dockerfile").write_text(DOCKERFILE)
        (area / "words").write_bytes(os.urandom(1 << 20))
        for what, cache, rounds in (
            (ANEW, False, min(options.rounds, 20 if options.full else 3)),
            (CACHED, True, min(options.rounds, 40 if options.full else 5)),
        ):
            times = _race(folder, area, cache, rounds, options.full)
            yield Report(
                f"build of {len(DOCKERFILE.splitlines())} lines, {what}",
                f"{rounds} rounds, milliseconds",
                ("min", "median", "longest"),
                [(name, min(spent), statistics.median(spent), max(spent)) for name, spent in times.items()],
                ratios=[
                    (ours, "buildah, overlay", ratio(times, ours, "buildah, overlay"))
                    for ours in ("labkit, in a notebook", "lab build")
                ],
                shown=(1, "median [ms]"),
                raw=times,
            )
