"""A published `config.json` of type `glm_moe_dsa` as fields of `minglm.config.ModelConfig`.

Read as transformers 5.23 reads it: other names of a key, what is absent, the older spellings of rotary position.
What this model does not compute is refused by its key, never passed over.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from minglm.errors import InputError, keys_once, nearest

MODEL_TYPE = "glm_moe_dsa"
THETA = 10_000.0  # transformers' where no key gives one
# Keys that say nothing about the computation.
BOOKKEEPING = frozenset(
    """
    architectures model_type transformers_version dtype torch_dtype use_cache _name_or_path
    quantization_config auto_map head_dim qk_head_dim output_router_logits ep_size
    attention_dropout pretraining_tp chunk_size_feed_forward id2label label2id is_encoder_decoder
    output_attentions output_hidden_states return_dict problem_type index_share_for_mtp_iteration use_index_cache
    """.split()
)
# Keys whose value we support only at one setting: anything else would silently compute another model.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "n_group": 1,
    "topk_group": 1,
    "tie_word_embeddings": False,
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "rope_interleave": True,
    "indexer_rope_interleave": True,
}
# What `layer_types` says of a layer of this model: transformers writes the first, earlier releases the second.
SPARSE_LAYERS = ("indexed_attention", "full_attention")
ALIASES = {"num_local_experts": "n_routed_experts", "num_experts": "n_routed_experts"}


def read_json(source: str | Path | dict[str, Any]) -> dict[str, Any]:
    """The contents of a config.json, as a copy: a path, the folder that holds it, or the parsed dict.

    Raises:
        InputError: no such file, not JSON, or of another model.
    """
    if isinstance(source, dict):
        raw: Any = dict(source)
    else:
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        try:
            raw = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=keys_once)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; give a config.json or the folder that holds it") from None
        except ValueError as err:  # not JSON, not UTF-8, or a key that stands twice
            raise InputError(f"{path}: not valid JSON ({err}); give a Hugging Face config.json") from None
    if not isinstance(raw, dict) or raw.get("model_type") != MODEL_TYPE:
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise InputError(
            f"model_type={kind!r}: ModelConfig reads {MODEL_TYPE!r} only; the simulator's `clustersim run --model` "
            "reads more families"
        )
    return raw


def fields_of(raw: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Field → value; keys are taken out of `raw`. `defaults` has every field of `ModelConfig`.

    Raises:
        InputError: a key of no meaning here, two that disagree, or a value that would be another computation.
    """
    for key, only in FIXED.items():
        if (value := raw.pop(key, only)) not in (only, None):
            raise InputError(
                f"config.json has {key}={value!r}: only {key}={only!r} is supported; use a config with that value"
            )
    for other, name in ALIASES.items():
        if (value := raw.pop(other, None)) is not None and raw.setdefault(name, value) != value:
            raise InputError(
                f"config.json has {other}={value!r} and {name}={raw[name]!r}, which name the same; keep one"
            )
    heads = raw.get("num_attention_heads", defaults["num_attention_heads"])
    if (groups := raw.pop("num_key_value_heads", None)) not in (heads, None):
        raise InputError(
            f"config.json has num_key_value_heads={groups!r}: latent attention has a key for every head; give "
            f"num_key_value_heads: {heads}, as num_attention_heads"
        )
    values: dict[str, Any] = {"rope_theta": _rope_theta(raw), "mtp_normed_hidden": True}
    raw.update(_dense_layers(raw))
    listed = raw.pop("layer_types", None) or ()
    if not isinstance(listed, (list, tuple)) or any(kind not in SPARSE_LAYERS for kind in listed):
        odd = next((kind for kind in listed if kind not in SPARSE_LAYERS), listed)
        raise InputError(
            f"config.json has {odd!r} in layer_types: only {' and '.join(SPARSE_LAYERS)} are supported; use a config "
            "of such layers, or leave layer_types out"
        )
    if raw.get("n_shared_experts", 1) is None:
        raw["n_shared_experts"] = 0  # DeepSeek's way to say that there is none
    types = _indexer_types(raw, raw.get("num_hidden_layers", defaults["num_hidden_layers"]))
    raw["indexer_types"] = raw.get("indexer_types") or types
    # A checkpoint that transformers wrote has no MTP module and does not mention one.
    values["num_nextn_predict_layers"] = raw.pop("num_nextn_predict_layers", 0) or 0
    return values | _known(raw, defaults)


def _known(raw: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """What is left, less the bookkeeping."""
    for key in raw:
        if key not in names and key not in BOOKKEEPING:
            raise InputError(
                f"config.json key {key!r}: not a key of {MODEL_TYPE}{nearest(key, names)}; remove it if it is a comment"
            )
    return {key: value for key, value in raw.items() if key in names}


def _rope_theta(raw: dict[str, Any]) -> float:
    """The base of rotary position, from `rope_parameters` or its older name `rope_scaling`, else beside them.

    Raises:
        InputError: positions are scaled, or only a part of the width is turned.
    """
    older, newer, beside = raw.pop("rope_scaling", None), raw.pop("rope_parameters", None), raw.pop("rope_theta", None)
    rope = older or newer or {}
    name = "rope_scaling" if older else "rope_parameters"
    if not isinstance(rope, Mapping):
        raise InputError(f"config.json has {name}={rope!r}: must be a mapping with rope_type and rope_theta")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", None):
        raise InputError(
            f"config.json has {name} of rope_type={kind!r}: only 'default' rotary position is supported; use a config "
            "without scaling"
        )
    for key, value in rope.items():
        if key not in ("rope_type", "type", "rope_theta") and not (
            key == "partial_rotary_factor" and value in (1, None)
        ):
            raise InputError(
                f"config.json has {key}={value!r} in {name}: only rope_type and rope_theta are supported; use a config "
                "without it"
            )
    theta = next((t for t in (rope.get("rope_theta"), beside) if t is not None), THETA)
    if isinstance(theta, bool) or not isinstance(theta, (int, float)):
        raise InputError(f"config.json has rope_theta={theta!r}: must be a positive number, such as {THETA:g}")
    return float(theta)


def _dense_layers(raw: dict[str, Any]) -> dict[str, int]:
    """`first_k_dense_replace` where the layers' kinds are listed; the list is taken out of `raw`."""
    kinds = raw.pop("mlp_layer_types", None)
    if kinds is None:
        return {}
    if not isinstance(kinds, list) or not all(kind in ("dense", "sparse") for kind in kinds):
        raise InputError(
            f"mlp_layer_types={kinds!r}: must say 'dense' or 'sparse' of each layer; leave it out for the default"
        )
    dense = kinds.index("sparse") if "sparse" in kinds else len(kinds)
    if "dense" in kinds[dense:]:
        raise InputError(
            "mlp_layer_types: dense layers must come first (first_k_dense_replace); other orders are not supported"
        )
    return {"first_k_dense_replace": dense}


def _indexer_types(raw: dict[str, Any], layers: int) -> tuple[str, ...]:
    """Which layers run an indexer, from the keys that say it by a pattern or a frequency; they are taken out."""
    pattern, every = raw.pop("index_topk_pattern", None), raw.pop("index_topk_freq", 1) or 1
    offset = raw.pop("index_skip_topk_offset", 2)
    for name, value in (("num_hidden_layers", layers), ("index_topk_freq", every), ("index_skip_topk_offset", offset)):
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 100_000:
            raise InputError(f"{name}={value!r}: must be a whole number of layers; give for example 1")
    every = max(every, 1)
    if pattern is not None:
        if not isinstance(pattern, (str, list)) or not all(isinstance(letter, str) for letter in pattern):
            raise InputError(f"index_topk_pattern={pattern!r}: must be letters; give for example {'F' * 3!r}")
        return tuple({"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern)
    return tuple("shared" if max(i - offset + 1, 0) % every else "full" for i in range(layers))
