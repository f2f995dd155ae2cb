"""What each family of Hugging Face configs says of its shape: one small function a family, over a plain decoder.

Each names what differs from a Llama-like decoder. Counts are exact: tested against `transformers` models built on the
meta device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from minglm.errors import InputError
from sim.spec.huggingface_config import Config


def _decoder(c: Config, **extra) -> dict:
    """What Llama-like families share."""
    heads, hidden = c.int("num_attention_heads"), c.int("hidden_size")
    base = dict(
        layers=c.int("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=c.int("num_key_value_heads", heads),
        head_dim=c.int("head_dim", hidden // max(heads, 1)),
        ffn=c.int("intermediate_size", 0),
        vocab=c.int("vocab_size"),
        tied=c.flag("tie_word_embeddings"),
        max_seq=c.int("max_position_embeddings", 4096),
    )
    return base | _left_in_bf16(c.raw) | extra


def _left_in_bf16(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What an FP8 checkpoint's `modules_to_not_convert` leaves as it was: attention, whole layers."""
    names = (raw.get("quantization_config") or {}).get("modules_to_not_convert") or []
    if not isinstance(names, list):
        return {}
    feed_forward = {re.match(r"model\.layers\.(\d+)\.(?!self_attn)", str(name)) for name in names}
    skipped = {found[1] for found in feed_forward if found}
    attention = not any("self_attn" in str(name) for name in names)
    return {"fp8_attention": attention, "fp8_skipped_layers": len(skipped)}


def _llama(c):
    bias, mlp = c.flag("attention_bias"), c.flag("mlp_bias")
    return _decoder(c, qkv_bias=bias, out_bias=bias, ffn_bias=mlp)


def _mistral(c):
    window = c.int("sliding_window", 0)
    return _decoder(c, window=window, window_layers=c.int("num_hidden_layers") if window else 0)


def _mixtral(c):
    return _mistral(c) | dict(
        experts=c.int("num_local_experts", 8),
        experts_per_token=c.int("num_experts_per_tok", 2),
        moe_ffn=c.int("intermediate_size"),
    )


def _window_qwen(c, base):
    if c.flag("use_sliding_window") and c.int("sliding_window", 0):
        first = c.int("max_window_layers", 0)
        base |= dict(window=c.int("sliding_window"), window_layers=max(base["layers"] - first, 0))
    return base


def _qwen2(c):
    return _window_qwen(c, _decoder(c, qkv_bias=True))


def _qwen3(c):
    return _window_qwen(
        c,
        _decoder(
            c,
            head_dim=c.int("head_dim", 128),
            qk_norm=True,
            qkv_bias=c.flag("attention_bias"),
            out_bias=c.flag("attention_bias"),
        ),
    )


def _sparse_layers(c) -> int:
    """Number of dense layers under Qwen's `decoder_sparse_step` and `mlp_only_layers`."""
    layers, step = c.int("num_hidden_layers"), max(c.int("decoder_sparse_step", 1), 1)
    only = set(c.raw.get("mlp_only_layers") or ())
    return sum(i in only or (i + 1) % step != 0 for i in range(min(layers, 100_000)))


def _qwen2_moe(c):
    return _qwen2(c) | dict(
        experts=c.int("num_experts", 60),
        experts_per_token=c.int("num_experts_per_tok", 4),
        moe_ffn=c.int("moe_intermediate_size"),
        shared_experts=1,
        shared_ffn=c.int("shared_expert_intermediate_size", 0),
        shared_gate=True,
        dense_layers=_sparse_layers(c),
        qkv_bias=c.flag("qkv_bias", True),
    )


def _qwen3_moe(c):
    return _qwen3(c) | dict(
        experts=c.int("num_experts", 128, "num_local_experts"),
        experts_per_token=c.int("num_experts_per_tok", 8),
        moe_ffn=c.int("moe_intermediate_size"),
        dense_layers=_sparse_layers(c),
    )


def _gpt2(c):
    hidden, heads = c.int("n_embd"), c.int("n_head")
    length = c.int("n_positions", 1024)
    return dict(
        layers=c.int("n_layer"),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // max(heads, 1),
        ffn=c.int("n_inner", 4 * hidden),
        vocab=c.int("vocab_size"),
        gated_ffn=False,
        tied=c.flag("tie_word_embeddings", True),
        norm="layer",
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        positions=length,
        max_seq=length,
    )


def _gpt_neox(c):
    bias = c.flag("attention_bias", True)
    return _decoder(c, gated_ffn=False, norm="layer", qkv_bias=bias, out_bias=bias, ffn_bias=True)


def _windowed(c, otherwise: int) -> int:
    """Layers with a sliding window: as `layer_types` lists them, or `otherwise` where it is absent."""
    kinds = c.raw.get("layer_types")
    if not isinstance(kinds, list):
        return otherwise
    return sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)


def _gpt_oss(c):
    layers = c.int("num_hidden_layers")
    return _decoder(
        c,
        experts=c.int("num_local_experts"),
        experts_per_token=c.int("num_experts_per_tok", 4),
        moe_ffn=c.int("intermediate_size"),
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        router_has_bias=True,
        sinks=True,
        window=c.int("sliding_window", 0),
        window_layers=_windowed(c, (layers + 1) // 2),
    )


def _llama4(c):
    """Experts in every `interleave_moe_layer_step`-th layer beside one shared of the same width; three layers of four
    attend within chunks. Its query and key norms have no weights."""
    layers, step = c.int("num_hidden_layers"), max(c.int("interleave_moe_layer_step", 1), 1)
    every, width = c.int("no_rope_layer_interval", 4), c.int("intermediate_size")
    listed = c.raw.get("moe_layers")
    moe = len(listed) if isinstance(listed, list) and listed else layers // step
    chunked = layers - (layers // every if every else 0)
    return _decoder(
        c,
        ffn=c.int("intermediate_size_mlp", width),
        experts=c.int("num_local_experts"),
        experts_per_token=c.int("num_experts_per_tok", 1),
        moe_ffn=width,
        shared_experts=1,
        dense_layers=layers - moe,
        qkv_bias=c.flag("attention_bias"),
        out_bias=c.flag("attention_bias"),
        window=c.int("attention_chunk_size", 0),
        window_layers=_windowed(c, chunked) if c.int("attention_chunk_size", 0) else 0,
    )


def _minimax_m2(c):
    return _decoder(
        c,
        experts=c.int("num_local_experts"),
        experts_per_token=c.int("num_experts_per_tok"),
        moe_ffn=c.int("intermediate_size"),
        router_bias=True,
        qk_norm=True,
        qk_norm_full=True,
    )


def _olmo2(c):
    bias = c.flag("attention_bias")
    return _decoder(c, qkv_bias=bias, out_bias=bias, qk_norm=True, qk_norm_full=True)


def _olmo3(c):
    layers, window = c.int("num_hidden_layers"), c.int("sliding_window", 0)
    return _olmo2(c) | dict(window=window, window_layers=_windowed(c, layers - layers // 4) if window else 0)


def _glm4(c):
    return _decoder(c, qkv_bias=c.flag("attention_bias"), norms_per_layer=4)


def _dots1(c):
    first = c.int("max_window_layers", 0)
    window = c.int("sliding_window", 0)
    return _decoder(
        c,
        qkv_bias=c.flag("attention_bias"),
        out_bias=c.flag("attention_bias"),
        qk_norm=True,
        experts=c.int("n_routed_experts", 0),
        experts_per_token=c.int("num_experts_per_tok", 0),
        shared_experts=c.int("n_shared_experts", 0),
        moe_ffn=c.int("moe_intermediate_size"),
        dense_layers=c.int("first_k_dense_replace", 0),
        router_bias=True,
        window=window,
        window_layers=max(c.int("num_hidden_layers") - first, 0) if window else 0,
    )


def _starcoder2(c):
    bias, window = c.flag("use_bias", True), c.int("sliding_window", 0)
    return _decoder(
        c,
        gated_ffn=False,
        norm="layer",
        qkv_bias=bias,
        out_bias=bias,
        ffn_bias=bias,
        window=window,
        window_layers=c.int("num_hidden_layers") if window else 0,
    )


def _internlm2(c):
    bias = c.flag("bias")
    return _decoder(
        c, qkv_bias=bias, out_bias=bias, kv_heads=c.int("num_key_value_heads", c.int("num_attention_heads"))
    )


def _smollm3(c):
    return _llama(c)


def _seed_oss(c):
    return _decoder(
        c, qkv_bias=c.flag("attention_bias"), out_bias=c.flag("attention_out_bias"), ffn_bias=c.flag("mlp_bias")
    )


def _ernie4_5(c):
    bias = c.flag("use_bias")
    return _decoder(c, qkv_bias=bias, out_bias=bias, ffn_bias=bias)


def _phi3(c):
    window = c.int("sliding_window", 0)
    return _decoder(c, window=window, window_layers=c.int("num_hidden_layers") if window else 0)


def _deepseek(c):
    base = _decoder(
        c,
        attention="mla",
        q_lora=c.int("q_lora_rank", 0),
        kv_lora=c.int("kv_lora_rank"),
        nope=c.int("qk_nope_head_dim"),
        rope=c.int("qk_rope_head_dim"),
        v_dim=c.int("v_head_dim"),
        experts=c.int("n_routed_experts", 0),
        experts_per_token=c.int("num_experts_per_tok", 0),
        shared_experts=c.int("n_shared_experts", 0),
        moe_ffn=c.int("moe_intermediate_size", 0),
        dense_layers=c.int("first_k_dense_replace", 0),
        router_groups=c.int("n_group", 0),
        groups_per_token=c.int("topk_group", 0),
    )
    base["head_dim"] = base["nope"] + base["rope"]
    base["kv_heads"] = base["heads"]
    if c.raw.get("moe_layer_freq") not in (None, 1):
        raise InputError(
            f"config.json moe_layer_freq={c.raw['moe_layer_freq']!r}: only 1 is supported; give plain dimensions "
            "instead"
        )
    return base


def _deepseek_v3(c):
    mtp = c.int("num_nextn_predict_layers", 0)
    return _deepseek(c) | dict(router_bias=True, mtp_modules=mtp, mtp_depth=mtp)


def _deepseek_v32(c):
    return _deepseek_v3(c) | dict(
        index_topk=c.int("index_topk", 2048),
        index_heads=c.int("index_n_heads", 64),
        index_dim=c.int("index_head_dim", 128),
        indexer_full_layers=c.int("num_hidden_layers"),
    )


def _glm4_moe_lite(c):
    kinds = c.raw.get("mlp_layer_types")
    # without either key the class lists one dense layer, then experts
    first = kinds.count("dense") if isinstance(kinds, list) else c.int("first_k_dense_replace", 1)
    return _deepseek(c) | dict(router_bias=True, dense_layers=first)


def _glm4_moe(c):
    mtp = c.int("num_nextn_predict_layers", 0)
    return _decoder(
        c,
        qkv_bias=c.flag("attention_bias"),
        qk_norm=c.flag("use_qk_norm"),
        experts=c.int("n_routed_experts"),
        experts_per_token=c.int("num_experts_per_tok"),
        shared_experts=c.int("n_shared_experts", 0),
        moe_ffn=c.int("moe_intermediate_size"),
        dense_layers=c.int("first_k_dense_replace", 0),
        router_bias=True,
        mtp_modules=mtp,
        mtp_depth=mtp,
    )


def _gemma(c):
    return _decoder(c, tied=c.flag("tie_word_embeddings", True), head_dim=c.int("head_dim", 256))


def _gemma2(c):
    window, layers = c.int("sliding_window", 0), c.int("num_hidden_layers")
    return _gemma(c) | dict(
        norms_per_layer=4, window=window, window_layers=_windowed(c, (layers + 1) // 2) if window else 0
    )


def _gemma3(c):
    every = c.int("sliding_window_pattern", 6)
    layers = c.int("num_hidden_layers")
    return _gemma(c) | dict(
        norms_per_layer=4,
        qk_norm=True,
        window=c.int("sliding_window", 0),
        window_layers=_windowed(c, layers - layers // max(every, 1)) if c.int("sliding_window", 0) else 0,
    )


FAMILIES: dict[str, Callable[[Config], dict]] = {
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v32": _deepseek_v32,
    "kimi_k2": _deepseek_v3,
    "kimi_k25_text": _deepseek_v3,
    "glm4": _glm4,
    "glm4_moe": _glm4_moe,
    "glm4_moe_lite": _glm4_moe_lite,
    "glm4v_moe_text": _glm4_moe,
    "llama4_text": _llama4,
    "minimax_m2": _minimax_m2,
    "ministral": _mistral,
    "mistral3_text": _mistral,
    "qwen2_vl_text": _qwen2,
    "qwen2_5_vl_text": _qwen2,
    "qwen3_vl_text": _qwen3,
    "qwen3_vl_moe_text": _qwen3_moe,
    "olmo2": _olmo2,
    "olmo3": _olmo3,
    "granite": _llama,
    "dots1": _dots1,
    "starcoder2": _starcoder2,
    "internlm2": _internlm2,
    "smollm3": _smollm3,
    "seed_oss": _seed_oss,
    "ernie4_5": _ernie4_5,
    "phi3": _phi3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}
