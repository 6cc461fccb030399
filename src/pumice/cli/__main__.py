"""python -m pumice.cli: the command `pumice`."""

import sys

from pumice.cli import main

sys.exit(main())
