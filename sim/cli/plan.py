"""`clustersim plan`: the best parallel plan for a model on a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path

from minglm.runtime.arguments import COUNT
from minglm.runtime.terminal import json_text
from sim.base.units import show
from sim.cli._progress import progress_bar
from sim.cli._question import question_arguments, question_options
from sim.cli._scenario import name_or_mapping
from sim.cost.price_flags import add_price_flags, read_prices

TEXT = "find the best plan: all that fit in memory, ranked, with the Pareto front and the reasons"
EXAMPLES = """clustersim plan --model gpt3_175b --cluster dgx_a100 --chips 64 --seq 2048 --batch 64
clustersim plan --model glm5 --cluster atlas_800t_a2 --chips 100000 --batch-tokens 64M --seq 4096
clustersim plan --model llama3_405b --cluster dgx_h100 --chips 16384 --seq 8192 --batch 2048 --objective cost \
--tokens 15.6T
clustersim plan --model llama3_70b --chip h100 --chips 512 --set tp=8 --set optimizer=muon --json
clustersim plan --model llama3_70b --cluster dgx_h100 --chips 256 --schedules 1f1b,interleaved --out runs/plan_70b"""


def add(parser: argparse.ArgumentParser) -> None:
    question_arguments(parser)
    parser.add_argument("--cluster", help="a name in data/clusters (default: the chip's usual one)")
    parser.add_argument("--chip", help="a name in data/chips")
    parser.add_argument("--chips", help="chips of the cluster; a plan may use fewer (default: the cluster's)")
    parser.add_argument("--stack", help="software stack, as in data/stacks.yaml (default generic)")
    add_price_flags(parser)
    parser.add_argument("--top-k", type=COUNT, default=20, help="length of the ranked list (default 20)")
    parser.add_argument(
        "--samples",
        type=COUNT,
        help="Monte Carlo samples for the winner's interval (default: 500 with --out, else none)",
    )
    parser.add_argument("--out", help="folder for plan.json, plans.csv and plan.html")


def main(args: argparse.Namespace) -> int:
    from sim.planner.planner import answer
    from sim.planner.question import question
    from sim.report.plan import write

    plan_question = question(
        name_or_mapping(args.model, "--model"),
        name_or_mapping(args.cluster, "--cluster"),
        args.chips,
        chip=name_or_mapping(args.chip, "--chip"),
        stack=args.stack,
        prices=read_prices(args),
        **question_options(args),
    )
    samples = args.samples if args.samples is not None else 500 if args.out else 0
    with progress_bar("groups of plans", quiet=args.json) as report:
        result = answer(plan_question, args.top_k, report, samples=samples)
    if args.out:
        write(result, Path(args.out))
    print(json_text(result, indent=1) if args.json else text(result))
    return 0


def text(r: dict) -> str:
    """The answer for a terminal."""
    q, s = r["question"], r["search"]
    money = next((k for k in ("rent_usd", "own_usd") if k in r["winner"]), None)

    def line(name: str, x: dict) -> str:
        cost = show(x[money], "money") if money else "no price"
        return (
            f"{name:4}{x['plan'][:44]:45}{x['micro_batch']:>3}{x['zero']:>5} "
            f"{x['recompute']:14}{x['chips']:>8,}{x['step_s']:>9.3g}s"
            f"{x['tokens_per_s_per_chip']:>12.1f}{x['mfu']:>7.1%}{x['memory_gib']:>8.1f}{x['days']:>10.3g}{cost:>12}"
        )

    total = "rent" if money == "rent_usd" else "own"
    head = (
        f"{'':4}{'plan':45}{'mb':>3}{'ZeRO':>5} "
        f"{'recompute':14}{'chips':>8}{'step':>10}{'tok/s/chip':>12}{'MFU':>7}{'GiB':>8}{'days':>10}{total:>12}"
    )
    out = [
        f"{q['model']} on at most {q['chips']:,} × {q['chip']} ({q['cluster']}), batch {q['batch']:,} × "
        f"{q['seq']:,} tokens, {q['precision']}, {q['stack']}",
        f"{s['combinations']:,} combinations: {s['evaluated']:,} costed, {s['too_large']:,} too large, "
        f"{s['bounded']:,} skipped by a bound; {s['cpu_s']:.1f} s of CPU",
        "",
        *r["explanation"],
        "",
    ]
    if "verified" in r:
        v = r["verified"]
        out += [
            f"The winner's step is not simulated as events: {v['reason']}"
            if "reason" in v
            else f"Simulated as events the winner's step takes {v['events_step_s']:.3g} s, {v['difference']:+.1%} "
            "from the closed form.",
            "",
        ]
    out += [
        f"ranked by {q['objective']}",
        head,
        *(line(str(i + 1), x) for i, x in enumerate(r["ranked"][:10])),
        "",
        "Pareto front (time, cost, chips)",
        head,
    ]
    front = r["front"]
    shown = front if len(front) <= 12 else [front[round(i * (len(front) - 1) / 11)] for i in range(12)]
    out += [line("", x) for x in shown] + (
        [f"    {len(front)} plans on the front; --json has all"] if len(front) > 12 else []
    )
    for name, i in (r.get("uncertainty") or {}).get("intervals", {}).items():
        if name in ("days", "rent_usd", "own_usd"):
            kind = "money" if name.endswith("usd") else "count"
            out.append(
                f"{name.removesuffix('_usd')}: 90% of samples between {show(i['p5'], kind)} and {show(i['p95'], kind)}"
            )
    out += [
        "",
        "best of each schedule",
        head,
        *(line("", x) for x in r["by_schedule"].values()),
        "",
        "assumptions",
        *(f"  {a}" for a in r["assumptions"]),
    ]
    return "\n".join(out)
