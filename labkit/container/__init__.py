"""A container: from what is asked for to a running process and its end.

Read in this order:

    spec              what a container shall be, before anything is made
    life              created, running, exited, gone
    records           what other processes read about it
    standard_mounts   /proc, /dev, /sys and the masks: what every container has
    launch            the way from clone to exec, in its order: a list of steps
    steps             what each of the steps is for
    entry             into its cgroup: v2's by birth, v1's by its own hand
    spawner           who clones: a small process, since a notebook is a large one
    channel           what child and parent say meanwhile
    joining           a further command in it: setns
    networking        on a bridge, or without a network
    attach            a terminal between it and you
    output            what it printed, kept
    rootless          without root: what is left
"""
