"""Isolation: what a process sees, and what it may do.

Read in this order:

    namespaces      eight kinds, each a word and a flag
    idmap           whose numbers are whose: user namespaces
    mounts          a plan of mounts, described and carried out
    mount_options   the words of fstab and what flags they are
    inroot          a path of an image, opened so that it can't lead out
    users           a name in the image's /etc/passwd and its numbers
    security        capabilities, and what gives them up
    seccomp         which syscalls the kernel still takes
    sysctls         the kernel's knobs that a namespace has for itself
    last_exec       the last program before the container's own
"""
