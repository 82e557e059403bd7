"""`python -m dreambooth`: the command line."""

import gc
import sys

from dreambooth.commands.cli import main

status = main()
# As it ends, Python looks for cycles in all that is left: 0.8 s with the libraries loaded, and nothing is gained by it.
gc.freeze()
sys.exit(status)
