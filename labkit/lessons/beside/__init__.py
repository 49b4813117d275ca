"""Beside labkit: the others, really started.

engine          a Docker engine of one's own, for a comparison
neighbours      LXC and systemd-nspawn on the same files
vm              a virtual machine, to be timed against a container
ordinary_user   a process without root
"""
