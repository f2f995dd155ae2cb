"""Claims about the model: its counts, its context, the memory it needs and the speed that memory allows.

Counts come from `ModelConfig`, the same object that builds the toy. Memory is weights plus the cache of the tokens in
context; speed is a roofline: every byte that one token needs must cross the memory bus once.
"""

from __future__ import annotations

import math
from fractions import Fraction

from minglm.config import ModelConfig
from minglm.errors import InputError
from sim.claims.rules import Answer, exact
from sim.spec.hardware import load_chip

GLM5 = ModelConfig.named("glm5")
BILLION = 10**9
FP8_BLOCK = 128  # FP8 weights carry one fp32 scale per 128×128 block
SERVING_MEASURED = {  # one stream, tokens/s, GLM-5-FP8 on one node of 8, SGLang, 1K in and 1K out
    "8×B200 without speculation": 48,
    "8×B200 with speculation": 112,
    "8×H200 with speculation": 118,
}


def total_params() -> Answer:
    """All parameters, in billions: embedding and head in, prediction module out."""
    bare, full = GLM5.num_params(), GLM5.num_params(mtp=True)
    parts = GLM5.params_breakdown()
    return Answer(
        Fraction(bare, BILLION),
        "billion parameters",
        {
            "exact": bare,
            "with_prediction_module": full,
            "as_the_report_words_it": full - parts["embedding"] - parts["head"],
            "routed_experts_share": parts["routed_experts"] / bare,
        },
    )


def active_params() -> Answer:
    """Parameters that touch one token, in billions: the trunk without embedding and head."""
    trunk = GLM5.num_active_params(embedding=False, head=False)
    return Answer(
        Fraction(trunk, BILLION),
        "billion parameters",
        {
            "with_head": GLM5.num_active_params(),
            "with_embedding_and_head": GLM5.num_active_params(embedding=True),
            "share_of_all": trunk / GLM5.num_params(),
        },
    )


def experts() -> Answer:
    """Routed experts of one expert layer."""
    return Answer(
        GLM5.n_routed_experts,
        "routed experts per layer",
        {
            "expert_layers": GLM5.num_moe_layers,
            "layers": GLM5.num_hidden_layers,
            "shared_beside_them": GLM5.n_shared_experts,
        },
    )


def experts_per_token() -> Answer:
    """Routed experts that one token passes in one layer."""
    return Answer(
        GLM5.num_experts_per_tok,
        "routed experts per token and layer",
        {
            "run_with_the_shared_one": GLM5.num_experts_per_tok + GLM5.n_shared_experts,
            "share": Fraction(GLM5.num_experts_per_tok, GLM5.n_routed_experts),
        },
    )


def context_window() -> Answer:
    """The configured window; 202,752 is 99 blocks of 2,048."""
    return Answer(
        GLM5.max_position_embeddings,
        "tokens",
        {"block": GLM5.index_topk, "blocks": Fraction(GLM5.max_position_embeddings, GLM5.index_topk)},
    )


def output_limit() -> Answer:
    """128K in powers of two, and what it leaves for the prompt in the same window."""
    limit = 128 * 1024
    return Answer(limit, "tokens", {"left_for_the_prompt": GLM5.max_position_embeddings - limit})


def pretraining_tokens() -> Answer:
    """The report's stages added up, in trillions: pre-training, then mid-training at 32K, 128K and 200K."""
    stages = [Fraction(27), Fraction(1), Fraction(1, 2), Fraction(1, 20)]
    sparse = Fraction(1000 * 14 * 202_752, 10**12) + Fraction(20, 1000)
    return Answer(
        sum(stages),
        "trillion tokens",
        {
            "pre_training": stages[0],
            "mid_training": sum(stages[1:]),
            "with_sparse_attention_stages": sum(stages) + sparse,
        },
    )


def growth(new: float = 28.5, old: float = 23) -> Answer:
    """Growth of the training tokens (in trillions) over the model before."""
    return Answer((exact(new) / exact(old) - 1) * 100, "percent more")


# ------------------------------------------------------------------ memory


def weight_bytes(dtype: str = "fp8", mtp: bool = True) -> int:
    """Bytes of the released weights.

    FP8 is block-wise: matrices of attention, indexer and experts take a byte per value and a scale per block, while
    embedding, head, norms and router stay at two bytes. Which tensors stay wide is the DeepSeek-V3 convention, assumed.
    """
    parts = GLM5.params_breakdown()
    total = GLM5.num_params(mtp=mtp)
    if dtype == "bf16":
        return 2 * total
    if dtype != "fp8":
        raise InputError(f"dtype {dtype!r}: the released weights are bf16 and fp8; use one of those")
    wide = sum(parts[k] for k in ("embedding", "head", "router", "router_bias", "norms", "final_norm"))
    narrow = total - wide
    return narrow + 2 * wide + math.ceil(narrow / FP8_BLOCK**2) * 4


def cache_bytes(context: int, dtype: str = "bf16") -> int:
    """Bytes that one conversation of `context` tokens keeps: the latent of every layer and the indexer's keys.

    In FP8 a token and layer take 656 bytes (512 values, four scales, the rotary part in bf16) and 132 for the indexer.
    """
    if context < 0:
        raise InputError(f"context={context}: a number of tokens is at least 0; give 0 or more")
    if dtype == "bf16":
        return context * (GLM5.kv_cache_bytes_per_token("bf16") + GLM5.indexer_cache_bytes_per_token("bf16"))
    latent = GLM5.kv_lora_rank + GLM5.kv_lora_rank // 128 * 4 + 2 * GLM5.qk_rope_head_dim
    return context * GLM5.num_hidden_layers * (latent + GLM5.index_head_dim + 4)


def dense_cache_bytes(context: int) -> int:
    """The same conversation if every head kept its own keys and values in bf16, as before MLA."""
    heads = GLM5.num_attention_heads * (GLM5.qk_head_dim + GLM5.v_head_dim)
    return context * GLM5.num_hidden_layers * heads * 2


def accelerators_needed(
    name: str = "H200", dtype: str = "fp8", context: int = 200_000, streams: int = 1, usable: float = 1.0
) -> int:
    """How many of them hold the weights and `streams` conversations, by bytes alone."""
    memory = exact(load_chip(name).memory_bytes.value) * exact(usable)
    return math.ceil((weight_bytes(dtype) + streams * cache_bytes(context, dtype)) / memory)


def fp8_on_eight_h200() -> Answer:
    """Does one node of eight H200 hold the FP8 weights and one full context? GB needed."""
    need = Fraction(weight_bytes("fp8") + cache_bytes(200_000, "fp8"), BILLION)
    node = 8 * round(load_chip("H200").memory_bytes.value)
    return Answer(
        need,
        "GB needed",
        {
            "node_gb": Fraction(node, BILLION),
            "contexts_of_200k_that_fit": int(
                (node * Fraction(9, 10) - weight_bytes("fp8")) // cache_bytes(200_000, "fp8")
            ),
        },
    )


def smallest_h200_group() -> Answer:
    """Smallest power of two of H200 that holds weights and a full context with a tenth of memory to spare."""
    by_bytes = accelerators_needed("H200", usable=0.9)
    return Answer(
        1 << (by_bytes - 1).bit_length(),
        "H200, a power of two",
        {
            "heads_to_split": GLM5.num_attention_heads,
            "by_bytes": by_bytes,
            "by_bytes_with_nothing_to_spare": accelerators_needed("H200"),
            "h100_by_bytes": accelerators_needed("H100", usable=0.9),
            "b200_by_bytes": accelerators_needed("B200", usable=0.9),
            "h200_for_bf16_by_bytes": accelerators_needed("H200", "bf16", usable=0.9),
        },
    )


def bf16_on_disk() -> Answer:
    """Size of the BF16 release in decimal terabytes, prediction module included."""
    return Answer(Fraction(weight_bytes("bf16"), 10**12), "TB")


# ------------------------------------------------------------------ speed


def distinct_experts(tokens: int) -> float:
    """Experts of one layer that `tokens` tokens touch together when each picks K of E at random."""
    return GLM5.n_routed_experts * (1 - (1 - GLM5.num_experts_per_tok / GLM5.n_routed_experts) ** tokens)


def step_bytes(batch: int = 1, draft: int = 1, context: int = 2048) -> float:
    """Bytes read in one FP8 decoding step: each stream checks `draft` tokens. Experts are read once for all."""
    parts = GLM5.params_breakdown()
    expert = 3 * GLM5.hidden_size * GLM5.moe_intermediate_size
    routed = GLM5.num_moe_layers * expert * distinct_experts(batch * draft)
    rest = parts["attention"] + parts["indexer"] + parts["dense_ffn"] + parts["shared_experts"]
    wide = 2 * (parts["head"] + parts["router"])
    read = min(context, GLM5.index_topk)
    cache = GLM5.num_hidden_layers * (656 * read + 132 * context)
    return routed + rest + wide + batch * cache


def roofline_tokens_per_s(
    gpus: int = 8, name: str = "H200", batch: int = 1, draft: int = 1, accepted: float = 1.0, context: int = 2048
) -> float:
    """Upper bound on tokens/s of one stream: memory traffic only, no latency, perfect split over the node."""
    bytes_per_s = gpus * load_chip(name).memory_bytes_per_s.value
    return accepted * bytes_per_s / step_bytes(batch, draft, context)


def decoding_speed() -> Answer:
    """Measured one-stream speeds on one node, without and with speculation, and the roofline far above them."""
    bound = roofline_tokens_per_s()
    return Answer(
        (min(SERVING_MEASURED.values()), max(SERVING_MEASURED.values())),
        "tokens/s, measured",
        {
            "roofline_one_stream": bound,
            "roofline_speculating_4_accepting_2.76": roofline_tokens_per_s(draft=4, accepted=2.76),
            "claim_as_share_of_roofline": 72.5 / bound,
            "roofline_batch_32_per_stream": roofline_tokens_per_s(batch=32),
        },
    )
