"""`python -m sim` is `clustersim`."""
import sys

from sim.cli import main

sys.exit(main())
