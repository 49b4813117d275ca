"""Control groups: how much may it use, and what has it used. Versions 1 and 2 side by side.

Read in this order:

    limits        docker's words, and what the kernel is told
    quantities    32m, 0.5, 8:0 and what is refused
    hierarchies   which trees this machine has, and where we may make a group
    cgroupfs      a folder, its files, and the processes in it
    versions      the same limit in version 1's words and in version 2's
    cgroup        one group, over however many trees there are
    stats         what has been used: time, memory, OOM kills
    events        being told: the OOM kill, pressure
    devices       which device files may be opened
    cgls          the trees, as systemd-cgls shows them
"""
