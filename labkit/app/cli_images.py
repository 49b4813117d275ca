"""The `lab` command's words for images, storage and volumes.

`pull`, `build` and `load` show how far they are on a line that is written over,
on a terminal only: into a file or a pipe go finished lines and nothing else.
"""

import sys
from collections.abc import Callable

from labkit.app.commands import command, each, parser, size, table
from labkit.ground import named_file
from labkit.ground.errors import BadValue


def progress(what: str) -> Callable[[int, int], None] | None:
    """Return a function (done, total) that draws a bar; None where nobody could see it."""
    if not sys.stderr.isatty():
        return None

    def draw(done: int, total: int) -> None:
        filled = 30 if not total else min(30, 30 * done // total)
        end = "\n" if total and done >= total else ""
        print(
            f"\r{what} [{'=' * filled}{' ' * (30 - filled)}] {size(done)} of {size(total or done)} ",
            end=end,
            file=sys.stderr,
            flush=True,
        )

    return draw


@command("images", "list the images")
def _images(argv: list[str]) -> None:
    from labkit.images import catalog

    parser("images").parse_args(argv)
    catalog.get("busybox")
    table("IMAGE,ID,LAYERS,SIZE", [(i.name, i.id[7:19], str(len(i.layers)), size(i.size)) for i in catalog.all()])


@command("pull", "fetch an image from a registry")
def _pull(argv: list[str]) -> None:
    from labkit.images import registry

    words = parser("pull")
    words.add_argument("image", help="HOST/NAME:TAG, or a name on Docker Hub")
    name = words.parse_args(argv).image
    image = registry.pull(name, progress(name))
    print(f"{image.name} {image.digest}")


@command("push", "send an image to a registry")
def _push(argv: list[str]) -> None:
    from labkit.images import registry

    words = parser("push")
    words.add_argument("image")
    words.add_argument("name", nargs="?", help="its name there: HOST/NAME:TAG")
    options = words.parse_args(argv)
    print(registry.push(options.image, options.name))


@command("build", "make an image from a Dockerfile")
def _build(argv: list[str]) -> None:
    from labkit.build import builder, plan

    words = parser("build")
    words.add_argument("-t", "--tag", required=True, action="append", metavar="NAME", help="more than one is possible")
    words.add_argument("-f", "--file", help="another Dockerfile than FOLDER/Dockerfile; - is standard input")
    words.add_argument("--build-arg", action="append", default=[], metavar="NAME[=VALUE]")
    words.add_argument("--label", action="append", default=[], metavar="NAME=VALUE")
    words.add_argument("--secret", action="append", default=[], metavar="id=NAME,src=FILE", help="for RUN --mount")
    words.add_argument("--target", help="stop after this stage")
    words.add_argument("--no-cache", action="store_true")
    words.add_argument("--network", default="none", help="what RUN has: none, host or bridge")
    words.add_argument("--iidfile", metavar="FILE", help="write the image's id there")
    words.add_argument("-q", "--quiet", action="store_true", help="print nothing but the image's id")
    words.add_argument("folder")
    options = words.parse_args(argv)
    if wrong := [pair for pair in options.label if not pair.partition("=")[0]]:
        raise BadValue(f"label {wrong[0]!r} can't be read", "write NAME=VALUE")
    image = builder.build(
        options.folder,
        options.tag,
        file=options.file if options.file != "-" else None,
        text=sys.stdin.read() if options.file == "-" else None,
        args=plan.given(options.build_arg),
        labels=dict(pair.partition("=")[::2] for pair in options.label),
        secrets=dict(map(plan.secret, options.secret)),
        target=options.target,
        cache=not options.no_cache,
        network=options.network,
        **({"say": lambda line: None} if options.quiet else {}),
    )
    if options.iidfile:
        with named_file.writing(options.iidfile) as file:
            file.write(image.id.encode())
    print(image.id if options.quiet else f"{image.name} {image.digest}")


@command("save", "write images into a tar file that Docker and the OCI tools read")
def _save(argv: list[str]) -> None:
    from labkit.images import archives

    words = parser("save")
    words.add_argument("-o", "--output", metavar="FILE", help="standard output, if none is named")
    words.add_argument("image", nargs="+")
    options = words.parse_args(argv)
    if not options.output and sys.stdout.isatty():
        raise BadValue("an archive is nothing for a terminal", "-o FILE, or a pipe")
    archives.save(options.image, options.output or sys.stdout.buffer)


@command("load", "read images from a tar file, Docker's or OCI")
def _load(argv: list[str]) -> None:
    from labkit.images import archives

    words = parser("load")
    words.add_argument("-i", "--input", metavar="FILE", help="standard input, if none is named")
    words.add_argument("--name", help="for an archive that does not say")
    words.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    options = words.parse_args(argv)
    if not options.input and sys.stdin.isatty():
        raise BadValue("nobody types an archive", "-i FILE, or a pipe")
    show = progress(options.input) if options.input and not options.quiet else None
    for image in archives.load(options.input or sys.stdin.buffer, options.name, show):
        print(f"{image.name} {image.digest}")


@command("tag", "give an image a further name")
def _tag(argv: list[str]) -> None:
    from labkit.images import catalog

    words = parser("tag")
    words.add_argument("image")
    words.add_argument("name")
    options = words.parse_args(argv)
    catalog.tag(options.image, options.name)


@command("rmi", "remove images, and the layers that nothing else needs")
def _rmi(argv: list[str]) -> int:
    from labkit.storage import garbage

    words = parser("rmi")
    words.add_argument("-f", "--force", action="store_true", help="take the name away although a container uses it")
    words.add_argument("image", nargs="+")
    options = words.parse_args(argv)
    remove = lambda name: print(f"{name}: {size(garbage.remove(name, options.force))} given back")  # noqa: E731
    return each("rmi", options.image, remove)


@command("storage", "`storage tree CONTAINER`: which of its files is where")
def _storage(argv: list[str]) -> None:
    from labkit.container import life
    from labkit.storage import roots

    words = parser("storage")
    words.add_argument("what", choices=["tree"])
    words.add_argument("container")
    box = life.find(words.parse_args(argv).container)
    rootfs = roots.driver(box.spec.storage).get(box.id)
    table("WHAT,WHERE", [(role, str(folder)) for role, folder in rootfs.tree().items()])
    print(f"\nits own: {rootfs.usage()}")


@command("volume", "`volume ls`, `create NAME`, `rm NAME`: folders that outlive containers")
def _volume(argv: list[str]) -> int:
    from labkit.storage import volumes

    words = parser("volume")
    words.add_argument("what", choices=["ls", "create", "rm"])
    words.add_argument("name", nargs="*")
    options = words.parse_args(argv)
    if (options.what == "ls") != (not options.name):
        raise BadValue(f"lab volume {options.what} takes {'no name' if options.name else 'a name'}")
    if options.what == "ls":
        table("VOLUME,SIZE,FOLDER", [(one.name, size(one.usage().allocated), one.path) for one in volumes.all()])
    action = volumes.create if options.what == "create" else volumes.remove
    return each("volume", options.name, lambda name: (action(name), print(name)))
