"""What a child and its parent say to each other, from clone to exec.

A socket between them carries the parent's `go`, and the child's words: a kind and
plain JSON, perhaps with fds. The parent reads them as from a stranger, for at the
end the child is one.

    parent                      child
      ── go ────────────────▶     may begin: its cgroups and ids are set
      ◀──────────────── kind      pid, terminal, hooks, rlimits, created, error
      ── go ────────────────▶     if it has asked for something
      ◀─────────── the end        exec has closed it

See unix(7), SCM_RIGHTS.
"""

import json
import os
import socket


def await_go(channel):
    """Wait for the parent's `go`, return the fds that come with it; end if the parent is gone."""
    message, fds, _, _ = socket.recv_fds(channel, 8, 1)
    if message != b"go":
        os._exit(1)
    return fds


def say(channel, kind, value=None, fds=()):
    """Send a message to the parent: its kind and plain data, perhaps fds with it."""
    socket.send_fds(channel, [json.dumps([kind, value]).encode(errors="replace")], list(fds))


def ask(channel, what):
    """Have the parent do what only it may, and wait until it has."""
    say(channel, what)
    await_go(channel)
