"""An image from a Dockerfile: each instruction takes an image and gives the next.

    FROM        begins with an image that is here (or with nothing: scratch)
    RUN         a container of the image so far; what it changed is a layer
    COPY ADD    an overlay on the image so far; what was put in is a layer
    all others  change only the config: no layer

So `build` is `commit`, once for each line. Whoever looks at the layers sees the lines.

A layer that was made before is not made again: see layer_cache.
"""

import os
import posixpath
from dataclasses import replace
from pathlib import Path

from labkit.build import context, dockerfile, layer_cache
from labkit.ground.errors import BadValue, LabError, NotFound
from labkit.images import catalog
from labkit.images.catalog import ImageConfig
from labkit.isolation import inroot
from labkit.storage import roots


def build(folder, name, *, file=None, args=None, target=None, cache=True, network="none", say=print):
    """Build an image from the Dockerfile in `folder`; name it and return the Image.

    `file` is another Dockerfile (a path), `args` the values of its ARGs, `target` the
    stage to stop after, `network` what RUN has ("none", "host", "bridge"). `say` is
    called with each step's line and what RUN prints. Raises BadValue with the line, LabError if a
    RUN fails; then nothing has the name that had not before.
    """
    name = catalog.normal(name)
    area = context.Context(folder)
    try:
        text = Path(file or area.folder / "Dockerfile").read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"no Dockerfile to read in {folder}: {error}", "build(folder, file=…) names another") from None
    instructions = dockerfile.parse(text)
    # Held to the end: no layer of a half-built image is garbage.
    with catalog.locked(shared=True) as store:
        builder = _Builder(store, area, dict(args or {}), cache, network, say)
        image = builder.run(instructions, target)
        return catalog.adopt(store, name, image.digest)


class _Builder(layer_cache.Layers):
    def __init__(self, store, area, args, cache, network, say):
        super().__init__(store, cache, network, say)
        self.area, self.args = area, args
        self.stages = {}  # name or number: Image
        self.globals = {}  # ARGs before the first FROM

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
            raise instruction.refuse(f"{instruction.text!r} can't be read", "FROM IMAGE, or FROM IMAGE AS NAME")
        if words[0].lower() in self.stages:
            before = self.stages[words[0].lower()]
            self.stage = layer_cache.Stage(before.image, before.config)
        elif words[0] == "scratch":
            self.stage = layer_cache.Stage(None, ImageConfig())
            self.commit(instruction, None)
        else:
            image = catalog.get(words[0])
            self.stage = layer_cache.Stage(image, image.config)

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
        self.commit(instruction, None)

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
            if not all(part.isdigit() and 0 < int(part) < 65536 for part in number.split("-")) or protocol not in (
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
        with self.layer(instruction, path) as root:
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
            with self.layer(instruction, target, context.fingerprint(folder)) as root:
                if root is not None:
                    context.put(folder, root.merged, target)

    def _add(self, instruction):
        for word in instruction.words()[:-1]:
            if "://" in word or word.startswith("git@"):
                raise instruction.refuse(
                    f"{word} is on the network, and a build here fetches nothing",
                    "fetch it into the build folder first, and ADD it by its file name",
                )
        self._copy(instruction)

    def _places(self, instruction):
        words = instruction.words()
        unknown = set(instruction.flags) - {"from", "chown", "chmod"}
        if len(words) < 2 or unknown or any("\0" in word for word in words):
            raise instruction.refuse(f"{instruction.text!r} can't be read", f"{instruction.word} SOURCE … TARGET")
        target = posixpath.join("/", self.stage.config.workdir, words[-1])
        keep = "/" if words[-1].endswith(("/", "/.")) or words[-1] == "." else ""
        if ".." in target.split("/"):
            target = posixpath.normpath(target)
        return [*words[:-1], posixpath.normpath(target).rstrip("/") + keep or "/"]

    def _rename(self, folder, target):
        """Give a single file the target's name, unless that is a folder; return the folder it goes to."""
        if self._is_folder(target):
            return target
        (only,) = folder.iterdir()
        only.rename(folder / posixpath.basename(target))
        return posixpath.dirname(target) or "/"

    def _is_folder(self, target):
        if self.stage.image is None or not self.stage.image.layers:
            return target == "/"
        with context.scratch("look") as merged, roots.mounted(self.stage.image.layers, None, None, merged):
            root = os.open(merged, os.O_PATH | os.O_DIRECTORY)
            try:
                os.close(inroot.open_in_root(root, target, os.O_PATH | os.O_DIRECTORY))
                return True
            except LabError:
                return False
            finally:
                os.close(root)

    def _source(self, instruction):
        name = instruction.flags["from"]
        if name.lower() in self.stages and self.stages[name.lower()] is not self.stage:
            return self.stages[name.lower()].image
        return catalog.get(name)

    def _own(self, instruction, folder):
        # Docker gives what it copies to root, wherever it is from; only --from keeps owners.
        owner = instruction.flags.get("chown")
        if owner is not None or "from" not in instruction.flags:
            try:
                context.set_owner(folder, *context.find_owner(self.stage.image, owner or "0:0"))
            except (NotFound, BadValue) as error:
                hint = "a number is always possible: --chown=1000:1000"
                raise instruction.refuse(f"--chown={owner}: {error.message}", hint) from None
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
        with self.layer(instruction, command, variables, mounted=False):
            pass  # a container makes and mounts its own root
