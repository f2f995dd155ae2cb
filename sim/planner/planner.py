"""The planner: which plan is best for a model on a cluster, by how much, and why.

    >>> from sim.planner.question import question
    >>> q = question("gpt3_175b", "dgx_a100", 64, seq=2048, batch=64)
    >>> answer(q, top_k=5)["winner"]["chips"] <= 64
    True

Plans are ranked in closed form (`sim.planner.search`); the winner is then simulated as events. Cost counts the chips
that a plan uses, held for the expected time with failures and restarts (Daly's formula,
`sim.training.campaign.expected`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from minglm.errors import InputError
from sim.base.checks import check_finite, versions
from sim.base.units import DAY_S, format_value
from sim.cost import money
from sim.cost.memory import check_fits, checkpoint_bytes
from sim.planner.candidates import PlanCosts
from sim.planner.explain import explain
from sim.planner.question import Question, space_of
from sim.planner.search import Outcome, RankedPlan, search
from sim.scenario.build import Run
from sim.scenario.training import Scenario
from sim.spec.phases import RunSegment, Throughput
from sim.spec.plan import Plan, describe
from sim.study.monte_carlo import monte_carlo
from sim.training.campaign import expected
from sim.training.campaign_input import CampaignInput
from sim.training.checkpoints import Checkpoint
from sim.training.evaluate import evaluate
from sim.training.failures import FailureModel


def find(
    q: Question, top_k: int | None = 20, progress: Callable[[int, int], None] | None = None
) -> tuple[Outcome, PlanCosts]:
    """All plans of the question's space, ranked.

    Raises:
        InputError: nothing fits; the nearest plan and what it lacks.
    """
    space = space_of(q)
    costs = PlanCosts(q.model, q.cluster, q.workload, q.precision, q.stack, space.switches)
    out = search(costs, space, q.cluster_chips, q.batch, q.objective, top_k, progress)
    if not out.best:
        raise InputError(_nothing(q, costs, out))
    return out, costs


def _nothing(q: Question, costs: PlanCosts, out: Outcome) -> str:
    head = f"no plan of {out.combinations:,} fits {q.model.name} on {q.cluster_chips:,} × {q.cluster.chip.name}"
    if out.nearest is None:
        return (
            f"no plan divides {q.model.name} and a batch of {q.batch:,} sequences over {q.cluster_chips:,} chips; "
            "allow the batch to differ "
            "(--batch-tokens or --batch-tolerance 2%), or pin fewer widths"
        )
    c, _ = out.nearest
    try:
        check_fits(q.model, q.cluster, costs.plan(c), costs.load(c), q.precision, q.stack)
    except InputError as err:
        # the full search has tried the single changes that check_fits would name
        reason = str(err).split(";")[0]
        return (
            f"{head}; nearest is {describe(costs.plan(c))} recompute {c.recompute} ZeRO {c.zero}: {reason}; "
            "add chips or offload the optimiser states"
        )
    return head


# ------------------------------------------------------------------ what a plan comes to


def goodput(q: Question, plan: Plan, step_s: float, tokens_per_step: float) -> float:
    """Share of time that is first-time work, with the chip's failure rate (or Llama 3's) and asynchronous
    checkpoints.
    """

    rate = q.cluster.chip.failures_per_chip_hour
    failures = FailureModel(24 * rate.value) if rate else FailureModel()
    saved = Checkpoint(
        bytes=checkpoint_bytes(plan, q.model.total_params(mtp=True)),
        write_bytes_per_s=q.cluster.storage_bytes_per_s.value,
        read_bytes_per_s=q.cluster.storage_bytes_per_s.value,
        host_bytes_per_s=q.cluster.host_bytes_per_s.value,
    )
    segment = RunSegment("training", round(q.tokens), Throughput(step_s, tokens_per_step, plan.num_chips, 1, ""))
    return expected(
        CampaignInput(segments=(segment,), cluster_chips=plan.num_chips, failures=failures, checkpoint=saved)
    )


def row(q: Question, costs: PlanCosts, ranked_plan: RankedPlan) -> dict:
    """One plan with its time, memory, money and energy."""
    c, plan = ranked_plan.candidate, costs.plan(ranked_plan.candidate)
    share = goodput(q, plan, ranked_plan.step_s, ranked_plan.tokens)
    days = q.tokens / ranked_plan.tokens_per_s / DAY_S / share
    hours = money.Range(days * 24, days * 24, days * 24, "h", "expected time with failures")
    price = money.costs(q.cluster, c.num_chips, hours, q.prices)
    per_chip = q.model.train_flops_per_token(q.seq, mtp=q.mtp) * ranked_plan.tokens_per_s / c.num_chips
    out = {
        "plan": describe(plan),
        **{
            k: getattr(c, k)
            for k in ("tp", "pp", "dp", "cp", "ep", "etp", "vpp", "schedule", "micro_batch", "zero", "recompute")
        },
        **costs.switches[c.switches],
        "chips": c.num_chips,
        "spares": q.cluster_chips - c.num_chips,
        "global_batch": c.batch,
        "tokens_per_step": ranked_plan.tokens,
        "micro_batches_per_replica": c.batch // (c.dp * c.micro_batch),
        "step_s": ranked_plan.step_s,
        "tokens_per_s": ranked_plan.tokens_per_s,
        "tokens_per_s_per_chip": ranked_plan.tokens_per_s / c.num_chips,
        "mfu": per_chip / q.cluster.chip.peak("fp8" if q.precision == "fp8" else "bf16").value,
        "memory_gib": ranked_plan.memory_bytes / 2**30,
        "goodput": share,
        "days": days,
        "chip_hours": price["chip_hours"].value,
        "energy_kwh": price["energy"].value,
        **{f"{k}_usd": price[k].value for k in ("rent", "own") if k in price},
    }
    check_finite(out)
    return out


def answer(
    q: Question,
    top_k: int = 20,
    progress: Callable[[int, int], None] | None = None,
    verify: bool = True,
    samples: int = 0,
) -> dict:
    """The planner's whole answer, JSON-ready: winner, ranked list, Pareto front, the best of each schedule, reasons.

    samples: Monte Carlo over the facts' ranges for the winner (`sim.study.monte_carlo`); 0 draws none.
    """
    start = time.process_time()
    out, costs = find(q, top_k, progress)
    spent = time.process_time() - start
    ranked = [row(q, costs, f) for f in out.best]
    second = next((f for f in out.best[1:] if f.value(q.objective) > out.best[0].value(q.objective) * 1.0001), None)
    result = {
        "question": q.to_dict(),
        "search": {
            "combinations": out.combinations,
            "evaluated": out.evaluated,
            "too_large": out.too_large,
            "bounded": out.bounded,
            "cpu_s": spent,
        },
        "winner": ranked[0],
        "ranked": ranked,
        "front": [row(q, costs, f) for f in out.front],
        "by_schedule": {
            name: row(q, costs, f) for name, f in sorted(out.by_schedule.items(), key=lambda i: i[1].value(q.objective))
        },
        "explanation": explain(q, costs, out.best[0], second, out),
        "assumptions": [*q.stated, *assumptions(q)],
        "facts": facts(q),
        "versions": versions(),
    }
    if verify:
        result["verified"] = by_events(q, costs, out.best[0])
    if samples:
        result["uncertainty"] = monte_carlo(scenario_of(q, costs, out.best[0]), samples)
    return result


def scenario_of(q: Question, costs: PlanCosts, ranked_plan: RankedPlan) -> Scenario:
    """The plan as a scenario on just the chips that it uses:
    for `sim.study.monte_carlo`, `sim.study.projection` and `sim.training.campaign`.
    """
    plan = costs.plan(ranked_plan.candidate)
    cluster = replace(q.cluster, num_chips=plan.num_chips)
    return Scenario(
        f"{q.model.name} on {plan.num_chips:,} × {q.cluster.chip.name}",
        Run(q.model, cluster, plan, costs.load(ranked_plan.candidate), q.precision, q.stack, q.stated),
        q.tokens,
        prices=q.prices,
    )


def facts(q: Question) -> list[dict]:
    """The machine's figures with range, strength and source, as a report shows them."""
    c, chip = q.cluster, q.cluster.chip
    listed = [
        ("peak of the chip", chip.peak("fp8" if q.precision == "fp8" else "bf16")),
        ("memory bandwidth", chip.memory_bytes_per_s),
        ("power of the chip", chip.power_w),
        ("rent of a chip", chip.rent_usd_per_hour),
        ("failures of a chip", chip.failures_per_chip_hour),
        ("price with the system", c.system_price_usd),
        ("PUE", c.pue),
        ("electricity", c.electricity_usd_per_kwh),
    ]
    listed += [
        (f"{t.name} {what}", f)
        for t in c.tiers
        for what, f in (("rate", t.bytes_per_s), ("efficiency", t.efficiency), ("latency", t.latency_s))
    ]
    return [
        {
            "name": name,
            "value": format_value(f.value, f.unit),
            "range": "" if f.certain else f"{format_value(f.low, f.unit)} – {format_value(f.high, f.unit)}",
            "strength": f.confidence,
            "source": f.source,
        }
        for name, f in listed
        if f is not None
    ]


def assumptions(q: Question) -> list[str]:
    """What an answer rests on beside the question's own defaults."""
    out = [
        "plans are ranked in closed form, every chip at the speed of the expected slowest",
        "cost counts the chips a plan uses, not the rest of the cluster",
        "not searched: ZeRO 2, whose reduction after every micro-batch is not priced, and GPipe, which has 1F1B's "
        "bubble and needs more memory",
    ]
    rate = q.cluster.chip.failures_per_chip_hour
    out.append(
        f"failures: {rate.source}" if rate else "failures per chip as in Llama 3's table: none is known for this chip"
    )
    if q.cluster.chip.rent_usd_per_hour is None:
        out.append(f"no rent of {q.cluster.chip.name} is known: no cost to rent is given (--chip-hour-price sets one)")
    if q.cluster.system_price_usd is None:
        out.append(
            f"no system price of {q.cluster.chip.name} is known: no cost to own is given (--system-price sets one)"
        )
    return out


def by_events(q: Question, costs: PlanCosts, ranked_plan: RankedPlan) -> dict:
    """The plan's step simulated as events, beside the closed form that ranked it."""
    try:
        p = evaluate(
            q.model,
            q.cluster,
            costs.plan(ranked_plan.candidate),
            costs.load(ranked_plan.candidate),
            q.precision,
            q.stack,
        )
    except InputError as err:  # more ops than are simulated
        return {"closed_form_step_s": ranked_plan.step_s, "reason": str(err)}
    return {
        "events_step_s": p.result.step_s,
        "closed_form_step_s": ranked_plan.step_s,
        "difference": p.result.step_s / ranked_plan.step_s - 1,
        "bubble_fraction": p.result.bubble_fraction,
        "events": p.result.events,
    }
