"""The application: the `lab` command, the doctor, JupyterLab, a room.

Read in this order:

    commands                       how a command says its words and options
    cli, cli_images, cli_host      the commands
    doctor, probing,
    kernel_probes, machine_probes  what this machine can do, and what is lost without
    workshop, server, room         JupyterLab for one, and for a room
"""
