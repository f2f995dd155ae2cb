"""The best of a search, worked off as the events do: the list that an answer ranks by.

An estimate knows each rank's work but not how uneven ranks wait for each other. So the first plans of a search are
worked off operation by operation (`sim.training.fast_step`), and the layers of the best are moved one at a time from
chunk to chunk as long as that helps.
"""

from __future__ import annotations

from dataclasses import replace

from sim.planner.candidate import Candidate
from sim.planner.candidates import PlanCosts
from sim.planner.search import Outcome, RankedPlan
from sim.planner.stages import moved
from sim.training.fast_step import fast_step_s

FINALISTS = 60  # plans that are worked off: estimates of interleaved, uneven pipelines are up to a tenth off
MOVES = 100  # partitions that are tried for the best plan
DISTANT = 6  # a layer moves to a chunk no further than this: what is far has been balanced already


def refined(costs: PlanCosts, plan: RankedPlan) -> RankedPlan:
    """The plan with its step worked off as the events do."""
    known, c = costs.known["events_s"], plan.candidate  # near plans are looked at many times
    if (c,) not in known:
        known[(c,)] = fast_step_s(costs.step_costs(c), c.schedule)
    return replace(plan, step_s=known[(c,)])


def refine(costs: PlanCosts, out: Outcome, objective: str, top_k: int | None, pinned_stages: bool = False) -> Outcome:
    """The outcome with its first plans worked off and put in order, `top_k` of them."""
    estimated = out.best[: max(FINALISTS, top_k or 0)]
    finalists = [refined(costs, plan) for plan in estimated]
    too_high = max((a.step_s / b.step_s - 1 for a, b in zip(estimated, finalists, strict=True)), default=0.0)
    finalists.sort(key=lambda f: (f.value(objective), f.candidate))
    if finalists and not pinned_stages and not out.stopped:
        finalists[0] = polished(costs, finalists[0])
    return replace(out, best=finalists if top_k is None else finalists[:top_k], too_high=max(too_high, 0.0))


def polished(costs: PlanCosts, best: RankedPlan, moves: int = MOVES) -> RankedPlan:
    """The plan with layers moved between chunks, one at a time, as long as its step gets shorter and it fits."""
    c = best.candidate
    if c.pp * c.vpp == 1:
        return best
    stages, tried, improved = costs.layout(c).stages, {costs.layout(c).stages}, True
    while improved and moves > 0:
        improved = False
        for other in moved(stages, c.mtp_before_head, DISTANT):
            if other in tried:
                continue
            if moves <= 0:
                break
            moves -= 1
            tried.add(other)
            candidate = c._replace(stages=other)
            if costs.excess_bytes(candidate) > 0 or _at_least_s(costs, candidate) >= best.step_s:
                continue
            trial = refined(costs, replace(best, candidate=candidate, memory_bytes=costs.memory_bytes(candidate)))
            if trial.step_s < best.step_s * (1 - 1e-9):
                best, stages, improved = trial, other, True
                break
    return best


def _at_least_s(costs: PlanCosts, c: Candidate) -> float:
    """Seconds that the candidate's step does not go below: its busiest rank without a pause, and what comes once."""
    once = costs.data_parallel(c)
    return costs.lower_bound(c) + once.param_gather_s + once.optimizer_s
