"""From a scenario to a projection: memory, one step on the clock, throughput, MFU, days, money, what-ifs.

`project(scenario)` returns a JSON-ready dict; nothing in it is measured here, and every input's range and source is
carried along. Low and high hold 90% of `DRAWS` draws of every uncertain input and of the simulator's own error. Jitter
is simulated in the one step that is shown; the campaign's steps take the expected slowest chip instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from minglm.errors import InputError
from sim.base.checks import check_finite, versions
from sim.base.distributions import DRAWS
from sim.base.units import DAY_S, RMB_PER_USD, format_value
from sim.cost import money
from sim.cost.evaluate import scale_compute
from sim.scenario.file import merge
from sim.scenario.training import Scenario, load_scenario, resolve
from sim.spec.model_loader import load_model
from sim.spec.phases import RunSegment
from sim.spec.plan import WIDTHS, describe
from sim.study.answer import figures, point, simulate
from sim.study.campaign import campaign_input, corner, phase_facts, segments_on, total_tokens
from sim.study.monte_carlo import monte_carlo
from sim.training import step
from sim.training.campaign import CampaignResult
from sim.training.campaign import run as run_campaign
from sim.training.critical_path import causes
from sim.training.evaluate import Point
from sim.training.sensitivity import step_sensitivity
from sim.training.step import Recorder

MOVERS = 8  # inputs that move the days most: how many are told
DRAWN = {"chip_hours": "chip_hours", "energy": "energy_kwh", "carbon": "carbon_t", "rent": "rent_usd", "own": "own_usd"}


def project(s: Scenario, recorder: Recorder | None = None, what_ifs: bool = True, corners: bool = False) -> dict:
    """The whole answer to a scenario as a JSON-ready dict. Names end in their unit.

    corners: ranges from the case in which every uncertain input is at its good end, and the one with all at the bad.

    Raises:
        InputError: the plan cannot run or does not fit, or the campaign does not end.
    """
    simulated = simulate(s, recorder)
    p, segments, main = simulated.point, simulated.segments, simulated.campaign
    sure = monte_carlo(s, DRAWS, workers=1, simulated=simulated)
    low, high = (sure["intervals"]["days"][end] for end in ("p5", "p95"))
    how = f"median campaign with failures; range: 90% of {sure['samples']} draws of every uncertain input and the "
    how += "simulator's own error"
    if corners:
        low, high = (_corner_days(s, segments, good) for good in (True, False))
        how = "median campaign with failures; range: all uncertain inputs at their good, and at their bad end together"
    days = money.Range(main.days, min(low, main.days), max(high, main.days), "days", how)
    hours = days.times(24.0, "h", "wall-clock hours")
    cost = money.costs(s.cluster, hours, s.prices)
    if not corners:
        cost = {name: _drawn(r, sure["intervals"].get(DRAWN.get(name, ""))) for name, r in cost.items()}
    out = {
        "name": s.name,
        "question": s.question,
        "model": model_facts(s),
        "cluster": cluster_facts(s),
        "plan": plan_facts(s, p),
        "step": step_facts(s, p),
        "mfu": mfu(s, p),
        "memory": memory_facts(s, p),
        "breakdown": breakdown(p),
        "critical_path": path_facts(p),
        "sensitivity": sensitivity_facts(s, p),
        "days": days.to_dict(),
        "days_at_this_step": total_tokens(s) / p.tokens_per_s / DAY_S,
        "tokens": total_tokens(s),
        "campaign": campaign_facts(s, main, segments) | {"draws": len(simulated.draws)},
        "ranges": "all uncertain inputs at their good or bad end" if corners else f"90% of {sure['samples']} draws",
        "answer": figures(simulated),
        "tornado": sure["tornado"][:MOVERS],
        "cost": {k: r.to_dict() for k, r in cost.items()},
        "currency": f"USD; prices in RMB converted at {RMB_PER_USD:g}",
        "batches": batch_facts(s),
        "what_if": what_if_facts(s, p) if what_ifs else [],
        "assumptions": assumption_facts(s, p),
        "seed": s.seed,
        "versions": versions(),
    }
    check_finite(out)
    return out


def _corner_days(s: Scenario, segments: Sequence[RunSegment], good: bool) -> float:
    there = segments_on(s, corner(s.cluster, good), segments)
    return run_campaign(campaign_input(s, there, "low" if good else "high"), seed=s.seed, timeline=False).days


def _drawn(r: money.Range, interval: Mapping[str, float] | None) -> money.Range:
    """A cost with the 90% of draws as its range."""
    if interval is None:
        return r
    return replace(r, low=min(interval["p5"], r.value), high=max(interval["p95"], r.value))


def model_facts(s: Scenario) -> dict:
    """Sizes of the model as published (with its indexer), FLOPs as this scenario runs it."""
    m, whole = s.model, load_model(s.document["model"])
    return {
        "name": m.name,
        "params": whole.total_params(),
        "params_with_mtp": whole.total_params(mtp=True),
        "active_params": whole.active_params(),
        "train_flops_per_token": m.train_flops_per_token(s.workload.seq, mtp=s.workload.mtp),
        "layers": m.layers,
        "hidden": m.hidden,
        "experts": m.experts,
        "experts_per_token": m.experts_per_token,
        "source": m.source,
        "attention": "sparse" if m.index_topk else "dense",
    }


def cluster_facts(s: Scenario) -> dict:
    """The machine: its chip, its network, and how much of it the plan uses."""
    c = s.cluster
    return {
        "name": c.name,
        "chip": c.chip.name,
        "cluster_chips": s.cluster.num_chips,
        "used": s.plan.num_chips,
        "spares": s.run.spares,
        "chips_per_node": c.chips_per_node,
        "peak_tflops": c.chip.peak(_peak(s)).value / 1e12,
        "tiers": [
            {
                "name": t.name,
                "topology": t.topology,
                "size": t.size,
                "gigabytes_per_s": t.bytes_per_s.value / 1e9,
                "source": t.bytes_per_s.source,
                "confidence": t.bytes_per_s.confidence,
            }
            for t in c.tiers
        ],
    }


def _peak(s: Scenario) -> str:
    return "fp8" if s.precision == "fp8" else "bf16"


def plan_facts(s: Scenario, p: Point) -> dict:
    """The plan and the batch."""
    plan = s.plan
    return {
        "text": describe(plan),
        **{k: getattr(plan, k) for k in WIDTHS},
        "chips": plan.num_chips,
        "micro_batches_per_replica": plan.micro_batches(s.workload),
        "global_batch": s.workload.global_batch,
        "tokens_per_step": s.workload.tokens,
        "seq": s.workload.seq,
        "precision": s.precision,
        "stack": p.estimate.stack.name,
    }


def step_facts(s: Scenario, p: Point) -> dict:
    """The simulated step, beside its closed form."""
    r = p.result
    return {
        "step_s": r.step_s,
        "closed_form_s": p.closed_form_s,
        "pipeline_s": r.pipeline_s,
        "bubble_fraction": r.bubble_fraction,
        "bubble_overhead": r.bubble_overhead,
        "grad_exposed_s": r.grad_exposed_s,
        "exposed_comm_s": r.exposed_comm_s,
        "optimizer_s": p.estimate.costs.optimizer_s,
        "param_gather_s": p.estimate.costs.param_gather_s,
        "tokens_per_s": r.tokens_per_s,
        "tokens_per_s_per_chip": r.tokens_per_s / p.num_chips,
        "straggler": p.straggler,
        "events": r.events,
        "simulated_replicas": r.simulated_replicas,
        "wall_s": r.wall_s,
    }


def mfu(s: Scenario, p: Point) -> list[dict]:
    """MFU over every denominator in use for the chip, the chip's own peak first."""
    per_chip = s.model.train_flops_per_token(s.workload.seq, mtp=s.workload.mtp) * p.tokens_per_s / p.num_chips
    peak = s.cluster.chip.peak(_peak(s))
    listed = [(f"{s.cluster.chip.name} {_peak(s)}", peak.value)]
    if s.precision == "fp8":
        listed.append((f"{s.cluster.chip.name} bf16", s.cluster.chip.peak("bf16").value))
    listed += [(who, value) for who, value in s.cluster.chip.denominators if abs(value - peak.value) > 1e9]
    return [
        {"denominator": who, "peak_tflops": value / 1e12, "mfu": per_chip / value, "achieved_tflops": per_chip / 1e12}
        for who, value in listed
    ]


def memory_facts(s: Scenario, p: Point) -> dict:
    """Memory of the pipeline rank that needs most."""
    capacity, host = s.cluster.chip.memory_bytes.value, s.cluster.host_memory_bytes.value
    offloaded = {"host_gib": p.memory.host / 2**30, "host_capacity_gib": host / 2**30} if p.memory.host else {}
    return {
        "gib": p.memory.total_bytes / 2**30,
        "capacity_gib": capacity / 2**30,
        "share": p.memory.total_bytes / capacity,
        "rank": p.memory.rank,
        "parts_gib": {k: v / 2**30 for k, v in p.memory.breakdown().items()},
        **offloaded,
    }


def breakdown(p: Point) -> dict[str, float]:
    """Share of the bottleneck rank's time by class of work."""
    total = sum(p.estimate.classes.values()) or 1.0
    return {k: v / total for k, v in sorted(p.estimate.classes.items(), key=lambda item: -item[1])}


def path_facts(p: Point) -> dict[str, float]:
    """Share of the step's critical path by cause, largest first."""
    seconds = causes(p.result.critical_path)
    total = sum(seconds.values()) or 1.0
    return {cause: s / total for cause, s in seconds.items()}


def sensitivity_facts(s: Scenario, p: Point) -> dict[str, float]:
    """What would I buy: share of the step saved if one part of the machine were twice as fast."""
    costs = scale_compute(p.estimate.costs, p.straggler)
    whole = step.simulate(costs, s.plan.schedule).step_s
    return {what: saved / whole for what, saved in step_sensitivity(costs, s.plan.schedule) if saved > 0}


def campaign_facts(s: Scenario, result: CampaignResult, segments: Sequence[RunSegment]) -> dict:
    """What the campaign came to, and its phases."""
    return {
        "days": result.days,
        "ideal_days": result.ideal_days,
        "goodput": result.goodput,
        "expected_goodput": result.expected_goodput,
        "finished": result.finished,
        "interruptions": result.interruptions,
        "failures": result.failures,
        "lost_hours": result.lost_hours,
        "mtbf_hours": result.mtbf_s / 3600.0 if math.isfinite(result.mtbf_s) else None,
        "checkpoint_interval_s": result.checkpoint_interval_s if math.isfinite(result.checkpoint_interval_s) else None,
        "chip_hours": result.chip_hours,
        **phase_facts(s, segments),
    }


def batch_facts(s: Scenario) -> list[dict]:
    """Bubble and throughput over the batch ramp: the first batch, the last, and between."""
    first = next((ph.first_batch_tokens for ph in s.phases if ph.first_batch_tokens), None)
    if not first:
        return []
    out, per = [], s.plan.dp * s.plan.micro_batch * s.workload.seq
    last = s.workload.tokens
    for wanted in sorted({first * (last / first) ** (k / 3) for k in range(4)}):
        n = max(1, round(wanted / per))
        work = replace(s.workload, global_batch=n * s.plan.dp * s.plan.micro_batch)
        try:
            p = point(s, workload=work, jitter=None)
        except InputError as err:
            out.append({"tokens": wanted, "micro_batches_per_replica": n, "reason": str(err)})
            continue
        out.append(
            {
                "tokens": work.tokens,
                "micro_batches_per_replica": n,
                "bubble_fraction": p.result.bubble_fraction,
                "step_s": p.result.step_s,
                "tokens_per_s_per_chip": p.tokens_per_s / p.num_chips,
            }
        )
    return out


def what_if_facts(s: Scenario, p: Point) -> list[dict]:
    """Each what-if beside the scenario: its step, throughput and how many times as fast it is."""
    out = []
    for name, changes, note in s.what_if:
        entry: dict[str, object] = {"name": name, "note": note}
        try:
            base = {
                k: v
                for k, v in s.document.items()
                if not (k in ("global_batch", "global_tokens") and {"global_batch", "global_tokens"} & set(changes))
            }
            other = resolve(merge(base, changes), s.name)
            q = point(other, jitter=None)
            entry |= {
                "step_s": q.result.step_s,
                "tokens_per_s": q.tokens_per_s,
                "speed": q.tokens_per_s / p.tokens_per_s,
                "bubble_fraction": q.result.bubble_fraction,
                "micro_batches_per_replica": other.plan.micro_batches(other.workload),
                "days_at_this_step": total_tokens(s) / q.tokens_per_s / DAY_S,
                "memory_gib": q.memory.total_bytes / 2**30,
            }
        except InputError as err:
            entry["reason"] = str(err)
        out.append(entry)
    return out


def assumption_facts(s: Scenario, p: Point) -> list[dict]:
    """The scenario's own list, then every figure that is not measured or published, then defaults that were taken."""
    out = [dict(a) for a in s.assumptions]
    figures = [
        ("peak of the chip", s.cluster.chip.peak(_peak(s))),
        ("memory bandwidth", s.cluster.chip.memory_bytes_per_s),
        ("power of the chip", s.cluster.chip.power_w),
        ("rent of a chip", s.cluster.chip.rent_usd_per_hour),
        ("failures of a chip", s.cluster.chip.failures_per_chip_hour),
        ("price with the system", s.cluster.system_price_usd),
        ("storage bandwidth", s.cluster.storage_bytes_per_s),
        ("PUE", s.cluster.pue),
        ("electricity", s.cluster.electricity_usd_per_kwh),
    ]
    for tier in s.cluster.tiers:
        figures += [
            (f"{tier.name} rate", tier.bytes_per_s),
            (f"{tier.name} efficiency", tier.efficiency),
            (f"{tier.name} latency", tier.latency_s),
        ]
    for name, f in figures:
        if f is not None:
            span = format_value(f.value, f.unit) + (
                "" if f.certain else f" ({format_value(f.low, f.unit)} to {format_value(f.high, f.unit)})"
            )
            out.append(
                {
                    "text": f"{name}: {span}",
                    "kind": "vendor claim" if f.confidence == "vendor" else f.confidence,
                    "source": f.source,
                }
            )
    over = p.memory.total_bytes - s.cluster.chip.memory_bytes.value
    if over > 0:
        out.insert(
            0,
            {
                "text": f"the plan fits, although the memory estimate is {over / 2**30:.1f} GiB over",
                "kind": "assumed",
                "source": "the scenario says allow_oom: true",
            },
        )
    out += [
        {"text": text, "kind": "assumed", "source": "default: the scenario does not say"}
        for text in s.run.defaults_used
    ]
    return out


def project_file(path: str | Path, changes: list[str] | None = None, **replacements: object) -> dict:
    """`project` of a scenario file (or a shipped scenario's name), as `load_scenario` reads it."""
    return project(load_scenario(path, changes, **replacements))
