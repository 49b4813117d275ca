"""Control groups: how much may it use, and what has it used. Versions 1 and 2 side by side.

Read in this order:

    limits        docker's words, and what the kernel is told
    quantities    32m, 0.5, 8:0 and what is refused
    hierarchies   which trees this machine has, and where we may make a group
    versions      the same limit, the same count, in version 1's words and in version 2's
    emptying      who is in a folder, their end, and its
    cgroupfs      a folder's life: made, and taken away
    cgroup        one group, over however many trees there are
    events        being told: the OOM kill, throttling, a full cgroup
    devices       which device files may be opened
    cgls          the trees, as systemd-cgls shows them
"""
