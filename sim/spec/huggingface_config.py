"""A Hugging Face `config.json` as its family reads it: canonical names, and class defaults for what is absent."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from minglm import datafiles
from minglm.errors import InputError
from sim.base.documents import read_document
from sim.base.units import whole

_MISSING = object()


@functools.cache
def _classes() -> Mapping[str, Any]:
    document: Any = read_document(datafiles.data("huggingface_defaults.json"))
    return document


def operators_of_classes() -> Mapping[str, str]:
    """The key, or the kind of a layer, that gives away an operator which is not modelled, by family."""
    return _classes()["not_modelled"]


class Config:
    """A config dict. A key that is absent has the default of the family's class, as `transformers` reads it.

    A key that is present and null says "none": the family's function decides what follows.
    """

    def __init__(self, raw: Mapping, kind: str):
        self.kind = kind
        defaults = _classes()["defaults"].get(_SAME_CLASS.get(kind, kind), {})
        self.raw = {**_under_canonical_names(defaults, kind), **_under_canonical_names(raw, kind)}

    def int(self, key: str, default: Any = _MISSING, *more: str) -> Any:
        """The whole number of a key, or of one of `more`; the default where they are null or absent.

        Raises:
            InputError: no such key and no default, or not a whole number.
        """
        for k in (key, *more):
            if self.raw.get(k) is not None:
                return whole(self.raw[k], f"config.json {k}", low=0, high=10**9)
        if default is _MISSING:
            raise InputError(f"config.json of model_type {self.kind!r} has no {key!r}; give the complete config.json")
        return default

    def part(self, key: str) -> Config:
        """The mapping that stands under a key, read alike; empty where it is absent."""
        inner = self.raw.get(key)
        return Config(inner if isinstance(inner, Mapping) else {}, f"{self.kind} {key}")

    def flag(self, key: str, default: bool = False) -> bool:
        """The switch of a key; the default where it is null or absent.

        Raises:
            InputError: neither true nor false.
        """
        value = self.raw.get(key)
        if isinstance(value, str):
            value = _SWITCHES.get(value.strip().lower(), value)
        if value is not None and not (isinstance(value, (bool, int)) and value in (0, 1)):
            raise InputError(f"config.json {key}={value!r}: must be true or false")
        return default if value is None else bool(value)


_SWITCHES = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
# Families whose class is another's.
_SAME_CLASS = {
    "kimi_k2": "deepseek_v3",
    "kimi_k25_text": "deepseek_v3",
    "mistral3_text": "mistral",
    "qwen2_5_omni_text": "qwen2",
    "qwen3_omni_moe_text": "qwen3_moe",
    "gpt-sw3": "gpt2",
    "stablelm_epoch": "stablelm",
    "refinedweb": "falcon",
    "refinedwebmodel": "falcon",
}
_LONG_OF_SHORT = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
}
_SHORT_OF_LONG = {long: short for short, long in _LONG_OF_SHORT.items()}
# Other names of a key in published configs (transformers' attribute maps), by family.
_OTHER_NAMES = {
    "gpt2": _SHORT_OF_LONG,
    "gpt-sw3": _SHORT_OF_LONG,
    "gpt_bigcode": _SHORT_OF_LONG,
    "gptj": _LONG_OF_SHORT,
    "codegen": _LONG_OF_SHORT,
    "exaone": {"num_layers": "num_hidden_layers"},
    "baichuan": {"model_max_length": "max_position_embeddings"},
    "qwen": {"seq_length": "max_position_embeddings", "kv_channels": "head_dim"},
    "chatglm": {
        "num_layers": "num_hidden_layers",
        "ffn_hidden_size": "intermediate_size",
        "padded_vocab_size": "vocab_size",
        "kv_channels": "head_dim",
        "seq_length": "max_position_embeddings",
        "multi_query_group_num": "num_key_value_heads",
    },
    "bloom": {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_embed": "hidden_size"},
    "gpt_neo": {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"},
    **dict.fromkeys(
        ("falcon", "refinedweb", "refinedwebmodel"),
        {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_head_kv": "num_kv_heads"},
    ),
    "pangu_ultra_moe": {
        "attention_q_lora_dim": "q_lora_rank",
        "attention_kv_lora_dim": "kv_lora_rank",
        "attention_qk_dim": "qk_nope_head_dim",
        "attention_qk_rope_dim": "qk_rope_head_dim",
        "attention_v_dim": "v_head_dim",
        "num_routed_experts": "n_routed_experts",
        "num_shared_experts": "n_shared_experts",
        "num_dense_layers": "first_k_dense_replace",
        "num_mtp_layers": "num_nextn_predict_layers",
    },
    "jais": _SHORT_OF_LONG,
    "mpt": {
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_layers": "num_hidden_layers",
        "max_seq_len": "max_position_embeddings",
    },
    "dbrx": {
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_layers": "num_hidden_layers",
        "max_seq_len": "max_position_embeddings",
    },
    "qwen3_omni_moe_text": {"num_local_experts": "num_experts"},
    "gpt_oss": {"experts_per_token": "num_experts_per_tok", "num_experts": "num_local_experts"},
    "mixtral": {"num_experts": "num_local_experts"},
    "minimax_m2": {"num_experts": "num_local_experts"},
    "qwen3_moe": {"num_local_experts": "num_experts"},
    "mellum": {"num_local_experts": "num_experts"},
    "kolibri1": {"num_local_experts": "num_experts"},
    "axk1": {"num_local_experts": "n_routed_experts"},
    "qwen3_vl_moe_text": {"num_local_experts": "num_experts"},
    "deepseek_v3": {"num_local_experts": "n_routed_experts"},
    "gemma3_text": {"_sliding_window_pattern": "sliding_window_pattern"},
}


def _under_canonical_names(raw: Mapping, kind: str) -> dict[str, Any]:
    """The config with each key under the name that the family's function reads; the canonical name wins."""
    names = _OTHER_NAMES.get(kind, {})
    renamed = {names[key]: value for key, value in raw.items() if key in names and names[key] not in raw}
    return {**raw, **renamed}
