"""The simulator against the RL loop of this machine: rates from one run, every mode predicted at other lengths and
another batch.

Rates come from `minglm.rl.profile` and from one run of each mode with the recipe `long_tail`: what an update takes, and
what a step costs beside. The other runs ask longer problems in larger batches; of them the simulator reads settings and
lengths, and its mean step is compared with theirs. The machine should have nothing else to do: both sides are times.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from minglm.tools.bench_summary import answer

NAME = "agreement"
STEP_TARGET, GAIN_TARGET = 10.0, 10.0  # % of a step; points of gain over synchronous
UPDATES = 60
OTHER = dict(difficulty=[2], prompts_per_batch=12, seed=1)
MODES = {
    "sync": {},
    "one_step_off": {},
    "async": {"max_staleness": 2.0},
    "april": {"over_sampling": 24},
    "glm5": {"weight_sync_interval": 2, "filter_staleness_above": 4},
}


def run() -> list[dict]:
    from minglm import datafiles
    from minglm.rl import config as recipes
    from minglm.rl import measure
    from minglm.rl.profile import profile
    from minglm.rl.run import rl
    from sim.validation.local_runs import agree, table_text

    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    start = measure.warm_started("long_tail", datafiles.runs("rl_measure"), show)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for mode, rules in MODES.items():
            usual = {"over_sampling": 16} if mode == "april" else rules
            for name, changes in (
                (f"rates_{mode}", usual),
                (mode, {**rules, **OTHER}),
            ):  # beside each other in time: machines drift
                runs.append(Path(folder) / name)
                rl(
                    recipes.load("long_tail", {"mode": mode, "updates": UPDATES, "eval_problems": 0, **changes}),
                    runs[-1],
                    start,
                    show=show,
                )
        (runs[0] / "profile.json").write_text(json.dumps(profile(start, recipes.load("long_tail"))), encoding="utf-8")
        report = agree(runs)
        print(table_text(report), file=sys.stderr)
    for r in [r for r in report["rows"] if r["kind"] == "holdout"]:
        error = 100 * r["error"]
        rows.append(
            dict(
                name=f"{r['mode']}: {r['measured']:.3f} s an update, simulated {r['predicted']:.3f} s; error",
                value=error,
                unit="%",
                ratio=abs(error),
                target=f"<= {STEP_TARGET:g}",
                met=abs(error) <= STEP_TARGET,
            )
            | answer(f"simulated against real RL, {r['mode']}: error of a step", abs(error))
        )
    for g in report["gains"]:
        error = 100 * g["error"]
        rows.append(
            dict(
                name=f"gain of {g['mode']}: {100 * g['measured']:+.0f}%, simulated {100 * g['predicted']:+.0f}%; error",
                value=error,
                unit="points",
                ratio=abs(error),
                target=f"<= {GAIN_TARGET:g}",
                met=abs(error) <= GAIN_TARGET,
            )
        )
    worst = max(abs(100 * g["error"]) for g in report["gains"])
    rows[-1] |= answer("simulated against real RL, worst error of a gain", worst)
    return rows
