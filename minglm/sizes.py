"""The named sizes of the model: field names of `minglm.config.ModelConfig` and their values; the rest is GLM-5's.

>>> list(NAMED_SIZES)
['nano', 'mini', 'bench', 'small', 'glm5']
"""

from __future__ import annotations

from typing import Any

# The sizes. `glm5` is the real thing and runs on the meta device only; the others keep its shape in miniature.
NAMED_SIZES: dict[str, dict[str, Any]] = {
    # tests and continuous integration: seconds
    "nano": dict(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=3,
        first_k_dense_replace=1,
        intermediate_size=160,
        num_attention_heads=4,
        q_lora_rank=32,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        index_topk=16,
        index_n_heads=2,
        index_head_dim=16,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        mtp_depth=1,
        max_position_embeddings=512,
        rope_theta=10_000.0,
    ),
    # the demo: minutes on two cores
    "mini": dict(
        vocab_size=2048,
        hidden_size=128,
        num_hidden_layers=5,
        first_k_dense_replace=1,
        intermediate_size=384,
        num_attention_heads=4,
        q_lora_rank=96,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        index_topk=32,
        index_n_heads=4,
        index_head_dim=32,
        n_routed_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=64,
        mtp_depth=1,
        max_position_embeddings=1024,
        rope_theta=10_000.0,
    ),
    # the benchmark shape
    "bench": dict(
        vocab_size=4096,
        hidden_size=256,
        num_hidden_layers=6,
        first_k_dense_replace=1,
        intermediate_size=768,
        num_attention_heads=8,
        q_lora_rank=128,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        index_topk=64,
        index_n_heads=4,
        index_head_dim=32,
        n_routed_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=128,
        mtp_depth=1,
        max_position_embeddings=65536,
        rope_theta=10_000.0,
    ),
    # a night on a laptop, or an hour on a GPU
    "small": dict(
        vocab_size=8192,
        hidden_size=512,
        num_hidden_layers=10,
        first_k_dense_replace=1,
        intermediate_size=1536,
        num_attention_heads=8,
        q_lora_rank=256,
        kv_lora_rank=128,
        qk_nope_head_dim=48,
        qk_rope_head_dim=16,
        v_head_dim=64,
        index_topk=256,
        index_n_heads=8,
        index_head_dim=64,
        n_routed_experts=32,
        num_experts_per_tok=4,
        moe_intermediate_size=256,
        mtp_depth=3,
        max_position_embeddings=8192,
        rope_theta=100_000.0,
    ),
    # GLM-5, 744B-A40B: the defaults of the class, and how its published module is run
    "glm5": dict(mtp_normed_hidden=True),
}
