"""Build: from instructions to an image.

Read in this order:

    dockerfile    the instructions, read
    context       the files that they may copy
    builder       each instruction a layer
    layer_cache   an instruction that was carried out before
"""
