"""Start against the number of layers and the size of the image: flat, if a start reads and copies nothing.

The images are made here and gone afterwards: busybox and on top of it layers of one
small file each, or one layer with so many megabytes. The kernel itself takes longer
for more layers: what the mount alone takes is measured beside.
"""

import contextlib
import io
import os
import statistics
import tarfile

import contestants
import peers
from contestants import notebook, ratio
from report import Report
from start import whole_container

from labkit.ground.errors import LabError, NotFound
from labkit.images import catalog, commit
from labkit.isolation import mounts
from labkit.storage import garbage, roots

LAYERS = (1, 10, 40, 80, 120)
MEGABYTES = (1, 50, 200)
BLOCK = 1 << 20


@contextlib.contextmanager
def made(name, layers):
    """Name an image of busybox and these layers, tars; it is gone afterwards."""
    base = catalog.get("busybox")
    try:
        with catalog.locked(shared=True) as store:
            for tar in layers or [None]:
                layer = None
                if tar is not None:
                    digest = store.add(tar)
                    layer = (digest, digest, len(tar))  # plain: one name for both
                base = commit.add(store, base, layer, name, base.config, "lab bench")
        yield name
    finally:
        with contextlib.suppress(NotFound):
            garbage.remove(name)


def tar_of(files):
    """Return a layer's tar of {name: bytes}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _many(number):
    return [tar_of({f"layer-{each}": b"%d\n" % each}) for each in range(number - 1)]  # busybox is the first


def _large(megabytes):
    return [tar_of({f"part-{each}": os.urandom(BLOCK) for each in range(megabytes)})]


def mount_alone(name, folder):
    """Prepare the overlay of an image, mounted and given up again, and nothing else. Linux 6.8 or later."""

    def make():
        options = [f"lowerdir+={folder}" for folder in reversed(catalog.get(name).layers)]
        upper, work = (f"{folder}/{part}-{name}" for part in ("upper", "work"))
        os.mkdir(upper)
        os.mkdir(work)
        options += (f"upperdir={upper}", f"workdir={work}", *roots.DEFAULT_OPTIONS)
        return lambda _: os.close(mounts.new_filesystem("overlay", "overlay", options))

    return make


def _race(what, images_of, unit, rounds):
    with contextlib.ExitStack() as stack:
        names = {}
        for size, layers in images_of:
            names[size] = stack.enter_context(made(f"bench-{unit.lower()}-{size}", layers))
        makers = {size: notebook(60, lambda name=name: whole_container(name)) for size, name in names.items()}
        times = contestants.race(makers, rounds)
        folder, refused = stack.enter_context(peers.scratch()), ""
        try:
            alone = contestants.race({size: mount_alone(name, folder) for size, name in names.items()}, rounds)
        except LabError as error:
            alone, refused = {}, str(error)
    first, *more = times
    return Report(
        f"start against {what}",
        f"{rounds} rounds, milliseconds",
        ("min", "median", "p99", "the mount alone"),
        [(*contestants.row(f"{size} {unit}", spent), _middle(alone.get(size))) for size, spent in times.items()],
        ratios=[(f"{size} {unit}", first, ratio(times, size, first)) for size in more],
        notes=[f"the mount alone is not measured: {refused}"] if refused else [],
        draw=lambda axes: _draw(axes, times, alone, unit),
        raw={str(size): spent for size, spent in times.items()},
    )


def _middle(spent):
    return statistics.median(spent) if spent else None


def _draw(axes, times, alone, unit):
    from labkit.lessons import figures

    for size, spent in times.items():
        axes.plot([size] * len(spent), spent, "o", color=figures.BLUE, alpha=0.25, markeredgewidth=0)
    middles = [statistics.median(spent) for spent in times.values()]
    axes.plot(list(times), middles, "_-", color=figures.BLUE, markersize=18, markeredgewidth=3)
    axes.annotate("median", (list(times)[-1], middles[-1]), (0, 10), textcoords="offset points", ha="right")
    if alone:
        mount = [_middle(spent) for spent in alone.values()]
        axes.plot(list(alone), mount, "o-", color=figures.BLACK)
        axes.annotate("the mount alone", (list(alone)[-1], mount[-1]), (0, 8), textcoords="offset points", ha="right")
    axes.set_ylim(0, 1.7 * max(middles))  # what else the machine did now and then is above
    axes.set_xticks(list(times))
    axes.set_xlabel(unit)
    axes.set_ylabel("start to exit [ms]")


def measure(options):
    """Yield the Reports."""
    yield _race("the number of layers", ((n, _many(n)) for n in LAYERS), "layers", options.rounds)
    yield _race("the size of the image", ((n, _large(n)) for n in MEGABYTES), "MB", options.rounds)
