"""A good plan in a fraction of a second: a coarse look at the space, then a few axes at a time from the best found so
far.

`sim.planner.search` proves that nothing is better and takes seconds to a minute; a page with sliders cannot wait that
long. Every plan is costed by the same functions as there, so a quick plan's figures are exact for that plan; what is
not proven is that it is the best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from minglm.errors import InputError
from sim.planner.candidates import PlanCosts
from sim.planner.question import Question, space_of
from sim.planner.refine import refine, refined
from sim.planner.search import RankedPlan, search
from sim.planner.space import AXES, Space

# The coarse look: widths that published runs use. An axis without any of them keeps its first value.
COARSE = {
    "tp": (1, 2, 8),
    "ep": (1, 8, 64),
    "etp": (1,),
    "micro_batch": (1,),
    "zero": (1,),
    "recompute": ("none", "full"),
    "mtp_before_head": (0, 1),
}
# Axes that depend on each other are varied together.
TOGETHER = (
    ("pp", "pipelines", "mtp_before_head"),
    ("tp", "ep"),
    ("tp", "cp", "micro_batch"),
    ("recompute", "zero", "etp", "switches"),
    ("pp", "tp", "recompute"),
)
ROUNDS = 4
COARSE_PIPELINES = (("1f1b", 1), ("interleaved", 2), ("interleaved", 5), ("zb-h1", 1), ("dualpipe-v", 2))
FEW = 4  # plans of a look that are worked off
NEAR = {"tp": 1, "cp": 1, "micro_batch": 1, "ep": 2}  # steps from the held value that are looked at
APART = 1.3  # a start that is this many times as slow as the best one is not followed


def quick(
    q: Question,
    costs: PlanCosts | None = None,
    look_everywhere: bool = True,
    check: Callable[[], None] | None = None,
) -> tuple[RankedPlan, PlanCosts]:
    """A plan that fits and is near the best, and the costs that priced it.

    Args:
        costs: of an earlier question: where it was about the same but for chips and batch, what it has computed is used
            again.
        look_everywhere: search the whole space where the coarse look finds nothing, which is slow.
        check: called before each look; what it raises ends the search.
    Raises:
        InputError: nothing fits.
    """
    space = space_of(q)
    about = (q.model, q.cluster, q.workload, q.precision, q.stack, space.switches)
    shared = costs if costs and costs.serves(*about) else PlanCosts(*about)

    def best(some: Space) -> RankedPlan | None:
        if check:
            check()
        out = search(shared, some, q.cluster.num_chips, q.batch, q.objective, FEW)
        return refine(shared, out, q.objective, 1, pinned_stages=True).best[0] if out.best else None

    starts = [plan for plan in map(best, coarse(space, q)) if plan is not None]
    if not starts:  # rare
        anywhere = best(space) if look_everywhere else None
        if anywhere is None:
            raise InputError(f"no plan fits {q.model.name} on {q.cluster.num_chips:,} × {q.cluster.chip.name}")
        starts = [anywhere]
    first = min(f.value(q.objective) for f in starts)
    ends = []
    for top in starts:
        if top.value(q.objective) > APART * first:
            continue
        seen: dict[tuple[str, ...], RankedPlan] = {}
        for axes in TOGETHER * ROUNDS:
            if seen.get(axes) is top:  # nothing has moved since these axes were last looked at
                continue
            other = best(narrowed(space, top, axes))
            if other is not None and other.value(q.objective) < top.value(q.objective):
                top = other
            seen[axes] = top
        ends.append(top)
    return min(ends, key=lambda f: f.value(q.objective)), shared


def once(q: Question, costs: PlanCosts) -> RankedPlan:
    """The best of a coarse look, bettered along each few axes once: half a second of a core, where `quick` takes
    several.

    Raises:
        InputError: the coarse look finds nothing.
    """
    space = space_of(q)
    found: RankedPlan | None = None
    for axes in ((), *TOGETHER):
        some = narrowed(space, found, axes) if found else coarse(space, q)[0]
        best = search(costs, some, q.cluster.num_chips, q.batch, q.objective, FEW).best
        for plan in [refined(costs, plan) for plan in best]:
            if found is None or plan.value(q.objective) < found.value(q.objective):
                found = plan
        if found is None:
            break
    if found is None:
        raise InputError(f"no plan of {q.model.name} is found at a glance")
    return found


def coarse(space: Space, q: Question) -> list[Space]:
    """Few values of each axis, one space to start from for each context width: what is best with sequences whole may be
    a hollow that no few axes lead out of where they are better split."""

    def published(axis: str) -> tuple[Any, ...]:
        values = getattr(space, axis)
        return tuple(v for v in values if v in COARSE[axis]) or values[:1]

    cut: dict[str, Any] = {axis: published(axis) for axis in COARSE}
    pipelines = tuple(p for p in space.pipelines if p in COARSE_PIPELINES) or space.pipelines
    widths = [c for c in space.cp if c in ((1, 2) if q.seq <= 16_384 else (1, 2, 8))] or space.cp[:1]
    return [
        replace(
            space, **cut, cp=(c,), pp=tuple(p for p in space.pp if p & (p - 1) == 0) or space.pp, pipelines=pipelines
        )
        for c in widths
    ]


def narrowed(space: Space, ranked_plan: RankedPlan, axes: tuple[str, ...]) -> Space:
    """The space with every axis held at the found plan's value, except `axes`."""
    c = ranked_plan.candidate
    held: dict[str, Any] = {axis: (getattr(c, axis),) for axis in AXES}
    held |= {"pipelines": ((c.schedule, c.vpp),)}
    near: dict[str, Any] = {}
    for axis, steps in NEAR.items():
        values = getattr(space, axis)
        i = values.index(getattr(c, axis)) if getattr(c, axis) in values else 0
        near[axis] = values[max(i - steps, 0) : i + steps + 1]
    # switches are known by their place in the space's own list, so they are never cut
    return replace(space, **near | {k: v for k, v in held.items() if k not in axes})
