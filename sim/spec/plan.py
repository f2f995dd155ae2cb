"""A parallel plan: how a model and a batch are laid over chips, and whether that is possible.

    >>> plan = Plan(tp=8, pp=8, vpp=3, schedule="interleaved", dp=1, micro_batch=1)
    >>> plan.num_chips
    64

Rank order, inner to outer: TP, CP, (EP within) DP, PP, as Megatron-Core's default `tp-cp-ep-dp-pp`. Expert-parallel
groups are folded over TP × CP × DP (Megatron-Core "parallel folding", arXiv 2504.14960): ep × etp must divide tp × cp ×
dp.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minglm.errors import InputError, nearest
from sim.spec.model import ModelSpec

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe", "dualpipe-v")
RECOMPUTE = ("none", "selective", "selective_ops", "full")
OFFLOADED = ("none", "full")  # kinds of recomputation with which activations may wait in host memory
OPTIMIZERS = ("adam", "muon")
# Megatron-Core's names of parts that can be run again on their own → operators of sim/cost/operators.py
RECOMPUTE_MODULES = {
    "mla_up_proj": ("q_b", "kv_b"),
    "norm": ("norm",),
    "layernorm": ("norm",),
    "moe_act": ("expert activation",),
    "mlp": ("ffn up", "activation", "ffn down"),
    "core_attn": ("flash", "scores", "softmax", "values"),
    "moe": (
        *("router", "routing", "permute", "experts up", "expert activation", "experts down", "expert bias"),
        *("unpermute", "shared up", "shared activation", "shared down"),
    ),
    "shared_experts": ("shared up", "shared activation", "shared down"),
}
SWITCHES = (
    "sp",
    "offload",
    "activation_offload",
    "overlap_grad_reduce",
    "overlap_param_gather",
    "overlap_tp",
    "overlap_p2p",
    "overlap_all_to_all",
    "precision_aware_optimizer",
)
_TWO_CHUNKS = ("zb-v", "dualpipe", "dualpipe-v")


@dataclass(frozen=True)
class Workload:
    """What a step trains on. `seq` in tokens, `global_batch` in sequences."""

    global_batch: int
    seq: int
    causal: bool = True
    imbalance: float | None = None  # slowest expert rank's tokens / mean; None takes the stack's value
    capacity_factor: float | None = None  # rows an expert takes over the mean: more are dropped, fewer padded
    mtp: bool = True  # train the multi-token prediction modules that the model has
    window: bool = True

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.global_batch * self.seq

    @property
    def busiest(self) -> float | None:
        """Rows of the slowest expert rank / mean; None takes the stack's value."""
        return self.imbalance if self.capacity_factor is None else self.capacity_factor


def stages_with_ends(layers: int, pp: int, vpp: int, first: int | None, last: int | None) -> tuple[int, ...]:
    """Layers of each chunk in model order where the first and the last pipeline rank hold `first` and `last` of them
    and the others the rest in equal parts (Megatron-Core's decoder_first_pipeline_num_layers).

    Raises:
        InputError: layers that do not split so, in one line.
    """
    if (per := _ranks_with_ends(layers, pp, vpp, first, last)) is not None:
        return tuple(n // vpp for _ in range(vpp) for n in per)
    end, given = ("last", last) if first is None else ("first", first)
    ends = [(n, last) if end == "first" else (first, n) for n in range(vpp, layers + 1, vpp)]
    fits = [
        n for n, pair in zip(range(vpp, layers + 1, vpp), ends, strict=True) if _ranks_with_ends(layers, pp, vpp, *pair)
    ]
    nearest_fit = min(fits, key=lambda n: abs(n - (given or 0)), default=None)
    said = f"use decoder_{end}_pipeline_num_layers={nearest_fit}, or give stages" if fits else "give stages"
    raise InputError(
        f"decoder_{end}_pipeline_num_layers={given}: {layers} layers do not split over {pp} stages of {vpp} chunks so "
        f"that the others have equal parts; {said}"
    )


def _ranks_with_ends(layers: int, pp: int, vpp: int, first: int | None, last: int | None) -> list[int] | None:
    """Layers of each pipeline rank; None where they do not split so."""
    inner = pp - (first is not None) - (last is not None)
    rest = layers - (first or 0) - (last or 0)
    per = [rest // inner if inner > 0 else 0] * pp
    per[0] = per[0] if first is None else first
    per[-1] = per[-1] if last is None else last
    return per if sum(per) == layers and not any(n % vpp or n < 0 for n in per) else None


# A plan is complete with these; what else it has is off, or as the software has it.
WIDTHS = ("tp", "pp", "dp", "cp", "ep", "etp", "vpp", "schedule", "micro_batch", "zero", "recompute")


@functools.lru_cache(maxsize=1024)
def chunk_numbers(schedule: str, pp: int, vpp: int) -> tuple[tuple[int, ...], ...]:
    """Model-order numbers of the chunks that each pipeline rank holds."""
    if schedule in ("dualpipe-v", "zb-v"):
        return tuple((rank, 2 * pp - 1 - rank) for rank in range(pp))
    if schedule == "dualpipe":
        return tuple((rank, pp - 1 - rank) for rank in range(pp))  # two copies of the model, fed from both ends
    return tuple(tuple(v * pp + rank for v in range(vpp)) for rank in range(pp))


@dataclass(frozen=True)
class Plan:
    """Widths of each kind of parallelism and the switches that change time or memory.

    zero: 0 replicated, 1 optimiser states, 2 + gradients, 3 + parameters sharded over DP (FSDP is 3).
    recompute: none; selective (core attention again); selective_ops (all but every second matmul again, PyTorch's
    selective activation checkpointing); full (the whole layer again), for `recompute_layers` layers of each rank or
    all.
    stages: layers of each chunk in model order (pp × vpp entries); None divides evenly, ends lighter.
    None in a switch takes the software stack's default.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    sp: bool | None = None
    vpp: int = 1
    schedule: str = "1f1b"
    micro_batch: int = 1
    zero: int = 0
    hsdp: int = 0  # ZeRO shards inside groups of this many ranks (0: over all of DP)
    recompute: str = "none"
    recompute_layers: int | None = None
    recompute_modules: tuple[str, ...] = ()  # small parts run again beside `recompute`; see RECOMPUTE_MODULES
    offload: bool = False  # optimiser states in host memory
    activation_offload: bool = False  # what a layer keeps for its backward pass waits in host memory
    stages: tuple[int, ...] | None = None
    mtp_before_head: int = 0  # chunks between the prediction depths' layers and the last chunk, which has all heads
    optimizer: str = "adam"
    overlap_grad_reduce: bool | None = None
    overlap_param_gather: bool | None = None
    overlap_tp: bool | None = None
    overlap_p2p: bool | None = None
    overlap_all_to_all: bool | None = None
    precision_aware_optimizer: bool = False  # bf16 moments and gradients, fp32 master weights kept as the low half

    def __post_init__(self) -> None:
        self._check_values()
        self._check_recompute_modules()
        if self.sp is None:
            object.__setattr__(self, "sp", self.tp > 1)
        if self.sp and self.tp == 1:
            object.__setattr__(self, "sp", False)
        if self.schedule in _TWO_CHUNKS and self.vpp == 1:
            object.__setattr__(self, "vpp", 2)
        if self.schedule in _TWO_CHUNKS and self.vpp != 2:
            raise InputError(
                f"vpp={self.vpp}: schedule {self.schedule} has two chunks a rank, no more and no fewer; leave vpp "
                "out, or use schedule='interleaved'"
            )
        if self.schedule == "1f1b" and self.vpp > 1:
            object.__setattr__(self, "schedule", "interleaved")
        object.__setattr__(self, "recompute_modules", tuple(self.recompute_modules))
        if isinstance(self.stages, list):
            object.__setattr__(self, "stages", tuple(self.stages))

    def _check_values(self) -> None:
        for name in ("tp", "pp", "dp", "cp", "ep", "etp", "vpp", "micro_batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**7:
                raise InputError(
                    f"plan {name}={value!r}: must be a whole number from 1 to 10,000,000; give {name}: 1 or more"
                )
        for name, known in (("schedule", SCHEDULES), ("recompute", RECOMPUTE), ("optimizer", OPTIMIZERS)):
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"plan {name}={value!r}: not one of {', '.join(known)}{nearest(str(value), known)}")
        if self.zero not in (0, 1, 2, 3) or isinstance(self.zero, bool):
            raise InputError(f"plan zero={self.zero!r}: ZeRO has stages 0 to 3; give one of them")
        for name in SWITCHES:
            value = getattr(self, name)
            if value is not None and value is not True and value is not False:
                raise InputError(f"plan {name}={value!r}: must be true or false; give {name}: true")
        if self.activation_offload and self.recompute not in OFFLOADED:
            raise InputError(
                f"plan activation_offload: with recompute={self.recompute} is not simulated; set recompute=full"
            )
        ahead = self.mtp_before_head
        if isinstance(ahead, bool) or not isinstance(ahead, int) or not 0 <= ahead <= 10**6:
            raise InputError(
                f"plan mtp_before_head={ahead!r}: must be a number of chunks, 0 for with the head; give 0 or 1"
            )
        if isinstance(self.hsdp, bool) or not isinstance(self.hsdp, int) or not 0 <= self.hsdp <= 10**7:
            raise InputError(f"plan hsdp={self.hsdp!r}: must be a number of ranks, or 0 for all; give hsdp: 0")

    def _check_recompute_modules(self) -> None:
        if isinstance(self.recompute_modules, str) or not isinstance(self.recompute_modules, (list, tuple)):
            raise InputError(
                f"plan recompute_modules={self.recompute_modules!r}: must be a list; give recompute_modules: [norm]"
            )
        for module in self.recompute_modules:
            if module not in RECOMPUTE_MODULES:
                raise InputError(
                    f"plan recompute_modules: {module!r} is not one of {', '.join(RECOMPUTE_MODULES)}"
                    f"{nearest(str(module), RECOMPUTE_MODULES)}"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """From a mapping; an unknown key is refused with the nearest known one."""
        known = {f.name for f in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise InputError(
                    f"plan key {key!r}: not known{nearest(str(key), known)}; known: {', '.join(sorted(known))}"
                )
        return cls(**values)

    @property
    def num_chips(self) -> int:
        """Chips that the plan uses."""
        return self.tp * self.cp * self.pp * self.dp

    @property
    def expert_dp(self) -> int:
        """Copies of each expert shard within one pipeline stage."""
        return max(1, self.tp * self.cp * self.dp // (self.ep * self.etp))

    @property
    def zero_shards(self) -> int:
        """Ranks that ZeRO divides over (context-parallel ranks hold the same weights and take part)."""
        return min(self.hsdp, self.dp * self.cp) if self.hsdp else self.dp * self.cp

    def micro_batches(self, workload: Workload) -> int:
        """Micro-batches per replica and step."""
        return workload.global_batch // (self.dp * self.micro_batch)

    def chunk_layers(self, layers: int, mtp: int = 0) -> tuple[int, ...]:
        """Layers of each chunk in model order, `mtp` prediction depths riding on the last.

        Counts that divide are split evenly. Otherwise the embedding and the head count as a layer and each MTP depth as
        two, its layer and its own pass of the head, as published layouts do (Llama 3: first and last stage one lighter;
        DeepSeek-V3 recipes: `Et|(tt|)*30mL`, `Et*4|(t*4|)*14tmL`). What is still left over goes to the middle; a single
        layer to the first chunk, whose embedding weighs little.
        """
        if self.stages is not None:
            return self.stages
        n = self.pp if self.schedule == "dualpipe" else self.pp * self.vpp
        if self.mtp_before_head:  # the chunks behind the prediction depths hold heads alone
            units = layers + 1 + mtp
            most = n - self.mtp_before_head
            base, extra = divmod(units, most)
            sizes = [base + (i < extra) for i in range(most)]
            sizes[0] -= 1
            sizes[-1] -= mtp  # the same chunk where there is one
            while min(sizes) < 0:  # a chunk thinner than what rides on it
                sizes[sizes.index(min(sizes))] += 1
                sizes[sizes.index(max(sizes))] -= 1
            return (*sizes, *(0,) * self.mtp_before_head)
        if n == 1 or (layers % n == 0 and not mtp):
            return (layers // n,) * n
        base, extra = divmod(layers + 2 + 2 * mtp, n)
        out = [base] * n
        first = (n - extra) // 2 if extra > 1 else 0
        for i in range(first, first + extra):
            out[i] += 1
        owed = 0
        for end, units in ((0, 1), (n - 1, 1 + 2 * mtp)):
            taken = min(units, out[end])
            out[end] -= taken
            owed += units - taken
        while owed:  # what rides on an end weighs more than its chunk: the fullest give a layer each
            for i in sorted(range(n), key=lambda i: -out[i])[:owed]:
                if out[i]:
                    out[i] -= 1
                    owed -= 1
        return tuple(out)

    def chunks_of_rank(self, rank: int) -> tuple[int, ...]:
        """Model-order chunk numbers that a pipeline rank holds."""
        return chunk_numbers(self.schedule, self.pp, self.vpp)[rank]

    def dp_stride(self) -> int:
        """Chips between neighbours of a data-parallel group."""
        return self.tp * self.cp

    def pp_stride(self) -> int:
        """Chips between neighbours of a pipeline."""
        return self.tp * self.cp * self.dp


def check(plan: Plan, model: ModelSpec, workload: Workload, cluster_chips: int | None = None) -> None:
    """Refuse a plan that cannot run, with the number that breaks the rule and one that would not.

    Raises:
        InputError: one line.
    """
    if workload.seq < 1 or workload.global_batch < 1:
        raise InputError(f"global_batch={workload.global_batch}, seq={workload.seq}: both must be at least 1")
    _check_widths(plan, model, workload)
    _check_stages(plan, model)
    if cluster_chips is not None and plan.num_chips > cluster_chips:
        _refuse_size(plan, workload, cluster_chips)
    per, fewest = plan.dp * plan.micro_batch, _fewest_micro_batches(plan)
    if workload.global_batch % per:
        near = max(fewest * per, round(workload.global_batch / per) * per)
        raise InputError(
            f"global_batch={workload.global_batch}: not a multiple of dp × micro_batch = {plan.dp} × "
            f"{plan.micro_batch} = {per}; "
            f"use global_batch={near} or another dp"
        )
    if plan.ep > 1 or plan.etp > 1:
        _check_experts(plan, model)
    m = plan.micro_batches(workload)
    if m < fewest:
        other = "a smaller pp" if plan.schedule == "interleaved" else "schedule zb-h1"
        raise InputError(
            f"{m} micro-batches a replica: {plan.schedule} over pp={plan.pp} needs at least {fewest}; use "
            f"global_batch={fewest * per} or {other}"
        )
    if plan.schedule == "dualpipe" and m % 2:
        raise InputError(
            f"{m} micro-batches: dualpipe sends half from each end; use global_batch={(m + 1) * per} or "
            "schedule dualpipe-v"
        )


def _fewest_micro_batches(plan: Plan) -> int:
    """Micro-batches that the schedule needs to run at all."""
    if plan.pp == 1:
        return 1
    return {"interleaved": plan.pp, "dualpipe": 2 * plan.pp, "dualpipe-v": 2 * plan.pp, "zb-v": 2 * plan.pp - 1}.get(
        plan.schedule, 1
    )


def _refuse_size(plan: Plan, workload: Workload, chips: int) -> None:
    inner = plan.tp * plan.cp * plan.pp
    dp = _smaller_dp(plan, workload, chips // inner)
    remedies = [f"lower tp × cp × pp to at most {chips:,}"] if inner > chips else [f"lower dp to {dp}"] if dp else []
    raise InputError(
        f"plan needs {plan.num_chips:,} chips (TP {plan.tp} × CP {plan.cp} × PP {plan.pp} × DP {plan.dp}) but there "
        f"are {chips:,}; {' or '.join([*remedies, f'give {plan.num_chips:,} chips'])}"
    )


def _smaller_dp(plan: Plan, workload: Workload, most: int) -> int | None:
    """The largest dp of at most `most` that the batch and the experts divide over, with enough micro-batches."""
    batch, groups, fewest = workload.global_batch, plan.ep * plan.etp, _fewest_micro_batches(plan)
    return next(
        (
            dp
            for dp in range(min(most, max(1, batch // plan.micro_batch)), 0, -1)
            if batch % (dp * plan.micro_batch) == 0
            and batch // (dp * plan.micro_batch) >= fewest
            and plan.tp * plan.cp * dp % groups == 0
        ),
        None,
    )


def _heads_divide(model: ModelSpec, tp: int) -> bool:
    """Whether tensor-parallel ranks share queries' heads evenly, and keys' heads evenly or whole."""
    kv = model.kv_heads if model.attention == "gqa" else tp
    return model.heads % tp == 0 and (kv % tp == 0 or tp % kv == 0)


def _check_widths(plan: Plan, model: ModelSpec, workload: Workload) -> None:
    if not _heads_divide(model, plan.tp):
        right = next(tp for tp in range(min(plan.tp, model.heads), 0, -1) if _heads_divide(model, tp))
        what = (
            f"does not divide the model's {model.heads} attention heads"
            if model.heads % plan.tp
            else f"neither divides nor is divided by kv_heads={model.kv_heads}"
        )
        raise InputError(f"tp={plan.tp}: {what}; use tp={right}")
    if workload.seq % plan.cp:
        raise InputError(
            f"cp={plan.cp}: does not divide the sequence of {workload.seq}; use cp={_divisor(workload.seq, plan.cp)}"
        )


def _check_stages(plan: Plan, model: ModelSpec) -> None:
    n = plan.pp if plan.schedule == "dualpipe" else plan.pp * plan.vpp
    if n > model.layers + 2:
        raise InputError(
            f"pp={plan.pp} × vpp={plan.vpp} = {n} chunks: more than the model's {model.layers} layers; use pp × vpp "
            f"of at most {model.layers}"
        )
    ahead = plan.mtp_before_head
    if ahead >= n and ahead:
        raise InputError(f"mtp_before_head={ahead}: there are {n} chunks; use at most {n - 1}")
    if plan.stages is not None:
        behind = sum(plan.stages[n - ahead :]) if ahead and len(plan.stages) == n else 0
        if behind:
            raise InputError(
                f"mtp_before_head={ahead}: {behind} layers of stages lie behind the prediction depths, which come "
                f"after the last layer; use mtp_before_head=0 or end stages with {ahead} zeros"
            )
        if len(plan.stages) != n:
            raise InputError(
                f"stages has {len(plan.stages)} entries: pp × vpp = {n} chunks need {n}; give one count per chunk, or "
                "leave stages out"
            )
        if sum(plan.stages) != model.layers or min(plan.stages) < 0:
            raise InputError(
                f"stages sum to {sum(plan.stages)}: must be the model's {model.layers} layers, none negative; give "
                f"for example stages: {list(dataclasses.replace(plan, stages=None).chunk_layers(model.layers))}"
            )


def _check_experts(plan: Plan, model: ModelSpec) -> None:
    if not model.experts:
        raise InputError(f"ep={plan.ep}, etp={plan.etp}: the model has no experts; use ep=1 and etp=1")
    if model.experts % plan.ep:
        raise InputError(
            f"ep={plan.ep}: does not divide the model's {model.experts} experts; use {_expert_widths(plan, model)}"
        )
    ranks = plan.tp * plan.cp * plan.dp
    if ranks % (plan.ep * plan.etp):
        raise InputError(
            f"ep={plan.ep} × etp={plan.etp}: does not divide tp × cp × dp = {ranks}; use {_expert_widths(plan, model)}"
        )


def _expert_widths(plan: Plan, model: ModelSpec) -> str:
    """The nearest smaller widths that experts and ranks divide over: 'ep=4', or with an etp where its own does not."""
    ranks = plan.tp * plan.cp * plan.dp
    etp = plan.etp if ranks % plan.etp == 0 else _divisor(ranks, plan.etp)
    ep = next(e for e in range(min(plan.ep, model.experts), 0, -1) if model.experts % e == 0 == ranks % (e * etp))
    return f"ep={ep}" if etp == plan.etp else f"ep={ep} and etp={etp}"


def _divisor(of: int, near: int) -> int:
    """The largest divisor of `of` that is at most `near`."""
    return next(d for d in range(min(of, near), 0, -1) if of % d == 0)


_AWAY = {"activation_offload": "act-offload", "offload": "opt-offload"}


def describe(plan: Plan) -> str:
    """'TP8 PP16 DP780 EP32 zb-h1'; what lies in host memory last: 'act-offload', 'opt-offload'."""
    parts = [f"TP{plan.tp}", f"PP{plan.pp}"] + [
        f"{k.upper()}{getattr(plan, k)}" for k in ("cp", "ep", "etp") if getattr(plan, k) > 1
    ]
    away = [short for name, short in _AWAY.items() if getattr(plan, name)]
    parts += [f"DP{plan.dp}", plan.schedule] + ([f"v{plan.vpp}"] if plan.vpp > 1 else [])
    return " ".join(parts + away)
