"""Checks of chapters 06 and 07: the folders are mounted as the participant left them, and looked at."""

import contextlib
import os
from pathlib import Path

from labkit.ground import ledger, state
from labkit.images import layers
from labkit.lessons.checks import exercise
from labkit.storage import roots


@contextlib.contextmanager
def _seen(lowers, upper):
    """Yield the merged view of folders as they are, read-only, at a place of the check's own."""
    merged = state.lib_dir("chapters") / state.new_id()
    with ledger.made("folder", path=str(merged)):
        merged.mkdir()
        with roots.mounted([*lowers, upper], None, None, merged):
            yield merged


@exercise
def hides(lowers, upper, name):
    """The upperdir hides `name` of the lowerdirs, which still have it; all else is still seen."""
    have = [Path(lower) for lower in lowers if os.path.lexists(Path(lower, name))]
    yield (
        have,
        f"a lowerdir has {name}",
        "make the lowerdirs again, as in the cells above: they must keep it",
    )
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
def shows_only(lowers, upper, folder, names):
    """In merged, `folder` holds `names` and nothing of the lowerdirs, whose files are still there."""
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
def layer_by_hand(lowers, tar, gone, brings, text):
    """The tar is a layer that, above the lowerdirs, takes `gone` away and brings `brings`, and no more."""
    yield Path(tar).is_file(), f"there is {Path(tar).name}", 'tarfile.open(path, "w") makes a new one'
    with _seen(lowers[:-1], lowers[-1]) as merged:
        before = set(os.listdir(merged))
    yield gone in before, f"without it, {gone} is seen", "make the lowerdirs again, as in the cells above"
    folder = state.lib_dir("chapters") / state.new_id()
    with ledger.made("folder", path=str(folder)):
        layers.apply(tar, folder)
        with _seen(lowers, folder) as merged:
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
def still_one_file(merged, upper, first, second, text):
    """A file with two names was changed by the first; the kernel kept it one file by the second too."""
    yield (
        os.path.ismount(merged),
        "the overlay is mounted",
        "storage.mount(lower, upper, work, merged, options=…)",
    )
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
def changed_for_less(merged, upper, name, mode, limit=1 << 20):
    """The file has the mode in merged, and the upperdir took less than `limit` bytes for it."""
    path = Path(merged, name)
    yield (
        os.path.ismount(merged),
        "the overlay is mounted",
        "storage.mount(lower, upper, work, merged, options=…)",
    )
    yield path.is_file(), f"{name} is there", "mount over the lowerdir that has it"
    yield (
        path.stat().st_mode & 0o777 == mode,
        f"its mode is {mode:o}",
        f"(merged / {name!r}).chmod(0o{mode:o})",
    )
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
def kept_outside(box, path, volume, size):
    """The container wrote `size` bytes at `path`, they are in the volume, and not in its own upperdir."""
    yield box.status == "running", "the container runs", "start it again"
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
