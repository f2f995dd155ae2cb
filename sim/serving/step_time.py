"""Rooflines of serving: how long one decode step and one prefill take on an instance.

Every operator of a layer is counted (MLA absorbed for decoding and for sparse attention, expanded for dense prefill; the
DSA indexer; experts; head), each with its FLOPs and bytes. Two ways to give it a time, named on each answer:

* `hybrid`: the kernel curves of `sim.cost.kernels` for matmuls, shares of the roofs that published attention kernels reach,
  measured all-to-all latencies, fixed costs of small kernels and of the host (`sim.serving.stacks`).
* `roofline`: peak FLOP/s, peak bandwidth and line rate alone: a bound that nothing beats.

(`measured`, a published row of the same configuration, is in `sim.serving.sizing`.)

Symbols: T query tokens of one attention group, R requests of it, S key positions, C hidden, H heads, E experts, K chosen.
Sources: DeepSeek-V3 (arXiv 2412.19437), DeepSeek-V3.2 (DSA), DeepEP and FlashMLA READMEs, CloudMatrix384 (arXiv 2506.12708).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from minglm.errors import InputError
from sim.serving.deployment import Deployment, memory
from sim.serving.operators import (
    CONSTANTS,
    MODES,
    Roof,
    add,
    all_reduce,
    decode_all_to_all,
    decode_attention,
    dense_ffn,
    experts,
    head,
    prefill_all_to_all,
    prefill_attention,
    projections,
)

__all__ = [
    "MODES",
    "EngineStepTime",
    "decode_step",
    "prefill",
    "tpot",
    "largest_batch",
    "flops_per_token",
    "describe_parts",
]


@dataclass(frozen=True)
class EngineStepTime:
    """Seconds of one step and what they go to. `tokens`: output tokens (decode) or new tokens (prefill) of the instance."""

    total_s: float
    parts: Mapping[str, float]
    tokens: float
    mode: str
    overlapped: bool = False  # two micro-batches hid (part of) the all-to-all

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.total_s


def _roof(d: Deployment, mode: str) -> Roof:
    if mode not in d.rooflines:
        d.rooflines[mode] = Roof(d, mode)
    return d.rooflines[mode]


def _overlap(half: float, half_message: float, share: float, slowed: float = 1.0) -> float:
    """Seconds of a layer with two micro-batches, `share` of the messages able to hide behind the other's compute.

    half, half_message: compute and message seconds of one micro-batch; slowed: share of the cores left to compute.
    """
    compute, sent = 2.0 * half / slowed, 2.0 * half_message
    hidden = max(compute, sent, half / slowed + half_message)
    return compute + sent - share * (compute + sent - hidden)


def decode_step(d: Deployment, requests: float, context: float, mode: str = "hybrid") -> EngineStepTime:
    """One decode step of the instance: `requests` per attention group, each with `context` cached tokens.

    Does not look at memory (`require_fit` does). A step verifies `drafts` draft tokens and makes the next ones.
    """
    roof = _roof(d, mode)
    if requests <= 0 or context < 0:
        raise InputError(
            f"requests={requests!r}, context={context!r}: a step needs more than 0 requests and a context of at least 0"
        )
    m, stack, q = d.model, d.stack, d.drafts + 1.0
    imbalance = stack["imbalance"] if roof.hybrid and not d.tensor_experts else 1.0

    def layer(R: float, queries: float, moe: bool) -> tuple[dict, float]:
        parts: dict[str, float] = {}
        T = R * queries
        projections(roof, T, True, parts)
        decode_attention(roof, R, queries, context, parts)
        if moe:
            experts(roof, T, parts, imbalance)
        else:
            dense_ffn(roof, T, parts)
        add(parts, "all-reduce", all_reduce(roof, T) * (2.0 if not moe or d.tensor_experts else 1.0))
        add(
            parts,
            "small kernels",
            roof.small(stack["small_kernels"])
            + roof.pass_(2.0 * CONSTANTS["elementwise_passes"][0] * T * m.hidden / d.attention_tp),
        )
        return parts, decode_all_to_all(roof, T) if moe else 0.0

    total: dict[str, float] = {}
    overlapped = False
    if m.moe_layers:
        parts, message = layer(requests, q, True)
        best = sum(parts.values()) + message
        if message and requests >= 2 and (stack["two_batch"] or not roof.hybrid):
            half, half_message = layer(requests / 2, q, True)
            both = _overlap(sum(half.values()), half_message, stack["ep_overlap"] if roof.hybrid else 1.0)
            if both < best:
                parts = {k: 2.0 * v for k, v in half.items()}
                message, best, overlapped = both - sum(parts.values()), both, True
        for name, time in {**parts, "all-to-all": max(message, 0.0)}.items():
            add(total, name, m.moe_layers * time)
    if m.dense_ffn_layers:
        parts, _ = layer(requests, q, False)
        for name, time in parts.items():
            add(total, name, m.dense_ffn_layers * time)
    head(roof, requests * q, total)
    if d.drafts:
        parts, message = layer(requests, 1.0, bool(m.experts))
        head(roof, requests, parts)
        one = (
            sum(parts.values())
            + message
            + roof.matmul(requests, m.hidden, 2 * m.hidden, d.format.dense_bytes, d.format.dense_compute)
        )
        add(total, "drafts", d.drafts * one)
    add(total, "host", stack["host_s"] if roof.hybrid else 0.0)
    scale = stack.get("scale", 1.0) if roof.hybrid else 1.0
    time = sum(total.values()) * scale
    return EngineStepTime(
        time, {k: v * scale for k, v in total.items()}, requests * d.groups * d.tokens_per_step, mode, overlapped
    )


def tpot(d: Deployment, requests: float, context: float, mode: str = "hybrid") -> float:
    """Seconds per output token that one stream sees."""
    return decode_step(d, requests, context, mode).total_s / d.tokens_per_step


def prefill(
    d: Deployment, prompt: float, cached: float = 0.0, prompts: float = 1.0, mode: str = "hybrid"
) -> EngineStepTime:
    """`prompts` prompts of `prompt` tokens per attention group, of which `cached` tokens are in the cache already."""
    roof = _roof(d, mode)
    new = prompt - cached
    if new <= 0 or cached < 0 or prompts <= 0:
        raise InputError(
            f"prompt={prompt:g}, cached={cached:g}, prompts={prompts:g}: needs more than 0 new tokens; cached must be less than prompt"
        )
    m, stack = d.model, d.stack
    sparse = m.index_topk and prompt > m.index_topk

    def layer(T: float, moe: bool) -> tuple[dict, float]:
        parts: dict[str, float] = {}
        projections(roof, T, bool(sparse), parts)
        prefill_attention(roof, T, new, cached, parts)
        if moe:
            experts(roof, T, parts, 1.0)
        else:
            dense_ffn(roof, T, parts)
        add(parts, "all-reduce", all_reduce(roof, T) * (2.0 if not moe or d.tensor_experts else 1.0))
        add(
            parts,
            "small kernels",
            roof.small(stack["small_kernels"])
            + roof.pass_(2.0 * CONSTANTS["elementwise_passes"][0] * T * m.hidden / d.attention_tp),
        )
        return parts, prefill_all_to_all(roof, T) if moe else 0.0

    T, total, overlapped = prompts * new, {}, False
    if m.moe_layers:
        parts, message = layer(T, True)
        best = sum(parts.values()) + message
        if message and (stack["two_batch"] or not roof.hybrid):
            half, half_message = layer(T / 2, True)
            both = _overlap(sum(half.values()), half_message, 1.0, stack["prefill_core_share"] if roof.hybrid else 1.0)
            if both < best:
                parts = {k: 2.0 * v for k, v in half.items()}
                message, overlapped = both - sum(parts.values()), True
        for name, time in {**parts, "all-to-all": max(message, 0.0)}.items():
            add(total, name, m.moe_layers * time)
    if m.dense_ffn_layers:
        parts, _ = layer(T, False)
        for name, time in parts.items():
            add(total, name, m.dense_ffn_layers * time)
    head(roof, prompts, total)
    add(total, "host", stack["host_s"] if roof.hybrid else 0.0)
    scale = stack.get("scale", 1.0) if roof.hybrid else 1.0
    if roof.hybrid and not d.tensor_experts and d.chips > 1 and m.experts:
        scale *= stack.get("prefill_imbalance", 1.0)
    time = sum(total.values()) * scale
    return EngineStepTime(time, {k: v * scale for k, v in total.items()}, T * d.groups, mode, overlapped)


def largest_batch(d: Deployment, context: float, limit_s: float, mode: str = "hybrid", most: int = 4096) -> int:
    """Most requests per attention group whose tokens come every `limit_s` or faster and whose caches fit; 0 when none."""
    room = min(most, memory(d).requests(context))
    if room < 1 or tpot(d, 1, context, mode) > limit_s:
        return 0
    low, high = 1, room
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tpot(d, middle, context, mode) <= limit_s else (low, middle - 1)
    return low


def flops_per_token(d: Deployment, context: float) -> float:
    """FLOPs of one token's decoding, drafts left out: linear parts, absorbed attention, indexer."""
    m = d.model
    linear = m.flops_breakdown(1, sparse=True)["linear"]
    if m.attention != "mla":
        return linear + m.layers * 4.0 * m.heads * m.head_dim * context
    read = min(context, m.index_topk) if m.index_topk else context
    return (
        linear
        + m.layers * 2.0 * m.heads * read * (2 * m.kv_lora + m.rope)
        + m.indexer_full_layers * 2.0 * m.index_heads * (m.index_dim + 1) * context
    )


def describe_parts(step: EngineStepTime) -> str:
    """The three largest parts, in words with shares: 'attention 35%, experts 22%, all-to-all 20%'."""
    order = sorted(step.parts.items(), key=lambda kv: -kv[1])[:3]
    return ", ".join(f"{name} {time / step.total_s:.0%}" for name, time in order if time > 0 and math.isfinite(time))
