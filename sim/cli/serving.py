"""`clustersim serving`: what a deployment serves, how large it must be, what it earns."""

from __future__ import annotations

import argparse
import json

TEXT = "serve a model: memory, latency percentiles, tokens/s per chip, size to a target, cost and margin per million tokens"
EXAMPLES = """clustersim serving serving_glm5_h200
clustersim serving --model glm5 --cluster dgx_h200 --tp 8 --kv fp8 --num-speculative-tokens 3 --acceptance-length 2.76 --concurrency 16 --prompt 8192 --output 1024
clustersim serving --model glm5 --ask fits                (also: speed, margin, context)
clustersim serving --model glm5 --size --ttft 2s --tpot 14ms --prompt 8192 --output 1024
clustersim serving --size --model deepseek_v3 --cluster h800_deepseek --rate 180 --prompt 4300 --output 1190 --prefix-cache-hit-rate 0.563
clustersim serving serving_deepseek_h800 --json"""


def add(parser) -> None:
    parser.add_argument(
        "scenario", nargs="?", help="a serving scenario: a file, or a name in data/scenarios (serving_*)"
    )
    parser.add_argument("--model", help="a name in data/models, or a Hugging Face config.json (default glm5)")
    parser.add_argument("--cluster", action="append", help="a name in data/clusters; with --size it may be repeated")
    parser.add_argument("--chips", type=int, help="chips of an instance (default: a node)")
    parser.add_argument("--precision", help="bf16, fp8, w8a8, w4a8 or nvfp4 (default fp8)")
    parser.add_argument("--kv", help="cache format: bf16 or fp8")
    parser.add_argument(
        "--tp", type=int, help="attention tensor-parallel width; the rest is attention data parallelism"
    )
    parser.add_argument("--num-speculative-tokens", type=int, help="draft tokens by multi-token prediction")
    parser.add_argument("--acceptance-length", type=float, help="mean tokens a step yields with drafts")
    parser.add_argument("--stack", help="serving software, a name in data/serving/stacks.yaml")
    parser.add_argument("--prompt", type=float, help="prompt tokens")
    parser.add_argument("--output", type=float, help="output tokens")
    parser.add_argument("--cv", type=float, help="coefficient of variation of both lengths (default 0)")
    parser.add_argument("--prefix-cache-hit-rate", type=float, help="share of the prompt found in a prefix cache")
    parser.add_argument("--rate", type=float, help="requests per second (open loop)")
    parser.add_argument(
        "--concurrency", type=int, help="requests in flight; each that ends is followed by another (closed loop)"
    )
    parser.add_argument("--requests", type=int, help="requests to simulate (default 1000)")
    parser.add_argument("--ttft", help="time to first token wanted, such as 2s")
    parser.add_argument("--tpot", help="time per output token wanted, such as 50ms")
    parser.add_argument(
        "--size", action="store_true", help="find the smallest and the cheapest deployment that meet --ttft and --tpot"
    )
    parser.add_argument(
        "--ask", choices=("fits", "speed", "margin", "context"), help="answer one of the questions about the model"
    )
    parser.add_argument(
        "--target-tps", type=float, help="tokens/s for one stream in --ask speed and margin (default 72.5)"
    )
    parser.add_argument("--context", type=float, help="tokens of context in --ask speed and context")
    parser.add_argument("--chip-hour-price", help="money per chip-hour, such as $2/h (default: the chip's)")
    parser.add_argument(
        "--token-price", nargs=2, type=float, metavar=("INPUT", "OUTPUT"), help="dollars per million tokens"
    )
    parser.add_argument("--mode", choices=("hybrid", "roofline"), help="how steps are timed (default hybrid)")
    parser.add_argument("--seed", type=int, help="seed of arrivals and lengths")
    parser.add_argument("--json", action="store_true", help="for machines")


# What each way of asking reads beside the model, the cluster and --json; the rest is refused rather than left unread.
READ = {
    "speed": {"target_tps", "context", "chips", "precision", "kv", "mode"},
    "fits": {"precision", "kv"},
    "margin": {"target_tps", "chip_hour_price", "seed", "token_price", "prompt", "output", "mode"},
    "context": {"context", "output", "chips", "precision", "chip_hour_price", "token_price", "mode"},
    "size": {
        "chips",
        "precision",
        "kv",
        "num_speculative_tokens",
        "acceptance_length",
        "prompt",
        "output",
        "prefix_cache_hit_rate",
        "rate",
        "concurrency",
        "ttft",
        "tpot",
        "chip_hour_price",
        "mode",
        "seed",
    },
}
OPTIONS = (
    "scenario",
    "chips",
    "precision",
    "kv",
    "tp",
    "num_speculative_tokens",
    "acceptance_length",
    "stack",
    "prompt",
    "output",
    "cv",
    "prefix_cache_hit_rate",
    "rate",
    "concurrency",
    "requests",
    "ttft",
    "tpot",
    "target_tps",
    "context",
    "chip_hour_price",
    "token_price",
    "mode",
    "seed",
)


def _check_read(args: argparse.Namespace) -> None:
    """Refuse a flag that this way of asking would not read."""
    from minglm.errors import InputError

    if args.ask and args.size:
        raise InputError("--ask and --size are two questions; keep one")
    way = args.ask or ("size" if args.size else None)
    read = READ[way] if way else set(OPTIONS) - {"target_tps", "context"}
    unread = [k for k in OPTIONS if getattr(args, k) is not None and k not in read]
    if unread:
        words = "a scenario" if unread[0] == "scenario" else "--" + unread[0].replace("_", "-")
        flag = f"--ask {args.ask}" if args.ask else "--size" if way else "a simulation (without --ask)"
        raise InputError(
            f"{words} is not read by {flag}; leave it out: {flag} reads {', '.join('--' + k.replace('_', '-') for k in OPTIONS if k in read and k != 'scenario')}"
        )


def main(args: argparse.Namespace) -> int:
    from sim.base.units import parse

    _check_read(args)
    rent = (
        None
        if args.chip_hour_price is None
        else parse(args.chip_hour_price, "money_per_hour", "--chip-hour-price", low=1e-9)
    )
    if args.ask:
        result = _ask(args, rent)
        text = _answer_text(result)
    elif args.size:
        result, text = _size(args, rent)
    else:
        from sim.serving.scenario import run

        result = run(args.scenario if args.scenario and not _changes(args) else _scenario(args, rent), seed=args.seed)
        text = _scenario_text(result)
    print(json.dumps(result, indent=1, ensure_ascii=False) if args.json else text)
    missed = (
        [t for t in result.get("target", {}).values() if not t["met"]] if isinstance(result.get("target"), dict) else []
    )
    return 1 if missed else 0


def _changes(args) -> bool:
    return any(
        getattr(args, k) is not None
        for k in (
            "model",
            "cluster",
            "chips",
            "precision",
            "kv",
            "tp",
            "num_speculative_tokens",
            "acceptance_length",
            "stack",
            "prompt",
            "output",
            "cv",
            "prefix_cache_hit_rate",
            "rate",
            "concurrency",
            "requests",
            "ttft",
            "tpot",
            "chip_hour_price",
            "token_price",
            "mode",
        )
    )


def _ask(args, rent) -> dict:
    from sim.serving.questions import ask

    given: dict = {"model": args.model or "glm5"}
    one = {
        "speed": {
            "target_tps": args.target_tps,
            "context": args.context,
            "chips": args.chips,
            "precision": args.precision,
            "kv": args.kv,
            "mode": args.mode,
        },
        "fits": {"precision": args.precision, "kv": args.kv},
        "margin": {
            "target_tps": args.target_tps,
            "rent": rent,
            "seed": args.seed,
            "prices": [tuple(args.token_price)] if args.token_price else None,
            "prompt": args.prompt,
            "output": args.output,
            "mode": args.mode,
        },
        "context": {
            "context": args.context,
            "output": args.output,
            "chips": args.chips,
            "precision": args.precision,
            "rent": rent,
            "prices": tuple(args.token_price) if args.token_price else None,
            "mode": args.mode,
        },
    }[args.ask]
    given |= {k: v for k, v in one.items() if v is not None}
    if args.cluster:
        given["nodes" if args.ask == "fits" else "cluster"] = args.cluster if args.ask == "fits" else args.cluster[0]
    return ask(args.ask, **given)


def _answer_text(r: dict) -> str:
    lines = [r["question"], "", r["answer"], "", f"mode: {r['mode']}"]
    if r.get("evidence"):
        lines.append(f"measured elsewhere: {r['evidence']}")
    lines += [f"assumed: {a}" for a in r["assumptions"]]
    return "\n".join(lines)


def _target(args):
    from minglm.errors import InputError
    from sim.base.units import parse
    from sim.serving.options import Target

    if args.concurrency:
        raise InputError(
            "--concurrency: sizing takes --rate, requests per second; give --rate or leave it out for one instance of each kind"
        )
    return Target(
        args.prompt or 4096,
        args.output or 512,
        parse(args.ttft or "2s", "time", "--ttft", low=1e-6),
        parse(args.tpot or "50ms", "time", "--tpot", low=1e-6),
        args.prefix_cache_hit_rate or 0.0,
        args.rate,
    )


def _size(args, rent) -> tuple[dict, str]:
    from sim.serving.margin import ACCEPT
    from sim.serving.sizing import DEFAULT_CLUSTERS, size

    target = _target(args)
    accept = ACCEPT if args.acceptance_length is None else {args.num_speculative_tokens or 3: args.acceptance_length}
    narrow = {
        k: (v,)
        for k, v in (("formats", args.precision), ("kvs", args.kv), ("drafts", args.num_speculative_tokens))
        if v is not None
    }
    found = size(
        args.model or "glm5",
        target,
        args.cluster or DEFAULT_CLUSTERS,
        args.mode or "hybrid",
        rent,
        most=max(160, args.chips or 0),
        verify=8,
        seed=args.seed or 0,
        accept=accept,
        **narrow,
    )
    picks = {"smallest": found.smallest, "cheapest": found.cheapest}
    result: dict = {
        "tried": found.tried,
        "met": len(found.options),
        "refused": dict(found.refused),
        "notes": found.notes,
        "mode": args.mode or "hybrid",
    }
    lines = [
        f"{found.tried} deployments tried, {len(found.options)} meet TTFT {target.ttft_s:g} s and TPOT {1e3 * target.tpot_s:g} ms; "
        + "; ".join(f"{n} {why}" for why, n in sorted(found.refused.items(), key=lambda kv: -kv[1]))
    ]
    for name, option in picks.items():
        if option is None:
            continue
        result[name], seen = option.to_dict(), option.simulated
        money = (
            f", ${option.usd_per_million_input:.2f} / ${option.usd_per_million_output:.2f} a million tokens in / out"
            if option.usd_per_million_output
            else ""
        )
        lines.append(
            f"{name}: {option.decode.describe()}; {option.layout}, {option.chips} chips ({option.decode_instances} decode, {option.prefill_instances} prefill); "
            f"batch {option.batch}, TPOT {1e3 * option.tpot_s:.1f} ms, TTFT {option.ttft_s:.2f} s; {option.decode_tokens_per_s_chip:,.0f} output tokens/s a chip while "
            f"decoding{money}; mode: {option.mode}{' (' + option.measured_row + ')' if option.measured_row else ''}; simulated at {seen['rate_per_s']:.2f} requests/s: "
            f"TTFT {seen['ttft_p50_s']:.2f} s (p95 {seen['ttft_p95_s']:.2f}), TPOT p95 {1e3 * seen['tpot_p95_s']:.1f} ms, target {'kept' if option.kept else 'missed'}"
        )
    return result, "\n".join(lines + found.notes)


def _scenario(args, rent) -> dict:
    """A scenario from flags alone, or a file's with the flags on top."""
    from sim.serving.scenario import load

    given = (
        load(args.scenario)
        if args.scenario
        else {
            "version": 1,
            "kind": "serving",
            "name": "from the command line",
            "model": "glm5",
            "decode": {"cluster": "dgx_h200"},
            "workload": {},
        }
    )
    decode, work = dict(given["decode"]), dict(given["workload"])
    if args.cluster:
        decode["cluster"] = args.cluster[0]
    for key, value in (
        ("chips", args.chips),
        ("precision", args.precision),
        ("kv", args.kv),
        ("attention_tp", args.tp),
        ("drafts", args.num_speculative_tokens),
        ("accept_length", args.acceptance_length),
        ("stack", args.stack),
    ):
        if value is not None:
            decode[key] = value
    if args.tp is None and not args.scenario:
        decode["attention_tp"] = _width(decode, args.model or given["model"])
    for key, value in (("prompt", args.prompt), ("output", args.output)):
        if value is not None:
            work[key] = value
        if args.cv is not None:
            old = work.get(key, 1024 if key == "prompt" else 256)
            work[key] = {"mean": old["mean"] if isinstance(old, dict) else old, "cv": args.cv}
    for key, value in (("cached_share", args.prefix_cache_hit_rate), ("requests", args.requests)):
        if value is not None:
            work[key] = value
    if args.rate is not None or args.concurrency is not None:
        work.pop("rate", None), work.pop("concurrency", None)
        work |= {k: v for k, v in (("rate", args.rate), ("concurrency", args.concurrency)) if v is not None}
    elif "rate" not in work and "concurrency" not in work:
        work["concurrency"] = 8
    prices = dict(given.get("prices") or {})
    if rent is not None:
        prices["rent"] = rent
    if args.token_price:
        prices |= {"input": args.token_price[0], "output": args.token_price[1]}
    target = dict(given.get("target") or {}) | {
        k: v for k, v in (("ttft", args.ttft), ("tpot", args.tpot)) if v is not None
    }
    out = {
        **given,
        "decode": decode,
        "workload": work,
        "prices": prices,
        "mode": args.mode or given.get("mode", "hybrid"),
    }
    out |= {"model": args.model} if args.model else {}
    return {**out, "target": target} if target else out


def _width(decode: dict, model) -> int:
    """Attention over all chips of an instance inside a node, else data parallel."""
    from sim.spec.hardware import cluster_from
    from sim.spec.model_loader import load_model

    node = cluster_from(decode["cluster"]).chips_per_node
    chips = decode.get("chips", node)
    return chips if 1 <= chips <= node and load_model(model).heads % chips == 0 else 1


def _scenario_text(r: dict) -> str:
    m, sim, full = r["memory"]["decode"], r["simulated"], r["full_batch"]
    lines = [
        r["name"] + (f": {r['question']}" if r["question"] else ""),
        "",
        f"deployment   {r['deployment']['decode']}",
        f"prefill      {r['deployment']['prefill']}",
        f"memory       {m['weights_gib']:.1f} GiB of weights in {m['usable_gib']:.1f} usable a chip; {m['kv_bytes_per_token']:,.0f} bytes of cache a token; "
        f"{m['contexts_that_fit']:,} contexts of {m['context']:,.0f} fit",
        f"full batch   {full['requests_per_group']} requests a group: TPOT {full['tpot_ms']:.1f} ms, {full['tokens_per_s_chip']:,.0f} tokens/s a chip; {full['time_goes_to']}",
        f"one prompt   prefill {r['one_prompt']['prefill_ms']:,.0f} ms; {r['one_prompt']['time_goes_to']}",
        f"simulated    {sim['finished']:,} requests in {sim['duration_s']:,.0f} s; mean batch {sim['mean_batch']:.1f}; {sim['mean_in_system']:.1f} in the system"
        + ("; saturated: the queue grows without end" if sim["saturated"] else ""),
    ]
    for name, key, scale, unit in (
        ("TTFT", "ttft_s", 1.0, "s"),
        ("TPOT", "tpot_s", 1e3, "ms"),
        ("whole", "e2e_s", 1.0, "s"),
    ):
        lines.append(f"{name:<12} " + ", ".join(f"{p} {scale * v:.3g}" for p, v in sim[key].items()) + f" {unit}")
    lines.append(
        f"throughput   {sim['output_tokens_per_s']:,.0f} output and {sim['input_tokens_per_s']:,.0f} input tokens/s; {sim['output_tokens_per_s_chip']:,.1f} output tokens/s a chip"
    )
    money = r.get("money", {})
    if "usd_per_million_output" in money:
        lines.append(
            f"cost         ${money['usd_per_million_output']:.2f} a million output tokens with their input (${money['usd_per_million_output_low']:.2f} to "
            f"${money['usd_per_million_output_high']:.2f}) at ${money['rent_usd_per_chip_hour']:.2f} a chip-hour and {money['utilisation']:.0%} use"
        )
    elif money:
        lines.append("cost         " + money["note"])
    if money.get("margin") is not None:
        lines.append(
            f"margin       {money['margin']:.0%} ({money['margin_low']:.0%} to {money['margin_high']:.0%} over the range of rents)"
        )
    for name, t in r.get("target", {}).items():
        lines.append(
            f"{name.upper():<12} {'met' if t['met'] else 'missed'}: p95 {t['p95_s']:.4g} s against {t['limit_s']:g} s"
        )
    lines.append(f"mode         {r['mode']}")
    return "\n".join(lines + [f"assumed      {a}" for a in r["assumptions"]])
