"""``python -m epruner``: the command line where its script is not on the path."""

import sys

from epruner.cli import main

sys.exit(main())
