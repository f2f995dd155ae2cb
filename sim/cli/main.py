"""The `clustersim` command. Exit code 0: done. 1: it ran and the answer is a failure. 2: bad input, one line says what.

Each subcommand is a file `sim/cli/<name>.py` with TEXT (one line), EXAMPLES, `add(parser)` and `main(args) -> int`; this
file finds them by name, so a new command needs no change here.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from minglm import __version__
from minglm.errors import InputError, Parser, nearest

# The order of --help; commands that are not listed come after, by name.
ORDER = (
    "run",
    "plan",
    "compare",
    "sweep",
    "campaign",
    "rollouts",
    "serving",
    "validate",
    "trace",
    "claims",
    "dashboard",
    "report",
)


def commands() -> list[str]:
    """Names of the subcommands that are there."""
    found = {p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "main")}
    return [n for n in ORDER if n in found] + sorted(found - set(ORDER))


def build_parser(chosen: str | None = None) -> Parser:
    """The parser; with `chosen` only that subcommand is loaded, so that the others cost nothing."""
    parser = Parser(
        prog="clustersim",
        description="Simulate training large models on a cluster: time, memory, money, failures.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  clustersim run glm5_100k_910b\n  clustersim run glm5_100k_910b --json\n"
        "  clustersim validate\n  clustersim run --help\n\nexit codes: 0 done, 1 ran and failed, 2 bad input",
    )
    parser.add_argument("--version", action="version", version=f"clustersim {__version__}")
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name in [chosen] if chosen else commands():
        module = importlib.import_module(f"sim.cli.{name}")
        child = sub.add_parser(
            name,
            help=module.TEXT,
            description=module.TEXT[0].upper() + module.TEXT[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="examples:\n" + "\n".join("  " + line for line in module.EXAMPLES.splitlines()),
        )
        module.add(child)
        child.set_defaults(main=module.main)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        first = next((a for a in argv if not a.startswith("-")), None)
        known = commands()
        if first is not None and first not in known and argv[0] == first:
            raise InputError(
                f"clustersim: no command {first[:40]!r}{nearest(first, known)}; commands: {', '.join(known)}"
            )
        parser = build_parser(first if argv and argv[0] == first else None)
        args = parser.parse_args(argv)
        if not getattr(args, "command", None):
            parser.print_help()
            return 2 if argv else 0
        return int(args.main(args) or 0)
    except InputError as err:
        print(f"error: {' '.join(str(err).split())}", file=sys.stderr)
        return 2
    except OSError as err:
        if isinstance(err, BrokenPipeError):
            # the reader (head, less) went away: not our failure
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        where = f"{err.filename}: " if err.filename else ""
        print(
            f"error: {where}{err.strerror or err}; check the path, its permissions and the free space", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
