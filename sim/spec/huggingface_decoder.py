"""What the families of Hugging Face configs share: a Llama-like decoder, its windows, what FP8 leaves in bf16."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from minglm.errors import InputError
from sim.spec.huggingface_config import Config


def decoder(c: Config, **extra) -> dict[str, Any]:
    """Fields of `ModelSpec` that Llama-like families share, with `extra` in place of them or beside them."""
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
        max_seq=_context(c),
    )
    return base | _left_in_bf16(c.raw) | extra


# Kinds of rotary position whose factor stretches the context; of others the config's own length is the stretched one.
_STRETCHED = ("yarn", "linear", "dynamic")


def _context(c: Config) -> int:
    """Longest context: `max_position_embeddings`, times the factor of positions that are scaled, as vLLM derives it; of
    YaRN the factor counts from the length of training."""
    length, rope = c.int("max_position_embeddings", 4096), c.raw.get("rope_scaling") or c.raw.get("rope_parameters")
    if not isinstance(rope, Mapping) or c.kind.startswith("gemma3"):  # Gemma 3's length is the stretched one
        return length
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if kind not in _STRETCHED or isinstance(factor, bool) or not isinstance(factor, (int, float)):
        return length
    trained = rope.get("original_max_position_embeddings") if kind == "yarn" else None
    if isinstance(trained, bool) or not isinstance(trained, int):
        trained = length
    return round(trained * factor) if 1 <= factor <= 1000 and 0 < trained < 10**9 else length


def _left_in_bf16(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What an FP8 checkpoint's `modules_to_not_convert` leaves as it was: attention, whole layers."""
    quantized = raw.get("quantization_config")
    names = quantized.get("modules_to_not_convert") if isinstance(quantized, Mapping) else None
    if not isinstance(names, list):
        return {}
    feed_forward = {re.match(r"model\.layers\.(\d+)\.(?!self_attn)", str(name)) for name in names}
    skipped = {found[1] for found in feed_forward if found}
    attention = not any("self_attn" in str(name) for name in names)
    return {"fp8_attention": attention, "fp8_skipped_layers": len(skipped)}


def windowed(c: Config, otherwise: int) -> int:
    """Layers with a sliding window: as `layer_types` lists them, or `otherwise` where it is absent.

    Raises:
        InputError: a list of fewer layers than there are. Of a longer one the first count: prediction modules follow.
    """
    kinds, layers = c.raw.get("layer_types"), c.int("num_hidden_layers")
    if not isinstance(kinds, list):
        return otherwise
    if len(kinds) < layers:
        raise InputError(
            f"config.json layer_types: lists {len(kinds)} of num_hidden_layers={layers} layers; list each, or leave "
            "layer_types out"
        )
    return sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds[:layers])


def pattern(c: Config) -> int:
    """Layers of a period of `sliding_window_pattern`, written as a number or as "LLLG"; 0 where there is none."""
    written = c.raw.get("sliding_window_pattern")
    if isinstance(written, str) and not written.isdigit():
        return len(written)
    return c.int("sliding_window_pattern", 0)


def windows(c: Config, every: int, otherwise: int = 0) -> dict[str, Any]:
    """`window` and `window_layers` of a family whose every `every`-th layer sees all, unless `layer_types` says.

    Args:
        every: 0: the window, where there is one, holds for `otherwise` layers.
    """
    window, layers = c.int("sliding_window", 0), c.int("num_hidden_layers")
    if not window:
        return {}
    return {"window": window, "window_layers": windowed(c, layers - layers // every if every else otherwise)}
