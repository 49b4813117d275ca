"""`python -m labkit` is the `lab` command."""

import atexit
import gc
import sys

# A command imports, does its work and ends. To look for garbage after every 700 objects, and
# through all that is there at its end, would take a tenth of its time.
gc.set_threshold(100_000)
atexit.register(gc.freeze)

from labkit.app.cli import main  # noqa: E402 - what is imported is what it is about

sys.exit(main(sys.argv[1:]))
