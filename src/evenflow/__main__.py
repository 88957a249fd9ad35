"""`python -m evenflow` is the `evenflow` command, which is how torchrun starts it."""

import sys

from evenflow.cli import main

sys.exit(main())
