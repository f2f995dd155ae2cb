"""The `minglm` command. Exit code 0: done. 1: it ran and failed. 2: bad input, one line says what and what to do.
130: stopped by Ctrl-C with the state saved.

Each subcommand is a file `minglm/cli/<name>.py` that satisfies `minglm.runtime.command_line.Command`; it is found by
its name, so a new command needs no change here. Only the chosen command's file is imported, and torch only inside the
`main` of a command that computes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from minglm.runtime.command_line import Program

PROGRAM = Program(
    name="minglm",
    package="minglm.cli",
    description="A small GLM-5, trained end to end on your machine.",
    epilog="examples:\n  minglm doctor\n  minglm demo\n  minglm train pretrain\n"
    '  minglm generate --checkpoint runs/demo/sft --chat --prompt "What is 2 + 3?"',
    order=("doctor", "train", "generate", "export-hf", "import-hf", "bench", "demo", "lab", "course"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code."""
    return PROGRAM.run(argv)


if __name__ == "__main__":
    sys.exit(main())
