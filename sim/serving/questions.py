"""Questions about serving GLM-5, each answered by the memory, rooflines and prices of the other serving modules.

* `fits`: on which nodes do the weights and how many contexts fit?
* `speed`: does a given number of tokens per second for one stream follow, with and without multi-token prediction?
* `margin` (`sim.serving.margin`): what do given prices per million tokens leave, over ranges of rent, load and mix?
* `long_context`: what does one long context cost in memory, time and money?

Each returns a JSON-ready dict with `question`, `answer` (sentences), `rows`, `assumptions` and `mode`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from minglm.errors import InputError
from sim.serving.cache import kv_bytes_per_token
from sim.serving.calibration import error_band, fitted
from sim.serving.defaults import cache_formats, default_stack, rent_of
from sim.serving.deployment import Deployment
from sim.serving.formats import format_name
from sim.serving.margin import ACCEPT, ACCEPT_SOURCE, margins
from sim.serving.memory import GIB, chip_memory, shortfall, weight_bytes
from sim.serving.step_time import decode_step, describe_parts, prefill, tpot
from sim.serving.workload import number
from sim.spec.hardware import Cluster, cluster_from
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model

NODES = ("dgx_h100", "dgx_h200", "h20_node", "dgx_b200", "gb300_nvl72", "mi300x", "atlas_800t_a2", "cloudmatrix384")


def ask(name: str, **arguments: Any) -> dict[str, Any]:
    """One answer by name: fits, speed, margin or context.

    Raises:
        InputError: no such question.
    """
    known: dict[str, Callable[..., dict[str, Any]]] = {
        "fits": fits,
        "speed": speed,
        "margin": margins,
        "context": long_context,
    }
    if name not in known:
        raise InputError(f"question {name!r}: must be one of {', '.join(known)}")
    return known[name](**arguments)


# ------------------------------------------------------------------ fits


def fits(
    model: str | ModelSpec = "glm5",
    precision: str = "fp8",
    kv: str = "fp8",
    contexts: Iterable[int] = (8192, 32768, 131072, 202752),
    nodes: Iterable[str | Cluster] = NODES,
) -> dict[str, Any]:
    """The fewest chips of each kind that hold the model and one context, and how many contexts they then hold.

    Attention is cut over all chips of the instance, or over those of a node, whichever needs fewer chips.
    """
    model = load_model(model)
    lengths = _within(model, [int(number(c, "context", 1)) for c in contexts])
    precision = format_name(precision)
    rows = [_fewest_chips(model, cluster_from(name), precision, kv, lengths) for name in nodes]
    total = sum(weight_bytes(model, precision, mtp=False).values())
    lacks = "".join(
        f" {r['next_smaller']['chips']} × {r['chip']} lack {r['next_smaller']['over_gib_per_chip']:.1f} GiB a chip."
        for r in rows
        if r.get("next_smaller") and r["chip"] in ("H200", "H100", "B200")
    )
    counts = [
        f"{r['chips']} × {r['chip']} ({r['contexts'][lengths[-1]]} contexts of {lengths[-1]:,})"
        for r in rows
        if r["chips"]
    ]
    held = ", ".join(counts) if counts else "none of those asked holds it"
    per_token = kv_bytes_per_token(model, kv)
    windows = f", and {model.window_layers} layers keep {model.window:,} tokens" if model.window_layers else ""
    return {
        "question": f"Which nodes hold {model.name} in {precision}?",
        "mode": "memory (counted)",
        "weights_gib": total / GIB,
        "kv_bytes_per_token": per_token,
        "answer": f"{model.name} in {precision} is {_gib(total)} of weights; "
        f"the fewest chips of each kind that hold it with a context of {lengths[0]:,} tokens: {held}." + lacks,
        "rows": rows,
        "assumptions": [
            "memory as vLLM counts it: 90% of a chip, from which its profiling pass and runtime are taken too",
            f"cache in {kv}: {per_token:,.0f} bytes a token with indexer keys{windows}",
            "chips of an instance divide the attention heads or fill whole nodes",
            f"no context beyond the model's own {model.max_seq:,} tokens",
        ],
    }


def _within(model: ModelSpec, lengths: list[int]) -> list[int]:
    """The lengths that the model's positions allow, its own limit in the place of the first beyond it."""
    return sorted({min(length, model.max_seq) for length in lengths})


def _gib(size: float) -> str:
    return f"{size / GIB:,.0f} GiB" if size >= 10 * GIB else f"{size / GIB:.2g} GiB"


def _fewest_chips(model: ModelSpec, cluster: Cluster, precision: str, kv: str, contexts: list[int]) -> dict[str, Any]:
    """The row of one kind of chip; `chips` is None where up to 128 do not hold it."""
    fitting, lacking = None, None
    for chips in range(1, 129):
        if model.heads % chips and chips % cluster.chips_per_node:
            continue
        tp = chips if model.heads % chips == 0 and chips <= cluster.chips_per_node else cluster.chips_per_node
        if chips % tp or model.heads % tp:
            continue
        stack = replace(default_stack(cluster, tp == chips), engine="vllm")
        d = Deployment(model, cluster, chips, precision, kv, tp, stack=stack).check()
        missing_bytes = shortfall(d, contexts[0], 1)
        if missing_bytes <= 0:
            fitting = d
            break
        lacking = {"chips": chips, "over_gib_per_chip": missing_bytes / GIB}
    if fitting is None:
        return {"cluster": cluster.name, "chip": cluster.chip.name, "chips": None}
    m = chip_memory(fitting)
    return {
        "cluster": cluster.name,
        "chip": cluster.chip.name,
        "chips": fitting.chips,
        "precision": precision,
        "kv": kv,
        "attention_tp": fitting.attention_tp,
        "memory_gib_per_chip": m.capacity_bytes / GIB,
        "weights_gib_per_chip": m.weights_bytes / GIB,
        "free_gib_per_chip": m.free_bytes / GIB,
        "receipt_gib": {name: size / GIB for name, size in m.receipt().items()},
        "longest_context": m.longest_context(),
        "kv_tokens": int(m.kv_tokens * fitting.groups),
        "contexts": {c: m.requests(c) * fitting.groups for c in contexts},
        "next_smaller": lacking,
    }


# ------------------------------------------------------------------ speed


def speed(
    model: str | ModelSpec = "glm5",
    cluster: str | Cluster = "dgx_h200",
    chips: int = 8,
    target_tps: float = 72.5,
    context: int = 8192,
    precision: str = "fp8",
    kv: str = "fp8",
    mode: str = "hybrid",
) -> dict[str, Any]:
    """Tokens per second of one stream at batch 1, and the largest batch that still gives `target_tps`, by drafts."""
    number(target_tps, "speed", 1e-3)
    model, cluster = load_model(model), cluster_from(cluster)
    stack = default_stack(cluster, True)
    rows = []
    for drafts, accept in ACCEPT.items():
        if not drafts or model.mtp_modules:
            length = accept if drafts else None
            d = Deployment(model, cluster, chips, precision, kv, chips, drafts, accept_length=length, stack=stack)
            rows.append(_speed_row(fitted(d.check()), context, target_tps, mode))
    where = f"{chips} × {cluster.chip.name}"
    return {
        "question": f"Does {target_tps:g} tokens/s for one stream of {model.name} follow on {where}?",
        "answer": _speed_answer(rows, target_tps, where),
        "rows": rows,
        "mode": mode,
        "evidence": "InferenceX (2026-05-25) measured 25-84 tokens/s a user for GLM-5 FP8 on 8 × H200; "
        "SGLang's cookbook 7.54 ms a token at batch 1",
        "assumptions": [
            ACCEPT_SOURCE,
            f"context {context:,}, {precision} weights, {kv} cache, attention over all {chips} chips",
            "this software on this chip is not fitted unless the table of `clustersim validate --serving` says so",
        ],
    }


def _speed_row(d: Deployment, context: int, target_tps: float, mode: str) -> dict[str, Any]:
    def tokens_per_s(batch: int) -> float:
        return 1.0 / tpot(d, batch, context, mode)

    alone, fitting = tokens_per_s(1), chip_memory(d).requests(context)
    batch, low, high = 0, 1, max(1, min(1024, fitting))
    if alone >= target_tps and fitting >= 1:
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if tokens_per_s(middle) >= target_tps else (low, middle - 1)
        batch = low
    band = error_band() if mode == "hybrid" else (1.0, 1.0)
    return {
        "drafts": d.drafts,
        "tokens_per_step": d.tokens_per_step,
        "tokens_per_s_batch_1": alone,
        "band_batch_1": [alone / band[1], alone / band[0]],
        "roofline_batch_1": 1.0 / tpot(d, 1, context, "roofline"),
        "largest_batch": batch,
        "tokens_per_s_node": (batch or 1) / tpot(d, batch or 1, context, mode),
        "at_batch": {b: tokens_per_s(b) for b in (1, 8, 16, 32, 64) if fitting >= b},
    }


def _speed_answer(rows: list[dict[str, Any]], target_tps: float, where: str) -> str:
    fast_enough = [r for r in rows if r["largest_batch"]]
    if not fast_enough:
        return (
            f"No: {target_tps:g} tokens/s for one stream is beyond {where} here; "
            f"the best is {max(r['tokens_per_s_batch_1'] for r in rows):.0f} at batch 1."
        )
    plain, best = rows[0], max(fast_enough, key=lambda r: r["largest_batch"])
    need = "with and without multi-token prediction"
    if not plain["largest_batch"]:
        need = "with multi-token prediction, not without"
    return (
        f"It follows {need}: one stream on {where} gets {plain['tokens_per_s_batch_1']:.0f} tokens/s without drafts "
        f"({plain['band_batch_1'][0]:.0f} to {plain['band_batch_1'][1]:.0f} with the error of validated rows) "
        f"and {best['tokens_per_s_batch_1']:.0f} with {best['drafts']} "
        f"({best['band_batch_1'][0]:.0f} to {best['band_batch_1'][1]:.0f}); "
        f"{target_tps:g} tokens/s then holds up to a batch of {best['largest_batch']} "
        f"({best['tokens_per_s_node']:,.0f} tokens/s for the instance). "
        f"The roofline alone would allow {plain['roofline_batch_1']:.0f} and {best['roofline_batch_1']:.0f}."
    )


# ------------------------------------------------------------------ long context


def long_context(  # noqa: PLR0913 (each is a condition of the question)
    model: str | ModelSpec = "glm5",
    cluster: str | Cluster = "dgx_h200",
    chips: int = 8,
    context: int = 202752,
    output: int = 1024,
    precision: str = "fp8",
    rent: float | None = None,
    prices: tuple[float, float] = (1.00, 3.20),
    mode: str = "hybrid",
) -> dict[str, Any]:
    """One long context: bytes, how many fit, its prefill and decode time, its cost.

    Beside it stand 4,096 tokens, and the same model with dense attention.

    Raises:
        InputError: a context that the model cannot read.
    """
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
    for variant in (model, dense) if model.index_topk else (model,):
        stack = default_stack(place, True)
        d = fitted(Deployment(variant, place, chips, precision, kv, chips, stack=stack).check())
        rows += [
            _context_row(d, length, output, usd.value if usd else None, prices, mode) for length in (4096, context)
        ]
    return {
        "question": f"What does a context of {context:,} tokens cost?",
        "answer": _context_answer(rows, f"{chips} × {place.chip.name}", output, prices),
        "rows": rows,
        "mode": mode,
        "assumptions": [
            f"{precision} weights, {kv} cache, attention over all {chips} chips, no drafts, nothing cached",
            "cost at full load: divide by the utilisation",
            f"rent {usd.value:.2f} $/chip-hour ({usd.source})" if usd else "no rent known",
        ],
    }


def _context_row(
    d: Deployment, length: int, output: int, rent: float | None, prices: tuple[float, float], mode: str
) -> dict[str, Any]:
    """What a context of `length` tokens and `output` new ones take of the instance. rent: USD per chip-hour."""
    fitting = chip_memory(d)
    fill = prefill(d, length, 0, 1, mode)
    batch = max(1, min(fitting.requests(length + output), 32))
    step = decode_step(d, batch, length, mode)
    seconds = fill.total_s + output * step.total_s / d.tokens_per_step / batch  # of the whole instance
    return {
        "model": d.model.name,
        "context": length,
        "kv_gib": {k: kv_bytes_per_token(d.model, k) * length / GIB for k in ("bf16", "fp8")},
        "fit_on_instance": fitting.requests(length) * d.groups,
        "prefill_s": fill.total_s,
        "prefill_s_nine_tenths_cached": prefill(d, length, int(0.9 * length), 1, mode).total_s,
        "prefill_parts": describe_parts(fill),
        "batch": batch,
        "tpot_ms": 1e3 * step.total_s / d.tokens_per_step,
        "tpot_ms_batch_1": 1e3 * tpot(d, 1, length, mode),
        "instance_seconds": seconds,
        "usd": rent and seconds * d.chips * rent / 3600,
        "revenue_usd": (length * prices[0] + output * prices[1]) / 1e6,
    }


def _context_answer(rows: list[dict[str, Any]], where: str, output: int, prices: tuple[float, float]) -> str:
    """rows: 4,096 tokens and the long context, then the same two with dense attention where there is a sparse one."""
    short, long, *dense = rows
    text = (
        f"A context of {long['context']:,} tokens takes {long['kv_gib']['bf16']:.1f} GiB in 16 bits and "
        f"{long['kv_gib']['fp8']:.1f} GiB in fp8 (indexer keys included); {long['fit_on_instance']} fit on {where} "
        f"beside the weights. Its prefill takes {long['prefill_s']:.1f} s "
        f"({long['prefill_s'] / short['prefill_s']:.0f} times that of 4,096 tokens; {long['prefill_parts']}), "
        f"a token then {long['tpot_ms_batch_1']:.1f} ms against {short['tpot_ms_batch_1']:.1f}."
        f" With nine tenths of it cached the prefill takes {long['prefill_s_nine_tenths_cached']:.1f} s."
    )
    if long["usd"]:
        text += (
            f" With {output:,} tokens out the request costs ${long['usd']:.3f} of machine time at full load "
            f"and brings ${long['revenue_usd']:.3f} at ${prices[0]:.2f}/${prices[1]:.2f}."
        )
    if dense:
        text += (
            f" Without DSA the prefill would take {dense[1]['prefill_s']:.1f} s "
            f"and a token {dense[1]['tpot_ms_batch_1']:.1f} ms."
        )
    return text
