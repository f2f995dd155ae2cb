"""`clustersim rollouts`: a step of asynchronous RL on a cluster, or the twin of a run on this machine."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError
from minglm.runtime.arguments import SEED
from minglm.runtime.terminal import json_text
from minglm.settings import uncommented
from sim.base.documents import parse_text

TEXT = "rollouts of reinforcement learning: tokens/s, idle and tail, staleness, waste, best split, over-sampling, cost"
EXAMPLES = f"""clustersim rollouts rollouts_glm5_100k            (a few minutes; --downscale: seconds)
clustersim rollouts case.yaml                     (keys: {datafiles.where("rollouts", "README.md")}; \
published seconds give an error column)
clustersim rollouts case.yaml --mode april --set over_sampling=1.5
clustersim rollouts rollouts_glm5_100k --questions (best split of the chips, over-sampling that pays)
clustersim rollouts case.yaml --figure timeline.html
clustersim rollouts --run runs/rl_sync            (predict runs of minglm rl from a measured profile)
clustersim rollouts case.yaml --json"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", nargs="?", help="a case: a file, or a name in data/scenarios (rollouts_*)")
    parser.add_argument("--mode", help="sync, one_step_off, async, april or glm5 instead of the file's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one key (YAML value); may be repeated"
    )
    parser.add_argument("--seed", type=SEED, help="seed of the lengths")
    parser.add_argument(
        "--questions", action="store_true", help="also the best split of the chips and the over-sampling that pays"
    )
    parser.add_argument(
        "--downscale",
        action="store_true",
        help="divide engines, prompts and trainer alike, so that a large cluster takes seconds",
    )
    parser.add_argument(
        "--run",
        action="append",
        metavar="FOLDER",
        help="a run of minglm rl with a profile.json beside its log; may be repeated: "
        "the first gives the rates, and the first of each mode that has several what a step of it costs beside",
    )
    parser.add_argument("--figure", metavar="FILE", help="write the timeline (.html, .svg or .png)")
    parser.add_argument("--json", action="store_true", help="for machines")


def main(args: argparse.Namespace) -> int:
    if args.run:
        from sim.validation import local_runs

        report = local_runs.agree(args.run)
        print(json_text(report, indent=1) if args.json else local_runs.table_text(report))
        return 0
    if not args.case:
        raise InputError(
            "rollouts: no case given; give a file or a name such as rollouts_glm5_100k, or --run runs/NAME"
        )
    from sim.rollout.questions import answer

    report = answer(args.case, args.questions, args.downscale, **_changes(args))
    scenario = report.pop("case")
    if args.figure:
        from sim.report.projection import write_figure
        from sim.rollout.simulate import simulate
        from sim.trace.rollout_timeline import figure

        write_figure(figure(simulate(replace(scenario.case, watch=24))), Path(args.figure))
    print(json_text(report, indent=1) if args.json else text(report))
    return 0


def _changes(args: argparse.Namespace) -> dict:
    from sim.rollout.scenario import canonical

    out: dict = {}
    for item in args.set:
        key, sign, value = item.partition("=")
        if not sign or not key.strip():
            raise InputError(f"--set {item!r}: must be key=value, such as --set max_staleness=2")
        out |= canonical({key.strip(): parse_text(uncommented(value), f"--set {key.strip()}")}, "--set")
    if args.mode:
        out["mode"] = args.mode
    if args.seed is not None:
        out["seed"] = args.seed
    return out


def text(report: dict) -> str:
    from sim.rollout.metrics import IN_POINTS

    r = report["result"]
    total = sum(r["staleness"].values()) or 1
    stale = ", ".join(f"{k}: {n / total:.0%}" for k, n in r["staleness"].items())
    counts = r["counts"]
    lines = [
        report["name"] + (f": {report['question']}" if report["question"] else ""),
        "",
        f"mode         {r['mode']}, {len(r['steps'])} steps after the warm-up, {r['chips']:,} chips",
        f"lengths      {report['lengths']}",
        f"step         {r['step_s']:,.4g} s; rollout {r['rollout_s']:,.4g} s",
        f"throughput   {r['tokens_per_s']:,.0f} generated and {r['trained_tokens_per_s']:,.0f} trained tokens/s"
        + (f" ({r['tokens_per_s'] / r['chips']:,.1f} generated a chip)" if r["chips"] else ""),
        f"idle         {r['idle_share']:.1%} of the chips' time (engines {r['rollout_idle']:.1%}, trainer "
        f"{r['trainer_idle']:.1%})",
        (
            f"tail         {r['tail_share']:.1%} of the rollout time for the last tenth of the trajectories; "
            if r["mode"] not in ("async", "glm5")
            else "batch        "
        )
        + f"{r['mean_running']:,.1f} running in an engine on average",
        f"staleness    versions behind, share of trained tokens: {stale}; at most {r['staleness_max']}; a "
        f"trajectory spans up to {r['max_span'] + 1} versions",
        f"waste        filtered {r['wasted']['filtered']:,}, too stale {r['wasted']['too_stale']:,}, surplus "
        f"{r['wasted']['surplus']:,} tokens; prefilled again {r['reprefilled_tokens']:,}; {r['preemptions']:,} "
        "preemptions",
        "trajectories " + ", ".join(f"{n:,} {k}" for k, n in counts.items() if n or k in ("submitted", "trained")),
    ]
    for kind, c in report.get("cost_per_million_trained_tokens", {}).items():
        if kind != "chip_hours":
            lines.append(
                f"cost         ${c['value']:,.2f} (${c['low']:,.2f} to ${c['high']:,.2f}) a million trained tokens, "
                f"{'rented' if kind == 'rent' else 'owned'}: {c['basis']}"
            )
    split = report.get("best_split")
    if split:
        lines += ["", f"chips that roll out (folded {split['fold']}-fold)"]
        lines += [
            f"  {row['rollout_share']:5.0%}  {row['trained_tokens_per_s']:>14,.0f} trained tokens/s   engines idle "
            f"{row['rollout_idle']:4.0%}, trainer idle {row['trainer_idle']:4.0%}"
            + ("  <- best" if row is split["best"] else "")
            + ("  (as given)" if row["given"] else "")
            for row in split["rows"]
        ]
    over = report.get("over_sampling")
    if over:
        lines += ["", f"over-sampling with april (folded {over['fold']}-fold)"]
        lines += [
            f"  {row['factor']:5.2f}  {row['trained_tokens_per_s']:>14,.0f} trained tokens/s   rollout "
            f"{row['rollout_s']:,.4g} s, stale {row['stale_share']:4.0%}" + ("  <- best" if row is over["best"] else "")
            for row in over["rows"]
        ]
    if report["compared"]:
        lines += ["", f"{'quantity':24} {'published':>12} {'predicted':>12} {'error':>10}"]
        for c in report["compared"]:
            shown = f"{100 * c['error']:+.1f} pts" if c["quantity"] in IN_POINTS else f"{100 * c['error']:+.1f}%"
            lines.append(f"{c['quantity']:24} {c['published']:>12,.4g} {c['predicted']:>12,.4g} {shown:>10}")
    lines += [f"note         {n}" for n in report["notes"]] + [f"assumed      {a}" for a in report["assumed"]]
    return "\n".join(lines)
