"""Families of Hugging Face configs with experts or latent attention: one small function a family.

Each names what differs from a Llama-like decoder. Counts are exact: tested against `transformers` models built on the
meta device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minglm.errors import InputError
from sim.spec.huggingface_config import Config
from sim.spec.huggingface_decoder import decoder, pattern, windowed, windows
from sim.spec.huggingface_dense import llama, mistral, qwen2, qwen3


def _mixtral(c):
    return mistral(c) | _whole_experts(c, "num_local_experts")


def _sparse_layers(c) -> int:
    """Number of dense layers under Qwen's `decoder_sparse_step` and `mlp_only_layers`."""
    layers, step = c.int("num_hidden_layers"), max(c.int("decoder_sparse_step", 1), 1)
    listed = c.raw.get("mlp_only_layers") or []
    if not isinstance(listed, list):
        raise InputError(f"config.json mlp_only_layers={listed!r}: must be a list of layers; give for example [0]")
    only = {layer for layer in listed if isinstance(layer, int)}
    return sum(i in only or (i + 1) % step != 0 for i in range(min(layers, 100_000)))


def _qwen2_moe(c):
    """Where windows are switched on, every second of the first `max_window_layers` has one."""
    first = min(c.int("max_window_layers", 0), c.int("num_hidden_layers"))
    window = windows(c, 0, (first + 1) // 2) if c.flag("use_sliding_window") else {}
    return (
        qwen2(c)
        | window
        | dict(
            experts=c.int("num_experts", 60),
            experts_per_token=c.int("num_experts_per_tok", 4),
            moe_ffn=c.int("moe_intermediate_size"),
            shared_experts=1,
            shared_ffn=c.int("shared_expert_intermediate_size", 0),
            shared_gate=True,
            dense_layers=_sparse_layers(c),
            qkv_bias=c.flag("qkv_bias", True),
        )
    )


def _qwen3_moe(c):
    return qwen3(c) | dict(
        experts=c.int("num_experts", 128, "num_local_experts"),
        experts_per_token=c.int("num_experts_per_tok", 8),
        moe_ffn=c.int("moe_intermediate_size"),
        dense_layers=_sparse_layers(c),
    )


def _gpt_oss(c):
    return decoder(
        c,
        experts=c.int("num_local_experts"),
        experts_per_token=c.int("num_experts_per_tok", 4),
        moe_ffn=c.int("intermediate_size"),
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        router_has_bias=True,
        sinks=True,
    ) | windows(c, 0, (c.int("num_hidden_layers") + 1) // 2)


def _llama4(c):
    """Experts in every `interleave_moe_layer_step`-th layer beside one shared of the same width; three layers of four
    attend within chunks. Its query and key norms have no weights."""
    layers, step = c.int("num_hidden_layers"), max(c.int("interleave_moe_layer_step", 1), 1)
    every, width = c.int("no_rope_layer_interval", 4), c.int("intermediate_size")
    listed = c.raw.get("moe_layers")
    moe = len(listed) if isinstance(listed, list) and listed else layers // step
    chunked = layers - (layers // every if every else 0)
    return decoder(
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
        window_layers=windowed(c, chunked) if c.int("attention_chunk_size", 0) else 0,
    )


def _minimax_m2(c):
    base = decoder(c, router_bias=True, qk_norm=True, qk_norm_full=True)
    return base | _whole_experts(c, "num_local_experts")


def _dots1(c):
    layers = c.int("num_hidden_layers")
    return decoder(
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
    ) | windows(c, 0, max(layers - c.int("max_window_layers", 0), 0))


def _deepseek(c):
    if c.raw.get("use_mla") is False:  # DeepSeek-VL2's smallest
        return _deepseek_moe(c)
    base = decoder(
        c,
        attention="mla",
        q_lora=c.int("q_lora_rank", 0),
        kv_lora=c.int("kv_lora_rank"),
        nope=c.int("qk_nope_head_dim"),
        rope=c.int("qk_rope_head_dim"),
        v_dim=c.int("v_head_dim", c.int("hidden_size") // max(c.int("num_attention_heads"), 1)),
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


def _deepseek_moe(c):
    """DeepSeekMoE of January 2024: its experts beside plain attention."""
    return decoder(
        c,
        experts=c.int("n_routed_experts", 0),
        experts_per_token=c.int("num_experts_per_tok", 0),
        shared_experts=c.int("n_shared_experts", 0),
        moe_ffn=c.int("moe_intermediate_size", 0),
        dense_layers=c.int("first_k_dense_replace", 0),
    )


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


def _listed_dense(c) -> int:
    """Number of dense layers as `mlp_layer_types` lists them; without any key one, as the classes do."""
    kinds = c.raw.get("mlp_layer_types")
    return kinds.count("dense") if isinstance(kinds, list) else c.int("first_k_dense_replace", 1)


def _glm4_moe_lite(c):
    return _deepseek(c) | dict(router_bias=True, dense_layers=_listed_dense(c))


def _glm4_moe(c):
    mtp = c.int("num_nextn_predict_layers", 0)
    return decoder(
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


def _phimoe(c):
    """Norms with a bias, and a bias of the head where it says so (Phi-3.5-MoE does)."""
    base = mistral(c)
    bias, head = c.flag("attention_bias"), base["vocab"] if c.flag("lm_head_bias") else 0
    return (
        base
        | _whole_experts(c, "num_local_experts")
        | dict(norm="layer", qkv_bias=bias, out_bias=bias, extra_params=head)
    )


def _whole_experts(c, key):
    """Experts in every layer, as wide as `intermediate_size` says."""
    return dict(
        experts=c.int(key),
        experts_per_token=c.int("num_experts_per_tok"),
        moe_ffn=c.int("intermediate_size"),
    )


def _olmoe(c):
    bias = c.flag("attention_bias")
    return decoder(c, qkv_bias=bias, out_bias=bias, qk_norm=True, qk_norm_full=True) | _whole_experts(c, "num_experts")


def _granitemoe(c):
    """Experts as wide as `intermediate_size` says, and one shared where `shared_intermediate_size` is given; without
    experts the shared one is the feed-forward (Granite 4.0 Micro)."""
    shared, base = c.int("shared_intermediate_size", 0), llama(c)
    if not c.int("num_local_experts", 0):
        return base | dict(ffn=shared or c.int("intermediate_size"))
    return base | _whole_experts(c, "num_local_experts") | dict(shared_experts=1 if shared else 0, shared_ffn=shared)


def _granitemoehybrid(c):
    kinds = c.raw.get("layer_types")
    if not isinstance(kinds, list) or any(kind != "attention" for kind in kinds):
        raise InputError(
            "model_type 'granitemoehybrid': has state-space layers (Mamba), which the simulator does not model; give "
            "plain dimensions (layers, hidden, heads, kv_heads, ffn, vocab, experts …) of a decoder without it"
        )
    return _granitemoe(c)


def _ernie4_5_moe(c):
    """Experts in every `moe_layer_interval`-th layer from `moe_layer_start_index` to `…_end_index` (-1: the last)."""
    layers, step = c.int("num_hidden_layers"), max(c.int("moe_layer_interval"), 1)
    first, last = c.int("moe_layer_start_index"), c.raw.get("moe_layer_end_index")
    last = layers - 1 if last in (None, -1) else c.int("moe_layer_end_index")
    sparse = sum((i + 1) % step == 0 and first <= i <= last for i in range(min(layers, 100_000)))
    if c.flag("use_bias"):
        raise InputError("config.json use_bias=true of a model with experts: not read; give plain dimensions instead")
    return decoder(
        c,
        tied=c.flag("tie_word_embeddings", True),
        experts=c.int("moe_num_experts"),
        experts_per_token=c.int("moe_k"),
        shared_experts=c.int("moe_num_shared_experts", 0),
        moe_ffn=c.int("moe_intermediate_size"),
        dense_layers=layers - sparse,
        router_bias=True,
    )


def _one_value(c, key, default):
    """A number, or a list of one number a layer, which must all be the same."""
    value = c.raw.get(key)
    if isinstance(value, list) and value:
        if len(set(map(str, value))) > 1:
            raise InputError(f"config.json {key}: differs by layer, which is not read; give plain dimensions instead")
        c.raw[key] = value[0]
    return c.int(key, default)


def _hunyuan_moe(c):
    bias, skipped = c.flag("attention_bias"), c.int("moe_layer_num_skipped", 0)
    if c.flag("use_cla"):
        raise InputError(
            "config.json use_cla=true: has keys and values shared by layers, which the simulator does not model; give "
            "plain dimensions of a decoder without it"
        )
    return decoder(
        c,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=c.flag("use_qk_norm", True),
        experts=_one_value(c, "num_experts", 1),
        experts_per_token=_one_value(c, "moe_topk", 1),
        shared_experts=_one_value(c, "num_shared_expert", 1),
        moe_ffn=_one_value(c, "moe_intermediate_size", c.int("intermediate_size")),
        dense_layers=skipped,
    )


def _exaone_moe(c):
    return decoder(
        c,
        qk_norm=True,
        experts=c.int("num_experts"),
        experts_per_token=c.int("num_experts_per_tok"),
        shared_experts=c.int("num_shared_experts", 0),
        moe_ffn=c.int("moe_intermediate_size"),
        dense_layers=_listed_dense(c),
        router_bias=True,
    ) | windows(c, pattern(c))


def _hy_v3(c):
    base = _exaone_moe(c)
    return base | dict(qkv_bias=c.flag("attention_bias"), out_bias=c.flag("attention_bias"))


def _dbrx(c):
    """Its sizes stand in `attn_config` and `ffn_config`; norms without a bias."""
    attention, ffn = c.part("attn_config"), c.part("ffn_config")
    width = ffn.int("ffn_hidden_size", 3584)
    return decoder(
        c,
        kv_heads=attention.int("kv_n_heads", 1),
        experts=ffn.int("moe_num_experts", 4),
        experts_per_token=ffn.int("moe_top_k", 1),
        moe_ffn=width,
    )


EXPERTS: dict[str, Callable[[Config], dict[str, Any]]] = {
    "mixtral": _mixtral,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v32": _deepseek_v32,
    "kimi_k2": _deepseek_v3,
    "kimi_k25_text": _deepseek_v3,
    "minicpm3": _deepseek,
    "deepseek": _deepseek_moe,
    "youtu": _deepseek,
    "glm4_moe": _glm4_moe,
    "glm4_moe_lite": _glm4_moe_lite,
    "glm4v_moe_text": _glm4_moe,
    "solar_open": _glm4_moe,
    "llama4_text": _llama4,
    "minimax_m2": _minimax_m2,
    "qwen3_vl_moe_text": _qwen3_moe,
    "qwen3_omni_moe_text": _qwen3_moe,
    "dots1": _dots1,
    "phimoe": _phimoe,
    "olmoe": _olmoe,
    "flex_olmo": _olmoe,
    "granitemoe": _granitemoe,
    "granitemoeshared": _granitemoe,
    "granitemoehybrid": _granitemoehybrid,
    "ernie4_5_moe": _ernie4_5_moe,
    "hunyuan_v1_moe": _hunyuan_moe,
    "exaone_moe": _exaone_moe,
    "hy_v3": _hy_v3,
    "dbrx": _dbrx,
}
