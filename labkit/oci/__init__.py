"""The OCI runtime: the same container, on Docker's and Podman's command.

Read in this order:

    commands     create, start, state, kill, delete: the words that Docker says
    lifecycle    what each of them does
    bundle       config.json: the runtime specification
    shape        which kind of value stands where in it
    moments      the steps that only a runtime is asked for, and where they belong
    hostmounts   a container without a mount namespace
    gate         created but not started: a finished container that waits
    hooks        programs of somebody else, at fixed moments
    links        network links that become the container's
    handed       what goes to such a program through its socket
    settings     rlimits, sysctls, umask and the like
    priorities   who goes first for a processor, a disk, memory nodes
    terms        the specification's words and the kernel's numbers
    resources    its limits and ours
    usage        what it has used of them
    systemd      a cgroup that systemd makes for us
"""

VERSION = "1.0.2"  # of the specification, the newest that all of this is from
