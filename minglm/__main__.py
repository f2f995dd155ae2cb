"""`python -m minglm`: the same as the `minglm` command."""

import sys

from minglm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
