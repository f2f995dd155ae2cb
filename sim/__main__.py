"""The `clustersim` command, and `python -m sim`."""

import sys

from minglm.runtime.interrupt import end_at_once_while_importing

end_at_once_while_importing()

from sim.cli.main import main  # noqa: E402  (what takes time comes after)

if __name__ == "__main__":
    sys.exit(main())
