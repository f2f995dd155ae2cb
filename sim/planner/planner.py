"""The planner: which plan is best for a model on a cluster, by how much, and why.

    >>> q = question("gpt3_175b", "dgx_a100", 64, seq=2048, batch=64)
    >>> answer(q, keep=5)["winner"]["chips"] <= 64
    True

Plans are ranked in closed form (`sim.planner.search`); the winner is then played as events. Cost counts the chips that
a plan uses, held for the expected time with failures and restarts (Daly's formula, `sim.training.campaign.expected`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minglm.config import ModelConfig
from minglm.errors import InputError, nearest
from sim.base.checks import check_finite, versions
from sim.base.units import DAY_S, parse, said, whole
from sim.cost import money
from sim.cost.evaluate import in_closed_form, step_of_estimate
from sim.cost.memory import check_fits
from sim.cost.stacks import Stack, load_stack, resolve
from sim.planner.candidates import PlanCosts
from sim.planner.search import OBJECTIVES, Found, Outcome, search
from sim.planner.space import Space, default_space
from sim.scenario.training import Scenario
from sim.spec.hardware import Chip, Cluster, chip_from, cluster_for_chip, cluster_from
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model
from sim.spec.plan import Plan, Workload, describe
from sim.study.campaign import CHECKPOINT_BYTES_PER_PARAM
from sim.training.evaluate import evaluate

ModelSource = str | Path | Mapping[str, Any] | ModelConfig | ModelSpec


@dataclass(frozen=True)
class Question:
    """What is asked. `batch` in sequences; `fixed` pins plan fields or axes; `stated`: defaults that were taken."""

    model: ModelSpec
    cluster: Cluster
    cluster_chips: int
    seq: int
    batch: int
    tokens: float = 1e12
    objective: str = "tokens"
    precision: str = "bf16"
    stack: Stack = field(default_factory=lambda: load_stack("generic"))
    tolerance: float = 0.0
    fixed: Mapping[str, object] = field(default_factory=dict)
    schedules: tuple[str, ...] | None = None
    prices: Mapping[str, object] = field(default_factory=dict)
    stated: tuple[str, ...] = ()
    mtp: bool = True

    @property
    def workload(self) -> Workload:
        """One step's batch."""
        return Workload(self.batch, self.seq, mtp=self.mtp)


def question(  # noqa: PLR0913 (keywords, each a part of the question)
    model: ModelSource,
    cluster: str | Mapping[str, Any] | Cluster | None = None,
    chips: object = None,
    *,
    chip: str | Mapping[str, Any] | Chip | None = None,
    seq: object = None,
    batch: object = None,
    batch_tokens: object = None,
    tokens: object = "1T",
    objective: str = "tokens",
    precision: str = "bf16",
    stack: str | None = None,
    tolerance: float | None = None,
    fixed: Mapping[str, object] | None = None,
    schedules: tuple[str, ...] | None = None,
    prices: Mapping[str, object] | None = None,
    mtp: bool = True,
) -> Question:
    """A question from names and human units.

    batch: sequences, kept exactly. batch_tokens: tokens, met within 2% (or `tolerance`), as replicas rarely divide it.
    Raises:
        InputError: one line.
    """
    spec, stated = load_model(model), []
    if cluster is None and chip is None:
        raise InputError(
            "neither a cluster nor a chip is given; name one, such as --cluster dgx_h100 (names are in data/clusters)"
        )
    if cluster is not None:
        machine = cluster_from(cluster)
        machine = machine if chip is None else replace(machine, chip=chip_from(chip))
    else:
        assert chip is not None  # one of the two is given
        machine = cluster_for_chip(chip)
    count = whole(machine.num_chips if chips is None else parse(chips, "count", "chips", low=1.0), "chips", high=10**8)
    length = min(spec.max_seq, 4096) if seq is None else whole(parse(seq, "count", "seq", low=1.0), "seq", high=10**8)
    if seq is None:
        stated.append(f"sequences of {length:,} tokens")
    if length > spec.max_seq:
        stated.append(f"sequences of {length:,} tokens, longer than the {spec.max_seq:,} that {spec.name} is made for")
    if batch is not None and batch_tokens is not None:
        raise InputError("batch and batch_tokens are both given; keep one")
    if batch is not None:
        size = whole(parse(batch, "count", "batch", low=1.0), "batch", high=10**9)
    else:
        if batch_tokens is None:
            stated.append("a batch of 16M tokens")
        size = max(
            1,
            round(
                parse("16M" if batch_tokens is None else batch_tokens, "count", "batch_tokens", low=1.0, high=1e13)
                / length
            ),
        )
        tolerance = 0.02 if tolerance is None else tolerance
    if objective not in OBJECTIVES:
        raise InputError(f"objective {objective!r}: not one of {', '.join(OBJECTIVES)}{nearest(objective, OBJECTIVES)}")
    if precision not in ("bf16", "fp16", "fp8"):
        raise InputError(
            f"precision {precision!r}: not one of bf16, fp16, fp8{nearest(precision, ('bf16', 'fp16', 'fp8'))}"
        )
    release, notes = resolve(stack, machine.chip)
    stated += notes
    total = parse(tokens, "count", "tokens", low=1.0, high=1e18)
    machine = money.with_prices(machine, prices or {})
    if objective == "cost" and machine.chip.rent_usd_per_hour is None and machine.system_price_usd is None:
        raise InputError(
            f"objective cost: no price of {machine.chip.name} is known; give one with --chip-hour-price '$2/h' or "
            "prices.rent_usd_per_hour, or "
            "choose --objective tokens"
        )
    return Question(
        spec,
        machine,
        count,
        length,
        size,
        total,
        objective,
        precision,
        release,
        tolerance or 0.0,
        fixed or {},
        schedules,
        prices or {},
        tuple(stated),
        mtp,
    )


def space_of(q: Question) -> Space:
    """The plans that answer the question."""
    return default_space(
        q.model,
        q.cluster,
        q.cluster_chips,
        q.seq,
        q.batch,
        tolerance=q.tolerance,
        schedules=q.schedules,
        fixed=q.fixed,
        mtp=q.mtp,
    )


def find(
    q: Question, keep: int | None = 20, progress: Callable[[int, int], None] | None = None
) -> tuple[Outcome, PlanCosts]:
    """All plans of the question's space, ranked.

    Raises:
        InputError: nothing fits; the nearest plan and what it lacks.
    """
    space = space_of(q)
    costs = PlanCosts(q.model, q.cluster, q.workload, q.precision, q.stack, space.switches)
    out = search(costs, space, q.cluster_chips, q.batch, q.objective, keep, progress)
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


def goodput(q: Question, chips: int, step_s: float, tokens_per_step: float) -> float:
    """Share of time that is first-time work, with the chip's failure rate (or Llama 3's) and asynchronous
    checkpoints.
    """
    from sim.spec.phases import Leg, Pace
    from sim.training.campaign import CampaignInput, expected
    from sim.training.checkpoints import Checkpoint
    from sim.training.failures import FailureModel

    rate = q.cluster.chip.failures_per_chip_hour
    failures = FailureModel(24 * rate.value) if rate else FailureModel()
    saved = Checkpoint(
        bytes=float(CHECKPOINT_BYTES_PER_PARAM * q.model.total_params(mtp=True)),
        write_bytes_per_s=q.cluster.storage_bytes_per_s.value,
        read_bytes_per_s=q.cluster.storage_bytes_per_s.value,
        host_bytes_per_s=q.cluster.host_bytes_per_s.value,
    )
    leg = Leg("training", round(q.tokens), Pace(step_s, tokens_per_step, chips, 1, ""))
    return expected(CampaignInput(legs=(leg,), cluster_chips=chips, failures=failures, checkpoint=saved))


def row(q: Question, costs: PlanCosts, found: Found) -> dict:
    """One plan with its time, memory, money and energy."""
    c, plan = found.candidate, costs.plan(found.candidate)
    share = goodput(q, c.num_chips, found.step_s, found.tokens)
    days = q.tokens / found.tokens_per_s / DAY_S / share
    hours = money.Range(days * 24, days * 24, days * 24, "h", "expected time with failures")
    price = money.costs(q.cluster, c.num_chips, hours, q.prices)
    per_chip = q.model.train_flops_per_token(q.seq, mtp=q.mtp) * found.tokens_per_s / c.num_chips
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
        "tokens_per_step": found.tokens,
        "micro_batches_per_replica": c.batch // (c.dp * c.micro_batch),
        "step_s": found.step_s,
        "tokens_per_s": found.tokens_per_s,
        "tokens_per_s_per_chip": found.tokens_per_s / c.num_chips,
        "mfu": per_chip / q.cluster.chip.peak("fp8" if q.precision == "fp8" else "bf16").value,
        "memory_gib": found.memory_bytes / 2**30,
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
    keep: int = 20,
    progress: Callable[[int, int], None] | None = None,
    verify: bool = True,
    samples: int = 0,
) -> dict:
    """The planner's whole answer, JSON-ready: winner, ranked list, Pareto front, the best of each schedule, reasons.

    samples: Monte Carlo over the facts' ranges for the winner (`sim.study.monte_carlo`); 0 draws none.
    """
    start = time.process_time()
    out, costs = find(q, keep, progress)
    spent = time.process_time() - start
    ranked = [row(q, costs, f) for f in out.best]
    second = next((f for f in out.best[1:] if f.value(q.objective) > out.best[0].value(q.objective) * 1.0001), None)
    result = {
        "question": {
            "model": q.model.name,
            "cluster": q.cluster.name,
            "chip": q.cluster.chip.name,
            "chips": q.cluster_chips,
            "seq": q.seq,
            "batch": q.batch,
            "batch_tolerance": q.tolerance,
            "tokens": q.tokens,
            "objective": q.objective,
            "precision": q.precision,
            "stack": q.stack.name,
        },
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
        "assumptions": [*q.stated, *_assumptions(q)],
        "facts": facts(q),
        "versions": versions(),
    }
    if verify:
        result["verified"] = by_events(q, costs, out.best[0])
    if samples:
        from sim.study.monte_carlo import monte_carlo

        result["uncertainty"] = monte_carlo(scenario_of(q, costs, out.best[0]), samples)
    return result


def scenario_of(q: Question, costs: PlanCosts, found: Found) -> Scenario:
    """The plan as a scenario on just the chips that it uses:
    for `sim.study.monte_carlo`, `sim.study.projection` and `sim.training.campaign`.
    """
    plan = costs.plan(found.candidate)
    return Scenario(
        f"{q.model.name} on {plan.num_chips:,} × {q.cluster.chip.name}",
        "",
        q.model,
        replace(q.cluster, num_chips=plan.num_chips),
        plan.num_chips,
        plan,
        costs.load(found.candidate),
        q.precision,
        q.stack,
        q.stated,
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
            "value": said(f.value, f.unit),
            "range": "" if f.certain else f"{said(f.low, f.unit)} – {said(f.high, f.unit)}",
            "strength": f.confidence,
            "source": f.source,
        }
        for name, f in listed
        if f is not None
    ]


def _assumptions(q: Question) -> list[str]:
    out = [
        "plans are ranked in closed form, every chip at the speed of the expected slowest",
        "cost counts the chips a plan uses, not the rest of the inventory",
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


def by_events(q: Question, costs: PlanCosts, found: Found) -> dict:
    """The plan's step simulated as events, beside the closed form that ranked it."""
    try:
        p = evaluate(q.model, q.cluster, costs.plan(found.candidate), costs.load(found.candidate), q.precision, q.stack)
    except InputError as err:  # more pieces of work than are played
        return {"closed_form_step_s": found.step_s, "reason": str(err)}
    return {
        "events_step_s": p.result.step_s,
        "closed_form_step_s": found.step_s,
        "difference": p.result.step_s / found.step_s - 1,
        "bubble_share": p.result.bubble_share,
        "events": p.result.events,
    }


# ------------------------------------------------------------------ why


def parts(q: Question, plan: Plan, load: Workload) -> dict[str, float]:
    """Seconds of a step on the busiest rank by cause; they sum to the step, what is not told apart is 'waiting'."""
    made, _, seconds, slow = in_closed_form(q.model, q.cluster, plan, load, q.precision, q.stack, warn=True)
    t = step_of_estimate(made, plan)
    m = made.costs.micro_batches * (0.5 if plan.schedule == "dualpipe" else 1.0)
    out = {name: m * s * slow for name, s in made.classes.items()}
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
    ("batch", "batch"),
    ("switches", "switches"),
)


def explain(q: Question, costs: PlanCosts, first: Found, second: Found | None, out: Outcome) -> list[str]:
    """The winner against the runner-up in sentences."""
    a, room = first.candidate, q.cluster.chip.memory_bytes.value
    lines = [
        f"{describe(costs.plan(a))} with micro-batch {a.micro_batch}, ZeRO {a.zero} and recompute {a.recompute} is "
        "the best of "
        f"{out.combinations:,} combinations: a step of {first.step_s:.3g} s, {first.tokens_per_s:,.0f} tokens/s on "
        f"{a.num_chips:,} chips."
    ]
    if second is not None:
        b = second.candidate
        gain = second.value(q.objective) / first.value(q.objective) - 1
        what = "cheaper" if q.objective == "cost" else "faster"
        apart = ", ".join(
            f"{name} {getattr(a, k)} instead of {getattr(b, k)}"
            for k, name in _WIDTHS
            if getattr(a, k) != getattr(b, k) and k != "switches"
        )
        if a.switches != b.switches:
            apart += f", switches {dict(costs.switches[a.switches])} instead of {dict(costs.switches[b.switches])}"
        lines.append(
            f"The runner-up, {describe(costs.plan(b))}, takes {second.step_s:.3g} s on {b.num_chips:,} chips: the "
            f"winner is {gain:.1%} {what}. "
            f"It has {apart}."
        )
        mine, other = parts(q, costs.plan(a), costs.load(a)), parts(q, costs.plan(b), costs.load(b))
        scale_a, scale_b = 1e9 / first.tokens, 1e9 / second.tokens  # seconds for a billion tokens: batches may differ
        moved = sorted(
            ((mine.get(k, 0.0) * scale_a - other.get(k, 0.0) * scale_b, k) for k in {*mine, *other}),
            key=lambda x: -abs(x[0]),
        )
        total = sum(other.values()) * scale_b
        said = [
            f"{'less' if d < 0 else 'more'} {k} ({d / total:+.1%})" for d, k in moved[:4] if abs(d) / total >= 0.001
        ]
        if said:
            lines.append("Of the runner-up's step, that means " + ", ".join(said) + ".")
    lines.append(
        f"It fills {first.memory_bytes / room:.0%} of a chip's memory; {out.too_large:,} combinations did not fit, "
        f"{out.evaluated:,} were costed, "
        f"{out.bounded:,} were skipped because even their busiest rank's own work takes longer than all that is kept."
    )
    if len(out.front) > 1:
        few = out.front[0]
        lines.append(
            f"The fewest chips that fit are {few.num_chips:,}, {few.value('time') / first.value('time'):.3g} times as "
            "slow; "
            f"{len(out.front)} plans trade chips for time."
        )
    return lines
