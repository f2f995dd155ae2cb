"""`minglm rl`: reinforcement learning from verifiable rewards, synchronous or asynchronous."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError
from minglm.runtime.arguments import COUNT, SEED, number, whole
from minglm.runtime.terminal import json_text

TEXT = "reinforcement learning from verifiable rewards; five ways to overlap rollout and training"
EXAMPLES = """minglm rl --mode april --over-sampling 64
minglm rl long_tail --mode april --over-sampling 16
minglm rl --mode async --max-staleness 2 --objective decoupled_ppo --run runs/rl_async
minglm rl --task list --mode sync --updates 30 --init-from runs/my_model --json
minglm rl --print-config"""
# Flags that are keys of the settings; everything else goes through --set.
FLAGS: dict[str, Callable] = {
    "mode": str,
    "task": str,
    "objective": str,
    "updates": COUNT,
    "max_staleness": number(minimum=0),
    "over_sampling": COUNT,
    "seed": SEED,
    "weight_sync_interval": COUNT,
    "filter_staleness_above": whole(0),
    "difficulty": str,
}


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument("recipe", nargs="?", default="sum", help="name in data/recipes/rl, or a .yaml file (default sum)")
    p.add_argument("--run", help="folder of the run (default runs/rl_RECIPE_MODE)")
    p.add_argument(
        "--init-from",
        metavar="RUN",
        help="run or checkpoint with the model to start from (default: the recipe's warm start, made once)",
    )
    helps = {
        "mode": "sync, one_step_off, async, april or glm5",
        "max_staleness": "async: batches started ahead of the one in training",
        "over_sampling": "april: groups submitted at a time",
        "weight_sync_interval": "glm5: updates between weight syncs",
        "filter_staleness_above": "glm5: drop groups whose oldest token is more versions behind",
        "difficulty": "one or more, as 1 or 1,2,4",
    }
    for name, kind in FLAGS.items():
        p.add_argument("--" + name.replace("_", "-"), type=kind, default=None, help=helps.get(name))
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change any key of the settings; repeatable"
    )
    p.add_argument(
        "--overwrite", action="store_true", help="start over; the old run is moved to .trash-TIME-NAME beside it"
    )
    p.add_argument(
        "--engine",
        default="local",
        help="local: processes here; inline: one process, repeatable; ray: actors, see --address (default local)",
    )
    p.add_argument("--address", help="of a Ray cluster; default a private one on this machine")
    p.add_argument("--print-config", action="store_true", help="print all settings, explained, and stop")
    p.add_argument("--json", action="store_true", help="print the summary (or the settings) as JSON, and nothing else")


def main(args: argparse.Namespace) -> int:
    from minglm.rl import config as recipes
    from minglm.runtime import extras, run_folder
    from minglm.settings import parse_override

    values = recipes.read(args.recipe)
    warm = values.pop("warm_start", None)
    values |= {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    if isinstance(values.get("difficulty"), str):
        values["difficulty"] = _numbers(values["difficulty"])
    values |= dict(parse_override(text) for text in args.set)
    chosen = recipes.Settings.from_dict(values)
    if args.print_config:
        print(json_text(chosen.to_dict()) + "\n" if args.json else chosen.explained(), end="")
        return 0
    extras.require("train")
    run_dir = Path(args.run) if args.run else datafiles.runs(f"rl_{Path(args.recipe).stem}_{chosen.mode}")
    run_folder.check(run_dir, "rl", "rl.yaml")
    from minglm.rl import task_registry
    from minglm.rl.run import rl
    from minglm.rl.warm_start import for_recipe
    from minglm.training import checkpoint

    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    task_registry.get(chosen.task, chosen.tail)
    if args.overwrite:  # before the warm start, which takes minutes and may be for nothing
        run_folder.set_aside(run_dir, "rl")
    init_from = args.init_from
    if init_from is None and not checkpoint.find(run_dir):
        init_from = for_recipe(warm, chosen, run_dir.parent, show)
    summary = rl(chosen, run_dir, init_from, engine=args.engine, address=args.address, show=show)
    print(json_text(summary) if args.json else _text(summary))
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--difficulty {text!r}: must be whole numbers, as 1 or 1,2,4") from None


def _text(s: dict) -> str:
    def percent(value):
        return "not measured" if value is None else f"{value:.1%}"

    lines = [
        f"{s['run_dir']}: {s['mode']}, {s['updates']} updates, {s['trajectories']:,} trajectories in "
        f"{s['seconds']:.0f} s "
        f"({s['trajectories_per_s'] or 0:.1f}/s, {s['tokens_per_s'] or 0:.0f} tokens/s)",
        f"held-out pass@1 {percent(s['pass_at_1_before'])} before, {percent(s['pass_at_1'])} after",
        f"wasted {s['wasted_tokens']:,} of {s['generated_tokens']:,} tokens; groups filtered: "
        f"{s['filtered_zero_variance']} of zero variance, {s['filtered_stale']} stale, "
        f"{s['reward_errors']} failed rewards; {s['aborted_groups']} groups aborted",
    ]
    if s["restarts"] or s["undone"] or s["recovered"] or s["weight_sync_refusals"]:
        lines.append(
            f"{s['restarts']} workers restarted, {s['requeued']} requests again, {s['lost_tokens']:,} tokens lost; "
            f"{s['recovered']} samples "
            f"recovered, {s['undone']} undone; {s['weight_sync_refusals']} weight syncs refused"
        )
    return "\n".join(lines + ([s["solved"]] if s["solved"] else []))
