"""What one chip of an instance holds, in bytes, as the engine counts it: a receipt.

Weights by tensor with its format and its sharding rule, what the engine keeps beside them
(`sim.serving.engine_memory`), and the cache that the rest has room for (`sim.serving.cache`).

    >>> d = Deployment.of("glm5", "dgx_h200", chips=8, precision="fp8", kv="fp8", attention_tp=8)
    >>> m = chip_memory(d)
    >>> round(m.weights_bytes / 2**30, 1), round(m.kv_bytes_per_token)
    (88.7, 61464)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from minglm import weights
from minglm.weights import Weight, total_params
from sim.serving.cache import BLOCK_TOKENS, cache_ways, kv_bytes_per_token, request_bytes
from sim.serving.deployment import Deployment
from sim.serving.engine_memory import GIB, is_large, pass_tokens, profile_bytes, workspace_bytes
from sim.serving.formats import Format, format_of
from sim.spec.model import ModelSpec

__all__ = ["GIB", "ChipMemory", "chip_memory", "shortfall", "weight_bytes"]


def weight_bytes(
    model: ModelSpec,
    precision: str,
    mtp: bool = True,
    tp: int = 1,
    expert_ways: float = 1.0,
    pp: int = 1,
) -> dict[str, float]:
    """Bytes of the weights on the fullest chip, by part; of the whole model with the default widths.

    experts; dense: attention, shared experts, dense feed-forward, indexer; bf16: embedding, router, norms, head.

    Args:
        mtp: with the multi-token-prediction modules.
        tp: chips that cut attention, dense and shared feed-forward, embedding and head; latent projections, the
            indexer, router and norms are whole on each of them, and key-value heads are repeated beyond their number.
        expert_ways: chips over which the routed experts lie (a fraction below it: redundant copies).
        pp: pipeline stages; layers are cut evenly and the stage with the head or the embedding is the fullest.
    """
    stored = format_of(precision, bool(model.experts))
    in_bf16 = model.fp8_skipped_layers / model.layers if precision == "fp8" else 0.0
    dense_bytes = stored.dense_bytes + in_bf16 * (2.0 - stored.dense_bytes)
    attention_bytes = 2.0 if precision == "fp8" and not model.fp8_attention else stored.dense_bytes

    def on_chip(rows: Iterable[Weight]) -> tuple[float, float]:
        """(values of matrices, values of vectors) of one layer's weights on one chip."""
        matrices = vectors = 0.0
        for weight in rows:
            size = weight.size / (_ways(model, weight, tp) if weight.sharded else 1)
            if weight.is_matrix:
                matrices += size
            else:
                vectors += size
        return matrices, vectors

    attention, attention_vectors = on_chip(w for w in model.attention_weights() if w.name != "o_proj")
    output, _ = on_chip(w for w in model.attention_weights() if w.name == "o_proj")
    output_bytes = stored.ffn_bytes if stored.wide else attention_bytes
    ffn_bytes = stored.ffn_bytes if stored.wide else dense_bytes
    indexer, indexer_vectors = on_chip(model.indexer_weights())
    dense, dense_vectors = on_chip(model.ffn_weights(model.ffn, model.ffn_bias))
    shared, shared_vectors = on_chip(model.ffn_weights(model.shared_width))
    shared += model.hidden if model.shared_gate and model.shared_width else 0
    scores = [w for w in model.router_weights() if w.name != "e_score_correction_bias"]  # a buffer of the balance rule
    router = total_params(scores) if model.experts else 0
    norms = model.norms_per_layer * model.norm_params()
    experts = model.experts * _expert_values(model, stored) / expert_ways if model.experts else 0.0

    modules = model.mtp_modules if mtp else 0
    moe, plain = model.moe_layers + (modules if model.experts else 0), model.dense_ffn_layers
    plain += 0 if model.experts else modules
    layers = model.layers + modules
    indexers = model.indexer_full_layers + (modules if model.indexer_full_layers else 0)
    join = weights.mtp_join(model.hidden)
    join_matrices = sum(w.size for w in join if w.is_matrix)
    bf16 = layers * (attention_vectors + norms) + indexers * indexer_vectors + moe * (router + shared_vectors)
    bf16 += plain * dense_vectors + modules * (total_params(join) - join_matrices)
    ends = (model.vocab / tp, model.positions, 0 if model.tied else model.vocab / tp)
    ends_values = model.hidden * (sum(ends) if pp == 1 else max(ends[0] + ends[1], ends[2] or ends[0]))
    stage = math.ceil(model.layers / pp) / model.layers
    return {
        "experts": stage * moe * experts * (stored.expert_bytes + in_bf16 * (2.0 - stored.expert_bytes)),
        "dense": stage
        * (
            layers * (attention * attention_bytes + output * output_bytes)
            + indexers * indexer * stored.dense_bytes
            + (plain * dense + moe * shared) * ffn_bytes
            + modules * join_matrices * stored.dense_bytes
        ),
        "bf16": 2.0 * (stage * bf16 + ends_values + model.hidden),
    }


def _ways(model: ModelSpec, weight: Weight, tp: int) -> int:
    """Chips that share a weight which tensor parallelism cuts: no more than key-value heads for theirs."""
    return min(tp, model.kv_heads) if weight.name.split(".")[0] in ("k_proj", "v_proj") else tp


def _expert_values(model: ModelSpec, stored: Format) -> float:
    """Stored values of one routed expert, padding of the kernels included."""
    multiple = stored.expert_width_multiple
    padded = math.ceil(model.moe_ffn / multiple) * multiple
    return total_params(model.ffn_weights(padded, model.ffn_bias))


@dataclass(frozen=True)
class ChipMemory:
    """Bytes of one chip, as a receipt.

    usable_bytes: what the engine takes. engine_parts: what it keeps of that beside weights and cache, by name.
    cache_share: of a token's cache over all layers, what one chip keeps (key-value heads are cut, MTP adds a layer).
    """

    model: ModelSpec
    kv: str
    capacity_bytes: float
    usable_bytes: float
    weights_bytes: float
    parts: Mapping[str, float]
    engine_parts: Mapping[str, float]
    cache_share: float
    max_model_len: int

    @property
    def cache_bytes(self) -> float:
        """Room for the cache: nothing where weights and engine alone are too large."""
        return max(0.0, self.free_bytes)

    @property
    def free_bytes(self) -> float:
        """What weights and engine leave of the usable memory; negative where they do not fit."""
        return self.usable_bytes - self.weights_bytes - sum(self.engine_parts.values())

    @property
    def over_bytes(self) -> float:
        """By how much weights and engine exceed what is usable (0 when they fit)."""
        return max(0.0, -self.free_bytes)

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of one more token of a long context on one chip."""
        return kv_bytes_per_token(self.model, self.kv) * self.cache_share

    def request_bytes(self, context: float) -> float:
        """Bytes of one request of `context` tokens on one chip, in whole blocks."""
        return request_bytes(self.model, self.kv, max(context, 1.0)) * self.cache_share

    def requests(self, context: float) -> int:
        """Requests of `context` tokens that one attention group can hold."""
        return int(self.cache_bytes / self.request_bytes(context) + 1e-9)

    @property
    def kv_tokens(self) -> float:
        """Tokens that one attention group can hold in requests of `max_model_len`, as vLLM's log counts them."""
        if not self.model.window_layers:
            return self.cache_bytes / self.kv_bytes_per_token
        return self.cache_bytes / self.request_bytes(self.max_model_len) * self.max_model_len

    def longest_context(self, requests: float = 1.0) -> int:
        """Tokens of the longest context that fits `requests` times, in whole blocks, within the model's own limit."""
        low, high = 0, self.max_model_len // BLOCK_TOKENS
        while low < high:
            middle = (low + high + 1) // 2
            fits = requests * self.request_bytes(middle * BLOCK_TOKENS) <= self.cache_bytes
            low, high = (middle, high) if fits else (low, middle - 1)
        return low * BLOCK_TOKENS

    def receipt(self) -> dict[str, float]:
        """Every item in bytes; the items between `usable` and `cache` are what is taken from it."""
        weights_by_part = {f"weights: {name}": size for name, size in self.parts.items()}
        return {
            "chip": self.capacity_bytes,
            "usable": self.usable_bytes,
            **weights_by_part,
            **self.engine_parts,
            "cache": self.free_bytes,
        }


def chip_memory(d: Deployment) -> ChipMemory:
    """What the fullest chip of the instance holds."""
    m, engine, stage_chips = d.model, d.engine, d.chips // d.pp
    slots = 1.0 + d.redundant_experts / m.experts if m.experts else 1.0
    parts = weight_bytes(m, d.precision, d.drafts > 0, d.attention_tp, stage_chips / slots, d.pp)
    capacity = d.cluster.chip.memory_bytes.value
    large = is_large(capacity)
    engine_parts = {}
    if engine.activations_inside:
        tokens = pass_tokens(engine, large, d.max_num_batched_tokens, d.max_model_len or m.max_seq)
        ways = stage_chips if d.tensor_experts else 1
        engine_parts = {
            "activations": profile_bytes(engine, m, tokens, d.requests_of_a_pass, d.attention_tp, ways),
            "runtime": engine.runtime_bytes[large, stage_chips > 1],
        }
        workspace = workspace_bytes(engine, m, tokens, ways) if d.precision != "mxfp4" else 0.0
        if workspace:  # kernels for MXFP4 keep none
            engine_parts["expert workspace"] = workspace
    layers = (math.ceil(m.layers / d.pp) + (d.drafts > 0)) / m.layers
    return ChipMemory(
        m,
        d.kv,
        capacity,
        capacity * d.usable_share,
        sum(parts.values()),
        parts,
        engine_parts,
        layers / cache_ways(m, d.attention_tp),
        d.max_model_len or m.max_seq,
    )


def shortfall(d: Deployment, context: float = 0.0, requests: float = 0.0) -> float:
    """Bytes a chip lacks for weights, engine and `requests` contexts per attention group (0 when it fits)."""
    m = chip_memory(d)
    cache = m.request_bytes(context) * requests if context and requests else 0.0
    return max(0.0, cache - m.free_bytes)
