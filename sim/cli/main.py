"""The `clustersim` command. Exit code 0: done. 1: it ran and the answer is a failure. 2: bad input, one line says what.

Each subcommand is a file `sim/cli/<name>.py` that satisfies `minglm.runtime.command_line.Command`; it is found by its
name, so a new command needs no change here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from minglm.runtime.command_line import Program

PROGRAM = Program(
    name="clustersim",
    package="sim.cli",
    description="Simulate training large models on a cluster: time, memory, money, failures.",
    epilog="examples:\n  clustersim run glm5_100k_910b\n  clustersim run glm5_100k_910b --json\n"
    "  clustersim validate\n  clustersim run --help\n\nexit codes: 0 done, 1 ran and failed, 2 bad input",
    order=(
        "run",
        "plan",
        "compare",
        "sweep",
        "campaign",
        "explain",
        "normal",
        "rollouts",
        "serving",
        "validate",
        "trace",
        "import-args",
        "claims",
        "dashboard",
        "report",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code."""
    return PROGRAM.run(argv)


if __name__ == "__main__":
    sys.exit(main())
