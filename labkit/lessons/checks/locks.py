"""Checks of chapter 11: what a container may do, asked of the kernel and not of its maker."""

import contextlib
import os
import time
from pathlib import Path

from labkit.container.life import Container
from labkit.ground import proc
from labkit.ground.errors import LabError
from labkit.isolation import security
from labkit.lessons.checks import Requirements, exercise


@exercise
def least_power(box: Container) -> Requirements:
    """Start a program that gives a file to user 33, with CHOWN and nothing else."""
    yield (
        box.status == "running",
        "it runs",
        "`.start()`; and look at box.logs()",
        "without the power it needs it ends at once",
    )
    process = proc.process(box.pid)
    wanted = security.mask(["CHOWN"])
    extra = security.names(process.cap_bnd & ~wanted)
    yield (
        not extra, "nothing else is in its bounding set", f"it still has {len(extra)} others: {', '.join(extra[:3])} …",
        "take all away first: cap_drop=['ALL']",
    )  # fmt: skip
    yield (
        process.cap_eff == wanted, "CHOWN is in force", "it has nothing at all now",
        "cap_drop=['ALL'] and cap_add=['CHOWN']",
    )  # fmt: skip
    yield _given_away(box.pid), "/mine belongs to user 33", "is it the program of the exercise?", "chown 33 /mine"


def _given_away(pid: int, seconds: float = 5) -> bool:
    """Tell whether the container's /mine is user 33's; its program may be just about to."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if os.lstat(f"/proc/{pid}/root/mine").st_uid == 33:
                return True
        time.sleep(0.02)
    return False


@exercise
def forbids_only_mkdir(path: str | Path) -> Requirements:
    """Write a seccomp profile under which mkdir fails and everything else works."""

    def under(script: str) -> tuple[int | None, str]:
        with Container("busybox", ["sh", "-c", script], security_opt=[f"seccomp={path}"]).start() as box:
            return box.wait(20), box.logs()

    try:
        code, text = under("grep -c 'Seccomp:.*2' /proc/self/status")
    except LabError as error:
        yield (False, "a container starts with it", error.message, "the default action has to be SCMP_ACT_ALLOW")
        return
    yield (
        code == 0,
        "a container starts with it, under a filter",
        "does it forbid too much?",
        "defaultAction: SCMP_ACT_ALLOW",
    )
    yield (
        under("mkdir /new")[0] != 0, "mkdir fails", "is `mkdir` in the names, with an action that is an error?",
        "{'names': ['mkdir', 'mkdirat'], 'action': 'SCMP_ACT_ERRNO'}: some processors have only mkdirat",
    )  # fmt: skip
    code, text = under("touch /file && ln -s a /link && rm /file && cd /tmp && echo fine")
    yield (
        code == 0 and "fine" in text,
        "other calls work",
        f"not yet: {text.strip()[:80]}",
        "name no other call than mkdir and mkdirat",
    )


@exercise
def lock_left_off(box: Container, answer: str) -> Requirements:
    """Find out from outside which of four locks a running container lacks."""
    process = proc.process(box.pid)
    off = {
        "no_new_privs": not process.no_new_privs,
        "seccomp": process.seccomp == 0,
        "capabilities": bool(process.cap_bnd & security.mask(["SYS_ADMIN"])),
        "pid_namespace": len(process.nspid) == len(proc.process("self").nspid),
    }
    yield answer in off, "your answer is one of the four", f"it is {answer!r}", "one of " + ", ".join(off)
    yield (
        off[answer], "that lock is off", "the kernel says that this one is on",
        "proc.process(box.pid) has no_new_privs, seccomp, cap_bnd and nspid: compare with proc.process('self')",
    )  # fmt: skip
