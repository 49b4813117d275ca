"""Bundles for the tests of labkit-runtime: a busybox root, a config.json, and the command."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from labkit.oci import terms

RUNTIME = Path(__file__).parent.parent / "vagrant" / "labkit-runtime"


def make_rootfs(folder):
    """Make a root filesystem of busybox in `folder`."""
    for name in ("bin", "proc", "dev", "sys", "etc", "tmp", "data"):
        (folder / name).mkdir(parents=True)
    shutil.copy2(shutil.which("busybox"), folder / "bin/busybox")
    for name in "sh cat echo id ls mkdir mount ps sleep stat test touch true umask ulimit wc grep env tr head mknod dd readlink hostname cut uname ip ionice".split():
        (folder / "bin" / name).symlink_to("busybox")
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nana:x:1000:1000::/home/ana:/bin/sh\n")
    (folder / "etc/group").write_text("root:x:0:\nana:x:1000:\n")
    return folder


class Bundle:
    """A folder with a config.json over a root filesystem that tests share."""

    def __init__(self, folder, rootfs, name="box"):
        self.folder, self.id, self.root = folder, name, folder / "state"
        folder.mkdir(exist_ok=True)
        self.config = terms.example()
        self.config["root"] = {"path": str(rootfs), "readonly": False}
        self.config["process"].update(terminal=False, args=["true"])

    def shell(self, script):
        """Have it run a shell script."""
        self.config["process"]["args"] = ["sh", "-c", script]
        return self

    def set(self, path, value):
        """Set one place in the config: `linux.sysctl`."""
        *parents, last = path.split(".")
        place = self.config
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value
        return self

    def write(self):
        """Write config.json."""
        (self.folder / "config.json").write_text(json.dumps(self.config))
        return self

    def command(self, *words, global_words=()):
        """Return one command line of the runtime."""
        return [str(RUNTIME), "--root", str(self.root), *global_words, *map(str, words)]

    def __call__(self, *words, stdin=None, global_words=(), **more):
        """Run one command of the runtime; return what it printed and how it ended."""
        return subprocess.run(
            self.command(*words, global_words=global_words), stdin=stdin or subprocess.DEVNULL, capture_output=True,
            text=True, timeout=60, cwd=self.folder, **more,
        )  # fmt: skip

    def create(self, *words, **more):
        """Create it; return how that ended. Its output goes to a file: the container keeps what it was given open."""
        self.write()
        with open(self.folder / "out", "wb") as out, open(self.folder / "err", "wb") as err:
            done = subprocess.run(
                self.command("create", "--bundle", self.folder, *words, self.id), stdin=subprocess.DEVNULL,
                stdout=out, stderr=err, timeout=60, **more,
            )  # fmt: skip
        done.stderr = (self.folder / "err").read_text()
        return done

    def output(self):
        """Return what it printed."""
        return (self.folder / "out").read_text()

    def run(self, *words, **more):
        """Run it to its end."""
        return self.write()("run", "--bundle", self.folder, *words, self.id, **more)

    def state(self):
        """Return its state."""
        done = self("state", self.id)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def delete(self):
        """Take it away."""
        return self("delete", "--force", self.id)

    def left(self):
        """Return what is left of it: its folder's files."""
        return sorted(os.listdir(self.root)) if self.root.exists() else []
