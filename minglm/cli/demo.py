"""`minglm demo`: corpus to chat model in minutes."""

from __future__ import annotations

import argparse
from pathlib import Path

TEXT = "the whole way in about ten minutes: data, training, needle test; resumes, or says that it is done"
EXAMPLES = "minglm demo\nminglm demo --overwrite\nminglm demo --size nano --run runs/tiny"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", help="folder for everything it makes (default runs/demo)")
    parser.add_argument("--size", default="mini", help="mini (minutes) or nano (seconds, learns nothing much)")
    parser.add_argument(
        "--overwrite", action="store_true", help="start over; the old folder is moved to .trash-TIME-NAME beside it"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def main(args: argparse.Namespace) -> int:
    from minglm import datafiles
    from minglm.runtime import extras, run_folder

    extras.require("train")
    run_dir = Path(args.run) if args.run else datafiles.runs("demo")
    run_folder.check(run_dir, "demo")
    from minglm.tools import demo

    print(demo.report(run_dir, demo.run_demo(run_dir, args.size, args.overwrite, progress=not args.quiet)))
    return 0
