"""Search all plans of a `Space`: memory by formula, time in closed form, subtrees skipped only where a bound proves
them worse.

A subtree (same widths and batch, any recomputation, ZeRO and switches) is skipped when even its busiest rank's own work
takes longer than both the last plan of the list that is kept and some plan on the front with no more chips. So the kept
list and the front are those of the full space; `tests/property/test_planner_search.py` compares them with brute force.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from sim.base.pareto import Front
from sim.planner.candidates import Candidate, PlanCosts
from sim.planner.space import Space, enough_micro_batches, lies_evenly, replicas

OBJECTIVES = ("tokens", "time", "cost")
Leaf = tuple[str, int, int]  # recompute, zero, index of the switches


@dataclass(frozen=True)
class RankedPlan:
    """A plan that fits: its step in closed form and what it comes to."""

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
        """Smaller is better: seconds a token, or chip-seconds a token where cost counts."""
        return self.step_s / self.tokens * (self.num_chips if objective == "cost" else 1)


@dataclass
class Outcome:
    """Best plans first, the front from few chips to many, and what happened to every combination."""

    best: list[RankedPlan]
    front: list[RankedPlan]
    by_schedule: dict[str, RankedPlan]
    evaluated: int = 0  # fitted and costed
    too_large: int = 0  # refused by the memory formula
    bounded: int = 0  # skipped by the bound
    nearest: tuple[Candidate, float] | None = None  # when nothing fits: least memory over the limit, and by how much
    work: list[str] = field(default_factory=list)

    @property
    def combinations(self) -> int:
        """All that were looked at, costed or not."""
        return self.evaluated + self.too_large + self.bounded


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
        progress: called with (groups done, groups).
    """
    model, seq = costs.model, costs.workload.seq
    ranking, out = _Ranking(objective, top_k), Outcome([], [], {})
    ordered = _groups(costs, space, chips)
    leaves = [(r, z, s) for r in space.recompute for z in space.zero for s in range(len(space.switches))]
    for done, (_, tp, cp, ep, etp, micro) in enumerate(ordered):
        if progress:
            progress(done, len(ordered))
        multiple = ep * etp // math.gcd(ep * etp, tp * cp)
        least_work = {
            dual: _least_work(costs, space, tp, cp, ep, etp, micro, dual)
            for dual in {s.startswith("dualpipe") for s, _ in space.pipelines}
        }
        for pp in space.pp:
            most = chips // (tp * cp * pp)
            options = replicas(space, batch, micro, most, multiple) if most else []
            for schedule, vpp in space.pipelines if options else ():
                if not lies_evenly(model, pp, schedule, vpp, costs.workload.mtp):
                    continue
                least = least_work[schedule.startswith("dualpipe")] / pp
                for dp, size in options:
                    m = size // (dp * micro)
                    if not enough_micro_batches(schedule, pp, m):
                        continue
                    used, tokens = tp * cp * pp * dp, size * seq
                    alone = dp * cp == 1
                    if ranking.beats(
                        schedule, used, (m * least * costs.straggler(used) + costs.stack.overhead_s(used)) / tokens
                    ):
                        out.bounded += sum(not (alone and z) for _, z, _ in leaves)
                        continue
                    widths = Candidate(tp, cp, ep, etp, micro, "none", pp, vpp, schedule, dp, 0, size)
                    _try_leaves(costs, ranking, out, widths, leaves, tokens)
    out.best, out.front, out.by_schedule = [f for *_, f in ranking.best], list(ranking.front.items), ranking.by_schedule
    if out.best:
        out.nearest = None
    return out


def _try_leaves(
    costs: PlanCosts, ranking: _Ranking, out: Outcome, widths: Candidate, leaves: list[Leaf], tokens: int
) -> None:
    """Cost every recomputation, ZeRO stage and switch of these widths and batch that a bound does not rule out."""
    bound: dict[tuple[str, int], bool] = {}
    alone = widths.dp * widths.cp == 1
    for recompute, zero, switch in leaves:
        if zero and alone:
            continue
        c = widths._replace(recompute=recompute, zero=zero, switches=switch)
        key = (recompute, costs.layer_set[switch])
        if key not in bound:
            bound[key] = ranking.full and ranking.beats(c.schedule, c.num_chips, costs.lower_bound(c) / tokens)
        if bound[key]:
            out.bounded += 1
            continue
        need = costs.memory_bytes(c)
        if need > costs.memory_capacity:
            out.too_large += 1
            excess = need - costs.memory_capacity
            if not ranking.best and (out.nearest is None or excess < out.nearest[1]):
                out.nearest = (c, excess)
            continue
        seconds = costs.step_s(c)
        out.evaluated += 1
        if 0 < seconds < math.inf:
            ranking.add(RankedPlan(c, seconds, need, tokens))


class _Ranking:
    """The best plans so far, the front, and the best of each schedule."""

    def __init__(self, objective: str, top_k: int | None) -> None:
        self.objective, self.top_k = objective, top_k
        self.best: list[tuple[float, Candidate, RankedPlan]] = []
        self.front: Front[RankedPlan] = Front()
        self.by_schedule: dict[str, RankedPlan] = {}

    @property
    def full(self) -> bool:
        return self.top_k is not None and len(self.best) >= self.top_k

    def beats(self, schedule: str, chips: int, seconds_per_token: float) -> bool:
        """Whether a plan that is no faster than this would change nothing that is kept."""
        if not self.full:
            return False
        each = seconds_per_token * (1 - 1e-9)
        value = each * (chips if self.objective == "cost" else 1)
        top = self.by_schedule.get(schedule)
        return (
            value > self.best[-1][0]
            and top is not None
            and top.value(self.objective) < value
            and self.front.beats(chips, each)
        )

    def add(self, ranked_plan: RankedPlan) -> None:
        value, c = ranked_plan.value(self.objective), ranked_plan.candidate
        if not self.full or value < self.best[-1][0]:
            bisect.insort(self.best, (value, c, ranked_plan), key=lambda b: b[:2])
            if self.top_k is not None:
                del self.best[self.top_k :]
        self.front.add(c.num_chips, ranked_plan.value("time"), ranked_plan)
        top = self.by_schedule.get(c.schedule)
        if top is None or value < top.value(self.objective):
            self.by_schedule[c.schedule] = ranked_plan


def _groups(costs: PlanCosts, space: Space, chips: int) -> list[tuple[float, int, int, int, int, int]]:
    """Widths that fix a layer's operators, most efficient first:
    good plans are then known early and more is skipped.
    """
    groups = []
    for tp, cp, ep, etp in itertools.product(space.tp, space.cp, space.ep, space.etp):
        if etp in (1, tp) and tp * cp <= chips and ep * etp <= chips:
            for micro in space.micro_batch:
                work = _least_work(costs, space, tp, cp, ep, etp, micro, False)
                groups.append((work * tp * cp / micro, tp, cp, ep, etp, micro))
    return sorted(groups)


def _least_work(costs: PlanCosts, space: Space, tp: int, cp: int, ep: int, etp: int, micro: int, dual: bool) -> float:
    """Seconds of one micro-batch over all layers and ends that no plan of these widths goes below."""
    model, least = costs.model, math.inf
    for switch in {costs.layer_set.index(s) for s in costs.layer_set}:
        for recompute in space.recompute:
            parts = costs.costs(
                Candidate(
                    tp, cp, ep, etp, micro, recompute, 1, 1, "dualpipe-v" if dual else "1f1b", 1, 0, micro, switch
                )
            )
            total = 0.0
            for kind, count in (
                ("dense", model.dense_ffn_layers),
                ("moe", model.moe_layers),
                ("first", 1),
                ("last", 1),
            ):
                if count:
                    f, b, w, hide_f, hide_b = parts[kind]
                    total += count * (f + b + w - (hide_f + hide_b if dual else 0.0))
            least = min(least, total)
    return least
