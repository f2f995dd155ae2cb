"""Reinforcement learning: what removing the long tail buys, and what it costs; how far held-out pass@1 rises.

One seed of each runs here (some minutes, warm starts made once in runs/rl_measure); three seeds with intervals are
recorded in data/reference/rl_*.csv by `python -m minglm.rl.measure NAME --record` and printed beside it.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from minglm.tools.bench_summary import answer

NAME = "rl"
SPEED_TARGET, LIFT_TARGET, LIFT_SECONDS, ACCURACY_POINTS = 1.3, 20.0, 900.0, 2.0


def run() -> list[dict]:
    from minglm import datafiles
    from minglm.rl import measure

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for start in datafiles.runs("rl_measure").glob("rl_warm_*"):  # made once, by an earlier bench or measurement
            (folder / start.name).symlink_to(start.resolve())
        found = {r["mode"]: r for r in measure.speed(measure.Bench(folder, [0]))}
        sync = found["sync"]["trajectories_per_s"]
        rows += _speed([{**r, "ratio": r["trajectories_per_s"] / sync} for r in found.values()], "one seed, now")
        lifted = measure.lift(measure.Bench(folder, [0]))[0]
        rows.append(
            _row(
                f"held-out pass@1, {lifted['pass_at_1_before']:.1%} before, {lifted['pass_at_1']:.1%} after, in "
                f"{lifted['seconds']:.0f} s",
                100 * lifted["lift"],
                "points",
                target=LIFT_TARGET,
                met=100 * lifted["lift"] >= LIFT_TARGET and lifted["seconds"] <= LIFT_SECONDS,
            )
        )
        for start in folder.glob("rl_warm_*"):
            if not start.is_symlink() and not (datafiles.runs("rl_measure") / start.name).exists():
                datafiles.runs("rl_measure").mkdir(parents=True, exist_ok=True)
                import shutil

                shutil.copytree(start, datafiles.runs("rl_measure") / start.name)
    return rows + _recorded()


def _speed(rows: list[dict], when: str) -> list[dict]:
    out = []
    for r in rows:
        goal = SPEED_TARGET if r["mode"] != "sync" else None
        out.append(
            _row(
                f"{r['mode']}: trajectories/s ({when})",
                r["trajectories_per_s"],
                "1/s",
                ratio=r["ratio"],
                target=goal,
                met=None if goal is None else r["ratio"] >= goal,
            )
        )
        if r["mode"] == "april":
            out[-1] |= answer("RL: april's useful trajectories/s over sync", r["ratio"])
    return out


def _recorded() -> list[dict]:
    """The recorded seeds: rates against sync, accuracy against sync, naive against corrected."""
    from minglm import datafiles
    from minglm.rl import measure

    rows = []
    if datafiles.data("reference", "rl_speed.csv").is_file():
        recorded = measure.read("speed")
        base = {r["seed"]: r for r in recorded if r["mode"] == "sync"}
        for mode in ("april", "async"):
            mine = [r for r in recorded if r["mode"] == mode]
            ratio = statistics.fmean(r["trajectories_per_s"] / base[r["seed"]]["trajectories_per_s"] for r in mine)
            gap = 100 * statistics.fmean(r["pass_at_1"] - base[r["seed"]]["pass_at_1"] for r in mine)
            rows.append(
                _row(
                    f"recorded, {len(mine)} seeds: {mode} against sync",
                    statistics.fmean(r["trajectories_per_s"] for r in mine),
                    "1/s",
                    ratio=ratio,
                    target=SPEED_TARGET,
                    met=ratio >= SPEED_TARGET,
                )
            )
            rows.append(
                _row(
                    f"recorded, {len(mine)} seeds: {mode}, final pass@1 less that of sync",
                    gap,
                    "points",
                    target=ACCURACY_POINTS,
                    met=abs(gap) <= ACCURACY_POINTS,
                )
            )
    for name in ("lift", "staleness"):
        if datafiles.data("reference", f"rl_{name}.csv").is_file():
            rows += [_row(f"recorded, {name}: {line}", None, "") for line in measure.report(name, measure.read(name))]
    return rows


def _row(name: str, value, unit: str, **more) -> dict:
    return {"name": name, "value": value, "unit": unit, **more}
