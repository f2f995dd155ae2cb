"""A MindFormers task file (YAML): model_config, parallel_config, runner_config, recompute_config, moe_config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from minglm.errors import InputError
from sim.scenario.launch.arguments import Arguments, Launch
from sim.scenario.launch.deepspeed import flat

IGNORED = re.compile(
    r"^(seed|output_dir|load_|src_|auto_|only_|resume|run_mode|remote|init_start|use_parallel|trainer|callbacks|eval_|"
    r"processor|metric|layer_decay|layer_scale|lr_|optimizer\.|runner_wrapper|profile|context|monitor|train_dataset|"
    r"parallel\.(parallel_mode|gradients_mean|enable_alltoall|full_batch|search_mode|strategy|dataset_|"
    r"parallel_optimizer_threshold|parallel_optimizer_config)|runner_config\.(epochs|sink|num_classes|image)|"
    r"parallel_config\.(vocab_emb|gradient_aggregation|mem_coeff|reduce_scatter|use_ring|ulysses|seq_split)|"
    r"recompute_config\.(mp_comm|recompute_slice|parallel_opt|select_comm|.*exclude)|"
    r"moe_config\.(aux|z_loss|balance|update_step|first_|routing|enable_|use_|comp_|save_|fp32|norm|capacity|expert_bias|"
    r"moe_shared_expert_overlap|expert_group_size|topk_|n_group|routed_scaling|group_wise|callback|return_)|"
    r"model\.(arch|model_config\.(type|rms|bos|eos|pad|ignore|softmax|layernorm|rotary|use_past|checkpoint|repetition|"
    r"mtp_loss|layernorm_compute|max_decode|top|do_sample|block_size|num_blocks|is_dynamic|extend|theta|fine_grain|param_init|input_sliced|"
    r"embedding_init|compute_dtype|rope|use_ring|use_flash|use_attn|qkv_concat|batch_size|max_pos|init|return|"
    r"use_contiguous|use_gmm|use_fused|moe_grouped_gemm|moe_token_drop|moe_router|moe_aux|norm_topk|params_dtype|enable_fa|scaling|router|attention_dropout|hidden_act|norm_topk|auto_map))|version|"
    r"parallel\.enable_parallel_optimizer$|moe_config\.num_experts_chosen$)"
)


def read(document: Mapping[str, Any], where: str) -> Launch:
    """A scenario's keys from the parsed YAML.

    Raises:
        InputError: a value that cannot be, or a setting that is not simulated.
    """
    a, out = Arguments(flat(document), where), Launch("mindformers", cluster="atlas_800t_a2")
    out.run["stack"] = "MindFormers r1.5.0"
    _plan(a, out)
    _model(a, out)
    _experts(a, out)
    _batch(a, out)
    _recompute(a, out)
    a.finish(out, IGNORED)
    return out


def _plan(a: Arguments, out: Launch) -> None:
    plan = {}
    for name, key in (
        ("data_parallel", "dp"),
        ("model_parallel", "tp"),
        ("pipeline_stage", "pp"),
        ("context_parallel", "cp"),
        ("expert_parallel", "ep"),
    ):
        plan[key] = a.whole(f"parallel_config.{name}", becomes=f"plan.{key}", low=1) or 1
    out.plan = {k: v for k, v in plan.items() if v > 1 or k in ("tp", "pp", "dp")}
    out.plan["sp"] = a.flag("parallel_config.use_seq_parallel", becomes="plan.sp") and plan["tp"] > 1
    out.chips = plan["dp"] * plan["tp"] * plan["pp"] * plan["cp"]
    chunks = a.whole("model.model_config.pp_interleave_num", becomes="plan.vpp", low=1)
    interleaved = a.flag("parallel.pipeline_config.pipeline_interleave", becomes="plan.vpp")
    scheduler = a.choice(
        "parallel.pipeline_config.pipeline_scheduler",
        table={"1f1b": "1f1b", "gpipe": "gpipe", "zero_bubble_v": "zb-v"},
        becomes="schedule",
    )
    if plan["pp"] > 1:
        out.run["schedule"] = scheduler or "1f1b"
        if interleaved and (chunks or 1) > 1:
            out.plan["vpp"] = chunks
    sharded = a.flag("parallel.enable_parallel_optimizer", becomes="options.zero")
    grads = a.flag("parallel.parallel_optimizer_config.gradient_accumulation_shard", becomes="options.zero")
    group = a.number("parallel.parallel_optimizer_config.optimizer_weight_shard_size", becomes="options.hsdp")
    out.options["zero"] = (2 if grads else 1) if sharded else 0
    if sharded and group and group > 1:
        out.options["hsdp"] = int(group)


def _model(a: Arguments, out: Launch) -> None:
    p = "model.model_config."
    m: dict[str, Any] = {"gated_ffn": True, "tied": a.flag(p + "tie_word_embeddings", becomes="model.tied")}
    for key, names in {
        "layers": ("num_layers", "num_hidden_layers"),
        "hidden": ("hidden_size",),
        "heads": ("num_heads", "num_attention_heads"),
        "kv_heads": ("n_kv_heads", "num_key_value_heads"),
        "head_dim": ("head_dim",),
        "vocab": ("vocab_size",),
        "ffn": ("intermediate_size",),
        "kv_lora": ("kv_lora_rank",),
        "q_lora": ("q_lora_rank",),
        "nope": ("qk_nope_head_dim",),
        "rope": ("qk_rope_head_dim",),
        "v_dim": ("v_head_dim",),
        "mtp_modules": ("mtp_depth", "num_nextn_predict_layers"),
    }.items():
        m[key] = a.whole(*(p + name for name in names), becomes=f"model.{key}")
    multiple = a.whole(p + "multiple_of", becomes="model.ffn", low=1)
    factor = a.number(p + "ffn_dim_multiplier", becomes="model.ffn")
    if not m["ffn"] and m["hidden"]:
        m["ffn"] = _llama_ffn(m["hidden"], multiple or 256, factor)
    m["qkv_bias"] = a.flag(p + "qkv_has_bias", becomes="model.qkv_bias")
    m["qk_norm"] = a.flag(p + "qk_norm", p + "use_qk_norm", p + "qk_layernorm", becomes="model.qk_norm")
    out.run["seq"] = a.whole("train_dataset.data_loader.config.seq_length", p + "seq_length", becomes="seq", low=1)
    m["max_seq"] = out.run["seq"]
    if m["kv_lora"]:
        m.pop("kv_heads"), m.pop("head_dim")
    kinds = {"bfloat16": "bf16", "float16": "fp16"}
    dtype = str(a.values.get(p + "compute_dtype") or "bfloat16").lower()
    out.run["precision"] = kinds.get(dtype, "bf16")
    offset = a.raw(p + "offset", becomes="options.stages")
    if m["layers"] and isinstance(offset, (list, tuple)) and out.plan["pp"] > 1:
        out.options["stages"] = _stages(offset, m["layers"], out.plan["pp"] * out.plan.get("vpp", 1), a)
    out.run["model"] = {k: v for k, v in m.items() if v is not None}
    if not m["layers"]:
        del out.run["model"]


def _llama_ffn(hidden: int, multiple: int, factor: float | None) -> int:
    """Width of the FFN as Llama's code makes it: two thirds of 4 × hidden, scaled, up to a multiple."""
    width = 4 * hidden
    if factor is not None:
        width = int((factor + 0.01) * width)
    return -(-int(2 * width / 3) // multiple) * multiple


def _stages(offset: Any, layers: int, chunks: int, a: Arguments) -> list[int]:
    """Layers of each chunk in model order: an equal share and what `offset` adds."""
    flat_offset = [n for row in offset for n in (row if isinstance(row, (list, tuple)) else [row])]
    if len(flat_offset) != chunks or not all(isinstance(n, int) for n in flat_offset):
        raise InputError(
            f"{a.label('model.model_config.offset')}: must have a whole number for each of {chunks} chunks"
        )
    stages = [layers // chunks + n for n in flat_offset]
    if sum(stages) != layers or min(stages) < 0:
        raise InputError(
            f"{a.label('model.model_config.offset')}: makes {sum(stages)} layers of {layers}; it must sum to "
            f"{layers % chunks}"
        )
    return stages


def _experts(a: Arguments, out: Launch) -> None:
    p = "model.model_config."
    experts = a.whole("moe_config.expert_num", p + "num_experts", p + "n_routed_experts", becomes="model.experts")
    top = a.whole("moe_config.num_experts_chosen", p + "num_experts_per_tok", becomes="model.experts_per_token", low=1)
    shared = a.whole("moe_config.shared_expert_num", p + "n_shared_experts", becomes="model.shared_experts")
    width = a.whole(
        "moe_config.moe_intermediate_size",
        p + "moe_intermediate_size",
        becomes="model.moe_ffn",
        low=1,
    )
    dense = a.whole("moe_config.first_k_dense_replace", p + "first_k_dense_replace", becomes="model.dense_layers")
    if not experts or experts == 1 or "model" not in out.run:
        return
    if a.has("moe_config.capacity_factor"):
        a.raw("moe_config.capacity_factor", becomes="nothing: no token is dropped")
        out.notes.append("the experts' capacity factor is left out: no token is dropped")
    model = out.run["model"]
    model.update(experts=experts, experts_per_token=top or 1, moe_ffn=width or model["ffn"])
    if shared:
        model["shared_experts"] = shared
        model["shared_ffn"] = shared * model["moe_ffn"]
    if dense:
        model["dense_layers"] = dense


def _batch(a: Arguments, out: Launch) -> None:
    micro = a.whole("runner_config.batch_size", becomes="micro_batch", low=1) or 1
    pipeline = a.whole("parallel_config.micro_batch_num", becomes="global_batch", low=1) or 1
    halves = a.whole("micro_batch_interleave_num", becomes="global_batch", low=1) or 1
    passes = a.whole("runner_config.gradient_accumulation_steps", becomes="global_batch", low=1) or 1
    if out.plan["pp"] == 1:
        pipeline = 1  # without a pipeline there is nothing to cut for
    out.run["micro_batch"] = micro
    out.run["global_batch"] = micro * out.plan["dp"] * pipeline * halves * passes
    out.steps = a.whole("runner_config.max_steps", "max_steps", becomes="tokens", low=1)


def _recompute(a: Arguments, out: Launch) -> None:
    p = "recompute_config."
    whole, some = a.raw(p + "recompute", becomes="recompute"), a.raw(p + "select_recompute", becomes="recompute")
    out.run["recompute"] = "none"
    if isinstance(whole, (list, tuple)):
        flat_whole = [n for row in whole for n in (row if isinstance(row, (list, tuple)) else [row])]
        layers = max((int(n) for n in flat_whole if isinstance(n, int)), default=0)
        if layers:
            out.run["recompute"] = {"kind": "full", "layers": layers * out.plan.get("vpp", 1)}
        if len(set(map(str, flat_whole))) > 1:
            out.notes.append(f"recomputation of {layers} layers in every chunk: the file has other numbers for some")
    elif whole is True or (isinstance(whole, int) and whole > 0):
        out.run["recompute"] = "full" if whole is True else {"kind": "full", "layers": whole}
    elif some:
        out.run["recompute"] = "selective"
