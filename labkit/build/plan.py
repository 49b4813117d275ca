"""Which stages a Dockerfile has, and which of them the wanted one needs.

    FROM busybox AS tools        a stage: its number, perhaps a name
    FROM scratch                 another; it needs the first if it copies from it
    COPY --from=tools /a /b

What no wanted stage needs is not built.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping

from labkit.build import run_mounts
from labkit.build.dockerfile import Instruction
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import BadValue, from_oserror
from labkit.images import catalog

# Build arguments that every RUN sees without an ARG.
PROXIES = {
    name for each in ("HTTP", "HTTPS", "FTP", "NO", "ALL") for name in (f"{each}_PROXY", f"{each.lower()}_proxy")
}


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows it, before anything of it is built."""

    number: int
    name: str | None
    image: str  # what FROM names
    base: int | None  # the number of the stage that it names, if it is one
    instructions: tuple[Instruction, ...]
    names: Mapping[str, int]  # the stages before it, by name and by number
    globals: Mapping[str, str]  # ARGs before the first FROM

    def before(self, name: str) -> int | None:
        """Return the number of the stage that `name` means here, or None."""
        return self.names.get(name.lower())

    def sources(self) -> Iterator[int]:
        """Yield the numbers of the stages that it needs."""
        if self.base is not None:
            yield self.base
        for instruction in self.instructions:
            for name in _named(instruction):
                if (stage := self.before(name)) is not None:
                    yield stage

    def arguments(self) -> Iterator[str]:
        """Yield the names of its ARGs."""
        for instruction in self.instructions:
            if instruction.word == "ARG":
                yield from (name for name, _ in arguments(instruction, {}))


def _named(instruction: Instruction) -> Iterator[str]:
    """Yield the stages or images that an instruction takes files from. Raises BadValue."""
    try:
        names = [*run_mounts.stages(instruction.flags.get("mount", ""))]
    except BadValue as error:
        raise instruction.refuse(error.message, error.hint) from None
    for name in [*names, *([instruction.flags["from"]] if "from" in instruction.flags else [])]:
        if "$" in name:
            raise instruction.refuse(f"--from={name} can't hold a variable", "FROM $NAME AS stage, then --from=stage")
        yield name


def platform() -> dict[str, str]:
    """Return the ARGs that say for which machine is built, and on which: labkit builds for its own."""
    system, machine = catalog.wanted_platform()
    said = {"PLATFORM": f"{system}/{machine}", "OS": system, "ARCH": machine, "VARIANT": ""}
    return {f"{side}{key}": value for side in ("TARGET", "BUILD") for key, value in said.items()}


def stages(instructions: Iterable[Instruction], args: Mapping[str, str]) -> list[Stage]:
    """Return the Stages of a Dockerfile's instructions. Raises BadValue with the line."""
    known = platform() | {name: args[name] for name in platform() if name in args}
    found: list[Stage] = []
    names: dict[str, int] = {}
    group: list[Instruction] = []
    groups = []
    for instruction in instructions:
        if instruction.word == "FROM":
            group = []
            groups.append(group)
        if groups:
            group.append(instruction)
        else:
            for name, default in arguments(instruction, known):
                known[name] = args.get(name, known.get(name, "") if default is None else default)
    for number, group in enumerate(groups):
        image, stage = _read(group[0], known)
        base = names.get(image.lower())
        found.append(Stage(number, stage, image, base, tuple(group), dict(names), known))
        names |= {one: number for one in (str(number), stage) if one}
    return found


def _read(instruction: Instruction, variables: Mapping[str, str]) -> tuple[str, str | None]:
    """Return (image, the stage's name or None) of a FROM."""
    words = instruction.each(variables)
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].lower() != "as") or not words[0]:
        raise instruction.refuse(f"{instruction.text!r} can't be read", "FROM IMAGE, or FROM IMAGE AS NAME")
    if "platform" in instruction.flags:
        asked = instruction.expand(instruction.flags["platform"], variables)
        system, machine = catalog.wanted_platform()
        if not re.fullmatch(rf"(local|{system}(/{machine}(/v8)?)?|{machine})", asked.lower()):
            raise instruction.refuse(
                f"--platform={asked} is another machine than this, which is {system}/{machine}",
                "leave it out, or build on such a machine",
            )
    name = words[2].lower() if len(words) == 3 else None
    if name is not None and not re.fullmatch(r"[a-z][a-z0-9_.-]*", name):
        raise instruction.refuse(f"{words[2]!r} is no name of a stage", "letters, digits, `_`, `.` and `-`")
    return words[0], name


def needed(found: list[Stage], target: str | None) -> list[Stage]:
    """Return the stages that `target` needs, itself the last; without one what the last needs. Raises BadValue."""
    last = found[-1].number
    if target:
        by_name = {stage.name: stage.number for stage in found if stage.name} | {
            str(one.number): one.number for one in found
        }
        if target.lower() not in by_name:
            raise BadValue(f"the Dockerfile has no stage {target!r}", f"it has {', '.join(sorted(by_name))}")
        last = by_name[target.lower()]
    wanted, more = {last}, [last]
    while more:
        new = set(found[more.pop()].sources()) - wanted
        wanted |= new
        more += new
    return [stage for stage in found if stage.number in wanted]


def arguments(instruction: Instruction, variables: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Yield (name, default or None) of an ARG's words; each sees those before it."""
    from labkit.build import words

    seen = dict(variables)
    for part in words.split(instruction.text, instruction.escape):
        name, equals, default = part.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise instruction.refuse(f"{name!r} is no name of a variable")
        value = instruction.expand(default, seen) if equals else None
        if value is not None:
            seen[name] = value
        yield name, value


def given(pairs: Iterable[str]) -> dict[str, str]:
    """Return the build arguments of `NAME=value`, or of `NAME` alone: the caller's own value, if there is one."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name:
            raise BadValue(f"build argument {pair!r} can't be read", "NAME=value, or NAME for one of your environment")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def secret(text: str) -> tuple[str, bytes]:
    """Return (id, contents) of `id=NAME,src=FILE` or `id=NAME,env=VARIABLE`. Raises BadValue."""
    said = dict(part.partition("=")[::2] for part in text.split(","))
    said["src"] = said.pop("source", said.get("src", ""))
    if not said.get("id") or said.keys() - {"id", "src", "env", "type"}:
        raise BadValue(f"the secret {text!r} can't be read", "id=NAME,src=FILE or id=NAME,env=VARIABLE")
    variable = said.get("env") or ("" if said["src"] else said["id"])
    if variable in os.environ:
        return said["id"], os.environb[variable.encode()]
    try:
        with open(said["src"] or said["id"], "rb") as file:
            return said["id"], file.read()
    except OSError as error:
        raise from_oserror(error, f"reading the secret {said['id']}") from None


_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def health_times(instruction: Instruction) -> dict[str, int]:
    """Return what HEALTHCHECK's flags say, in the words and nanoseconds of an image's config."""
    found = {}
    for flag, key in (("interval", "Interval"), ("timeout", "Timeout"), ("start-period", "StartPeriod"),
                      ("start-interval", "StartInterval")):  # fmt: skip
        if flag in instruction.flags:
            text = instruction.flags[flag]
            parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
            if "".join(map("".join, parts)) != text or not parts:
                raise instruction.refuse(f"--{flag}={text} is no duration", "30s, or 1m30s")
            found[key] = int(sum(float(number) * _UNITS[unit] for number, unit in parts))
    if "retries" in instruction.flags:
        if not instruction.flags["retries"].isdecimal():
            raise instruction.refuse(f"--retries={instruction.flags['retries']} is no number")
        found["Retries"] = int(instruction.flags["retries"])
    return found
