"""Closed-form step time and memory of many plans of one question: what plans share is computed once.

`sim.cost.evaluate.in_closed_form` answers for one plan in about a millisecond. A search asks for hundreds of thousands
that differ in a few widths. Here each quantity is kept under just those widths that it depends on: a layer's operators
under (tp, cp, ep, etp, micro-batch, recompute), the layout under (pp, vpp, schedule), the gradient reduction under
(widths, dp, ZeRO) but not the micro-batch. The figures are the same to rounding (a test compares them on random plans).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sim.cost import memory
from sim.cost.closed_form import Loads, exposed_behind, loads, straggler
from sim.cost.evaluate import closed_form_step
from sim.cost.layer import LayerEstimator
from sim.cost.layer_cost import LayerCost
from sim.cost.operators import WIDTH
from sim.cost.parameters import held_params, layer_params
from sim.cost.stacks import Stack
from sim.cost.step import data_parallel, offloaded_layer, stage_message_s
from sim.cost.step_costs import ChunkCost, StepCosts
from sim.planner.candidate import (
    Candidate,
    ChunkKind,
    ChunkLayout,
    DataParallelCosts,
    PhaseSeconds,
    SharedWork,
    StepParts,
    chunk_layout,
)
from sim.planner.shared import (
    LAYER_SWITCHES,
    WORK_SWITCHES,
    Key,
    cached,
    data_parallel_key,
    layout_key,
    loads_key,
    message_key,
    params_key,
    sharded_layer_key,
    work_key,
)
from sim.planner.space import lighter
from sim.planner.stages import Units, balanced
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan, Workload, chunk_numbers


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
        self.dense_layers = model.dense_ffn_layers
        self.memory_capacity = cluster.chip.memory_bytes.value
        self.host_capacity = cluster.host_memory_bytes.value
        # settings that agree on a layer's cost, on its work, on what a step does once, share it
        self.layer_set = _alike(switches, lambda key: key in LAYER_SWITCHES)
        self.work_set = _alike(switches, lambda key: key in WORK_SWITCHES)
        self.once_set = _alike(switches, lambda key: key != "activation_offload")
        self.lighter = lighter(switches)

    def serves(
        self,
        model: ModelSpec,
        cluster: Cluster,
        workload: Workload,
        precision: str,
        stack: Stack,
        switches: tuple[Mapping[str, Any], ...],
    ) -> bool:
        """Whether these are the costs of that question, too: it may differ in chips and batch alone."""
        return (self.model, self.precision, self.stack, self.switches) == (model, precision, stack, switches) and (
            replace(self.cluster, num_chips=cluster.num_chips) == cluster
            and replace(self.workload, global_batch=workload.global_batch) == workload
        )

    # ---------------------------------------------------------------- objects for people

    def plan(self, c: Candidate, zero: int | None = None, bare: bool = False) -> Plan:
        """The candidate as a plan. `zero`: another stage of ZeRO than its own; `bare`: without its stages."""
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
            mtp_before_head=c.mtp_before_head,
            stages=None if bare or c.pp * c.vpp == 1 else self.layout(c).stages,
            **self.switches[c.switches],
        )

    def offloads(self, c: Candidate) -> bool:
        """Whether what its layers keep for the backward pass waits in host memory."""
        return bool(self.switches[c.switches].get("activation_offload"))

    def load(self, c: Candidate) -> Workload:
        """The candidate's workload."""
        return replace(self.workload, global_batch=c.batch)

    # ---------------------------------------------------------------- shared parts

    @cached(layout_key)
    def layout(self, c: Candidate) -> ChunkLayout:
        """Which chunks each pipeline rank holds."""
        stages = c.stages or self._balanced(c)
        dense = self.dense_layers if self.model.experts else self.model.layers
        return chunk_layout(stages, c.pp, c.vpp, c.schedule, dense, c.mtp_before_head, bool(self.mtp))

    def _balanced(self, c: Candidate) -> tuple[int, ...]:
        """Layers of each chunk by what this candidate's layers take before their weights are sharded."""
        parts, nothing = self.costs(c._replace(zero=0)), PhaseSeconds(0.0, 0.0, 0.0, 0.0, 0.0)
        paired = c.schedule.startswith("dualpipe")

        def seconds(name: str) -> float:
            p = parts.get(name, nothing)
            return p.forward + p.backward + p.weight - (p.hide_forward + p.hide_backward if paired else 0.0)

        n = c.pp if c.schedule == "dualpipe" else c.pp * c.vpp
        fixed = [0.0] * n
        for chunk, name in ((0, "first"), (n - 1 - c.mtp_before_head, "depths"), (n - 1, "last")):
            fixed[chunk] += seconds(name)
        units = Units(
            seconds("dense"),
            seconds("moe") if self.model.experts else seconds("dense"),
            self.dense_layers,
            self.model.layers,
            tuple(fixed),
            c.mtp_before_head,
        )
        return balanced(units, chunk_numbers(c.schedule, c.pp, c.vpp))

    def _estimator(self, c: Candidate, zero: int = 0) -> LayerEstimator:
        plan = self.plan(c, zero, bare=True)
        return LayerEstimator(self.model, self.cluster, plan, self.workload, self.precision, self.stack)

    @cached(work_key)
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

    @cached(sharded_layer_key)
    def costs(self, c: Candidate) -> dict[str, PhaseSeconds]:
        """Cost of each kind of layer and of the ends ("first", "depths", "last") under the candidate's ZeRO."""
        shared = self.work(c)
        estimator = self._estimator(c, 3) if c.zero == 3 and c.dp * c.cp > 1 else shared.estimator
        out = {}
        for kind, variants in shared.kinds.items():
            if self.offloads(c):
                whole = estimator.layer(kind, c.recompute)  # what is waited for is of a layer's mean
                out[kind] = _phase_seconds([(1.0, offloaded_layer(estimator, whole, c.recompute))])
                continue
            params = layer_params(self.model, kind, c.tp, c.ep, c.etp)
            out[kind] = _phase_seconds([(share, estimator.apply_sharding(work, params)) for share, work in variants])
        for name, end in zip(("first", "last", "depths"), estimator.shard_ends(shared.ends), strict=True):
            out[name] = _phase_seconds([(1.0, end)])
        return out

    @cached(loads_key)
    def chunk_seconds(self, c: Candidate) -> tuple[tuple[tuple[float, float, float, float, float], ...], ...]:
        """(forward, input gradient, weight gradient, hideable forward and backward) of each chunk, per kind of rank."""
        parts, layout, nothing = self.costs(c), self.layout(c), PhaseSeconds(0.0, 0.0, 0.0, 0.0, 0.0)
        dense, moe, first, depths, last = (parts.get(k, nothing) for k in ("dense", "moe", "first", "depths", "last"))
        hop = self.mtp * self.stage_message_s(c) if c.mtp_before_head and c.pp > 1 else 0.0
        known: dict[ChunkKind, tuple[float, float, float, float, float]] = {}  # ranks hold many that are alike

        def seconds(kind: ChunkKind) -> tuple[float, float, float, float, float]:
            if kind not in known:
                total = [kind.dense * d + kind.moe * m for d, m in zip(dense, moe, strict=True)]
                for there, end in ((kind.first, first), (kind.depths, depths), (kind.last, last)):
                    if there:
                        total = [t + e for t, e in zip(total, end, strict=True)]
                known[kind] = (
                    total[0] + hop * kind.hops[0],
                    total[1] + hop * kind.hops[1],
                    total[2],
                    total[3],
                    total[4],
                )
            return known[kind]

        return tuple(tuple(seconds(kind) for kind in chunks) for chunks in layout.kinds)

    @cached(loads_key)
    def loads(self, c: Candidate) -> Loads:
        """What the pipeline's ranks do, for the closed form."""
        layout, paired, of_kind = self.layout(c), c.schedule.startswith("dualpipe"), []
        for row in self.chunk_seconds(c):
            hidden = sum(min(hf + hb, f, b + w) for f, b, w, hf, hb in row) if paired else 0.0
            of_kind.append((sum(x[0] for x in row), sum(x[1] for x in row), sum(x[2] for x in row), hidden))
        forward, backward, weight, hide = zip(*(of_kind[k] for k in layout.ranks), strict=True)
        return loads(forward, backward, weight, hide, len(layout.kinds[0]))

    @cached(loads_key)
    def uneven_s(self, c: Candidate) -> float:
        """Seconds of a micro-batch that interleaving adds where chunks differ.

        While one rank is at a thick chunk its neighbours are at theirs of the same round and wait. The closed form
        counts each rank's own work alone.
        """
        if c.schedule != "interleaved" or c.pp == 1:
            return 0.0
        rows, v = self.chunk_seconds(c), c.vpp
        rounds = sum(max(r[k][0] + r[v - 1 - k][1] + r[v - 1 - k][2] for r in rows) for k in range(v))
        return max(rounds - self.loads(c).busy, 0.0)

    @cached(params_key)
    def params(self, c: Candidate) -> tuple[tuple[float, float], ...]:
        """(replicated, expert) weights of each kind of rank of the candidate's layout."""
        vocab = memory.padded(self.model.vocab, c.tp)
        return tuple(held_params(held, self.model, c, vocab) for held in self.layout(c).held)

    @cached(data_parallel_key)
    def data_parallel(self, c: Candidate) -> DataParallelCosts:
        """Gradient reduction, parameter gather and optimiser of the slowest rank."""
        estimator = self._estimator(c, c.zero)
        reduce_s, gather_s, optimizer_s = data_parallel(estimator, tuple(dict.fromkeys(self.params(c))))
        hidden = estimator.switch("overlap_grad_reduce")
        return DataParallelCosts(reduce_s, gather_s, optimizer_s, hidden, estimator.plan.overlap_p2p)

    @cached(lambda costs, c: (c.tp, c.ep, c.etp))
    def whole_params(self, c: Candidate) -> tuple[float, float]:
        """(replicated, expert) weights of the whole model on one pipeline rank."""
        return self.params(c._replace(pp=1, vpp=1, schedule="1f1b", mtp_before_head=0, stages=()))[0]

    @cached(lambda costs, c: (c.tp, c.cp, c.ep, c.etp, c.pp, c.dp, c.zero, costs.once_set[c.switches]))
    def least_data_parallel(self, c: Candidate) -> DataParallelCosts:
        """Of `data_parallel`, what no cut of the model goes below: one rank has at least its share of the replicated
        weights, one (perhaps another) at least its share of the experts'."""
        base, expert = self.whole_params(c)
        estimator = self._estimator(c._replace(pp=1, vpp=1, schedule="1f1b", mtp_before_head=0), c.zero)
        shares = ((base / c.pp, 0.0), (0.0, expert / c.pp)) if expert else ((base / c.pp, 0.0),)
        reduce_s, gather_s, optimizer_s = data_parallel(estimator, shares)
        hidden = estimator.switch("overlap_grad_reduce")
        return DataParallelCosts(reduce_s, gather_s, optimizer_s, hidden, estimator.plan.overlap_p2p)

    def least_once_s(self, c: Candidate, backward_s: float) -> float:
        """Seconds of a step beside its pipeline that no cut of the model goes below. `backward_s`: no rank's backward
        of a micro-batch is longer on average."""
        once = self.least_data_parallel(c)
        reduce = once.grad_reduce_s
        if once.overlap_grad_reduce and reduce > 0:
            m = c.batch // (c.dp * c.micro_batch)
            reduce = exposed_behind(backward_s, c.pp, c.vpp, m, reduce, self.stack.dp_hidden)
        return reduce + once.param_gather_s + once.optimizer_s

    @cached(message_key)
    def stage_message_s(self, c: Candidate) -> float:
        """Seconds of one message between pipeline stages."""
        size = c.micro_batch * self.workload.seq / c.cp * self.model.hidden * WIDTH
        sp = self.switches[c.switches].get("sp") is not False
        return stage_message_s(self.cluster, size, c.tp, c.tp * c.cp * c.dp, sp)

    # ---------------------------------------------------------------- memory

    @cached(data_parallel_key)
    def states(self, c: Candidate) -> tuple[float, ...]:
        """Weights, gradients, optimiser states and ZeRO-3's buffers of each kind of rank, in bytes."""
        plan = self.plan(c, bare=True)
        extra = memory.gathered_bytes(self.model, plan, self.stack) if c.zero == 3 else 0.0
        return tuple(
            sum(memory.state_bytes(plan, self.stack, base, expert, plan.zero_shards, plan.expert_dp, c.zero)) + extra
            for base, expert in self.params(c)
        )

    @cached(data_parallel_key)
    def host_states(self, c: Candidate) -> tuple[float, ...]:
        """Bytes of optimiser states in host memory for a chip of each kind of rank."""
        plan = self.plan(c, bare=True)
        return tuple(
            memory.host_state_bytes(plan, base, expert, plan.zero_shards, plan.expert_dp, c.zero)
            for base, expert in self.params(c)
        )

    @cached(lambda costs, c: (c.tp, c.cp, c.ep, c.etp, c.dp, c.zero, costs.once_set[c.switches]))
    def whole_states(self, c: Candidate) -> float:
        """Bytes of states of the whole model on one pipeline rank."""
        base, expert = self.params(c._replace(pp=1, vpp=1, schedule="1f1b", mtp_before_head=0, stages=()))[0]
        plan = self.plan(c._replace(pp=1, vpp=1, schedule="1f1b", mtp_before_head=0), bare=True)
        return sum(memory.state_bytes(plan, self.stack, base, expert, plan.zero_shards, plan.expert_dp, c.zero))

    def least_bytes(self, c: Candidate) -> float:
        """Bytes on the fullest chip that no schedule of these layers and widths goes below, however the model is cut.

        Rank r of P holds a share n_r of the model: its states, and the activations of the micro-batches in flight, at
        least P − r of them (DualPipe: one). The fullest rank is emptiest where all are equally full.
        """
        parts, model = self.work(c).activations, self.model
        kept = sum(
            count * parts.kinds[kind][0]
            for kind, count in (("dense", self.dense_layers), ("moe", model.moe_layers))
            if count
        )
        if self.offloads(c):
            kept = 0.0  # two layers' of a rank, whatever is in flight
        states, m = self.whole_states(c), max(1, c.batch // (c.dp * c.micro_batch))
        if c.schedule.startswith("dualpipe"):
            return (states + kept) / c.pp + memory.RUNTIME_BYTES
        each = (states + kept * min(m, c.pp - rank) for rank in range(c.pp))
        return 1.0 / sum(1.0 / max(one, 1.0) for one in each) + memory.RUNTIME_BYTES

    def memory_bytes(self, c: Candidate) -> float:
        """Bytes on the fullest chip, as `sim.cost.memory.peak`."""
        return self.need_bytes(c)[0]

    def excess_bytes(self, c: Candidate) -> float:
        """Bytes by which the plan is over the chip's memory or its share of the host's; 0 or less where it fits."""
        return self.over_bytes(*self.need_bytes(c))

    def over_bytes(self, chip: float, host: float) -> float:
        """By how much a need is over the chip's memory or its share of the host's."""
        return max(chip - self.memory_capacity, host - self.host_capacity)

    def need_bytes(self, c: Candidate) -> tuple[float, float]:
        """(bytes on the fullest chip, bytes in host memory for the chip that has most there), as
        `sim.cost.memory.peak`."""
        layout, parts = self.layout(c), self.work(c).activations
        m, again, worst = max(1, c.batch // (c.dp * c.micro_batch)), c.recompute != "none", 0.0
        away, host, host_states = self.offloads(c), 0.0, self.host_states(c)
        dense, moe = (parts.kinds.get(kind, (0.0, 0.0, 0.0)) for kind in ("dense", "moe"))
        once = [whole if again else whole - held for _, held, whole in (dense, moe)]  # of the layer that is run again
        streams = self.mtp * (moe if self.model.experts else dense)[0] if c.mtp_before_head else 0.0
        for held, rank, states, there in zip(layout.held, layout.first_of, self.states(c), host_states, strict=True):
            # a kind's first rank has the most in flight, so the others of its kind are no fuller
            flights = memory.in_flight(layout, rank, m)[0]
            layers = held.dense * dense[0] + held.moe * moe[0]
            largest = max(dense[0] if held.dense else 0.0, moe[0] if held.moe else 0.0)
            transient = max(once[0] if held.dense else 0.0, once[1] if held.moe else 0.0)
            per = held.depths * streams + held.first * parts.embedding
            loss, head_kept = (parts.loss, held.last * parts.head) if held.last else (0.0, 0.0)
            whole = flights * layers
            kept = min(whole, 2 * largest) if away else whole
            worst = max(worst, states + kept + flights * per + head_kept + max(transient, loss))
            host = max(host, there + whole - kept)
        return worst + memory.RUNTIME_BYTES, host

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

    def step_costs(self, c: Candidate) -> StepCosts:
        """What the events take, every chip at the speed of the expected slowest: as `sim.cost.step.build` of the
        plan."""
        slow, layout, once = self.straggler(c.num_chips), self.layout(c), self.data_parallel(c)
        rows = [
            tuple(ChunkCost(*(slow * seconds for seconds in chunk)) for chunk in row) for row in self.chunk_seconds(c)
        ]
        return StepCosts(
            chunks=tuple(rows[kind] for kind in layout.ranks),
            micro_batches=c.batch // (c.dp * c.micro_batch),
            p2p_s=self.stage_message_s(c) if c.pp > 1 else 0.0,
            p2p_bytes=0.0,  # no time depends on them
            grad_reduce_s=once.grad_reduce_s,
            param_gather_s=once.param_gather_s,
            overlap_grad_reduce=once.overlap_grad_reduce,
            optimizer_s=slow * once.optimizer_s,
            fixed_s=self.stack.overhead_s(c.num_chips),
        )

    def estimate_s(self, c: Candidate) -> float:
        """What a search ranks by: `step_s`, and for interleaving what chunks that differ add."""
        m = c.batch // (c.dp * c.micro_batch)
        return self.step_s(c) + m * self.uneven_s(c) * self.straggler(c.num_chips)

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


def _alike(switches: tuple[Mapping[str, Any], ...], counts: Callable[[str], bool]) -> list[int]:
    """Place of the first setting that agrees with each one in the fields that count."""
    settled = [{k: v for k, v in s.items() if counts(k)} for s in switches]
    return [settled.index(s) for s in settled]


def _phase_seconds(variants: list[tuple[float, LayerCost]]) -> PhaseSeconds:
    """The mean of a kind of layer's variants by their shares."""
    return PhaseSeconds(
        sum(share * cost.forward_s for share, cost in variants),
        sum(share * cost.backward_input_s for share, cost in variants),
        sum(share * cost.backward_weight_s for share, cost in variants),
        sum(share * cost.hideable_forward_s for share, cost in variants),
        sum(share * cost.hideable_backward_s for share, cost in variants),
    )
