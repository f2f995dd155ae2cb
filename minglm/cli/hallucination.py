"""`minglm hallucination`: teach a small model to say that it does not know, and measure it in several ways."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError
from minglm.runtime import run_lock
from minglm.runtime.arguments import COUNT
from minglm.runtime.terminal import json_text

TEXT = "teach a model to say that it does not know, measure before and after"
EXAMPLES = """minglm hallucination
minglm hallucination --seeds 1 --run runs/mine
minglm hallucination --smoke --json"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=COUNT, default=3, help="so many seeds, from 0 (default 3)")
    parser.add_argument(
        "--run",
        metavar="FOLDER",
        help="where to write figures.csv, training.csv, summary.json (default runs/hallucination)",
    )
    parser.add_argument("--objective", default="grpo", help="an objective of minglm/rl/objectives.py (default grpo)")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny world for seconds: shows that it runs, proves nothing"
    )
    parser.add_argument("--json", action="store_true", help="print summary.json, progress on stderr")


def main(args: argparse.Namespace) -> int:
    from minglm.runtime import extras

    extras.require("train")
    import torch

    from minglm.rl import abstention, abstention_summary
    from minglm.rl.objectives import objective

    objective(args.objective)  # a wrong name is told before minutes of training
    torch.set_num_threads(1)  # a model this small is slower on two
    settings = replace(abstention.Settings(), objective=args.objective)
    settings = settings.smoke() if args.smoke else settings
    folder = Path(args.run or datafiles.runs("smoke-hallucination" if args.smoke else "hallucination"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise InputError(f"--run {folder}: cannot be written ({err.strerror}); give another folder") from None
    with run_lock.hold(folder, "minglm hallucination"):
        out = abstention.run(range(args.seeds), folder, settings, lambda text: print(text, file=sys.stderr, flush=True))
    print(json_text(out) if args.json else abstention_summary.render(out) + f"\n\nwritten to {folder}")
    return 0 if out["reached"] or args.smoke else 1
