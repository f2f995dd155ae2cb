"""The demo's reinforcement learning: a small model with a long tail of answers, synchronous and then with APRIL.

    warm_start        the recipe's model, taught with worked solutions until it half knows its task
    rl_sync, rl_april the same updates twice; each folder is an ordinary run of `minglm rl`, and resumes as one

`clustersim report` predicts the times of both from the rates of the first and shows them beside what was measured.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minglm.rl import config as recipes
from minglm.rl.run import rl
from minglm.rl.warm_start import WarmStart, warm_start
from minglm.runtime import run_folder

RECIPE = "long_tail"
OVER_SAMPLING = 2  # APRIL starts this many times the groups of a batch


@dataclass(frozen=True)
class RoundSize:
    """How much a round does: updates of each mode, and keys of the recipe and of its warm start that differ."""

    updates: int
    changes: dict[str, Any]
    warm_start: dict[str, Any]


SIZES = {
    "mini": RoundSize(updates=16, changes={}, warm_start=dict(steps=40)),
    "nano": RoundSize(
        updates=5,
        changes=dict(max_new_tokens=40, prompts_per_batch=4, samples_per_prompt=4),
        warm_start=dict(
            steps=2,
            batch_size=2,
            seq_len=64,
            longest=40,
            model=dict(
                hidden_size=32,
                num_hidden_layers=2,
                n_routed_experts=4,
                moe_intermediate_size=16,
                max_position_embeddings=512,
            ),
        ),
    ),
}


def rounds(run_dir: Path, size: str = "mini", progress: bool = True) -> dict[str, dict]:
    """Both runs in `run_dir`, or what is missing of them. Returns {mode: summary of the run}."""
    plan = SIZES[size]
    values = recipes.read(RECIPE) | plan.changes
    warm = {
        **values.pop("warm_start"),
        **plan.warm_start,
        "task": values["task"],
        "difficulty": values["difficulty"],
        "tail": values.get("tail"),
    }
    show = (lambda line: print(line, file=sys.stderr, flush=True)) if progress else lambda line: None
    start = warm_start(WarmStart(**warm), run_dir / "warm_start", show, threads=2)
    modes: dict[str, dict[str, Any]] = {
        "sync": {},
        "april": {"over_sampling": round(OVER_SAMPLING * values["prompts_per_batch"])},
    }
    summaries = {}
    for mode, rules in modes.items():
        folder = run_dir / f"rl_{mode}"
        if (done := run_folder.result(folder / "summary.json")) is not None:
            summaries[mode] = done
            continue
        settings = recipes.Settings.from_dict(
            {**values, **rules, "mode": mode, "updates": plan.updates, "eval_problems": 0, "seed": 1}
        )
        summaries[mode] = rl(settings, folder, start, show=show)
    return summaries
