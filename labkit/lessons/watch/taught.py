"""Two runtimes' syscalls side by side: each by the chapter that taught it, the rest by name.

runc and labkit-runtime make the same container of the same bundle, so what they ask
of the kernel should be the same, up to taste. `tracing` writes down what each asks;
here it is sorted into three heaps:

    TAUGHT      makes a container: the chapter where the call is at home
    PLUMBING    what every program does: memory, files, threads, waiting
    INSTEAD     runc makes it and labkit doesn't: what labkit does in its place

A call of runc's that is in none of them is `unexplained`, and a test fails for it.
"""

from collections import Counter

from labkit.lessons.watch import tracing

TAUGHT = {
    **dict.fromkeys(("clone", "clone3", "unshare", "setns", "sethostname", "setdomainname"), "01"),
    **dict.fromkeys(("setuid", "setgid", "setresuid", "setresgid", "setgroups"), "02"),
    **dict.fromkeys(
        (
            "mount",
            "umount2",
            "pivot_root",
            "chroot",
            "mknod",
            "mknodat",
            "symlinkat",
            "openat2",
            "open_tree",
            "move_mount",
            "mount_setattr",
            "fsopen",
            "fsconfig",
            "fsmount",
            "fchownat",
        ),
        "03",
    ),
    **dict.fromkeys(("mkdir", "mkdirat", "rmdir"), "04"),  # below /sys/fs/cgroup: nothing else is counted
    **dict.fromkeys(("bind",), "10"),
    **dict.fromkeys(
        ("prctl", "capset", "capget", "seccomp", "keyctl", "setsid", "close_range", "memfd_create", "bpf"), "11"
    ),
    **dict.fromkeys(("execve", "execveat", "wait4", "waitid"), "12"),
    **dict.fromkeys(("prlimit64", "fchown"), "13"),
}
TITLES = {
    "01": "01 What a process may see",
    "02": "02 PID 1",
    "03": "03 A root of its own",
    "04": "04 CPU",
    "10": "10 Network",
    "11": "11 Locks",
    "12": "12 Your own container",
    "13": "13 Docker runs yours",
}

PLUMBING = set(
    # memory
    "brk mmap munmap mprotect mremap madvise mincore "
    # files
    "open openat close read write pread64 pwrite64 readv writev lseek stat fstat lstat newfstatat statx statfs fstatfs "
    "getdents64 readlink readlinkat access faccessat faccessat2 fcntl dup dup2 dup3 pipe pipe2 ioctl unlink unlinkat "
    "rename renameat renameat2 symlink mkdir mkdirat rmdir chmod fchmod fchmodat fchmodat2 chdir fchdir getcwd umask "
    "flock fsync "
    "ftruncate fadvise64 sendfile copy_file_range splice getxattr lgetxattr utimensat "
    # threads, signals, time
    "futex nanosleep clock_nanosleep clock_gettime sched_yield sched_getaffinity set_robust_list set_tid_address rseq "
    "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack tgkill kill gettid getpid getppid arch_prctl restart_syscall "
    "getrlimit membarrier timer_create timer_settime timer_delete setitimer getitimer pidfd_open pidfd_send_signal "
    # waiting, talking
    "epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd2 select pselect6 poll ppoll socket socketpair connect "
    "getsockname getpeername setsockopt getsockopt sendto recvfrom sendmsg recvmsg shutdown "
    # who and where
    "getuid geteuid getgid getegid getresuid getresgid getgroups uname sysinfo getrandom prlimit "
    "exit exit_group".split()
)

INSTEAD = {
    "clone": "clone3, its successor: the flags and the cgroup to be born in, in one struct",
    "mount": "open_tree, fsopen, fsmount and move_mount: by fd, and never by a path that an image could bend",
    "setuid": "setresuid: all three user ids at once",
    "setgid": "setresgid: all three group ids at once",
    "capget": "reads its capabilities in /proc/self/status, and by prctl",
    "seccomp": "one call if the bundle has a profile; runc also asks which actions the kernel knows",
    "mknod": "binds the host's six harmless devices",
    "mknodat": "binds the host's six harmless devices",
    "fchownat": "binds devices as they are, so there is no owner to set",
    "fchown": "the same, and only where the user of the container is another one",
    "bind": "switches lo on by ioctl; runc talks to the kernel by netlink for that",
    "bpf": "one program where the cgroup is v2's",
    "setns": "is born in the new namespaces, or joins them by the same call",
    "symlinkat": "the same links in /dev",
    "chroot": "pivot_root only",
    "setdomainname": "the same, if the bundle names one",
    "wait4": "waitid on a pidfd: a number can be given to another process, a pidfd can't",
    "execveat": "the same",
    "close_range": "the same",
    "memfd_create": "the same: no program of the host is left to find",
    "unshare": "clone3 with all flags, and unshare for the cgroup namespace",
    "prlimit64": "the same",
    "setrlimit": "opens few files; runc lifts its own limits, on v2 for the memory of that bpf program too",
}


def all_calls(command):
    """Return every call that a command and its children made, that succeeded, as tracing.Calls."""
    return [call for call in tracing.trace(command, ["all"]) if not call.failed]


def of_a_runtime(calls, program="true"):
    """Return the calls, of all its processes, that made the container: from its first cgroup folder to its exec.

    Threads of the runtime itself are not processes, and a question to the kernel makes nothing: both are left out.
    """
    first = next(place for place, call in enumerate(calls) if _is_folder(call) or "CLONE_NEW" in call.arguments)
    last = max(place for place, call in enumerate(calls) if call.name == "execve" and f'["{program}"' in call.arguments)
    return [call for call in calls[first : last + 1] if call.kind and _makes(call)]


def _is_folder(call):
    return call.kind == "cgroup" and '"/sys/fs/cgroup/' in call.arguments


def _makes(call):
    if call.kind == "cgroup":
        return _is_folder(call)
    if call.name in ("clone", "clone3", "unshare"):
        return "CLONE_NEW" in call.arguments
    if call.name == "seccomp":
        return "SECCOMP_SET_MODE_FILTER" in call.arguments
    return True


def counts(calls):
    """Return {name: how often} of the calls that are TAUGHT.

    Folders count only below /sys/fs/cgroup, clones only with a namespace.
    """
    kept = Counter()
    for call in calls:
        if call.name not in TAUGHT or call.name in ("wait4", "waitid"):
            continue
        if call.name in ("mkdir", "mkdirat", "rmdir") and '"/sys/fs/cgroup/' not in call.arguments:
            continue
        if call.name in ("clone", "clone3") and "CLONE_THREAD" in call.arguments:
            continue
        kept[{"mkdirat": "mkdir", "mknodat": "mknod"}.get(call.name, call.name)] += 1
    return kept


def lacking(theirs, ours):
    """Return {call: what labkit does instead} for the calls that `theirs` makes and `ours` doesn't, plumbing aside."""
    names = {call.name for call in theirs} - {call.name for call in ours} - PLUMBING
    return {name: INSTEAD.get(name, "unexplained") for name in sorted(names)}


def unexplained(theirs, ours):
    """Return the calls that `theirs` makes, `ours` doesn't, and nobody has said why."""
    return [name for name, why in lacking(theirs, ours).items() if why == "unexplained"]
