"""The `minglm` command. Exit code 0: done. 1: it ran and failed. 2: bad input, one line says what and what to do.
130: stopped by Ctrl-C with the state saved.

Each subcommand is a file `minglm/cli/<name>.py` that satisfies `minglm.runtime.command_line.Command`; it is found by
its name, so a new command needs no change here. Only the chosen command's file is imported, and torch only inside the
`main` of a command that computes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from minglm.errors import InputError
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
    """Run the command line; returns the exit code: 1 for a disk that fills, which ends a run and is no bad input."""
    try:
        return PROGRAM.execute(list(sys.argv[1:] if argv is None else argv))
    except InputError as err:
        print(f"{err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has gone
        sys.stderr.close()
        return 0
    except (OSError, MemoryError) as err:
        print(f"failed: {type(err).__name__}: {err}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
