"""The RL figures that this project states, each by a command that remakes it.

    python -m minglm.rl.measure speed      sync, april and async on the long-tailed recipe, interleaved:
                                           trajectories/s, pass@1
    python -m minglm.rl.measure accuracy   the same modes on the recipe `sum`, which learns: final held-out pass@1
    python -m minglm.rl.measure lift       held-out pass@1 before and after the recipe `sum`, and the seconds it took
    python -m minglm.rl.measure staleness  naive against corrected use of stale data over η (max_staleness), inline, so
                                           that every batch is exactly η versions old; each at swept learning rates
    python -m minglm.rl.measure control    what the recipe `sum` adds beside ways that train nothing: colder samples, a
                                           vote, greedy answers; on problems of two kinds, and on longer ones
    python -m minglm.rl.measure hop        the same for the recipe `hop`, from chat models of the tiny world (--starts),
                                           beside a reward that knows the form of an answer alone
    python -m minglm.rl.measure abstention what "I do not know" costs in known facts that are never asked about, beside
                                           a threshold, a whole model that learns, and a start told of nobody once

Rows go to data/reference/rl_NAME.csv with --record, else to runs/rl_measure. A run that is there already is not run
again.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from minglm import atomic, datafiles
from minglm.errors import InputError, Parser
from minglm.evals.statistics import mean_interval
from minglm.records import numbers, read_rows
from minglm.rl import abstention_control
from minglm.rl import config as recipes
from minglm.rl import control as ways
from minglm.rl.abstention import Settings
from minglm.rl.run import rl
from minglm.rl.warm_start import for_recipe
from minglm.runtime import run_folder
from minglm.training import metrics

Row: TypeAlias = dict[str, Any]
Show: TypeAlias = Callable[[str], None]

SPEED_MODES: dict[str, dict[str, Any]] = {"sync": {}, "april": {"over_sampling": 16}, "async": {"max_staleness": 2.0}}
STALENESS_BOUNDS = (0, 2, 8)
STALENESS_RATES = (0.000125, 0.00025, 0.0005)  # the recipe's own is the last
_SHARES = ("right", "declined", "answered")
USES = {"naive": "naive", "corrected": "decoupled_ppo"}


def interval(values: list[float]) -> tuple[float, float]:
    """(mean, half width of the 95% t-interval; 0 for a single value)."""
    return mean_interval(values) if len(values) > 1 else (statistics.fmean(values), 0.0)


def warm_started(recipe: str, folder: Path, show: Show) -> Path:
    """Run folder of the recipe's SFT warm start in `folder`, made once."""
    values = recipes.read(recipe)
    start = values.pop("warm_start", None)
    return for_recipe(start, recipes.Settings.from_dict(values), folder, show)


@dataclass(frozen=True)
class Bench:
    """Where and how the runs of a figure are made."""

    folder: Path
    seeds: list[int]
    show: Show = lambda line: None
    updates: int | None = None  # fewer or more than the recipe's own
    starts: Path = field(default_factory=lambda: datafiles.runs("seeds"))  # hop: runs of minglm.tools.demo_seeds

    def run(
        self, recipe: str, name: str, engine: str = "local", start: Path | None = None, **changes: Any
    ) -> dict[str, Any]:
        """One run, if it is not there already; its summary. `start`: other than the recipe's own warm start."""
        if self.updates:
            changes["updates"] = self.updates
        settings = recipes.load(recipe, changes)
        done = run_folder.result(self.folder / name / "summary.json")
        if done is not None and done["updates"] == settings.updates:
            return done
        start = start or warm_started(recipe, self.folder, self.show)
        return rl(settings, self.folder / name, start, overwrite=True, engine=engine, show=self.show)


def speed(bench: Bench) -> list[Row]:
    """Modes interleaved, seed by seed, so that all meet the same machine. The rate leaves out the first two updates, in
    which pipelines fill, and all evaluation."""
    rows: list[Row] = []
    for seed in bench.seeds:
        for mode, rules in SPEED_MODES.items():
            name = f"speed_{mode}_{seed}"
            s = bench.run("long_tail", name, mode=mode, seed=seed, eval_problems=2000, **rules)
            log = metrics.read(bench.folder / name / "metrics.csv")
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


def accuracy(bench: Bench) -> list[Row]:
    """Where a recipe that learns ends in each mode, after the same number of updates."""
    rows: list[Row] = []
    for seed in bench.seeds:
        for mode, rules in {**SPEED_MODES, "april": {"over_sampling": 48}}.items():
            name = f"accuracy_{mode}_{seed}"
            s = bench.run("sum", name, mode=mode, seed=seed, eval_every=0, eval_problems=1000, **rules)
            keys = ("updates", "pass_at_1_before", "pass_at_1", "seconds")
            rows.append({"mode": mode, "seed": seed, **{key: s[key] for key in keys}})
    return rows


def lift(bench: Bench) -> list[Row]:
    """Held-out pass@1 before and after the recipe `sum`."""
    rows: list[Row] = []
    for seed in bench.seeds:
        s = bench.run("sum", f"lift_{seed}", mode="async", max_staleness=1.0, seed=seed)
        keys = ("mode", "updates", "seconds", "pass_at_1_before", "pass_at_1")
        rows.append({"seed": seed, **{key: s[key] for key in keys}, "lift": s["pass_at_1"] - s["pass_at_1_before"]})
    return rows


def staleness(bench: Bench) -> list[Row]:
    """Naive against corrected use of data of every staleness, at each of `STALENESS_RATES`."""
    bench = replace(bench, updates=bench.updates or 40)
    rows: list[Row] = []
    for seed, max_staleness, lr in itertools.product(bench.seeds, STALENESS_BOUNDS, STALENESS_RATES):
        for use, objective in USES.items():
            if max_staleness == 0 and use == "corrected":  # fresh data: the same update, bit for bit
                continue
            s = bench.run(
                "sum",
                f"stale_{use}_{max_staleness}_{lr:g}_{seed}",
                engine="inline",
                mode="async",
                max_staleness=float(max_staleness),
                objective=objective,
                seed=seed,
                prompts_per_batch=16,
                eval_every=0,
                eval_problems=400,
                lr=lr,
            )
            keys = ("updates", "pass_at_1_before", "pass_at_1", "reward")
            row: Row = {"use": use, "objective": objective, "max_staleness": max_staleness, "lr": lr, "seed": seed}
            rows.append(row | {key: s[key] for key in keys})
    return rows


def control(bench: Bench) -> list[Row]:
    """What the recipe `sum` adds beside ways of answering that train nothing (`minglm.rl.control`)."""
    rows: list[Row] = []
    start = warm_started("sum", bench.folder, bench.show)
    for seed in bench.seeds:
        for kind, changes in ways.KINDS.items():
            name = f"control_{kind}_{seed}"
            bench.run("sum", name, mode="sync", seed=seed, eval_every=0, eval_problems=8, start=start, **changes)
            settings = recipes.load("sum", changes)
            asked = {
                "as trained": ways.held_out(settings, ways.PROBLEMS),
                "longer": ways.held_out(settings, ways.PROBLEMS, True),
            }
            found = ways.rows(start, {"after RL": bench.folder / name}, settings, asked)
            rows += [{"kind": kind, "seed": seed, **row} for row in found]
    return rows


def hop(bench: Bench) -> list[Row]:
    """What the recipe `hop` adds to a chat model, beside the same updates for the form of the answer alone."""
    rows: list[Row] = []
    for seed in bench.seeds:
        start, settings = bench.starts / f"seed_{seed}" / "sft", recipes.load("hop")
        trained = {}
        for task, done in (("hop", "after RL"), ("hop_form", "after RL for the form")):
            trained[done] = bench.folder / f"{task}_{seed}"
            bench.run("hop", trained[done].name, engine="inline", start=start, task=task, mode="sync", seed=seed)
        asked = {
            "as trained": ways.held_out(settings, ways.PASSAGES),
            "longer": ways.longer_passages(settings, ways.PASSAGES),
        }
        rows += [{"kind": "hop", "seed": seed, **row} for row in ways.rows(start, trained, settings, asked)]
    return rows


def abstention(bench: Bench) -> list[Row]:
    """Declining, and what each part of its recipe brings (`minglm.rl.abstention_control`); `updates`: steps of
    reinforcement."""
    rows: list[Row] = []
    for seed in bench.seeds:
        bench.show(f"seed {seed}: seven ways from two starts")
        settings = Settings(seed=seed)
        rows += abstention_control.rows(replace(settings, rl_steps=bench.updates or settings.rl_steps))
    return rows


def report(name: str, rows: list[Row]) -> list[str]:
    """What the rows say, a line for each comparison."""
    return {
        "speed": _report_speed,
        "accuracy": _report_accuracy,
        "lift": _report_lift,
        "control": _report_control,
        "hop": _report_control,
        "abstention": _report_abstention,
    }.get(name, _report_staleness)(rows)


def _against_sync(rows: list[Row], mode: str) -> tuple[list[Row], str]:
    """(rows of a mode, its pass@1 against that of sync with the same seeds)."""
    base = {r["seed"]: r for r in rows if r["mode"] == "sync"}
    own = [r for r in rows if r["mode"] == mode]
    points, half = interval([100 * (r["pass_at_1"] - base[r["seed"]]["pass_at_1"]) for r in own])
    return own, f"{points:+.1f} points against sync (±{half:.1f})"


def _report_speed(rows: list[Row]) -> list[str]:
    base = {r["seed"]: r["trajectories_per_s"] for r in rows if r["mode"] == "sync"}
    lines = []
    for mode in SPEED_MODES:
        own, against_sync = _against_sync(rows, mode)
        ratio, half = interval([r["trajectories_per_s"] / base[r["seed"]] for r in own])
        lines.append(
            f"{mode}: {statistics.fmean(r['trajectories_per_s'] for r in own):.1f} trajectories/s, {ratio:.2f}x sync "
            f"(±{half:.2f}); "
            f"pass@1 {statistics.fmean(r['pass_at_1'] for r in own):.1%}, {against_sync}"
        )
    return lines


def _report_accuracy(rows: list[Row]) -> list[str]:
    lines = []
    for mode in SPEED_MODES:
        own, against_sync = _against_sync(rows, mode)
        end, half = interval([100 * r["pass_at_1"] for r in own])
        before = 100 * statistics.fmean(r["pass_at_1_before"] for r in own)
        lines.append(f"{mode}: pass@1 {before:.1f}% -> {end:.1f}% (±{half:.1f}), {against_sync}")
    return lines


def _report_lift(rows: list[Row]) -> list[str]:
    return [
        f"seed {r['seed']}: pass@1 {r['pass_at_1_before']:.1%} -> {r['pass_at_1']:.1%} ({100 * r['lift']:+.1f} points) "
        f"in {r['seconds']:.0f} s"
        for r in rows
    ]


def _report_control(rows: list[Row]) -> list[str]:
    seeds = sorted({r["seed"] for r in rows})
    lines = [f"right by seed {', '.join(map(str, seeds))}"]
    for kind, problems, way in dict.fromkeys((r["kind"], r["problems"], r["way"]) for r in rows):
        own = {r["seed"]: r["right"] for r in rows if (r["kind"], r["problems"], r["way"]) == (kind, problems, way)}
        lines.append(f"{kind}, {problems:10}  {way:38}" + "".join(f"{own[s]:7.1%}" for s in seeds if s in own))
    return lines


def _report_abstention(rows: list[Row]) -> list[str]:
    seeds = sorted({r["seed"] for r in rows})
    lines = [f"by seed {', '.join(map(str, seeds))}: right, declined, and right where it may not decline"]
    for way in dict.fromkeys(r["way"] for r in rows):
        lines.append(way)
        for kind in dict.fromkeys(r["questions"] for r in rows if r["way"] == way):
            own = {r["seed"]: r for r in rows if (r["way"], r["questions"]) == (way, kind)}
            columns = ("  ".join(f"{own[s][what]:4.0%}" for s in seeds if s in own) for what in _SHARES)
            lines.append(f"  {kind:15}" + "   |   ".join(columns))
    return lines


def at_own_rate(rows: list[Row], use: str, max_staleness: int) -> dict[int, float]:
    """{seed: pass@1} at a learning rate of the rule's own: the best one by the mean over the *other* seeds, so that no
    run is picked for its own luck."""
    own = [r for r in rows if (r["use"], r["max_staleness"]) == (use, max_staleness)]
    seeds, rates = sorted({r["seed"] for r in own}), sorted({r["lr"] for r in own})

    def mean(rate: float, left_out: int) -> float:
        return statistics.fmean(
            r["pass_at_1"] for r in own if r["lr"] == rate and (r["seed"] != left_out or len(seeds) < 2)
        )

    best = {seed: max(rates, key=partial(mean, left_out=seed)) for seed in seeds}
    return {r["seed"]: r["pass_at_1"] for r in own if r["lr"] == best[r["seed"]]}


def _report_staleness(rows: list[Row]) -> list[str]:
    lines = []
    for bound, rate in itertools.product(sorted({r["max_staleness"] for r in rows}), sorted({r["lr"] for r in rows})):
        here = [r for r in rows if (r["max_staleness"], r["lr"]) == (bound, rate)]
        passed = {use: {r["seed"]: r["pass_at_1"] for r in here if r["use"] == use} for use in USES}
        lines.append(f"η={bound}, rate {rate:g}: {_compared(passed)}")
    swept = len({r["lr"] for r in rows}) > 1
    for bound in sorted({r["max_staleness"] for r in rows} - {0}) if swept else ():
        own = {use: at_own_rate(rows, use, bound) for use in USES}
        lines.append(f"η={bound}, each at a rate of its own: {_compared(own)}")
    return lines


def _compared(passed: dict[str, dict[int, float]]) -> str:
    """Naive and corrected use, and whether these seeds can tell them apart; pass@1 by seed."""
    naive, corrected = ({seed: 100 * share for seed, share in passed[use].items()} for use in USES)
    mean, half = interval(list(naive.values()))
    if not corrected:
        return f"fresh data, both are the same update: {mean:.1f}% (±{half:.1f})"
    corrected_mean, corrected_half = interval(list(corrected.values()))
    difference, spread = interval([corrected[seed] - naive[seed] for seed in naive if seed in corrected])
    verdict = "no difference that these seeds can show"
    if abs(difference) > spread:
        verdict = "naive use hurts" if difference > 0 else "correction hurts"
    return (
        f"naive {mean:.1f}% (±{half:.1f}), corrected {corrected_mean:.1f}% (±{corrected_half:.1f}), "
        f"difference {difference:+.1f} (±{spread:.1f}): {verdict}"
    )


def write(rows: list[Row], path: Path) -> None:
    """Rows as CSV, floats to four places; a smaller one, such as a learning rate, to four digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_csv(path, ({k: _rounded(v) for k, v in row.items()} for row in rows), list(rows[0]))


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, 4) if abs(value) >= 0.1 else float(f"{value:.4g}")


def read(name: str) -> list[Row]:
    """The recorded rows of data/reference/rl_NAME.csv, numbers as numbers."""
    return read_rows(datafiles.data("reference", f"rl_{name}.csv"), numbers, "minglm.rl.measure")


FIGURES: dict[str, Callable[[Bench], list[Row]]] = {
    "speed": speed,
    "accuracy": accuracy,
    "lift": lift,
    "staleness": staleness,
    "control": control,
    "hop": hop,
    "abstention": abstention,
}


def main(argv: list[str] | None = None) -> int:
    """Make a figure's runs and print what they say; returns the exit code."""
    parser = Parser(prog="python -m minglm.rl.measure", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=FIGURES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, help="fewer or more than the figure's own")
    parser.add_argument("--folder", type=Path, help="where the runs are kept (default runs/rl_measure)")
    parser.add_argument(
        "--starts",
        type=Path,
        default=datafiles.runs("seeds"),
        help="hop: chat models, as minglm.tools.demo_seeds makes them (default runs/seeds)",
    )
    parser.add_argument("--record", action="store_true", help="write data/reference/rl_NAME.csv")
    args = parser.parse_args(argv)
    try:
        show = partial(print, file=sys.stderr, flush=True)
        folder = args.folder or datafiles.runs("rl_measure")
        rows = FIGURES[args.what](Bench(folder, args.seeds, show, args.updates, args.starts))
    except InputError as err:
        print(err, file=sys.stderr)
        return 2
    write(rows, (datafiles.data("reference") if args.record else folder) / f"rl_{args.what}.csv")
    print("\n".join(report(args.what, rows)))
    return 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
