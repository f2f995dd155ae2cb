"""Families of Hugging Face configs without experts: one small function a family, over a plain decoder.

Each names what differs from a Llama-like decoder. Counts are exact: tested against `transformers` models built on the
meta device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minglm.errors import InputError
from sim.spec.huggingface_config import Config
from sim.spec.huggingface_decoder import decoder, pattern, windows


def llama(c: Config) -> dict[str, Any]:
    """Llama, and what only scales its values otherwise (Granite)."""
    bias, mlp = c.flag("attention_bias"), c.flag("mlp_bias")
    return decoder(c, qkv_bias=bias, out_bias=bias, ffn_bias=mlp)


def mistral(c: Config) -> dict[str, Any]:
    """Mistral: a window in every layer, where there is one, unless the file lists its layers."""
    return decoder(c) | windows(c, 0, c.int("num_hidden_layers"))


def _window_qwen(c, base):
    """A window from the `max_window_layers`-th layer on, where it is switched on."""
    if not c.flag("use_sliding_window"):
        return base
    return base | windows(c, 0, max(base["layers"] - c.int("max_window_layers", 0), 0))


def qwen2(c: Config) -> dict[str, Any]:
    """Qwen 2: biases of the queries, keys and values."""
    return _window_qwen(c, decoder(c, qkv_bias=True))


def qwen3(c: Config) -> dict[str, Any]:
    """Qwen 3: norms of single heads."""
    return _window_qwen(
        c,
        decoder(
            c,
            head_dim=c.int("head_dim", 128),
            qk_norm=True,
            qkv_bias=c.flag("attention_bias"),
            out_bias=c.flag("attention_bias"),
        ),
    )


def _smollm3(c):
    """Llama; where windows are switched on, the layers without positions have one: one in four, unless listed."""
    layers = c.int("num_hidden_layers")
    listed, every = c.raw.get("no_rope_layers"), c.int("no_rope_layer_interval", 4)
    bare = listed.count(0) if isinstance(listed, list) else layers // every if every else 0
    return llama(c) | (windows(c, 0, bare) if c.flag("use_sliding_window") else {})


def _gpt2(c):
    hidden, heads = c.int("n_embd"), c.int("n_head")
    length = c.int("n_positions", 1024)
    return dict(
        layers=c.int("n_layer"),
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


def _gpt_neo(c):
    """Learned positions; queries, keys and values have no bias; `attention_types` lists kinds and their repeats."""
    layers, window = c.int("num_hidden_layers"), c.int("window_size", 256)
    listed = c.raw.get("attention_types")
    try:
        local = sum(int(times) * list(kinds).count("local") for kinds, times in listed)
    except (TypeError, ValueError):
        local = layers // 2
    return decoder(
        c,
        ffn=c.int("intermediate_size", 4 * c.int("hidden_size")),
        tied=c.flag("tie_word_embeddings", True),
        gated_ffn=False,
        norm="layer",
        out_bias=True,
        ffn_bias=True,
        positions=c.int("max_position_embeddings"),
        window=window,
        window_layers=local,
    )


def _gpt_neox(c):
    bias = c.flag("attention_bias", True)
    return decoder(c, gated_ffn=False, norm="layer", qkv_bias=bias, out_bias=bias, ffn_bias=True)


def _olmo2(c):
    bias = c.flag("attention_bias")
    return decoder(c, qkv_bias=bias, out_bias=bias, qk_norm=True, qk_norm_full=True)


def _olmo3(c):
    return _olmo2(c) | windows(c, 4)


def _glm4(c):
    return decoder(c, qkv_bias=c.flag("attention_bias"), norms_per_layer=4)


def _starcoder2(c):
    bias = c.flag("use_bias", True)
    return mistral(c) | dict(gated_ffn=False, norm="layer", qkv_bias=bias, out_bias=bias, ffn_bias=bias)


def _qwen(c):
    """Qwen of 2023: `intermediate_size` is that of both halves of the gated feed-forward."""
    return decoder(c, kv_heads=c.int("num_attention_heads"), qkv_bias=True, ffn=c.int("intermediate_size") // 2)


def _chatglm(c):
    groups = c.int("num_key_value_heads", 0) if c.flag("multi_query_attention") else 0
    heads, bias = c.int("num_attention_heads"), c.flag("add_bias_linear")
    qkv_bias = c.flag("add_qkv_bias") or bias
    return decoder(c, kv_heads=groups or heads, qkv_bias=qkv_bias, out_bias=bias, ffn_bias=bias)


def _internlm2(c):
    bias = c.flag("bias")
    return decoder(c, qkv_bias=bias, out_bias=bias)


def _seed_oss(c):
    return decoder(
        c, qkv_bias=c.flag("attention_bias"), out_bias=c.flag("attention_out_bias"), ffn_bias=c.flag("mlp_bias")
    )


def _ernie4_5(c):
    bias = c.flag("use_bias")
    return decoder(c, qkv_bias=bias, out_bias=bias, ffn_bias=bias)


def _gemma(c):
    return decoder(c, tied=c.flag("tie_word_embeddings", True), head_dim=c.int("head_dim", 256))


def _gemma2(c):
    return _gemma(c) | dict(norms_per_layer=4) | windows(c, 0, (c.int("num_hidden_layers") + 1) // 2)


def _gemma3(c):
    every = max(c.int("sliding_window_pattern", 6), 1)
    return _gemma(c) | dict(norms_per_layer=4, qk_norm=True) | windows(c, every)


def _cohere(c):
    """Attention and feed-forward side by side after one norm; query and key norms have a weight a head."""
    normed, tied = c.flag("use_qk_norm"), c.flag("tie_word_embeddings", True)
    bias = c.flag("attention_bias")
    return decoder(c, tied=tied, norms_per_layer=1, qkv_bias=bias, out_bias=bias, qk_norm=normed, qk_norm_full=normed)


def _cohere2(c):
    return _cohere(c) | windows(c, pattern(c) or 4)


def _cwm(c):
    layers = c.int("num_hidden_layers")
    return llama(c) | windows(c, 0, layers - (layers + 3) // 4)  # the first of every four sees all


def _exaone4(c):
    return decoder(c, qk_norm=True) | windows(c, pattern(c))


def _plain_ffn(c):
    """Llama with two matrices in its feed-forward (Arcee, Nemotron's squared ReLU)."""
    return llama(c) | dict(gated_ffn=False)


def _nemotron(c):
    return _plain_ffn(c) | dict(norm="layer")


def _apertus(c):
    return _plain_ffn(c) | dict(qk_norm=True, extra_params=2 * c.int("num_hidden_layers"))  # two numbers of each xIELU


def _glm(c):
    return decoder(c, qkv_bias=c.flag("attention_bias", True))


def _internlm3(c):
    return llama(c) | dict(qkv_bias=c.flag("qkv_bias"), out_bias=c.flag("bias"), ffn_bias=c.flag("bias"))


def _hunyuan(c):
    bias = c.flag("attention_bias")
    return decoder(c, qkv_bias=bias, out_bias=bias, qk_norm=c.flag("use_qk_norm", True))


def _olmo(c):
    """Its norms have no weights."""
    bias = c.flag("attention_bias")
    return decoder(c, qkv_bias=bias, out_bias=bias, norm="bare")


def _phi(c):
    """Attention and feed-forward side by side after one norm; a bias everywhere, in the head too."""
    if c.flag("qk_layernorm"):
        raise InputError("config.json qk_layernorm=true of model_type 'phi': not read; give plain dimensions instead")
    base = decoder(c, gated_ffn=False, norm="layer", norms_per_layer=1, qkv_bias=True, out_bias=True, ffn_bias=True)
    return base | dict(extra_params=base["vocab"])


def _stablelm(c):
    normed, parallel = c.flag("qk_layernorm"), c.flag("use_parallel_residual")
    return decoder(
        c,
        norm="layer",
        norms_per_layer=1 if parallel else 2,
        qkv_bias=c.flag("use_qkv_bias"),
        qk_norm=normed,
        qk_norm_full=normed,
    )


def _opt(c):
    """Learned positions (two more than its context), biases throughout."""
    hidden, bias = c.int("hidden_size"), c.flag("enable_bias", True)
    if c.int("word_embed_proj_dim", hidden) != hidden or not c.flag("do_layer_norm_before", True):
        raise InputError(
            "config.json of OPT with word_embed_proj_dim other than hidden_size or norms after the blocks: not read; "
            "give plain dimensions instead"
        )
    return decoder(
        c,
        ffn=c.int("ffn_dim"),
        tied=c.flag("tie_word_embeddings", True),
        gated_ffn=False,
        norm="layer",
        qkv_bias=bias,
        out_bias=bias,
        ffn_bias=bias,
        positions=c.int("max_position_embeddings") + 2,
    )


def _bloom(c):
    """A norm after the embedding too."""
    hidden = c.int("hidden_size")
    return decoder(
        c,
        ffn=4 * hidden,
        tied=c.flag("tie_word_embeddings", True),
        gated_ffn=False,
        norm="layer",
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        max_seq=c.int("seq_length", 2048),
        extra_params=2 * hidden,
    )


def _falcon(c):
    """Falcon of three ages: one key-value head, several with a norm before each block, or as many as heads."""
    heads, hidden, bias = c.int("num_attention_heads"), c.int("hidden_size"), c.flag("bias")
    new, parallel = c.flag("new_decoder_architecture"), c.flag("parallel_attn", True)
    norms = c.int("num_ln_in_parallel_attn", 2 if new else 1) if parallel else 2
    return decoder(
        c,
        kv_heads=c.int("num_kv_heads", heads) if new else 1 if c.flag("multi_query", True) else heads,
        ffn=c.int("ffn_hidden_size", 4 * hidden),
        tied=c.flag("tie_word_embeddings", True),
        gated_ffn=False,
        norm="layer",
        norms_per_layer=norms,
        qkv_bias=bias,
        out_bias=bias,
        ffn_bias=bias,
    )


def _gptj(c):
    """Attention without biases beside a feed-forward with them, and a bias of the head."""
    base = decoder(c, gated_ffn=False, norm="layer", norms_per_layer=1, ffn_bias=True)
    return base | dict(ffn=c.int("intermediate_size", 4 * base["hidden"]), extra_params=base["vocab"])


def _gpt_bigcode(c):
    return _gpt2(c) | dict(kv_heads=1 if c.flag("multi_query", True) else c.int("n_head"))


def _mpt(c):
    """Distances in place of positions, no bias anywhere."""
    hidden, heads = c.int("hidden_size"), c.int("num_attention_heads")
    return decoder(
        c,
        kv_heads=c.part("attn_config").int("kv_n_heads", heads),
        ffn=c.int("expansion_ratio", 4) * hidden,
        tied=c.flag("tie_word_embeddings", True),
        gated_ffn=False,
    )


DENSE: dict[str, Callable[[Config], dict[str, Any]]] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gpt_neox": _gpt_neox,
    "glm": _glm,
    "glm4": _glm4,
    "ministral": mistral,
    "ministral3": mistral,
    "mistral3_text": mistral,
    "qwen2_vl_text": qwen2,
    "qwen2_5_vl_text": qwen2,
    "qwen2_5_omni_text": qwen2,
    "qwen3_vl_text": qwen3,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "olmo3": _olmo3,
    "granite": llama,
    "starcoder2": _starcoder2,
    "internlm2": _internlm2,
    "baichuan": decoder,
    "qwen": _qwen,
    "chatglm": _chatglm,
    "internlm3": _internlm3,
    "smollm3": _smollm3,
    "seed_oss": _seed_oss,
    "ernie4_5": _ernie4_5,
    "phi": _phi,
    "phi3": mistral,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "cohere": _cohere,
    "cohere2": _cohere2,
    "cwm": _cwm,
    "exaone4": _exaone4,
    "arcee": _plain_ffn,
    "apertus": _apertus,
    "nemotron": _nemotron,
    "helium": llama,
    "iquestcoder": llama,
    "hunyuan_v1_dense": _hunyuan,
    "stablelm": _stablelm,
    "opt": _opt,
    "bloom": _bloom,
    "falcon": _falcon,
    "gptj": _gptj,
    "gpt_bigcode": _gpt_bigcode,
    "mpt": _mpt,
}
