"""The RL figures that this project states, each by a command that remakes it.

    python -m minglm.rl.measure speed      sync, april and async on the long-tailed recipe, interleaved: trajectories/s, pass@1
    python -m minglm.rl.measure accuracy   the same modes on the recipe `sum`, which learns: final held-out pass@1
    python -m minglm.rl.measure lift       held-out pass@1 before and after the recipe `sum`, and the seconds it took
    python -m minglm.rl.measure staleness  naive against corrected use of stale data over η, inline, so that every batch is
                                           exactly η versions old

Rows go to data/reference/rl_NAME.csv with --record, else to runs/rl_measure. A run that is there already is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError
from minglm.rl import config as recipes

T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # two-sided 95% t quantiles by number of seeds
SPEED_MODES = {"sync": {}, "april": {"over_sampling": 16}, "async": {"max_staleness": 2.0}}
STALENESS_BOUNDS = (0, 2, 8)
USES = {"naive": "naive", "corrected": "decoupled_ppo"}


def interval(values: list[float]) -> tuple[float, float]:
    """(mean, half width of the 95% t-interval; 0 for a single value)."""
    if len(values) < 2:
        return statistics.fmean(values), 0.0
    return statistics.fmean(values), T_95.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5


def warm(recipe: str, folder: Path, show: Callable[[str], None]) -> Path:
    """The recipe's warm start in `folder`, made once."""
    from minglm.rl.warm_start import for_recipe

    values = recipes.read(recipe)
    start = values.pop("warm_start", None)
    return for_recipe(start, recipes.Settings.from_dict(values), folder, show)


def one(recipe: str, name: str, folder: Path, show, engine: str = "local", **changes) -> dict:
    """One run; its summary."""
    from minglm.rl.run import rl

    done = folder / name / "summary.json"
    settings = recipes.load(recipe, changes)
    if done.is_file():
        found = json.loads(done.read_text(encoding="utf-8"))
        if found["updates"] == settings.updates:
            return found
    return rl(settings, folder / name, warm(recipe, folder, show), overwrite=True, engine=engine, show=show)


def speed(folder: Path, seeds: list[int], show=lambda line: None, updates: int | None = None) -> list[dict]:
    """Modes interleaved, seed by seed, so that all meet the same machine. The rate leaves out the first two updates, in
    which pipelines fill, and all evaluation."""
    from minglm.training import metrics

    rows = []
    for seed in seeds:
        for mode, rules in SPEED_MODES.items():
            name = f"speed_{mode}_{seed}"
            s = one(
                "long_tail",
                name,
                folder,
                show,
                mode=mode,
                seed=seed,
                eval_problems=2000,
                **rules,
                **({"updates": updates} if updates else {}),
            )
            log = metrics.read(folder / name / "metrics.csv")
            first, last = log[min(1, len(log) - 2)], log[-1]
            rate = (last["trajectories"] - first["trajectories"]) / (last["time_s"] - first["time_s"])
            rows.append(
                {
                    "mode": mode,
                    "seed": seed,
                    "trajectories_per_s": rate,
                    "updates": s["updates"],
                    "pass_at_1": s["pass_at_1"],
                    "pass_at_1_before": s["pass_at_1_before"],
                    "wasted_tokens": s["wasted_tokens"],
                    "generated_tokens": s["generated_tokens"],
                    "staleness_mean": statistics.fmean(r["staleness_mean"] for r in log),
                    "rollout_idle": statistics.fmean(r["rollout_idle"] for r in log),
                    "trainer_idle": statistics.fmean(r["trainer_idle"] for r in log),
                    "slot_idle_frac": statistics.fmean(r["slot_idle_frac"] or 1 for r in log),
                }
            )
    return rows


def accuracy(folder: Path, seeds: list[int], show=lambda line: None, updates: int | None = None) -> list[dict]:
    """Where a recipe that learns ends in each mode, after the same number of updates."""
    rows = []
    for seed in seeds:
        for mode, rules in {**SPEED_MODES, "april": {"over_sampling": 48}}.items():
            s = one(
                "sum",
                f"accuracy_{mode}_{seed}",
                folder,
                show,
                mode=mode,
                seed=seed,
                eval_every=0,
                eval_problems=1000,
                **rules,
                **({"updates": updates} if updates else {}),
            )
            rows.append(
                {
                    "mode": mode,
                    "seed": seed,
                    "updates": s["updates"],
                    "pass_at_1_before": s["pass_at_1_before"],
                    "pass_at_1": s["pass_at_1"],
                    "seconds": s["seconds"],
                }
            )
    return rows


def lift(folder: Path, seeds: list[int], show=lambda line: None, updates: int | None = None) -> list[dict]:
    rows = []
    for seed in seeds:
        s = one(
            "sum",
            f"lift_{seed}",
            folder,
            show,
            mode="async",
            max_staleness=1.0,
            seed=seed,
            **({"updates": updates} if updates else {}),
        )
        rows.append(
            {
                "seed": seed,
                "mode": s["mode"],
                "updates": s["updates"],
                "seconds": s["seconds"],
                "pass_at_1_before": s["pass_at_1_before"],
                "pass_at_1": s["pass_at_1"],
                "lift": s["pass_at_1"] - s["pass_at_1_before"],
            }
        )
    return rows


def staleness(folder: Path, seeds: list[int], show=lambda line: None, updates: int | None = None) -> list[dict]:
    rows = []
    for seed in seeds:
        for max_staleness in STALENESS_BOUNDS:
            for use, objective in USES.items():
                if max_staleness == 0 and use == "corrected":  # fresh data: the same update, bit for bit
                    continue
                s = one(
                    "sum",
                    f"stale_{use}_{max_staleness}_{seed}",
                    folder,
                    show,
                    engine="inline",
                    mode="async",
                    max_staleness=float(max_staleness),
                    objective=objective,
                    seed=seed,
                    prompts_per_batch=16,
                    updates=updates or 40,
                    eval_every=0,
                    eval_problems=400,
                    lr=0.001,
                )
                rows.append(
                    {
                        "use": use,
                        "objective": objective,
                        "max_staleness": max_staleness,
                        "seed": seed,
                        "updates": s["updates"],
                        "pass_at_1_before": s["pass_at_1_before"],
                        "pass_at_1": s["pass_at_1"],
                        "reward": s["reward"],
                    }
                )
    return rows


def report(name: str, rows: list[dict]) -> list[str]:
    """What the rows say, a line for each comparison."""
    lines = []
    if name == "speed":
        base = {r["seed"]: r for r in rows if r["mode"] == "sync"}
        for mode in SPEED_MODES:
            mine = [r for r in rows if r["mode"] == mode]
            ratio, half = interval([r["trajectories_per_s"] / base[r["seed"]]["trajectories_per_s"] for r in mine])
            gap, spread = interval([100 * (r["pass_at_1"] - base[r["seed"]]["pass_at_1"]) for r in mine])
            lines.append(
                f"{mode}: {statistics.fmean(r['trajectories_per_s'] for r in mine):.1f} trajectories/s, {ratio:.2f}x sync (±{half:.2f}); "
                f"pass@1 {statistics.fmean(r['pass_at_1'] for r in mine):.1%}, {gap:+.1f} points against sync (±{spread:.1f})"
            )
    elif name == "accuracy":
        base = {r["seed"]: r for r in rows if r["mode"] == "sync"}
        for mode in SPEED_MODES:
            mine = [r for r in rows if r["mode"] == mode]
            end, half = interval([100 * r["pass_at_1"] for r in mine])
            gap, spread = interval([100 * (r["pass_at_1"] - base[r["seed"]]["pass_at_1"]) for r in mine])
            lines.append(
                f"{mode}: pass@1 {100 * statistics.fmean(r['pass_at_1_before'] for r in mine):.1f}% -> {end:.1f}% (±{half:.1f}), {gap:+.1f} points against sync (±{spread:.1f})"
            )
    elif name == "lift":
        for r in rows:
            lines.append(
                f"seed {r['seed']}: pass@1 {r['pass_at_1_before']:.1%} -> {r['pass_at_1']:.1%} ({100 * r['lift']:+.1f} points) in {r['seconds']:.0f} s"
            )
    else:
        for max_staleness in sorted({r["max_staleness"] for r in rows}):
            if max_staleness == 0:
                mean, half = interval([100 * r["pass_at_1"] for r in rows if r["max_staleness"] == 0])
                lines.append(f"η=0: fresh data, both are the same update: {mean:.1f}% (±{half:.1f})")
                continue
            found = {
                use: interval(
                    [100 * r["pass_at_1"] for r in rows if r["max_staleness"] == max_staleness and r["use"] == use]
                )
                for use in USES
            }
            pairs = {
                use: {
                    r["seed"]: 100 * r["pass_at_1"]
                    for r in rows
                    if r["max_staleness"] == max_staleness and r["use"] == use
                }
                for use in USES
            }
            both = [pairs["corrected"][s] - pairs["naive"][s] for s in pairs["naive"] if s in pairs["corrected"]]
            gap, half = interval(both)
            verdict = (
                "naive use hurts"
                if gap - half > 0
                else "correction hurts"
                if gap + half < 0
                else "no difference that these seeds can show"
            )
            lines.append(
                f"η={max_staleness}: naive {found['naive'][0]:.1f}% (±{found['naive'][1]:.1f}), corrected {found['corrected'][0]:.1f}% "
                f"(±{found['corrected'][1]:.1f}), difference {gap:+.1f} (±{half:.1f}): {verdict}"
            )
    return lines


def write(rows: list[dict], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def read(name: str) -> list[dict]:
    """The recorded rows of data/reference/rl_NAME.csv, numbers as numbers."""

    def value(text: str):
        try:
            return float(text) if "." in text else int(text)
        except ValueError:
            return text

    with open(datafiles.data("reference", f"rl_{name}.csv"), encoding="utf-8", newline="") as file:
        return [{k: value(v) for k, v in row.items()} for row in csv.DictReader(file)]


WHAT = {"speed": speed, "accuracy": accuracy, "lift": lift, "staleness": staleness}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minglm.rl.measure", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, help="fewer or more than the figure's own")
    parser.add_argument("--folder", type=Path, default=Path("runs/rl_measure"))
    parser.add_argument("--record", action="store_true", help="write data/reference/rl_NAME.csv")
    args = parser.parse_args(argv)
    try:
        rows = WHAT[args.what](
            args.folder, args.seeds, lambda line: print(line, file=sys.stderr, flush=True), args.updates
        )
    except InputError as err:
        print(err, file=sys.stderr)
        return 2
    write(rows, (datafiles.data("reference") if args.record else args.folder) / f"rl_{args.what}.csv")
    print("\n".join(report(args.what, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
