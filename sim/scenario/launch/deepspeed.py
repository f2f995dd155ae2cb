"""A DeepSpeed configuration (ds_config.json): ZeRO, batch, precision. Model and sequence are not in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from minglm.errors import InputError
from sim.scenario.launch.arguments import Arguments, Launch

IGNORED = re.compile(
    r"^(gradient_clipping|steps_per_print|wall_clock|scheduler|dump_state|prescale|gradient_predivide|sparse_gradients|"
    r"zero_allow|zero_force|tensorboard|wandb|csv_monitor|comet|comms_logger|flops_profiler|checkpoint\.|data_types|"
    r"communication_data_type|memory_breakdown|disable_allgather|optimizer\.params|seed|aio|elasticity|amp|"
    r"(fp16|bf16)\.|compression|curriculum|data_efficiency|eigenvalue|autotuning|graph_harvesting|load_universal|nebula|"
    r"zero_optimization\.(allgather|reduce|contiguous|round_robin|sub_group|stage3_|ignore|elastic|load_from|legacy|"
    r"memory_efficient|zero_quantized_nontrainable|mics_hier|cpu_offload_use|override|log_trace|offload_\w+\.(pin|buffer|fast|nvme|"
    r"ratio|max_in|pipeline)))"
)


_STRING = r'"(?:\\.|[^"\\\n])*"'
_COMMENT = re.compile(rf"({_STRING})|//[^\n]*|\#[^\n]*|/\*.*?\*/", re.DOTALL)
_LOOSE = re.compile(rf"({_STRING})|,(?=\s*[}}\]])|([A-Za-z_]\w*)(?=\s*:)")


def plain_json(text: str) -> str:
    """The same as strict JSON: DeepSpeed reads its files as Hjson, in which people write comments, a comma after the
    last value and keys without quotes. Lines keep their numbers.
    """
    bare = _COMMENT.sub(lambda found: found[1] or "\n" * found[0].count("\n"), text)
    return _LOOSE.sub(lambda found: found[1] or (f'"{found[2]}"' if found[2] else ""), bare)


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys of mappings within mappings joined by dots; a DeepSpeed "auto" is left to the rest, as no value."""
    out: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = None if value == "auto" else value
    return out


def read(document: Mapping[str, Any], where: str) -> Launch:
    """A scenario's keys from the parsed JSON.

    Raises:
        InputError: a batch that its parts do not make, or an option that is not simulated.
    """
    a, out = Arguments(flat(document), where), Launch("deepspeed")
    out.run["stack"] = "DeepSpeed"
    stage = a.whole("zero_optimization.stage", becomes="options.zero") or 0
    out.options["zero"] = stage
    if a.flag("zero_optimization.cpu_offload", becomes="options.optimizer_offload"):
        out.options["optimizer_offload"] = True
    where_to = {"cpu": True, "nvme": True, "none": False}
    if (
        a.choice("zero_optimization.offload_optimizer.device", table=where_to, becomes="options.optimizer_offload")
        is not None
    ):
        out.options["optimizer_offload"] = where_to[str(a.values["zero_optimization.offload_optimizer.device"]).lower()]
    a.choice("zero_optimization.offload_param.device", table={"none": False}, becomes="nothing: parameters stay")
    if a.has("zero_optimization.overlap_comm"):
        out.options["overlap_grad_reduce"] = a.flag(
            "zero_optimization.overlap_comm", becomes="options.overlap_grad_reduce"
        )
    if (group := a.whole("zero_optimization.zero_hpz_partition_size", becomes="options.hsdp")) and group > 1:
        out.notes.append(f"a second copy of the parameters in groups of {group} is left out")
    if (group := a.whole("zero_optimization.mics_shard_size", becomes="options.hsdp")) and group > 1:
        out.options["hsdp"] = group
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        if a.flag(f"zero_optimization.{key}", becomes="nothing: messages keep their precision"):
            out.notes.append(f"{key}: messages in fewer bits are left out")
    bf16 = a.flag("bf16.enabled", "bfloat16.enabled", becomes="precision")
    fp16 = a.flag("fp16.enabled", becomes="precision")
    out.run["precision"] = "bf16" if bf16 else "fp16" if fp16 else None
    names = {"adam": "adam", "adamw": "adam", "fusedadam": "adam", "cpuadam": "adam", "muon": "muon"}
    if (optimizer := a.choice("optimizer.type", table=names, becomes="options.optimizer")) is not None:
        out.options["optimizer"] = optimizer
    if tp := a.whole("tensor_parallel.autotp_size", "tensor_parallel.tp_size", becomes="plan.tp", low=1):
        out.plan["tp"] = tp
    if sp := a.whole("sequence_parallel_size", becomes="plan.cp", low=1):
        out.plan["cp"] = sp
    _recompute(a, out)
    _batch(a, out)
    a.finish(out, IGNORED)
    return out


def _recompute(a: Arguments, out: Launch) -> None:
    """Activation checkpointing is switched on in the model's code; here only how."""
    if a.flag("activation_checkpointing.partition_activations", becomes="nothing"):
        name = "activation_checkpointing.partition_activations"
        raise InputError(f"{a.label(name)}: is not simulated; leave it out with --ignore {name}")
    offload = a.flag("activation_checkpointing.cpu_checkpointing", becomes="options.activation_offload")
    for key in ("contiguous_memory_optimization", "number_checkpoints", "synchronize_checkpoint_boundary", "profile"):
        a.raw(f"activation_checkpointing.{key}", becomes="nothing: how, not whether")
    if offload:
        out.options["activation_offload"], out.run["recompute"] = True, "full"
        return
    out.notes.append("recomputation is in the model's code: none (--set recompute=full says another)")


def _batch(a: Arguments, out: Launch) -> None:
    whole = a.whole("train_batch_size", becomes="global_batch", low=1)
    micro = a.whole("train_micro_batch_size_per_gpu", becomes="micro_batch", low=1)
    passes = a.whole("gradient_accumulation_steps", becomes="global_batch", low=1)
    inner = out.plan.get("tp", 1) * out.plan.get("cp", 1)
    out.run["micro_batch"] = micro
    out.run["global_batch"] = whole
    if whole and micro and passes:
        if whole % (micro * passes):
            raise InputError(
                f"{a.label('train_batch_size')} {whole}: not a multiple of {micro} × {passes}, the micro-batch by the "
                f"passes; give {micro * passes * max(1, round(whole / (micro * passes)))}"
            )
        out.chips = whole // (micro * passes) * inner
    elif whole is None and micro:
        out.run["passes"] = passes or 1
