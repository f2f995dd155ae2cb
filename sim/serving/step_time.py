"""Rooflines of serving: how long one decode step and one prefill take on an instance.

Every operator of a layer is counted, each with its FLOPs and bytes: MLA absorbed for decoding and for sparse attention,
expanded for dense prefill; the DSA indexer; experts; head. Two ways to give it a time, named on each answer:

* `hybrid`: the kernel curves of `sim.cost.kernels` for matmuls, shares of the roofs that published attention kernels
  reach, measured all-to-all latencies, fixed costs of small kernels and of the host (`sim.serving.stacks`).
* `roofline`: peak FLOP/s, peak bandwidth and line rate alone: a bound that nothing beats.

(`measured`, a published row of the same configuration, is in `sim.serving.sizing`.)

Symbols: T query tokens of one attention group, R requests of it, S key positions, C hidden, H heads, E experts.
Sources: DeepSeek-V3 (arXiv 2412.19437), DeepSeek-V3.2 (DSA), DeepEP and FlashMLA READMEs, CloudMatrix384
(arXiv 2506.12708).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from minglm.errors import InputError
from sim.cost import collectives
from sim.serving.deployment import Deployment
from sim.serving.memory import chip_memory
from sim.serving.messages import all_reduce, decode_all_to_all, prefill_all_to_all
from sim.serving.operators import (
    CONSTANTS,
    MODES,
    Roof,
    add,
    decode_attention,
    dense_ffn,
    experts,
    head,
    measured_decode_layer,
    operators_issued,
    prefill_attention,
    projections,
    small_kernels,
)

__all__ = [
    "MODES",
    "EngineStepTime",
    "added_s",
    "decode_step",
    "describe_parts",
    "flops_per_token",
    "largest_batch",
    "least_pass_s",
    "prefill",
    "tpot",
    "work_s",
]


@dataclass(frozen=True)
class EngineStepTime:
    """Seconds of one step and what they go to.

    tokens: output tokens (decode) or new tokens (prefill) of the whole instance.
    """

    total_s: float
    parts: Mapping[str, float]
    tokens: float
    mode: str
    overlapped: bool = False  # two micro-batches hid (part of) the all-to-all

    @property
    def tokens_per_s(self) -> float:
        """Of the whole instance."""
        return self.tokens / self.total_s


def decode_step(d: Deployment, requests: float, context: float, mode: str = "hybrid") -> EngineStepTime:
    """One decode step of the instance: `requests` per attention group, each with `context` cached tokens.

    Does not look at memory (`require_fit` does). A step verifies `drafts` draft tokens and makes the next ones.

    Raises:
        InputError: no requests, a negative context, or an unknown mode.
    """
    if requests <= 0 or context < 0:
        raise InputError(
            f"requests={requests!r}, context={context!r}: a step needs more than 0 requests and a context of at least 0"
        )
    if d.pp > 1:  # the requests travel in pp groups, one on each stage
        return _through_stages(d, decode_step(d.stage, max(requests / d.pp, 1.0), context, mode), requests, mode)
    roof = _roof(d, mode)
    m, stack, queries = d.model, d.stack, d.drafts + 1.0
    imbalance = stack["imbalance"] if roof.hybrid and not d.tensor_experts else 1.0

    def layer(R: float, q: float, moe: bool) -> _Layer:
        def attention(parts: dict[str, float]) -> None:
            whole = measured_decode_layer(roof, R, q, context)
            if whole is not None:  # measured at short contexts only where batches are large: no less than the roofs
                bound: dict[str, float] = {}
                _decode_layer(_roof(d, "roofline"), R, q, context, bound)
                add(parts, "attention", max(whole, sum(bound.values())))
                return
            _decode_layer(roof, R, q, context, parts)

        return _layer(roof, R * q, moe, attention, imbalance, decode_all_to_all)

    total: dict[str, float] = {}
    overlapped = False
    if m.moe_layers:
        chosen = layer(requests, queries, True)
        if chosen.message_s and requests >= 2 and (stack["two_batch"] or not roof.hybrid):
            half = layer(requests / 2, queries, True)
            chosen, overlapped = _two_micro_batches(chosen, half, stack["ep_overlap"] if roof.hybrid else 1.0)
        _add_layers(total, m.moe_layers, {**chosen.parts, "all-to-all": max(chosen.message_s, 0.0)})
    if m.dense_ffn_layers:
        _add_layers(total, m.dense_ffn_layers, layer(requests, queries, False).parts)
    head(roof, requests * queries, total)
    if d.drafts:
        module = layer(requests, 1.0, bool(m.experts))
        head(roof, requests, module.parts)
        joined = roof.matmul(requests, m.hidden, 2 * m.hidden, d.format.dense_bytes, d.format.dense_compute)
        add(total, "drafts", d.drafts * (sum(module.parts.values()) + module.message_s + joined))
    tokens = requests * d.groups * d.tokens_per_step
    return _step(roof, total, tokens, overlapped, requests=requests)


def _decode_layer(roof: Roof, R: float, q: float, context: float, parts: dict[str, float]) -> None:
    projections(roof, R * q, True, parts)
    decode_attention(roof, R, q, context, parts)


def prefill(
    d: Deployment, prompt: float, cached: float = 0.0, prompts: float = 1.0, mode: str = "hybrid"
) -> EngineStepTime:
    """`prompts` prompts of `prompt` tokens per attention group, of which `cached` tokens are in the cache already.

    Raises:
        InputError: nothing new to prefill, or an unknown mode.
    """
    new = prompt - cached
    if new <= 0 or cached < 0 or prompts <= 0:
        raise InputError(
            f"prompt={prompt:g}, cached={cached:g}, prompts={prompts:g}: needs more than 0 new tokens; "
            "cached must be less than prompt"
        )
    if d.pp > 1:  # a prompt passes every stage; the stages behind it are free for the next one
        one = prefill(d.stage, prompt, cached, max(prompts / d.pp, 1.0), mode)
        return _through_stages(d, one, prompts * new, mode, prompts * new * d.groups)
    roof = _roof(d, mode)
    m, stack = d.model, d.stack
    absorbed = bool(m.index_topk and prompt > m.index_topk)  # sparse attention reads latents

    def layer(T: float, moe: bool) -> _Layer:
        def attention(parts: dict[str, float]) -> None:
            projections(roof, T, absorbed, parts)
            prefill_attention(roof, T, new, cached, parts)

        return _layer(roof, T, moe, attention, 1.0, prefill_all_to_all)

    T = prompts * new
    total: dict[str, float] = {}
    overlapped = False
    if m.moe_layers:
        chosen = layer(T, True)
        if chosen.message_s and (stack["two_batch"] or not roof.hybrid):
            cores = stack["prefill_core_share"] if roof.hybrid else 1.0
            chosen, overlapped = _two_micro_batches(chosen, layer(T / 2, True), 1.0, cores)
        _add_layers(total, m.moe_layers, {**chosen.parts, "all-to-all": max(chosen.message_s, 0.0)})
    if m.dense_ffn_layers:
        _add_layers(total, m.dense_ffn_layers, layer(T, False).parts)
    head(roof, prompts, total)
    uneven = roof.hybrid and not d.tensor_experts and d.chips > 1 and m.experts
    return _step(roof, total, T * d.groups, overlapped, stack.get("prefill_imbalance", 1.0) if uneven else 1.0)


def _through_stages(
    d: Deployment, stage: EngineStepTime, queries: float, mode: str, tokens: float | None = None
) -> EngineStepTime:
    """A step of `pp` stages from that of one group of requests through all layers: with the hops between stages.

    queries: tokens of one attention group over all the groups in flight.
    """
    rate = collectives.place(d.cluster, d.chips)[-1].bytes_per_s
    hop_s = (d.stack["one_shot_s"] if mode == "hybrid" else 0.0) + 2.0 * d.model.hidden * queries / d.pp / rate
    parts = {**stage.parts, "stage hops": (d.pp - 1) * hop_s}
    produced = queries * d.groups * d.tokens_per_step if tokens is None else tokens
    return EngineStepTime(stage.total_s + parts["stage hops"], parts, produced, mode, stage.overlapped)


def work_s(prompts: EngineStepTime) -> float:
    """Seconds that the chips work for a pass over prompts, what they wait for the host's next kernel left out."""
    return prompts.total_s - prompts.parts.get("eager issue", 0.0)


def added_s(prompts: EngineStepTime, beside_s: float) -> float:
    """Seconds that a pass over prompts adds to a decode step of `beside_s` with which it is one pass.

    Where the host's issue of kernels bounds the pass, the running batch's step is inside that time.
    """
    return max(work_s(prompts), prompts.total_s - beside_s)


def least_pass_s(d: Deployment) -> float:
    """Seconds that the host needs to issue a pass over prompts, which has no graph; 0 where that never bounds it."""
    return d.stack.get("prefill_op_s", 0.0) * operators_issued(d.stage) * d.stack.get("scale", 1.0)


def tpot(d: Deployment, requests: float, context: float, mode: str = "hybrid") -> float:
    """Seconds per output token that one stream sees."""
    return decode_step(d, requests, context, mode).total_s / d.tokens_per_step


class _Layer(NamedTuple):
    """Seconds of one layer: its compute by part, and its expert-parallel messages."""

    parts: dict[str, float]
    message_s: float


def _layer(
    roof: Roof,
    T: float,
    moe: bool,
    attention: Callable[[dict[str, float]], None],
    imbalance: float,
    all_to_all: Callable[[Deployment, float, bool], float],
) -> _Layer:
    """One layer with T query tokens per attention group; `attention` adds its parts, projections included."""
    d, parts = roof.d, dict[str, float]()
    attention(parts)
    if moe:
        experts(roof, T, parts, imbalance)
    else:
        dense_ffn(roof, T, parts)
    add(parts, "all-reduce", all_reduce(d, T, roof.hybrid) * (2.0 if not moe or d.tensor_experts else 1.0))
    passes = 2.0 * CONSTANTS["elementwise_passes"][0] * T * d.model.hidden / d.attention_tp
    add(parts, "small kernels", roof.small(small_kernels(d, moe)) + roof.elementwise(passes))
    return _Layer(parts, all_to_all(d, T, roof.hybrid) if moe else 0.0)


def _two_micro_batches(whole: _Layer, half: _Layer, share: float, slowed: float = 1.0) -> tuple[_Layer, bool]:
    """The faster of one batch and of two halves that hide each other's messages, and whether it is the halves.

    share: of the messages that can hide; slowed: share of the cores left to compute.
    """
    compute_s = sum(half.parts.values())
    both_s = _overlap(compute_s, half.message_s, share, slowed)
    if both_s >= sum(whole.parts.values()) + whole.message_s:
        return whole, False
    parts = {name: 2.0 * time for name, time in half.parts.items()}
    return _Layer(parts, both_s - sum(parts.values())), True


def _overlap(half: float, half_message: float, share: float, slowed: float = 1.0) -> float:
    """Seconds of a layer with two micro-batches, `share` of the messages able to hide behind the other's compute.

    half, half_message: compute and message seconds of one micro-batch; slowed: share of the cores left to compute.
    """
    compute, sent = 2.0 * half / slowed, 2.0 * half_message
    hidden = max(compute, sent, half / slowed + half_message)
    return compute + sent - share * (compute + sent - hidden)


def _add_layers(total: dict[str, float], count: int, parts: Mapping[str, float]) -> None:
    for name, time in parts.items():
        add(total, name, count * time)


def _step(
    roof: Roof,
    total: dict[str, float],
    tokens: float,
    overlapped: bool,
    imbalance: float = 1.0,
    requests: float = 0.0,
) -> EngineStepTime:
    """The step whose parts are `total`: with the host's time (of a step, and of each running request of a group), and
    everything times the fitted scalar."""
    stack = roof.d.stack
    add(total, "host", stack["host_s"] + requests * stack.get("host_per_request_s", 0.0) if roof.hybrid else 0.0)
    issue_s = stack.get("eager_op_s" if requests else "prefill_op_s", 0.0) * operators_issued(roof.d)
    if roof.hybrid and issue_s > sum(total.values()):  # without graphs the chip waits for the host's next kernel
        add(total, "eager issue", issue_s - sum(total.values()))
    scale = (stack.get("scale", 1.0) if roof.hybrid else 1.0) * imbalance
    parts = {name: time * scale for name, time in total.items()}
    return EngineStepTime(sum(total.values()) * scale, parts, tokens, roof.mode, overlapped)


def _roof(d: Deployment, mode: str) -> Roof:
    if mode not in d.rooflines:
        d.rooflines[mode] = Roof(d, mode)
    return d.rooflines[mode]


def largest_batch(d: Deployment, context: float, limit_s: float, mode: str = "hybrid", most: int = 4096) -> int:
    """Most requests per attention group whose tokens come every `limit_s` or faster and whose caches fit; 0: none."""
    fitting = min(most, chip_memory(d).requests(context))
    if fitting < 1 or tpot(d, 1, context, mode) > limit_s:
        return 0
    low, high = 1, fitting
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tpot(d, middle, context, mode) <= limit_s else (low, middle - 1)
    return low


def flops_per_token(d: Deployment, context: float) -> float:
    """FLOPs of one token's decoding, drafts and the indexer's scores left out: linear parts, absorbed attention."""
    m = d.model
    linear = m.flops_breakdown(1, sparse=True)["linear"]
    if m.attention != "mla":
        return linear + m.layers * 4.0 * m.heads * m.head_dim * context
    read = min(context, m.index_topk) if m.index_topk else context
    return linear + m.layers * 2.0 * m.heads * read * (2 * m.kv_lora + m.rope)


def score_flops_per_token(d: Deployment, context: float) -> float:
    """FLOPs of the indexer's scores of one token, which run in a precision of their own."""
    m = d.model
    return m.indexer_full_layers * 2.0 * m.index_heads * (m.index_dim + 1) * context


def describe_parts(step: EngineStepTime) -> str:
    """The three largest parts, in words with shares: 'attention 35%, experts 22%, all-to-all 20%'."""
    order = sorted(step.parts.items(), key=lambda kv: -kv[1])[:3]
    return ", ".join(f"{name} {time / step.total_s:.0%}" for name, time in order if time > 0 and math.isfinite(time))
