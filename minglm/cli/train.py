"""`minglm train`: one stage from a recipe, on this process or on those that torchrun started."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from minglm.runtime.arguments import COUNT
from minglm.runtime.terminal import json_text

TEXT = "train one stage from a recipe; the same command resumes it"
EXAMPLES = """minglm train pretrain
minglm train sparse --init-from runs/dsa_warmup
minglm train pretrain --run runs/mine --set lr=0.01 --set steps=200
minglm train ci_pretrain --overwrite --json
torchrun --nproc-per-node 2 -m -- minglm train ci_pretrain --run runs/two --dp 2"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="name in data/recipes, or a .yaml file")
    parser.add_argument("--run", help="folder of the run (default runs/RECIPE)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe; repeatable"
    )
    parser.add_argument("--init-from", metavar="RUN", help="run or checkpoint whose weights the stage starts from")
    parser.add_argument(
        "--overwrite", action="store_true", help="start over; the old run is moved to .trash-TIME-NAME beside it"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "npu", "mps"))
    for axis, text in (("dp", "rows"), ("ep", "experts"), ("tp", "heads"), ("cp", "the sequence")):
        parser.add_argument(f"--{axis}", type=COUNT, metavar="N", help=f"with torchrun: split {text} over N processes")
    parser.add_argument("--print-config", action="store_true", help="print the recipe, every key explained, and stop")
    parser.add_argument(
        "--json", action="store_true", help="print the last metrics (or the recipe) as JSON, no progress bar"
    )


def main(args: argparse.Namespace) -> int:
    from minglm import datafiles
    from minglm.runtime import extras, run_folder
    from minglm.settings import parse_override
    from minglm.training import parallel_dims, recipe

    settings = recipe.load(args.recipe, dict(parse_override(text) for text in args.set))
    if args.print_config:
        print(json_text(settings.to_dict()) + "\n" if args.json else recipe.render(settings), end="")
        return 0
    extras.require("train")
    run_dir = Path(args.run) if args.run else datafiles.runs(Path(args.recipe).stem)
    if os.environ.get("RANK", "0") == "0":
        run_folder.check(run_dir, "train", "recipe.yaml")
    parallel = {axis: getattr(args, axis) for axis in ("dp", "ep", "tp", "cp")}
    if parallel_dims.launched() or any(parallel.values()):
        from minglm.distributed.run import train as train_sharded

        row = train_sharded(settings, run_dir, args.init_from, not args.overwrite, not args.json, args.device, parallel)
    else:
        from minglm.training.loop import train

        row = train(
            settings,
            run_dir,
            args.init_from,
            resume=not args.overwrite,
            progress=not args.json,
            device=args.device,
        )
    if args.json:
        print(json_text(row))
    else:
        loss = row["val_loss"]
        validation = f", {row['validation']}" if loss is None else f", validation loss {loss:.3f} ({row['validation']})"
        print(f"{run_dir}: {row['step']} steps, {row['tokens']:,} tokens, loss {row['loss']:.3f}{validation}")
    return 0
