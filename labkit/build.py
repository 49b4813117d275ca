"""An image from a Dockerfile: each instruction takes an image and gives the next.

    FROM        begins with an image that is here (or with nothing: scratch)
    RUN         a container of the image so far; what it changed is a layer
    COPY ADD    an overlay on the image so far; what was put in is a layer
    all others  change only the config: no layer

So `build` is `commit`, once for each line. Whoever looks at the layers sees the lines.

A layer that was made before is not made again. Its key is what it was made of: the
layers below, the instruction, the variables it sees, the contents it copies. The cache
holds only names: a cached layer lives as long as some image has it.
"""

import contextlib
import hashlib
import json
import os
import posixpath
from dataclasses import dataclass, field, replace
from pathlib import Path

from labkit import commit, context, dockerfile, images, ledger, state, storage
from labkit.container import Container
from labkit.errors import BadValue, LabError, NotFound
from labkit.images import Image, ImageConfig

SHELL = ("/bin/sh", "-c")
# What the engine puts into a container's root to mount on: no part of what RUN changed.
_MOUNT_POINTS = ("etc/hosts", "etc/hostname", "etc/resolv.conf", "dev/console", "dev", "proc", "sys", "etc")


def build(folder, name, *, file=None, args=None, target=None, cache=True, network="none", say=print):
    """Build an image from the Dockerfile in `folder`; name it and return the Image.

    `file` is another Dockerfile (a path), `args` the values of its ARGs, `target` the
    stage to stop after, `network` what RUN has ("none", "host", "bridge"). `say` is called with
    each step's line and what RUN prints. Raises BadValue with the line, LabError if a
    RUN fails; then nothing has the name that had not before.
    """
    name = images.normal(name)
    area = context.Context(folder)
    try:
        text = Path(file or area.folder / "Dockerfile").read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(
            f"no Dockerfile to read in {folder}: {error}", "build(folder, file=…) names another"
        ) from None
    instructions = dockerfile.parse(text)
    # Held to the end: no layer of a half-built image is garbage.
    with images.locked(shared=True) as store:
        builder = _Builder(store, area, dict(args or {}), cache, network, say)
        image = builder.run(instructions, target)
        return images.adopt(store, name, image.digest)


@dataclass
class _Stage:
    """One FROM and what follows it, as far as it has come."""

    image: Image | None
    config: ImageConfig
    variables: dict = field(default_factory=dict)  # ARGs, seen by what follows and by RUN, kept nowhere
    shell: tuple = SHELL

    def seen(self):
        """Return the variables an instruction may use: ENV wins over ARG."""
        return self.variables | dict(pair.split("=", 1) for pair in self.config.env)

    def lowest(self):
        return self.image.diff_ids if self.image else ()


class _Builder:
    def __init__(self, store, area, args, cache, network, say):
        self.store, self.area, self.args, self.cache, self.network, self.say = (
            store,
            area,
            args,
            cache,
            network,
            say,
        )
        self.stages = {}  # name or number: Image
        self.globals = {}  # ARGs before the first FROM
        self.stage = None

    def run(self, instructions, target):
        count, total, wanted = 0, len(instructions), target and target.lower()
        current = None
        for number, raw in enumerate(instructions, 1):
            if raw.word == "FROM" and current is not None:
                if wanted in current:
                    break
                count += 1
            variables = self.stage.seen() if self.stage and raw.word != "FROM" else self.globals
            instruction = raw.expanded(variables)
            self.say(f"Step {number}/{total} : {raw}")
            getattr(self, f"_{raw.word.lower()}")(instruction)
            if raw.word == "FROM":
                current = {str(count), self._name_of_stage(instruction)}
            if self.stage is not None:
                for key in current:
                    self.stages[key] = self.stage
        if wanted and wanted not in current:
            raise BadValue(
                f"the Dockerfile has no stage {target!r}",
                f"it has {', '.join(sorted(filter(None, self.stages)))}",
            )
        return self.stage.image

    # FROM, ARG

    def _name_of_stage(self, instruction):
        words = instruction.text.split()
        return words[2].lower() if len(words) == 3 else None

    def _from(self, instruction):
        words = instruction.text.split()
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].lower() != "as"):
            raise instruction.refuse(
                f"{instruction.text!r} can't be read", "FROM IMAGE, or FROM IMAGE AS NAME"
            )
        if words[0].lower() in self.stages:
            before = self.stages[words[0].lower()]
            self.stage = _Stage(before.image, before.config)
        elif words[0] == "scratch":
            self.stage = _Stage(None, ImageConfig())
            self._commit(instruction, None)
        else:
            image = images.get(words[0])
            self.stage = _Stage(image, image.config)

    def _arg(self, instruction):
        for word in dockerfile.split(instruction.text):
            name, equals, default = word.partition("=")
            if not name.isidentifier():
                raise instruction.refuse(f"{name!r} is no name of a variable")
            if self.stage is None:
                self.globals[name] = self.args.get(name, default)
            elif name in self.args:
                self.stage.variables[name] = self.args[name]
            elif equals:
                self.stage.variables[name] = default
            elif name in self.globals:
                self.stage.variables[name] = self.globals[name]

    # What changes only the config

    def _set(self, instruction, **changed):
        self.stage.config = replace(self.stage.config, **changed)
        self._commit(instruction, None)

    def _env(self, instruction):
        env = dict(pair.split("=", 1) for pair in self.stage.config.env) | dict(instruction.pairs())
        self._set(instruction, env=tuple(f"{name}={value}" for name, value in env.items()))

    def _label(self, instruction):
        self._set(instruction, labels=self.stage.config.labels | dict(instruction.pairs()))

    def _maintainer(self, instruction):
        self._set(instruction, labels=self.stage.config.labels | {"maintainer": instruction.text})

    def _user(self, instruction):
        self._set(instruction, user=instruction.text)

    def _cmd(self, instruction):
        self._set(instruction, cmd=instruction.command(self.stage.shell))

    def _entrypoint(self, instruction):
        # An image's CMD was meant for its own ENTRYPOINT.
        self._set(instruction, entrypoint=instruction.command(self.stage.shell), cmd=())

    def _expose(self, instruction):
        ports = {word if "/" in word else f"{word}/tcp" for word in instruction.words()}
        for port in ports:
            number, _, protocol = port.partition("/")
            if not all(
                part.isdigit() and 0 < int(part) < 65536 for part in number.split("-")
            ) or protocol not in (
                "tcp",
                "udp",
                "sctp",
            ):
                raise instruction.refuse(f"{port!r} is no port", "EXPOSE 80, or EXPOSE 53/udp")
        self._set(instruction, exposed_ports=tuple(sorted({*self.stage.config.exposed_ports, *ports})))

    def _volume(self, instruction):
        self._set(instruction, volumes=tuple(sorted({*self.stage.config.volumes, *instruction.words()})))

    def _stopsignal(self, instruction):
        self._set(instruction, stop_signal=instruction.text)

    def _shell(self, instruction):
        words = instruction.list()
        if not words:
            raise instruction.refuse("takes a JSON list", 'SHELL ["/bin/sh", "-c"]')
        self.stage.shell = words

    # What makes a layer

    def _workdir(self, instruction):
        path = posixpath.normpath(posixpath.join("/", self.stage.config.workdir, instruction.text))
        self.stage.config = replace(self.stage.config, workdir=path)
        with self._layer(instruction, path) as root:
            if root is not None:
                with context.scratch("empty") as empty:
                    context.put(empty, root.merged, path)

    def _copy(self, instruction):
        *sources, target = self._places(instruction)
        with context.scratch("copy") as folder:
            if "from" in instruction.flags:
                image = self._source(instruction)
                single = context.gather_from(image, instruction, sources, folder)
            else:
                single = self.area.gather(instruction, sources, folder)
            unpacked = instruction.word == "ADD" and context.unpack_archives(folder)
            self._own(instruction, folder)
            if single and not unpacked and not target.endswith("/"):
                target = self._rename(folder, target)
            elif len(sources) > 1 and not target.endswith("/"):
                raise instruction.refuse("several sources need a folder as target", f"{target}/")
            with self._layer(instruction, target, context.fingerprint(folder)) as root:
                if root is not None:
                    context.put(folder, root.merged, target)

    def _add(self, instruction):
        for word in instruction.words()[:-1]:
            if "://" in word or word.startswith("git@"):
                raise instruction.refuse(
                    f"{word} is not a local file", "fetch it first; labkit's build fetches nothing"
                )
        self._copy(instruction)

    def _places(self, instruction):
        words = instruction.words()
        unknown = set(instruction.flags) - {"from", "chown", "chmod"}
        if len(words) < 2 or unknown or any("\0" in word for word in words):
            raise instruction.refuse(
                f"{instruction.text!r} can't be read", f"{instruction.word} SOURCE … TARGET"
            )
        target = posixpath.join("/", self.stage.config.workdir, words[-1])
        keep = "/" if words[-1].endswith(("/", "/.")) or words[-1] == "." else ""
        if ".." in target.split("/"):
            target = posixpath.normpath(target)
        return [*words[:-1], posixpath.normpath(target).rstrip("/") + keep or "/"]

    def _rename(self, folder, target):
        """A single file to a target that is no folder gets the target's name; return the folder it goes to."""
        if self._is_folder(target):
            return target
        (only,) = folder.iterdir()
        only.rename(folder / posixpath.basename(target))
        return posixpath.dirname(target) or "/"

    def _is_folder(self, target):
        if self.stage.image is None or not self.stage.image.layers:
            return target == "/"
        with context.scratch("look") as merged, storage.mounted(self.stage.image.layers, None, None, merged):
            root = os.open(merged, os.O_PATH | os.O_DIRECTORY)
            try:
                os.close(context.mounts.open_in_root(root, target, os.O_PATH | os.O_DIRECTORY))
                return True
            except LabError:
                return False
            finally:
                os.close(root)

    def _source(self, instruction):
        name = instruction.flags["from"]
        if name.lower() in self.stages and self.stages[name.lower()] is not self.stage:
            return self.stages[name.lower()].image
        return images.get(name)

    def _own(self, instruction, folder):
        # Docker gives what it copies to root, wherever it is from; only --from keeps owners.
        owner = instruction.flags.get("chown")
        if owner is not None or "from" not in instruction.flags:
            uid, _, gid = (owner or "0:0").partition(":")
            if not uid.isdigit() or not (gid or uid).isdigit():
                raise instruction.refuse(f"--chown={owner}: only numbers are known here", "--chown=1000:1000")
            context.set_owner(folder, int(uid), int(gid or uid))
        mode = instruction.flags.get("chmod")
        if mode is not None:
            try:
                for path in folder.rglob("*"):
                    if not path.is_symlink():
                        path.chmod(int(mode, 8) & 0o7777)
            except ValueError:
                raise instruction.refuse(f"--chmod={mode} is no mode", "--chmod=755") from None

    def _run(self, instruction):
        command = instruction.command(self.stage.shell)
        variables = sorted(self.stage.variables.items())
        with self._layer(instruction, command, variables, mounted=False):
            pass  # a container makes and mounts its own root

    @contextlib.contextmanager
    def _layer(self, instruction, *made_of, mounted=True):
        """Yield a root to change, mounted, whose changes become the layer; None if the cache has it."""
        config = self.stage.config
        key = json.dumps(
            [
                self.stage.lowest(),
                instruction.word,
                instruction.flags.get("chown"),
                instruction.flags.get("chmod"),
                made_of,
            ]
            + ([config.env, config.workdir, config.user] if instruction.word == "RUN" else [])
        )
        key = hashlib.sha256(key.encode()).hexdigest()
        known = self._cached(key)
        if known is not None:
            self.say(" ---> in the cache")
            yield None
            self._commit(instruction, known[0])
            return
        layer = None
        if mounted:
            with self._root() as root:
                yield root
                layer = self._take(root)
        else:
            yield True
            layer = self._run_container(instruction, made_of[0])
        self._remember(key, layer)
        self._commit(instruction, layer)

    @contextlib.contextmanager
    def _root(self):
        driver, name = storage.driver(), f"build-{state.new_id()}"
        with ledger.group(name):
            try:
                root = driver.prepare(self.stage.image, name)
                storage.mount(root.lowerdirs, root.upperdir, root.workdir, root.merged, root.options)
                yield root
            finally:
                ledger.undo_group(name)

    def _run_container(self, instruction, command):
        if not self.stage.image.layers:
            raise instruction.refuse("there is nothing in the image yet to run", "COPY a program first")
        base = self.stage.image
        words = {
            "env": [f"{name}={value}" for name, value in self.stage.variables.items()],
            "network": self.network,
        }
        # An entrypoint is for who runs the image, not for its build.
        plain = commit.add(self.store, base, None, None, replace(self.stage.config, entrypoint=()), "for RUN")
        with Container(plain.digest, command, **words).start() as box:
            code = box.wait()
            output = box.logs()
            if output:
                self.say(output.rstrip("\n"))
            if code:
                last = output.strip().splitlines()[-1:] or ["it printed nothing"]
                raise LabError(
                    f"Dockerfile, line {instruction.line}: {instruction} ended with status {code}", last[0]
                )
            _drop_mount_points(box.rootfs)
            return self._take(box.rootfs)

    def _take(self, root):
        """Store what is in an upperdir as a layer; return (diff_id, digest, size), None if there is nothing."""
        storage.unmount(root.merged)
        if not root.changes():
            return None
        with self.store.adding() as (out, keep):
            diff_id, digest, size = root.diff(out)
            keep(digest)
        return diff_id, digest, size

    def _commit(self, instruction, layer):
        image = commit.add(self.store, self.stage.image, layer, None, self.stage.config, str(instruction))
        self.stage.image = image

    # The cache

    def _cached(self, key):
        """Return (layer or None,) if the cache has this key and the store the layer, else None."""
        if not self.cache:
            return None
        note = state.read_json(state.lib_dir("build-cache") / f"{key}.json")
        if note is None:
            return None
        layer = note["layer"]
        if layer is None:
            return (None,)
        return (tuple(layer),) if self.store.has(layer[1]) else None

    def _remember(self, key, layer):
        state.write_json(state.lib_dir("build-cache") / f"{key}.json", {"layer": layer})


def _drop_mount_points(rootfs):
    """Take out of an upperdir the empty files and folders that were only there to be mounted on."""
    for name in _MOUNT_POINTS:
        path = Path(rootfs.upperdir, name)
        if any(os.path.lexists(Path(lower, name)) for lower in rootfs.lowerdirs) or path.is_symlink():
            continue
        with contextlib.suppress(OSError):
            if path.is_dir():
                path.rmdir()  # fails if something is in it
            elif path.stat().st_size == 0:
                path.unlink()
