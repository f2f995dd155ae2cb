"""Hugging Face `config.json` of the supported families → `ModelSpec`.

Each family is a small function that names what differs from a plain Llama-like decoder. Counts are exact: tested
against `transformers` models built on the meta device. A family that is not here is refused, never guessed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from minglm.config import ModelConfig
from minglm.errors import InputError, nearest
from sim.base.documents import read_mapping
from sim.spec.huggingface_config import Config, operators_of_classes
from sim.spec.huggingface_families import FAMILIES
from sim.spec.huggingface_hub_code import HUB_CODE
from sim.spec.model import ModelSpec, from_config

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
    kind = kind.lower() if isinstance(kind, str) and kind.lower() in HUB_CODE else kind  # "Yi", "PanguEmbedded"
    if not (isinstance(kind, str) and kind in SUPPORTED):
        raw, kind = _language_model(raw)
    if kind == "glm_moe_dsa":
        return dataclasses.replace(from_config(ModelConfig.from_hf(raw), title), source=source)
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(_refusal(raw, kind))
    if operator := _listed(raw):
        raise InputError(_without(kind, operator))
    return ModelSpec(name=title, source=source, **FAMILIES[kind](Config(raw, kind))).check()


# Wrappers around a language model whose `text_config` does not name its family.
_TEXT_OF = {
    **dict.fromkeys(("llava", "llava_next", "llava_next_video", "llava_llama", "video_llava", "vipllava"), "llama"),
    **dict.fromkeys(("idefics3", "smolvlm", "perception_lm", "deepseek_vl", "janus", "voxtral"), "llama"),
    **dict.fromkeys(("llava_onevision", "internvl", "got_ocr2", "fast_vlm", "video_llama_3"), "qwen2"),
    **dict.fromkeys(("idefics2", "mistral3"), "mistral"),
    "aya_vision": "cohere2",
    "cohere2_vision": "cohere2",
    "exaone4_5": "exaone4",
    "fuyu": "persimmon",
    "glm46v": "glm4v_text",
    "paligemma": "gemma",
    "kimi_k25": "kimi_k25_text",
}
# what InternVL and DeepSeek-VL call it; Omni models have their language model two wrappers deep
_WRAPPED_IN = ("text_config", "llm_config", "language_config", "thinker_config")
# What stands outside a wrapper's `text_config` and holds for it where it says nothing itself.
_OUTSIDE = ("tie_word_embeddings", "quantization_config")


def _language_model(raw: Mapping[str, Any]) -> tuple[dict[str, Any], object]:
    """(config, family) of the language model in a vision wrapper, or of one whose keys stand beside the wrapper's."""
    kind = raw.get("model_type") or _family_of_class(raw)
    family = next((f for f in (_TEXT_OF.get(str(kind)), f"{kind}_text") if f in FAMILIES), None)
    inner = next((raw[key] for key in _WRAPPED_IN if isinstance(raw.get(key), Mapping)), None)
    if inner is None:  # its keys stand beside the wrapper's, or are all left to the class
        return dict(raw), family or kind
    text = dict(inner)
    text |= {key: raw[key] for key in _OUTSIDE if key in raw and key not in text}
    if any(isinstance(text.get(key), Mapping) for key in _WRAPPED_IN):
        return _language_model(text)
    return text, text.get("model_type", family) or _family_of_class(text)


def _family_of_class(raw: Mapping[str, Any]) -> str | None:
    """The family that `architectures` names where `model_type` is absent, as in configs of before 2021."""
    names = raw.get("architectures")
    first = str(names[0]) if isinstance(names, list) and names else ""
    typed = re.sub(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration|Model)$", "", first).lower()
    return next((family for family in FAMILIES if family.replace("_", "") == typed), None)


# Operators that the simulator does not have: a key of the config that gives one away, and its name.
_OPERATORS = {
    "linear_num_key_heads": "linear attention (gated delta rule)",
    "linear_attn_config": "linear attention",
    "linear_head_dim": "linear attention",
    "attn_type_list": "linear attention (lightning attention)",
    "lambda_std_dev": "differential attention",
    "mamba_d_state": "state-space layers (Mamba)",
    "ssm_state_size": "state-space layers (Mamba)",
    "mamba_num_heads": "state-space layers (Mamba)",
    "state_size": "state-space layers (Mamba)",
    "hybrid_override_pattern": "state-space layers (Mamba)",
    "ssm_cfg": "state-space layers (Mamba)",
    "num_memory_heads": "memory layers",
    "block_types": "recurrent layers",
    "attention_hidden_size": "recurrent layers (RWKV)",
    "chunkwise_kernel": "recurrent layers (xLSTM)",
    "conv_L_cache": "layers of short convolutions",
    "altup_num_inputs": "several streams (AltUp) and embeddings by layer",
    "hidden_size_per_layer_input": "embeddings by layer",
    "hc_mult": "several streams (hyper-connections) and compressed attention",
    "zero_expert_num": "experts that do nothing, and two attentions a layer",
    "block_configs": "layers of different widths",
    "ffn_multipliers": "layers of different widths",
    "cross_attention_layers": "cross-attention layers",
    "cla_share_factor": "keys and values shared by layers",
    "blocksparse_block_size": "block-sparse attention",
    "index_block_size": "block-sparse attention",
    "hybrid_layer_pattern": "windowed layers with heads of their own",
    "global_head_dim": "windowed layers with heads of their own",
    "swa_num_attention_heads": "windowed layers with heads of their own",
    "num_attention_heads_per_layer": "layers with heads of their own",
    "num_key_value_heads_per_layer": "layers with heads of their own",
    "attention_other_setting": "windowed layers with heads of their own",
    "share_q_dim": "queries through a shared factor (multi-matrix factorization)",
    "group_norm_size": "linear attention",
    "parallel_attn_mlp_res": "a dense feed-forward beside its experts",
    "num_kv_shared_layers": "keys and values shared by layers",
    "gated_attention": "a gate behind attention",
    "is_encoder_decoder": "an encoder beside its decoder",
    "type_vocab_size": "attention to both sides (it is an encoder)",
}
# The same, given away by an entry of one of the lists that say what each layer is.
_LISTS = ("layer_types", "layers_block_type", "hybrid_override_pattern")
_LISTED = {
    "linear_attention": "linear attention",
    "mamba": "state-space layers (Mamba)",
    "mamba2": "state-space layers (Mamba)",
    "hybrid": "state-space layers (Mamba)",
    "conv": "layers of short convolutions",
    "recurrent": "recurrent layers",
}


_PLAIN = "give plain dimensions (layers, hidden, heads, kv_heads, ffn, vocab, experts …)"


def _refusal(raw: Mapping[str, Any], kind: object) -> str:
    """Why a family is not read: its operator by name where the config gives it away."""
    operator = next((name for key, name in _OPERATORS.items() if raw.get(key)), None)  # a width of 0: without it
    operator = operator or _listed(raw)
    if operator is None and isinstance(raw.get("moe_num_experts"), list):  # ERNIE's with images
        operator = "experts of two kinds, for text and for images"
    left_out = operators_of_classes().get(str(kind), "")  # a published file may leave the key to its class
    operator = operator or _OPERATORS.get(left_out) or _LISTED.get(left_out)
    if operator:
        return _without(kind, operator)
    typed = str(kind).lower()
    same = [name for name in SUPPORTED if name.replace("_", "") == typed.replace("-", "").replace("_", "")]
    hint = nearest(typed, same or [name for name in SUPPORTED if _alike(name, typed)]) if kind else ""
    return f"model_type {kind!r}: not a supported family{hint}; supported: {', '.join(SUPPORTED)}; or {_PLAIN}"


def _listed(raw: Mapping[str, Any]) -> str | None:
    """The operator that a list of the layers' kinds gives away."""
    kinds = [kind for key in _LISTS if isinstance(raw.get(key), list) for kind in raw[key]]
    return next((name for kind, name in _LISTED.items() if kind in kinds), None)


def _without(kind: object, operator: str) -> str:
    return f"model_type {kind!r}: has {operator}, which the simulator does not model; {_PLAIN} of a decoder without it"


def _alike(name: str, typed: str) -> bool:
    """Whether one is a slip of the other: the first letter, as many words, the same numbers, each word nearly the same.

    So a hint never leads to another generation, nor from experts, vision or anything a word says to a model without.
    """
    ours, theirs = (re.findall(r"[a-z]+|\d+", text) for text in (name, typed))
    return (
        name[:1] == typed[:1]
        and len(ours) == len(theirs)
        and all(
            a == b or (a.isalpha() and b.isalpha() and SequenceMatcher(None, a, b).ratio() >= 0.75)
            for a, b in zip(ours, theirs, strict=True)
        )
    )
