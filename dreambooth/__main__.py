"""`python -m dreambooth`: the command line."""

import gc
import sys

from dreambooth.commands.cli import main

status = main()
# At exit Python searches everything that is left for cycles: 0.8 s with the libraries loaded, and pointless.
gc.freeze()
sys.exit(status)
