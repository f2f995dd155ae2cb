"""Rooflines of serving: how long one decode step and one prefill take on an instance.

Every operator of a layer is counted (MLA absorbed for decoding and for sparse attention, expanded for dense prefill; the
DSA indexer; experts; head), each with its FLOPs and bytes. Two ways to give it a time, named on each answer:

* `hybrid`: the kernel curves of `sim.kernels` for matmuls, shares of the roofs that published attention kernels reach,
  measured all-to-all latencies, fixed costs of small kernels and of the host (`sim.serving_stacks`).
* `roofline`: peak FLOP/s, peak bandwidth and line rate alone: a bound that nothing beats.

(`measured`, a published row of the same configuration, is in `sim.serving_plan`.)

Symbols: T query tokens of one attention group, R requests of it, S key positions, C hidden, H heads, E experts, K chosen.
Sources: DeepSeek-V3 (arXiv 2412.19437), DeepSeek-V3.2 (DSA), DeepEP and FlashMLA READMEs, CloudMatrix384 (arXiv 2506.12708).
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from minglm.errors import InputError, nearest
from sim import collectives
from sim.experts import expected_nodes
from sim.facts import Chip, Figure
from sim.kernels import Kernels
from sim.operators import Op
from sim.serving_memory import Deployment, index_row_bytes, kv_row_bytes, memory, require_fit  # noqa: F401 (one door for users)

MODES = ("hybrid", "roofline")
TABLE_BYTES = 128 * 8 * 7168.0       # values in the message of a stack's ep_table: 128 tokens × top-8 × 7,168
# name: (value, label, source)
CONSTANTS = {
    "indexer_kernels": (8, "assumed", "small kernels of a lightning indexer: norm, rope, Hadamard, quantisation (twice), cache write, weights"),
    "elementwise_passes": (12, "assumed", "passes over [T, C] in bf16 in a layer: two norms, two residuals, quantisation, rope, latents"),
    "expert_passes": (2.5, "assumed", "passes over a received token (C in, C out, gate and up between) in the expert part"),
    "prefill_keys_half": (600.0, "assumed", "keys at which prefill attention reaches half its share (as sim.kernels)"),
    "table_tiers": (0, "published", "an ep_table holds where the group spans the tiers it was measured on: NVLink and InfiniBand, or UB"),
}
_TABLE_TIERS = {"nvlink", "infiniband", "ub"}


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step and what they go to. `tokens`: output tokens (decode) or new tokens (prefill) of the instance."""

    total_s: float
    parts: Mapping[str, float]
    tokens: float
    mode: str
    overlapped: bool = False           # two micro-batches hid (part of) the all-to-all

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.total_s


class _Roof:
    """Times operators on the chip of a deployment, in one of the two modes."""

    def __init__(self, d: Deployment, mode: str):
        if mode not in MODES:
            raise InputError(f"mode {mode!r}: not one of {', '.join(MODES)}{nearest(str(mode), MODES)}")
        self.d, self.mode, self.hybrid = d, mode, mode == "hybrid"
        chip = d.cluster.chip
        self.bandwidth = chip.memory_bytes_per_s.value
        self.wide = chip.peak("bf16").value
        self._kernels = {kind: Kernels(_as_low(chip, kind, d.stack.get("matmul_share", 0.0))) for kind in ("bf16", "fp8", "int8", "fp4")}
        stack = d.stack
        self.decode_compute = self.wide * (stack["attention_compute"] if self.hybrid else 1.0)
        self.sparse_compute = self.wide * (stack["sparse_compute"] if self.hybrid else 1.0)
        self.decode_memory = self.bandwidth * (stack["attention_memory"] if self.hybrid else 1.0)
        self.kernel_s = stack["small_kernel_s"] if self.hybrid else 0.0
        self.floor_s = stack.get("matmul_floor_s", 0.0)

    def peak(self, kind: str) -> float:
        return self.d.cluster.chip.peak(kind).value

    def matmul(self, m: float, n: float, k: float, width: float, kind: str, batch: float = 1.0) -> float:
        """Seconds of `batch` products (m, k) × (k, n) whose weights have `width` bytes a value."""
        if m <= 0 or n <= 0:
            return 0.0
        flops, size = 2.0 * m * n * k * batch, batch * (n * k * width + 2.0 * m * (n + k))
        if not self.hybrid:
            return max(flops / self.peak(kind), size / self.bandwidth)
        time = self._kernels[kind].time(Op("matmul", "linear", "matmul", flops, size, m, n, k, batch, kind != "bf16"))
        return max(time, self.floor_s)

    def pass_(self, size: float) -> float:
        """Seconds to move `size` bytes in elementwise kernels whose launches are counted elsewhere."""
        return size / (self._kernels["bf16"].bandwidth if self.hybrid else self.bandwidth)

    def small(self, count: float) -> float:
        return count * self.kernel_s


def _as_low(chip: Chip, kind: str, share: float) -> Chip:
    """The chip with `kind` in the place of fp8, which is the one low precision that `Kernels` knows."""
    if kind not in chip.peak_flops:
        peak = chip.peak("bf16")
        return replace(chip, peak_flops={**chip.peak_flops, "fp8": peak}, max_matmul_flops_fp8=chip.max_matmul_flops)
    if kind == "fp8" and not share:
        return chip
    peak = chip.peak_flops[kind]
    best = Figure(peak.value * share, peak.value * share, peak.value * share, "FLOP/s", "share of peak", "measured") if share else None
    if best is None and kind == "int8" and "fp8" in chip.peak_flops:
        best = chip.max_matmul_flops_fp8
    return replace(chip, peak_flops={**chip.peak_flops, "fp8": peak}, max_matmul_flops_fp8=best)


# ------------------------------------------------------------------ the parts of a layer

def _projections(roof: _Roof, T: float, absorbed: bool, parts: dict) -> None:
    d, m = roof.d, roof.d.model
    w, kind, C = d.format.dense_bytes, d.format.dense_compute, m.hidden
    H = m.heads / d.attention_tp
    time = 0.0
    if m.attention == "mla":
        q_in = m.q_lora or C
        time += roof.matmul(T, (m.q_lora or 0) + m.kv_lora + m.rope, C, w, kind)
        time += roof.matmul(T, H * m.qk_dim, q_in, w, kind)
        if absorbed:
            time += roof.matmul(T, m.kv_lora, m.nope, w, "bf16", batch=H) + roof.matmul(T, m.v_dim, m.kv_lora, w, "bf16", batch=H)
        else:
            time += roof.matmul(T, H * (m.nope + m.v_dim), m.kv_lora, w, kind)
        time += roof.matmul(T, C, H * m.v_dim, w, kind)
    else:
        kv = max(m.kv_heads / d.attention_tp, 1.0)
        time += roof.matmul(T, (H + 2 * kv) * m.head_dim, C, w, kind) + roof.matmul(T, C, H * m.head_dim, w, kind)
    _add(parts, "projections", time)


def _add(parts: dict, name: str, time: float) -> None:
    parts[name] = parts.get(name, 0.0) + time


def _decode_attention(roof: _Roof, R: float, q: float, keys: float, parts: dict) -> None:
    """One layer's core attention for R requests, q query tokens each, `keys` cached tokens (absorbed: one latent head)."""
    d, m = roof.d, roof.d.model
    H = m.heads / d.attention_tp
    sparse = bool(m.index_topk)
    read = min(keys, m.index_topk) if sparse else keys
    if not sparse and m.window and m.window_layers:
        read = keys + (min(keys, m.window) - keys) * m.window_layers / m.layers
    row = kv_row_bytes(m, d.kv)
    if m.attention == "mla":
        flops = 2.0 * R * q * H * read * (2 * m.kv_lora + m.rope)
    else:
        flops = 2.0 * R * q * H * read * 2 * m.head_dim
        row /= min(d.attention_tp, m.kv_heads)
    # Each query of a sparse step has its own selection, so its rows are gathered for it alone, up to the whole cache.
    size = R * row * (min(q * read, keys) if sparse else read)
    rate = roof.sparse_compute if sparse else roof.decode_compute
    _add(parts, "attention", max(flops / rate, size / roof.decode_memory) + roof.small(2))
    if sparse and m.index_heads:
        share, dims = m.indexer_full_layers / m.layers, m.index_heads * m.index_dim
        w, kind = d.format.dense_bytes, d.format.dense_compute
        T = R * q
        score = 2.0 * T * m.index_heads * (m.index_dim + 1) * keys
        low = kind if d.kv == "fp8" else "bf16"
        rate = roof.peak(low) * (d.stack["sparse_compute"] if roof.hybrid else 1.0)
        size = R * keys * index_row_bytes(m, d.kv) + 12.0 * T * keys            # scores written, read by top-k, in fp32
        time = roof.matmul(T, dims, m.q_lora or m.hidden, w, kind) + roof.matmul(T, m.index_dim + m.index_heads, m.hidden, 2.0, "bf16")
        time += max(score / rate, size / roof.decode_memory) + roof.small(2 + CONSTANTS["indexer_kernels"][0])
        _add(parts, "indexer", share * time)


def _prefill_attention(roof: _Roof, T: float, new: float, past: float, parts: dict) -> None:
    """One layer's core attention for T tokens in prompts of `new` tokens after `past` cached ones."""
    d, m = roof.d, roof.d.model
    H, keys = m.heads / d.attention_tp, past + (new + 1) / 2
    sparse = m.index_topk and past + new > m.index_topk
    share = (d.stack["sparse_prefill"] if sparse else d.stack["prefill_attention"]) if roof.hybrid else 1.0
    if sparse:
        k, visible = m.index_topk, past + new
        dense_part = max(0.0, min(k, visible) - past)            # queries that see fewer than k keys
        read = (dense_part * (past + dense_part / 2) + (new - dense_part) * k) / new
        flops = 2.0 * T * H * read * (2 * m.kv_lora + m.rope)
        size = T * read * kv_row_bytes(m, d.kv) / 64.0            # neighbouring queries choose much the same rows: read from cache
        score = 2.0 * T * m.index_heads * (m.index_dim + 1) * keys
        low = d.format.dense_compute if d.kv == "fp8" else "bf16"
        w = d.format.dense_bytes
        time = roof.matmul(T, m.index_heads * m.index_dim, m.q_lora or m.hidden, w, d.format.dense_compute)
        time += max(score / (roof.peak(low) * share), roof.pass_(12.0 * T * keys))
        _add(parts, "indexer", time * m.indexer_full_layers / m.layers)
    else:
        read = keys
        if m.window and m.window_layers:
            read += (min(keys, m.window) - keys) * m.window_layers / m.layers
        flops = 2.0 * T * H * read * (m.qk_dim + m.value_dim)
        size = 2.0 * T * H * (m.qk_dim + m.value_dim)
        if m.attention == "mla" and past:                         # cached latents are expanded again for the new queries
            _add(parts, "projections", roof.matmul(past * T / new, H * (m.nope + m.v_dim), m.kv_lora, d.format.dense_bytes, d.format.dense_compute))
    curve = read / (read + CONSTANTS["prefill_keys_half"][0]) if roof.hybrid else 1.0
    _add(parts, "attention", max(flops / (roof.wide * share * curve), size / roof.bandwidth))


def _experts(roof: _Roof, T: float, parts: dict, imbalance: float) -> None:
    """One mixture-of-experts layer's matmuls on one chip; T tokens per attention group."""
    d, m = roof.d, roof.d.model
    total = T * d.groups                                           # tokens of the instance
    E = m.experts
    busy = (E + d.redundant_experts) * (1.0 - (1.0 - m.experts_per_token / E) ** total)   # experts that anybody chose
    rows = total * _chosen(d) / d.chips * imbalance                   # token-expert pairs on the busiest chip
    w, kind = d.format.expert_bytes, d.format.expert_compute
    if d.tensor_experts:                                              # every chip holds a slice of each expert
        local, width, rows = busy, m.moe_ffn / d.chips, total * m.experts_per_token
    else:
        local, width = busy / d.chips, float(m.moe_ffn)
    each = rows / max(local, 1e-9)                                    # rows per expert that is used here
    up = m.ffn_matrices - 1
    time = roof.matmul(max(each, 1.0), up * width, m.hidden, w, kind, batch=local) + roof.matmul(max(each, 1.0), m.hidden, width, w, kind, batch=local)
    time += roof.pass_(2.0 * rows * CONSTANTS["expert_passes"][0] * m.hidden) + roof.matmul(T, E, m.hidden, 2.0, "bf16")
    _add(parts, "experts", time)
    if m.shared_width and not _spread(d):
        w, kind = d.format.dense_bytes, d.format.dense_compute
        width = m.shared_width / d.attention_tp
        _add(parts, "experts", roof.matmul(T, up * width, m.hidden, w, kind) + roof.matmul(T, m.hidden, width, w, kind))


def _spread(d: Deployment) -> bool:
    """The shared expert lives on chips of its own, reached like a routed one (CloudMatrix-Infer)."""
    return bool(d.stack.get("shared_spread", 0.0)) and not d.tensor_experts


def _chosen(d: Deployment) -> float:
    """Copies of a token that the all-to-all sends out."""
    return d.model.experts_per_token + (d.model.shared_experts if _spread(d) else 0)


def _dense_ffn(roof: _Roof, T: float, parts: dict) -> None:
    d, m = roof.d, roof.d.model
    width, up = m.ffn / d.attention_tp, m.ffn_matrices - 1
    w, kind = d.format.dense_bytes, d.format.dense_compute
    _add(parts, "dense FFN", roof.matmul(T, up * width, m.hidden, w, kind) + roof.matmul(T, m.hidden, width, w, kind))


def _head(roof: _Roof, T: float, parts: dict) -> None:
    d, m = roof.d, roof.d.model
    _add(parts, "head", roof.matmul(T, m.vocab / d.attention_tp, m.hidden, 2.0, "bf16") + roof.small(3))


# ------------------------------------------------------------------ messages

def _all_reduce(roof: _Roof, T: float) -> float:
    """One all-reduce of [T, C] in an attention group: the collective's algorithms, or one shot (every chip reads all others)."""
    d, size = roof.d, 2.0 * T * roof.d.model.hidden
    if d.attention_tp == 1:
        return 0.0
    levels = collectives.place(d.cluster, d.attention_tp)
    n, rate = d.attention_tp, min(level.bytes_per_s for level in levels)
    if not roof.hybrid:
        return 2.0 * size * (n - 1) / n / max(level.tier.bytes_per_s.value for level in levels)
    return min(collectives.time("all_reduce", size, levels), d.stack["one_shot_s"] + size * (n - 1) / rate)


def _line_rate(d: Deployment) -> float:
    levels = collectives.place(d.cluster, d.chips)
    return max(level.tier.bytes_per_s.value for level in levels)


def _decode_all_to_all(roof: _Roof, T: float) -> float:
    """Dispatch and combine of one layer, T tokens per attention group split over its chips."""
    d, m = roof.d, roof.d.model
    if d.tensor_experts or d.chips == 1:
        return 0.0
    values = T / d.attention_tp * _chosen(d) * m.hidden
    sent = 1.0 if d.format.dense_bytes < 2 else 2.0
    if not roof.hybrid:
        return values * (sent + 2.0) * (1 - 1 / d.chips) / _line_rate(d)
    levels = collectives.place(d.cluster, d.chips)
    table = d.stack.ep_latency(d.chips)
    if table and {level.tier.name for level in levels} <= _TABLE_TIERS:
        floor, x = d.stack["ep_floor_s"], values / TABLE_BYTES
        return sum(floor + max(t - floor, 0.0) * x * (sent if i == 0 else 1.0) for i, t in enumerate(table))
    dedup = _dedup(d, levels)
    return sum(collectives.time("all_to_all", values * b, levels, dedup=dedup) for b in (sent, 2.0))


def _dedup(d: Deployment, levels) -> float:
    """Copies of a token that cross nodes when a node gets one copy / copies without that."""
    inside = collectives.members_inside(levels)
    nodes = max(1.0, d.chips / inside)
    if nodes <= 1:
        return 1.0
    chosen = d.model.experts_per_token
    limit = d.stack.get("prefill_node_limit", 4.0) or nodes
    remote = expected_nodes(nodes, chosen, min(limit, nodes)) * (nodes - 1) / nodes
    return min(1.0, remote / (chosen * (nodes - 1) / nodes))


def _prefill_all_to_all(roof: _Roof, T: float) -> float:
    d, m = roof.d, roof.d.model
    if d.tensor_experts or d.chips == 1:
        return 0.0
    tokens = T / d.attention_tp
    sent = 1.0 if d.format.dense_bytes < 2 else 2.0
    levels = collectives.place(d.cluster, d.chips)
    nodes = max(1.0, d.chips / collectives.members_inside(levels))
    rate = d.stack.get("prefill_ep_bytes_per_s", 0.0) if roof.hybrid else _line_rate(d)
    names = {level.tier.name for level in levels}
    if rate and names <= _TABLE_TIERS and (nodes > 1 or "ub" in names):
        limit = d.stack.get("prefill_node_limit", 4.0)
        copies = expected_nodes(nodes, m.experts_per_token, min(limit, nodes)) if limit else m.experts_per_token * (1 - 1 / d.chips)
        return tokens * copies * m.hidden * (sent + 2.0) / rate
    values = tokens * m.experts_per_token * m.hidden
    if not roof.hybrid:
        return values * (sent + 2.0) * (1 - 1 / d.chips) / _line_rate(d)
    return sum(collectives.time("all_to_all", values * b, levels, dedup=_dedup(d, levels)) for b in (sent, 2.0))


# ------------------------------------------------------------------ steps

def _roof(d: Deployment, mode: str) -> _Roof:
    if mode not in d.rooflines:
        d.rooflines[mode] = _Roof(d, mode)
    return d.rooflines[mode]


def _overlap(whole: float, message: float, half: float, half_message: float, share: float, slowed: float = 1.0) -> float | None:
    """Seconds of a layer with two micro-batches, `share` of the messages able to hide behind the other's compute."""
    compute, sent = 2.0 * half / slowed, 2.0 * half_message
    hidden = max(compute, sent, half / slowed + half_message)
    return compute + sent - share * (compute + sent - hidden)


def decode_step(d: Deployment, requests: float, context: float, mode: str = "hybrid") -> StepTime:
    """One decode step of the instance: `requests` per attention group, each with `context` cached tokens.

    Does not look at memory (`require_fit` does). A step verifies `drafts` draft tokens and makes the next ones.
    """
    roof = _roof(d, mode)
    if requests <= 0 or context < 0:
        raise InputError(f"requests={requests!r}, context={context!r}: a step needs more than 0 requests and a context of at least 0")
    m, stack, q = d.model, d.stack, d.drafts + 1.0
    imbalance = stack["imbalance"] if roof.hybrid and not d.tensor_experts else 1.0

    def layer(R: float, queries: float, moe: bool) -> tuple[dict, float]:
        parts: dict[str, float] = {}
        T = R * queries
        _projections(roof, T, True, parts)
        _decode_attention(roof, R, queries, context, parts)
        if moe:
            _experts(roof, T, parts, imbalance)
        else:
            _dense_ffn(roof, T, parts)
        _add(parts, "all-reduce", _all_reduce(roof, T) * (2.0 if not moe or d.tensor_experts else 1.0))
        _add(parts, "small kernels", roof.small(stack["small_kernels"]) + roof.pass_(2.0 * CONSTANTS["elementwise_passes"][0] * T * m.hidden / d.attention_tp))
        return parts, _decode_all_to_all(roof, T) if moe else 0.0

    total: dict[str, float] = {}
    overlapped = False
    if m.moe_layers:
        parts, message = layer(requests, q, True)
        best = sum(parts.values()) + message
        if message and requests >= 2 and (stack["two_batch"] or not roof.hybrid):
            half, half_message = layer(requests / 2, q, True)
            both = _overlap(sum(parts.values()), message, sum(half.values()), half_message, stack["ep_overlap"] if roof.hybrid else 1.0)
            if both < best:
                parts = {k: 2.0 * v for k, v in half.items()}
                message, best, overlapped = both - sum(parts.values()), both, True
        for name, time in {**parts, "all-to-all": max(message, 0.0)}.items():
            _add(total, name, m.moe_layers * time)
    if m.dense_ffn_layers:
        parts, _ = layer(requests, q, False)
        for name, time in parts.items():
            _add(total, name, m.dense_ffn_layers * time)
    _head(roof, requests * q, total)
    if d.drafts:
        parts, message = layer(requests, 1.0, bool(m.experts))
        _head(roof, requests, parts)
        one = sum(parts.values()) + message + roof.matmul(requests, m.hidden, 2 * m.hidden, d.format.dense_bytes, d.format.dense_compute)
        _add(total, "drafts", d.drafts * one)
    _add(total, "host", stack["host_s"] if roof.hybrid else 0.0)
    scale = stack.get("scale", 1.0) if roof.hybrid else 1.0
    time = sum(total.values()) * scale
    return StepTime(time, {k: v * scale for k, v in total.items()}, requests * d.groups * d.tokens_per_step, mode, overlapped)


def tpot(d: Deployment, requests: float, context: float, mode: str = "hybrid") -> float:
    """Seconds per output token that one stream sees."""
    return decode_step(d, requests, context, mode).total_s / d.tokens_per_step


def prefill(d: Deployment, prompt: float, cached: float = 0.0, prompts: float = 1.0, mode: str = "hybrid") -> StepTime:
    """`prompts` prompts of `prompt` tokens per attention group, of which `cached` tokens are in the cache already."""
    roof = _roof(d, mode)
    new = prompt - cached
    if new <= 0 or cached < 0 or prompts <= 0:
        raise InputError(f"prompt={prompt:g}, cached={cached:g}, prompts={prompts:g}: needs more than 0 new tokens; cached must be less than prompt")
    m, stack = d.model, d.stack
    sparse = m.index_topk and prompt > m.index_topk

    def layer(T: float, moe: bool) -> tuple[dict, float]:
        parts: dict[str, float] = {}
        _projections(roof, T, bool(sparse), parts)
        _prefill_attention(roof, T, new, cached, parts)
        if moe:
            _experts(roof, T, parts, 1.0)
        else:
            _dense_ffn(roof, T, parts)
        _add(parts, "all-reduce", _all_reduce(roof, T) * (2.0 if not moe or d.tensor_experts else 1.0))
        _add(parts, "small kernels", roof.small(stack["small_kernels"]) + roof.pass_(2.0 * CONSTANTS["elementwise_passes"][0] * T * m.hidden / d.attention_tp))
        return parts, _prefill_all_to_all(roof, T) if moe else 0.0

    T, total, overlapped = prompts * new, {}, False
    if m.moe_layers:
        parts, message = layer(T, True)
        best = sum(parts.values()) + message
        if message and (stack["two_batch"] or not roof.hybrid):
            half, half_message = layer(T / 2, True)
            both = _overlap(sum(parts.values()), message, sum(half.values()), half_message, 1.0, stack["prefill_core_share"] if roof.hybrid else 1.0)
            if both < best:
                parts = {k: 2.0 * v for k, v in half.items()}
                message, overlapped = both - sum(parts.values()), True
        for name, time in {**parts, "all-to-all": max(message, 0.0)}.items():
            _add(total, name, m.moe_layers * time)
    if m.dense_ffn_layers:
        parts, _ = layer(T, False)
        for name, time in parts.items():
            _add(total, name, m.dense_ffn_layers * time)
    _head(roof, prompts, total)
    _add(total, "host", stack["host_s"] if roof.hybrid else 0.0)
    scale = stack.get("scale", 1.0) if roof.hybrid else 1.0
    if roof.hybrid and not d.tensor_experts and d.chips > 1 and m.experts:
        scale *= stack.get("prefill_imbalance", 1.0)
    time = sum(total.values()) * scale
    return StepTime(time, {k: v * scale for k, v in total.items()}, T * d.groups, mode, overlapped)


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
    return (linear + m.layers * 2.0 * m.heads * read * (2 * m.kv_lora + m.rope)
            + m.indexer_full_layers * 2.0 * m.index_heads * (m.index_dim + 1) * context)


def describe_parts(step: StepTime) -> str:
    """The three largest parts, in words with shares: 'attention 35%, experts 22%, all-to-all 20%'."""
    order = sorted(step.parts.items(), key=lambda kv: -kv[1])[:3]
    return ", ".join(f"{name} {time / step.total_s:.0%}" for name, time in order if time > 0 and math.isfinite(time))
