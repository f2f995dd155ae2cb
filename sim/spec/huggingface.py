"""Hugging Face `config.json` of the supported families → `ModelSpec`.

Each family is a small function that names what differs from a plain Llama-like decoder. Counts are exact: tested
against `transformers` models built on the meta device. A family that is not here is refused, never guessed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minglm.config import ModelConfig
from minglm.errors import InputError, nearest
from sim.base.documents import read_mapping
from sim.base.units import whole
from sim.spec.model import ModelSpec, from_config

_MISSING = object()


class _Config:
    """A config dict whose absent keys say so in words."""

    def __init__(self, raw: Mapping, kind: str):
        self.raw, self.kind = raw, kind

    def int(self, key: str, default: Any = _MISSING, *more: str) -> Any:
        for k in (key, *more):
            if self.raw.get(k) is not None:
                return whole(self.raw[k], f"config.json {k}", low=0, high=10**9)
        if default is _MISSING:
            raise InputError(f"config.json of model_type {self.kind!r} has no {key!r}; give the complete config.json")
        return default

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw.get(key)
        return default if value is None else bool(value)


def _decoder(c: _Config, **extra) -> dict:
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
    hidden, heads = c.int("n_embd", _MISSING, "hidden_size"), c.int("n_head", _MISSING, "num_attention_heads")
    length = c.int("n_positions", 1024, "max_position_embeddings")
    return dict(
        layers=c.int("n_layer", _MISSING, "num_hidden_layers"),
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


def _gpt_oss(c):
    kinds = c.raw.get("layer_types")
    layers = c.int("num_hidden_layers")
    windowed = sum(k == "sliding_attention" for k in kinds) if isinstance(kinds, list) else (layers + 1) // 2
    return _decoder(
        c,
        experts=c.int("num_local_experts"),
        experts_per_token=c.int("num_experts_per_tok", 4, "experts_per_token"),
        moe_ffn=c.int("intermediate_size"),
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        router_has_bias=True,
        sinks=True,
        window=c.int("sliding_window", 128),
        window_layers=windowed,
    )


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
    return _gemma(c) | dict(
        norms_per_layer=4, window=c.int("sliding_window", 4096), window_layers=(c.int("num_hidden_layers") + 1) // 2
    )


def _gemma3(c):
    every = c.int("sliding_window_pattern", 6, "_sliding_window_pattern")
    layers = c.int("num_hidden_layers")
    return _gemma(c) | dict(
        norms_per_layer=4,
        qk_norm=True,
        window=c.int("sliding_window", 4096),
        window_layers=layers - layers // max(every, 1),
    )


FAMILIES: dict[str, Callable[[_Config], dict]] = {
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
    "glm4_moe": _glm4_moe,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}
SUPPORTED = ("glm_moe_dsa", *FAMILIES)


def from_hf(config: Mapping | str | Path, name: str | None = None) -> ModelSpec:
    """A `ModelSpec` from a parsed Hugging Face config, a `config.json`, or the folder that holds one.

    Raises:
        InputError: a family that is not supported, or a missing or impossible value.
    """
    if isinstance(config, (str, Path)):
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        name = name or (path.parent.name if path.name == "config.json" else path.stem)
        config = read_mapping(path)
    if not isinstance(config, Mapping):
        raise InputError(
            f"config.json: holds a {type(config).__name__}, not a mapping; give a Hugging Face config.json"
        )
    raw = dict(config)
    source = str(raw.pop("source", "config.json"))
    title = str(raw.pop("name", name or raw.get("_name_or_path") or raw.get("model_type", "config.json")))
    kind = raw.get("model_type")
    if isinstance(raw.get("text_config"), Mapping) and kind not in SUPPORTED:
        raw, kind = (
            dict(raw["text_config"]),
            raw["text_config"].get("model_type"),
        )  # a vision wrapper: its language model
    if kind == "glm_moe_dsa":
        return dataclasses.replace(from_config(ModelConfig.from_hf(raw), title), source=source)
    if kind not in FAMILIES:
        raise InputError(
            f"model_type {kind!r}: not a supported family{nearest(str(kind), SUPPORTED)}; supported: "
            f"{', '.join(SUPPORTED)}; or give plain dimensions (layers, hidden, heads, kv_heads, ffn, vocab, experts …)"
        )
    return ModelSpec(name=title, source=source, **FAMILIES[kind](_Config(raw, str(kind)))).check()
