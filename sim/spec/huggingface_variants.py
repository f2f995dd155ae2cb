"""Families of Hugging Face configs that are another family but for a norm, a sink, a bias or a list of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.spec.huggingface_config import Config
from sim.spec.huggingface_decoder import decoder, windowed, windows
from sim.spec.huggingface_dense import DENSE, llama
from sim.spec.huggingface_experts import EXPERTS


def _listed_windows(c: Config, full: Callable[[int], bool]) -> dict[str, Any]:
    """Windows as `layer_types` lists them; without a list in every layer that does not see all by the class's rule."""
    window, layers = c.int("sliding_window", 0), min(c.int("num_hidden_layers"), 100_000)
    if not window:
        return {}
    return {"window": window, "window_layers": windowed(c, sum(not full(i) for i in range(layers)))}


def _bitnet(c):
    """Llama with a norm of the attention's and of the feed-forward's inner values."""
    return llama(c) | dict(
        extra_params=c.int("num_hidden_layers") * (c.int("hidden_size") + c.int("intermediate_size"))
    )


def _hyperclovax(c):
    return llama(c) | dict(norms_per_layer=4 if c.flag("use_post_norm", True) else 2)


def _jais2(c):
    bias, mlp = c.flag("attention_bias", True), c.flag("mlp_bias", True)
    return decoder(c, gated_ffn=False, norm="layer", qkv_bias=bias, out_bias=bias, ffn_bias=mlp)


def _nanochat(c):
    """Two matrices in the feed-forward and norms without weights."""
    bias = c.flag("attention_bias")
    return decoder(c, gated_ffn=False, norm="bare", qkv_bias=bias, out_bias=bias)


def _vaultgemma(c):
    return DENSE["gemma2"](c) | dict(norms_per_layer=2)


def _persimmon(c):
    """Biases everywhere, and norms of single heads that have biases too."""
    layers, heads = c.int("num_hidden_layers"), max(c.int("num_attention_heads"), 1)
    normed = c.flag("qk_layernorm", True)
    return decoder(
        c,
        kv_heads=heads,
        gated_ffn=False,
        norm="layer",
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        qk_norm=normed,
        extra_params=2 * layers * (c.int("hidden_size") // heads) if normed else 0,
    )


def _granite_swa(c):
    return llama(c) | dict(sinks=True) | _listed_windows(c, lambda i: i % 4 == 0)


def _granitemoe_swa(c):
    return EXPERTS["granitemoe"](c) | dict(sinks=True) | _listed_windows(c, lambda i: i % 4 == 0)


def _mellum(c):
    kinds = c.raw.get("mlp_layer_types")
    dense = kinds.count("dense") if isinstance(kinds, list) else 0
    return EXPERTS["qwen3_moe"](c) | dict(dense_layers=dense) | windows(c, 0)


def _axk1(c):
    """DeepSeek-V3 without a bias of the router, with one norm more after the experts."""
    base = EXPERTS["glm4_moe_lite"](c) | dict(router_bias=False)
    return base | dict(extra_params=(base["layers"] - base["dense_layers"]) * base["hidden"])


def _aria(c):
    shared, width = c.int("moe_num_shared_experts", 2), c.int("intermediate_size")
    return llama(c) | dict(
        experts=c.int("moe_num_experts"),
        experts_per_token=c.int("moe_topk", 2),
        moe_ffn=width,
        shared_experts=shared,
    )


def _kolibri(c):
    """A shared expert beside the experts of every layer, and a norm after each half of a layer."""
    return decoder(
        c,
        qk_norm=True,
        norms_per_layer=4,
        experts=c.int("num_experts", 0, "num_local_experts"),
        experts_per_token=c.int("num_experts_per_tok"),
        moe_ffn=c.int("moe_intermediate_size"),
        shared_experts=1,
        shared_ffn=c.int("shared_expert_intermediate_size", 0),
        dense_layers=0,
    ) | _listed_windows(c, lambda i: (i + 1) % 5 == 0)


def _flint(c):
    """Qwen's experts with a shared one and a sink a head; the first two layers are dense unless others are listed."""
    layers = c.int("num_hidden_layers")
    base = EXPERTS["qwen3_moe"](c)
    if c.raw.get("mlp_only_layers") is None and c.int("decoder_sparse_step", 1) == 1:
        base |= dict(dense_layers=min(2, layers))
    return (
        base
        | dict(shared_experts=1, shared_ffn=c.int("shared_expert_intermediate_size", 0), sinks=True)
        | _listed_windows(c, lambda i: i < 2 or i % 4 == 1 or i == layers - 1)
    )


def _glm4v(c):
    return DENSE["glm4"](c) | dict(qkv_bias=True)


def _bailing(c):
    """Ling: experts beside shared ones of a width of their own; version 2 norms heads and has a router's bias."""
    width, bias = c.int("moe_intermediate_size"), c.flag("use_bias")
    shared = c.int("num_shared_experts", 0)
    return decoder(
        c,
        qkv_bias=c.flag("use_qkv_bias"),
        out_bias=bias,
        ffn_bias=bias,
        qk_norm=c.flag("use_qk_norm"),
        experts=c.int("num_experts"),
        experts_per_token=c.int("num_experts_per_tok"),
        moe_ffn=width,
        shared_experts=1 if shared else 0,
        shared_ffn=shared * c.int("moe_shared_expert_intermediate_size", width),
        dense_layers=c.int("first_k_dense_replace", 0),
        router_bias=c.flag("moe_router_enable_expert_bias"),
    )


VARIANTS: dict[str, Callable[[Config], dict[str, Any]]] = {
    "bitnet": _bitnet,
    "hyperclovax": _hyperclovax,
    "jais2": _jais2,
    "nanochat": _nanochat,
    "vaultgemma": _vaultgemma,
    "persimmon": _persimmon,
    "granite_swa": _granite_swa,
    "granitemoe_swa": _granitemoe_swa,
    "mellum": _mellum,
    "axk1": _axk1,
    "aria_text": _aria,
    "kolibri1": _kolibri,
    "flint": _flint,
    "glm4v_text": _glm4v,
    "hunyuan_vl_text": DENSE["hunyuan_v1_dense"],
    "paddleocr_vl_text": DENSE["ernie4_5"],
    "granite_docling_text": llama,
    "gpt-sw3": DENSE["gpt2"],
    "codegen": DENSE["gptj"],
    "mistral4": EXPERTS["deepseek_v2"],
    "minicpm": llama,
    "exaone": llama,
    "mimo": DENSE["qwen2"],  # its prediction modules are not counted
    "bailing_moe": _bailing,
    "bailing_moe_v2": _bailing,
}
