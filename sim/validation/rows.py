"""A measured run in the documented row schema (`data/published_runs/schema.json`) → the objects that predict it.

Missing optional fields take the defaults below, and each default used is named in `Row.assumptions`:
precision bf16; micro_batch 1; dp fills the chips; recompute none where that fits the chip, else full; schedule 1f1b
(interleaved when vpp > 1); zero 1 when dp > 1 in Megatron-like stacks, 3 in FSDP-like ones; TFLOPS and MFU count the causal half of attention; a chip without a
cluster gets the cluster in data/clusters built on it, or nodes of 8 behind a switch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.base.row_kinds import HOLDOUT, row_kind
from sim.cost.stacks import Stack, resolve, with_changes
from sim.scenario.options import (
    FLOPS,
    clean_options,
    clean_plan,
    clean_recompute,
    clean_schedule,
    rename,
)
from sim.spec.hardware import Cluster, chip_from, cluster_for_chip, cluster_from
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model
from sim.spec.plan import Plan, Workload, check

QUANTITIES = (
    "seconds_per_step",
    "tokens_per_s_per_chip",
    "tokens_per_s",
    "tflops_per_chip",
    "mfu",
    "bubble",
    "memory_gib",
)
_STACK_OPTIONS = (
    "attention",
    "fusion",
    "loss",
    "dropout",
    "node_limited",
    "dedup",
    "graphs",
    "bf16_grads",
    "accumulate_fused",
)
_PLAN_OPTIONS = (
    "hsdp",
    "optimizer",
    "recompute_layers",
    "stages",
    "overlap_grad_reduce",
    "overlap_param_gather",
    "overlap_tp",
    "overlap_p2p",
    "overlap_all_to_all",
    "precision_aware_optimizer",
    "zero",
    "recompute_modules",
)
_WORK_OPTIONS = ("causal", "imbalance", "mtp", "window")
_KEYS = (
    "id",
    "kind",
    "chip",
    "cluster",
    "chips",
    "model",
    "plan",
    "schedule",
    "micro_batch",
    "global_batch",
    "global_tokens",
    "seq",
    "precision",
    "recompute",
    "options",
    "stack",
    "measured",
    "assumed",
    "reason",
    "note",
    "source",
)
# Words people use → ours.
WORDS = {
    "gpus": "chips",
    "npus": "chips",
    "num_gpus": "chips",
    "devices": "chips",
    "mbs": "micro_batch",
    "micro_batch_size": "micro_batch",
    "gbs": "global_batch",
    "global_batch_size": "global_batch",
    "batch": "global_batch",
    "seq_len": "seq",
    "sequence": "seq",
    "seq_length": "seq",
    "sequence_length": "seq",
    "dtype": "precision",
    "framework": "stack",
    "name": "id",
    "parallel": "plan",
    "parallelism": "plan",
    "recomputation": "recompute",
    "activation_recompute": "recompute",
    "gpu": "chip",
    "accelerator": "chip",
}
MEASURED_WORDS = {
    "step_time": "seconds_per_step",
    "iteration_s": "seconds_per_step",
    "seconds_per_iteration": "seconds_per_step",
    "s_per_iteration": "seconds_per_step",
    "iteration_time": "seconds_per_step",
    "tokens_per_s_per_gpu": "tokens_per_s_per_chip",
    "tokens_per_s_per_npu": "tokens_per_s_per_chip",
    "tflops_per_gpu": "tflops_per_chip",
    "tflops": "tflops_per_chip",
    "bubble_fraction": "bubble",
    "peak": "peak_tflops",
}


@dataclass(frozen=True)
class Row:
    """One run, ready to predict. `reason` is set when it is listed but not scored."""

    id: str
    kind: str
    quantity: str
    measured: float
    flops: str
    peak_flops: float | None
    model: ModelSpec | None
    cluster: Cluster | None
    plan: Plan | None
    workload: Workload | None
    precision: str
    stack: Stack | None
    assumptions: tuple[str, ...]
    reason: str = ""
    source: str = ""

    @property
    def chip(self) -> str:
        return self.cluster.chip.name if self.cluster else ""


def _number(value: object, name: str) -> float:
    try:
        number = float(str(value).replace(",", "").replace("%", "e-2"))
    except ValueError:
        raise InputError(f"{name}={value!r}: must be a number; give for example {name}: 1.5") from None
    if not 0 < number < 1e30:
        raise InputError(f"{name}={value!r}: must be a positive finite number")
    return number


def _count(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or not 1 <= value <= 10**8:
        raise InputError(f"{name}={value!r}: must be a whole number from 1 to 100,000,000")
    return int(value)


def parse(given: Mapping, number: int = 0) -> Row:
    """One mapping of the schema → `Row`.

    Raises:
        InputError: what is wrong with the row, in one line that names it.
    """
    if not isinstance(given, Mapping):
        raise InputError(
            f"row {number}: {given!r} is not a mapping; see {datafiles.where('published_runs', 'schema.json')}"
        )
    name = str(given.get("id", f"row {number}"))
    try:
        return _parse(given, name)
    except InputError as error:
        raise InputError(f"row {name}: {error}") from None


def _parse(given: Mapping, name: str) -> Row:
    given = rename(given, WORDS, _KEYS, "")
    name = str(given.get("id", name))
    kind = row_kind(given.get("kind", HOLDOUT))
    listed = given.get("assumed") or ()
    assumed = [str(text) for text in (listed if isinstance(listed, (list, tuple)) else [listed])]
    measured = given.get("measured") or {}
    if not isinstance(measured, Mapping):
        raise InputError("measured: must be a mapping such as {seconds_per_step: 1.42}")
    measured = rename(measured, MEASURED_WORDS, (*QUANTITIES, "peak_tflops", "linearity", "flops"), "measured: ")
    quantity, value = next(((q, _number(measured[q], q)) for q in QUANTITIES if measured.get(q) is not None), ("", 0.0))
    source = str(given.get("source", ""))
    if kind == "unsupported":
        return Row(
            name,
            kind,
            quantity,
            value,
            "",
            None,
            None,
            None,
            None,
            None,
            str(given.get("precision", "")),
            None,
            tuple(assumed),
            str(given.get("reason", "not complete")),
            source,
        )
    if not quantity:
        raise InputError(f"measured has none of {', '.join(QUANTITIES)}; give the one that was measured")
    options = clean_options(given.get("options") or {})
    if given.get("model") is None:
        raise InputError(
            "has no model; give a name, a Hugging Face config or plain dimensions (layers, hidden, heads …)"
        )
    model = load_model(given["model"])
    seq = given.get("seq")
    if seq is None:
        seq = min(model.max_seq, 4096)
        assumed.append(f"sequence of {seq}")
    seq = _count(seq, "seq")
    precision = str(given.get("precision") or "")
    if not precision:
        precision = "bf16"
        assumed.append("precision bf16")
    if precision not in ("bf16", "fp16", "fp8", "int8", "fp4", "fp32"):
        raise InputError(
            f"precision {precision!r}: not one of bf16, fp16, fp8{nearest(precision, ('bf16', 'fp16', 'fp8'))}"
        )
    if precision not in ("bf16", "fp16", "fp8"):
        return Row(
            name,
            "unsupported",
            quantity,
            value,
            "",
            None,
            model,
            None,
            None,
            None,
            precision,
            None,
            tuple(assumed),
            f"training in {precision} is not simulated",
            source,
        )
    plan_keys = clean_plan(given.get("plan") or {})
    plan_keys_given = bool(plan_keys)
    cluster, chips = _cluster(given, plan_keys, assumed)
    stack, notes = resolve(given.get("stack"), cluster.chip)
    assumed += notes
    changes = {key: options[key] for key in _STACK_OPTIONS if key in options}
    if changes.get("attention") == "flash":
        changes.pop("attention")
        if stack.attention == "unfused":
            changes["attention"] = "auto"
    stack = with_changes(stack, **changes) if changes else stack
    plan = _plan(given, plan_keys, options, chips, stack, model, assumed)
    batch = given.get("global_batch")
    if batch is None and given.get("global_tokens") is not None:
        batch = max(1, round(_number(given["global_tokens"], "global_tokens") / seq))
    if batch is None:
        batch = plan.dp * plan.micro_batch * (4 * plan.pp if plan.pp > 1 else 1)
        assumed.append(f"global batch of {batch} sequences")
    batch = _count(batch, "global_batch")
    per = plan.dp * plan.micro_batch
    if batch % per:
        near = max(per, round(batch / per) * per)
        assumed.append(f"global batch {batch} taken as {near}: a multiple of dp × micro-batch")
        batch = near
    imbalance = options.get("imbalance")
    work = Workload(
        batch,
        seq,
        causal=bool(options.get("causal", True)),
        imbalance=None if imbalance is None else _number(imbalance, "imbalance"),
        mtp=bool(options.get("mtp", True)),
        window=bool(options.get("window", True)),
    )
    plan = _fitting(plan, given, plan_keys_given, model, cluster, work, precision, stack, assumed)
    flops, peak = str(measured.get("flops", "")), None
    if quantity in ("tflops_per_chip", "mfu"):
        if not flops:
            flops = "model"
            assumed.append("FLOPs count the causal half of attention")
        elif flops not in FLOPS:
            raise InputError(f"measured flops {flops!r}: not one of {', '.join(FLOPS)}{nearest(flops, FLOPS)}")
        if quantity == "mfu":
            if measured.get("peak_tflops") is None:
                peak = cluster.chip.peak("bf16").value
                assumed.append(f"MFU against {peak / 1e12:.0f} TFLOPS")
            else:
                peak = _number(measured["peak_tflops"], "peak_tflops") * 1e12
    return Row(
        name,
        kind,
        quantity,
        value,
        flops,
        peak,
        model,
        cluster,
        plan,
        work,
        precision,
        stack,
        tuple(assumed),
        "",
        source,
    )


def _cluster(given: Mapping, plan: Mapping, assumed: list[str]) -> tuple[Cluster, int]:
    product = 1
    for key in ("tp", "pp", "dp", "cp"):
        product *= int(plan.get(key, 1) or 1)
    chips = given.get("chips")
    if given.get("cluster") is not None:
        cluster = cluster_from(given["cluster"])
        if given.get("chip") is not None:
            cluster = dataclasses.replace(cluster, chip=chip_from(given["chip"]))
    else:
        if given.get("chip") is None:
            raise InputError("has neither cluster nor chip; give one of them")
        cluster = cluster_for_chip(given["chip"])
        assumed.append(f"nodes and network: {cluster.name}")
    if chips is None:
        chips = product
        assumed.append(f"{chips} chips: the product of the plan")
    return cluster, _count(chips, "chips")


def _plan(
    given: Mapping, keys: dict, options: Mapping, chips: int, stack: Stack, model: ModelSpec, assumed: list[str]
) -> Plan:
    if not keys:
        assumed.append("plan: data parallelism alone")
    if "dp" not in keys:
        rest = int(keys.get("tp", 1)) * int(keys.get("pp", 1)) * int(keys.get("cp", 1))
        if chips < rest:
            raise InputError(
                f"chips={chips}: fewer than tp × pp × cp = {rest}; give at least {rest} chips or a smaller plan"
            )
        keys["dp"] = chips // rest
    values = {key: options[key] for key in _PLAN_OPTIONS if options.get(key) is not None}
    if options.get("optimizer_offload"):
        values["offload"] = True
    if "expert_tp" in options:
        keys["etp"] = options["expert_tp"]
    if options.get("fsdp"):
        values["zero"] = 3
    elif options.get("distributed_optimizer"):
        values.setdefault("zero", 1)
    if "zero" not in values:
        values["zero"] = (3 if stack.fsdp else 1) if keys["dp"] > 1 else 0
        if keys["dp"] > 1:
            assumed.append(f"ZeRO stage {values['zero']}")
    if "sequence_parallel" in options:
        keys["sp"] = bool(options["sequence_parallel"])
    for key in ("stages", "recompute_modules"):
        if isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    if model.experts and int(keys.get("tp", 1)) > 1 and "etp" not in keys:
        # Megatron's default is the tensor-parallel width; with expert parallelism, releases fold it away
        keys["etp"] = int(keys["tp"]) if int(keys.get("ep", 1)) == 1 else 1
        assumed.append(f"expert tensor parallelism {keys['etp']}")
    micro = given.get("micro_batch")
    if micro is None:
        assumed.append("micro-batch 1")
    recompute = given.get("recompute", None)
    if recompute is None:
        recompute = "none"
    recompute = clean_recompute(recompute)
    if isinstance(recompute, Mapping):
        values["recompute_layers"], recompute = recompute.get("layers"), recompute["kind"]
    schedule = clean_schedule(given.get("schedule") or ("interleaved" if int(keys.get("vpp", 1)) > 1 else "1f1b"))
    if schedule == "interleaved" and int(keys.get("vpp", 1)) == 1:
        schedule = "1f1b"
    return Plan(
        **keys,
        schedule=schedule,
        micro_batch=_count(1 if micro is None else micro, "micro_batch"),
        recompute=recompute,
        **values,
    )


def _fitting(
    plan: Plan,
    given: Mapping,
    planned: bool,
    model: ModelSpec,
    cluster: Cluster,
    work: Workload,
    precision: str,
    stack: Stack,
    assumed: list[str],
) -> Plan:
    """What a row leaves open is chosen so that the run fits its chip: recomputation, and ZeRO-3 where no plan is given.

    The memory estimate must be over by a tenth before it overrules the default.
    """
    from sim.cost.memory import peak

    def over(candidate: Plan) -> bool:
        return peak(model, candidate, work, precision, stack).total_bytes > 1.1 * cluster.chip.memory_bytes.value

    try:
        check(plan, model, work)
    except InputError:
        return plan  # reported when it is predicted
    if not planned and plan.zero < 3 and plan.dp > 1 and over(plan):
        plan = dataclasses.replace(plan, zero=3)
        assumed.append("ZeRO stage 3 in place of 1: it would not fit otherwise")
    if given.get("recompute") is None:
        if plan.recompute == "none" and over(plan) and not over(dataclasses.replace(plan, recompute="full")):
            plan = dataclasses.replace(plan, recompute="full")
            assumed.append("full recomputation: it would not fit otherwise")
        else:
            assumed.append("no recomputation")
    return plan
