"""minglm: a small GLM-5, built to be read. Importing this package never imports torch."""

import os

__version__ = "0.1.0"

# Threads of torch wait for each other by spinning. Beside another busy program one of them has no core to spin on, and the
# default of 300,000 turns makes every small operation wait for a time slice (`make bench ONLY=beside`). It must be set
# before torch is loaded; who has chosen a way of waiting keeps it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
