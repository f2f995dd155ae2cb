"""Hugging Face `config.json` of the supported families → `ModelSpec`.

Each family is a small function that names what differs from a plain Llama-like decoder. Counts are exact: tested
against `transformers` models built on the meta device. A family that is not here is refused, never guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minglm.config import ModelConfig
from minglm.errors import InputError, nearest
from sim.base.documents import read_mapping
from sim.spec.huggingface_config import Config
from sim.spec.huggingface_families import FAMILIES
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
    if isinstance(raw.get("text_config"), Mapping) and kind not in SUPPORTED:
        raw, kind = _language_model(raw)
    if kind == "glm_moe_dsa":
        return dataclasses.replace(from_config(ModelConfig.from_hf(raw), title), source=source)
    if kind not in FAMILIES:
        raise InputError(_refusal(raw, kind))
    return ModelSpec(name=title, source=source, **FAMILIES[kind](Config(raw, str(kind)))).check()


# Wrappers around a language model whose `text_config` does not name its family.
_TEXT_OF = {"llava": "llama", "llava_next": "llama", "kimi_k25": "kimi_k25_text", "mistral3": "mistral3_text"}
# What stands outside a wrapper's `text_config` and holds for it where it says nothing itself.
_OUTSIDE = ("tie_word_embeddings", "quantization_config")


def _language_model(raw: Mapping[str, Any]) -> tuple[dict[str, Any], object]:
    """(config, family) of the language model in a vision wrapper."""
    text = dict(raw["text_config"])
    text |= {key: raw[key] for key in _OUTSIDE if key in raw and key not in text}
    return text, text.get("model_type", _TEXT_OF.get(str(raw.get("model_type"))))


# Operators that the simulator does not have: a key of the config that gives one away, and its name.
_OPERATORS = {
    "linear_num_key_heads": "linear attention (gated delta rule)",
    "linear_attn_config": "linear attention",
    "mamba_d_state": "state-space layers (Mamba)",
    "ssm_state_size": "state-space layers (Mamba)",
    "mamba_num_heads": "state-space layers (Mamba)",
    "num_memory_heads": "memory layers",
    "block_types": "recurrent layers",
}


def _refusal(raw: Mapping[str, Any], kind: object) -> str:
    """Why a family is not read: its operator by name where the config gives it away."""
    dimensions = "give plain dimensions (layers, hidden, heads, kv_heads, ffn, vocab, experts …)"
    kinds = raw.get("layer_types")
    operator = next((name for key, name in _OPERATORS.items() if raw.get(key) is not None), None)
    if operator is None and isinstance(kinds, list) and "linear_attention" in kinds:
        operator = "linear attention"
    if operator:
        return (
            f"model_type {kind!r}: has {operator}, which the simulator does not model; {dimensions} of a decoder "
            "without it"
        )
    typed = str(kind).lower()
    same = [name for name in SUPPORTED if name.replace("_", "") == typed.replace("-", "").replace("_", "")]
    close = [name for name in SUPPORTED if _digits(name) == _digits(typed) and name[:3] == typed[:3]]
    hint = nearest(typed, same or close) if kind else ""
    return f"model_type {kind!r}: not a supported family{hint}; supported: {', '.join(SUPPORTED)}; or {dimensions}"


def _digits(name: str) -> str:
    """'llama4_text' → '4': a hint never leads to another generation."""
    return "".join(c for c in name if c.isdigit())
