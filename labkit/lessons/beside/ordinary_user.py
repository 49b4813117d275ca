"""Run a command as an ordinary user, to see what one can do without root.

    ordinary_user.lab("run", "busybox", "id")

The user is 65534, *nobody*, with no group, no capability, and no way to win any
(no_new_privs), with a home of its own that is gone afterwards. Done by setpriv(1)
of util-linux. For chapters and tests, which run as root.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from labkit.ground import child, ledger, state

UID = 65534
_HOME = state.REPO


class Nobody:
    """An ordinary user with a home folder; call `run` and `lab`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.python = _python()

    def run(self, *command: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command as this user; return the finished process, output and errors as text."""
        words = [
            "setpriv",
            f"--reuid={UID}",
            f"--regid={UID}",
            "--clear-groups",
            "--no-new-privs",
            "--",
            *map(str, command),
        ]
        env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "PYTHONPATH": str(_HOME),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.run(
            words, env=env, cwd="/", capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )

    def lab(self, *words: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run `lab` as this user; return the finished process."""
        return self.run(self.python, "-m", "labkit", *words, timeout=timeout)


@contextlib.contextmanager
def at_home() -> Iterator[Nobody]:
    """Yield a Nobody with a new home; end what it left running and remove the home."""
    state.run_dir()
    folder = tempfile.mkdtemp(prefix="labkit-nobody-", dir="/var/tmp")
    with ledger.made("folder", path=folder):
        os.chmod(folder, 0o700)
        os.mkdir(f"{folder}/run", 0o700)
        for path in (folder, f"{folder}/run"):
            os.chown(path, UID, UID)
        user = Nobody(Path(folder))
        try:
            yield user
        finally:
            user.lab("clean", "--all")


def _python() -> str:
    """Return a Python that this user may execute: ours may be in a home folder."""

    def ours_is_open() -> bool:
        os.setgroups([])
        os.setresgid(UID, UID, UID)
        os.setresuid(UID, UID, UID)
        return os.access(os.path.realpath(sys.executable), os.X_OK)

    return sys.executable if child.in_child(ours_is_open) else "/usr/bin/python3"
