"""The `minglm` command. Exit code 0: done. 1: it ran and failed. 2: bad input, one line says what and what to do.
130: stopped by Ctrl-C with the state saved.

Each subcommand is a file of this folder with what `Command` lists; this file finds them by name, so a new command needs
no change here. Only the chosen command's file is imported, and torch only inside the `main` of a command that computes.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from minglm import __version__
from minglm.errors import InputError, Parser, nearest

# The order of --help; commands that are not listed come after, by name.
ORDER = ("doctor", "train", "generate", "export-hf", "import-hf", "bench", "demo", "lab", "course")
EXAMPLES = """minglm doctor
minglm demo
minglm train pretrain
minglm generate --checkpoint runs/demo/sft --chat --prompt "What is 2 + 3?\""""


class Command(Protocol):
    """A subcommand: the module `minglm/cli/<name>.py`, with `_` where the command's name has `-`.

    Attributes:
        TEXT: what it does, one line that begins in lower case.
        EXAMPLES: command lines, one a line.
    """

    TEXT: str
    EXAMPLES: str

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def main(self, args: argparse.Namespace) -> int:
        """Run; returns the exit code. Rooms are imported in here, so that --help of all commands costs nothing."""


def names() -> list[str]:
    """Names of the subcommands that are there, in the order of --help."""
    modules = {path.stem for path in Path(__file__).parent.glob("*.py")} - {"__init__", "main"}
    found = {module.replace("_", "-") for module in modules}
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def load(name: str) -> Command:
    """The module of a subcommand."""
    return cast(Command, importlib.import_module(f"minglm.cli.{name.replace('-', '_')}"))


def build_parser(chosen: str | None = None) -> Parser:
    """The parser; with `chosen` only that subcommand is loaded, so that the others cost nothing."""
    parser = Parser(
        prog="minglm",
        description="A small GLM-5, trained end to end on your machine.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_epilog(EXAMPLES),
    )
    parser.add_argument("--version", action="version", version=f"minglm {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name in [chosen] if chosen else names():
        command = load(name)
        child = subparsers.add_parser(
            name,
            help=command.TEXT,
            description=command.TEXT[0].upper() + command.TEXT[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=_epilog(command.EXAMPLES),
        )
        command.add(child)
        child.set_defaults(main=command.main)
    return parser


def _epilog(examples: str) -> str:
    return "examples:\n" + "\n".join(f"  {line}" for line in examples.splitlines())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        chosen = argv[0] if argv and not argv[0].startswith("-") else None
        if chosen is not None and chosen not in names():
            raise InputError(
                f"minglm: no command {chosen[:40]!r}{nearest(chosen, names())}; commands: {', '.join(names())}"
            )
        parser = build_parser(chosen)
        args = parser.parse_args(argv)
        if not args.command:
            parser.print_help()
            return 2
        return args.main(args)
    except InputError as err:
        print(f"{err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{stop or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has gone
        sys.stderr.close()
        return 0
    except (OSError, MemoryError) as err:
        print(f"failed: {type(err).__name__}: {err}", file=sys.stderr)
        return 1
