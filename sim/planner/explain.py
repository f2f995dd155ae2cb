"""Why the best plan is the best: the step of winner and runner-up by cause, in sentences."""

from __future__ import annotations

from sim.cost.evaluate import in_closed_form, step_of_estimate
from sim.planner.candidates import PlanCosts
from sim.planner.question import Question
from sim.planner.search import Outcome, RankedPlan
from sim.spec.plan import Plan, Workload, describe


def parts(q: Question, plan: Plan, load: Workload) -> dict[str, float]:
    """Seconds of a step on the busiest rank by cause; they sum to the step, what is not told apart is 'waiting'."""
    costed, _, seconds, slow = in_closed_form(q.model, q.cluster, plan, load, q.precision, q.stack, allow_oom=True)
    t = step_of_estimate(costed, plan)
    m = costed.costs.micro_batches * (0.5 if plan.schedule == "dualpipe" else 1.0)
    out = {name: m * s * slow for name, s in costed.classes.items()}
    out |= {
        "idle pipeline": t.bubble_s,
        "exposed gradient reduction": t.grad_reduce_s,
        "parameter gather": t.param_gather_s,
        "optimiser": t.optimizer_s,
    }
    out["waiting"] = seconds - sum(out.values())
    return out


_WIDTHS = (
    ("tp", "TP"),
    ("pp", "PP"),
    ("cp", "CP"),
    ("ep", "EP"),
    ("etp", "ETP"),
    ("dp", "DP"),
    ("schedule", "schedule"),
    ("vpp", "virtual stages"),
    ("micro_batch", "micro-batch"),
    ("zero", "ZeRO"),
    ("recompute", "recompute"),
    ("mtp_before_head", "MTP layers' chunks before the head"),
    ("batch", "batch"),
    ("switches", "switches"),
)


def explain(q: Question, costs: PlanCosts, first: RankedPlan, second: RankedPlan | None, out: Outcome) -> list[str]:
    """The winner against the runner-up in sentences."""
    a, room = first.candidate, q.cluster.chip.memory_bytes.value
    lines = [
        f"{describe(costs.plan(a))} with micro-batch {a.micro_batch}, ZeRO {a.zero} and recompute {a.recompute} is "
        f"the best of {out.looked_at:,} plans: a step of {first.step_s:.3g} s, {first.tokens_per_s:,.0f} tokens/s on "
        f"{a.num_chips:,} chips."
    ]
    if second is not None:
        b = second.candidate
        gain = second.value(q.objective) / first.value(q.objective) - 1
        what = {"cost": "cheaper", "energy": "more frugal"}.get(q.objective, "faster")
        apart = ", ".join(
            f"{name} {getattr(a, k)} instead of {getattr(b, k)}"
            for k, name in _WIDTHS
            if getattr(a, k) != getattr(b, k) and k != "switches"
        )
        mine, other = costs.switches[a.switches], costs.switches[b.switches]
        for key in dict.fromkeys((*mine, *other)):
            if mine.get(key) != other.get(key):
                apart += f"{', ' if apart else ''}{key} {mine.get(key, 'unset')} instead of {other.get(key, 'unset')}"
        lines.append(
            f"The runner-up, {describe(costs.plan(b))}, takes {second.step_s:.3g} s on {b.num_chips:,} chips: the "
            f"winner is {gain:.1%} {what}. "
            f"It has {apart}."
        )
        winner, runner_up = parts(q, costs.plan(a), costs.load(a)), parts(q, costs.plan(b), costs.load(b))
        scale_a, scale_b = 1e9 / first.tokens, 1e9 / second.tokens  # seconds for a billion tokens: batches may differ
        moved = sorted(
            ((winner.get(k, 0.0) * scale_a - runner_up.get(k, 0.0) * scale_b, k) for k in {*winner, *runner_up}),
            key=lambda x: -abs(x[0]),
        )
        total = sum(runner_up.values()) * scale_b
        causes = [
            f"{'less' if d < 0 else 'more'} {k} ({d / total:+.1%})" for d, k in moved[:4] if abs(d) / total >= 0.001
        ]
        if causes:
            lines.append("Of the runner-up's step, that means " + ", ".join(causes) + ".")
    lines.append(
        f"It fills {first.memory_bytes / room:.0%} of a chip's memory; {out.too_large:,} plans did not fit, "
        f"{out.evaluated:,} were costed, {out.bounded:,} pipelines were skipped because even equal stages would take "
        "longer than all that is kept."
    )
    if out.stopped:
        lines.append("The search was interrupted: this is the best so far.")
    return lines + missed(first.value(q.objective), out)


def missed(value: float, out: Outcome) -> list[str]:
    """What a better plan than the one with this value could still gain, in sentences."""
    lines = []
    if out.beyond:
        beyond = out.beyond / value - 1
        lines.append(
            f"Beyond the plans that were worked off, no estimate is less than {abs(beyond):.1%} "
            f"{'above' if beyond >= 0 else 'below'} the winner's step, and of those worked off none was estimated more "
            f"than {out.too_high:.1%} too high"
            + (": nothing better is missed unless an estimate is further off." if beyond > out.too_high else ".")
        )
    if out.floor:
        lines.append(
            f"What may be missed at most: {max(value / out.floor - 1, 0):.1%}. Perfectly equal stages, their "
            "pipeline's ramp, and the least of reduction, gather and optimiser take so long for every plan that fits."
        )
    return lines
