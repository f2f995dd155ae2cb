"""A torchtitan job file (TOML): model flavor, parallelism, batch, activation checkpointing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from minglm.errors import InputError
from sim.scenario.launch.arguments import Arguments, Launch
from sim.scenario.launch.deepspeed import flat

IGNORED = re.compile(
    r"^(job|profiling|metrics|lr_scheduler|checkpoint\.|comm|fault_tolerance|validation|experimental\.custom|debug|"
    r"memory_estimation|optimizer\.|training\.(dataset|max_norm|data_path|warmup|gc_|seed|deterministic|enable_cpu_offload$|"
    r"debug_moe|mixed_precision_reduce)|model\.(hf|tokenizer|print|norm|vocab)|parallelism\.(disable_loss|enable_compiled|"
    r"context_parallel_rotate|pipeline_parallel_split|module_fqns|context_parallel_load)|float8|quantize|mx|compile\.|"
    r"activation_checkpoint\.(per_op|early_stop|memory_budget|visualize|preserve|determinism|debug))"
)
# (model name, flavor) → a name of data/models
FLAVORS = {
    ("llama3", "8B"): "llama3_8b",
    ("llama3", "70B"): "llama3_70b",
    ("llama3", "405B"): "llama3_405b",
    ("deepseek_v3", "671B"): "deepseek_v3",
    ("qwen3", "8B"): "qwen3_8b",
    ("qwen3", "32B"): "qwen3_32b",
    ("qwen3", "30B-A3B"): "qwen3_30b_a3b",
    ("qwen3", "235B-A22B"): "qwen3_235b_a22b",
    ("gpt_oss", "120b"): "gpt_oss_120b",
}
SCHEDULES = {
    "1f1b": "1f1b",
    "gpipe": "gpipe",
    "interleaved1f1b": "interleaved",
    "loopedbfs": "interleaved",
    "zbvzerobubble": "zb-v",
    "dualpipev": "dualpipe-v",
}


def read(document: Mapping[str, Any], where: str) -> Launch:
    """A scenario's keys from the parsed TOML.

    Raises:
        InputError: degrees that no number of chips makes, or a setting that is not simulated.
    """
    a, out = Arguments(flat(document), where), Launch("torchtitan")
    out.run["stack"] = "torchtitan"
    _model(a, out)
    _plan(a, out)
    _batch(a, out)
    _switches(a, out)
    a.finish(out, IGNORED)
    return out


def _model(a: Arguments, out: Launch) -> None:
    name = a.text("model.name", becomes="model")
    flavor = a.text("model.flavor", becomes="model")
    known = FLAVORS.get((name or "", flavor or ""))
    if known:
        out.run["model"] = known
    else:
        out.notes.append(f"model {name} {flavor}: not one of data/models; --model says which")


def _plan(a: Arguments, out: Launch) -> None:
    degree = {}
    for name, key in (
        ("data_parallel_replicate_degree", "replicate"),
        ("tensor_parallel_degree", "tp"),
        ("pipeline_parallel_degree", "pp"),
        ("context_parallel_degree", "cp"),
        ("expert_parallel_degree", "ep"),
        ("expert_tensor_parallel_degree", "etp"),
    ):
        becomes = "options.hsdp" if key == "replicate" else f"plan.{key}"
        names = (f"parallelism.{name}", f"experimental.{name}", f"training.{name}")
        degree[key] = a.whole(*names, becomes=becomes, low=1) or 1
    named = ("parallelism.data_parallel_shard_degree", "training.data_parallel_shard_degree")
    shards = a.number(*named, "training.data_parallel_degree", becomes="options.fsdp")  # the last until 2024
    out.run["shards"] = -1 if shards is None else int(shards)
    out.run["replicas"] = degree.pop("replicate")
    out.plan = {k: v for k, v in degree.items() if v > 1 or k in ("tp", "pp")}
    schedule = a.choice(
        "parallelism.pipeline_parallel_schedule",
        "experimental.pipeline_parallel_schedule",
        table=SCHEDULES,
        becomes="schedule",
    )
    per = a.whole("parallelism.pipeline_parallel_layers_per_stage", becomes="plan.vpp", low=1)
    if degree["pp"] > 1:
        out.run["schedule"] = schedule or "interleaved"
        if out.run["schedule"] == "interleaved":
            out.run["layers_per_stage"] = per
            out.plan["vpp"] = 2  # two stages a rank where a looped schedule says no more
    reshard = {"default": None, "always": None, "never": 2}
    stage = a.choice("parallelism.fsdp_reshard_after_forward", table=reshard, becomes="options.zero")
    out.options["zero"] = stage or 3


def _batch(a: Arguments, out: Launch) -> None:
    local = a.whole("training.local_batch_size", "training.batch_size", becomes="micro_batch", low=1) or 8
    whole = a.number("training.global_batch_size", becomes="global_batch")
    micro = a.whole(
        "parallelism.pipeline_parallel_microbatch_size",
        "experimental.pipeline_parallel_microbatch_size",
        becomes="micro_batch",
        low=1,
    )
    a.raw(
        "experimental.pipeline_parallel_microbatches",
        "parallelism.pipeline_parallel_microbatches",
        becomes="micro_batch",
    )
    out.run["local_batch"] = local
    out.run["micro_batch"] = (micro or 1) if out.plan.get("pp", 1) > 1 else local
    out.run["global_batch"] = int(whole) if whole and whole > 0 else None
    out.run["seq"] = a.whole("training.seq_len", becomes="seq", low=1) or 2048
    out.steps = a.whole("training.steps", becomes="tokens", low=1) or 10_000
    kinds = {"bfloat16": "bf16", "float32": None}
    out.run["precision"] = a.choice("training.mixed_precision_param", table=kinds, becomes="precision") or "bf16"
    converters = a.raw("model.converters", becomes="precision") or []
    if any("float8" in str(c) for c in converters):
        out.run["precision"] = "fp8"


def _switches(a: Arguments, out: Launch) -> None:
    modes = {"none": "none", "full": "full", "selective": "selective"}
    mode = a.choice("activation_checkpoint.mode", table=modes, becomes="recompute") or "selective"
    option = str(a.raw("activation_checkpoint.selective_ac_option", becomes="recompute") or "2")
    out.run["recompute"] = mode
    if mode == "selective":
        if option == "op":
            out.run["recompute"] = "selective_ops"
        elif option.isdigit() and int(option) > 0:
            out.run["recompute_every"] = int(option)
        else:
            raise InputError(
                f"{a.label('activation_checkpoint.selective_ac_option')} {option!r}: op, or every how many layers"
            )
    compiled = a.flag("compile.enable", "training.compile", becomes="options.fusion")
    parts = a.raw("compile.components", becomes="options.fusion") or ("model",)  # the loss alone may be compiled
    out.options["fusion"] = "compiled" if compiled and "model" in parts else "eager"
    if a.flag(
        "parallelism.enable_async_tensor_parallel",
        "experimental.enable_async_tensor_parallel",
        becomes="options.overlap_tp",
    ):
        out.options["overlap_tp"] = True
    if a.flag("training.enable_cpu_offload", becomes="options.optimizer_offload"):
        out.options["optimizer_offload"] = True
    a.choice("optimizer.name", table={"adam": "adam", "adamw": "adam"}, becomes="options.optimizer")
