"""`minglm exercise`: list the course's exercises, check an answer, ask for a hint."""

from __future__ import annotations

import argparse
from pathlib import Path

from minglm.runtime.arguments import COUNT
from minglm.runtime.terminal import json_text

TEXT = "the course's exercises: list them, check what you wrote, ask for a hint"
EXAMPLES = """minglm exercise list
minglm exercise check scale_03.step_time
minglm exercise check 02 --file my_answers.py
minglm exercise hint scale_03.step_time --step 2"""


def add(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    p = sub.add_parser("list", help="every exercise: its sheet and how hard it is, 1 to 5")
    p.add_argument("--json", action="store_true")
    p = sub.add_parser("check", help="run what you wrote and check it; exit code 1 where something is not right yet")
    p.add_argument("name", metavar="NAME", help="an exercise such as scale_03.step_time, or a whole sheet such as 02")
    p.add_argument(
        "--file",
        type=Path,
        help="notebook or .py file with your answers (default: the sheet in this copy of the course)",
    )
    p.add_argument("--json", action="store_true")
    p = sub.add_parser("hint", help="one of three hints")
    p.add_argument("name", metavar="NAME", help="an exercise such as scale_03.step_time")
    p.add_argument("--step", type=COUNT, default=1, help="1, 2 or 3, each says more (default 1)")


def main(args: argparse.Namespace) -> int:
    return globals()[f"_{args.action}"](args)


def _list(args: argparse.Namespace) -> int:
    from minglm.course.workshop import generator

    rows = [
        {"exercise": key, "sheet": source.stem, "difficulty": level}
        for source in generator.sources()
        for key, level in generator.difficulties(source).items()
    ]
    if args.json:
        print(json_text(rows, indent=1))
        return 0
    print(f"{'exercise':42} difficulty  sheet")
    for row in rows:
        print(f"{row['exercise']:42} {'*' * int(str(row['difficulty'])):10}  {row['sheet']}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from minglm.course.workshop import runner

    results = runner.check(args.name, args.file)
    if args.json:
        print(json_text([vars(r) for r in results], indent=1))
    else:
        for r in results:
            print(f"{r.key}: {'right' if r.right else 'not yet. ' + r.sentence}")
    return 0 if all(r.right for r in results) else 1


def _hint(args: argparse.Namespace) -> int:
    from minglm.course.workshop import checking
    from minglm.errors import InputError

    steps = checking.find(args.name).steps()
    if args.step > len(steps):
        raise InputError(f"--step {args.step}: there are {len(steps)} hints; use 1 to {len(steps)}")
    print(steps[args.step - 1])
    return 0
