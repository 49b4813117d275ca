"""How a build makes a layer, or finds that it was made before.

A layer's key is the hash of all that it was made of: the layers below it, the
instruction, the variables that it sees, the contents that it copies. Whoever changes
one of these gets another key, for this layer and for all that follow.

The cache holds no layers, only which key made which: a cached layer lives as long as
some image has it.
"""

import codecs
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from labkit.build.dockerfile import Instruction
from labkit.build.run_mounts import Mounts
from labkit.container.life import Container
from labkit.ground import ledger, state
from labkit.ground.dataclass import dataclass, field, replace
from labkit.ground.errors import Damaged, LabError
from labkit.ground.typed import IO, Any
from labkit.images import commit
from labkit.images.catalog import Image, ImageConfig
from labkit.images.commit import Layer
from labkit.images.layout import Layout
from labkit.storage import roots

SHELL = ("/bin/sh", "-c")
# What the engine puts into a container's root to mount on: no part of what RUN changed.
CACHED = state.kind("lib/build-cache/*.json", {"layer": list | None})
_MOUNT_POINTS = ("etc/hosts", "etc/hostname", "etc/resolv.conf", "dev/console", "dev", "proc", "sys", "etc")


@dataclass
class Stage:
    """One FROM and what follows it, as far as it has come."""

    image: Image | None
    config: ImageConfig
    variables: dict[str, str] = field(default_factory=dict)  # ARGs, seen by what follows and by RUN, kept nowhere
    has_cmd: bool = False  # a CMD of its own, and not of the image that it began with

    @property
    def shell(self) -> tuple[str, ...]:
        """What a text is run by."""
        return self.config.shell or SHELL

    def seen(self) -> dict[str, str]:
        """Return the variables an instruction may use: ENV wins over ARG."""
        return self.variables | dict(pair.split("=", 1) for pair in self.config.env)

    def environment(self) -> list[str]:
        """Return the ARGs that RUN has beside the image's own ENV, as "NAME=value"."""
        named = {pair.partition("=")[0] for pair in self.config.env}
        return [f"{name}={value}" for name, value in sorted(self.variables.items()) if name not in named]

    def lowest(self) -> tuple[str, ...]:
        return self.image.diff_ids if self.image else ()


class Layers:
    """The part of a build that makes layers; `stage` is what it works on."""

    stage: Stage

    def __init__(self, store: Layout, cache: bool, network: str, say: Callable[[str], object]) -> None:
        self.store, self.cache, self.network, self.say = store, cache, network, say

    @contextlib.contextmanager
    def layer(
        self, instruction: Instruction, *made_of: Any, mounts: Mounts | None = None
    ) -> Iterator[roots.Rootfs | None]:
        """Yield a root to change, mounted, whose changes become the layer; None if the cache has it."""
        config = self.stage.config
        key = json.dumps(
            [
                self.stage.lowest(),
                instruction.word,
                sorted(instruction.flags.items()),
                made_of,
            ]
            + ([config.env, config.workdir, config.user] if instruction.word == "RUN" else [])
        )
        key = hashlib.sha256(key.encode()).hexdigest()
        known = self._cached(key)
        if known is not None:
            self.say(" ---> in the cache")
            yield None
            self.commit(instruction, known[0])
            return
        layer = None
        if mounts is None:
            with self._root() as root:
                yield root
                layer = self._take(root)
        else:
            yield None
            layer = self._run_container(instruction, made_of[0], mounts)
        self._remember(key, layer)
        self.commit(instruction, layer)

    def commit(self, instruction: Instruction, layer: Layer | None) -> None:
        image = commit.add(self.store, self.stage.image, layer, None, self.stage.config, str(instruction))
        self.stage.image = image

    @contextlib.contextmanager
    def _root(self) -> Iterator[roots.Rootfs]:
        driver, name = roots.driver(), f"build-{state.new_id()}"
        with ledger.group(name):
            try:
                assert self.stage.image is not None  # FROM has made one, of scratch too
                root = driver.prepare(self.stage.image, name)
                roots.mount(root.lowerdirs, root.upperdir, root.workdir, root.merged, root.options)
                yield root
            finally:
                ledger.undo_group(name)

    def _run_container(self, instruction: Instruction, command: tuple[str, ...], mounts: Mounts) -> Layer | None:
        base = self.stage.image
        if base is None or not base.layers:
            raise instruction.refuse("there is nothing in the image yet to run", "COPY a program first")
        words = {
            "env": [*self.stage.environment(), *(f"{name}={value}" for name, value in mounts.env.items())],
            "volumes": mounts.volumes,
            "network": {"default": self.network}.get(asked := instruction.flags.get("network", "default"), asked),
        }
        # An entrypoint and volumes are for who runs the image, not for its build: what RUN writes is a layer.
        config = replace(self.stage.config, entrypoint=(), volumes=())
        plain = commit.add(self.store, base, None, None, config, "for RUN")
        with self._started(plain.digest, command, words) as (box, output):
            last = self._repeated(output)
            if code := box.wait():
                raise LabError(
                    f"Dockerfile, line {instruction.line}: {instruction} ended with status {code}", _last_word(last)
                )
            _drop_mount_points(box.rootfs, [volume.target for volume in mounts.volumes])
            return self._take(box.rootfs)

    @contextlib.contextmanager
    def _started(
        self, image: str, command: tuple[str, ...], words: dict[str, Any]
    ) -> Iterator[tuple[Container, IO[bytes]]]:
        """Start a container whose output comes through a pipe; yield (it, the pipe's end to read)."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        with open(read_end, "rb", 0) as output, Container(image, command, **words) as box:
            try:
                with open(os.devnull, "rb") as nothing:
                    box.start((nothing.fileno(), write_end, write_end))
            finally:
                os.close(write_end)
            yield box, output

    def _repeated(self, output: IO[bytes]) -> str:
        """Say each line while it comes; return the last that was no empty one."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        rest, last = "", ""
        while block := output.read(1 << 16):
            *lines, rest = (rest + decoder.decode(block)).split("\n")
            for line in lines:
                self.say(line)
                last = line.strip() or last
        if rest:
            self.say(rest)
        return rest.strip() or last

    def _take(self, root: roots.Rootfs) -> Layer | None:
        """Store what is in an upperdir as a layer; return (diff_id, digest, size), or None if it is empty."""
        roots.unmount(root.merged)
        if not root.changes():
            return None
        with self.store.adding() as (out, keep):
            diff_id, digest, size = root.diff(out)
            keep(digest)
        return diff_id, digest, size

    # The cache

    def _cached(self, key: str) -> tuple[Layer | None] | None:
        """Return (layer or None,) if the cache has this key and the store the whole layer, else None."""
        if not self.cache:
            return None
        note = None
        with contextlib.suppress(Damaged):  # no worse than not remembered
            note = state.read(state.lib_dir("build-cache") / f"{key}.json", CACHED)
        if note is None:
            return None
        layer = note["layer"]
        if layer is None:
            return (None,)
        return (tuple(layer),) if self.store.has(layer[1], layer[2]) else None

    def _remember(self, key: str, layer: Layer | None) -> None:
        state.write_json(state.lib_dir("build-cache") / f"{key}.json", {"layer": layer})


def _drop_mount_points(rootfs: roots.Rootfs, targets: list[str]) -> None:
    """Take out of an upperdir the empty files and folders that were only there to be mounted on."""
    above = [str(folder).lstrip("/") for one in targets for folder in (Path(one), *Path(one).parents)[:-1]]
    for name in (*above, *_MOUNT_POINTS):
        path = Path(rootfs.upperdir, name)
        if any(os.path.lexists(Path(lower, name)) for lower in rootfs.lowerdirs) or path.is_symlink():
            continue
        with contextlib.suppress(OSError):
            if path.is_dir():
                path.rmdir()  # fails if something is in it
            elif path.stat().st_size == 0:
                path.unlink()


def _last_word(last: str) -> str:
    """Return what a command that failed said last; on a full disk it could not even say that."""
    disk = os.statvfs(state.lib_dir())
    if disk.f_bavail * disk.f_frsize < 64 << 10:
        return f"no space left on the disk of {state.lib_dir()} (ENOSPC): make room, then build again"
    return last or "it printed nothing"
