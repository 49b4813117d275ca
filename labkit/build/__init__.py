"""Build: from instructions to an image.

Read in this order:

    words         quotes, backslashes, variables
    dockerfile    the instructions, read
    plan          which stages there are, and which are needed
    ignore        .dockerignore
    modes         --chmod
    copying       COPY and ADD
    run_mounts    RUN --mount
    context       what a build may read
    builder       each instruction a layer
    layer_cache   an instruction that was carried out before
"""
