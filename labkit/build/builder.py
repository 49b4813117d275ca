"""An image from a Dockerfile: each instruction takes an image and gives the next.

    FROM        begins with an image that is here (or with nothing: scratch)
    RUN         a container of the image so far; what it changed is a layer
    COPY ADD    an overlay on the image so far; what was put in is a layer
    all others  change only the config: no layer

So `build` is `commit`, once for each line. Whoever looks at the layers sees the lines.

A layer that was made before is not made again: see layer_cache.
"""

import contextlib
import functools
import posixpath
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from labkit.build import context, dockerfile, ignore, layer_cache, plan, run_mounts
from labkit.build.copying import Copier, Owner, Tree
from labkit.build.dockerfile import Heredoc, Instruction
from labkit.build.modes import Mode
from labkit.ground.dataclass import replace
from labkit.ground.errors import BadValue, NotFound
from labkit.ground.typed import Any
from labkit.images import catalog
from labkit.images.catalog import Image, ImageConfig
from labkit.images.layout import Layout


def build(
    folder: str | Path,
    name: str | list[str],
    *,
    file: str | Path | None = None,
    args: Mapping[str, str] | None = None,
    target: str | None = None,
    cache: bool = True,
    network: str = "none",
    labels: Mapping[str, str] | None = None,
    secrets: Mapping[str, bytes] | None = None,
    text: str | None = None,
    say: Callable[[str], object] = print,
) -> Image:
    """Build an image from the Dockerfile in `folder`; name it and return the Image.

    `name` is one name or a list of them, `file` another Dockerfile (a path), `text` one's
    contents in its place, `args` the values of its ARGs, `target` the stage to stop after,
    `network` what RUN has ("none", "host", "bridge"), `labels` more of them, `secrets`
    {id: bytes} what its --mount=type=secret may ask for. `say` is
    called with each step's line and what RUN prints. Raises BadValue with the line, LabError if a
    RUN fails; then nothing has the name that had not before.
    """
    names = [catalog.normal(one) for one in ([name] if isinstance(name, str) else name)]
    found = _dockerfile(Path(folder), file) if text is None else None
    area = context.read(folder, found)
    try:
        # As bytes: text files of Python's take a carriage return for the end of a line.
        read = text if found is None else found.read_bytes().decode(errors="replace")
    except OSError as error:
        raise NotFound(f"no Dockerfile to read in {folder}: {error}", "build(folder, file=…) names another") from None
    stages = plan.stages(dockerfile.parse(read or ""), dict(args or {}))
    # Held to the end: no layer of a half-built image is garbage.
    with catalog.locked(shared=True) as store:
        builder = _Builder(store, area, dict(args or {}), cache, network, say)
        builder.secrets = dict(secrets or {})
        image = builder.run(stages, target, labels or {})
        return [catalog.adopt(store, one, image.digest) for one in names][0]


def _dockerfile(folder: Path, file: str | Path | None) -> Path:
    """Return the path of the Dockerfile: the one that is named, else either spelling."""
    if file:
        return Path(file)
    small = folder / "dockerfile"
    return small if small.is_file() and not (folder / "Dockerfile").exists() else folder / "Dockerfile"


class _Builder(layer_cache.Layers):
    def __init__(
        self,
        store: Layout,
        area: Tree,
        args: dict[str, str],
        cache: bool,
        network: str,
        say: Callable[[str], object],
    ) -> None:
        super().__init__(store, cache, network, say)
        self.area, self.args = area, args
        self.secrets: dict[str, bytes] = {}
        self.done: dict[int, layer_cache.Stage] = {}  # number of a plan.Stage: what has become of it
        self.globals: dict[str, str] = {}  # ARGs before the first FROM

    def run(self, stages: list[plan.Stage], target: str | None, labels: Mapping[str, str]) -> Image:
        wanted = plan.needed(stages, target)
        total, count = sum(len(stage.instructions) for stage in wanted), 0
        self.globals = dict(stages[0].globals)
        for stage in wanted:
            self.now = stage
            for instruction in stage.instructions:
                count += 1
                self.say(f"Step {count}/{total} : {instruction}")
                self._do(instruction)
            self.done[stage.number] = self.stage
        if labels:
            self._set(stage.instructions[-1], labels=self.stage.config.labels | dict(labels))
        declared = {name for one in stages for name in one.arguments()} | plan.PROXIES | self.globals.keys()
        for name in sorted(self.args.keys() - declared):
            self.say(f"warning: no ARG takes the build argument {name}")
        assert self.stage.image is not None
        return self.stage.image

    def _do(self, instruction: Instruction) -> None:
        try:
            getattr(self, f"_{instruction.word.lower()}")(instruction)
        except (BadValue, NotFound) as error:
            if "Dockerfile, line " not in error.message:
                error.message = f"Dockerfile, line {instruction.line}: {instruction.word}: {error.message}"
            raise

    def _variables(self) -> dict[str, str]:
        return self.stage.seen()

    # FROM, ARG, ONBUILD

    def _from(self, instruction: Instruction) -> None:
        now = self.now
        if now.base is not None:
            before = self.done[now.base]
            self.stage = layer_cache.Stage(before.image, before.config)
        elif now.image == "scratch":
            path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            self.stage = layer_cache.Stage(None, ImageConfig(env=(path,)))
            self.commit(instruction, None)
        else:
            image = catalog.get(now.image)
            self.stage = layer_cache.Stage(image, image.config)
        self.stage.variables |= {name: value for name, value in self.args.items() if name in plan.PROXIES}
        for text in self.stage.config.on_build:
            trigger = replace(dockerfile.parse_one(text), line=instruction.line)
            if trigger.word in ("FROM", "ONBUILD", "MAINTAINER"):
                raise instruction.refuse(f"the image has ONBUILD {text!r:.60}, and that can't be one")
            self.say(f"# ONBUILD {text}")
            self._do(trigger)
        if self.stage.config.on_build:
            self._set(instruction, on_build=())

    def _arg(self, instruction: Instruction) -> None:
        for name, default in plan.arguments(instruction, self._variables()):
            if name in self.args:
                self.stage.variables[name] = self.args[name]
            elif default is not None:
                self.stage.variables[name] = default
            elif name in self.globals:
                self.stage.variables[name] = self.globals[name]

    def _onbuild(self, instruction: Instruction) -> None:
        trigger = dockerfile.parse_one(instruction.text, instruction.line)
        if trigger.word in ("FROM", "ONBUILD", "MAINTAINER"):
            raise instruction.refuse(f"{trigger.word} can't be one")
        self._set(instruction, on_build=(*self.stage.config.on_build, instruction.text))

    # What changes only the config

    def _set(self, instruction: Instruction, **changed: Any) -> None:
        self.stage.config = replace(self.stage.config, **changed)
        self.commit(instruction, None)

    def _env(self, instruction: Instruction) -> None:
        env = dict(pair.split("=", 1) for pair in self.stage.config.env) | dict(instruction.pairs(self._variables()))
        self._set(instruction, env=tuple(f"{name}={value}" for name, value in env.items()))

    def _label(self, instruction: Instruction) -> None:
        self._set(instruction, labels=self.stage.config.labels | dict(instruction.pairs(self._variables())))

    def _maintainer(self, instruction: Instruction) -> None:
        self._set(instruction, labels=self.stage.config.labels | {"maintainer": instruction.text})

    def _user(self, instruction: Instruction) -> None:
        self._set(instruction, user=instruction.one(self._variables()))

    def _cmd(self, instruction: Instruction) -> None:
        self.stage.has_cmd = True
        self._set(instruction, cmd=instruction.command(self.stage.shell) if instruction.text else ())

    def _entrypoint(self, instruction: Instruction) -> None:
        # The base image's CMD was meant for its own ENTRYPOINT; one of this Dockerfile for this.
        cmd = self.stage.config.cmd if self.stage.has_cmd else ()
        command = instruction.command(self.stage.shell) if instruction.text else ()
        self._set(instruction, entrypoint=command, cmd=cmd)

    def _expose(self, instruction: Instruction) -> None:
        ports = set()
        for word in instruction.parted(self._variables()):
            number, _, protocol = word.lower().partition("/")
            ends = number.split("-")
            good = all(end.isdecimal() and 0 < int(end) < 65536 for end in ends) and len(ends) <= 2
            if not good or protocol not in ("", "tcp", "udp", "sctp") or int(ends[0]) > int(ends[-1]):
                raise instruction.refuse(f"{word!r} is no port", "EXPOSE 80, or EXPOSE 53/udp")
            ports |= {f"{port}/{protocol or 'tcp'}" for port in range(int(ends[0]), int(ends[-1]) + 1)}
        self._set(instruction, exposed_ports=tuple(sorted({*self.stage.config.exposed_ports, *ports})))

    def _volume(self, instruction: Instruction) -> None:
        self._set(
            instruction, volumes=tuple(sorted({*self.stage.config.volumes, *instruction.each(self._variables())}))
        )

    def _stopsignal(self, instruction: Instruction) -> None:
        word = instruction.one(self._variables())
        if not _is_signal(word):
            raise instruction.refuse(f"there is no signal {word!r}", "SIGINT, or a number: signal(7) lists them")
        self._set(instruction, stop_signal=word)

    def _shell(self, instruction: Instruction) -> None:
        words = instruction.list()
        if not words:
            raise instruction.refuse("takes a JSON list", 'SHELL ["/bin/sh", "-c"]')
        self._set(instruction, shell=words)

    def _healthcheck(self, instruction: Instruction) -> None:
        """Keep it in the image, for engines that ask a container whether it is well; labkit asks none."""
        kind, *rest = instruction.text.split(None, 1)
        if kind.upper() not in ("NONE", "CMD") or (kind.upper() == "CMD") != bool(rest):
            raise instruction.refuse(
                f"{instruction.text!r:.40} can't be read", "HEALTHCHECK CMD …, or HEALTHCHECK NONE"
            )
        check: dict[str, Any] = {"Test": ["NONE"]}
        if rest:
            listed = replace(instruction, text=rest[0]).list()
            check = {"Test": ["CMD", *listed] if listed is not None else ["CMD-SHELL", rest[0]]}
            check |= plan.health_times(instruction)
        self._set(instruction, others=self.stage.config.others | {"Healthcheck": check})

    # What makes a layer

    def _workdir(self, instruction: Instruction) -> None:
        path = posixpath.normpath(posixpath.join("/", self.stage.config.workdir, instruction.one(self._variables())))
        self.stage.config = replace(self.stage.config, workdir=path)
        owner = self._owner_of(instruction, self.stage.config.user or "0:0", "USER")
        with self.layer(instruction, path, owner) as root:
            if root is not None:
                Copier(root.merged, owner).make_folders(path)

    def _copy(self, instruction: Instruction) -> None:
        *sources, target = self._places(instruction)
        with contextlib.ExitStack() as stack:
            documents = {f"<<{dash}{one.name}": one for one in instruction.heredocs for dash in ("", "-")}
            named = [source for source in sources if source not in documents]
            written = [documents[source] for source in sources if source in documents]
            found = []
            if named:
                tree = stack.enter_context(self._source(instruction, instruction.flags.get("from")))
                found += [(tree, path) for source in named for path in tree.find(source)]
            if written:
                tree = stack.enter_context(self._inline(instruction, written))
                found += [(tree, one.name) for one in written]
            if not found:
                raise instruction.refuse(f"nothing matches {' '.join(named)}", "of several sources one must be there")
            if len(sources) > 1 and not target.endswith("/"):
                raise instruction.refuse("several sources need a folder as target", f"{target}/")
            copier = self._copier(instruction)
            found = [(tree, path) for tree, path in found if not copier.excludes(tree, path)]
            prints = [tree.fingerprint(path, copier.excluded) for tree, path in found]
            with self.layer(instruction, target, copier.owner, copier.mode and copier.mode.text, prints) as root:
                if root is not None:
                    copier.root = root.merged
                    if instruction.flags.get("link", "false") == "true":
                        copier.part_from_links(posixpath.dirname(target))
                    for tree, path in found:
                        copier.copy(tree, path, target, archives=instruction.word == "ADD")

    def _add(self, instruction: Instruction) -> None:
        for word in instruction.each(self._variables())[:-1]:
            if "://" in word or word.startswith("git@"):
                raise instruction.refuse(
                    f"{word} is on the network, and a build here fetches nothing",
                    "fetch it into the build folder first, and ADD it by its file name",
                )
        self._copy(instruction)

    def _expanded(self, instruction: Instruction, text: str) -> str:
        return instruction.expand(text, self._variables())

    def _places(self, instruction: Instruction) -> list[str]:
        parts = instruction.each(self._variables())
        if len(parts) < 2 or any("\0" in part for part in parts):
            raise instruction.refuse(f"{instruction.text!r} can't be read", f"{instruction.word} SOURCE … TARGET")
        target = posixpath.join("/", self.stage.config.workdir, parts[-1])
        keep = "/" if parts[-1].endswith(("/", "/.")) or parts[-1] == "." else ""
        return [*parts[:-1], posixpath.normpath(target).rstrip("/") + keep or "/"]

    @contextlib.contextmanager
    def _inline(self, instruction: Instruction, documents: Iterable[Heredoc], expands: bool = True) -> Iterator[Tree]:
        """Yield here-documents as files."""
        with context.scratch("inline") as folder:
            for one in documents:
                body = self._expanded_document(instruction, one.body) if one.expands and expands else one.body
                (folder / one.name).write_text(body)
                (folder / one.name).chmod(0o644)
            yield Tree(str(folder), "the Dockerfile", owner=(0, 0))

    def _expanded_document(self, instruction: Instruction, body: str) -> str:
        """Fill in a here-document's variables; quotes are text in it, and a backslash is the escape sign always."""
        quoted = re.sub(r"\\.|['\"]", lambda sign: sign[0] if sign[0][1:] else "\\" + sign[0], body, flags=re.DOTALL)
        return replace(instruction, escape="\\").expand(quoted, self._variables())

    @contextlib.contextmanager
    def _source(self, instruction: Instruction, name: str | None) -> Iterator[Tree]:
        """Yield what --from names, a stage or an image; without it the build's folder."""
        if name is None:
            yield self.area
            return
        stage = self.now.before(name)
        if stage is not None and stage not in self.done:
            raise instruction.refuse(f"the stage {name} is needed by an ONBUILD only, and was not built")
        image = self.done[stage].image if stage is not None else catalog.get(name)
        with context.tree_of(image, f"the stage {name}" if stage is not None else name) as tree:
            yield tree

    def _copier(self, instruction: Instruction) -> Copier:
        chown, mode = (instruction.flags.get(flag) for flag in ("chown", "chmod"))
        owner = self._owner_of(instruction, self._expanded(instruction, chown), "--chown") if chown else None
        excluded = "\n".join(
            self._expanded(instruction, one) for one in instruction.flags.get("exclude", "").split("\n")
        )
        return Copier("", owner, self._mode(instruction, mode) if mode else None, ignore.Ignored(excluded))

    def _mode(self, instruction: Instruction, text: str) -> Mode:
        try:
            return Mode.parse(self._expanded(instruction, text))
        except BadValue as error:
            raise instruction.refuse(f"--chmod={error.message}", error.hint) from None

    def _owner_of(self, instruction: Instruction, text: str, what: str) -> Owner:
        try:
            return context.find_owner(self.stage.image, text)
        except (NotFound, BadValue) as error:
            hint = "a number is always possible: --chown=1000:1000"
            raise instruction.refuse(f"{what}={text}: {error.message}", hint) from None

    def _run(self, instruction: Instruction) -> None:
        flags = instruction.flags
        if flags.get("security", "sandbox") != "sandbox":
            raise instruction.refuse("labkit does not do --security", "no build has power over this machine")
        network = flags.get("network", "default")
        if network not in ("default", "none") and network != self.network:
            raise instruction.refuse(
                f"--network={network} is not this build's to have", f"lab build --network {network}"
            )
        fill = functools.partial(self._expanded, instruction)
        with contextlib.ExitStack() as stack:
            source = lambda name: self._source(instruction, name)  # noqa: E731
            workdir = self.stage.config.workdir
            mounts = stack.enter_context(run_mounts.made(flags.get("mount", ""), workdir, fill, source, self.secrets))
            if instruction.is_script():
                tree = stack.enter_context(self._inline(instruction, instruction.heredocs[:1], expands=False))
                path = Path(tree.root, instruction.heredocs[0].name)
                path.chmod(0o755)
                script = run_mounts.Volume(str(path), f"/dev/pipes/{path.name}", True)
                mounts = replace(mounts, volumes=(*mounts.volumes, script))
            command, env = instruction.command(self.stage.shell), self.stage.environment()
            inline = [one.body for one in instruction.heredocs]
            with self.layer(instruction, command, env, mounts.made_of, inline, network, mounts=mounts):
                pass  # a container makes and mounts its own root


def _is_signal(text: str) -> bool:
    if text.isdecimal():
        return 0 < int(text) < 65
    name = text.upper().removeprefix("SIG")
    real_time = re.fullmatch(r"RTMIN(\+\d|\+1[0-5])?|RTMAX(-\d|-1[0-4])?", name)
    return bool(real_time) or f"SIG{name}" in signal.Signals.__members__
