"""`python -m sim` is `clustersim`."""

import sys

from sim.cli.main import main

sys.exit(main())
