"""A knob of /proc/sys is written where it is, and nowhere that a link or a mount leads to."""

import pytest

from labkit.ground import syscalls as sc
from labkit.ground.child import in_child
from labkit.ground.errors import KernelError
from labkit.isolation import mounts, sysctls

PORTS = "net.ipv4.ip_unprivileged_port_start"


def _written(value, spoil=lambda: None):
    def work():
        sc.unshare(sc.CLONE_NEWNS | sc.CLONE_NEWNET)
        mounts.make_private()
        spoil()
        sysctls.write([(PORTS, value)])
        with open("/proc/sys/" + PORTS.replace(".", "/")) as file:
            return file.read().strip()

    return in_child(work)


def test_a_sysctl_of_the_own_namespace_is_written(needs_root):
    assert _written("7") == "7"


@pytest.mark.parametrize("kind", ["a link", "a mount"])
def test_a_write_to_proc_is_never_led_elsewhere(needs_root, tmp_path, kind):
    bait = tmp_path / "bait"
    bait.write_text("untouched")
    folder = tmp_path / "ipv4"
    folder.mkdir()
    (folder / "ip_unprivileged_port_start").symlink_to(bait)

    def spoil():
        place = "/proc/sys/net/ipv4"
        source, target = (folder, place) if kind == "a link" else (bait, f"{place}/ip_unprivileged_port_start")
        sc.mount(str(source), target, None, sc.MS_BIND)

    with pytest.raises(KernelError):
        _written("7", spoil)
    assert bait.read_text() == "untouched"
