"""JupyterHub for a room on one strong server: each user has a seat, which is a container of its own.

A seat is privileged, so whoever uses it is root on this server: only for people whom you trust with it.
Users are the lines of users.txt, a name and a token each; README says how the file is made.

    LAB_USERS    another file of users
    LAB_HUB_IP   this server's address on Docker's bridge, by which seats reach the hub (172.17.0.1)
    LAB_MEMORY   memory of a seat, in MiB (2048)
    LAB_IDLE     after so many seconds without anybody a seat is ended; its work stays (3600)
"""

import hmac
import os
import sys
from pathlib import Path

from jupyterhub.auth import Authenticator

HERE = Path(__file__).parent
USERS = dict(
    line.split() for line in Path(os.environ.get("LAB_USERS", HERE / "users.txt")).read_text().splitlines() if line
)
ROOM = "room"  # the user whose token is for `lab room`, and who has no seat


class Tokens(Authenticator):
    """Lets in whoever knows a user's token."""

    async def authenticate(self, handler, data):
        """Return the user's name, or None."""
        token = USERS.get(data["username"], "")
        known = hmac.compare_digest(token.encode(), data["password"].encode())
        return data["username"] if token and known and data["username"] != ROOM else None


c = get_config()  # noqa: F821 - JupyterHub gives it

c.JupyterHub.authenticator_class = Tokens
c.Authenticator.allowed_users = set(USERS) - {ROOM}
c.JupyterHub.bind_url = "http://127.0.0.1:8000"
c.JupyterHub.hub_ip = os.environ.get("LAB_HUB_IP", "172.17.0.1")

c.JupyterHub.spawner_class = "dockerspawner.DockerSpawner"
c.DockerSpawner.image = "docker-deep-dive-hub"
c.DockerSpawner.extra_host_config = {"privileged": True}
c.DockerSpawner.use_internal_ip = True  # JupyterHub's proxy goes there, and nobody else
c.DockerSpawner.remove = True
c.DockerSpawner.volumes = {"lab-{username}-store": "/var/lib/labkit", "lab-{username}-chapters": "/lab/.participant"}
c.DockerSpawner.mem_limit = f"{os.environ.get('LAB_MEMORY', 2048)}M"
c.DockerSpawner.start_timeout = c.DockerSpawner.http_timeout = 120
c.Spawner.default_url = "/lab/tree/00-start-here.ipynb"

# Who has nobody in front of it gives its memory back; and `lab room` reads how far each one is.
cull = [sys.executable, "-m", "jupyterhub_idle_culler", f"--timeout={os.environ.get('LAB_IDLE', 3600)}"]
c.JupyterHub.services = [{"name": "cull", "command": cull}, {"name": ROOM, "api_token": USERS.get(ROOM)}]
c.JupyterHub.load_roles = [
    {
        "name": "cull",
        "services": ["cull"],
        "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
    },
    {"name": ROOM, "services": [ROOM], "scopes": ["list:users", "read:servers", "access:servers"]},
]
