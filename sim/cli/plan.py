"""`clustersim plan`: the best parallel plan for a model on a cluster."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minglm.errors import InputError
from minglm.runtime.arguments import COUNT, whole
from minglm.runtime.terminal import json_text
from sim.base.distributions import DRAWS
from sim.base.units import show
from sim.cli import _inverse as inverse_questions
from sim.cli._progress import progress_bar
from sim.cli._question import question_arguments, question_options
from sim.cli._scenario import name_or_mapping
from sim.cost.price_flags import add_price_flags, read_prices

if TYPE_CHECKING:
    from sim.planner.question import Question

TEXT = "find the best plan: all that fit in memory, ranked, with the Pareto front and the reasons"
EXAMPLES = """clustersim plan --model gpt3_175b --cluster dgx_a100 --chips 64 --seq 2048 --batch 64
clustersim plan --model glm5 --cluster atlas_800t_a2 --chips 100000 --batch-tokens 64M --seq 4096
clustersim plan --model llama3_405b --cluster dgx_h100 --chips 16384 --seq 8192 --batch 2048 --objective cost \
--tokens 15.6T
clustersim plan --model llama3_70b --chip h100 --chips 512 --set tp=8 --set optimizer=muon --json
clustersim plan --model llama3_70b --cluster dgx_h100 --chips 256 --schedules 1f1b,interleaved --out runs/plan_70b
clustersim plan --model llama3_70b --chip h100 --budget 20M --deadline '90 days'
clustersim plan --model llama3_70b --chips 2048 --ask cheapest --chip h100,b200,910b --deadline '60 days'
clustersim plan --model llama3_70b --chips 1024 --ask break-even --chip 910b,h100"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scenario", nargs="?", help="a scenario file whose question is asked with its plan left open; flags change it"
    )
    question_arguments(parser, model_required=False)
    parser.add_argument("--cluster", help="a name in data/clusters (default: the chip's usual one)")
    parser.add_argument("--chip", help="a name in data/chips")
    parser.add_argument("--chips", help="chips of the cluster; a plan may use fewer (default: the cluster's)")
    parser.add_argument("--stack", help="software stack, as in data/stacks.yaml (default: by the chip's vendor)")
    add_price_flags(parser)
    parser.add_argument("--top-k", type=COUNT, default=20, help="length of the ranked list (default 20)")
    parser.add_argument(
        "--samples", type=whole(0), help="draws for the winner's interval (default 256; 0: none)", default=DRAWS
    )
    parser.add_argument("--budget", help="dollars of rent: with --deadline, what they buy")
    parser.add_argument("--deadline", help="such as '90 days': with --budget what both buy, alone the fewest chips")
    parser.add_argument(
        "--ask",
        choices=("plan", "growth", "failures", "cheapest", "break-even"),
        default="plan",
        help="growth: when another tenth of chips stops paying; failures: how much more often chips may fail until "
        "--deadline is missed; cheapest: the cheapest of --chip a,b,c or --cluster a,b,c, with --deadline each with "
        "the fewest chips that keep it; break-even: the price of a chip-hour at which --chip a,b cost the same "
        "(default plan)",
    )
    parser.add_argument("--explain", action="store_true", help="also where the step's time goes, as clustersim explain")
    parser.add_argument(
        "--out", help="folder for plan.json, plans.csv and plan.html, or for answer.json and answer.csv of --ask"
    )


def main(args: argparse.Namespace) -> int:
    from sim.planner.planner import answer
    from sim.report.plan import write

    if args.scenario is None and args.model is None:
        raise InputError("neither a scenario nor --model is given; give one, such as --model glm5 --chip h100")
    if args.ask in inverse_questions.SEVERAL:
        return inverse_questions.machines(args, functools.partial(_question, args))
    plan_question = _question(args, args.chip, args.cluster)
    if inverse_questions.is_inverse(args):
        return inverse_questions.asked(args, plan_question)
    with progress_bar("widths", quiet=args.json) as report:
        result = answer(plan_question, args.top_k, report, args.samples, None if args.json else _first)
    if args.out:
        write(result, Path(args.out))
    if args.explain:
        result["explain"] = _explained(result["document"])
    print(json_text(result, indent=1) if args.json else text(result))
    return 0


def _question(args: argparse.Namespace, chip: str | None = None, cluster: str | None = None) -> Question:
    """What the flags ask, of this machine."""
    from sim.planner.question import question
    from sim.scenario.file import with_open_plan
    from sim.scenario.training import load_document

    values = {"model": args.model, "cluster": cluster, "chip": chip}
    named = {name: name_or_mapping(value, f"--{name}") for name, value in values.items()}
    terms = {"stack": args.stack, "prices": read_prices(args), **question_options(args)}
    if args.ask == "cheapest" and args.deadline is None and terms["objective"] is None:
        terms["objective"] = "cost"
    base = with_open_plan(load_document(args.scenario, [], **named, chips=args.chips)) if args.scenario else None
    return question(named["model"], named["cluster"], args.chips, chip=named["chip"], base=base, **terms)


def _first(plan: str, step_s: float) -> None:
    """A good plan, on a terminal before the search has proven the best."""
    if sys.stderr.isatty():
        words = f"a good plan: {plan}, {step_s:.4g} s a step; Ctrl-C ends the search with the best so far"
        print(words, file=sys.stderr)


def _explained(document: dict) -> dict:
    from sim.scenario.training import resolve
    from sim.study.answer import point
    from sim.study.explain import step_tree

    s = resolve(document)
    return step_tree(s, point(s, jitter=None))


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
        f"{q['model']} ({q['attention']} attention) on at most {q['chips']:,} × {q['chip']} ({q['cluster']}), batch "
        f"{q['batch']:,} × {q['seq']:,} tokens, {q['precision']}, {q['stack']}",
        f"{s['looked_at']:,} plans: {s['evaluated']:,} costed, {s['too_large']:,} too large, "
        f"{s['bounded']:,} skipped by a bound; {s['cpu_s']:.1f} s of CPU" + (", from the cache" if s["cached"] else ""),
        "",
        *r["explanation"],
        "",
        *winner(r),
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
    out += [
        "",
        "best of each schedule",
        head,
        *(line("", x) for x in r["by_schedule"].values()),
        "",
        "assumptions",
        *(f"  {a}" for a in r["assumptions"]),
    ]
    if "explain" in r:
        from sim.study.explain import text as tree_text

        out += ["", *tree_text(r["explain"])]
    return "\n".join(out)


def winner(r: dict) -> list[str]:
    """The winner as `clustersim run` would answer it, with 90% of the draws beside each figure."""
    w, sure = r["winner"], (r.get("uncertainty") or {}).get("intervals", {})

    def line(label: str, key: str, words: str, kind: str) -> str:
        span = ""
        if key in sure:
            low, high = (show(sure[key][end], kind) if kind else f"{sure[key][end]:.4g}" for end in ("p5", "p95"))
            span = f"   90%: {low} to {high}"
        return f"{label:16}{words}{span}"

    out = [f"{'the plan':16}{w['plan']}, micro-batch {w['micro_batch']}, ZeRO {w['zero']}, recompute {w['recompute']}"]
    if w["stages"]:
        ahead = f"; MTP layers {w['mtp_before_head']} chunk before the heads" if w["mtp_before_head"] else ""
        out.append(f"{'layers a chunk':16}{w['stages']}{ahead}")
    out += [
        line(
            "step",
            "step_s",
            f"{w['step_s']:.4g} s as events, {r['verified']['difference']:+.1%} from the closed form",
            "",
        ),
        line("time", "days", f"{w['days']:.4g} days", ""),
        line("energy", "energy_kwh", f"{w['energy_kwh']:,.4g} kWh", ""),
    ]
    for key, label in (("rent_usd", "cost to rent"), ("own_usd", "cost to own")):
        if key in w:
            out.append(line(label, key, show(w[key], "money"), "money"))
    if len(r["phases"]) > 1:
        from sim.report import run_phases

        out += ["", *run_phases.text(r)]
    return out
