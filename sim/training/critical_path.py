"""Which chain of work set the length of a step, and what would shorten it: "what would I buy to go faster?"

Walked backwards from the last event: work starts when its input arrived or when the rank was free, whichever came last.
"""

from __future__ import annotations

from typing import NamedTuple

from sim.cost.step_costs import StepCosts

_NAMES = {"F": "forward", "B": "backward", "I": "backward", "W": "weight gradient", "FB": "forward and backward"}


class Segment(NamedTuple):
    """One link of the critical path, seconds. `cause` is what one would have to shorten."""

    cause: str
    rank: int
    start_s: float
    end_s: float
    micro_batch: int = -1


def critical_path(programs, replica, costs: StepCosts, rank: int, reduced: list[float]) -> list[Segment]:
    """Segments from the step's beginning to its end, without gaps.

    `rank` is the one whose reduction ended last, `reduced[r]` when rank r's did. If another replica held the reduction up,
    the wait for it is a segment of its own.
    """
    made = {}  # slot -> (rank, op) that filled it
    for r, program in enumerate(programs):
        for k, (_, _, out, _, out2, _) in enumerate(program.rows):
            made[out] = made[out2] = (r, k)
    after, path = reduced[rank], []
    for cause, seconds in (
        ("optimiser", costs.optimizer_s),
        ("parameter gather", costs.param_gather_s),
        ("host", costs.fixed_s),
    ):
        if seconds:
            path.append(Segment(cause, rank, after, after + seconds))
            after += seconds
    path.reverse()
    at, k = replica.ends[rank][-1], len(replica.ends[rank]) - 1
    begun = max(at, reduced[rank] - costs.grad_reduce_s)
    if reduced[rank] > begun:
        path.append(Segment("gradient reduction", rank, begun, reduced[rank]))
    if begun > at:
        path.append(Segment("slowest replica", rank, at, begun))
    r = rank
    while k >= 0:
        program, slots, end = programs[r], replica.slots, replica.ends[r][k]
        need, need2 = program.rows[k][:2]
        before = replica.ends[r][k - 1] if k else 0.0
        slot = need2 if slots[need2] > slots[need] else need
        start, op = max(before, slots[slot]), program.ops[k]
        path.append(Segment(_NAMES[op.kind], r, start, end, op.micro_batch))
        if slots[slot] > before:
            r2, k2 = made[slot]
            sent = replica.ends[r2][k2]
            if start > sent:
                path.append(Segment("pipeline transfer", r2, sent, start, op.micro_batch))
            r, k = r2, k2
        else:
            k -= 1
    path.reverse()
    return path


def causes(path: list[Segment]) -> dict[str, float]:
    """Seconds of the critical path by cause, largest first."""
    total: dict[str, float] = {}
    for s in path:
        total[s.cause] = total.get(s.cause, 0.0) + s.end_s - s.start_s
    return dict(sorted(total.items(), key=lambda item: -item[1]))
