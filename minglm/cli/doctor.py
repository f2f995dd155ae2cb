"""`minglm doctor`: is this machine ready, and what to do where it is not."""

from __future__ import annotations

import argparse
import sys

from minglm.runtime.terminal import json_text

TEXT = "check this machine: versions, memory, measured speed"
EXAMPLES = "minglm doctor\nminglm doctor --json"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="leave out the measured matmul rates")
    parser.add_argument("--json", action="store_true", help="for machines")


def main(args: argparse.Namespace) -> int:
    from minglm.runtime import doctor

    checks = doctor.examine(measure=not args.quick)
    answer = doctor.as_json(checks)
    print(json_text(answer, indent=1) if args.json else doctor.report(checks, sys.stdout.isatty()))
    return 0 if answer["ready"] else 1
