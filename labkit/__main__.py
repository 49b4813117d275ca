"""`python -m labkit` is the `lab` command."""

import atexit
import gc
import os
import sys

# A command imports, does its work and ends. To look for garbage after every 700 objects, and
# through all that is there at its end, would take a tenth of its time.
gc.set_threshold(100_000)
atexit.register(gc.freeze)

from labkit.app.cli import main  # noqa: E402 - what is imported is what it is about

status = main(sys.argv[1:])
if sys.flags.no_site:  # labkit's modules alone: nothing in them waits to be told of the end
    os._exit(status)
sys.exit(status)
