"""Images: what an image is, and how a layer from a stranger is read.

Read in this order:

    catalog     the images of this machine, by name
    busybox     the one that is made here, without a network
    layers      a layer is kept by what is in it, once
    digests     which sum says what
    whiteouts   how a layer says that a file is gone
    tarread     a tar, read as from a stranger
    rootdir     a folder that no path leads out of
    unpack      a layer's tar into a folder
    diff        a container's changes into a layer's tar
    commit      changes and a config make a new image
    layout      the folder that OCI tools exchange
    archives    save and load
    registry    pull and push
"""
