"""What a build may read: its folder, without what `.dockerignore` leaves out, and images that are here."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from labkit.build import ignore
from labkit.build.copying import Owner, Tree
from labkit.ground import child, ledger, state, syscalls
from labkit.ground.errors import BadValue, NotFound
from labkit.images.catalog import Image
from labkit.isolation import users
from labkit.storage import roots


@contextlib.contextmanager
def scratch(what: str) -> Iterator[Path]:
    """Yield an empty folder that is gone after the block."""
    folder = state.lib_dir("build") / f"{what}-{state.new_id()}"
    with ledger.made("folder", path=str(folder)):
        folder.mkdir(0o755)
        yield folder


def read(folder: str | os.PathLike[str], dockerfile: Path | None = None) -> Tree:
    """Return the folder that a build may read, and nothing above it. Raises NotFound, BadValue.

    Beside a Dockerfile called NAME, `NAME.dockerignore` goes before the folder's own.
    """
    whole = Path(os.path.realpath(folder))
    if not whole.is_dir():
        raise NotFound(f"there is no build folder {folder}", "the folder that has the Dockerfile")
    ignored = ignore.Ignored()
    beside = dockerfile and dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    for place in (beside, whole / ".dockerignore"):
        if place is not None and place.is_file():
            ignored = ignore.Ignored(place.read_bytes().decode(errors="surrogateescape"))
            break
    return Tree(str(whole), "the build folder", ignored, (0, 0))


@contextlib.contextmanager
def tree_of(image: Image | None, name: str) -> Iterator[Tree]:
    """Yield what an image's root holds, mounted for the block; nothing for no image."""
    with contextlib.ExitStack() as stack:
        merged = stack.enter_context(scratch("from"))
        if image is not None and image.layers:
            stack.enter_context(roots.mounted(roots.seen(image.layers), None, None, merged))
        yield Tree(str(merged), name)


def find_owner(image: Image | None, text: str) -> Owner:
    """Return (uid, gid) of `user` or `user:group`: numbers, or names that the image itself knows.

    A number alone is the group's too; a name alone has the group that its passwd says. Raises NotFound, BadValue.
    """
    user, _, group = text.partition(":")
    names = [user, group or user]
    if all(re.fullmatch("[0-9]{1,10}", name) for name in names):
        uid, gid = map(int, names)
    else:
        with scratch("names") as merged, roots.mounted(roots.seen(image.layers) if image else [], None, None, merged):
            uid, gid = child.in_child(_find_owner, merged, user, group)
    if not all(number < 2**32 - 1 for number in (uid, gid)):  # the last one tells chown(2): leave it
        raise BadValue(f"{uid}:{gid} is no owner", "0 to 4294967294")
    return uid, gid


def _find_owner(root: Path, user: str, group: str) -> Owner:
    """Look names up in a root that a stranger has written: no link in it leads out, no device is opened."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount(None, str(root), None, syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_NODEV)
    os.chroot(root)
    os.chdir("/")
    uid, gid, _, _ = users.find_user(f"{user}:{group}")
    return uid, gid if group or not user.isdecimal() else uid
