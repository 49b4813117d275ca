"""Into namespaces that are there already: a running container's, or those behind a path.

setns(2) is not enough for two kinds. A pid namespace takes children only, so the
process clones once more and goes on as its own sibling. And a user namespace decides
what power over the others one has: one that is joined comes first, one that is made
comes last, with the clone.
See setns(2), pid_namespaces(7), user_namespaces(7).
"""

import os

from labkit.container.channel import await_go, say
from labkit.ground import syscalls as sc
from labkit.ground.errors import NotFound, from_oserror
from labkit.isolation import namespaces, security


def container(job, channel):
    """Enter a running container; go on as a grandchild, since a pid namespace takes children only."""
    try:
        pidfd = os.pidfd_open(job.join)
    except ProcessLookupError:
        raise NotFound("the container's first process has ended") from None
    namespaces.enter(pidfd, job.namespaces)
    os.close(pidfd)
    # Full power never enters: a container with CAP_SYS_PTRACE could take this process
    # over. What is kept beside its own is what the last steps need.
    if "capabilities" not in job.unlocked:
        _, permitted, _ = sc.capget()
        needed = {*job.capabilities, "SETPCAP", "SETUID", "SETGID", "CHOWN"}
        if job.seccomp and "no_new_privs" in job.unlocked:
            needed.add("SYS_ADMIN")  # or no filter can be installed
        security.set_capabilities(needed & set(security.names(permitted)))
    _go_on_as_sibling(channel)
    if "user" in job.namespaces:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def paths(job, channel):
    """Join namespaces by their files, then make the others as a grandchild's. See setns(2).

    A user namespace that is joined comes first: it gives the power over the others.
    One that is made comes last, with the clone: it takes the power over those joined.
    """
    for kind, path in sorted(job.paths, key=lambda pair: pair[0] != "user"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise from_oserror(error, f"joining the {kind} namespace") from None
        namespaces.enter(fd, [kind])
        os.close(fd)
        if kind == "user":
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
    _go_on_as_sibling(channel, namespaces.flags([kind for kind in job.namespaces if kind not in ("cgroup", "time")]))
    if "user" in job.namespaces:
        become_root_inside()
    sc.prctl(sc.PR_SET_DUMPABLE, 0)


def _go_on_as_sibling(channel, flags=0):
    """Clone once more and go on as the child; this process tells its pid and ends. See clone3(2)."""
    # CLONE_PARENT: the grandchild becomes our sibling, so the spawner can wait for it.
    pid, _ = sc.clone3(sc.CLONE_PARENT | flags, 0)
    if pid:
        say(channel, "pid", pid)
        os._exit(0)
    # Until the parent knows of us, and has moved our ids if they have to be. Who fails and
    # ends unknown to it is waited for by nobody, and then the container's PID 1 can't end.
    await_go(channel)


def become_root_inside():
    """Be user 0 of the user namespace that this process is in. See user_namespaces(7)."""
    os.setgroups([]) if not _setgroups_denied() else None
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _setgroups_denied():
    with open("/proc/self/setgroups") as file:
        return file.read().strip() == "deny"
