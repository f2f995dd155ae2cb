"""`minglm course DIR`: the notebooks and exercises in a folder of the learner's own."""

from __future__ import annotations

import argparse

TEXT = "copy the notebooks and exercises into a folder of yours; again, it brings the copy up to date"
EXAMPLES = "minglm course my-course"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DIR", help="a new or empty folder, or an earlier copy: what you changed there stays"
    )


def main(args: argparse.Namespace) -> int:
    from importlib.util import find_spec
    from pathlib import Path

    from minglm import datafiles
    from minglm.course.workshop import course

    folder = Path(args.folder)
    done = course.copy(folder)
    print(
        f"{folder}: {done.written} files written, {done.same} there already"
        + (f", {len(done.kept)} kept as you changed them" if done.kept else "")
    )
    lacking = [extra for extra, package in (("train", "torch"), ("lab", "jupyterlab")) if find_spec(package) is None]
    if lacking:
        print(f"next: {datafiles.install_hint(','.join(lacking))}")
    print(f"{'then' if lacking else 'next'}: cd {folder}, and minglm lab opens learn/00_start_here.ipynb")
    return 0
