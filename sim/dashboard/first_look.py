"""A first look: what the planner page shows at once, while `sim.dashboard.state.answer` is still at work.

The plan keeps the widths of the last answer where they still fit, else it is the best of a few that most runs use (as
the page opens, of a few more: `sim.planner.quick.once`); its step is worked off by the search's fast model and one
campaign stands for the median of several. With the same widths the drawn facts move the step as they moved the last
one. The figures are near those that follow (of another model up to two thirds longer), and the page says that they are
a first look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minglm.errors import InputError
from sim.dashboard.controls import question_of
from sim.dashboard.state import Answer, answered, known_costs
from sim.planner.candidates import PlanCosts
from sim.planner.planner import completed
from sim.planner.question import Question, space_of
from sim.planner.quick import coarse, narrowed, once
from sim.planner.refine import refined
from sim.planner.search import RankedPlan, search
from sim.planner.space import AXES, Space
from sim.study.answer import glance

SAMPLES = 20  # of the interval: the first of those that the full answer draws
WIDTHS = {"tp": (1, 2, 8), "ep": (8,), "zero": (1,), "mtp_before_head": (0,)}  # of the coarse look, fewer still
FEW_PIPELINES = (("1f1b", 1), ("interleaved", 2), ("zb-h1", 1))


def first_look(values: Mapping[str, str], fixed: Mapping[str, object] | None, before: Answer | None = None) -> Answer:
    """The controls answered in about a tenth of a second.

    before: the last answer, if any: where its plan fits, its widths are kept.
    Raises:
        InputError: a control's value is refused, or no plan is found at a glance.
    """
    fixed = dict(fixed or {})
    q = question_of(values, fixed)
    candidate, costs = _at_a_glance(q, before)
    document = completed(q, costs, candidate)
    if before is not None and document.get("phases") is not None and "plans" in before.document:
        document["plans"] = before.document["plans"]
    return answered(values, fixed, q, candidate, costs, SAMPLES, document, glance)


def _at_a_glance(q: Question, before: Answer | None) -> tuple[RankedPlan, PlanCosts]:
    """The last plan's widths where they fit, or a handful of common ones: the better of the two where the question is
    another."""
    space, costs = space_of(q), known_costs(q)
    if before is None:
        return once(q, costs), costs
    plans: list[RankedPlan] = []
    for some in (_as_before(space, before.candidate), _few(space, q)):
        if some is not None and not (plans and _is_near(q, before)):
            best = search(costs, some, q.cluster.num_chips, q.batch, q.objective, 1).best
            plans += [refined(costs, plan) for plan in best]
    if not plans:
        raise InputError(f"no plan of {q.model.name} is found at a glance")
    return min(plans, key=lambda plan: plan.value(q.objective)), costs


def _is_near(q: Question, before: Answer) -> bool:
    """Whether the last plan's widths are a good guess: only chips, tokens, batch or prices have moved."""
    b = before.question
    return (q.model, q.seq, q.precision, q.stack) == (b.model, b.seq, b.precision, b.stack) and (
        q.cluster.name,
        q.cluster.chip.name,
    ) == (b.cluster.name, b.cluster.chip.name)


def _as_before(space: Space, plan: RankedPlan) -> Space | None:
    """The space with every axis held at the plan's value; None where it is not one of the space's."""
    c = plan.candidate
    held: dict[str, Any] = {axis: getattr(c, axis) for axis in AXES}
    if any(value not in getattr(space, axis) for axis, value in held.items() if axis != "switches"):
        return None
    if (c.schedule, c.vpp) not in space.pipelines or c.switches >= len(space.switches):
        return None
    return narrowed(space, plan, ())


def _few(space: Space, q: Question) -> Space:
    """A handful of the coarse look's widths."""
    some = coarse(space, q)[0]

    def kept(axis: str) -> tuple[Any, ...]:
        values = getattr(some, axis)
        return tuple(v for v in values if v in WIDTHS[axis]) or values[-1:]

    few: dict[str, Any] = {axis: kept(axis) for axis in WIDTHS}
    few["pipelines"] = tuple(p for p in some.pipelines if p in FEW_PIPELINES) or some.pipelines[:1]
    return replace(some, **few)
