"""Storage: how layers become a root, and what outlives a container.

Read in this order:

    roots       a root of layers below and a thin folder above: overlay, and the other drivers' door
    drivers/    vfs, btrfs, fuse-overlayfs: the same root by other means
    volumes     folders that are nobody's layer
    garbage     what nothing needs any more
"""
