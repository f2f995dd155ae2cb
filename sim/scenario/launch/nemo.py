"""NeMo's YAML of a training (`trainer`, `model`, `exp_manager`): Megatron's arguments under names of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sim.scenario.launch import megatron
from sim.scenario.launch.arguments import Launch

# NeMo's name → Megatron's, where it is not the same with hyphens
_NAMES = {
    "trainer.devices": "nproc-per-node",
    "trainer.num_nodes": "nnodes",
    "trainer.max_steps": "train-iters",
    "model.encoder_seq_length": "seq-length",
    "model.virtual_pipeline_model_parallel_size": "num-virtual-stages-per-pipeline-rank",
    "model.num_moe_experts": "num-experts",
    "model.moe_ffn_hidden_size": "moe-ffn-hidden-size",
    "model.activations_checkpoint_granularity": "recompute-granularity",
    "model.activations_checkpoint_method": "recompute-method",
    "model.activations_checkpoint_num_layers": "recompute-num-layers",
    "model.ub_tp_comm_overlap": "tp-comm-overlap",
    "model.use_flash_attention": "use-flash-attn",
    "model.overlap_p2p_comm": "overlap-p2p-communication",
    "model.optim.overlap_grad_sync": "overlap-grad-reduce",
    "model.optim.overlap_param_sync": "overlap-param-gather",
    "model.optim.overlap_param_gather": "overlap-param-gather",
    "model.optim.overlap_grad_reduce": "overlap-grad-reduce",
}
# Neither time nor memory of a step, or said by another key
_IGNORED = re.compile(
    r"^(?!trainer\.(devices|num_nodes|precision|max_steps)$|model\.)|"
    r"^model\.(tokenizer|data|mcore_gpt|megatron_amp|init_method|layernorm_epsilon|rotary|use_cpu|onnx|apex|seed|resume|"
    r"gradient_as_bucket|nsys|memory_profile|openai|headscale|transformer_block|normalize_attention|apply_query|"
    r"attention_softmax|transformer_engine|gc_interval|sync_batch|pre_process|post_process|persist_layer|masked_softmax|"
    r"bias_\w*fusion|bias_dropout|gradient_accumulation_fusion|grad_allreduce|native_amp|fp16_|hidden_act|get_attention|"
    r"batch_p2p|deterministic|reduce_amax|use_emha|fp8_(amax|margin|interval|params|e4m3|hybrid)|restore|peft|"
    r"optim\.(?!name$|overlap)|dist_ckpt|target|nemo|precision|ub_tp_comm_overlap_cfg|log|num_layers_per|"
    r"activations_checkpoint_(layers_per|recurrent)|apply_rope|rope_fusion|defer_embedding|attention_type|use_scaled|do_layer|"
    r"grad_div|fp16|hysteresis|loss_scale|dist_optim)"
)
_GATED = ("swiglu", "fast-swiglu", "geglu", "fast-geglu", "reglu", "fast-reglu")


def known(document: Mapping[str, Any]) -> bool:
    """Whether the keys are NeMo's."""
    trainer, model = document.get("trainer"), document.get("model")
    return (
        isinstance(trainer, Mapping)
        and isinstance(model, Mapping)
        and ("exp_manager" in document or "micro_batch_size" in model or "tensor_model_parallel_size" in model)
    )


def read(values: Mapping[str, Any], where: str) -> Launch:
    """A scenario's keys from the YAML's keys joined by dots.

    Raises:
        InputError: as `megatron.read`, which reads the same arguments under its own names.
    """
    flags: dict[str, Any] = {}
    ignored = []
    for name, value in values.items():
        if value in (None, False, "", [], {}):  # 0 too: none of it
            continue
        if name in _NAMES:
            flags[_NAMES[name]] = value
        elif _IGNORED.search(name):
            ignored.append(name)
        elif name.startswith("model."):
            flags[name.removeprefix("model.").replace("_", "-")] = value
    _said_otherwise(values, flags)
    out = megatron.read(flags, where)
    out.format, out.run["stack"] = "nemo", "NeMo"
    out.ignored += ignored
    return out


def _said_otherwise(values: Mapping[str, Any], flags: dict[str, Any]) -> None:
    """What NeMo says by a value or another default where Megatron has a flag."""
    precision = str(values.get("trainer.precision") or "").lower()
    if precision.startswith("bf16"):
        flags["bf16"] = True
    elif precision.startswith("16"):
        flags["fp16"] = True
    if flags.pop("fp8", None):
        flags["fp8-format"] = "hybrid"
    if str(flags.pop("activation", "gelu")).lower() in _GATED:
        flags["swiglu"] = True
    norm = str(flags.pop("normalization", "layernorm")).lower()
    flags["normalization"] = "RMSNorm" if norm == "rmsnorm" else "LayerNorm"
    flags.pop("bias", None)
    if values.get("model.bias") is False:
        flags["disable-bias-linear"] = True
    flags.pop("share-embeddings-and-output-weights", None)
    if values.get("model.share_embeddings_and_output_weights") is False:
        flags["untie-embeddings-and-output-weights"] = True
    if flags.get("num-query-groups") not in (None, flags.get("num-attention-heads")):
        flags["group-query-attention"] = True
    name = str(flags.pop("optim.name", "")).lower()
    if "distributed" in name:
        flags["use-distributed-optimizer"] = True
    for dropout in ("attention-dropout", "hidden-dropout"):
        flags.setdefault(dropout, values.get("model." + dropout.replace("-", "_"), 0.1) or 0.0)
    if flags.get("pipeline-model-parallel-size", 1) == 1:
        flags.pop("overlap-p2p-communication", None)
    chunks = values.get("model.virtual_pipeline_model_parallel_size")
    if chunks == 1:
        flags.pop("num-virtual-stages-per-pipeline-rank", None)
