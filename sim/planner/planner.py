"""The planner: which plan is best for a model on a cluster, by how much, and why.

    >>> from sim.planner.question import question
    >>> q = question("gpt3_175b", "dgx_a100", 64, seq=2048, batch=64)
    >>> answer(q, top_k=5)["winner"]["chips"] <= 64
    True

Plans are searched (`sim.planner.search`), the best of them worked off as events do (`sim.planner.refine`). The winner
is written into the question's document and answered as any scenario is (`sim.study.answer`): what is printed of it is
what `clustersim run` prints of that document.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from minglm.errors import InputError
from sim.base.checks import check_finite, versions
from sim.base.pareto import Front
from sim.base.units import DAY_S
from sim.planner import cache
from sim.planner.assumptions import assumptions, facts
from sim.planner.candidates import PlanCosts
from sim.planner.explain import explain
from sim.planner.question import OPTION_OF, Question, plain, read_question, space_of
from sim.planner.quick import narrowed, quick
from sim.planner.refine import FINALISTS, refine
from sim.planner.refusal import nothing_fits
from sim.planner.search import PER_CHIP, Outcome, RankedPlan, search
from sim.scenario.training import Scenario, resolve
from sim.spec.phases import RunSegment, Throughput
from sim.spec.plan import describe
from sim.study.answer import Simulated, figures, paid_for, plan_figures, simulate
from sim.study.campaign import campaign_input, phase_facts
from sim.study.monte_carlo import monte_carlo
from sim.training.campaign import expected

FRONT = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0625, 0.03125)  # shares of the cluster that the front looks at


def find(
    q: Question,
    top_k: int | None = 20,
    progress: Callable[[int, int], None] | None = None,
    first: Callable[[str, float], None] | None = None,
) -> tuple[Outcome, PlanCosts]:
    """The best plans of the question's space, in order.

    Args:
        progress: called with (done, total). A KeyboardInterrupt ends the search with the best so far.
        first: called with a good plan and the seconds of its step, before the search that proves the best.
    Raises:
        InputError: nothing fits; the nearest plan and what it lacks.
    """
    space = space_of(q)
    costs = PlanCosts(q.model, q.cluster, q.workload, q.precision, q.stack, space.switches)
    kept = None if top_k is None else max(FINALISTS, top_k)
    key = cache.key(q, kept)
    out = cache.read(key)
    if out is None:
        good = _good(q, costs, first) if first else None
        try:
            out = search(costs, space, q.cluster.num_chips, q.batch, q.objective, kept, progress)
        except KeyboardInterrupt:
            if good is None:
                raise
            out = Outcome([good], evaluated=1, stopped=True)
        if not out.best:
            raise InputError(nothing_fits(q, costs, out))
        out = refine(costs, out, q.objective, kept, pinned_stages=bool(space.stages))
        cache.write(key, out)
    return replace(out, best=out.best[:top_k]), costs


def _good(q: Question, costs: PlanCosts, first: Callable[[str, float], None]) -> RankedPlan | None:
    """A plan found at once, told; None where a coarse look finds none."""
    try:
        good = quick(q, costs, look_everywhere=False)[0]
    except InputError:
        return None
    first(describe(costs.plan(good.candidate)), good.step_s)
    return good


# ------------------------------------------------------------------ a plan written into the question


def completed(q: Question, costs: PlanCosts, ranked_plan: RankedPlan) -> dict[str, Any]:
    """The question's document with this plan: a scenario that `sim.scenario.training.resolve` takes."""
    c, plan = ranked_plan.candidate, costs.plan(ranked_plan.candidate)
    document = {k: v for k, v in q.document.items() if k != "global_tokens"}
    document["plan"] = {k: getattr(plan, k) for k in ("tp", "pp", "dp", "cp", "ep", "vpp")}
    if q.model.experts:
        document["plan"]["etp"] = plan.etp
    if plan.sp != (plan.tp > 1):
        document["plan"]["sp"] = plan.sp
    document |= {k: getattr(plan, k) for k in ("schedule", "micro_batch", "recompute")}
    document["global_batch"] = c.batch
    options = dict(document.get("options") or {})
    for alias in ("distributed_optimizer", "fsdp", "expert_tp", "recompute_layers"):
        options.pop(alias, None)
    options["zero"] = c.zero
    if plan.stages is not None:
        options["stages"] = list(plan.stages)
    if plan.mtp_before_head:
        options["mtp_before_head"] = plan.mtp_before_head
    for key, value in costs.switches[c.switches].items():
        options[OPTION_OF.get(key, key)] = list(value) if isinstance(value, tuple) else value
    document["options"] = options
    if q.objective in PER_CHIP:  # chips that the plan does not use are not held
        document["chips"] = plan.num_chips
    if "prices" in document:
        document["prices"] = {k: plain(v) for k, v in document["prices"].items()}
    return document


def scenario_of(q: Question, costs: PlanCosts, ranked_plan: RankedPlan) -> Scenario:
    """The plan as a scenario: what `clustersim run` makes of the completed question."""
    return resolve(completed(q, costs, ranked_plan), _name(q))


def _name(q: Question) -> str:
    return str(q.document.get("name") or f"{q.model.name} on {q.cluster.num_chips:,} × {q.cluster.chip.name}")


def complete(
    document: Mapping[str, Any], name: str = "question", progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """The document with the best plan where it asks for one; a document with a whole plan as it is.

    Phases of other lengths get plans of their own, found at once (`sim.planner.quick`); the campaign counts what
    changing from one to the next costs.

    Raises:
        InputError: a value that is refused, or no plan fits.
    """
    return solved(read_question(document, name), progress)


def solved(q: Question, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """The question's document with its best plan, as `complete`."""
    if not q.is_open:
        return dict(q.document)
    out, costs = find(q, 1, progress)
    return with_phase_plans(q, completed(q, costs, out.best[0]))


def with_phase_plans(q: Question, document: dict[str, Any], check: Callable[[], None] | None = None) -> dict[str, Any]:
    """The completed document with a further plan for each length of its phases, and for the first batch of one that
    grows; those that it has of its own stay where there are chips for them.

    The campaign takes for each stretch the one with which the run ends soonest. check: as in `sim.planner.quick.quick`.
    """
    if document.get("phases") is None:
        return document
    plans, asked_of = [p for p in document.get("plans") or () if _chips(p) <= q.cluster.num_chips], set()
    document = {**document, "plans": plans}
    for phase in resolve(document).phases:
        for batch in {phase.batch_tokens, phase.first_batch_tokens or phase.batch_tokens}:
            asked = (phase.seq, batch, phase.attention)
            if asked in asked_of or (phase.seq == q.seq and abs(batch / (q.batch * q.seq) - 1) < 0.3):
                continue
            asked_of.add(asked)
            plan = _phase_plan(q, *asked, check)
            if plan:
                inherited = {
                    k: none for k, none in KEPT.items() if k == "mtp_before_head" or document["options"].get(k)
                }
                plans.append({**plan, "options": {**inherited, **plan["options"]}})
    return {**document, "plans": plans} if plans else {k: v for k, v in document.items() if k != "plans"}


def _chips(plan: Mapping[str, Any]) -> int:
    """The fewest chips that a document's plan needs."""
    return math.prod(int(plan.get(key) or 1) for key in ("tp", "pp", "cp", "dp"))


# options of a phase's own plan, and what they are where it does not say: what the first plan has is not inherited
KEPT = {"mtp_before_head": 0, "activation_offload": False, "optimizer_offload": False}


def _phase_plan(
    q: Question, seq: int, batch_tokens: float, attention: str, check: Callable[[], None] | None
) -> dict[str, Any] | None:
    """A plan for sequences and a batch of another size, found at once; None where none fits."""
    asked = {k: v for k, v in q.document.items() if k not in ("phases", "plans", "global_batch")}
    asked = _without_layout({**asked, "seq": seq, "global_tokens": batch_tokens, "attention": attention})
    # few long sequences take what batch their replicas divide, up to a fifth off
    one = read_question({**asked, "batch_tolerance": max(q.tolerance, 0.2)})
    try:
        best, costs = quick(one, check=check)
    except InputError:
        return None  # the campaign says which phase has no plan
    document = completed(one, costs, best)
    own = {k: document[k] for k in ("schedule", "micro_batch", "recompute")}
    options = {k: document["options"][k] for k in ("zero", "stages", *KEPT) if k in document["options"]}
    return {**document["plan"], **own, "options": options}


def _without_layout(document: dict[str, Any]) -> dict[str, Any]:
    options = {k: v for k, v in document["options"].items() if k not in ("stages", "zero", "mtp_before_head")}
    out = {k: v for k, v in document.items() if k not in ("schedule", "micro_batch", "recompute")}
    return {**out, "options": options, "plan": {"auto": True}}


# ------------------------------------------------------------------ what a plan comes to


def row(
    q: Question,
    costs: PlanCosts,
    ranked_plan: RankedPlan,
    like: Scenario,
    held: int | None = None,
    longer: float = 1.0,
) -> dict:
    """A plan of a list with its time, memory, money and energy; days by Daly's formula, where the answer itself
    simulates campaigns of all phases.

    like: a scenario of the question: its failures and checkpoints. held: chips that are paid (default: the cluster's,
    or the plan's where cost is the aim). longer: days are multiplied by this.
    """
    c, plan = ranked_plan.candidate, costs.plan(ranked_plan.candidate)
    if held is None:
        held = c.num_chips if q.objective in PER_CHIP else q.cluster.num_chips
    segment = RunSegment(
        "training",
        max(1, round(q.tokens / ranked_plan.tokens)),
        Throughput(ranked_plan.step_s, ranked_plan.tokens, c.num_chips, c.dp, ""),
    )
    workload = replace(q.workload, global_batch=c.batch)
    run = replace(like.run, cluster=q.cluster, plan=plan, workload=workload)
    share = expected(campaign_input(replace(like, run=replace(like.run, cluster=q.cluster)), (segment,)))
    days = q.tokens / ranked_plan.tokens_per_s / DAY_S / share * longer
    paid = paid_for(replace(q.cluster, num_chips=held), days, q.prices)
    out = plan_figures(run, ranked_plan.step_s, ranked_plan.memory_bytes, share, days, paid)
    out.update(costs.switches[c.switches])
    check_finite(out)
    return out


def answer(
    q: Question,
    top_k: int = 20,
    progress: Callable[[int, int], None] | None = None,
    samples: int = 0,
    first: Callable[[str, float], None] | None = None,
) -> dict:
    """The planner's whole answer, JSON-ready: winner, ranked list, front, the best of each schedule, reasons.

    The winner's figures are those of its scenario as events (`sim.study.answer`), the other rows are near them. A
    question whose plan is given is answered for that plan.

    samples: draws of the uncertain inputs for the winner's intervals (`sim.study.monte_carlo`); 0 draws none.
    progress, first: as in `find`. An answer that was given before is read from the disk (`sim.planner.cache`).
    """
    start = time.process_time()
    key = cache.answer_key(q, top_k, samples)
    known = cache.read_answer(key)
    if known is not None:
        known["search"] |= {"cpu_s": time.process_time() - start, "cached": True}
        return known
    result = _answered(q, top_k, progress, samples, first, start)
    if not result["search"]["stopped"]:
        cache.write_answer(key, result)
    return result


def _answered(
    q: Question,
    top_k: int,
    progress: Callable[[int, int], None] | None,
    samples: int,
    first: Callable[[str, float], None] | None,
    start: float,
) -> dict:
    if not q.is_open:
        document = dict(q.document)
        return _told(q, document, simulate(resolve(document, _name(q))), {}, samples, time.process_time() - start)
    out, costs = find(q, top_k, progress, first)
    best = out.best[0]
    document = with_phase_plans(q, completed(q, costs, best))
    scenario = resolve(document, _name(q))
    simulated = simulate(scenario)
    longer = simulated.campaign.days / row(q, costs, best, scenario)["days"]
    second = next((f for f in out.best[1:] if f.value(q.objective) > best.value(q.objective) * 1.0001), None)
    spent = time.process_time() - start
    lists = {
        "ranked": [row(q, costs, f, scenario, longer=longer) for f in out.best],
        "front": [row(q, of, f, scenario, f.num_chips, longer) for f, of in front(q, best, costs)],
        "by_schedule": {
            f.candidate.schedule: row(q, costs, f, scenario, longer=longer)
            for f in sorted(best_by_schedule(q, costs, best), key=lambda f: f.value(q.objective))
        },
        "explanation": explain(q, costs, best, second, out),
        "search": {
            "looked_at": out.looked_at,
            "evaluated": out.evaluated,
            "too_large": out.too_large,
            "bounded": out.bounded,
            "floor": out.floor,
            "best": best.value(q.objective),
            "stopped": out.stopped,
            "cached": False,
        },
    }
    return _told(q, document, simulated, lists, samples, spent)


def _told(
    q: Question, document: dict[str, Any], simulated: Simulated, lists: dict[str, Any], samples: int, cpu_s: float
) -> dict:
    """The answer as a dict: the winner's figures, then what the search has besides."""
    winner = figures(simulated)
    result = {
        "question": q.to_dict(),
        "document": document,
        "winner": winner,
        "ranked": [winner],
        "front": [winner],
        "by_schedule": {winner["schedule"]: winner},
        "explanation": [f"{winner['plan']} is the question's own plan: every field of it is given."],
        **lists,
        "assumptions": [*q.stated, *assumptions(q)],
        "facts": facts(q),
        **run_facts(simulated),
        "versions": versions(),
    }
    nothing = {
        "looked_at": 1,
        "evaluated": 1,
        "too_large": 0,
        "bounded": 0,
        "floor": 0.0,
        "best": 0.0,
        "stopped": False,
        "cached": False,
    }
    result["ranked"] = [winner, *result["ranked"][1:]]  # the first of the list is the answer itself
    result["by_schedule"] = {**result["by_schedule"], winner["schedule"]: winner}
    result["search"] = {**nothing, **lists.get("search", {}), "cpu_s": cpu_s}
    if samples:
        result["uncertainty"] = monte_carlo(simulated.scenario, samples, workers=1, simulated=simulated)
    return result


def run_facts(simulated: Simulated) -> dict[str, dict[str, Any]]:
    """The step as events beside the closed form; the run's phases, and its changes of plan."""
    p = simulated.point
    return {
        "verified": {
            "events_step_s": p.result.step_s,
            "closed_form_step_s": p.closed_form_s,
            "difference": p.result.step_s / p.closed_form_s - 1,
            "bubble_fraction": p.result.bubble_fraction,
            "events": p.result.events,
        },
        **phase_facts(simulated.scenario, simulated.segments),
    }


def front(q: Question, best: RankedPlan, costs: PlanCosts) -> list[tuple[RankedPlan, PlanCosts]]:
    """Plans that trade chips for time, few chips first: near the best of each share of the cluster, none of them both
    slower and larger than another."""
    found: list[tuple[RankedPlan, PlanCosts]] = [(best, costs)]
    for share in FRONT[1:]:
        chips = int(q.cluster.num_chips * share)
        if chips:
            try:
                found.append(
                    quick(replace(q, cluster=replace(q.cluster, num_chips=chips)), costs, look_everywhere=False)
                )
            except InputError:
                break  # fewer chips hold the model no better
    kept: Front[tuple[RankedPlan, PlanCosts]] = Front()
    for plan, of in found:
        kept.add(plan.num_chips, plan.value("time"), (plan, of))
    return list(kept.items)


def best_by_schedule(q: Question, costs: PlanCosts, best: RankedPlan) -> list[RankedPlan]:
    """The best plan of each pipeline schedule with the winner's layers: what the schedule itself brings."""
    out = [best]
    space = space_of(q)
    for schedule in dict(space.pipelines):
        if schedule == best.candidate.schedule:
            continue
        of_one = replace(
            narrowed(space, best, ("pp", "mtp_before_head", "zero", "recompute")),
            pipelines=tuple(p for p in space.pipelines if p[0] == schedule),
        )
        few = search(costs, of_one, q.cluster.num_chips, q.batch, q.objective, 5)
        if few.best:
            out += refine(costs, few, q.objective, 1, pinned_stages=True).best
    return out
