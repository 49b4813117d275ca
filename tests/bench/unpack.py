"""A layer of many files unpacked by labkit, umoci and tar; and copied by skopeo, which unpacks nothing.

The layer is generated: files of all sizes, every other one of noise, the rest of
words. It comes as gzip, as registries have it, and plain. Each contestant is a command, each
round into a new folder. `labkit, in the store` does what `lab pull` does: it checks both
digests and has all of it on the disk when it returns, which the others don't.
"""

import contextlib
import gzip
import io
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile

import contestants
import peers
from report import Report

from labkit.ground.errors import LabError
from labkit.images import digests, layout

FILES_PER_MB = 10
CODE = "import sys; from labkit.images import layers; layers.apply(sys.argv[1], sys.argv[2], devices=True{more})"


def generate(path, megabytes):
    """Write a plain tar of so many MB; return the number of its files."""
    some = random.Random(9)
    words = b" ".join(some.randbytes(4).hex().encode() for _ in range(2000))
    total, number = 0, 0
    with tarfile.open(path, "w") as tar:
        while total < megabytes << 20:
            # Most files are small and few are large, as on a real system.
            size = int(min(some.lognormvariate(10.2, 1.6), 8 << 20))
            data = some.randbytes(size) if number % 2 else (words * (size // len(words) + 1))[:size]
            info = tarfile.TarInfo(f"usr/share/{number % 97}/{number}")
            info.size, info.mode = size, 0o644
            tar.addfile(info, io.BytesIO(data))
            total, number = total + size, number + 1
    return number


def image(folder, path, packed):
    """Make an image layout of one layer, plain or gzip, in `folder`; return (blob, digest, diff_id)."""
    store = layout.Layout(folder).create()
    plain = path.read_bytes()
    blob = gzip.compress(plain, 6, mtime=0) if packed else plain
    digest, diff_id = store.add(blob), digests.digest(plain)
    config, size = store.add_json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    )
    kind = layout.LAYER + ("+gzip" if packed else "")
    manifest, _ = store.add_json(
        {
            "schemaVersion": 2,
            "mediaType": layout.MANIFEST,
            "config": {"mediaType": layout.CONFIG, "digest": config, "size": size},
            "layers": [{"mediaType": kind, "digest": digest, "size": len(blob)}],
        }
    )
    store.set_name("it", manifest)
    # umoci looks for the name as it is written, without a tag.
    index = (store.folder / "index.json").read_text().replace("it:latest", "it")
    (store.folder / "index.json").write_text(index)
    return store.path(digest), digest, diff_id


def commands(folder, blob, digest, diff_id):
    """Return {name: the words that unpack to a folder}."""
    python = [sys.executable, "-P", "-c"]
    checked = f", digest={digest!r}, diff_id={diff_id!r}, sync=True"
    return {
        "labkit": lambda to: [*python, CODE.format(more=""), str(blob), to],
        "labkit, in the store": lambda to: [*python, CODE.format(more=checked), str(blob), to],
        "umoci": lambda to: ["umoci", "raw", "unpack", "--image", f"{folder}:it", to],
        "tar": lambda to: [
            "tar",
            "-C",
            to,
            "--numeric-owner",
            "-xf" if digest == diff_id else "-xzf",
            str(blob),
        ],
        "skopeo, copied": lambda to: ["skopeo", "copy", "-q", f"oci:{folder}:it", f"dir:{to}"],
    }


def run(peak, words):
    """Run a command; return (milliseconds, peak memory in MB)."""
    ours, theirs = os.pipe()
    try:
        done = subprocess.run(
            [peak, str(theirs), *words],
            pass_fds=[theirs],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    finally:
        os.close(theirs)
    with os.fdopen(ours) as answer:
        nanoseconds, kilobytes, status = map(int, answer.read().split() or (0, 0, 1))
    if status:
        raise LabError(f"{words[0]} failed: {done.stderr.strip()[-300:]}")
    return nanoseconds / 1e6, kilobytes / 1024


def race(peak, ways, folder, rounds):
    """Return ({name: [ms]}, {name: [MB of memory]}), all in turn; each round begins with another."""
    times, peaks = {name: [] for name in ways}, {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            to = folder / "to"
            if name == "tar":
                to.mkdir()
            spent, memory = run(peak, ways[name](str(to)))
            shutil.rmtree(to)
            times[name].append(spent)
            peaks[name].append(memory)
    return times, peaks


def measure(options):
    """Yield the Reports: the layer as gzip, and plain."""
    peers.need("umoci", "skopeo", "tar")
    megabytes, rounds = (500, 3) if options.full else (50, max(2, min(options.rounds, 4)))
    with peers.scratch() as folder:
        peak = peers.compiled("peak", folder)
        files = generate(folder / "tar", megabytes)
        for packed in (True, False):
            with _image(folder, packed) as (store, *names):
                ways = commands(store, *names)
                times, peaks = race(peak, ways, folder, rounds)
            yield _report(f"{megabytes} MB, {files} files, {'as gzip' if packed else 'plain'}", times, peaks, rounds)


@contextlib.contextmanager
def _image(folder, packed):
    store = folder / "image"
    try:
        yield store, *image(store, folder / "tar", packed)
    finally:
        shutil.rmtree(store)


def _report(what, times, peaks, rounds):
    return Report(
        f"unpack {what}",
        f"{rounds} rounds, milliseconds",
        ("min, ms", "median, ms", "peak, MB"),
        [(name, min(spent), statistics.median(spent), max(peaks[name])) for name, spent in times.items()],
        ratios=[("labkit", other, contestants.ratio(times, "labkit", other)) for other in list(times)[1:]],
        notes=["peak: ru_maxrss of the command. skopeo copies and checks blobs, and makes no files of them"],
        shown=(1, "median [ms]"),
        raw={"ms": times, "MB": peaks},
    )
