"""The OCI runtime: the same container, on Docker's and Podman's command.

Read in this order:

    commands     create, start, state, kill, delete: the words that Docker says
    lifecycle    what each of them does
    bundle       config.json: the runtime specification
    terms        the specification's words and the kernel's numbers
    resources    its limits and ours
    systemd      a cgroup that systemd makes for us
"""
