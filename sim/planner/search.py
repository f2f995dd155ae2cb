"""Search the plans of a `Space`: memory by formula, time by estimate, subtrees skipped where a bound proves them worse.

Widths that fix a layer's operators come first, those with the least work a token before the others. A pipeline of
such layers is skipped when even perfectly equal stages would take longer than the last plan of the list that is kept,
so the kept list is that of the full space; `tests/property/test_planner_search.py` compares it with brute force.
Estimates rank; `sim.planner.refine` then works the best of them off as the events do.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sim.planner.candidate import Candidate
from sim.planner.candidates import PlanCosts
from sim.planner.space import Space, enough_micro_batches, goes_with, has_shape, replicas, shards
from sim.spec.model import ModelSpec

OBJECTIVES = ("tokens", "time", "cost", "energy")
PER_CHIP = ("cost", "energy")  # what goes with the chips that a plan uses, each as long as it runs


@dataclass(frozen=True)
class RankedPlan:
    """A plan that fits: its step and what it comes to."""

    candidate: Candidate
    step_s: float
    memory_bytes: float
    tokens: int  # per step

    @property
    def tokens_per_s(self) -> float:
        """Tokens trained per second."""
        return self.tokens / self.step_s

    @property
    def num_chips(self) -> int:
        """Chips that the plan uses."""
        return self.candidate.num_chips

    def value(self, objective: str) -> float:
        """Smaller is better: seconds a token, or chip-seconds a token where cost or energy counts."""
        return self.step_s / self.tokens * (self.num_chips if objective in PER_CHIP else 1)


@dataclass
class Outcome:
    """Best plans first, and what happened to the rest.

    floor: no plan of the space has a smaller value of the objective, with equal stages and the least that reduction,
    gather and optimiser take (0: not known). beyond: nor has any plan outside of `best`, by its estimate (0: there is
    none). too_high: the most by which the estimate of a plan that was worked off was above its step.
    """

    best: list[RankedPlan]
    evaluated: int = 0  # fitted and costed
    too_large: int = 0  # refused by the memory formula
    bounded: int = 0  # skipped by the bound: pipelines, or all plans of the same layers at once
    nearest: tuple[Candidate, float] | None = None  # when nothing fits: least memory over the limit, and by how much
    floor: float = 0.0
    beyond: float = 0.0
    too_high: float = 0.0
    stopped: bool = False  # interrupted: the best so far

    @property
    def looked_at(self) -> int:
        """Plans whose memory was computed, and pipelines that a bound skipped."""
        return self.evaluated + self.too_large + self.bounded


@dataclass(frozen=True)
class _Layers:
    """Widths that fix a layer's operators, and the whole model's seconds of one micro-batch with them."""

    tp: int
    cp: int
    ep: int
    etp: int
    micro: int
    recompute: str
    layer_set: int
    forward_s: float
    backward_s: float
    work_s: float
    hidden_s: float

    def least_s(self, pp: int, schedule: str, vpp: int, m: int) -> float:
        """Seconds of a pipeline with perfectly equal stages: no estimate of this shape is below."""
        busy = self.work_s / pp
        if pp == 1:
            return m * busy
        if schedule.startswith("dualpipe"):
            return m * (self.work_s - self.hidden_s) / pp
        if schedule == "zb-h1":
            return m * busy + (pp - 1) * max(self.forward_s, self.backward_s) / pp
        if schedule == "zb-v":
            return m * busy + (pp - 1) * max(self.forward_s, self.backward_s) / (2 * pp)
        return m * busy + (self.work_s - busy) / vpp


class _Width(NamedTuple):
    """Layers, a pipeline's depth and its replicas: all that the number of micro-batches depends on. `least`: no plan of
    it has a smaller value of the objective."""

    least: float
    order: int
    layers: _Layers
    pp: int
    dp: int
    batch: int


def search(
    costs: PlanCosts,
    space: Space,
    chips: int,
    batch: int,
    objective: str = "tokens",
    top_k: int | None = 20,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """All plans of `space` on at most `chips` chips.

    Args:
        costs: of the question; its `switches` must be the space's.
        top_k: length of the ranked list; None keeps every plan that fits and skips nothing.
        progress: called with (widths done, widths). A KeyboardInterrupt ends the search with the best so far.
    """
    out, ranking = Outcome([], floor=math.inf), _Ranking(objective, top_k)
    widths = _widths(costs, space, chips, batch, objective)
    done = 0
    try:
        for done, width in enumerate(widths):
            if progress and done % 8 == 0:
                progress(done, len(widths))
            if width.least * (1 - 1e-9) > ranking.worst:  # nor is anything that follows
                out.bounded += len(space.pipelines) * (len(widths) - done)
                break
            _try_pipelines(costs, space, width, ranking, out)
    except KeyboardInterrupt:
        if not ranking.best:
            raise
        out.stopped = True
        out.floor = out.beyond = min(out.floor, widths[done].least)
    out.floor = min(out.floor, ranking.worst)
    out.beyond = min(out.beyond or math.inf, ranking.worst)
    out.floor, out.beyond = (0.0 if math.isinf(least) else least for least in (out.floor, out.beyond))
    out.best = [f for *_, f in ranking.best]
    if out.best:
        out.nearest = None
    return out


def _try_pipelines(costs: PlanCosts, space: Space, width: _Width, ranking: _Ranking, out: Outcome) -> None:
    """Every pipeline of these layers, depth and replicas that a bound does not rule out."""
    _, _, layers, pp, dp, size = width
    m, tokens = size // (dp * layers.micro), size * costs.workload.seq
    some = Candidate(
        layers.tp, layers.cp, layers.ep, layers.etp, layers.micro, layers.recompute, pp, 1, "1f1b", dp, 0, size, 0
    )
    slow, fixed = costs.straggler(some.num_chips), costs.stack.overhead_s(some.num_chips)
    fitting: dict[bool, list[tuple[int, list[int]]]] = {}
    for schedule, vpp in space.pipelines:
        if not enough_micro_batches(schedule, pp, m) or not has_shape(space, costs.model, pp, schedule, vpp, 0):
            continue
        least = layers.least_s(pp, schedule, vpp, m) * slow + fixed
        if ranking.beats(least / tokens, some.num_chips):
            out.bounded += 1
            continue
        dual = schedule.startswith("dualpipe")
        if dual not in fitting:
            of_kind = some._replace(schedule="dualpipe" if dual else "1f1b")
            fitting[dual] = _fitting(costs, of_kind, space.zero, _families(costs, space, layers), ranking, out)
        aheads = [a for a in space.mtp_before_head if has_shape(space, costs.model, pp, schedule, vpp, a)]
        for zero, family in fitting[dual]:
            c = some._replace(vpp=vpp, schedule=schedule, zero=zero, stages=space.stages)
            _try_family(costs, space, c, family, layers, aheads, ranking, out)


def _try_family(
    costs: PlanCosts,
    space: Space,
    pipeline: Candidate,
    family: list[int],
    layers: _Layers,
    aheads: list[int],
    ranking: _Ranking,
    out: Outcome,
) -> None:
    """A pipeline with each setting of a family, little in host memory first: more is tried where less does not fit."""
    schedule, pp, tokens = pipeline.schedule, pipeline.pp, pipeline.batch * costs.workload.seq
    m = pipeline.batch // (pipeline.dp * pipeline.micro_batch)
    slow, fixed = costs.straggler(pipeline.num_chips), costs.stack.overhead_s(pipeline.num_chips)
    settled = {ahead: set[int]() for ahead in aheads}  # settings that fit, or that a bound rules out
    for switch in family:
        untried = [a for a in aheads if settled[a].isdisjoint(costs.lighter[switch])]
        if not untried:
            continue
        c = pipeline._replace(switches=switch)
        own = layers if costs.layer_set[switch] == layers.layer_set else _known_layers(costs, space, c)
        busy = math.inf if schedule.startswith("dualpipe") else (own.work_s - own.forward_s) / pp * slow
        bound = own.least_s(pp, schedule, c.vpp, m) * slow + fixed + costs.least_once_s(c, busy)
        out.floor = min(out.floor, bound / tokens * (c.num_chips if ranking.objective in PER_CHIP else 1))
        if ranking.beats(bound / tokens, c.num_chips):
            out.bounded += 1
            for ahead in untried:
                settled[ahead].add(switch)
            continue
        for ahead in untried:
            if _try_one(costs, c._replace(mtp_before_head=ahead), tokens, ranking, out):
                settled[ahead].add(switch)


def _families(costs: PlanCosts, space: Space, layers: _Layers) -> list[list[int]]:
    """Settings that leave these layers as they are, each with those that have more in host memory, little first."""
    heads = [s for s, less in enumerate(costs.lighter) if not less and costs.layer_set[s] == layers.layer_set]
    more = [s for s in range(len(space.switches)) if goes_with(space.switches[s], layers.recompute)]
    return [
        [head, *sorted((s for s in more if head in costs.lighter[s]), key=lambda s: len(costs.lighter[s]))]
        for head in heads
    ]


def _fitting(
    costs: PlanCosts, c: Candidate, zeros: Iterable[int], families: list[list[int]], ranking: _Ranking, out: Outcome
) -> list[tuple[int, list[int]]]:
    """(ZeRO, settings of a family) that some pipeline may hold in memory."""
    fits = []
    for zero, family in itertools.product(zeros, families):
        if not shards(zero, c.dp * c.cp):
            continue
        may: list[int] = []
        for switch in family:
            if not may:  # with more in host memory the chip needs no more
                one = c._replace(zero=zero, switches=switch)
                excess = costs.least_bytes(one) - costs.memory_capacity
                if excess > 0:
                    _refuse(out, ranking, one, excess)
                    continue
            may.append(switch)
        if may:
            fits.append((zero, may))
    return fits


def _refuse(out: Outcome, ranking: _Ranking, c: Candidate, excess: float) -> None:
    """Count a plan that does not fit by `excess` bytes."""
    out.too_large += 1
    if not ranking.best and (out.nearest is None or excess < out.nearest[1]):
        out.nearest = (c, excess)


def _try_one(costs: PlanCosts, c: Candidate, tokens: int, ranking: _Ranking, out: Outcome) -> bool:
    """Cost a plan; whether that settles it: it fits, or a bound rules it out with all that is slower."""
    if ranking.beats(costs.lower_bound(c) / tokens, c.num_chips):
        out.bounded += 1
        return True
    need = costs.need_bytes(c)
    excess = costs.over_bytes(*need)
    if excess > 0:
        _refuse(out, ranking, c, excess)
        return False
    seconds = costs.estimate_s(c)
    out.evaluated += 1
    if 0 < seconds < math.inf:
        ranking.add(RankedPlan(c, seconds, need[0], tokens))
    return True


class _Ranking:
    """The best plans so far."""

    def __init__(self, objective: str, top_k: int | None) -> None:
        self.objective, self.top_k = objective, top_k
        self.best: list[tuple[float, Candidate, RankedPlan]] = []
        self.worst = math.inf  # value of the last plan that is kept, once the list is full

    def beats(self, seconds_per_token: float, chips: int) -> bool:
        """Whether a plan that is no faster than this would not be kept."""
        return seconds_per_token * (1 - 1e-9) * (chips if self.objective in PER_CHIP else 1) > self.worst

    def add(self, ranked_plan: RankedPlan) -> None:
        value, c = ranked_plan.value(self.objective), ranked_plan.candidate
        if value >= self.worst:
            return
        bisect.insort(self.best, (value, c, ranked_plan), key=lambda b: b[:2])
        if self.top_k is not None:
            del self.best[self.top_k :]
            if len(self.best) == self.top_k:
                self.worst = self.best[-1][0]


def _widths(costs: PlanCosts, space: Space, chips: int, batch: int, objective: str) -> list[_Width]:
    """All layers, depths and replicas of the space, those with the least bound first: good plans are known early, and
    the first bound above the list that is kept ends the search."""
    out: list[_Width] = []
    known: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    seq, fixed = costs.workload.seq, {}
    for layers in _groups(costs, space, chips):
        each, micro = layers.tp * layers.cp, layers.micro
        multiple = layers.ep * layers.etp // math.gcd(layers.ep * layers.etp, each)
        for pp in space.pp:
            most = chips // (each * pp)
            if not most:
                continue
            asked = (micro, most, multiple)
            if asked not in known:
                known[asked] = replicas(space, batch, *asked)
            per_batch = _Bound(layers, space, costs.model, pp)
            for dp, size in known[asked]:
                used = each * pp * dp
                if used not in fixed:
                    fixed[used] = (costs.straggler(used), costs.stack.overhead_s(used))
                slow, overhead = fixed[used]
                least = (per_batch.least_s(size // (dp * micro)) * slow + overhead) / (size * seq)
                out.append(_Width(least * (used if objective in PER_CHIP else 1), len(out), layers, pp, dp, size))
    return sorted(out)


class _Bound:
    """Seconds that no pipeline of some layers and depth goes below, by its number of micro-batches."""

    def __init__(self, layers: _Layers, space: Space, model: ModelSpec, pp: int) -> None:
        self.pp, self.busy = pp, layers.work_s / pp
        shaped = [(s, v) for s, v in space.pipelines if has_shape(space, model, pp, s, v, 0)]
        ramps = [(s, layers.least_s(pp, s, v, 0)) for s, v in shaped if not s.startswith("dualpipe")]
        self.ramp = min((ramp for _, ramp in ramps), default=math.inf)
        dual = any(s.startswith("dualpipe") for s, _ in shaped)
        self.paired = (layers.work_s - layers.hidden_s) / pp if dual else math.inf

    def least_s(self, m: int) -> float:
        """Of m micro-batches; infinite where no pipeline has this shape."""
        least = m * self.busy + self.ramp
        return min(least, m * self.paired) if m >= 2 * self.pp or self.pp == 1 else least


def _pairs(space: Space) -> bool:
    """Whether some pipeline of the space runs a forward beside a backward."""
    return any(s.startswith("dualpipe") for s, _ in space.pipelines)


def _groups(costs: PlanCosts, space: Space, chips: int) -> list[_Layers]:
    """All layers of the space."""
    groups = []
    dual = _pairs(space)
    # no layer is faster for what waits in host memory: those without it bound those with it
    light = sorted({of for of, less in zip(costs.layer_set, costs.lighter, strict=True) if not less})
    for tp, cp, ep, etp in itertools.product(space.tp, space.cp, space.ep, space.etp):
        if etp not in (1, tp) or tp * cp > chips or ep * etp > chips:
            continue
        for micro, recompute, switch in itertools.product(space.micro_batch, space.recompute, light):
            if goes_with(space.switches[switch], recompute):
                c = Candidate(tp, cp, ep, etp, micro, recompute, 1, 1, "", 1, 0, micro, switch)
                groups.append(_layers(costs, dual, c))
    return groups


def _known_layers(costs: PlanCosts, space: Space, c: Candidate) -> _Layers:
    """As `_layers`, kept for the next pipeline that asks."""
    dual = _pairs(space)
    known: dict[Any, _Layers] = costs.known["layers"]
    key = (c.tp, c.cp, c.ep, c.etp, c.micro_batch, c.recompute, dual, costs.layer_set[c.switches])
    if key not in known:
        c = c._replace(pp=1, vpp=1, schedule="", dp=1, zero=0, batch=c.micro_batch)
        known[key] = _layers(costs, dual, c)
    return known[key]


def _layers(costs: PlanCosts, dual: bool, c: Candidate) -> _Layers:
    model, forward, backward, work, hidden = costs.model, 0.0, 0.0, 0.0, 0.0
    counts = {"dense": model.dense_ffn_layers, "moe": model.moe_layers, "first": 1, "depths": 1, "last": 1}
    for paired in (False, True) if dual else (False,):
        parts = costs.costs(c._replace(schedule="dualpipe-v" if paired else "1f1b"))
        total = [sum(n * parts[kind][i] for kind, n in counts.items() if n) for i in range(5)]
        if not paired:
            forward, backward, work = total[0], total[1], sum(total[:3])
        else:  # what pairing may save, beside what it changes in the layers
            hidden = max(work - (sum(total[:3]) - total[3] - total[4]), 0.0)
    return _Layers(c.tp, c.cp, c.ep, c.etp, c.micro_batch, c.recompute, c.switches, forward, backward, work, hidden)
