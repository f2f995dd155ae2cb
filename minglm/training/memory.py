"""How much memory a training run needs, said before it runs out.

Weights, gradients and optimiser state are exact. Activations are what the backward pass keeps for each layer, counted
tensor by tensor from the shapes in minglm/model (attention, sparse_attention, moe);
a test holds the sum against a measured run.
"""

from __future__ import annotations

from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.runtime import machine
from minglm.training.recipe import Recipe

FIXED_BYTES = 300 * 2**20  # Python, torch and their thread pools


def estimate(recipe: Recipe, config: ModelConfig | None = None) -> dict[str, int]:
    """Bytes by part for one training step: weights, gradients, optimizer, activations, fixed; and their total."""
    config = config or recipe.config()
    weights = 4 * config.num_params(mtp=True)
    parts = config.params_breakdown()
    indexer = parts["indexer"]
    learning = {
        "dsa_warmup": indexer,
        "pretrain": config.num_params(mtp=True) - indexer,
        "long_context": config.num_params(mtp=True) - indexer,
    }.get(recipe.stage, config.num_params(mtp=True))
    adam = parts["embedding"] + parts["head"] + parts["router"] + parts["norms"]
    tokens = recipe.batch_size * recipe.seq_len
    out = {
        "weights": weights,
        "gradients": 4 * learning,
        # Muon keeps one momentum, AdamW two moments; the batched iteration holds a few copies of its largest group
        "optimizer": 4 * (learning + (adam if recipe.stage != "dsa_warmup" else 0)) + 3 * 4 * parts["routed_experts"],
        "activations": 4 * tokens * _kept_floats_per_token(config, recipe),
        "fixed": FIXED_BYTES,
    }
    return {**out, "total": sum(out.values())}


def _kept_floats_per_token(config: ModelConfig, recipe: Recipe) -> int:
    C, H, K, k = config.hidden_size, config.num_attention_heads, config.num_experts_per_tok, config.index_topk
    D, Dv, L, rope = config.qk_head_dim, config.v_head_dim, config.kv_lora_rank, config.qk_rope_head_dim
    F, width = config.moe_intermediate_size, max(D, Dv)
    if recipe.mode == "warmup":  # only one layer's tensors live at a time
        return (
            8 * C
            + 6 * H * width
            + 2 * recipe.seq_len
            + config.num_hidden_layers * config.index_n_heads * config.index_head_dim * 3
        )
    attention = 4 * C + 2 * config.q_lora_rank + 3 * H * D + 3 * (L + rope) + 2 * H * Dv
    if recipe.mode == "dense":
        attention += H * (D + Dv) + 4 * H * width + recipe.seq_len * 5 // 4  # expanded, padded, and the mask
    else:
        attention += 2 * H * (L + rope) + H * L + H * k + 5 * k + 3 * config.index_n_heads * config.index_head_dim
    experts = 2 * C + K * (2 * F + 5) + config.n_shared_experts * 5 * F + config.n_routed_experts * 2
    dense_ffn = 2 * C + 5 * config.intermediate_size
    mtp = config.num_nextn_predict_layers * config.mtp_depth * (attention + experts + 6 * C)
    head = 2 * C
    return (
        config.num_hidden_layers * attention
        + config.num_moe_layers * experts
        + config.first_k_dense_replace * dense_ffn
        + mtp
        + head
    )


def check(recipe: Recipe, device: str = "cpu", config: ModelConfig | None = None) -> dict[str, int]:
    """The estimate, or InputError with its figures when it exceeds the memory that is free now."""
    need, free = estimate(recipe, config), machine.available_memory_bytes(device)
    if need["total"] > free:
        figures = ", ".join(f"{name} {_human(n)}" for name, n in need.items() if name not in ("total", "fixed"))
        raise InputError(
            f"memory: the run needs about {_human(need['total'])} ({figures}) and {_human(free)} is free on {device}; "
            f"lower batch_size={recipe.batch_size} (and raise grad_accum) or seq_len={recipe.seq_len}, or take a "
            f"smaller model"
        )
    return need


def _human(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
