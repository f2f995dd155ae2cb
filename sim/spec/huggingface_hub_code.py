"""Families of Hugging Face configs whose code lies beside their weights: no class of `transformers` has them.

Counts are tested against the sums of their shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.spec.huggingface_config import Config
from sim.spec.huggingface_decoder import decoder
from sim.spec.huggingface_dense import DENSE, llama
from sim.spec.huggingface_experts import EXPERTS


def _biased(c):
    """InternLM of 2023, openPangu Embedded: biases of queries, keys, values and the output."""
    bias = c.flag("bias", True)
    return decoder(c, qkv_bias=bias, out_bias=bias)


def _orion(c):
    return llama(c) | dict(norm="layer")


def _refined_web(c):
    """Falcon as first published: its 40B has several key-value heads, its 7B one."""
    c.raw["new_decoder_architecture"] = c.raw.get("num_kv_heads") is not None
    return DENSE["falcon"](c)


def _pangu_pro_moe(c):
    """Experts in groups, as many from each, beside a shared one without a gate; a scale of each expert."""
    return decoder(
        c,
        qkv_bias=True,
        out_bias=True,
        experts=c.int("num_experts"),
        experts_per_token=c.int("num_experts_per_tok"),
        moe_ffn=c.int("moe_intermediate_size"),
        shared_experts=1,
        shared_ffn=c.int("shared_expert_intermediate_size"),
        router_bias=True,
    )


def _pangu_ultra_moe(c):
    """DeepSeek-V3 with a norm after each half of a layer too, and its own names for the dimensions."""
    mtp = c.int("num_nextn_predict_layers", 0)
    base = EXPERTS["deepseek_v2"](c) | dict(mtp_modules=mtp, mtp_depth=mtp)
    return base | dict(
        norms_per_layer=4 if c.flag("sandwich_norm") else 2, router_bias=c.flag("router_enable_expert_bias")
    )


def _jais(c):
    """GPT-2 with distances in place of positions, and SwiGLU where its activation says so."""
    alibi = c.raw.get("position_embedding_type") == "alibi"
    base = DENSE["gpt2"](c) | dict(gated_ffn=c.raw.get("activation_function") == "swiglu")
    return base | (dict(positions=0) if alibi else {})


HUB_CODE: dict[str, Callable[[Config], dict[str, Any]]] = {
    "yi": llama,
    "aquila": llama,
    "xverse": llama,
    "internlm": _biased,
    "orion": _orion,
    "stablelm_epoch": DENSE["stablelm"],
    "refinedweb": _refined_web,
    "refinedwebmodel": _refined_web,
    "panguembedded": _biased,
    "pangupromoe": _pangu_pro_moe,
    "pangu_ultra_moe": _pangu_ultra_moe,
    "jais": _jais,
}
