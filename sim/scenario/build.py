"""From what a file says of a training run to the run itself: the one builder of scenarios and of published rows.

    spec = read_run(RUN.read(mapping, "my.yaml"), "my.yaml")      # names become objects
    run = build_run(spec)                                         # what the file leaves open is filled in, and said

Defaults, each named in `Run.defaults_used`: precision bf16; micro-batch 1; dp fills the chips; schedule 1f1b
(interleaved when vpp > 1); ZeRO 1 when dp > 1 in Megatron-like stacks, 3 in FSDP-like ones; a chip without a cluster
gets the cluster in data/clusters built on it, or nodes of 8 behind a switch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minglm.errors import InputError
from sim.cost.memory import peak
from sim.cost.stacks import Stack, resolve, with_changes
from sim.scenario.fields import PLAN_OPTIONS, STACK_OPTIONS, WORKLOAD_OPTIONS, Recompute
from sim.spec.hardware import Cluster, chip_from, cluster_for_chip, cluster_from
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model
from sim.spec.plan import Plan, Workload, check, stages_with_ends

TRAINED_PRECISIONS = ("bf16", "fp16", "fp8")
_OVER = 1.1  # the memory estimate must be over by a tenth before it overrules a default
_PRODUCT = ("tp", "pp", "cp", "dp")  # whose product is the chips of a plan
# Options of the plan that are not a field of `Plan` by the same name.
ENDS = ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")  # of stages, in other words
_NOT_FIELDS = ("sequence_parallel", "distributed_optimizer", "fsdp", "expert_tp", "optimizer_offload", *ENDS)


@dataclass(frozen=True)
class RunSpec:
    """A training run as a file tells it. None, or a key that is not there: the file does not say.

    cluster: as many chips as there are for the plan, unless `chips_assumed`: then as many as the plan's product.
    cluster_assumed: only a chip was named.
    """

    model: ModelSpec
    cluster: Cluster
    cluster_assumed: bool = False
    chips_assumed: bool = False
    plan: Mapping[str, Any] = field(default_factory=dict)
    schedule: str | None = None
    micro_batch: int | None = None
    global_batch: int | None = None
    global_tokens: float | None = None
    seq: int | None = None
    precision: str | None = None
    recompute: Recompute | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    stack: str | None = None


@dataclass(frozen=True)
class Run:
    """A training run that can be costed: what is trained, on what, how it is laid out, by which software."""

    model: ModelSpec
    cluster: Cluster
    plan: Plan
    workload: Workload
    precision: str
    stack: Stack
    defaults_used: tuple[str, ...] = ()

    @property
    def spares(self) -> int:
        """Chips of the cluster that the plan does not use."""
        return self.cluster.num_chips - self.plan.num_chips


def read_run(values: Mapping[str, Any]) -> RunSpec:
    """The spec of a run from the values of `sim.scenario.fields.RUN`, read.

    Raises:
        InputError: no model, neither cluster nor chip, or a name that is not known.
    """
    if values.get("model") is None:
        raise InputError(
            "has no model; give a name, a Hugging Face config or plain dimensions (layers, hidden, heads …)"
        )
    cluster, assumed = read_cluster(values)
    read = {f.name for f in dataclasses.fields(RunSpec)} - {"model", "cluster", "cluster_assumed", "chips_assumed"}
    rest = {key: values[key] for key in read if key in values}
    return RunSpec(load_model(values["model"]), cluster, assumed, "chips" not in values, **rest)


def read_cluster(values: Mapping[str, Any]) -> tuple[Cluster, bool]:
    """(cluster of as many chips as are named, whether it had to be assumed from the chip)."""
    named, chip = values.get("cluster"), values.get("chip")
    if named is not None:
        cluster = cluster_from(named)
        cluster = cluster if chip is None else dataclasses.replace(cluster, chip=chip_from(chip))
    elif chip is not None:
        cluster = cluster_for_chip(chip)
    else:
        raise InputError("has neither cluster nor chip; name one, such as cluster: atlas_800t_a2")
    if values.get("chips") is not None:
        cluster = dataclasses.replace(cluster, num_chips=values["chips"])
    return cluster, named is None


def build_run(spec: RunSpec, *, completed: bool = False) -> Run:
    """The run that `spec` describes, checked.

    completed: the run is known to have run, as a published one is. What its source leaves open is chosen so that it
    fits its chips, and a plan that breaks a rule is told when it is predicted, not here.

    Raises:
        InputError: a plan that cannot run, more chips than there are, a precision that is not simulated.
    """
    notes: list[str] = []
    seq = spec.seq
    if seq is None:
        seq = min(spec.model.max_seq, 4096)
        notes.append(f"sequence of {seq}")
    precision = spec.precision
    if precision is None:
        precision = "bf16"
        notes.append("precision bf16")
    if precision not in TRAINED_PRECISIONS:
        known = ", ".join(TRAINED_PRECISIONS)
        raise InputError(f"precision {precision!r}: training is simulated in {known}; give one of them")
    if spec.cluster_assumed:
        notes.append(f"nodes and network: {spec.cluster.name}")
    if spec.chips_assumed:
        num_chips = math.prod(_width(spec, name) for name in _PRODUCT)
        spec = dataclasses.replace(spec, cluster=dataclasses.replace(spec.cluster, num_chips=num_chips))
        notes.append(f"{num_chips} chips: the product of the plan")
    stack, stack_notes = resolve(spec.stack, spec.cluster.chip)
    notes += stack_notes
    stack = stack_with(stack, spec.options)
    plan = build_plan(spec, stack, notes)
    workload = _workload(spec, plan, seq, notes)
    if not completed or plan.num_chips > spec.cluster.num_chips:
        check(plan, spec.model, workload, spec.cluster.num_chips)
    if completed:
        plan = _fitting(spec, plan, workload, precision, stack, notes)
    return Run(spec.model, spec.cluster, plan, workload, precision, stack, tuple(notes))


def _width(spec: RunSpec, name: str) -> int:
    return int(spec.plan.get(name, 1))


def stack_with(stack: Stack, options: Mapping[str, Any]) -> Stack:
    """The stack with what `options` say of the software."""
    changes = {one.name: options[one.name] for one in STACK_OPTIONS if one.name in options}
    if changes.get("attention") == "flash":  # says no more than: not unfused
        changes.pop("attention")
        if stack.attention == "unfused":
            changes["attention"] = "auto"
    return with_changes(stack, **changes) if changes else stack


def build_plan(spec: RunSpec, stack: Stack, notes: list[str]) -> Plan:
    """The plan of a spec on its cluster; what is filled in is added to `notes`.

    Raises:
        InputError: fewer chips than tp × pp × cp, or a value that no plan can have.
    """
    if not spec.plan:
        notes.append("plan: data parallelism alone")
    if spec.plan.get("auto"):
        raise InputError("plan auto: what ran has a plan; give its widths, such as plan: {tp: 8, pp: 4}")
    widths, options = {k: v for k, v in spec.plan.items() if k != "auto"}, spec.options
    if "dp" not in widths:
        inner = math.prod(_width(spec, name) for name in _PRODUCT)
        if spec.cluster.num_chips < inner:
            _check_alone(spec, stack)
            raise InputError(
                f"chips={spec.cluster.num_chips:,}: fewer than tp × pp × cp = {inner:,}; give at least {inner:,} chips "
                "or a smaller plan"
            )
        widths["dp"] = spec.cluster.num_chips // inner  # the rest is spare
    if "expert_tp" in options:
        widths["etp"] = options["expert_tp"]
    if "sequence_parallel" in options:
        widths["sp"] = options["sequence_parallel"]
    if spec.model.experts and widths.get("tp", 1) > 1 and "etp" not in widths:
        # Megatron's default is the tensor-parallel width; with expert parallelism, releases fold it away
        widths["etp"] = widths["tp"] if widths.get("ep", 1) == 1 else 1
    switches = _plan_switches(spec, widths["dp"], stack, notes)
    if "etp" in widths and "etp" not in spec.plan and "expert_tp" not in options:
        notes.append(f"expert tensor parallelism {widths['etp']}")
    switches |= stages_of(options, widths, spec.model.layers)
    if spec.micro_batch is None:
        notes.append("micro-batch 1")
    recompute = spec.recompute or Recompute("none")
    if recompute.layers is not None:
        switches["recompute_layers"] = recompute.layers
    interleaved = widths.get("vpp", 1) > 1
    schedule = spec.schedule or ("interleaved" if interleaved else "1f1b")
    if schedule == "interleaved" and not interleaved:
        schedule = "1f1b"
    return Plan(**widths, schedule=schedule, micro_batch=spec.micro_batch or 1, recompute=recompute.kind, **switches)


def _check_alone(spec: RunSpec, stack: Stack) -> None:
    """Refuse what the model rules out on any number of chips, so that whoever gets more does not meet it then.

    Raises:
        InputError: widths that one replica of the model cannot have.
    """
    widths = {**spec.plan, "dp": spec.plan.get("ep", 1)}  # experts lie over replicas
    plan = build_plan(dataclasses.replace(spec, plan=widths), stack, [])
    enough = plan.dp * plan.micro_batch * 4 * plan.pp * plan.vpp  # micro-batches for any schedule
    check(plan, spec.model, Workload(enough, spec.seq or min(spec.model.max_seq, 4096)))


def plan_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names of `Plan`'s fields."""
    out = {one.name: options[one.name] for one in PLAN_OPTIONS if one.name in options}
    for name in _NOT_FIELDS:
        out.pop(name, None)
    if "optimizer_offload" in options:
        out["offload"] = options["optimizer_offload"]
    if "expert_tp" in options:
        out["etp"] = options["expert_tp"]
    if "sequence_parallel" in options:
        out["sp"] = options["sequence_parallel"]
    for name in ("stages", "recompute_modules"):
        if name in out:
            out[name] = tuple(out[name])
    if options.get("fsdp"):
        out["zero"] = 3
    elif options.get("distributed_optimizer"):
        out.setdefault("zero", 1)
    return out


def _plan_switches(spec: RunSpec, dp: int, stack: Stack, notes: list[str]) -> dict[str, Any]:
    """Options that are fields of `Plan`, ZeRO filled in."""
    switches = {k: v for k, v in plan_options(spec.options).items() if k not in ("etp", "sp")}
    if "zero" not in switches:
        switches["zero"] = 0 if dp == 1 else 3 if stack.fsdp else 1
        if dp > 1:
            notes.append(f"ZeRO stage {switches['zero']}")
    return switches


def _workload(spec: RunSpec, plan: Plan, seq: int, notes: list[str]) -> Workload:
    if spec.global_batch is not None and spec.global_tokens is not None:
        raise InputError("global_batch and global_tokens are both given; keep one")
    replicas_take = plan.dp * plan.micro_batch  # sequences that all replicas take at a time
    batch = spec.global_batch
    if spec.global_tokens is not None:  # the nearest batch that the replicas share evenly
        batch = max(1, round(spec.global_tokens / seq / replicas_take)) * replicas_take
    elif batch is None:
        batch = replicas_take * (4 * plan.pp if plan.pp > 1 else 1)
        notes.append(f"global batch of {batch} sequences")
    if batch % replicas_take:
        near = max(replicas_take, round(batch / replicas_take) * replicas_take)
        notes.append(f"global batch {batch} taken as {near}: a multiple of dp × micro-batch")
        batch = near
    return Workload(batch, seq, **workload_options(spec.options))


def workload_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are fields of `Workload`.

    Raises:
        InputError: two options that contradict each other.
    """
    out = {one.name: options[one.name] for one in WORKLOAD_OPTIONS if one.name in options}
    if "imbalance" in out and "capacity_factor" in out:
        raise InputError("options imbalance and capacity_factor: a capacity says the busiest rank's rows; keep one")
    return out


def stages_of(options: Mapping[str, Any], widths: Mapping[str, Any], layers: int) -> dict[str, tuple[int, ...]]:
    """`stages` where options give the layers of the first or the last pipeline rank, else nothing.

    Raises:
        InputError: stages beside them, no pipeline width, or layers that do not split so.
    """
    first, last = map(options.get, ENDS)
    if first is None and last is None:
        return {}
    if "stages" in options or not isinstance(widths.get("pp"), int):
        why = "stages are given too; keep one" if "stages" in options else "needs a pipeline width; give plan.pp"
        raise InputError(f"options {ENDS[0]}, {ENDS[1]}: {why}")
    return {"stages": stages_with_ends(layers, widths["pp"], widths.get("vpp", 1), first, last)}


def _fitting(spec: RunSpec, plan: Plan, workload: Workload, precision: str, stack: Stack, notes: list[str]) -> Plan:
    """What a published run leaves open, chosen so that it fits: recomputation, and ZeRO-3 where no plan is given."""
    capacity = _OVER * spec.cluster.chip.memory_bytes.value

    def too_large(candidate: Plan) -> bool:
        return peak(spec.model, candidate, workload, precision, stack).total_bytes > capacity

    try:
        check(plan, spec.model, workload)
    except InputError:
        return plan  # reported when it is predicted
    if not spec.plan and plan.zero < 3 and plan.dp > 1 and too_large(plan):
        plan = dataclasses.replace(plan, zero=3)
        notes.append("ZeRO stage 3 in place of 1: it would not fit otherwise")
    if spec.recompute is None:
        if plan.recompute == "none" and too_large(plan) and not too_large(dataclasses.replace(plan, recompute="full")):
            plan = dataclasses.replace(plan, recompute="full")
            notes.append("full recomputation: it would not fit otherwise")
        else:
            notes.append("no recomputation")
    return plan
