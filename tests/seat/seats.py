"""A real engine that a seat is started in, and what this machine lacks for that.

with engine_for_seats() as docker:      an engine with a bridge, in a network namespace of its own
    with a_way_out(docker) as proxy:    programs in that namespace reach package registries by it
"""

import contextlib
import os
import subprocess
import sys

from labkit.ground import state
from labkit.lessons.beside import engine

# `docker run --privileged` asks for every capability, and runc fails for one that its own bounding set lacks.
# So what this machine lacks is taken out of what runc is told, for a container and for `docker exec`.
RUNTIME = """#!/usr/bin/env python3
import json, os, sys

def limit(path, find):
    with open(path) as file:
        spec = json.load(file)
    for names in find(spec)["capabilities"].values():
        names[:] = [name for name in names if name not in LACKING]
    with open(path, "w") as file:
        json.dump(spec, file)

words = sys.argv[1:]
for word, value in zip(words, words[1:]):
    if word == "--bundle":
        limit(value + "/config.json", lambda spec: spec["process"])
    if word == "--process" and "exec" in words:
        limit(value, lambda process: process)
os.execvp("runc", ["runc", *words])
"""

# A listening socket stays in the namespace in which it was made, whoever serves it: so the proxy's door is in
# the engine's network, and its own connections leave from the machine's.
PROXY = """
import os, socket, sys, threading
from labkit.ground import syscalls

def copy(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for one in (source, target):
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

def serve(client):
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        if not (data := client.recv(65536)):
            return
        head += data
    method, target, _ = head.split(None, 2)
    place = target.decode() if method == b"CONNECT" else target.decode().split("/")[2]
    host, _, port = place.partition(":")
    there = socket.create_connection((host, int(port or 80)), timeout=60)
    if method == b"CONNECT":
        client.sendall(b"HTTP/1.1 200 Connection established\\r\\n\\r\\n")
    else:
        there.sendall(head)
    threading.Thread(target=copy, args=(there, client), daemon=True).start()
    copy(client, there)

home = os.open("/proc/self/ns/net", os.O_RDONLY)
syscalls.setns(os.open(f"/proc/{sys.argv[1]}/ns/net", os.O_RDONLY), syscalls.CLONE_NEWNET)
door = socket.create_server(("127.0.0.1", 0))
syscalls.setns(home, syscalls.CLONE_NEWNET)
print(door.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(door.accept()[0],), daemon=True).start()
"""


@contextlib.contextmanager
def engine_for_seats(folder, **options):
    """Start an engine that can run `--privileged` with what capabilities there are; `folder` is the test's own."""
    from labkit.ground import proc
    from labkit.isolation import security

    lacking = security.names(~proc.process(os.getpid()).cap_bnd & (1 << security.last_capability() + 1) - 1)
    runtime = folder / "runtime"
    runtime.write_text(RUNTIME.replace("LACKING", repr([f"CAP_{name.removeprefix('CAP_')}" for name in lacking])))
    runtime.chmod(0o755)
    with engine.private(images=(), runtimes={"here": runtime}, default="here", **options) as docker:
        yield docker
        if left := docker("ps", "-aq").split():
            docker("rm", "-fv", *left)


def pid(docker):
    """Return the number of the engine's process."""
    return int((docker.folder / "pid").read_text())


@contextlib.contextmanager
def a_way_out(docker):
    """Yield the address of a proxy on the loopback of the engine's network."""
    command = [sys.executable, "-c", PROXY, str(pid(docker))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=state.REPO) as process:
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def status(docker, url):
    """Return the HTTP status that an address in the engine's network answers with, 0 if nobody does."""
    words = ["nsenter", "-t", str(pid(docker)), "-n", sys.executable, "-SEc", ASK, url]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


ASK = """
import sys, urllib.request, urllib.error
try:
    print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError:
    print(0)
"""
