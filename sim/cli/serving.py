"""`clustersim serving`: what a deployment serves, how large it must be, what it earns."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from minglm.errors import InputError
from minglm.runtime.arguments import COUNT, LENGTH, SEED, number, whole
from minglm.runtime.terminal import json_text
from sim.base.units import parse
from sim.cli._serving_scenario import scenario_from
from sim.cost.price_flags import CHIP_HOUR

if TYPE_CHECKING:
    from sim.serving.options import Option, Target

TEXT = (
    "serve a model: memory, latency percentiles, tokens/s per chip, size to a target, cost and margin per "
    "million tokens"
)
EXAMPLES = """clustersim serving serving_glm5_h200
clustersim serving --model glm5 --cluster dgx_h200 --tp 8 --kv fp8 --num-speculative-tokens 3 \
--acceptance-length 2.76 --concurrency 16 --prompt 8192 --output 1024
clustersim serving --model glm5 --ask fits                (also: speed, margin, context)
clustersim serving --model qwen3_235b_a22b --ask fits --cluster dgx_h100 --chips 4 --kv bf16 --stack vllm-0.19 \
--context 65536 --concurrency 4
clustersim serving --model glm5 --size --ttft 2s --tpot 14ms --prompt 8192 --output 1024
clustersim serving --model llama3_70b --chips 4 --precision fp8 --stack vllm --load-curve --ttft 1s --tpot 30ms
clustersim serving --model glm5 --tp 8 --instances 1000 --rate 1000 --prompt 4000 --output 800 --cv 0.8 --day \
0.4 0.3 0.3 0.5 1.0 1.3 1.5 1.4 1.3 1.2 1.0 0.8
clustersim serving --size --model deepseek_v3 --cluster h800_deepseek --rate 180 --prompt 4300 --output 1190 \
--prefix-cache-hit-rate 0.563
clustersim serving serving_deepseek_h800 --json"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scenario", nargs="?", help="a serving scenario: a file, or a name in data/scenarios (serving_*)"
    )
    parser.add_argument("--model", help="a name in data/models, or a Hugging Face config.json (default glm5)")
    parser.add_argument("--cluster", action="append", help="a name in data/clusters; with --size it may be repeated")
    parser.add_argument("--chips", type=COUNT, help="chips of an instance (default: a node)")
    parser.add_argument(
        "--precision",
        help="bf16, fp8, w8a8, w4a8, nvfp4 (routed experts), nvfp4-mlp, mxfp4, or weights alone: awq, gptq, int4, "
        "w4a16, w4a16-experts, int8 (default fp8)",
    )
    parser.add_argument("--kv", help="cache format: bf16 or fp8")
    parser.add_argument(
        "--tp", type=COUNT, help="attention tensor-parallel width; the rest is attention data parallelism"
    )
    parser.add_argument("--pp", type=COUNT, help="pipeline stages of an instance (default 1)")
    parser.add_argument(
        "--gpu-memory-utilization", type=number(minimum=0.05, maximum=1), help="share of a chip that the engine takes"
    )
    parser.add_argument("--max-model-len", type=LENGTH, help="longest context served (default: the model's)")
    parser.add_argument("--max-num-seqs", type=COUNT, help="requests of a pass, which the engine keeps memory for")
    parser.add_argument("--max-num-batched-tokens", type=LENGTH, help="prompt tokens of a pass, kept memory for")
    parser.add_argument("--num-speculative-tokens", type=whole(0), help="draft tokens by multi-token prediction")
    parser.add_argument("--acceptance-length", type=number(minimum=1), help="mean tokens a step yields with drafts")
    parser.add_argument(
        "--stack",
        help="serving software, a name in data/serving/stacks.yaml, such as vllm, sglang; vllm of a release: vllm-0.19",
    )
    parser.add_argument("--prompt", type=number(minimum=1, length=True), help="prompt tokens")
    parser.add_argument("--output", type=number(minimum=1, length=True), help="output tokens")
    parser.add_argument("--cv", type=number(minimum=0), help="coefficient of variation of both lengths (default 0)")
    parser.add_argument(
        "--prefix-cache-hit-rate", type=number(minimum=0, maximum=1), help="share of the prompt found in a prefix cache"
    )
    parser.add_argument("--rate", type=number(above=0), help="requests per second (open loop)")
    parser.add_argument(
        "--concurrency", type=COUNT, help="requests in flight; each that ends is followed by another (closed loop)"
    )
    parser.add_argument("--requests", type=COUNT, help="requests to simulate (default 1000)")
    parser.add_argument("--instances", type=COUNT, help="instances of the fleet (default 1)")
    parser.add_argument("--ttft", help="time to first token wanted, such as 2s")
    parser.add_argument("--tpot", help="time per output token wanted, such as 50ms")
    parser.add_argument(
        "--size", action="store_true", help="find the smallest and the cheapest deployment that meet --ttft and --tpot"
    )
    parser.add_argument(
        "--load-curve",
        action="store_true",
        help="latencies and throughput at rates up to the capacity, and the goodput under --ttft and --tpot",
    )
    parser.add_argument(
        "--day",
        nargs="*",
        type=number(minimum=0),
        metavar="SHARE",
        help="a day of traffic at --rate on average: latencies by the hour; relative rates of equal parts of the day, "
        "none for an even day",
    )
    parser.add_argument(
        "--ask", choices=("fits", "speed", "margin", "context"), help="answer one of the questions about the model"
    )
    parser.add_argument(
        "--target-tps", type=number(above=0), help="tokens/s for one stream in --ask speed and margin (default 72.5)"
    )
    parser.add_argument(
        "--context", type=number(minimum=1, length=True), help="tokens of context in --ask speed and context"
    )
    CHIP_HOUR.add_to(parser)
    parser.add_argument(
        "--token-price", nargs=2, type=number(minimum=0), metavar=("INPUT", "OUTPUT"), help="dollars per million tokens"
    )
    parser.add_argument("--mode", choices=("hybrid", "roofline"), help="how steps are timed (default hybrid)")
    parser.add_argument("--seed", type=SEED, help="seed of arrivals and lengths")
    parser.add_argument("--json", action="store_true", help="for machines")


ENGINE = ("gpu_memory_utilization", "max_model_len", "max_num_seqs", "max_num_batched_tokens")
# With one of these --ask fits answers for one deployment, without for every kind of node.
HELD = ("chips", "tp", "pp", "stack", *ENGINE, "num_speculative_tokens", "context", "concurrency")
# What each question reads beside the model, the cluster and --json; the rest is refused rather than left unread.
QUESTIONS = {
    "speed": ("target_tps", "context", "chips", "precision", "kv", "mode"),
    "fits": ("precision", "kv", *HELD),
    "margin": ("target_tps", "chip_hour_price", "seed", "token_price", "prompt", "output", "mode"),
    "context": ("context", "output", "chips", "precision", "chip_hour_price", "token_price", "mode"),
}
SIZING = (
    *("chips", "precision", "kv", "num_speculative_tokens", "acceptance_length", "prompt", "output"),
    *("prefix_cache_hit_rate", "rate", "concurrency", "ttft", "tpot", "chip_hour_price", "mode", "seed"),
)
SIMULATION = (
    *(
        "chips",
        "precision",
        "kv",
        "tp",
        "pp",
        *ENGINE,
        "num_speculative_tokens",
        "acceptance_length",
        "stack",
        "instances",
        "prompt",
        "output",
    ),
    *("cv", "prefix_cache_hit_rate", "rate", "concurrency", "requests", "ttft", "tpot", "chip_hour_price"),
    *("token_price", "mode"),
)
OPTIONS = ("scenario", *SIMULATION, "target_tps", "context", "seed")


def _check_read(args: argparse.Namespace) -> None:
    """Refuse a flag that this question would not read."""
    asked = [_flag(name) for name in ("ask", "size", "load_curve", "day") if getattr(args, name) not in (None, False)]
    if len(asked) > 1:
        raise InputError(f"{asked[0]} and {asked[1]} are two questions; keep one")
    if args.ask:
        read, question = QUESTIONS[args.ask], f"--ask {args.ask}"
    elif args.size:
        read, question = SIZING, "--size"
    elif args.load_curve:  # it chooses rates and requests itself
        chosen = ("rate", "concurrency", "requests", "token_price", "chip_hour_price")
        read, question = ("scenario", *(n for n in SIMULATION if n not in chosen), "seed"), "--load-curve"
    elif args.day is not None:
        read, question = ("scenario", *(n for n in SIMULATION if n not in ("concurrency", "requests")), "seed"), "--day"
    else:
        read, question = ("scenario", *SIMULATION, "seed"), "a simulation (without --ask)"
    unread = [name for name in OPTIONS if getattr(args, name) is not None and name not in read]
    if unread:
        refused = "a scenario" if unread[0] == "scenario" else _flag(unread[0])
        readable = ", ".join(_flag(name) for name in OPTIONS if name in read and name != "scenario")
        raise InputError(f"{refused} is not read by {question}; leave it out: {question} reads {readable}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def main(args: argparse.Namespace) -> int:
    from sim.serving.scenario import run

    _check_read(args)
    price = CHIP_HOUR.read(args)
    rent = None if price is None else price.value
    if args.ask:
        result = _ask(args, rent)
        text = _answer_text(result)
    elif args.size:
        result, text = _size(args, rent)
    elif args.load_curve:
        result, text = _load_curve(args)
    elif args.day is not None:
        from sim.cli._serving_day import answer

        result, text = answer(scenario_from(args, rent), args.day, args.seed or 0)
    else:
        changed = any(getattr(args, name) is not None for name in ("model", "cluster", *SIMULATION))
        result = run(scenario_from(args, rent) if changed or not args.scenario else args.scenario, seed=args.seed)
        text = _scenario_text(result)
    print(json_text(result, indent=1) if args.json else text)
    targets = result.get("target")
    return 1 if isinstance(targets, dict) and any(not t["met"] for t in targets.values()) else 0


def _ask(args: argparse.Namespace, rent: float | None) -> dict:
    from sim.serving.questions import ask

    if args.ask == "fits" and any(getattr(args, name) is not None for name in HELD):
        return _held(args)
    prices = tuple(args.token_price) if args.token_price else None
    values = {
        "target_tps": args.target_tps,
        "context": args.context,
        "chips": args.chips,
        "precision": args.precision,
        "kv": args.kv,
        "mode": args.mode,
        "rent": rent,
        "seed": args.seed,
        "prices": [prices] if prices and args.ask == "margin" else prices,
        "prompt": args.prompt,
        "output": args.output,
    }
    options = {"model": args.model or "glm5", **{k: v for k, v in values.items() if v is not None}}
    if args.cluster and args.ask == "fits":
        options["nodes"] = args.cluster
    elif args.cluster:
        options["cluster"] = args.cluster[0]
    return ask(args.ask, **options)


def _held(args: argparse.Namespace) -> dict:
    """What one deployment holds, built as a simulation would build it."""
    from sim.serving.holding import holding
    from sim.serving.scenario import deployment

    document = scenario_from(args, None)
    d = deployment(document["decode"], document["model"])
    if args.stack is None:  # as without a deployment: vLLM's way of counting
        d = d.with_changes(stack=replace(d.stack, name="vllm", engine="vllm"))
    return holding(d, args.context, args.concurrency)


def _answer_text(r: dict) -> str:
    lines = [r["question"], "", r["answer"], "", f"mode: {r['mode']}"]
    if r.get("evidence"):
        lines.append(f"measured elsewhere: {r['evidence']}")
    lines += [f"assumed: {a}" for a in r["assumptions"]]
    return "\n".join(lines)


def _load_curve(args: argparse.Namespace) -> tuple[dict, str]:
    from sim.serving.load_curve import load_curve
    from sim.serving.scenario import fleet_and_work

    document = scenario_from(args, None)
    fleet, work = fleet_and_work(document)
    limits = {name: parse(v, "time", f"--{name}", low=1e-9) for name, v in (document.get("target") or {}).items()}
    result = load_curve(fleet, work, limits.get("ttft"), limits.get("tpot"), args.seed or 0)
    result = {"deployment": fleet.decode.describe(), "target": None, **result, "mode": fleet.mode}
    lines = [
        result["deployment"],
        f"capacity     {result['capacity_per_s']:.3g} requests/s with full batches",
        "     load  requests/s   TTFT p50     p95 s   TPOT p50    p95 ms   output tokens/s   batch   kept",
    ]
    for r in result["rows"]:
        kept = "" if r["kept"] is None else f"{r['kept']:>7.0%}"
        lines.append(
            f"{r['load']:>9.0%} {r['rate_per_s']:>11.3g} {r['ttft_p50_s']:>10.3f} {r['ttft_p95_s']:>9.3f} "
            f"{1e3 * r['tpot_p50_s']:>10.1f} {1e3 * r['tpot_p95_s']:>9.1f} {r['output_tokens_per_s']:>17,.0f} "
            f"{r['mean_batch']:>7.1f}{kept}"
        )
    if result["goodput_per_s"] is not None:
        asked = " and ".join(f"{name.upper()} {limit:g} s" for name, limit in limits.items())
        lines.append(
            f"goodput      {result['goodput_per_s']:.3g} requests/s, the largest rate at which "
            f"{result['kept_share']:.0%} of them keep {asked}"
        )
    return result, "\n".join([*lines, f"mode         {result['mode']}"])


def _target(args: argparse.Namespace) -> Target:
    from sim.serving.options import Target

    if args.concurrency:
        raise InputError(
            "--concurrency: sizing takes --rate, requests per second; give --rate or leave it out for one instance of "
            "each kind"
        )
    return Target(
        args.prompt or 4096,
        args.output or 512,
        parse(args.ttft or "2s", "time", "--ttft", low=1e-6),
        parse(args.tpot or "50ms", "time", "--tpot", low=1e-6),
        args.prefix_cache_hit_rate or 0.0,
        args.rate,
    )


def _size(args: argparse.Namespace, rent: float | None) -> tuple[dict, str]:
    from sim.serving.margin import ACCEPT
    from sim.serving.sizing import DEFAULT_CLUSTERS, size

    target = _target(args)
    drafts = args.num_speculative_tokens
    narrowed = {"formats": args.precision, "kvs": args.kv, "drafts": drafts}
    sizing = size(
        args.model or "glm5",
        target,
        args.cluster or DEFAULT_CLUSTERS,
        args.mode or "hybrid",
        rent,
        most=max(160, args.chips or 0),
        verify=8,
        seed=args.seed or 0,
        accept=ACCEPT if args.acceptance_length is None else {drafts or 3: args.acceptance_length},
        **{axis: (value,) for axis, value in narrowed.items() if value is not None},
    )
    result: dict = {
        "tried": sizing.tried,
        "met": len(sizing.options),
        "refused": dict(sizing.refused),
        "notes": sizing.notes,
        "mode": args.mode or "hybrid",
    }
    reasons = sorted(sizing.refused.items(), key=lambda reason: -reason[1])
    lines = [
        f"{sizing.tried} deployments tried, {len(sizing.options)} meet TTFT {target.ttft_s:g} s and TPOT "
        f"{1e3 * target.tpot_s:g} ms; " + "; ".join(f"{count} {reason}" for reason, count in reasons)
    ]
    for name, option in (("smallest", sizing.smallest), ("cheapest", sizing.cheapest)):
        if option is not None:
            result[name] = option.to_dict()
            lines.append(f"{name}: {_option_text(option)}")
    return result, "\n".join(lines + sizing.notes)


def _option_text(option: Option) -> str:
    seen = option.simulated or {}
    money = (
        f", ${option.usd_per_million_input:.2f} / ${option.usd_per_million_output:.2f} a million tokens in / out"
        if option.usd_per_million_output
        else ""
    )
    measured = f" ({option.measured_row})" if option.measured_row else ""
    return (
        f"{option.decode.describe()}; {option.layout}, {option.chips} chips ({option.decode_instances} decode, "
        f"{option.prefill_instances} prefill); batch {option.batch}, TPOT {1e3 * option.tpot_s:.1f} ms, TTFT "
        f"{option.ttft_s:.2f} s; {option.decode_tokens_per_s_chip:,.0f} output tokens/s a chip while decoding{money}; "
        f"mode: {option.mode}{measured}; simulated at {seen['rate_per_s']:.2f} requests/s: TTFT "
        f"{seen['ttft_p50_s']:.2f} s "
        f"(p95 {seen['ttft_p95_s']:.2f}), TPOT p95 {1e3 * seen['tpot_p95_s']:.1f} ms, target "
        f"{'kept' if option.kept else 'missed'}"
    )


def _contexts(m: dict) -> str:
    many = m["contexts_that_fit"]
    return f"{many:,} context{'' if many == 1 else 's'} of {m['context']:,.0f} fit{'s' if many == 1 else ''}"


def _receipt_text(m: dict) -> str:
    """The receipt of one chip, and what its cache holds."""
    items = [f"{name} {size:.1f}" for name, size in m["receipt_gib"].items() if name not in ("chip", "usable", "cache")]
    return (
        f"{m['usable_gib']:.1f} GiB of {m['chip_gib']:.1f} usable a chip: {', '.join(items)}; "
        f"cache {m['receipt_gib']['cache']:.1f} GiB at {m['kv_bytes_per_token']:,.0f} bytes a token = "
        f"{m['kv_tokens_per_group']:,} tokens a group; {_contexts(m)}"
    )


def _range(full: dict) -> str:
    """The range that holds 80% of measured engines of the kind, where one is known."""
    if "tpot_ms_low" not in full:
        return ""
    return f" (80% of measured engines: {full['tpot_ms_low']:.1f}-{full['tpot_ms_high']:.1f})"


def _scenario_text(r: dict) -> str:
    m, sim, full = r["memory"]["decode"], r["simulated"], r["full_batch"]
    lines = [
        r["name"] + (f": {r['question']}" if r["question"] else ""),
        "",
        f"deployment   {r['deployment']['decode']}",
        f"prefill      {r['deployment']['prefill']}",
        f"memory       {_receipt_text(m)}",
        f"full batch   {full['requests_per_group']} requests a group: TPOT {full['tpot_ms']:.1f} ms{_range(full)}, "
        f"{full['tokens_per_s_chip']:,.0f} tokens/s a chip; {full['time_goes_to']}",
        f"one prompt   prefill {r['one_prompt']['prefill_ms']:,.0f} ms; {r['one_prompt']['time_goes_to']}",
        f"simulated    {sim['finished']:,} requests in {sim['duration_s']:,.0f} s; mean batch "
        f"{sim['mean_batch']:.1f}; {sim['mean_in_system']:.1f} in the system"
        + ("; saturated: the queue grows without end" if sim["saturated"] else ""),
    ]
    for name, key, scale, unit in (
        ("TTFT", "ttft_s", 1.0, "s"),
        ("TPOT", "tpot_s", 1e3, "ms"),
        ("whole", "e2e_s", 1.0, "s"),
    ):
        lines.append(f"{name:<12} " + ", ".join(f"{p} {scale * v:.3g}" for p, v in sim[key].items()) + f" {unit}")
    lines.append(
        f"throughput   {sim['output_tokens_per_s']:,.0f} output and {sim['input_tokens_per_s']:,.0f} input "
        f"tokens/s; {sim['output_tokens_per_s_chip']:,.1f} output tokens/s a chip"
    )
    money = r.get("money", {})
    if "usd_per_million_output" in money:
        lines.append(
            f"cost         ${money['usd_per_million_output']:.2f} a million output tokens with their input "
            f"(${money['usd_per_million_output_low']:.2f} to "
            f"${money['usd_per_million_output_high']:.2f}) at ${money['rent_usd_per_chip_hour']:.2f} a chip-hour "
            f"and {money['utilisation']:.0%} use"
        )
    elif money:
        lines.append("cost         " + money["note"])
    if money.get("margin") is not None:
        lines.append(
            f"margin       {money['margin']:.0%} ({money['margin_low']:.0%} to {money['margin_high']:.0%} over the "
            "range of rents)"
        )
    for name, t in r.get("target", {}).items():
        lines.append(
            f"{name.upper():<12} {'met' if t['met'] else 'missed'}: p95 {t['p95_s']:.4g} s against {t['limit_s']:g} s"
        )
    lines.append(f"mode         {r['mode']}")
    return "\n".join(lines + [f"assumed      {a}" for a in r["assumptions"]])
