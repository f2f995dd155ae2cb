"""What the recorders share: a CSV of `data/reference` that keeps what is not measured now, or is summed up."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minglm import atomic, datafiles
from minglm.errors import Parser
from minglm.runtime.terminal import guard

Rows = list[dict[str, Any]]


def parser(module: str, doc: str | None) -> Parser:
    """The command line of a recorder: its name and the first line of its docstring."""
    return Parser(prog=f"python -m {module}", description=(doc or "").splitlines()[0])


def by_seed(
    args: argparse.Namespace,
    columns: Sequence[str],
    read: Callable[[Path], Rows],
    table: Callable[[Rows], str],
    measure: Callable[[int], Rows],
) -> None:
    """Measure each of `args.seeds`, writing `args.out` after each with the rows of the others; then print the table."""
    rows = read(args.out) if args.out.is_file() else []
    for seed in args.seeds:
        rows = [r for r in rows if r["seed"] != seed] + measure(seed)
        rows.sort(key=lambda r: r["seed"])
        atomic.write_csv(args.out, rows, columns)
    print(table(read(args.out)))


def run(
    p: Parser,
    argv: Sequence[str] | None,
    csv: str,
    read: Callable[[Path], Rows],
    table: Callable[[Rows], str],
    measure: Callable[[argparse.Namespace], None],
) -> int:
    """Measure and write, or print the summary of a CSV; the exit code, bad input told in one line.

    csv: the file of data/reference that is written where `--out` names no other.
    measure: what a command line that does not ask for a summary does; it writes `args.out`.
    """
    p.add_argument(
        "--out",
        type=Path,
        default=datafiles.data("reference", csv),
        help=f"CSV to write; what is not measured now is kept (default data/reference/{csv})",
    )
    p.add_argument("--summary", type=Path, metavar="CSV", help="print the summary of a CSV and stop")

    def act() -> int:
        args = p.parse_args(argv)
        if args.summary:
            print(table(read(args.summary)))
        else:
            measure(args)
        return 0

    return guard(act)
