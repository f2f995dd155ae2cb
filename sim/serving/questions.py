"""Questions about serving GLM-5, each answered by the memory, rooflines and prices of the other serving modules.

* `fits`: on which nodes do the weights and how many contexts fit?
* `speed`: does a given number of tokens per second for one stream follow, with and without multi-token prediction?
* `margin`: what do given prices per million tokens leave, over ranges of rent, load, mix and cache hits?
* `long_context`: what does one long context cost in memory, time and money?

Each returns a JSON-ready dict with `question`, `answer` (sentences), `rows`, `assumptions` and `mode`.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from minglm.errors import InputError
from sim.base.figure import Figure
from sim.serving.calibration import error_band, fitted
from sim.serving.deployment import GIB, Deployment, kv_bytes_per_token, memory, shortfall, weight_bytes
from sim.serving.sizing import HEADROOM, Option, Target, cache_formats, default_stack, rent_of, size
from sim.serving.step_time import decode_step, describe_parts, prefill, tpot
from sim.serving.workload import number
from sim.spec.hardware import cluster_from
from sim.spec.model_loader import load_model

NODES = ("dgx_h100", "dgx_h200", "h20_node", "dgx_b200", "gb300_nvl72", "mi300x", "atlas_800t_a2", "cloudmatrix384")
ACCEPT = {0: 1.0, 1: 1.70, 3: 2.76}  # mean tokens a step by draft tokens; see assumptions of `speed`
ACCEPT_SOURCE = (
    "1 draft: 70% acceptance (CloudMatrix-Infer assumes it); 3 drafts: 2.76 tokens (GLM-5 report, table 2, 4 speculative steps; "
    "SGLang's benchmark on random tokens saw 3.5)"
)


def fits(
    model="glm5",
    precision: str = "fp8",
    kv: str = "fp8",
    contexts: Iterable[int] = (8192, 32768, 131072, 202752),
    nodes: Iterable = NODES,
) -> dict:
    """The fewest chips of each kind that hold the model and one context, and how many contexts they then hold.

    Attention is cut over all chips of the instance, or over those of a node, whichever needs fewer chips.
    """
    model, contexts = load_model(model), [int(number(c, "context", 1)) for c in contexts]
    rows = []
    for name in nodes:
        cluster = cluster_from(name)
        best, lacking = None, None
        for chips in range(1, 129):
            if model.heads % chips and chips % cluster.chips_per_node:
                continue
            tp = chips if model.heads % chips == 0 and chips <= cluster.chips_per_node else cluster.chips_per_node
            if chips % tp or model.heads % tp:
                continue
            d = Deployment(model, cluster, chips, precision, kv, tp, stack=default_stack(cluster, tp == chips)).check()
            over = shortfall(d, contexts[0], 1)
            if over <= 0:
                best = d
                break
            lacking = {"chips": chips, "over_gib_per_chip": over / GIB}
        if best is None:
            rows.append({"cluster": cluster.name, "chip": cluster.chip.name, "chips": None})
            continue
        m = memory(best)
        rows.append(
            {
                "cluster": cluster.name,
                "chip": cluster.chip.name,
                "chips": best.chips,
                "precision": precision,
                "kv": kv,
                "attention_tp": best.attention_tp,
                "memory_gib_per_chip": m.capacity_bytes / GIB,
                "weights_gib_per_chip": m.weights_bytes / GIB,
                "free_gib_per_chip": (m.usable_bytes - m.weights_bytes) / GIB,
                "kv_tokens": int(m.kv_tokens * best.groups),
                "contexts": {c: m.requests(c) * best.groups for c in contexts},
                "next_smaller": lacking,
            }
        )
    total = sum(weight_bytes(model, precision, mtp=False).values())
    lacks = "".join(
        f" {r['next_smaller']['chips']} × {r['chip']} lack {r['next_smaller']['over_gib_per_chip']:.1f} GiB a chip."
        for r in rows
        if r.get("next_smaller") and r["chip"] in ("H200", "H100", "B200")
    )
    words = [
        f"{r['chips']} × {r['chip']} ({r['contexts'][contexts[-1]]} contexts of {contexts[-1]:,})"
        for r in rows
        if r["chips"]
    ]
    return {
        "question": f"Which nodes hold {model.name} in {precision}?",
        "mode": "memory (counted)",
        "weights_gib": total / GIB,
        "kv_bytes_per_token": kv_bytes_per_token(model, kv),
        "answer": f"{model.name} in {precision} is {total / GIB:.0f} GiB of weights; the fewest chips of each kind that hold it with a context of "
        f"{contexts[0]:,} tokens: " + ", ".join(words) + "." + lacks,
        "rows": rows,
        "assumptions": [
            f"{100 * 0.9:.0f}% of memory usable (vLLM's default)",
            f"cache in {kv}: {kv_bytes_per_token(model, kv):,.0f} bytes a token with indexer keys",
            "chips of an instance divide the attention heads or fill whole nodes",
        ],
    }


def speed(
    model="glm5",
    cluster="dgx_h200",
    chips: int = 8,
    wanted: float = 72.5,
    context: int = 8192,
    precision: str = "fp8",
    kv: str = "fp8",
    mode: str = "hybrid",
) -> dict:
    """Tokens per second of one stream at batch 1, and the largest batch that still gives `wanted`, by draft length."""
    number(wanted, "speed", 1e-3)
    model, cluster = load_model(model), cluster_from(cluster)
    rows, band = [], error_band() if mode == "hybrid" else (1.0, 1.0)
    for drafts, accept in ACCEPT.items():
        if drafts and not model.mtp_modules:
            continue
        d = fitted(
            Deployment(
                model,
                cluster,
                chips,
                precision,
                kv,
                chips,
                drafts,
                accept_length=accept if drafts else None,
                stack=default_stack(cluster, True),
            ).check()
        )
        one = 1.0 / tpot(d, 1, context, mode)
        batch, low, high = 0, 1, max(1, min(1024, memory(d).requests(context)))
        if one >= wanted and memory(d).requests(context) >= 1:
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if 1.0 / tpot(d, middle, context, mode) >= wanted else (low, middle - 1)
            batch = low
        bound = 1.0 / tpot(d, 1, context, "roofline")
        rows.append(
            {
                "drafts": drafts,
                "tokens_per_step": d.tokens_per_step,
                "tokens_per_s_batch_1": one,
                "band_batch_1": [one / band[1], one / band[0]],
                "roofline_batch_1": bound,
                "largest_batch": batch,
                "tokens_per_s_node": (batch or 1) / tpot(d, batch or 1, context, mode),
                "at_batch": {
                    b: 1.0 / tpot(d, b, context, mode) for b in (1, 8, 16, 32, 64) if memory(d).requests(context) >= b
                },
            }
        )
    ok = [r for r in rows if r["largest_batch"]]
    if not ok:
        text = f"No: {wanted:g} tokens/s for one stream is beyond {chips} × {cluster.chip.name} here; the best is {max(r['tokens_per_s_batch_1'] for r in rows):.0f} at batch 1."
    else:
        best, first = max(ok, key=lambda r: r["largest_batch"]), rows[0]
        need = (
            "with multi-token prediction, not without"
            if not first["largest_batch"]
            else "with and without multi-token prediction"
        )
        text = (
            f"It follows {need}: one stream on {chips} × {cluster.chip.name} gets {first['tokens_per_s_batch_1']:.0f} tokens/s without drafts "
            f"({first['band_batch_1'][0]:.0f} to {first['band_batch_1'][1]:.0f} with the error of validated rows) and {best['tokens_per_s_batch_1']:.0f} with "
            f"{best['drafts']} ({best['band_batch_1'][0]:.0f} to {best['band_batch_1'][1]:.0f}); {wanted:g} tokens/s then holds up to a batch of {best['largest_batch']} "
            f"({best['tokens_per_s_node']:,.0f} tokens/s for the instance). The roofline alone would allow {first['roofline_batch_1']:.0f} and {best['roofline_batch_1']:.0f}."
        )
    return {
        "question": f"Does {wanted:g} tokens/s for one stream of {model.name} follow on {chips} × {cluster.chip.name}?",
        "answer": text,
        "rows": rows,
        "mode": mode,
        "evidence": "InferenceX (2026-05-25) measured 25-84 tokens/s a user for GLM-5 FP8 on 8 × H200; SGLang's cookbook 7.54 ms a token at batch 1",
        "assumptions": [
            ACCEPT_SOURCE,
            f"context {context:,}, {precision} weights, {kv} cache, attention over all {chips} chips",
            "this software on this chip is not fitted unless the table of `clustersim validate --serving` says so",
        ],
    }


# factor: (low, likely, high, label, source)
MARGIN_RANGES = {
    "utilisation": (
        0.3,
        0.5,
        0.8,
        "assumed",
        "share of its throughput that a service uses over a day; DeepSeek's day used 226.75 of 278 nodes",
    ),
    "input_per_output": (
        2.0,
        3.6,
        12.0,
        "published",
        "608B in, 168B out at DeepSeek (open-infra-index day 6); agents send more",
    ),
    "cache_hit": (0.0, 0.563, 0.8, "published", "56.3% at DeepSeek (open-infra-index day 6)"),
    "cached_price_share": (
        0.1,
        0.2,
        1.0,
        "assumed",
        "price of a cached input token over an uncached one; 1 where a provider gives no discount",
    ),
}


def margin(
    model="glm5",
    cluster="dgx_h200",
    prices: Iterable[tuple[float, float]] = ((1.00, 3.20), (0.80, 2.56)),
    prompt: int = 8192,
    output: int = 1024,
    tpot_s: float = 0.05,
    ttft_s: float = 5.0,
    rent: float | Figure | None = None,
    samples: int = 4000,
    seed: int = 0,
    most: int = 72,
    mode: str = "hybrid",
    option: Option | None = None,
) -> dict:
    """Margin at prices per million input and output tokens, as an interval; the factor that moves it most.

    Throughput is that of the cheapest deployment on `cluster` that meets TPOT and TTFT at `prompt` and `output` tokens.
    """
    model, place = load_model(model), cluster_from(cluster)
    if option is None:
        sizing = size(model, Target(prompt, output, ttft_s, tpot_s), [place], mode, rent, most, accept=ACCEPT)
        option = sizing.cheapest or sizing.options[0]
    cost = rent_of(option.decode.cluster, rent)
    if cost is None:
        raise InputError(f"{place.chip.name} has no rent in data/chips: give --chip-hour-price, dollars per chip-hour")
    number(samples, "samples", 10, 1e6)
    band = error_band() if option.mode == "hybrid" else (1.0, 1.0)
    ranges = {
        "rent": (cost.low, cost.value, cost.high),
        **{k: v[:3] for k, v in MARGIN_RANGES.items()},
        "model_error": (band[0], 1.0, band[1]),
    }
    per_in, per_out = option.chip_seconds_input * HEADROOM, option.chip_seconds_output * HEADROOM

    def left(x: dict, price_in: float, price_out: float) -> tuple[float, float]:
        """(margin, cost per million output tokens with their input)."""
        mix, hit = x["input_per_output"], x["cache_hit"]
        income = price_out + mix * price_in * ((1 - hit) + hit * x["cached_price_share"])
        seconds = (per_out + mix * (1 - hit) * per_in) * x["model_error"] / x["utilisation"]
        spent = 1e6 * seconds * x["rent"] / 3600
        return 1.0 - spent / income, spent

    likely, rng = {k: v[1] for k, v in ranges.items()}, random.Random(seed)
    drawn = [
        {k: rng.triangular(low, high, mid) if high > low else mid for k, (low, mid, high) in ranges.items()}
        for _ in range(int(samples))
    ]
    rows = []
    for price_in, price_out in prices:
        number(price_in, "input price", 0), number(price_out, "output price", 1e-9)
        found = sorted(left(x, price_in, price_out)[0] for x in drawn)
        swings = {}
        for k, (low, _, high) in ranges.items():
            ends = [left({**likely, k: v}, price_in, price_out)[0] for v in (low, high)]
            swings[k] = sorted(ends)
        most_moved = max(swings, key=lambda k: swings[k][1] - swings[k][0])
        middle, spent = left(likely, price_in, price_out)
        rows.append(
            {
                "input_price": price_in,
                "output_price": price_out,
                "likely": middle,
                "p5": found[len(found) // 20],
                "p50": found[len(found) // 2],
                "p95": found[-len(found) // 20 - 1],
                "cost_per_million_output_with_input": spent,
                "share_positive": sum(v > 0 for v in found) / len(found),
                "swings": swings,
                "moves_most": most_moved,
            }
        )
    text = " ".join(
        f"At ${r['input_price']:.2f}/${r['output_price']:.2f} the margin is {r['likely']:.0%} in the likely case and {r['p5']:.0%} to {r['p95']:.0%} in nine "
        f"cases of ten ({r['share_positive']:.0%} are above zero); {r['moves_most'].replace('_', ' ')} moves it most "
        f"({r['swings'][r['moves_most']][0]:.0%} to {r['swings'][r['moves_most']][1]:.0%})."
        for r in rows
    )
    return {
        "question": f"What margin do the prices leave for {model.name} on {option.decode.cluster.chip.name}?",
        "answer": text,
        "rows": rows,
        "deployment": option.decode.describe(),
        "layout": option.layout,
        "mode": option.mode,
        "measured_row": option.measured_row,
        "usd_per_million": {
            "input": 1e6 * per_in * cost.value / 3600 / likely["utilisation"],
            "output": 1e6 * per_out * cost.value / 3600 / likely["utilisation"],
        },
        "ranges": {
            "rent": {"range": ranges["rent"], "label": cost.confidence, "source": cost.source},
            **{k: {"range": v[:3], "label": v[3], "source": v[4]} for k, v in MARGIN_RANGES.items()},
            "model_error": {
                "range": ranges["model_error"],
                "label": "measured",
                "source": "true over modelled time among the decode rows of `clustersim validate --serving`",
            },
        },
        "assumptions": [
            f"{prompt:,} tokens in, {output:,} out; TPOT {1e3 * tpot_s:.0f} ms, TTFT {ttft_s:g} s",
            ACCEPT_SOURCE,
            "triangular ranges, independent",
            "rent is all the cost: staff, network and failed requests are not in it",
        ],
    }


def margins(model="glm5", cluster="dgx_h200", wanted: float = 72.5, **rest) -> dict:
    """`margin` twice: many streams at 20 tokens/s on wide expert parallelism, and `wanted` tokens/s on one node."""
    number(wanted, "speed", 1e-3)
    place = cluster_from(cluster)
    node = place.chips_per_node
    cases = {
        "20 tokens/s a stream, up to 72 chips an instance": {"tpot_s": 0.05, "most": 72},
        f"{wanted:g} tokens/s a stream, instances of {node} chips": {"tpot_s": 1.0 / wanted, "most": node},
    }
    found = {name: margin(model, place, **{**how, **rest}) for name, how in cases.items()}
    first = next(iter(found.values()))
    return {
        "question": first["question"],
        "answer": " ".join(
            f"{name} ({r['deployment']}, {r['layout']}, {r['mode']}): {r['answer']}" for name, r in found.items()
        ),
        "rows": [row for r in found.values() for row in r["rows"]],
        "cases": found,
        "mode": first["mode"],
        "assumptions": first["assumptions"],
    }


def long_context(
    model="glm5",
    cluster="dgx_h200",
    chips: int = 8,
    context: int = 202752,
    output: int = 1024,
    precision: str = "fp8",
    rent: float | Figure | None = None,
    prices: tuple[float, float] = (1.00, 3.20),
    mode: str = "hybrid",
) -> dict:
    """One long context: bytes, how many fit, its prefill and decode time, its cost; beside 4,096 tokens and beside dense attention."""
    model, place = load_model(model), cluster_from(cluster)
    context, output = int(number(context, "context", 2)), int(number(output, "output", 1))
    if context > model.max_seq:
        raise InputError(
            f"context={context:,}: {model.name} reads at most {model.max_seq:,} tokens; give {model.max_seq:,} or fewer"
        )
    usd = rent_of(place, rent)
    kv = cache_formats(place)[0]
    dense = dataclasses.replace(
        model, index_topk=0, index_heads=0, index_dim=0, indexer_full_layers=0, name=model.name + " without DSA"
    )
    rows = []
    for which in (model, dense) if model.index_topk else (model,):
        d = fitted(Deployment(which, place, chips, precision, kv, chips, stack=default_stack(place, True)).check())
        room = memory(d)
        for length in (4096, context):
            fill = prefill(d, length, 0, 1, mode).total_s
            batch = max(1, min(room.requests(length + output), 32))
            step = decode_step(d, batch, length, mode)
            seconds = fill + output * step.total_s / d.tokens_per_step / batch  # of the whole instance
            rows.append(
                {
                    "model": which.name,
                    "context": length,
                    "kv_gib": {k: kv_bytes_per_token(which, k) * length / GIB for k in ("bf16", "fp8")},
                    "fit_on_instance": room.requests(length) * d.groups,
                    "prefill_s": fill,
                    "prefill_s_nine_tenths_cached": prefill(d, length, int(0.9 * length), 1, mode).total_s,
                    "prefill_parts": describe_parts(prefill(d, length, 0, 1, mode)),
                    "batch": batch,
                    "tpot_ms": 1e3 * step.total_s / d.tokens_per_step,
                    "tpot_ms_batch_1": 1e3 * tpot(d, 1, length, mode),
                    "instance_seconds": seconds,
                    "usd": usd and seconds * chips * usd.value / 3600,
                    "revenue_usd": (length * prices[0] + output * prices[1]) / 1e6,
                }
            )
    long, short = rows[1], rows[0]
    text = (
        f"A context of {context:,} tokens takes {long['kv_gib']['bf16']:.1f} GiB in 16 bits and {long['kv_gib']['fp8']:.1f} GiB in fp8 (indexer keys included); "
        f"{long['fit_on_instance']} fit on {chips} × {place.chip.name} beside the weights. Its prefill takes {long['prefill_s']:.1f} s "
        f"({long['prefill_s'] / short['prefill_s']:.0f} times that of 4,096 tokens; {long['prefill_parts']}), a token then {long['tpot_ms_batch_1']:.1f} ms against {short['tpot_ms_batch_1']:.1f}."
    )
    text += f" With nine tenths of it cached the prefill takes {long['prefill_s_nine_tenths_cached']:.1f} s."
    if usd:
        text += f" With {output:,} tokens out the request costs ${long['usd']:.3f} of machine time at full load and brings ${long['revenue_usd']:.3f} at ${prices[0]:.2f}/${prices[1]:.2f}."
    if len(rows) > 2:
        text += f" Without DSA the prefill would take {rows[3]['prefill_s']:.1f} s and a token {rows[3]['tpot_ms_batch_1']:.1f} ms."
    return {
        "question": f"What does a context of {context:,} tokens cost?",
        "answer": text,
        "rows": rows,
        "mode": mode,
        "assumptions": [
            f"{precision} weights, {kv} cache, attention over all {chips} chips, no drafts, nothing cached",
            "cost at full load: divide by the utilisation",
            f"rent {usd.value:.2f} $/chip-hour ({usd.source})" if usd else "no rent known",
        ],
    }


def ask(name: str, **arguments) -> dict:
    """One answer by name: fits, speed, margin or context."""
    known = {"fits": fits, "speed": speed, "margin": margins, "context": long_context}
    if name not in known:
        raise InputError(f"question {name!r}: must be one of {', '.join(known)}")
    return known[name](**arguments)
