"""The frame of a console script: one file a subcommand, run under `minglm.runtime.terminal.guard`.

A program is a package whose modules are its subcommands. Each satisfies `Command`; a module whose name begins with `_`
is a helper. A new subcommand is a new file, and nothing else changes.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from minglm import __version__
from minglm.errors import InputError, Parser, nearest
from minglm.runtime.terminal import check_text, guard


def seed(text: str) -> int:
    """The type of a --seed: what every random generator here takes.

    Raises:
        argparse.ArgumentTypeError: anything else, which argparse makes one line of.
    """
    if not text.isdecimal() or len(text) > 20 or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: must be a whole number from 0 to 2^64 - 1; for example 0")
    return int(text)


class Command(Protocol):
    """What the module of a subcommand holds."""

    TEXT: str  # one line for the list of commands
    EXAMPLES: str  # one a line

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def main(self, args: argparse.Namespace) -> int:
        """Do it; the exit code."""


@dataclass(frozen=True)
class Program:
    """A console script.

    package: the package whose modules are the subcommands.
    order: of the subcommands in --help; those that are not listed follow by name.
    """

    name: str
    package: str
    description: str
    epilog: str
    order: tuple[str, ...] = ()

    def commands(self) -> list[str]:
        """Names of the subcommands that are there: `export_hf.py` is `export-hf`."""
        modules = pkgutil.iter_modules(importlib.import_module(self.package).__path__)
        names = {m.name.replace("_", "-") for m in modules if m.name != "main" and not m.name.startswith("_")}
        return [n for n in self.order if n in names] + sorted(names.difference(self.order))

    def command(self, name: str) -> Command:
        """The module of a subcommand."""
        return cast(Command, importlib.import_module(f"{self.package}.{name.replace('-', '_')}"))

    def parser(self, only: str | None = None, list_alone: bool = False) -> Parser:
        """The parser; with `only` no other subcommand is loaded, so that the others cost nothing. With `list_alone` the
        subcommands are named without their arguments, which is all that the program's own --help shows."""
        parser = Parser(
            prog=self.name,
            description=self.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=self.epilog,
        )
        parser.add_argument("--version", action="version", version=f"{self.name} {__version__}")
        subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
        for name in [only] if only else self.commands():
            command = self.command(name)
            child = subparsers.add_parser(
                name,
                help=command.TEXT,
                description=command.TEXT[0].upper() + command.TEXT[1:] + ".",
                formatter_class=argparse.RawDescriptionHelpFormatter,
                epilog="examples:\n" + "\n".join("  " + line for line in command.EXAMPLES.splitlines()),
            )
            if not list_alone:
                command.add(child)
            child.set_defaults(main=command.main)
        return parser

    def run(self, argv: Sequence[str] | None = None) -> int:
        """Run a command line (the process's own without `argv`); returns the exit code."""
        return guard(lambda: self.execute(list(sys.argv[1:] if argv is None else argv)))

    def execute(self, argv: list[str]) -> int:
        """Run a command line; raises InputError for bad input, and whatever the command raises."""
        check_text(argv)
        first = next((a for a in argv if not a.startswith("-")), None)
        leads = first is not None and argv[0] == first
        known = self.commands()
        if leads and first is not None and first not in known:
            raise InputError(
                f"{self.name}: no command {first[:40]!r}{nearest(first, known)}; commands: {', '.join(known)}"
            )
        list_alone = not argv or argv[0] in ("-h", "--help", "--version")
        parser = self.parser(first if leads else None, list_alone)
        args = parser.parse_args(argv)
        if args.command is None:
            parser.print_help()
            return 2 if argv else 0
        return int(args.main(args) or 0)
