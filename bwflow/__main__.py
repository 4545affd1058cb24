"""`python -m bwflow`: the command."""

import sys

from bwflow.cli import main

sys.exit(main())
