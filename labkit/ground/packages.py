"""Which package brings a command that is not here, by its name on this system.

`vagrant/packages` is the one list of what the lab needs. A name there may be several,
`docker-cli|docker.io`: Debian 13 has Docker's client in a package of its own, Debian 12
has it in the engine's. The first that this system's apt knows is the right one.
"""

import subprocess

from labkit.ground import state


def bringing(command: str) -> str:
    """Return the name of the package that brings `command`, or the command's own name if the list has none."""
    for line in (state.REPO / "vagrant" / "packages").read_text().splitlines():
        words = line.split()
        if len(words) > 2 and words[0] != "#" and words[2] == command:
            return _known(words[1].split("|"))
    return command


def advice(*commands: str) -> str:
    """Return what to type to get these commands: `apt-get install docker-cli docker.io`."""
    return "apt-get install " + " ".join(dict.fromkeys(bringing(command) for command in commands))


def _known(names: list[str]) -> str:
    """Return the first of `names` that apt has, or the last."""
    for name in names[:-1]:
        try:
            found = subprocess.run(["apt-cache", "show", name], capture_output=True, check=False)
        except OSError:  # no Debian: any of the names will do to search for
            break
        if found.returncode == 0:
            return name
    return names[-1]
