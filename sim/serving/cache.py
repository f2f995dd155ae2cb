"""Bytes that the cached tokens of a request take, by kind of layer.

Full layers keep every token, window layers the last `window`, multi-head latent attention one latent that tensor
parallelism does not cut, and a sparse-attention indexer its own keys. Engines hand memory out in blocks of tokens.

    >>> from sim.spec.model_loader import load_model
    >>> gpt_oss = load_model("gpt_oss_120b")
    >>> round(request_bytes(gpt_oss, "bf16", 130_000) / 2**30, 2), kv_bytes_per_token(gpt_oss, "bf16")
    (4.47, 36864.0)
"""

from __future__ import annotations

import math

from sim.spec.model import ModelSpec

BLOCK_TOKENS = 16  # published: vLLM's default block; a request's last block is half empty on average


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
    """What one more token of a long context costs: layers with a full cache, indexer keys included.

    The MTP module's layer is left out (one layer more).
    """
    full = model.layers - (model.window_layers if model.window else 0)
    return full * kv_row_bytes(model, kv) + model.indexer_full_layers * index_row_bytes(model, kv)


def request_bytes(model: ModelSpec, kv: str, context: float) -> float:
    """Bytes of a request of `context` tokens over all layers, in whole blocks; window layers keep their window only."""
    tokens = math.ceil(context / BLOCK_TOKENS) * BLOCK_TOKENS
    windowed = model.window_layers * kv_row_bytes(model, kv) * min(tokens, model.window) if model.window else 0.0
    return kv_bytes_per_token(model, kv) * tokens + windowed


def cache_ways(model: ModelSpec, attention_tp: int) -> int:
    """Chips of an attention group that share a token's cache: key-value heads are cut, a latent is not."""
    return 1 if model.attention == "mla" else min(attention_tp, model.kv_heads)
