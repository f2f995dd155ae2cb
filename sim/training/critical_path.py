"""Which chain of work set the length of a step, and what would shorten it: "what would I buy to go faster?"

Walked backwards from the last event: work starts when its input arrived or when the rank was free, whichever came last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sim.cost.step_costs import StepCosts
from sim.training.program import Program
from sim.training.replica import Replica

_NAMES = {"F": "forward", "B": "backward", "I": "backward", "W": "weight gradient", "FB": "forward and backward"}


class Segment(NamedTuple):
    """One link of the critical path, seconds. `cause` is what one would have to shorten."""

    cause: str
    rank: int
    start_s: float
    end_s: float
    micro_batch: int = -1


def critical_path(
    programs: Sequence[Program], replica: Replica, costs: StepCosts, rank: int, reduced: Sequence[float]
) -> list[Segment]:
    """Segments from the step's beginning to its end, without gaps.

    `rank` is the one whose reduction ended last, `reduced[r]` when rank r's did. If another replica held the reduction
    up, the wait for it is a segment of its own.
    """
    return [*_pipeline(programs, replica, rank), *_after_pipeline(replica, costs, rank, reduced[rank])]


def _pipeline(programs: Sequence[Program], replica: Replica, rank: int) -> list[Segment]:
    """From the step's beginning to the last op of the rank, found backwards."""
    filled_by = {}  # slot -> (rank, op)
    for r, program in enumerate(programs):
        for k, (_, _, out, _, out2, _) in enumerate(program.rows):
            filled_by[out] = filled_by[out2] = (r, k)
    path: list[Segment] = []
    slots, k = replica.slots, len(replica.ends[rank]) - 1
    while k >= 0:
        need, need2, *_ = programs[rank].rows[k]
        op, end = programs[rank].ops[k], replica.ends[rank][k]
        before = replica.ends[rank][k - 1] if k else 0.0
        slot = need2 if slots[need2] > slots[need] else need
        start = max(before, slots[slot])
        path.append(Segment(_NAMES[op.kind], rank, start, end, op.micro_batch))
        if slots[slot] > before:
            rank, k = filled_by[slot]
            sent = replica.ends[rank][k]
            if start > sent:
                path.append(Segment("pipeline transfer", rank, sent, start, op.micro_batch))
        else:
            k -= 1
    return path[::-1]


def _after_pipeline(replica: Replica, costs: StepCosts, rank: int, reduced_s: float) -> list[Segment]:
    """From the last op of the rank to the end of the step; `reduced_s` is when its gradients are."""
    path, end = [], replica.ends[rank][-1]
    reduction_start = max(end, reduced_s - costs.grad_reduce_s)
    if reduction_start > end:
        path.append(Segment("slowest replica", rank, end, reduction_start))
    if reduced_s > reduction_start:
        path.append(Segment("gradient reduction", rank, reduction_start, reduced_s))
    start = reduced_s
    for cause, seconds in (
        ("optimiser", costs.optimizer_s),
        ("parameter gather", costs.param_gather_s),
        ("host", costs.fixed_s),
    ):
        if seconds:
            path.append(Segment(cause, rank, start, start + seconds))
            start += seconds
    return path


def causes(path: list[Segment]) -> dict[str, float]:
    """Seconds of the critical path by cause, largest first."""
    total: dict[str, float] = {}
    for s in path:
        total[s.cause] = total.get(s.cause, 0.0) + s.end_s - s.start_s
    return dict(sorted(total.items(), key=lambda item: -item[1]))
