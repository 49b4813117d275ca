"""Other ways to a root filesystem than the kernel's overlayfs, one module a way.

                    what a container starts with         what a first write costs
    overlay         three empty folders                  the whole file, copied up
    fuse-overlayfs  the same, by a process               the whole file, and each call twice
    vfs             a copy of every file                 nothing: it was paid at the start
    btrfs           a snapshot: one new tree root        the blocks written, no more

All have the interface of `roots.Driver`, and the same image and work give the same
files in each. What differs is where the bytes are, and when they are paid for.
"""
