"""What one chip of an instance holds, in bytes: weights, latent key-value cache, indexer keys.

Counted, not measured: bytes of a stored weight by format (`sim.serving.deployment.FORMATS`),
rows of the cache by format.

    >>> d = Deployment.of("glm5", "dgx_h200", chips=8, precision="fp8", kv="fp8", attention_tp=8)
    >>> m = chip_memory(d)
    >>> round(m.weights_bytes / 2**30, 1), round(m.kv_bytes_per_token)
    (86.9, 61464)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sim.serving.deployment import FORMATS, Deployment
from sim.spec.model import ModelSpec

GIB = 2.0**30


def kv_row_bytes(model: ModelSpec, kv: str) -> float:
    """Bytes of one token's cache in one layer, without indexer keys."""
    if model.attention == "mla":
        if kv == "fp8":  # FlashMLA: fp8 latent, fp32 scale per 128 values, rotary part in bf16 (656 for 512 + 64)
            return model.kv_lora + 4.0 * math.ceil(model.kv_lora / 128) + 2.0 * model.rope
        return 2.0 * (model.kv_lora + model.rope)
    return 2.0 * model.kv_heads * model.head_dim * (1.0 if kv == "fp8" else 2.0)


def index_row_bytes(model: ModelSpec, kv: str) -> float:
    """Bytes of one token's indexer key in one layer that runs an indexer."""
    if not model.index_heads:
        return 0.0
    return model.index_dim + 4.0 if kv == "fp8" else 2.0 * model.index_dim


def kv_bytes_per_token(model: ModelSpec, kv: str) -> float:
    """All layers, indexer keys included; the MTP module's layer is left out (one layer more)."""
    return model.layers * kv_row_bytes(model, kv) + model.indexer_full_layers * index_row_bytes(model, kv)


def weight_bytes(model: ModelSpec, precision: str, mtp: bool = True) -> dict[str, float]:
    """Bytes of the whole model by part.

    experts; dense: attention, shared experts, dense FFN, indexer; bf16: embedding, router, norms, head.
    `mtp`: with the multi-token-prediction modules.
    """
    stored, parts = FORMATS[precision], model.params()
    experts = parts["routed_experts"]
    dense = parts["attention"] + parts["indexer"] + parts["dense_ffn"] + parts["shared_experts"]
    high_precision = sum(parts[k] for k in ("embedding", "positions", "router", "norms", "head", "final_norm"))
    if mtp and model.mtp_modules:
        routed = model.experts * model.expert_params() if model.experts else 0
        experts += model.mtp_modules * routed
        dense += parts["mtp"] - model.mtp_modules * routed
    return {"experts": experts * stored.expert_bytes, "dense": dense * stored.dense_bytes, "bf16": 2.0 * high_precision}


@dataclass(frozen=True)
class ChipMemory:
    """Bytes of one chip. `kv_tokens`: tokens of context that one attention group can hold."""

    capacity_bytes: float
    usable_bytes: float
    weights_bytes: float
    parts: Mapping[str, float]
    kv_bytes_per_token: float  # on one chip of the group, all layers
    kv_tokens: float

    @property
    def over_bytes(self) -> float:
        """By how much the weights alone exceed what is usable (0 when they fit)."""
        return max(0.0, self.weights_bytes - self.usable_bytes)

    def requests(self, context: float) -> int:
        """Requests of `context` tokens that one attention group can hold."""
        return int(self.kv_tokens // max(context, 1.0))


def chip_memory(d: Deployment) -> ChipMemory:
    """What one chip of the instance holds. Dense parts are cut by attention_tp and replicated over the groups."""
    whole = weight_bytes(d.model, d.precision, mtp=d.drafts > 0)
    slots = 1.0 + d.redundant_experts / d.model.experts if d.model.experts else 1.0
    parts = {
        "experts": whole["experts"] * slots / d.chips,
        "dense": whole["dense"] / d.attention_tp,
        "bf16": whole["bf16"] / d.attention_tp,
    }
    capacity = d.cluster.chip.memory_bytes.value
    usable = capacity * d.memory_share
    per_token = kv_bytes_per_token(d.model, d.kv) * (d.model.layers + (d.drafts > 0)) / d.model.layers
    if d.model.attention != "mla":
        per_token /= min(d.attention_tp, d.model.kv_heads)
    weights = sum(parts.values())
    return ChipMemory(capacity, usable, weights, parts, per_token, max(0.0, usable - weights) / per_token)


def shortfall(d: Deployment, context: float = 0.0, requests: float = 0.0) -> float:
    """Bytes a chip lacks for the weights and `requests` contexts per attention group (0 when it fits)."""
    m = chip_memory(d)
    return max(0.0, m.weights_bytes + m.kv_bytes_per_token * context * requests - m.usable_bytes)
