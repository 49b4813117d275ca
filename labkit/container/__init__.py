"""A container: from what is asked for to a running process and its end.

Read in this order:

    spec              what a container shall be, before anything is made
    life              created, running, exited, gone
    records           what other processes read about it
    standard_mounts   /proc, /dev, /sys and the masks: what every container has
    spawner           who clones: a small process, since a notebook is a large one
    launch            from clone to exec, step by step
    channel           what child and parent say meanwhile
    joining           a further command in it: setns
    attach            a terminal between it and you
    output            what it printed, kept
    rootless          without root: what is left
    gate, hooks       created but not started, and who is told: for the OCI runtime
"""
