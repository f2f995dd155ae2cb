"""Closed-form step time and memory of many plans of one question: what plans share is computed once.

`sim.cost.evaluate.in_closed_form` answers for one plan in about a millisecond. A search asks for hundreds of thousands
that differ in a few widths. Here each quantity is kept under just those widths that it depends on: a layer's operators
under (tp, cp, ep, etp, micro-batch, recompute), the layout under (pp, vpp, schedule), the gradient reduction under
(widths, dp, ZeRO) but not the micro-batch. The figures are the same to rounding (a test compares them on random plans).
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from sim.cost import memory
from sim.cost.closed_form import Loads, loads, straggler
from sim.cost.evaluate import closed_form_step
from sim.cost.layer import LayerCost, LayerEstimator, LayerWork
from sim.cost.operators import WIDTH
from sim.cost.parameters import layer_params, rank_params
from sim.cost.stacks import Stack
from sim.cost.step import data_parallel, stage_message_s
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan, Workload


class Candidate(NamedTuple):
    """A plan and its batch as a search enumerates them. `batch` in sequences; `switches` index `PlanCosts.switches`."""

    tp: int
    cp: int
    ep: int
    etp: int
    micro_batch: int
    recompute: str
    pp: int
    vpp: int
    schedule: str
    dp: int
    zero: int
    batch: int
    switches: int = 0

    @property
    def num_chips(self) -> int:
        """Chips that the plan uses."""
        return self.tp * self.cp * self.pp * self.dp


class SharedWork(NamedTuple):
    """What candidates with equal layers on a chip share:
    the work of each kind of layer and of the ends, activations.
    """

    estimator: LayerEstimator
    kinds: dict[str, tuple[tuple[float, LayerWork], ...]]
    ends: tuple[LayerWork, LayerWork, LayerWork | None]
    activations: memory.SavedActivations


class PhaseSeconds(NamedTuple):
    """Seconds of one micro-batch: forward, input gradient, weight gradient, and the hideable parts of the first two."""

    forward: float
    backward: float
    weight: float
    hide_forward: float
    hide_backward: float


class DataParallelCosts(NamedTuple):
    """What a step costs once: seconds of the gradient reduction, the parameter gather and the optimiser."""

    grad_reduce_s: float
    param_gather_s: float
    optimizer_s: float
    overlap_grad_reduce: bool
    overlap_p2p: bool | None  # None: the stack's default


class StepParts(NamedTuple):
    """What `sim.cost.closed_form.step_time_of` asks beside the loads, as in `StepCosts`."""

    micro_batches: int
    p2p_s: float
    grad_reduce_s: float
    param_gather_s: float
    overlap_grad_reduce: bool
    optimizer_s: float
    fixed_s: float


@dataclass(frozen=True)
class ChunkLayout:
    """Where layers lie: pp × vpp chunks.

    `ranks[r]` indexes `kinds`, each a tuple of chunks (dense, moe, first, last).
    """

    pp: int
    vpp: int
    schedule: str
    ranks: tuple[int, ...]
    kinds: tuple[tuple[tuple[int, int, bool, bool], ...], ...]
    first_of: tuple[int, ...]  # the first rank of each kind: it holds most micro-batches in flight


# ------------------------------------------------------------------ what a quantity depends on

Value = TypeVar("Value")
Key = tuple[object, ...]
LAYER_SWITCHES = ("sp", "overlap_tp", "overlap_all_to_all", "recompute_modules")  # those that change a layer's cost


def cached(
    key: Callable[[PlanCosts, Candidate], Key],
) -> Callable[[Callable[[PlanCosts, Candidate], Value]], Callable[[PlanCosts, Candidate], Value]]:
    """A method of `PlanCosts` that is computed once for all candidates with the same `key`."""

    def decorate(compute: Callable[[PlanCosts, Candidate], Value]) -> Callable[[PlanCosts, Candidate], Value]:
        name = compute.__name__

        @functools.wraps(compute)
        def method(self: PlanCosts, c: Candidate) -> Value:
            known = self.known[name]
            of = key(self, c)
            try:
                return known[of]  # one hash: this runs some ten times a plan
            except KeyError:
                value = known[of] = compute(self, c)
            return value

        return method

    return decorate


def _layout_key(costs: PlanCosts, c: Candidate) -> Key:
    return (c.pp, c.vpp, c.schedule)


def _layer_key(costs: PlanCosts, c: Candidate) -> Key:
    paired = c.schedule.startswith("dualpipe")
    return (c.tp, c.cp, c.ep, c.etp, c.micro_batch, c.recompute, paired, costs.layer_set[c.switches])


def _sharded_layer_key(costs: PlanCosts, c: Candidate) -> Key:
    if c.zero == 3 and c.dp * c.cp > 1:
        return (*_layer_key(costs, c), c.dp, costs.switches[c.switches].get("hsdp", 0))
    return _layer_key(costs, c)


def _loads_key(costs: PlanCosts, c: Candidate) -> Key:
    return (_sharded_layer_key(costs, c), c.pp, c.vpp, c.schedule)


def _params_key(costs: PlanCosts, c: Candidate) -> Key:
    return (c.tp, c.ep, c.etp, c.pp, c.vpp, c.schedule)


def _message_key(costs: PlanCosts, c: Candidate) -> Key:
    return (c.tp, c.cp, c.dp, c.micro_batch, costs.layer_set[c.switches])


def _data_parallel_key(costs: PlanCosts, c: Candidate) -> Key:
    return (c.tp, c.cp, c.ep, c.etp, c.pp, c.vpp, c.schedule, c.dp, c.zero, c.switches)


class PlanCosts:
    """Costs of candidates for one (model, cluster, sequence, precision, stack).

    Args:
        workload: its `global_batch` is ignored, each candidate has its own.
        switches: further `Plan` fields (optimizer, offload, sp, overlap_…), one mapping for each setting that is
            searched.
    """

    def __init__(
        self,
        model: ModelSpec,
        cluster: Cluster,
        workload: Workload,
        precision: str,
        stack: Stack,
        switches: tuple[Mapping[str, Any], ...] = ({},),
    ) -> None:
        self.model, self.cluster, self.workload, self.precision, self.stack = model, cluster, workload, precision, stack
        self.switches = switches
        self.known: dict[str, dict[Key, Any]] = defaultdict(dict)  # what `cached` methods have computed
        self.mtp = model.mtp_depth if workload.mtp else 0
        self.memory_capacity = cluster.chip.memory_bytes.value
        # settings that agree on a layer's cost share it
        settled = [tuple((k, s[k]) for k in LAYER_SWITCHES if k in s) for s in switches]
        self.layer_set = [settled.index(s) for s in settled]

    # ---------------------------------------------------------------- objects for people

    def plan(self, c: Candidate, zero: int | None = None) -> Plan:
        """The candidate as a plan. `zero`: another stage of ZeRO than its own."""
        return Plan(
            tp=c.tp,
            pp=c.pp,
            dp=c.dp,
            cp=c.cp,
            ep=c.ep,
            etp=c.etp,
            vpp=c.vpp,
            schedule=c.schedule,
            micro_batch=c.micro_batch,
            zero=c.zero if zero is None else zero,
            recompute=c.recompute,
            **self.switches[c.switches],
        )

    def load(self, c: Candidate) -> Workload:
        """The candidate's workload."""
        return replace(self.workload, global_batch=c.batch)

    # ---------------------------------------------------------------- shared parts

    @cached(_layout_key)
    def layout(self, c: Candidate) -> ChunkLayout:
        """Which chunks each pipeline rank holds."""
        plan, model = Plan(pp=c.pp, vpp=c.vpp, schedule=c.schedule), self.model
        layers, start, chunks = plan.chunk_layers(model.layers, self.mtp), 0, []
        for i, n in enumerate(layers):
            dense = max(0, min(n, model.dense_ffn_layers - start)) if model.experts else n
            chunks.append((dense, n - dense, i == 0, i == len(layers) - 1))
            start += n
        ranks = [tuple(chunks[chunk] for chunk in plan.chunks_of_rank(r)) for r in range(c.pp)]
        kinds = tuple(dict.fromkeys(ranks))
        return ChunkLayout(
            c.pp,
            c.vpp,
            c.schedule,
            tuple(kinds.index(r) for r in ranks),
            kinds,
            tuple(ranks.index(k) for k in kinds),
        )

    def _estimator(self, c: Candidate, zero: int = 0) -> LayerEstimator:
        return LayerEstimator(self.model, self.cluster, self.plan(c, zero), self.workload, self.precision, self.stack)

    @cached(_layer_key)
    def work(self, c: Candidate) -> SharedWork:
        """Work of the candidate's layers before their weights are sharded, and the activations they keep."""
        estimator, model = self._estimator(c), self.model
        kinds = (["dense"] if model.dense_ffn_layers else []) + (["moe"] if model.experts else [])
        return SharedWork(
            estimator,
            {kind: estimator.layer_work(kind, c.recompute) for kind in kinds},
            estimator.end_work(),
            memory.saved_activations(model, estimator.plan, self.workload, self.stack),
        )

    @cached(_sharded_layer_key)
    def costs(self, c: Candidate) -> dict[str, PhaseSeconds]:
        """Cost of each kind of layer and of the two ends ("first", "last") under the candidate's ZeRO."""
        shared = self.work(c)
        estimator = self._estimator(c, 3) if c.zero == 3 and c.dp * c.cp > 1 else shared.estimator
        out = {}
        for kind, variants in shared.kinds.items():
            params = layer_params(self.model, kind, c.tp, c.ep, c.etp)
            out[kind] = _phase_seconds([(share, estimator.apply_sharding(work, params)) for share, work in variants])
        for name, end in zip(("first", "last"), estimator.shard_ends(shared.ends), strict=True):
            out[name] = _phase_seconds([(1.0, end)])
        return out

    @cached(_loads_key)
    def loads(self, c: Candidate) -> Loads:
        """What the pipeline's ranks do, for the closed form."""
        parts, layout, nothing = self.costs(c), self.layout(c), PhaseSeconds(0.0, 0.0, 0.0, 0.0, 0.0)
        dense, moe, first, last = (parts.get(k, nothing) for k in ("dense", "moe", "first", "last"))
        paired, of_kind = c.schedule.startswith("dualpipe"), []
        for chunks in layout.kinds:
            f = b = w = hidden = 0.0
            for n, m, head, tail in chunks:
                chunk_f = n * dense.forward + m * moe.forward
                chunk_b = n * dense.backward + m * moe.backward
                chunk_w = n * dense.weight + m * moe.weight
                hide_f = n * dense.hide_forward + m * moe.hide_forward
                hide_b = n * dense.hide_backward + m * moe.hide_backward
                for there, end in ((head, first), (tail, last)):
                    if there:
                        chunk_f, chunk_b, chunk_w = chunk_f + end[0], chunk_b + end[1], chunk_w + end[2]
                        hide_f, hide_b = hide_f + end[3], hide_b + end[4]
                f, b, w = f + chunk_f, b + chunk_b, w + chunk_w
                if paired:
                    hidden += min(hide_f + hide_b, chunk_f, chunk_b + chunk_w)
            of_kind.append((f, b, w, hidden))
        forward, backward, weight, hide = zip(*(of_kind[k] for k in layout.ranks), strict=True)
        return loads(forward, backward, weight, hide, len(layout.kinds[0]))

    @cached(_params_key)
    def params(self, c: Candidate) -> tuple[tuple[float, float], ...]:
        """(replicated, expert) weights of each kind of rank of the candidate's layout."""
        plan = Plan(tp=c.tp, pp=c.pp, ep=c.ep, etp=c.etp, vpp=c.vpp, schedule=c.schedule)
        every = rank_params(self.model, plan, memory.padded(self.model.vocab, c.tp), self.workload.mtp)
        return tuple(every[rank] for rank in self.layout(c).first_of)

    @cached(_data_parallel_key)
    def data_parallel(self, c: Candidate) -> DataParallelCosts:
        """Gradient reduction, parameter gather and optimiser of the slowest rank."""
        estimator = self._estimator(c, c.zero)
        reduce_s, gather_s, optimizer_s = data_parallel(estimator, tuple(dict.fromkeys(self.params(c))))
        hidden = estimator.switch("overlap_grad_reduce")
        return DataParallelCosts(reduce_s, gather_s, optimizer_s, hidden, estimator.plan.overlap_p2p)

    @cached(_message_key)
    def stage_message_s(self, c: Candidate) -> float:
        """Seconds of one message between pipeline stages."""
        size = c.micro_batch * self.workload.seq / c.cp * self.model.hidden * WIDTH
        sp = self.switches[c.switches].get("sp") is not False
        return stage_message_s(self.cluster, size, c.tp, c.tp * c.cp * c.dp, sp)

    # ---------------------------------------------------------------- memory

    @cached(_data_parallel_key)
    def states(self, c: Candidate) -> tuple[float, ...]:
        """Weights, gradients, optimiser states and ZeRO-3's buffers of each kind of rank, in bytes."""
        plan = self.plan(c)
        extra = memory.gathered_bytes(self.model, plan, self.stack) if c.zero == 3 else 0.0
        return tuple(
            sum(memory.state_bytes(plan, self.stack, base, expert, plan.zero_shards, plan.expert_dp, c.zero)) + extra
            for base, expert in self.params(c)
        )

    def memory_bytes(self, c: Candidate) -> float:
        """Bytes on the fullest chip, as `sim.cost.memory.peak`."""
        layout, parts = self.layout(c), self.work(c).activations
        m, again, worst = max(1, c.batch // (c.dp * c.micro_batch)), c.recompute != "none", 0.0
        dense, moe = parts.kinds.get("dense", (0.0, 0.0)), parts.kinds.get("moe", (0.0, 0.0))
        for chunks, rank, states in zip(layout.kinds, layout.first_of, self.states(c), strict=True):
            # a kind's first rank has the most in flight, so the others of its kind are no fuller
            flights = memory.in_flight(layout, rank, m)[0]
            per = transient = loss = head_kept = 0.0
            for n, e, head, tail in chunks:
                per += n * dense[0] + e * moe[0]
                if again:
                    transient = max(transient, dense[1] if n else 0.0, moe[1] if e else 0.0)
                if head:
                    per += parts.embedding
                if tail:
                    loss, head_kept = parts.loss, head_kept + parts.head
            worst = max(worst, states + flights * per + head_kept + max(transient, loss))
        return worst + memory.RUNTIME_BYTES

    # ---------------------------------------------------------------- time

    def straggler(self, chips: int) -> float:
        """Factor of the slowest of `chips` chips."""
        return straggler(chips, self.stack.jitter)

    def lower_bound(self, c: Candidate) -> float:
        """Seconds that no ZeRO or overlap setting of this candidate goes below:
        the busiest rank's own work, unsharded.
        """
        work = self.loads(c if c.zero != 3 else c._replace(zero=1))
        m = c.batch // (c.dp * c.micro_batch)
        busy = (
            work.steady * (0.5 if c.schedule == "dualpipe" else 1.0)
            if c.schedule.startswith("dualpipe") and c.pp > 1
            else work.busy
        )
        return m * busy * self.straggler(c.num_chips) + self.stack.overhead_s(c.num_chips)

    def step_s(self, c: Candidate) -> float:
        """Seconds of one step, as `sim.cost.evaluate.in_closed_form`."""
        work, m = self.loads(c), c.batch // (c.dp * c.micro_batch)
        once = self.data_parallel(c)
        p2p = self.stage_message_s(c) if c.pp > 1 else 0.0
        parts = StepParts(
            m,
            p2p,
            once.grad_reduce_s,
            once.param_gather_s,
            once.overlap_grad_reduce,
            once.optimizer_s,
            self.stack.overhead_s(c.num_chips),
        )
        total = closed_form_step(work, parts, c.schedule, once.overlap_p2p, c.num_chips, self.stack).total_s
        return total if math.isfinite(total) else math.inf


def _phase_seconds(variants: list[tuple[float, LayerCost]]) -> PhaseSeconds:
    """The mean of a kind of layer's variants by their shares."""
    return PhaseSeconds(
        sum(share * cost.forward_s for share, cost in variants),
        sum(share * cost.backward_input_s for share, cost in variants),
        sum(share * cost.backward_weight_s for share, cost in variants),
        sum(share * cost.hideable_forward_s for share, cost in variants),
        sum(share * cost.hideable_backward_s for share, cost in variants),
    )
