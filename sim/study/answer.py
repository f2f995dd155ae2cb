"""The one answer to a training question: step, throughput, memory, days, money and energy of a scenario.

    simulated = simulate(load_scenario("glm5_100k_910b"))
    figures(simulated)["days"]

`run`, `plan`, `compare`, `sweep`, `campaign`, the page and the reports all print these figures. The step is simulated
as events; the days are those of the median of several campaigns with failures; money and energy follow from chips and
days. `outcome` is the same with facts at other values: what moves is scaled by the closed form, so that the scenario's
own facts give the scenario's own figures; `outcomes` records it once and repeats it for many draws (`sim.base.tape`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minglm.errors import InputError
from sim.base.checks import check_finite
from sim.base.figure import Figure
from sim.base.quantiles import quantile
from sim.base.tape import Tape, least
from sim.cost import money
from sim.cost.memory import Memory
from sim.scenario.build import Run
from sim.scenario.training import Scenario
from sim.spec.hardware import Cluster
from sim.spec.phases import RunSegment
from sim.spec.plan import WIDTHS, describe
from sim.study.campaign import (
    Check,
    PhaseTimer,
    campaign_input,
    campaign_segments,
    failure_model,
    nothing,
    phase_keys,
    total_tokens,
)
from sim.training.campaign import CampaignResult, expected
from sim.training.campaign import run as run_campaign
from sim.training.evaluate import Point, evaluate, worked_off

MOST_INTERRUPTIONS = 40_000  # of all draws together: a job that fails more often is drawn less often
FEWEST_DRAWS = 3
ERROR, FAILURES, LUCK = "simulator's own error", "failures per chip and day", "when failures come"


def point(s: Scenario, cluster: Cluster | None = None, **changes: Any) -> Point:
    """The scenario's main plan and batch, simulated; `changes` replaces plan, workload, jitter, seed or recorder.

    Raises:
        InputError: the plan cannot run, or does not fit.
    """
    return evaluate(
        s.model,
        cluster or s.cluster,
        changes.pop("plan", s.plan),
        changes.pop("workload", s.workload),
        s.precision,
        s.stack,
        jitter=changes.pop("jitter", s.jitter or None),
        seed=changes.pop("seed", s.seed),
        allow_oom=s.allow_oom,
        **changes,
    )


@dataclass(frozen=True)
class Outlook:
    """A scenario's step, the whole run's segments, and campaigns with failures, fewest days first."""

    scenario: Scenario
    step_s: float
    memory: Memory
    segments: tuple[RunSegment, ...]
    draws: tuple[CampaignResult, ...]

    @property
    def campaign(self) -> CampaignResult:
        """The draw with the median number of days."""
        return self.draws[(len(self.draws) - 1) // 2]

    def share(self, figure: str, share: float) -> float:
        """The value of a campaign's figure that this share of the draws stays below."""
        return quantile(sorted(getattr(draw, figure) for draw in self.draws), share)


@dataclass(frozen=True)
class Simulated(Outlook):
    """A scenario as events: `point` is its step."""

    point: Point


def simulate(s: Scenario, recorder: Any = None, check: Check = nothing) -> Simulated:
    """The scenario's step and its campaigns; `recorder` is given the step. check: called now and then; what it raises
    ends the work.

    Raises:
        InputError: the plan cannot run or does not fit, or the campaign does not end.
    """
    p = point(s, recorder=recorder)
    segments = campaign_segments(s, check=check)
    return simulated_with(s, p, segments, campaign_draws(s, segments, check=check))


def simulated_with(
    s: Scenario, p: Point, segments: tuple[RunSegment, ...], draws: tuple[CampaignResult, ...]
) -> Simulated:
    """What was simulated, as one."""
    return Simulated(s, p.result.step_s, p.memory, segments, draws, p)


def glance(s: Scenario) -> Outlook:
    """As `simulate`, in a fraction of the time: steps by the fast model of the planner's search, one campaign.

    Raises:
        InputError: as `simulate`.
    """
    step_s, need = worked_off(s.model, s.cluster, s.plan, s.workload, s.precision, s.stack, s.allow_oom)
    segments = campaign_segments(s, fast=True)
    return Outlook(s, step_s, need, segments, campaign_draws(replace(s, seeds=1), segments))


def campaign_draws(
    s: Scenario, segments: tuple[RunSegment, ...], to_the_end: bool = True, check: Check = nothing
) -> tuple[CampaignResult, ...]:
    """Campaigns of the scenario's seeds, fewest days first. `to_the_end`: one that the horizon stops is refused."""
    inp = campaign_input(s, segments)
    first = run_campaign(inp, seed=s.seed, timeline=False)
    if not first.finished and (to_the_end or s.horizon_s is None):
        done = first.tokens / max(total_tokens(s), 1)
        remedy = "use more chips, fewer tokens or a lower failure rate"
        if s.horizon_s is not None:
            whole = run_campaign(campaign_input(replace(s, horizon_s=None), segments), seed=s.seed, timeline=False)
            if whole.finished:
                remedy = (
                    f"set campaign.horizon='{math.ceil(whole.days * 1.1):.0f} days', or ask clustersim campaign what "
                    "happens until then"
                )
        raise InputError(
            f"{s.name}: the campaign does not finish within {first.days:,.0f} days ({done:.1%} of the tokens); {remedy}"
        )
    few = max(FEWEST_DRAWS, MOST_INTERRUPTIONS // max(first.interruptions, 1))
    all_draws = [first]
    for k in range(1, min(s.seeds, few)):
        check()
        all_draws.append(run_campaign(inp, seed=s.seed + k, timeline=False))
    return tuple(sorted(all_draws, key=lambda draw: draw.days))


def figures(simulated: Outlook) -> dict[str, Any]:
    """The answer, JSON-ready; names end in their unit. Chips that the plan leaves are spares, and are paid."""
    s, main = simulated.scenario, simulated.campaign
    paid = paid_for(s.cluster, main.days, s.prices)
    out = plan_figures(s.run, simulated.step_s, simulated.memory.total_bytes, main.goodput, main.days, paid)
    out["carbon_t"] = paid["carbon"].value
    check_finite(out)
    return out


def paid_for(cluster: Cluster, days: float, prices: Mapping[str, object]) -> dict[str, money.Range]:
    """Money, energy and carbon of a cluster held for so many days."""
    hours = days * 24
    return money.costs(cluster, money.Range(hours, hours, hours, "h", ""), prices)


def plan_figures(
    run: Run, step_s: float, memory_bytes: float, goodput: float, days: float, paid: Mapping[str, money.Range]
) -> dict[str, Any]:
    """What a plan comes to, JSON-ready; names end in their unit."""
    plan, workload, chip = run.plan, run.workload, run.cluster.chip
    tokens_per_s = workload.tokens / step_s
    per_chip = run.model.train_flops_per_token(workload.seq, mtp=workload.mtp) * tokens_per_s / plan.num_chips
    return {
        "plan": describe(plan),
        **{k: getattr(plan, k) for k in WIDTHS},
        "stages": list(plan.stages or ()),
        "mtp_before_head": plan.mtp_before_head,
        "chips": plan.num_chips,
        "spares": run.spares,
        "global_batch": workload.global_batch,
        "tokens_per_step": workload.tokens,
        "micro_batches_per_replica": plan.micro_batches(workload),
        "step_s": step_s,
        "tokens_per_s": tokens_per_s,
        "tokens_per_s_per_chip": tokens_per_s / plan.num_chips,
        "mfu": per_chip / chip.peak("fp8" if run.precision == "fp8" else "bf16").value,
        "memory_gib": memory_bytes / 2**30,
        "goodput": goodput,
        "days": days,
        "chip_hours": paid["chip_hours"].value,
        "energy_kwh": paid["energy"].value,
        **{f"{k}_usd": paid[k].value for k in ("rent", "own") if k in paid},
    }


# ------------------------------------------------------------------ with facts at other values


@dataclass(frozen=True)
class Base:
    """What all draws of a scenario share: the scenario as events, and what the closed form says of each phase."""

    simulated: Outlook
    timer: PhaseTimer  # on the scenario's own cluster
    closed_s: Mapping[tuple, float]  # (plan, phase, batch) → seconds of a step in closed form
    expected: float  # goodput after Daly's formula

    @property
    def luck(self) -> tuple[float, ...]:
        """Days of each campaign over those of the median one."""
        return tuple(draw.days / self.simulated.campaign.days for draw in self.simulated.draws)

    @property
    def campaign_over_expected(self) -> float:
        """Days of the median campaign over those that Daly's formula gives: spares, slow servers, changes of plan."""
        return self.simulated.campaign.goodput / self.expected


def base_of(s: Scenario, simulated: Outlook | None = None) -> Base:
    """What draws share: see `Base`.

    Raises:
        InputError: the scenario cannot run.
    """
    simulated = simulated or simulate(s)
    timer = PhaseTimer(s, s.cluster, simulated.memory)
    closed_s = _closed_s(s, timer, simulated)
    return Base(simulated, timer, closed_s, expected(campaign_input(s, simulated.segments)))


def _closed_s(s: Scenario, timer: PhaseTimer, simulated: Outlook) -> dict[tuple, float]:
    """Seconds of a step of each phase's last batch on the timer's cluster: a ramp's smaller batches move as it does."""
    return {key: timer.closed_form_s(*key) for key in phase_keys(s, simulated.segments).values()}


def outcome(s: Scenario, facts: Mapping[tuple, float] | None = None, base: Base | None = None) -> dict[str, float]:
    """The scenario's figures with some facts at other values; `base` saves what they do not move."""
    facts = dict(facts or {})
    base = base or base_of(s)
    factor, rate, luck = facts.pop((ERROR,), 1.0), facts.pop((FAILURES,), None), facts.pop((LUCK,), 1.0)
    cluster = money.with_prices(s.cluster, s.prices)
    for path, value in facts.items():
        cluster = changed(cluster, path, value)
    segments, keys = base.simulated.segments, phase_keys(s, base.simulated.segments)
    there = _closed_s(s, base.timer.on(cluster), base.simulated) if facts else base.closed_s
    ratio = {key: factor * there[key] / here for key, here in base.closed_s.items()}
    step_s = base.simulated.step_s * factor * _main_ratio(s, ratio, keys, factor)
    scaled = tuple(
        replace(x, throughput=replace(x.throughput, step_s=x.throughput.step_s * ratio[keys[x.phase]]))
        for x in segments
    )
    failures = s.failures if rate is None else {**s.failures, "per_chip_day": rate}
    # Goodput is a ratio: a segment of many steps has it, whatever their number.
    by_daly = expected(campaign_input(replace(s, run=replace(s.run, cluster=cluster), failures=failures), scaled))
    goodput = by_daly * base.campaign_over_expected / luck
    # Times a ratio that is 1 where nothing moved: the scenario's own days then, to the last digit.
    longer = sum(x.work_s for x in scaled) / sum(x.work_s for x in segments) * luck
    days = base.simulated.campaign.days * longer * (base.expected / by_daly) if by_daly else math.inf
    hours = money.Range(days * 24, days * 24, days * 24, "h", "")
    prices = {
        k: v for k, v in s.prices.items() if not isinstance(v, Figure) or k in ("carbon_kg_per_kwh", "storage_share")
    }
    paid = money.costs(cluster, hours, prices)
    out = {
        "step_s": step_s,
        "tokens_per_s": s.workload.tokens / step_s,
        "goodput": least(goodput, 1.0),
        "days": days,
        "energy_kwh": paid["energy"].value,
        "carbon_t": paid["carbon"].value,
    }
    out |= {f"{k}_usd": paid[k].value for k in ("rent", "own") if k in paid}
    check_finite(out)
    return out


def outcomes(s: Scenario, rows: Sequence[Mapping[tuple, float]], base: Base) -> list[dict[str, float] | InputError]:
    """`outcome` of each row of facts, or why there is none: recorded once with all these facts open, then repeated."""
    tape, paths = Tape(), list(dict.fromkeys(path for row in rows for path in row))
    own = [_own(s, path) for path in paths]
    recorded = outcome(s, {path: tape.input(value) for path, value in zip(paths, own, strict=True)}, base)
    columns = [[row.get(path, value) for row in rows] for path, value in zip(paths, own, strict=True)]
    repeated = tape.repeat(list(recorded.values()), columns, len(rows))
    tape.clear()
    out: list[dict[str, float] | InputError] = []
    for facts, results in zip(rows, repeated, strict=True):
        try:
            # None: it takes another course
            one = outcome(s, facts, base) if results is None else dict(zip(recorded, results, strict=True))
            check_finite(one)
            out.append(one)
        except InputError as err:
            out.append(err)
    return out


def _own(s: Scenario, path: tuple) -> float:
    """What an uncertain input is where nothing moves it."""
    if path == (FAILURES,):
        return failure_model(s).per_chip_day
    return 1.0 if path in ((ERROR,), (LUCK,)) else at(money.with_prices(s.cluster, s.prices), path)


def _main_ratio(s: Scenario, ratio: Mapping[tuple, float], keys: Mapping[str, tuple], factor: float) -> float:
    """How the main plan's step moves: as that of the phase it is the plan of, else as the longest phase's."""
    own = [key for key in keys.values() if key[0] == describe(s.plan) and key[1].seq == s.workload.seq]
    return ratio[(own or list(keys.values()))[0]] / factor


def at(part: Any, path: tuple) -> float:
    """The value of the figure at `path` of a cluster."""
    for key in path:
        part = part[key] if isinstance(part, (Mapping, tuple)) else getattr(part, key)
    return float(part.value)


def changed(part: Any, path: tuple, value: float) -> Any:
    """A copy of a cluster (or of what is in it: dataclass, mapping or tuple) with the figure at `path` at `value`."""
    if not path:
        return replace(part, value=value)
    key, rest = path[0], path[1:]
    if isinstance(part, Mapping):
        return {**part, key: changed(part[key], rest, value)}
    if isinstance(part, tuple):
        return (*part[:key], changed(part[key], rest, value), *part[key + 1 :])
    return replace(part, **{key: changed(getattr(part, key), rest, value)})
