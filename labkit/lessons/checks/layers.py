"""Checks of chapters 06 and 07: the folders are mounted as the participant left them, and looked at."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from labkit.container.life import Container
from labkit.images import layers
from labkit.lessons import scratch
from labkit.lessons.checks import Requirements, exercise, running
from labkit.storage import roots


@contextlib.contextmanager
def _seen(lowers: Sequence[Path], upper: Path) -> Iterator[Path]:
    """Yield the merged view of folders as they are, read-only, at a place of the check's own."""
    with scratch.folder() as merged, roots.mounted([*lowers, upper], None, None, merged):
        yield merged


@exercise
def hides(lowers: Sequence[Path], upper: Path, name: str) -> Requirements:
    """Hide a file of the lowerdirs by hand, with nothing but the upperdir."""
    have = [Path(lower) for lower in lowers if os.path.lexists(Path(lower, name))]
    yield (have, f"a lowerdir has {name}", "make the lowerdirs again, as in the cells above: they must keep it")
    others = {other for lower in lowers for other in os.listdir(lower)} - {name}
    with _seen(lowers, upper) as merged:
        names = set(os.listdir(merged))
    yield (
        name not in names,
        f"merged does not show {name}",
        "what does the kernel put into the upperdir when a file is deleted?",
        "a character device 0:0 under the file's own name: os.mknod(path, mode, device)",
        f'os.mknod(upper / "{name}", stat.S_IFCHR, os.makedev(0, 0))',
    )
    yield others <= names, "merged shows all the other files", "only one name was to be hidden"


@exercise
def shows_only(lowers: Sequence[Path], upper: Path, folder: str, names: Iterable[str]) -> Requirements:
    """Make a folder opaque by hand: merged shows what the upperdir has in it, and no more."""
    below = {name for lower in lowers if Path(lower, folder).is_dir() for name in os.listdir(Path(lower, folder))}
    yield below, f"the lowerdirs have files in {folder}", "make the lowerdirs again, as in the cells above"
    yield Path(upper, folder).is_dir(), f"the upperdir has a folder {folder}", f'(upper / "{folder}").mkdir()'
    with _seen(lowers, upper) as merged:
        found = set(os.listdir(merged / folder))
    yield (
        set(names) <= found,
        f"merged shows {', '.join(sorted(names))} in {folder}",
        f'write it: (upper / "{folder}" / NAME).write_text("…")',
    )
    yield (
        found == set(names),
        f"and nothing else: {len(below)} of the lowerdirs' files are hidden",
        "each could get a whiteout, but one mark on the folder hides them all",
        "the xattr trusted.overlay.opaque with the value y: os.setxattr(path, name, value)",
        f'os.setxattr(upper / "{folder}", "trusted.overlay.opaque", b"y")',
    )


@exercise
def layer_by_hand(lowers: Sequence[Path], tar: Path, gone: str, brings: str, text: str) -> Requirements:
    """Write a layer by hand, a tar that takes one file away and brings another."""
    yield Path(tar).is_file(), f"there is {Path(tar).name}", 'tarfile.open(path, "w") makes a new one'
    with _seen(lowers[:-1], lowers[-1]) as merged:
        before = set(os.listdir(merged))
    yield gone in before, f"without it, {gone} is seen", "make the lowerdirs again, as in the cells above"
    with scratch.folder() as place:
        layers.apply(tar, place / "layer")
        with _seen(lowers, place / "layer") as merged:
            after = set(os.listdir(merged))
            found = (merged / brings).read_text(errors="replace") if (merged / brings).is_file() else None
    yield (
        gone not in after,
        f"with it, {gone} is not seen any more",
        "how did the layer of container one say that ls is gone? Look at its entries",
        f"an empty file whose name is `.wh.` and then what it hides: .wh.{gone}",
    )
    yield (
        found == text,
        f"{brings} holds {text!r}",
        "an entry of its own, with its size: entry.size = len(text)",
        f"file.addfile(entry, io.BytesIO({text.encode()!r}))",
    )
    yield (
        after == before - {gone} | {brings},
        "and all the other files are seen as before",
        "one whiteout hides one name; .wh..wh..opq hides them all",
    )


@exercise
def still_one_file(merged: Path, upper: Path, first: str, second: str, text: str) -> Requirements:
    """Mount an overlay in which a file with two names stays one file when it is changed."""
    yield (os.path.ismount(merged), "the overlay is mounted", "storage.mount(lower, upper, work, merged, options=…)")
    one, two = Path(merged, first), Path(merged, second)
    yield (
        one.is_file() and one.read_text() == text,
        f"{first} holds {text!r}",
        f"write it through merged: (merged / {first!r}).write_text({text!r})",
    )
    yield (
        two.is_file() and two.read_text() == text,
        f"{second} holds it too, and nobody wrote to that",
        "what is copied up alone is alone. Overlayfs can keep a list of the files it has copied up, and of "
        "their other names. Which mount option has it do that? Begin with an empty upperdir and workdir",
        'the list is called the index: options=("index=on",)',
    )
    yield (
        os.path.samefile(one, two),
        "they are one file, and not two alike",
        "write to one of them only: index=on does the rest",
    )
    yield (
        not os.path.lexists(Path(upper, second)),
        f"the upperdir has {first} alone: the kernel knows the other name by its index",
        "no new link and no second write; begin with an empty upperdir and workdir",
    )


@exercise
def changed_for_less(merged: Path, upper: Path, name: str, mode: int, limit: int = 1 << 20) -> Requirements:
    """Change a large file's mode, and pay next to nothing for it in the upperdir.

    `limit` is in bytes.
    """
    path = Path(merged, name)
    yield (os.path.ismount(merged), "the overlay is mounted", "storage.mount(lower, upper, work, merged, options=…)")
    yield path.is_file(), f"{name} is there", "mount over the lowerdir that has it"
    yield (path.stat().st_mode & 0o777 == mode, f"its mode is {mode:o}", f"(merged / {name!r}).chmod(0o{mode:o})")
    used = roots.usage(upper)
    yield (
        used.files == 1,
        "the upperdir has one file: the kernel copied it up",
        "change it through merged, not in the lowerdir",
    )
    yield (
        used.allocated < limit,
        f"and it takes {used.allocated} bytes there, of {used.apparent} that it says it has",
        "which mount option leaves the data where it is? Begin with empty folders: what is copied up stays",
        'metacopy: unmount, empty the upperdir, mount with options=("metacopy=on",), then chmod',
    )


@exercise
def kept_outside(box: Container, path: str, volume: Path, size: int) -> Requirements:
    """Have a container write into a volume, so that its own upperdir stays thin.

    `size` is in bytes.
    """
    yield running(box)
    found = box.exec(["stat", "-c", "%s", path])
    yield (
        found.code == 0 and found.output.strip() == str(size),
        f"{path} has {size} bytes in the container",
        f"box.exec(['dd', 'if=/dev/zero', 'of={path}', 'bs=1M', 'count={size >> 20}'])",
    )
    yield (
        any(Path(folder, name).stat().st_size == size for folder, _, names in os.walk(volume) for name in names),
        "the volume's folder on the host holds them",
        'where must the volume be mounted? volumes=["NAME:/FOLDER/IN/THE/CONTAINER"]',
        f'volumes=["NAME:{os.path.dirname(path)}"]',
    )
    yield (
        roots.usage(box.rootfs.upperdir).allocated < size // 10,
        "the container's upperdir stayed thin",
        "the file was written to the container's root before: start a new container",
    )
