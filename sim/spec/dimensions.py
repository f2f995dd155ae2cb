"""Plain dimensions of a model in a file: keys, other names (Megatron's, Hugging Face's, the papers'), defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minglm.errors import InputError
from sim.base.fields import Field, Section
from sim.spec.model import ModelSpec

_LARGEST = 10**9
VOCABULARY = 51_200  # GPT's, padded
_INDEXER_HEADS, _INDEXER_DIM = 32, 128


def _width(name: str, doc: str, *aliases: str) -> Field:
    return Field(name, "length", doc, aliases, low=0, high=_LARGEST)


def _switch(name: str, doc: str, *aliases: str) -> Field:
    return Field(name, "bool", doc, aliases)


DIMENSIONS = Section(
    "model",
    (
        Field("name", "text", "what it is called"),
        _width("layers", "decoder layers", "num_layers", "num_hidden_layers", "n_layers", "n_layer", "L"),
        _width("hidden", "width of the residual stream", "hidden_size", "n_embd", "d_model", "h", "C"),
        _width("heads", "query heads", "num_attention_heads", "n_heads", "n_head", "num_heads", "a", "H"),
        _width(
            "kv_heads",
            "key and value heads; default: heads",
            "num_key_value_heads",
            "num_query_groups",
            "n_kv_heads",
        ),
        _width("head_dim", "width of a head; default: hidden / heads", "kv_channels"),
        _width(
            "ffn",
            "width of the dense FFN; default: 4 × hidden",
            "intermediate_size",
            "ffn_hidden_size",
            "ffn_size",
            "d_ff",
            "ffn_hidden",
        ),
        Field(  # 32k is 32,000: no power of two
            "vocab",
            "whole",
            "size of the vocabulary; default 51,200",
            ("vocab_size", "vocabulary", "V", "padded_vocab_size"),
            low=0,
            high=_LARGEST,
        ),
        _switch("gated_ffn", "SwiGLU: three matrices, otherwise two", "gated", "swiglu"),
        _switch("tied", "the head shares the embedding", "tie_word_embeddings", "tie_embeddings"),
        Field("attention", "text", "kind of attention", choices=("gqa", "mla")),
        _width("q_lora", "MLA: width of the query latent", "q_lora_rank"),
        _width("kv_lora", "MLA: width of the key-value latent", "kv_lora_rank"),
        _width("nope", "MLA: head width without position", "qk_nope_head_dim"),
        _width("rope", "MLA: head width with rotary position", "qk_rope_head_dim"),
        _width("v_dim", "MLA: width of a value head", "v_head_dim"),
        _width("index_topk", "sparse attention: keys that a query reads"),
        _width("index_heads", "sparse attention: heads of the indexer", "index_n_heads"),
        _width("index_dim", "sparse attention: width of an indexer's head", "index_head_dim"),
        _width("indexer_full_layers", "sparse attention: layers with an indexer of their own; default: all"),
        _width("experts", "routed experts of a layer", "num_experts", "n_routed_experts", "num_local_experts", "E"),
        _width(
            "experts_per_token",
            "routed experts that a token goes to",
            "top_k",
            "topk",
            "num_experts_per_tok",
            "moe_router_topk",
            "K",
        ),
        _width("shared_experts", "experts that every token goes to", "n_shared_experts"),
        _width("moe_ffn", "width of a routed expert", "moe_intermediate_size", "moe_ffn_hidden_size", "expert_ffn"),
        _width("shared_ffn", "width of all shared experts together", "shared_expert_intermediate_size"),
        _width("dense_layers", "first layers with a dense FFN", "first_k_dense_replace"),
        _width("router_groups", "groups of experts in group-limited routing"),
        _width("groups_per_token", "groups that a token's experts may be in"),
        _switch("router_bias", "loss-free balance bias, one per expert"),
        _switch("shared_gate", "a scalar gate on the shared expert"),
        _width(
            "mtp_modules",
            "multi-token prediction modules that are stored",
            "num_nextn_predict_layers",
            "mtp_num_layers",
        ),
        _width("mtp_depth", "how often they are applied in training; default: mtp_modules"),
        Field("norm", "text", "kind of norm", choices=("rms", "layer", "bare")),
        _width("norms_per_layer", "norms of a layer"),
        _switch("qkv_bias", "bias in the query, key and value projections"),
        _switch("out_bias", "bias in the output projection"),
        _switch("ffn_bias", "bias in the FFN"),
        _switch("router_has_bias", "bias in the router's projection"),
        _switch("qk_norm", "norms of queries and keys"),
        _switch("sinks", "a learned sink logit per head"),
        _width("positions", "learned position embeddings"),
        _width("window", "sliding window, tokens", "sliding_window"),
        _width("window_layers", "layers with the window; default: all"),
        _width("max_seq", "longest sequence, tokens", "max_position_embeddings", "seq_length"),
        Field("source", "text", "where the dimensions are printed"),
    ),
    example="{layers: 32, hidden: 4096, heads: 32}",
)


def from_dimensions(raw: Mapping[str, Any], name: str = "plain dimensions") -> ModelSpec:
    """A model from plain dimensions: layers, hidden and heads at least; the rest has documented defaults.

    Defaults: kv_heads = heads; head_dim = hidden / heads; ffn = 4 × hidden; vocab = 51,200 (GPT's, padded); gated_ffn
    is true when `ffn` is given and is not 4 × hidden, or when there are experts.

    Raises:
        InputError: an unknown key, a missing one, or dimensions that no model can have.
    """
    values = DIMENSIONS.read(raw, "model")
    for key in ("layers", "hidden", "heads"):
        if not values.get(key):
            raise InputError(
                f"model: has no {key!r}; plain dimensions need layers, hidden and heads at least, or give a name or a "
                "config.json"
            )
    _fill_attention(values)
    assumed = _fill_ffn(values)
    _fill_optional(values)
    values.setdefault("name", name)
    if "source" not in values:
        values["source"] = "plain dimensions" + (f" (assumed: {', '.join(assumed)})" if assumed else "")
    return ModelSpec(**values).check()


def _fill_attention(values: dict[str, Any]) -> None:
    heads, hidden = values["heads"], values["hidden"]
    if values.get("kv_lora"):
        values.setdefault("attention", "mla")
    latent = values.get("attention") == "mla"
    if "head_dim" not in values:
        if hidden % heads and not latent:
            raise InputError(
                f"model heads={heads}: does not divide hidden={hidden}; give head_dim, or heads that divide it"
            )
        values["head_dim"] = values.get("nope", 0) + values.get("rope", 0) if latent else hidden // heads
    values.setdefault("kv_heads", heads)


def _fill_ffn(values: dict[str, Any]) -> list[str]:
    """What had to be assumed of the FFN and the vocabulary."""
    assumed = []
    if "ffn" not in values:
        values["ffn"] = 4 * values["hidden"]
        if not values.get("experts") or values.get("dense_layers"):
            assumed.append("ffn = 4 × hidden")
    if "gated_ffn" not in values:
        values["gated_ffn"] = bool(values.get("experts")) or values["ffn"] != 4 * values["hidden"]
        assumed.append(f"gated_ffn = {str(values['gated_ffn']).lower()}")
    if "vocab" not in values:
        values["vocab"] = VOCABULARY
        assumed.append(f"vocab = {VOCABULARY:,}")
    if values.get("experts"):
        values.setdefault("experts_per_token", 1)
        values.setdefault("moe_ffn", values["ffn"])
    return assumed


def _fill_optional(values: dict[str, Any]) -> None:
    if values.get("index_topk"):
        values.setdefault("index_heads", _INDEXER_HEADS)
        values.setdefault("index_dim", _INDEXER_DIM)
    if values.get("index_heads"):
        values.setdefault("indexer_full_layers", values["layers"])
    if values.get("mtp_modules"):
        values.setdefault("mtp_depth", values["mtp_modules"])
    if values.get("window"):
        values.setdefault("window_layers", values["layers"])
