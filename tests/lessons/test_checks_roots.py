"""Chapter 03's checks take right work and refuse wrong work; nothing of it reaches the host."""

import os

import pytest

from labkit.ground import syscalls as sc
from labkit.ground.child import in_child
from labkit.ground.errors import BadValue
from labkit.images import catalog
from labkit.isolation import inroot
from labkit.lessons.checks import roots as check
from labkit.storage import roots

pytestmark = pytest.mark.usefixtures("needs_root")


@pytest.fixture
def cage(tmp_path):
    cage = tmp_path / "cage"
    cage.mkdir()
    roots.copy_tree(catalog.get("busybox").layers[0], cage)
    return cage


def walk(cage, twice=True, steps=64, again=True):
    os.chroot(cage)
    os.chdir("/")
    os.makedirs("/hole", exist_ok=True)
    if twice:
        os.chroot("/hole")
    for _ in range(steps):
        os.chdir("..")
    if again:
        os.chroot(".")


def test_walking_out_of_a_chroot_works(cage):
    assert check.walks_out(walk, cage)


@pytest.mark.parametrize("wrong", [{"twice": False}, {"steps": 1}, {"again": False}])
def test_walks_out_refuses(cage, wrong):
    assert not check.walks_out(lambda where: walk(where, **wrong), cage)


def own_root(folder, private=True, unmount=True, go=True):
    if private:
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    sc.mount(folder, folder, None, sc.MS_BIND)
    os.chdir(folder)
    sc.pivot_root(".", ".")
    if unmount:
        sc.umount2(".", sc.MNT_DETACH)
    if go:
        os.chdir("/")


def test_root_is_alone_takes_pivot_root_and_umount(cage):
    assert check.root_is_alone(own_root, cage)


@pytest.mark.parametrize("wrong", [{"private": False}, {"unmount": False}])
def test_root_is_alone_refuses(cage, wrong):
    assert not check.root_is_alone(lambda folder: own_root(folder, **wrong), cage)


def test_root_is_alone_refuses_chroot(cage):
    def only_chroot(folder):
        os.chroot(folder)
        os.chdir("/")

    assert not check.root_is_alone(only_chroot, cage)


def test_pivot_root_closes_the_way_out(cage):
    def work():
        sc.unshare(sc.CLONE_NEWNS)
        own_root(cage)
        walk("/")
        return sorted(os.listdir("/"))

    listing = in_child(work)
    assert "hole" in listing and "var" in listing and not os.path.exists("/hole")


@pytest.mark.parametrize(
    ("flags", "passes"),
    [
        (sc.MS_REC | sc.MS_SLAVE, True),
        (sc.MS_SLAVE, False),
        (sc.MS_REC | sc.MS_PRIVATE, False),
        (sc.MS_REC | sc.MS_SHARED, False),
    ],
)
def test_only_receives(flags, passes):
    assert bool(check.only_receives(lambda: sc.mount(None, "/", None, flags))) is passes


def test_a_link_in_the_image_leads_no_mount_outside(cage, tmp_path):
    (cage / "dev").rmdir()
    (cage / "dev").symlink_to(tmp_path)

    def work():
        root = os.open(cage, os.O_PATH | os.O_DIRECTORY)
        inroot.make_in_root(root, "/dev", follow=False)

    with pytest.raises(BadValue, match="symbolic link"):
        in_child(work)
