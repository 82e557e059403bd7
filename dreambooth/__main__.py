"""`python -m dreambooth`: the command line."""

import sys

from dreambooth.cli import main

sys.exit(main())
