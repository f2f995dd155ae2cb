"""`params.json` and the like that come with weights as their makers first publish them: Llama, Mistral, DeepSeek.

Keys are those of the makers' own inference code (`ModelArgs`): llama/model.py of meta-llama, mistral_inference, and
inference/model.py of deepseek-ai. They become the same model's Hugging Face config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minglm.errors import InputError
from sim.base.units import whole

_LLAMA_VOCABULARY = 32_000  # where a file says -1: what the tokenizer of Llama 1 and 2 holds
_NAMES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "inter_dim": "intermediate_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_dense_layers": "first_k_dense_replace",
    "n_activated_experts": "num_experts_per_tok",
    "n_expert_groups": "n_group",
    "n_limited_groups": "topk_group",
}
_MOE_NAMES = {  # of Mistral's `moe` where attention is latent
    "num_experts": "n_routed_experts",
    "num_shared_experts": "n_shared_experts",
    "expert_hidden_dim": "moe_intermediate_size",
    "num_expert_groups": "n_group",
    "num_expert_groups_per_tok": "topk_group",
}


def are_params(values: Mapping[str, Any]) -> bool:
    """Whether a file is one of these: its width and its layers have the makers' names."""
    return "dim" in values and "n_layers" in values


def as_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The Hugging Face config of the same model.

    Raises:
        InputError: a number that is none.
    """
    config = {_NAMES.get(key, key): value for key, value in values.items()}
    experts = values.get("moe")
    if "kv_lora_rank" in values:
        index = {"index_n_heads", "index_head_dim", "index_topk"} & values.keys()
        nested = dict(experts) if isinstance(experts, Mapping) else {}
        inner = {_MOE_NAMES.get(str(key), str(key)): value for key, value in nested.items()}
        kind = "deepseek_v32" if index else "deepseek_v3"
        return config | inner | {"model_type": kind, "num_nextn_predict_layers": 0}
    if config.get("vocab_size") == -1:
        config["vocab_size"] = _LLAMA_VOCABULARY
    if "intermediate_size" not in config:
        config["intermediate_size"] = _feed_forward(values)
    config.setdefault("sliding_window", None)
    if isinstance(experts, Mapping):
        config |= {"num_local_experts": experts.get("num_experts"), **experts}
        return config | {"model_type": "mixtral"}
    return config | {"model_type": "mistral" if "hidden_dim" in values else "llama"}


def _feed_forward(values: Mapping[str, Any]) -> int:
    """Width of Llama's feed-forward: two thirds of four times the width, times a factor, up to a whole multiple."""
    width = 2 * 4 * whole(values["dim"], "params.json dim", low=1, high=10**9) // 3
    factor = values.get("ffn_dim_multiplier") or 1
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 100:
        raise InputError(f"params.json ffn_dim_multiplier={factor!r}: must be a number from 0 to 100, such as 1.3")
    step = whole(values.get("multiple_of", 256), "params.json multiple_of", low=1, high=10**9)
    return -(-int(factor * width) // step) * step
