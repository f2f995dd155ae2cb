"""The parts of one layer while serving, on one chip: projections, attention, indexer, experts.

Each function adds seconds to `parts`. `Roof` times operators on the chip of a deployment, as `hybrid` (kernel curves,
published shares, measured latencies) or as `roofline` (peaks alone). Messages are in `sim.serving.messages`;
`sim.serving.step_time` puts layers into steps.

Symbols: T query tokens of one attention group, R requests of it, C hidden, H heads, E experts, K chosen.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

from minglm.errors import InputError, nearest
from sim.base.figure import Figure
from sim.cost import measured
from sim.cost.kernels import Kernels
from sim.cost.operators import Op
from sim.serving.cache import index_row_bytes, kv_row_bytes
from sim.serving.deployment import Deployment
from sim.serving.formats import FORMATS
from sim.serving.messages import copies_sent, shared_apart
from sim.spec.hardware import Chip

MODES = ("hybrid", "roofline")
BLACKWELL = "blackwell"  # `Chip.family`
GLM5_ATTENTION = (6144, 64, 2048, 512, 32, 128, 2048)  # the shape that data/measured/dsa_layer was measured with
ROWS = tuple(2.0 ** (i / 2) for i in range(43))  # of a product: 1 to 2^21, the measured powers of two among them
MEASURED_KERNEL_S = 2e-6  # a small kernel of the stacks whose grouped products were measured
# name: (value, label, source)
CONSTANTS = {
    "indexer_kernels": (
        8,
        "assumed",
        "small kernels of a lightning indexer: norm, rope, Hadamard, quantisation (twice), cache write, weights",
    ),
    "elementwise_passes": (
        12,
        "assumed",
        "passes over [T, C] in bf16 in a layer: two norms, two residuals, quantisation, rope, latents",
    ),
    "expert_passes": (
        2.5,
        "assumed",
        "passes over a received token (C in, C out, gate and up between) in the expert part",
    ),
    "score_bytes": (12.0, "assumed", "bytes a score costs: written in fp32 by the indexer, read twice by top-k"),
    "gather_reuse": (
        64.0,
        "assumed",
        "queries of a prefill that share a gathered cache row (neighbours choose much the same keys)",
    ),
    "prefill_keys_half": (
        600.0,
        "assumed",
        "keys at which prefill attention reaches half its share (as sim.cost.kernels)",
    ),
    "grouped_s": (
        30e-6,
        "measured",
        "start of a layer's grouped products with gating, sorting and activation: the constant term of T = start + "
        "memory + compute over the expert tables of data/measured (H100, H200 26-33 us, Blackwell 17-31)",
    ),
    "small_kernel_blackwell": (
        0.62,
        "measured",
        "seconds of a small kernel on Blackwell over Hopper's: the constant terms of bf16 and fp8 expert tables, 17-22 "
        "against 30-33 us",
    ),
    "grouped_memory": (1.08, "measured", "seconds over the bytes' own in that sum (1.02 to 1.22 by chip and dtype)"),
    "grouped_compute_bf16": (1.0, "measured", "seconds over the FLOPs' own at peak in that sum (0.9 to 1.1)"),
    "grouped_compute_w4a16": (
        4.0,
        "fitted",
        "the same with four-bit weights that are widened on the way to bf16 (Marlin and its like): first tokens of the "
        "H200 rows of GPT-OSS-120B in data/serving/engines.csv.gz (2.1 to 5 by engine and width)",
    ),
    "grouped_compute_fp8": (1.3, "measured", "the same in fp8, one scale a tensor (1.2 Hopper, 1.5 Blackwell)"),
    "grouped_compute_block": (
        2.5,
        "measured",
        "the same in block-scaled fp8, where a stack names no figure of its own (2.2 to 5.3 by chip and kernel)",
    ),
    "grouped_compute_fp4": (1.6, "assumed", "as block-scaled fp8 on Blackwell"),
    "table_tiers": (
        0,
        "published",
        "an ep_table holds where the group spans the tiers it was measured on: NVLink and InfiniBand, or UB",
    ),
}


class Roof:
    """Times operators on the chip of a deployment, in one of the two modes."""

    def __init__(self, d: Deployment, mode: str):
        if mode not in MODES:
            raise InputError(f"mode {mode!r}: not one of {', '.join(MODES)}{nearest(str(mode), MODES)}")
        self.d, self.mode, self.hybrid = d, mode, mode == "hybrid"
        chip = d.cluster.chip
        self.bandwidth = chip.memory_bytes_per_s.value
        self.bf16_peak = chip.peak("bf16").value
        self._kernels = {
            kind: Kernels(_as_low(chip, kind, d.stack.get("matmul_share", 0.0)))
            for kind in ("bf16", "fp8", "int8", "fp4")
        }
        stack = d.stack
        self.decode_compute = self.bf16_peak * (stack["attention_compute"] if self.hybrid else 1.0)
        self.sparse_compute = self.bf16_peak * (stack["sparse_compute"] if self.hybrid else 1.0)
        self.decode_memory = self.bandwidth * (stack["attention_memory"] if self.hybrid else 1.0)
        faster = CONSTANTS["small_kernel_blackwell"][0] if chip.family == BLACKWELL else 1.0
        self.kernel_s = stack["small_kernel_s"] * faster if self.hybrid else 0.0
        # few rows: tables of bf16 say how soon a product ends; low precisions were timed with their quantisation, whose
        # removal leaves nothing certain there
        self.floor_s = dict.fromkeys(self._kernels, stack.get("matmul_floor_s", 0.0))
        if chip.tables and (floor_s := measured.matmul_floor_s(chip.tables)) is not None:
            self.floor_s["bf16"] = floor_s
        self._by_rows: dict[tuple[float, float, float, str, float], tuple[float, ...]] = {}

    def peak(self, kind: str) -> float:
        """FLOP/s of the chip at a precision."""
        return self.d.cluster.chip.peak(kind).value

    def matmul(self, m: float, n: float, k: float, width: float, kind: str, batch: float = 1.0) -> float:
        """Seconds of `batch` products (m, k) × (k, n) whose weights have `width` bytes a value."""
        if m <= 0 or n <= 0:
            return 0.0
        flops, size = 2.0 * m * n * k * batch, batch * (n * k * width + 2.0 * m * (n + k))
        if not self.hybrid:
            return max(flops / self.peak(kind), size / self.bandwidth)
        kernels, low = self._kernels[kind], kind != "bf16"
        time = self._padded_matmul(m, n, k, width, kind, batch)
        native = 2.0 if kind == "bf16" else 1.0  # bytes of a weight in the tables: narrower ones are read faster
        if width < native:
            saved = batch * n * k * (native - width) / kernels.bandwidth
            time = max(time - saved, flops / kernels.matmul_flops[low], size / kernels.bandwidth)
        return max(time, self.floor_s[kind])

    def _padded_matmul(self, m: float, n: float, k: float, width: float, kind: str, batch: float) -> float:
        """Seconds of the products on the measured kernels, never less for more rows.

        Measured and tiled kernels are uneven: some row counts take longer than larger ones, which an engine would pad
        to. So at each of `ROWS` the least of that and all larger counts is taken, and the logarithms between.
        """
        shape = (n, k, width, kind, batch)
        if shape not in self._by_rows:
            self._by_rows[shape] = measured.least_from_here([self._kernel_matmul(rows, *shape) for rows in ROWS])
        if m > ROWS[-1]:
            return max(self._by_rows[shape][-1], self._kernel_matmul(m, *shape))
        return measured.interpolate(ROWS, self._by_rows[shape], m)

    def _kernel_matmul(self, m: float, n: float, k: float, width: float, kind: str, batch: float) -> float:
        flops, size = 2.0 * m * n * k * batch, batch * (n * k * width + 2.0 * m * (n + k))
        return self._kernels[kind].time(Op("matmul", "linear", "matmul", flops, size, m, n, k, batch, kind != "bf16"))

    def cache_memory(self, attention: str) -> float:
        """Bytes per second at which decode attention reads a cache."""
        share = self.d.stack.get("fp8_cache_memory", 0.0)
        if not self.hybrid or not share or self.d.kv != "fp8" or attention == "mla":
            return self.decode_memory
        return self.bandwidth * (self.d.stack["attention_memory"] if self.d.cluster.chip.family == BLACKWELL else share)

    @property
    def expert_compute(self) -> str:
        """Precision of the grouped products: Blackwell multiplies four-bit experts as they are, by fp8 activations."""
        d = self.d
        native = d.cluster.chip.family == BLACKWELL and d.format.expert_width_multiple > 1
        return "fp8" if native else d.format.expert_compute

    def grouped_compute(self, kind: str) -> float:
        """Seconds of grouped products over their FLOPs at peak."""
        if kind == "bf16" and self.d.format.expert_bytes < 2:
            return CONSTANTS["grouped_compute_w4a16"][0]
        chip, scaled = self.d.cluster.chip, self.d.format is FORMATS["fp8"]
        name = {"bf16": "bf16", "fp4": "fp4"}.get(kind, "block" if scaled and chip.vendor == "NVIDIA" else "fp8")
        known = CONSTANTS[f"grouped_compute_{name}"][0]
        return self.d.stack.get(f"grouped_compute_{name}", known)

    def padded_rows(self, rows: float, experts: float, kind: str) -> float:
        """Rows of the grouped products, each expert's filled up to whole blocks where the software does that.

        That of block-scaled fp8 on Hopper (`expert_block_rows`): half a block more for each expert that is used.
        """
        block = self.d.stack.get("expert_block_rows", 0.0)
        chip = self.d.cluster.chip
        if not block or kind != "fp8" or chip.vendor != "NVIDIA" or chip.family == BLACKWELL:
            return rows
        each = rows / max(experts, 1.0)
        return rows + experts * (block - each if each < 1.0 else block / 2 if each > block else block - each)

    def elementwise(self, size: float) -> float:
        """Seconds to move `size` bytes in elementwise kernels whose launches are counted elsewhere."""
        return size / (self._kernels["bf16"].bandwidth if self.hybrid else self.bandwidth)

    def small(self, count: float) -> float:
        """Seconds of `count` small dependent kernels."""
        return count * self.kernel_s


def _as_low(chip: Chip, kind: str, share: float) -> Chip:
    """The chip with `kind` in the place of fp8, which is the one low precision that `Kernels` knows."""
    if kind not in chip.peak_flops:
        peak = chip.peak("bf16")
        return replace(chip, peak_flops={**chip.peak_flops, "fp8": peak}, max_matmul_flops_fp8=chip.max_matmul_flops)
    if kind == "fp8" and not share:
        return chip
    peak = chip.peak_flops[kind]
    best = (
        Figure(peak.value * share, peak.value * share, peak.value * share, "FLOP/s", "share of peak", "measured")
        if share
        else None
    )
    if best is None and kind == "int8" and "fp8" in chip.peak_flops:
        best = chip.max_matmul_flops_fp8
    return replace(chip, peak_flops={**chip.peak_flops, "fp8": peak}, max_matmul_flops_fp8=best)


# ------------------------------------------------------------------ the parts of a layer


def small_kernels(d: Deployment, moe: bool) -> float:
    """Small dependent kernels of a layer: norms with their residuals, rope, cache write and activation (5), and more.

    A stack's count is of a layer of MLA with experts in low precision; a layer without one of these has fewer. The
    grouped products' own (gating, sorting) are in `experts`.
    """
    counted = 5.0 + (4.0 if d.model.attention == "mla" else 0.0) + quantisations(d)
    counted += 2.0 if moe and d.model.shared_width else 0.0
    return counted * d.stack["small_kernels"] / 15.0


def quantisations(d: Deployment) -> float:
    """Kernels of a layer that quantise activations, four where all products are in low precision: before the
    projections in (2 of MLA, 1 and the cache's), attention's output and the feed-forward."""
    if d.format.dense_compute != "bf16":
        return 4.0
    return (2.0 if d.format.wide else 1.0) if d.quantises_activations else 0.0


def operators_issued(d: Deployment, ahead: bool = False) -> float:
    """Kernels that the host issues one by one in a step without graphs: those of every layer, and the head's.

    Of a layer: the small ones, four matmuls and the core attention, two all-reduces where attention is cut; two matmuls
    more with MLA; of experts the gate, its top-k, sorting (3), two grouped products and a sum. ahead: with those that
    prepare a pass over prompts while the steps before it run (`prefill_mla_ops`, `prefill_expert_ops` a layer).
    """
    m, stack = d.model, d.stack
    attention = 7.0 + (3.0 if m.attention == "mla" else 0.0) + (2.0 if d.attention_tp > 1 else 0.0)
    more = 0.0
    if ahead:
        attention += stack.get("prefill_mla_ops", 0.0) if m.attention == "mla" else 0.0
        more = stack.get("prefill_expert_ops", 0.0)
    moe, dense = (m.layers - m.dense_ffn_layers), m.dense_ffn_layers
    return (
        moe * (attention + small_kernels(d, True) + 6.0 + more) + dense * (attention + small_kernels(d, False)) + 10.0
    )


def projections(roof: Roof, T: float, absorbed: bool, parts: dict[str, float]) -> None:
    """One layer's matmuls around attention: MLA absorbed or expanded, or those of grouped-query attention."""
    d, m = roof.d, roof.d.model
    w, kind, C = d.attention_bytes, d.attention_compute, m.hidden
    H = m.heads / d.attention_tp
    time = 0.0
    if m.attention == "mla":
        q_in = m.q_lora or C
        time += roof.matmul(T, (m.q_lora or 0) + m.kv_lora + m.rope, C, w, kind)
        time += roof.matmul(T, H * m.qk_dim, q_in, w, kind)
        if absorbed:
            time += roof.matmul(T, m.kv_lora, m.nope, w, "bf16", batch=H) + roof.matmul(
                T, m.v_dim, m.kv_lora, w, "bf16", batch=H
            )
        else:
            time += roof.matmul(T, H * (m.nope + m.v_dim), m.kv_lora, w, kind)
        time += roof.matmul(T, C, H * m.v_dim, d.output_bytes, d.output_compute)
    else:
        kv = max(m.kv_heads / d.attention_tp, 1.0)
        time += roof.matmul(T, (H + 2 * kv) * m.head_dim, C, w, kind)
        time += roof.matmul(T, C, H * m.head_dim, d.output_bytes, d.output_compute)
    add(parts, "projections", time)


def measured_decode_layer(roof: Roof, R: float, q: float, keys: float) -> float | None:
    """Seconds of a whole attention layer of GLM-5 as measured (projections, indexer, top-k, sparse attention, output).

    The q tokens of a request that verifies drafts count as so many requests. None for other shapes and chips.
    """
    d, m = roof.d, roof.d.model
    shape = (m.hidden, m.heads, m.q_lora, m.kv_lora, m.index_heads, m.index_dim, m.index_topk)
    if not roof.hybrid or shape != GLM5_ATTENTION or m.indexer_full_layers != m.layers:
        return None
    dtype = "fp8_block" if d.format.dense_compute == "fp8" else "bfloat16"
    return measured.dsa_layer_s(d.cluster.chip.tables, "decode", dtype, min(d.attention_tp, 8), R * q, max(keys, 2.0))


def add(parts: dict[str, float], name: str, time: float) -> None:
    """`time` more seconds for the part `name`."""
    parts[name] = parts.get(name, 0.0) + time


def decode_attention(roof: Roof, R: float, q: float, keys: float, parts: dict[str, float]) -> None:
    """One layer's core attention for R requests, q query tokens each, `keys` cached tokens; MLA absorbed."""
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
    add(parts, "attention", max(flops / rate, size / roof.cache_memory(m.attention)) + roof.small(2))
    if sparse and m.index_heads:
        share, dims = m.indexer_full_layers / m.layers, m.index_heads * m.index_dim
        w, kind = d.format.dense_bytes, d.format.dense_compute
        T = R * q
        score = 2.0 * T * m.index_heads * (m.index_dim + 1) * keys
        rate = roof.peak(_indexer_kind(d)) * (d.stack["sparse_compute"] if roof.hybrid else 1.0)
        size = R * keys * index_row_bytes(m, d.kv) + CONSTANTS["score_bytes"][0] * T * keys
        time = roof.matmul(T, dims, m.q_lora or m.hidden, w, kind) + roof.matmul(
            T, m.index_dim + m.index_heads, m.hidden, 2.0, "bf16"
        )
        time += max(score / rate, size / roof.decode_memory) + roof.small(2 + CONSTANTS["indexer_kernels"][0])
        add(parts, "indexer", share * time)


def _indexer_kind(d: Deployment) -> str:
    """Precision of the indexer's scores: fp8 where the chip has it, whatever the rest of the cache is in
    (DeepSeek-V3.2)."""
    if "fp8" in d.cluster.chip.peak_flops:
        return "fp8"
    return d.format.dense_compute if d.kv == "fp8" else "bf16"


def prefill_attention(roof: Roof, T: float, new: float, past: float, parts: dict[str, float]) -> None:
    """One layer's core attention for T tokens in prompts of `new` tokens after `past` cached ones."""
    d, m = roof.d, roof.d.model
    H, keys = m.heads / d.attention_tp, past + (new + 1) / 2
    sparse = m.index_topk and past + new > m.index_topk
    share = (d.stack["sparse_prefill"] if sparse else d.stack["prefill_attention"]) if roof.hybrid else 1.0
    if sparse:
        k, visible = m.index_topk, past + new
        dense_part = max(0.0, min(k, visible) - past)  # queries that see fewer than k keys
        read = (dense_part * (past + dense_part / 2) + (new - dense_part) * k) / new
        flops = 2.0 * T * H * read * (2 * m.kv_lora + m.rope)
        size = T * read * kv_row_bytes(m, d.kv) / CONSTANTS["gather_reuse"][0]
        score = 2.0 * T * m.index_heads * (m.index_dim + 1) * keys
        low, w = _indexer_kind(d), d.format.dense_bytes
        time = roof.matmul(T, m.index_heads * m.index_dim, m.q_lora or m.hidden, w, d.format.dense_compute)
        time += max(score / (roof.peak(low) * share), roof.elementwise(CONSTANTS["score_bytes"][0] * T * keys))
        add(parts, "indexer", time * m.indexer_full_layers / m.layers)
    else:
        read = keys
        if m.window and m.window_layers:
            read += (min(keys, m.window) - keys) * m.window_layers / m.layers
        flops = 2.0 * T * H * read * (m.qk_dim + m.value_dim)
        size = 2.0 * T * H * (m.qk_dim + m.value_dim)
        if m.attention == "mla" and past:  # cached latents are expanded again, in one product with the new ones
            expanded = (H * (m.nope + m.v_dim), m.kv_lora, d.attention_bytes, d.attention_compute)
            longer = roof.matmul(T + past * T / new, *expanded) - roof.matmul(T, *expanded)
            add(parts, "projections", longer)
    curve = read / (read + CONSTANTS["prefill_keys_half"][0]) if roof.hybrid else 1.0
    add(parts, "attention", max(flops / (roof.bf16_peak * share * curve), size / roof.bandwidth))


def experts(roof: Roof, T: float, parts: dict[str, float], imbalance: float) -> None:
    """One mixture-of-experts layer's matmuls on one chip; T tokens per attention group."""
    d, m = roof.d, roof.d.model
    total = T * d.groups  # tokens of the instance
    E = m.experts
    busy = (E + d.redundant_experts) * (1.0 - (1.0 - m.experts_per_token / E) ** total)  # experts that anybody chose
    rows = total * copies_sent(d) / d.chips * imbalance  # token-expert pairs on the busiest chip
    w, kind = d.format.expert_bytes, roof.expert_compute
    if d.tensor_experts and not d.whole_experts:  # every chip holds a slice of each expert
        local, width, rows = busy, m.moe_ffn / d.chips, total * m.experts_per_token
    else:
        held = (E + d.redundant_experts) / d.chips
        local, width = most_busy(held, busy / (E + d.redundant_experts), d.chips), float(m.moe_ffn)
    up = m.ffn_matrices - 1
    weights = local * (up + 1) * m.hidden * width
    if roof.hybrid:
        moved = weights * w + 2.0 * rows * CONSTANTS["expert_passes"][0] * m.hidden
        padded = roof.padded_rows(rows, local, kind)
        compute = 2.0 * padded * (up + 1) * m.hidden * width / roof.peak(kind)
        time = CONSTANTS["grouped_s"][0] * roof.kernel_s / MEASURED_KERNEL_S
        time += roof.small(d.stack.get("expert_kernels", 0.0)) if kind == "bf16" and w < 2 else 0.0
        time += CONSTANTS["grouped_memory"][0] * moved / roof.bandwidth + roof.grouped_compute(kind) * compute
    else:
        each = rows / max(local, 1e-9)  # rows per expert that is used here
        time = roof.matmul(max(each, 1.0), up * width, m.hidden, w, kind, batch=local) + roof.matmul(
            max(each, 1.0), m.hidden, width, w, kind, batch=local
        )
        time += roof.elementwise(2.0 * rows * CONSTANTS["expert_passes"][0] * m.hidden)
    add(parts, "experts", time + roof.matmul(T, E, m.hidden, 2.0, "bf16"))
    if m.shared_width and not shared_apart(d):
        w, kind = d.format.ffn_bytes, d.format.ffn_compute
        width = m.shared_width / d.attention_tp
        add(parts, "experts", roof.matmul(T, up * width, m.hidden, w, kind) + roof.matmul(T, m.hidden, width, w, kind))


@functools.lru_cache(maxsize=65536)
def most_busy(held: float, share: float, chips: int) -> float:
    """Experts in use on the chip that has most of them, where each is used with probability `share`, `held` a chip.

    The mean of the largest of `chips` binomial counts; a fraction of an expert is interpolated.

    >>> most_busy(16, 1.0, 8), most_busy(1, 0.5, 2), most_busy(16, 0.25, 1)
    (16.0, 0.75, 4.0)
    """
    low = math.floor(held)
    if held > low:
        return most_busy(low, share, chips) + (held - low) * (
            most_busy(low + 1, share, chips) - most_busy(low, share, chips)
        )
    if share >= 1.0 or low == 0:
        return float(low)
    below = mean = 0.0
    for count in range(low):
        below += math.comb(low, count) * share**count * (1.0 - share) ** (low - count)
        mean += 1.0 - min(below, 1.0) ** chips
    return mean


def dense_ffn(roof: Roof, T: float, parts: dict[str, float]) -> None:
    """One layer's feed-forward network without experts."""
    d, m = roof.d, roof.d.model
    width, up = m.ffn / d.attention_tp, m.ffn_matrices - 1
    w, kind = d.format.ffn_bytes, d.format.ffn_compute
    add(parts, "dense FFN", roof.matmul(T, up * width, m.hidden, w, kind) + roof.matmul(T, m.hidden, width, w, kind))


def head(roof: Roof, T: float, parts: dict[str, float]) -> None:
    """The output projection to the vocabulary, for T tokens."""
    d, m = roof.d, roof.d.model
    add(parts, "head", roof.matmul(T, m.vocab / d.attention_tp, m.hidden, 2.0, "bf16") + roof.small(3))
