"""`python -m labkit` is the `lab` command."""

import sys

from labkit.cli import main

sys.exit(main(sys.argv[1:]))
