"""Fine-tuning with Hugging Face's Trainer: its command line, and the YAML of LLaMA-Factory, Axolotl and accelerate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minglm.errors import InputError
from sim.base.documents import read_document
from sim.scenario.launch import deepspeed
from sim.scenario.launch.arguments import Arguments, Launch
from sim.spec.model_loader import list_models

TELLING = ("model_name_or_path", "base_model", "per_device_train_batch_size", "distributed_type", "fsdp_config")
_LLAMA_FACTORY = ("stage", "finetuning_type", "template", "cutoff_len")
IGNORED = re.compile(
    r"^(dataset|template|max_samples|overwrite|preprocessing|dataloader|output|logging|save|plot|report|learning|lr_|"
    r"num_train|num_epochs|warmup|weight_decay|ddp|eval|per_device_eval|val_|resume|do_|trust|image|video|hub|wandb|mlflow|"
    r"tokenizer|special|chat|train_on|seed|data|load_best|early|max_grad|adam_|loss_watchdog|strict|debug|xformers|"
    r"sdp|s2|pad_to|sample_packing|eval_sample|pack|neat|group_by|remove_unused|include|rope|cosine|"
    r"compute_env|machine_|main_|rdzv|same_network|tpu|use_cpu|downcast|num_machines|enable_cpu|gradient_checkpointing_|"
    r"fsdp_transformer_layer|master_|sbatch_|"
    r"fsdp_config\.fsdp_(auto|limit|transformer|backward|forward|state|sync|use_orig|cpu_ram|cpu_eff|version|min_num)|"
    r"fsdp_config\.(?!fsdp_)|deepspeed_config\.(zero3_|gradient_clip|deepspeed_(multinode|hostfile)|offload_param_nvme))"
)
_SHARDING = {"full_shard": 3, "1": 3, "shard_grad_op": 2, "2": 2, "no_shard": 0, "3": 0, "hybrid_shard": 3, "4": 3}
_ADAM = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw", "adam")


def known(document: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a Trainer."""
    return any(key in document for key in TELLING)


def read(values: Mapping[str, Any], where: str, folder: Path | None = None) -> Launch:
    """A scenario's keys from the YAML's keys joined by dots.

    Args:
        folder: where a DeepSpeed configuration that the file names is looked for.

    Raises:
        InputError: adapters, quantised weights or another method than supervised training, or a DeepSpeed
            configuration that is not there.
    """
    said = {k: str(v).lower() if isinstance(v, bool) else v for k, v in values.items()}
    a, out = Arguments(said, where), Launch("trainer")
    out.run["stack"] = "FSDP"
    _method(a)
    _model(a, out)
    _sharding(a, out, folder)
    _batch(a, out)
    _switches(a, out)
    a.finish(out, IGNORED)
    return out


def _method(a: Arguments) -> None:
    """Only training of all weights on given text is simulated."""
    full = {"full": None, "none": None, "false": None}
    a.choice("finetuning_type", "adapter", table=full, becomes="nothing: all weights are trained")
    a.choice("stage", table={"sft": None, "pt": None}, becomes="nothing: training on given text")
    if a.has("rl"):
        raise InputError(f"{a.label('rl')}: only training on given text is simulated here; see clustersim rollouts")
    for name in ("load_in_4bit", "load_in_8bit", "quantization_bit", "lora_r", "lora_rank", "use_galore", "use_badam"):
        if a.values.get(name) not in (None, 0, "false"):
            raise InputError(f"{a.label(name)}: adapters and quantised weights are not simulated; give a full training")
        a.raw(name, becomes="nothing")


def _model(a: Arguments, out: Launch) -> None:
    name = a.text("model_name_or_path", "base_model", becomes="model")
    if name is None:
        return
    named = _plain(name)
    out.run["model"] = next((known for known in list_models() if _plain(known) == named), None)
    if out.run["model"] is None:
        out.notes.append(f"model {name}: not one of data/models; --model says which")


def _plain(name: str) -> str:
    """A model's name without its owner, its tuning, its signs: meta-llama/Meta-Llama-3-8B-Instruct → llama38b."""
    words = re.split(r"[^a-z0-9.]+", name.rpartition("/")[2].lower())
    return "".join(w for w in words if w not in ("meta", "instruct", "chat", "base", "it", "hf", "v1", "v0.1"))


def _sharding(a: Arguments, out: Launch, folder: Path | None) -> None:
    zero = None
    if a.has("deepspeed"):
        path = a.text("deepspeed", becomes="options.zero")
        zero = _of_deepspeed(str(path), folder, a, out)
    if (stage := a.whole("deepspeed_config.zero_stage", becomes="options.zero")) is not None:
        zero = stage
    fsdp = a.raw("fsdp", becomes="options.zero")
    words = fsdp if isinstance(fsdp, (list, tuple)) else str(fsdp or "").replace(",", " ").split()
    zero = next((_SHARDING[str(word).lower()] for word in words if str(word).lower() in _SHARDING), zero)
    if "offload" in words:
        raise InputError(f"{a.label('fsdp')}: parameters on the host are not simulated; leave 'offload' out")
    strategy = a.choice("fsdp_config.fsdp_sharding_strategy", table=_SHARDING, becomes="options.zero")
    reshard = a.choice(
        "fsdp_config.fsdp_reshard_after_forward",
        table={"true": 3, "false": 2, **{k: v for k, v in _SHARDING.items() if not k.isdigit()}},
        becomes="options.zero",
    )
    zero = next((stage for stage in (strategy, reshard) if stage is not None), zero)
    if a.flag("fsdp_config.fsdp_offload_params", becomes="nothing: parameters stay"):
        name = "fsdp_config.fsdp_offload_params"
        raise InputError(
            f"{a.label(name)}: parameters on the host are not simulated; leave it out with --ignore {name}"
        )
    a.choice("deepspeed_config.offload_param_device", table={"none": None}, becomes="nothing: parameters stay")
    where = {"none": False, "cpu": True, "nvme": True}
    if a.choice("deepspeed_config.offload_optimizer_device", table=where, becomes="options.optimizer_offload"):
        out.options["optimizer_offload"] = True
    kinds = {"fsdp": 3, "deepspeed": None, "multi_gpu": 0, "no": 0}
    kind = a.choice("distributed_type", table=kinds, becomes="options.zero")
    out.options["zero"] = next((stage for stage in (zero, kind) if stage is not None), 0)
    if any(name.startswith("deepspeed") and a.values[name] is not None for name in a.values):
        out.run["stack"] = "DeepSpeed"
    nodes = a.whole("sbatch_nodes", "num_nodes", "nnodes", becomes="chips", low=1) or 1
    of_node = a.whole("sbatch_gpus_per_node", "num_gpus", "nproc_per_node", becomes="chips", low=1)
    out.chips = a.whole("num_processes", becomes="chips", low=1) or (of_node * nodes if of_node else None)


def _of_deepspeed(name: str, folder: Path | None, a: Arguments, out: Launch) -> int:
    """ZeRO's stage in the DeepSpeed configuration that a file names; by its name where it is not there."""
    for path in (Path(name), (folder or Path()) / Path(name).name):
        if path.is_file():
            document = read_document(path)
            if not isinstance(document, Mapping):
                raise InputError(f"{path.name}: holds no keys and values; give a DeepSpeed configuration")
            found = deepspeed.read(document, path.name)
            out.options |= found.options
            return int(found.options["zero"])
    if said := re.search(r"(?:zero|z|stage)_?([0-3])(?![0-9])", name.lower()):
        out.notes.append(f"ZeRO stage {said[1]}: by the name of {name}, which is not there")
        return int(said[1])
    raise InputError(f"{a.label('deepspeed')} {name}: is not there; put it beside the file")


def _batch(a: Arguments, out: Launch) -> None:
    out.run["micro_batch"] = a.whole("per_device_train_batch_size", "micro_batch_size", becomes="micro_batch", low=1)
    passes = a.whole(
        "gradient_accumulation_steps", "deepspeed_config.gradient_accumulation_steps", becomes="global_batch", low=1
    )
    out.run["passes"] = passes or 1
    out.run["seq"] = a.whole(
        "cutoff_len", "sequence_len", "max_seq_length", "model_max_length", "max_length", becomes="seq", low=1
    )
    steps = a.number("max_steps", becomes="tokens")
    out.steps = int(steps) if steps and steps > 0 else None
    for name, key in (
        ("tensor_parallel_size", "tp"),
        ("context_parallel_size", "cp"),
        ("sequence_parallel_degree", "cp"),
        ("sequence_parallel_size", "cp"),
    ):
        if (width := a.whole(name, becomes=f"plan.{key}", low=1)) and width > 1:
            out.plan[key] = width
    out.notes.append("every sequence is as long as the limit: shorter ones, padded or packed, are not told apart")


def _switches(a: Arguments, out: Launch) -> None:
    on = {"true": True, "auto": True, "full": True, "false": False, "no": False}
    bf16 = a.choice("bf16", table=on, becomes="precision")
    fp16 = a.choice("fp16", table=on, becomes="precision")
    a.raw("pure_bf16", "tf32", becomes="nothing: master weights in fp32")
    mixed = a.choice(
        "mixed_precision", table={"bf16": "bf16", "fp16": "fp16", "fp8": "fp8", "no": None}, becomes="precision"
    )
    out.run["precision"] = mixed or ("bf16" if bf16 else "fp16" if fp16 else None)
    # LLaMA-Factory recomputes unless told otherwise, the Trainer itself does not
    again = a.has(*_LLAMA_FACTORY) and not a.flag("disable_gradient_checkpointing", becomes="recompute")
    if a.has("gradient_checkpointing"):
        again = bool(a.choice("gradient_checkpointing", table={**on, "unsloth": True}, becomes="recompute"))
    again |= a.flag("fsdp_config.fsdp_activation_checkpointing", becomes="recompute")
    out.run["recompute"] = "full" if again else "none"
    if a.flag("enable_liger_kernel", "use_liger_kernel", "liger_fused_linear_cross_entropy", becomes="options.loss"):
        out.options["loss"] = "liger"
    kinds: dict[str, Any] = dict.fromkeys(("sdpa", "auto", "disabled", "flex", "xformers")) | {"eager": "unfused"}
    kinds |= dict.fromkeys(("flash", "fa2", "fa3", "flash_attention_2"), "flash")
    kind = a.choice("attention", "attn_implementation", "flash_attn", table=kinds, becomes="options.attention")
    if a.flag("flash_attention", becomes="options.attention") or kind:
        out.options["attention"] = kind or "flash"
    if a.flag("torch_compile", becomes="options.fusion"):
        out.options["fusion"] = "compiled"
    optimizers = dict.fromkeys(_ADAM, "adam") | {"muon": "muon"}
    if (optimizer := a.choice("optim", "optimizer", table=optimizers, becomes="options.optimizer")) is not None:
        out.options["optimizer"] = optimizer
    for name in ("plugins", "liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_layer_norm"):
        a.raw(name, becomes="nothing")
