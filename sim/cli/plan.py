"""`clustersim plan`: the best parallel plan for a model on a cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path

TEXT = "find the best plan: all that fit in memory, ranked, with the Pareto front and the reasons"
EXAMPLES = """clustersim plan --model gpt3_175b --cluster dgx_a100 --chips 64 --seq 2048 --batch 64
clustersim plan --model glm5 --cluster atlas_800t_a2 --chips 100000 --batch-tokens 64M --seq 4096
clustersim plan --model llama3_405b --cluster dgx_h100 --chips 16384 --seq 8192 --batch 2048 --objective cost --tokens 15.6T
clustersim plan --model llama3_70b --chip h100 --chips 512 --set tp=8 --set optimizer=muon --json
clustersim plan --model llama3_70b --cluster dgx_h100 --chips 256 --schedules 1f1b,interleaved --out runs/plan_70b"""


def question_arguments(parser) -> None:
    """Arguments of the training run that is planned: `compare` asks it of several chips."""
    parser.add_argument(
        "--model", required=True, help="a name in data/models, a Hugging Face config.json, or '{layers: 32, …}'"
    )
    parser.add_argument("--seq", help="tokens of a sequence (default: 4096, or the model's if shorter)")
    parser.add_argument("--batch", help="sequences of a step, kept exactly")
    parser.add_argument("--batch-tokens", help="tokens of a step, met within the tolerance (default 16M)")
    parser.add_argument(
        "--batch-tolerance", help="share by which the batch may differ (default: 0, or 2%% with --batch-tokens)"
    )
    parser.add_argument("--tokens", default="1T", help="tokens of the whole run, for days and cost (default 1T)")
    parser.add_argument(
        "--objective",
        default="tokens",
        help="what the best plan is best at: tokens (throughput) | time | cost (default tokens)",
    )
    parser.add_argument("--precision", default="bf16", help="bf16 | fp16 | fp8 (default bf16)")
    parser.add_argument("--schedules", help="comma-separated, such as 1f1b,interleaved (default: all)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="pin an axis (tp=8, ep=[8, 16]) or a plan field (optimizer=muon)",
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def asked(args) -> dict:
    """The keyword arguments of `sim.planner.planner.question` that `question_arguments` hold, without the model."""
    from minglm.errors import InputError
    from sim.base.documents import parse_text
    from sim.base.units import parse

    fixed = {}
    for text in args.set:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise InputError(f"--set {text!r}: must be KEY=VALUE, such as --set tp=8")
        fixed[key.strip()] = parse_text(value, f"--set {key}")
    tolerance = (
        None if args.batch_tolerance is None else parse(args.batch_tolerance, "ratio", "--batch-tolerance", high=0.49)
    )
    schedules = None if args.schedules is None else tuple(s.strip() for s in args.schedules.split(","))
    return {
        "seq": args.seq,
        "batch": args.batch,
        "batch_tokens": args.batch_tokens,
        "tolerance": tolerance,
        "tokens": args.tokens,
        "objective": args.objective,
        "precision": args.precision,
        "schedules": schedules,
        "fixed": fixed,
    }


def maybe_mapping(text: str | None, name: str) -> object:
    """A name, or a mapping that is written out."""
    from sim.base.documents import parse_text

    return parse_text(text, name) if text and text.lstrip().startswith("{") else text


def add(parser) -> None:
    question_arguments(parser)
    parser.add_argument("--cluster", help="a name in data/clusters (default: the chip's usual one)")
    parser.add_argument("--chip", help="a name in data/chips")
    parser.add_argument("--chips", help="chips of the cluster; a plan may use fewer (default: the cluster's)")
    parser.add_argument("--stack", help="software stack, as in data/stacks.yaml (default generic)")
    parser.add_argument("--chip-hour-price", help="price of a chip-hour, such as '$2/h'")
    parser.add_argument("--system-price", help="price of a chip with its system, such as '$30000'")
    parser.add_argument("--top-k", type=int, default=20, help="length of the ranked list (default 20)")
    parser.add_argument(
        "--samples", type=int, help="Monte Carlo samples for the winner's interval (default: 500 with --out, else none)"
    )
    parser.add_argument("--out", help="folder for plan.json, plans.csv and plan.html")


def question_of(args):
    """The question of the command line."""
    from minglm.errors import InputError
    from sim.base.figure import figure
    from sim.planner.planner import question

    prices = {
        key: figure(text, kind, flag)
        for key, text, kind, flag in (
            ("rent_usd_per_hour", args.chip_hour_price, "money_per_hour", "--chip-hour-price"),
            ("system_price_usd", args.system_price, "money", "--system-price"),
        )
        if text is not None
    }
    if args.top_k < 1:
        raise InputError(f"--top-k {args.top_k}: must be at least 1; give for example 20")
    return question(
        maybe_mapping(args.model, "--model"),
        maybe_mapping(args.cluster, "--cluster"),
        args.chips,
        chip=maybe_mapping(args.chip, "--chip"),
        stack=args.stack,
        prices=prices,
        **asked(args),
    )


def main(args) -> int:
    from sim.planner.planner import answer

    q, bar = question_of(args), None
    samples = args.samples if args.samples is not None else 500 if args.out else 0

    def progress(done: int, of: int) -> None:
        nonlocal bar
        if bar is None and sys.stderr.isatty() and not args.json:
            from tqdm import tqdm

            bar = tqdm(total=of, desc="groups of plans", file=sys.stderr, leave=False)
        if bar is not None:
            bar.update(done - bar.n)

    try:
        result = answer(q, args.top_k, progress, samples=samples)
    finally:
        if bar is not None:
            bar.close()
    if args.out:
        from sim.report.plan import write

        write(result, Path(args.out))
    print(json.dumps(result, indent=1, ensure_ascii=False) if args.json else text(result))
    return 0


def text(r: dict) -> str:
    """The answer for a terminal."""
    from sim.base.units import show

    q, s = r["question"], r["search"]
    money = next((k for k in ("rent_usd", "own_usd") if k in r["winner"]), None)

    def line(name: str, x: dict) -> str:
        cost = show(x[money], "money") if money else "no price"
        return (
            f"{name:4}{x['plan'][:44]:45}{x['micro_batch']:>3}{x['zero']:>5} {x['recompute']:14}{x['chips']:>8,}{x['step_s']:>9.3g}s"
            f"{x['tokens_per_s_per_chip']:>12.1f}{x['mfu']:>7.1%}{x['memory_gib']:>8.1f}{x['days']:>10.3g}{cost:>12}"
        )

    head = f"{'':4}{'plan':45}{'mb':>3}{'ZeRO':>5} {'recompute':14}{'chips':>8}{'step':>10}{'tok/s/chip':>12}{'MFU':>7}{'GiB':>8}{'days':>10}{'rent' if money == 'rent_usd' else 'own':>12}"
    out = [
        f"{q['model']} on at most {q['chips']:,} × {q['chip']} ({q['cluster']}), batch {q['batch']:,} × {q['seq']:,} tokens, {q['precision']}, {q['stack']}",
        f"{s['combinations']:,} combinations: {s['evaluated']:,} costed, {s['too_large']:,} too large, {s['bounded']:,} skipped by a bound; {s['cpu_s']:.1f} s of CPU",
        "",
        *r["explanation"],
        "",
    ]
    if "verified" in r:
        v = r["verified"]
        out += [
            f"The winner's step is not played as events: {v['reason']}"
            if "reason" in v
            else f"Played as events the winner's step takes {v['events_step_s']:.3g} s, {v['difference']:+.1%} from the closed form.",
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
