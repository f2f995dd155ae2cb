"""Closed-form step time and memory of many plans of one question: what plans share is computed once.

`sim.cost.evaluate.in_closed_form` answers for one plan in about a millisecond. A search asks for hundreds of thousands that differ
in a few widths. Here each quantity is kept under just those widths that it depends on: a layer's operators under (tp, cp, ep,
etp, micro-batch, recompute), the layout under (pp, vpp, schedule), the gradient reduction under (widths, dp, ZeRO) but not
the micro-batch. The figures are the same to rounding (a test compares them on random plans).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from sim.cost import memory
from sim.cost.closed_form import Loads, loads, straggler
from sim.cost.evaluate import closed_form_step
from sim.cost.layer import LayerEstimator, LayerWork
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
        return self.tp * self.cp * self.pp * self.dp


class Work(NamedTuple):
    """A group of equal layers on one chip: work of each part, and its weights for ZeRO-3 gathers."""

    estimator: LayerEstimator
    kinds: dict[str, tuple[tuple[float, LayerWork], ...]]
    ends: tuple[LayerWork, LayerWork, LayerWork | None]
    kept: memory.SavedActivations


class Cost(NamedTuple):
    """Seconds of one micro-batch: forward, input gradient, weight gradient, and the hideable parts of the first two."""

    forward: float
    backward: float
    weight: float
    hide_forward: float
    hide_backward: float


class Scalars(NamedTuple):
    """What `sim.cost.closed_form.step_time_of` asks beside the loads, as in `StepCosts`."""

    micro_batches: int
    p2p_s: float
    grad_reduce_s: float
    param_gather_s: float
    overlap_grad_reduce: bool
    optimizer_s: float
    fixed_s: float


@dataclass(frozen=True)
class Layout:
    """Where layers lie: pp × vpp chunks. `ranks[r]` indexes `kinds`, each a tuple of chunks (dense, moe, first, last)."""

    pp: int
    vpp: int
    schedule: str
    ranks: tuple[int, ...]
    kinds: tuple[tuple[tuple[int, int, bool, bool], ...], ...]
    first_of: tuple[int, ...]  # the first rank of each kind: it holds most micro-batches in flight


_A = ("sp", "overlap_tp", "overlap_all_to_all", "recompute_modules")  # switches that change a layer's cost


class PlanCosts:
    """Costs of candidates for one (model, cluster, sequence, precision, stack).

    Args:
        workload: its `global_batch` is ignored, each candidate has its own.
        switches: further `Plan` fields (optimizer, offload, sp, overlap_…), one mapping for each setting that is searched.
    """

    def __init__(
        self,
        model: ModelSpec,
        cluster: Cluster,
        workload: Workload,
        precision: str,
        stack: Stack,
        switches: tuple[Mapping[str, object], ...] = ({},),
    ) -> None:
        self.model, self.cluster, self.workload, self.precision, self.stack = model, cluster, workload, precision, stack
        self.switches = switches
        self.mtp = model.mtp_depth if workload.mtp else 0
        self.memory_capacity = cluster.chip.memory_bytes.value
        # settings that agree on a layer's cost share it
        settled = [tuple((k, s[k]) for k in _A if k in s) for s in switches]
        self.layer_set = [settled.index(s) for s in settled]
        self._work: dict[tuple, Work] = {}
        self._costs: dict[tuple, dict[str, Cost]] = {}
        self._layouts: dict[tuple, Layout] = {}
        self._loads: dict[tuple, Loads] = {}
        self._params: dict[tuple, tuple[tuple[float, float], ...]] = {}
        self._state: dict[tuple, tuple[float, ...]] = {}
        self._data: dict[tuple, tuple[float, float, float, bool, bool]] = {}

    # ---------------------------------------------------------------- objects for people

    def plan(self, c: Candidate) -> Plan:
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
            zero=c.zero,
            recompute=c.recompute,
            **self.switches[c.switches],
        )

    def load(self, c: Candidate) -> Workload:
        return replace(self.workload, global_batch=c.batch)

    # ---------------------------------------------------------------- shared parts

    def layout(self, pp: int, vpp: int, schedule: str) -> Layout:
        key = (pp, vpp, schedule)
        found = self._layouts.get(key)
        if found is None:
            plan, model = Plan(pp=pp, vpp=vpp, schedule=schedule), self.model
            layers, start, chunks = plan.chunk_layers(model.layers, self.mtp), 0, []
            for i, n in enumerate(layers):
                dense = max(0, min(n, model.dense_ffn_layers - start)) if model.experts else n
                chunks.append((dense, n - dense, i == 0, i == len(layers) - 1))
                start += n
            ranks = [tuple(chunks[c] for c in plan.chunks_of_rank(r)) for r in range(pp)]
            kinds = tuple(dict.fromkeys(ranks))
            found = self._layouts[key] = Layout(
                pp, vpp, schedule, tuple(kinds.index(r) for r in ranks), kinds, tuple(ranks.index(k) for k in kinds)
            )
        return found

    def _estimator(self, c: Candidate, zero: int = 0) -> LayerEstimator:
        plan = Plan(
            tp=c.tp,
            pp=c.pp,
            dp=c.dp,
            cp=c.cp,
            ep=c.ep,
            etp=c.etp,
            vpp=c.vpp,
            schedule=c.schedule,
            micro_batch=c.micro_batch,
            zero=zero,
            recompute=c.recompute,
            **self.switches[c.switches],
        )
        return LayerEstimator(self.model, self.cluster, plan, self.workload, self.precision, self.stack)

    def work(self, c: Candidate) -> Work:
        dual = c.schedule.startswith("dualpipe")
        key = (c.tp, c.cp, c.ep, c.etp, c.micro_batch, c.recompute, dual, self.layer_set[c.switches])
        found = self._work.get(key)
        if found is None:
            estimator, model = self._estimator(c), self.model
            kinds = (["dense"] if model.dense_ffn_layers else []) + (["moe"] if model.experts else [])
            found = self._work[key] = Work(
                estimator,
                {kind: estimator.layer_work(kind, c.recompute) for kind in kinds},
                estimator.end_work(),
                memory.saved_activations(model, estimator.plan, self.workload, self.stack),
            )
        return found

    def costs(self, c: Candidate) -> tuple[tuple, dict[str, Cost]]:
        """(key, cost of each kind of layer and of the two ends) under the candidate's ZeRO."""
        sharded = (c.dp, c.pp if c.cp == 1 else 0) if c.zero == 3 and c.dp * c.cp > 1 else 0
        dual = c.schedule.startswith("dualpipe")
        key = (
            c.tp,
            c.cp,
            c.ep,
            c.etp,
            c.micro_batch,
            c.recompute,
            dual,
            self.layer_set[c.switches],
            sharded and sharded[0],
            sharded and self.switches[c.switches].get("hsdp", 0),
        )
        found = self._costs.get(key)
        if found is None:
            shared = self.work(c)
            estimator = self._estimator(c, 3) if sharded else shared.estimator
            found = {}
            for kind, variants in shared.kinds.items():
                params = layer_params(self.model, kind, c.tp, c.ep, c.etp)
                done = [(weight, estimator.finish(work, params)) for weight, work in variants]
                found[kind] = Cost(
                    *(
                        sum(w * getattr(d, f) for w, d in done)
                        for f in (
                            "forward_s",
                            "backward_input_s",
                            "backward_weight_s",
                            "hideable_forward_s",
                            "hideable_backward_s",
                        )
                    )
                )
            for name, end in zip(("first", "last"), estimator.finish_ends(shared.ends)):
                found[name] = Cost(
                    end.forward_s,
                    end.backward_input_s,
                    end.backward_weight_s,
                    end.hideable_forward_s,
                    end.hideable_backward_s,
                )
            self._costs[key] = found
        return key, found

    def loads(self, c: Candidate) -> Loads:
        """What the pipeline's ranks do, for the closed form."""
        key, parts = self.costs(c)
        key = (key, c.pp, c.vpp, c.schedule)
        found = self._loads.get(key)
        if found is None:
            layout, zero = self.layout(c.pp, c.vpp, c.schedule), Cost(0.0, 0.0, 0.0, 0.0, 0.0)
            dense, moe, first, last = (parts.get(k, zero) for k in ("dense", "moe", "first", "last"))
            dual, of_kind = c.schedule.startswith("dualpipe"), []
            for chunks in layout.kinds:
                f = b = w = h = 0.0
                for n, m, head, tail in chunks:
                    cf, cb, cw, ch, ci = (n * d + m * e for d, e in zip(dense, moe))
                    for there, end in ((head, first), (tail, last)):
                        if there:
                            cf, cb, cw, ch, ci = cf + end[0], cb + end[1], cw + end[2], ch + end[3], ci + end[4]
                    f, b, w = f + cf, b + cb, w + cw
                    if dual:
                        h += min(ch + ci, cf, cb + cw)
                of_kind.append((f, b, w, h))
            found = self._loads[key] = loads(*zip(*(of_kind[k] for k in layout.ranks)), chunks=len(layout.kinds[0]))
        return found

    def params(self, c: Candidate) -> tuple[tuple[float, float], ...]:
        """(replicated, expert) weights of each kind of rank of the candidate's layout."""
        key = (c.tp, c.ep, c.etp, c.pp, c.vpp, c.schedule)
        found = self._params.get(key)
        if found is None:
            plan = Plan(tp=c.tp, pp=c.pp, ep=c.ep, etp=c.etp, vpp=c.vpp, schedule=c.schedule)
            every = rank_params(self.model, plan, memory.padded(self.model.vocab, c.tp), self.workload.mtp)
            found = self._params[key] = tuple(every[r] for r in self.layout(c.pp, c.vpp, c.schedule).first_of)
        return found

    # ---------------------------------------------------------------- memory

    def states(self, c: Candidate) -> tuple[float, ...]:
        """Weights, gradients, optimiser states and ZeRO-3's buffers of each kind of rank, in bytes."""
        key = (c.tp, c.cp, c.ep, c.etp, c.pp, c.vpp, c.schedule, c.dp, c.zero, c.switches)
        found = self._state.get(key)
        if found is None:
            plan = self.plan(c)
            extra = memory.gathered_bytes(self.model, plan, self.stack) if c.zero == 3 else 0.0
            found = self._state[key] = tuple(
                sum(memory.state_bytes(plan, self.stack, base, expert, plan.zero_shards, plan.expert_dp, c.zero))
                + extra
                for base, expert in self.params(c)
            )
        return found

    def memory_bytes(self, c: Candidate) -> float:
        """Bytes on the fullest chip, as `sim.cost.memory.peak`."""
        layout, parts = self.layout(c.pp, c.vpp, c.schedule), self.work(c).kept
        m, again, worst = max(1, c.batch // (c.dp * c.micro_batch)), c.recompute != "none", 0.0
        dense, moe = parts.kinds.get("dense", (0.0, 0.0)), parts.kinds.get("moe", (0.0, 0.0))
        for chunks, rank, states in zip(layout.kinds, layout.first_of, self.states(c)):
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
        """Seconds that no ZeRO or overlap setting of this candidate goes below: the busiest rank's own work, unsharded."""
        work = self.loads(c if c.zero != 3 else c._replace(zero=1))
        m = c.batch // (c.dp * c.micro_batch)
        busy = (
            work.steady * (0.5 if c.schedule == "dualpipe" else 1.0)
            if c.schedule.startswith("dualpipe") and c.pp > 1
            else work.busy
        )
        return m * busy * self.straggler(c.num_chips) + self.stack.fixed_s

    def step_s(self, c: Candidate) -> float:
        """Seconds of one step, as `sim.cost.evaluate.in_closed_form`."""
        work, m = self.loads(c), c.batch // (c.dp * c.micro_batch)
        key = (c.tp, c.cp, c.ep, c.etp, c.pp, c.vpp, c.schedule, c.dp, c.zero, c.switches)
        data = self._data.get(key)
        if data is None:
            estimator = self._estimator(c, c.zero)
            data = self._data[key] = (
                *data_parallel(estimator, tuple(dict.fromkeys(self.params(c)))),
                estimator.switch("overlap_grad_reduce"),
                estimator.plan.overlap_p2p,
            )
        reduce, gather, optimizer, hidden, overlap_p2p = data
        p2p = 0.0
        if c.pp > 1:
            size = c.micro_batch * self.workload.seq / c.cp * self.model.hidden * WIDTH
            sp = self.switches[c.switches].get("sp") is not False
            p2p = stage_message_s(self.cluster, size, c.tp, c.tp * c.cp * c.dp, sp)
        scalars = Scalars(m, p2p, reduce, gather, hidden, optimizer, self.stack.fixed_s)
        total = closed_form_step(work, scalars, c.schedule, overlap_p2p, c.num_chips, self.stack).total_s
        return total if math.isfinite(total) else math.inf
