"""A file that somebody named to write to: what it was before, it is afterwards."""

import os
import stat
import threading

import pytest

from labkit.ground import named_file
from labkit.ground.errors import KernelError

pytestmark = pytest.mark.usefixtures("needs_root", "own_root")


def write(path, data=b"new"):
    with named_file.writing(path) as file:
        file.write(data)


def test_an_ordinary_file_keeps_its_mode_and_owner_and_never_has_half(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    os.chown(path, 12, 34)
    with pytest.raises(ZeroDivisionError), named_file.writing(path) as file:
        file.write(b"half")
        file.flush()
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == ["file", "labkit-root"]
    write(path)
    now = path.stat()
    assert path.read_bytes() == b"new"
    assert (stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid) == (0o640, 12, 34)


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("second")
    (tmp_path / "second").symlink_to("folder/new")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "second").is_symlink()
    assert (tmp_path / "folder/new").read_bytes() == b"new"


def test_a_pipe_is_written_into_also_through_a_link(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write(tmp_path / "link", b"x" * 300_000)
    reader.join(30)
    assert got == [b"x" * 300_000]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and (tmp_path / "link").is_symlink()


def test_a_device_stays_a_device(tmp_path):
    node = tmp_path / "null"
    os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    write(node)
    assert stat.S_ISCHR(node.stat().st_mode)


def test_the_file_behind_an_fd_is_written_and_not_replaced(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with open(tmp_path / "file", "rb") as shell:
        (tmp_path / "stdout").symlink_to(f"/proc/self/fd/{shell.fileno()}")
        write(tmp_path / "stdout")
        assert shell.read() == b"new"  # the very file that it has open


def test_what_cannot_be_written_is_said_with_the_path(tmp_path):
    for path in (tmp_path, tmp_path / "no/such"):
        with pytest.raises(KernelError, match=str(path)):
            write(path)
    assert os.listdir(tmp_path) == ["labkit-root"]
