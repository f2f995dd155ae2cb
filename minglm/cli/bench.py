"""`minglm bench`: the measurements in tests/bench."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minglm.runtime.terminal import json_text

TEXT = "performance ratios, side by side in one run"
EXAMPLES = "minglm bench\nminglm bench --list\nminglm bench --only training\nminglm bench --summary"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="NAME", help="one bench")
    parser.add_argument("--list", action="store_true", help="names of the benches")
    parser.add_argument(
        "--summary", action="store_true", help="measure nothing: the table of what is asked, from the results in --out"
    )
    parser.add_argument("--out", type=Path, help="folder for the JSON files (default runs/bench)")
    parser.add_argument("--json", action="store_true")


def main(args: argparse.Namespace) -> int:
    from minglm.runtime import extras
    from minglm.tools import bench

    names = bench.discover()  # first: without a clone there is nothing to measure, whatever is installed
    if args.list:
        print(json_text(list(names)) if args.json else "\n".join(names))
        return 0
    if args.summary:
        lines, text = bench.summary(args.out, only=args.only)
        print(json_text(lines, indent=1) if args.json else text)
        return 1 if any(line["must_met"] is False for line in lines) else 0
    extras.require("train")
    rows = bench.run(args.only, args.out, show=not args.json)
    if args.json:
        print(json_text(rows, indent=1))
    elif args.only is None and (summary := bench.summary(args.out))[0]:
        print(summary[1])
    missed = [row["name"] for row in rows if row.get("met") is False]
    if missed:
        print(f"{len(missed)} of {len(rows)} below target: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0
