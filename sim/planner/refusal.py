"""Why a question has no plan, and the nearest question that has one: every remedy that is named was tried."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from minglm.errors import InputError
from sim.cost.memory import check_fits
from sim.planner.candidates import PlanCosts
from sim.planner.question import OPTION_OF, Question
from sim.planner.quick import quick
from sim.planner.search import Outcome
from sim.spec.plan import describe

TOLERANCES = (0.02, 0.05, 0.1, 0.2, 0.4)
MORE = tuple(2**k for k in range(1, 11))  # times the chips, or the batch
DIVIDED = ("tp", "pp", "cp", "dp")  # a plan has their product of chips


def nothing_fits(q: Question, costs: PlanCosts, out: Outcome) -> str:
    """One line: what does not fit or divide, and what would."""
    chips = q.cluster.num_chips
    if out.nearest is None:
        head = f"no plan divides {q.model.name} and a batch of {q.batch:,} sequences over {chips:,} chips{_pins(q)}"
        return f"{head}; {_first_that_works(_dividing(q)) or 'pin fewer widths'}"
    head = f"no plan fits {q.model.name} on {chips:,} × {q.cluster.chip.name}"
    c, _ = out.nearest
    try:
        check_fits(q.model, q.cluster, costs.plan(c), costs.load(c), q.precision, q.stack)
    except InputError as err:
        # the full search has tried the single changes that check_fits would name, what lies in host memory among them
        reason = str(err).split(";")[0]
        short = "a chip" if costs.memory_bytes(c) > costs.memory_capacity else "hosts"
        remedy = (
            _first_that_works(_with_chips(q))
            or _first_that_works(_without_a_pin(q), look_everywhere=True)
            or f"take {short} with more memory"
        )
        return f"{head}; nearest is {describe(costs.plan(c))} recompute {c.recompute} ZeRO {c.zero}: {reason}; {remedy}"
    return head


def _pins(q: Question) -> str:
    """The widths that the question pins, as a clause."""
    pinned = [f"{key}={q.pinned[key]}" for key in (*DIVIDED, "ep", "micro_batch", "schedule", "vpp") if key in q.pinned]
    return f" with {', '.join(pinned)}" if pinned else ""


def _first_that_works(remedies: Iterator[tuple[str, Question]], look_everywhere: bool = False) -> str:
    """The words of the first remedy that has a plan; empty where none has. look_everywhere: as in `quick`."""
    for words, other in remedies:
        try:
            quick(other, look_everywhere=look_everywhere)
        except InputError:
            continue
        return words
    return ""


def _with_chips(q: Question) -> Iterator[tuple[str, Question]]:
    for times in MORE:
        chips = q.cluster.num_chips * times
        yield (
            f"give {chips:,} chips or more (--chips {chips})",
            replace(q, cluster=replace(q.cluster, num_chips=chips)),
        )


def _dividing(q: Question) -> Iterator[tuple[str, Question]]:
    """What may be asked instead, least change first: the chips that the pins need, another batch, one pin less."""
    pinned = {key: min(value) if isinstance(value, (list, tuple)) else value for key, value in q.pinned.items()}
    needed = math.prod(pinned.get(key, 1) for key in DIVIDED)
    if needed > q.cluster.num_chips:
        cluster = replace(q.cluster, num_chips=needed)
        yield f"the pinned widths need {needed:,}: give --chips {needed}", replace(q, cluster=cluster)
    if q.tolerance == 0.0:
        unit = pinned.get("dp", 1) * pinned.get("micro_batch", 1)
        up = math.ceil(q.batch / unit) * unit
        for batch in (up, *(up * times for times in MORE[:5])):
            if batch != q.batch:
                other = replace(q, workload=replace(q.workload, global_batch=batch))
                yield f"give a batch of {batch:,} sequences (--batch {batch})", other
    for tolerance in TOLERANCES:
        if tolerance > q.tolerance:
            yield (
                f"allow the batch to differ (--batch-tolerance {tolerance:.0%})",
                replace(q, tolerance=tolerance),
            )
    yield from _without_a_pin(q)
    yield from _with_chips(q)


def _without_a_pin(q: Question) -> Iterator[tuple[str, Question]]:
    for key in q.pinned:
        other = replace(q, pinned={k: v for k, v in q.pinned.items() if k != key})
        yield f"leave {OPTION_OF.get(key, key)} out", other
