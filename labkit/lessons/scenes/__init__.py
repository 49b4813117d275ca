"""Scenes: escapes, each tried for real, and containers half built.

museum       each escape, lock off and lock on
exhibits     the escapes
attempts     what they are made of: bait, and the attacker's tools
unlocked     a container with some of its locks left off
inspection   what a process inside finds out about its locks
workbench    a half-built container to look into
netrooms     network namespaces joined by hand
delegation   a part of the cgroup tree in somebody's hands
"""
