"""Beside a Docker that runs here: its rules drop what it does not know, and ours let our bridges pass.

Docker sets the policy of the machine's FORWARD chain to drop. Every packet that goes
from one link to another comes by there, also those between two containers on one
bridge if the kernel passes them on (br_netfilter, which Docker loads). So on a machine
with Docker, containers on a bridge that is not Docker's reach nobody.

Docker leaves one chain to others, and looks into it first: DOCKER-USER. We make a chain
of our own, named after the bridge, and lead from there into it:

    FORWARD ──▶ DOCKER-USER ──▶ LABKIT-bridge    accept: between ours; what ours send, except
       │                                         to Docker's own bridges; answers, and what
       ▼ Docker's own, then drop                 was sent to a published port

It takes nothing away: our own nft table (see `firewall`) still drops what it drops. The
rules are made with iptables(8), as Docker's are: what nft writes in there iptables can't
read any more. They go with the bridge. See iptables(8), "Packet filtering and firewalls"
in Docker's documentation.
"""

import shutil
import subprocess

from labkit.ground.errors import LabError
from labkit.network.firewall import tool

THEIRS = "DOCKER-USER"


def let_pass(bridge: str) -> None:
    """Let what goes over our bridge pass Docker's rules, where there are any. The ledger's `plug` answers for it."""
    for command in _commands():
        theirs = _rules_in(command, THEIRS)
        if theirs is not None and f"-A {THEIRS} -j {_ours(bridge)}" not in theirs:
            tool([f"{command}-restore", "--noflush", "--wait"], _rules(bridge))


def take_back(bridge: str) -> None:
    """Remove our chain again; quiet if there is none."""
    ours = _ours(bridge)
    for command in _commands():
        if _rules_in(command, ours) is not None:
            for words in (("-D", THEIRS, "-j", ours), ("-F", ours), ("-X", ours)):
                _run(command, *words)
            if _rules_in(command, ours) is not None:
                raise LabError(f"the chain {ours} does not go", f"{command} -S | grep {ours}")


def _rules(bridge: str) -> list[str]:
    ours = _ours(bridge)
    return [
        "*filter",
        f":{ours} - [0:0]",
        f"-A {ours} -i {bridge} -o {bridge} -j ACCEPT",
        f"-A {ours} -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT",
        # Who is on Docker's bridges is for Docker to say.
        *(f"-A {ours} -i {bridge} -o {theirs} -j RETURN" for theirs in ("docker+", "br-+")),
        f"-A {ours} -i {bridge} -j ACCEPT",
        f"-I {THEIRS} -j {ours}",
        "COMMIT",
    ]


def _ours(bridge: str) -> str:
    return f"LABKIT-{bridge}"


def _commands() -> list[str]:
    return [command for command in ("iptables", "ip6tables") if shutil.which(command)]


def _rules_in(command: str, chain: str) -> list[str] | None:
    """Return a chain's rules, None if there is no such chain. Listing makes nothing, neither a table nor a chain."""
    listed = _run(command, "-S", chain)
    return listed.stdout.splitlines() if listed.returncode == 0 else None


def _run(command: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([command, "--wait", *words], capture_output=True, text=True, check=False)
