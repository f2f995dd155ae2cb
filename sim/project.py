"""From a scenario to a projection: memory, one step on the clock, throughput, MFU, days, money, what-ifs.

`project(scenario)` returns a JSON-ready dict; nothing in it is measured here, and every input's range and source is
carried along. Low and high take all uncertain inputs at their bad, or all at their good end together, so they bracket
more than a 95% interval would; how wrong the simulator itself is stands in `clustersim validate`. Jitter is played in the
one step that is shown; the campaign's steps take the expected slowest chip instead.
"""
from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from minglm.errors import InputError
from sim import cost, memory, step
from sim.closed_form import step_time, straggler
from sim.critical_path import causes, what_to_buy
from sim.facts import Cluster, Figure
from sim.jitter import Jitter
from sim.models import ModelSpec, load_model
from sim.phases import Pace
from sim.plan import Plan, Workload
from sim.scenario import Scenario, load_scenario, resolve
from sim.scenario_file import merge
from sim.step_cost import Estimate, estimate
from sim.units import RMB_PER_USD, show

DAY_S = 86400.0
MAX_PIECES = 20_000_000              # of work in one step; a headline step with noise on every replica has one million
MAX_FAILURES = 50_000                # a campaign with more is a job that does not run: it is refused in seconds
CHECKPOINT_BYTES_PER_PARAM = 14      # bf16 weights, fp32 master weights, two fp32 moments


@dataclass(frozen=True)
class Point:
    """One plan evaluated at one batch on one cluster."""

    estimate: Estimate
    memory: memory.Memory
    result: step.StepResult
    closed_form_s: float
    straggler: float
    chips: int

    @property
    def tokens_per_s(self) -> float:
        return self.result.tokens_per_s


def in_closed_form(model: ModelSpec, cluster: Cluster, plan: Plan, workload: Workload, precision: str, stack, warn: bool = False,
                   need: memory.Memory | None = None) -> tuple[Estimate, memory.Memory, float, float]:
    """(costs, memory, seconds of a step in closed form, factor of the slowest chip), in about a millisecond.

    need: the plan's memory where it is known to fit: it is then not counted again.

    Raises:
        InputError: a plan that cannot run, or how many GiB it is over and what would fit.
    """
    if need is None:
        need = memory.peak(model, plan, workload, precision, stack) if warn else memory.check_fits(model, cluster, plan, workload, precision, stack)
    made = estimate(model, cluster, plan, workload, precision, stack)
    slow = straggler(plan.chips, made.stack.jitter)
    overlap = made.stack.overlap_p2p if plan.overlap_p2p is None else plan.overlap_p2p
    seconds = step_time(made.costs, plan.schedule, overlap, slow, made.stack.dp_hidden).total_s
    if not math.isfinite(seconds) or seconds <= 0:
        raise InputError(f"a step of {seconds} s: an input is out of range; check peaks, bandwidths and batch")
    return made, need, seconds, slow


def evaluate(model: ModelSpec, cluster: Cluster, plan: Plan, workload: Workload, precision: str, stack, *,
             jitter: Mapping[str, float] | None = None, seed: int = 0, trace=None, warn: bool = False) -> Point:
    """Check that it fits (unless `warn`), cost it, play one step.

    Without `jitter` the replicas are alike and fold into one; the expected slowest of all chips (the stack's spread)
    stretches compute instead. With it every stage of every replica is played.
    """
    made, need, closed, slow = in_closed_form(model, cluster, plan, workload, precision, stack, warn)
    noise = Jitter(**jitter) if jitter else None
    pieces = 3 * plan.pp * plan.vpp * plan.micro_batches(workload) * (plan.dp if noise else 1)
    if pieces > MAX_PIECES:
        raise InputError(f"a step of {plan.micro_batches(workload):,} micro-batches on {plan.pp} × {plan.vpp} stages"
                         + (f" of {plan.dp:,} replicas" if noise else "") + f" is {pieces:,} pieces of work, more than {MAX_PIECES:,} are played; "
                         + ("leave the jitter out, or " if noise else "") + "lower the batch or raise micro_batch")
    costs = made.costs if noise else stretched(made.costs, slow)
    # experts spread over several replicas: these meet in every expert layer and go at the pace of their slowest chip
    together = max(1, plan.ep * plan.etp // (plan.tp * plan.cp)) if noise and model.experts else 1
    result = step.simulate(costs, plan.schedule, replicas=plan.dp, jitter=noise, seed=seed, trace=trace, lockstep=min(together, plan.dp))
    return Point(made, need, result, closed, slow, plan.chips)


def stretched(costs, factor: float):
    """Step costs with all compute taking `factor` times as long."""
    @functools.cache
    def slower(chunk):
        return replace(chunk, **{f: getattr(chunk, f) * factor for f in chunk.__dataclass_fields__})
    return replace(costs, chunks=tuple(tuple(slower(c) for c in row) for row in costs.chunks), optimizer_s=costs.optimizer_s * factor)


def point(s: Scenario, cluster: Cluster | None = None, **changes) -> Point:
    """The scenario's main plan and batch; `changes` replaces plan, workload, jitter, seed or trace."""
    return evaluate(s.model, cluster or s.cluster, changes.pop("plan", s.plan), changes.pop("workload", s.workload), s.precision, s.stack,
                    jitter=changes.pop("jitter", s.jitter or None), seed=changes.pop("seed", s.seed), warn=s.memory_warns, **changes)


def corner(cluster: Cluster, good: bool) -> Cluster:
    """The cluster with every uncertain rate at its good or bad end."""
    def end(f: Figure | None, more_is_better: bool = True) -> Figure | None:
        if f is None:
            return None
        value = f.high if good == more_is_better else f.low
        return replace(f, value=value)
    chip = cluster.chip
    chip = replace(chip, peak_flops={k: end(v) for k, v in chip.peak_flops.items()}, memory_bytes_per_s=end(chip.memory_bytes_per_s),
                   max_matmul_flops=end(chip.max_matmul_flops), max_matmul_flops_fp8=end(chip.max_matmul_flops_fp8))
    tiers = tuple(replace(t, bytes_per_s=end(t.bytes_per_s), latency_s=end(t.latency_s, False), efficiency=end(t.efficiency))
                  for t in cluster.tiers)
    return replace(cluster, chip=chip, tiers=tiers)


# ------------------------------------------------------------------ the campaign

def failure_model(s: Scenario, level: str | None = None):
    """Failures of the scenario, or of another level of its range ('low', 'high')."""
    from sim.failures import FailureModel
    if level is None and "per_chip_day" in s.failures:
        return FailureModel(float(s.failures["per_chip_day"]))
    if level is None and "level" not in s.failures and s.cluster.chip.failures_per_chip_hour:
        return FailureModel(24 * s.cluster.chip.failures_per_chip_hour.value)
    if level is not None and "per_chip_day" in s.failures:
        return FailureModel(float(s.failures["per_chip_day"]) * {"low": 0.6, "high": 1.7}[level])
    return FailureModel.named(level or str(s.failures.get("level", "mid")))


def campaign_input(s: Scenario, legs: tuple, level: str | None = None):
    """What `sim.campaign.run` takes, from the scenario's failures, checkpoint and inventory."""
    from sim.campaign import CampaignInput
    from sim.checkpoints import Checkpoint
    from sim.failures import Recovery, SlowServers
    c, f = s.checkpoint, s.failures
    written = CHECKPOINT_BYTES_PER_PARAM * s.model.total_params(mtp=True)
    saved = Checkpoint(kind=str(c.get("kind", "async")), bytes=float(written),
                       write_bytes_per_s=c.get("write", s.cluster.storage_bytes_per_s.value), read_bytes_per_s=c.get("read", s.cluster.storage_bytes_per_s.value),
                       host_bytes_per_s=s.cluster.host_bytes_per_s.value, storage_every=c.get("storage_every"), interval_s=c.get("interval"))
    given = {name: f[key] for key, name in (("detect", "detect_s"), ("restart", "restart_s"), ("repair", "repair_s")) if key in f}
    if "elastic" in f:
        given["elastic"] = bool(f["elastic"])
    extra = {} if s.horizon_s is None else {"horizon_s": s.horizon_s}
    return CampaignInput(legs=legs, chips=s.chips, failures=failure_model(s, level), checkpoint=saved, recovery=Recovery(**given),
                         slow=SlowServers() if f.get("slow_servers", True) else None, chips_per_server=min(s.cluster.chips_per_node, s.chips, *(leg.pace.chips for leg in legs)),
                         max_failures=MAX_FAILURES, **extra)


def campaign_legs(s: Scenario, cluster: Cluster | None = None, like: tuple = ()) -> tuple:
    """The campaign's legs: each phase with the plan that finishes it soonest, or the main plan for all tokens.

    Plans are chosen in closed form; the chosen ones are played as events. With `like` (the legs of the scenario's own
    cluster) the same plans are timed on another `cluster` in closed form, times what events added to it there.
    """
    from sim.phases import Leg, Phase, choose_plans
    at, wet = cluster or s.cluster, _sparse_model(s)
    phases = s.phases or (Phase("training", s.tokens, s.workload.seq, s.workload.tokens),)
    plans = {describe(p): p for p in (s.plan, *s.candidates)}

    @functools.cache
    def seconds(name: str, seq: int, batch: int, dsa: bool, where: int, events: bool) -> float:
        args = (wet if dsa else s.model, (s.cluster, at)[where], plans[name], replace(s.workload, global_batch=batch, seq=seq), s.precision, s.stack)
        return (evaluate(*args, warn=s.memory_warns).result.step_s if events else in_closed_form(*args, s.memory_warns)[2])

    def pace(name: str, phase, batch_tokens: float) -> Pace:
        plan = plans[name]
        per = plan.dp * plan.micro_batch
        wanted = batch_tokens / phase.seq
        batch = max(1, round(wanted / per)) * per
        if not 0.75 <= batch / wanted <= 1.34:
            raise InputError(f"{phase.name}: a batch of {wanted:,.0f} sequences does not divide over {plan.dp} replicas; use fewer replicas")
        return Pace(seconds(name, phase.seq, batch, phase.name.startswith("DSA"), 1, False), batch * phase.seq, plan.chips, plan.dp, name)

    seqs = {phase.name: phase.seq for phase in phases}

    def played(leg: Leg) -> Leg:
        key = (leg.pace.plan, seqs[leg.phase], round(leg.pace.tokens_per_step / seqs[leg.phase]), leg.phase.startswith("DSA"))
        if not like:
            return replace(leg, pace=replace(leg.pace, step_s=seconds(*key, 0, True)))
        return replace(leg, pace=replace(leg.pace, step_s=leg.pace.step_s * seconds(*key, 1, False) / seconds(*key, 0, False)))
    if like:
        return tuple(map(played, like))
    return tuple(map(played, choose_plans(phases, list(plans), pace)))


def _sparse_model(s: Scenario) -> ModelSpec:
    """The model of the DSA phases, where the scenario's own is still dense."""
    later = s.document.get("attention") == "dense" and any(p.name.startswith("DSA") for p in s.phases)
    return load_model(s.document["model"]) if later else s.model


def describe(plan: Plan) -> str:
    """'TP8 PP16 DP780 EP32 zb-h1'."""
    parts = [f"TP{plan.tp}", f"PP{plan.pp}"] + [f"{k.upper()}{getattr(plan, k)}" for k in ("cp", "ep", "etp") if getattr(plan, k) > 1]
    return " ".join([*parts, f"DP{plan.dp}", plan.schedule] + ([f"v{plan.vpp}"] if plan.vpp > 1 else []))


# ------------------------------------------------------------------ the projection

def project(s: Scenario, trace=None, what_ifs: bool = True) -> dict:
    """The whole answer to a scenario as a JSON-ready dict."""
    from sim.campaign import run as run_campaign
    p = point(s, trace=trace)
    legs = campaign_legs(s)
    main = run_campaign(campaign_input(s, legs), seed=s.seed, timeline=False)
    if not main.finished:
        raise InputError(f"{s.name}: the campaign does not finish within {main.days:,.0f} days ({main.tokens / max(total_tokens(s), 1):.1%} of the tokens); "
                         "use more chips, fewer tokens or a lower failure rate")
    ends = {}
    for name, good, level in (("low", True, "low"), ("high", False, "high")):
        at = corner(s.cluster, good)
        ends[name] = run_campaign(campaign_input(s, campaign_legs(s, at, legs), level), seed=s.seed, timeline=False)
    days = cost.Range(main.days, min(ends["low"].days, main.days), max(ends["high"].days, main.days), "days",
                      "campaign with failures, checkpoints and restarts; range: all uncertain inputs at their good or bad end together")
    hours = days.times(24.0, "h", "wall-clock hours")
    out = {
        "name": s.name, "question": s.question, "model": model_facts(s), "cluster": cluster_facts(s), "plan": plan_facts(s, p),
        "step": step_facts(s, p), "mfu": mfu(s, p), "memory": memory_facts(s, p), "breakdown": breakdown(p), "critical_path": path_facts(p), "faster": faster_facts(s, p),
        "days": days.to_dict(), "days_at_this_step": total_tokens(s) / p.tokens_per_s / DAY_S, "tokens": total_tokens(s),
        "campaign": campaign_facts(main, legs), "cost": {k: r.to_dict() for k, r in cost.costs(s.cluster, s.chips, hours, s.prices).items()},
        "currency": f"USD; prices in RMB converted at {RMB_PER_USD:g}", "batches": batch_facts(s), "what_if": what_if_facts(s, p) if what_ifs else [],
        "assumptions": assumption_facts(s, p), "seed": s.seed, "versions": versions()}
    check_finite(out)
    return out


def total_tokens(s: Scenario) -> float:
    return sum(ph.tokens for ph in s.phases) if s.phases else s.tokens


def model_facts(s: Scenario) -> dict:
    """Sizes of the model as published (with its indexer), FLOPs as this scenario runs it."""
    m, whole = s.model, load_model(s.document["model"])
    return {"name": m.name, "params": whole.total_params(), "params_with_mtp": whole.total_params(mtp=True), "active_params": whole.active_params(),
            "train_flops_per_token": m.train_flops_per_token(s.workload.seq, mtp=s.workload.mtp), "layers": m.layers, "hidden": m.hidden,
            "experts": m.experts, "experts_per_token": m.experts_per_token, "source": m.source,
            "attention": "sparse" if m.index_topk else "dense"}


def cluster_facts(s: Scenario) -> dict:
    c = s.cluster
    return {"name": c.name, "chip": c.chip.name, "inventory": s.chips, "used": s.plan.chips, "spares": s.spares,
            "chips_per_node": c.chips_per_node, "peak_tflops": c.chip.peak(_peak(s)).value / 1e12,
            "tiers": [{"name": t.name, "topology": t.topology, "size": t.size, "gigabytes_per_s": t.bytes_per_s.value / 1e9,
                       "source": t.bytes_per_s.source, "confidence": t.bytes_per_s.confidence} for t in c.tiers]}


def _peak(s: Scenario) -> str:
    return "fp8" if s.precision == "fp8" else "bf16"


def plan_facts(s: Scenario, p: Point) -> dict:
    plan = s.plan
    return {"text": describe(plan), **{k: getattr(plan, k) for k in ("tp", "pp", "dp", "cp", "ep", "etp", "vpp", "schedule", "micro_batch", "zero", "recompute")},
            "chips": plan.chips, "micro_batches_per_replica": plan.micro_batches(s.workload), "global_batch": s.workload.global_batch,
            "tokens_per_step": s.workload.tokens, "seq": s.workload.seq, "precision": s.precision, "stack": p.estimate.stack.name}


def step_facts(s: Scenario, p: Point) -> dict:
    r = p.result
    return {"step_s": r.step_s, "closed_form_s": p.closed_form_s, "pipeline_s": r.pipeline_s, "bubble_share": r.bubble_share,
            "bubble_ratio": r.bubble_ratio, "grad_exposed_s": r.grad_exposed_s, "exposed_comm_s": r.exposed_comm_s,
            "optimizer_s": p.estimate.costs.optimizer_s, "param_gather_s": p.estimate.costs.param_gather_s,
            "tokens_per_s": r.tokens_per_s, "tokens_per_s_per_chip": r.tokens_per_s / p.chips, "straggler": p.straggler,
            "events": r.events, "replicas_played": r.simulated_replicas, "wall_s": r.wall_s}


def mfu(s: Scenario, p: Point) -> list[dict]:
    """MFU over every denominator in use for the chip, the chip's own peak first."""
    per_chip = s.model.train_flops_per_token(s.workload.seq, mtp=s.workload.mtp) * p.tokens_per_s / p.chips
    peak = s.cluster.chip.peak(_peak(s))
    listed = [(f"{s.cluster.chip.name} {_peak(s)}", peak.value)]
    if s.precision == "fp8":
        listed.append((f"{s.cluster.chip.name} bf16", s.cluster.chip.peak("bf16").value))
    listed += [(who, value) for who, value in s.cluster.chip.denominators if abs(value - peak.value) > 1e9]
    return [{"denominator": who, "peak_tflops": value / 1e12, "mfu": per_chip / value, "achieved_tflops": per_chip / 1e12} for who, value in listed]


def memory_facts(s: Scenario, p: Point) -> dict:
    room = s.cluster.chip.memory_bytes.value
    return {"gib": p.memory.total_bytes / 2**30, "capacity_gib": room / 2**30, "share": p.memory.total_bytes / room, "rank": p.memory.rank,
            "parts_gib": {k: v / 2**30 for k, v in p.memory.breakdown().items()}}


def breakdown(p: Point) -> dict[str, float]:
    """Share of the busiest rank's time by class of work."""
    total = sum(p.estimate.classes.values()) or 1.0
    return {k: v / total for k, v in sorted(p.estimate.classes.items(), key=lambda item: -item[1])}


def path_facts(p: Point) -> dict[str, float]:
    """Share of the step's critical path by cause, largest first."""
    found = causes(p.result.critical_path)
    total = sum(found.values()) or 1.0
    return {k: v / total for k, v in sorted(found.items(), key=lambda item: -item[1])}


def faster_facts(s: Scenario, p: Point) -> dict[str, float]:
    """What would I buy: share of the step saved if one part of the machine were twice as fast."""
    costs = stretched(p.estimate.costs, p.straggler)
    whole = step.simulate(costs, s.plan.schedule).step_s
    return {what: saved / whole for what, saved in what_to_buy(costs, s.plan.schedule) if saved > 0}


def campaign_facts(result, legs) -> dict:
    phases: dict[str, dict] = {}
    for leg in legs:
        entry = phases.setdefault(leg.phase, {"tokens": 0.0, "ideal_days": 0.0, "plan": leg.pace.plan, "chips": leg.pace.chips, "steps": 0})
        entry["tokens"] += leg.tokens
        entry["ideal_days"] += leg.work_s / DAY_S
        entry["steps"] += leg.steps
    return {"days": result.days, "ideal_days": result.ideal_days, "goodput": result.goodput, "expected_goodput": result.expected_goodput,
            "finished": result.finished, "interruptions": result.interruptions, "failures": result.failures, "lost_hours": result.lost_hours,
            "mtbf_hours": result.mtbf_s / 3600.0 if math.isfinite(result.mtbf_s) else None, "checkpoint_interval_s": result.checkpoint_interval_s
            if math.isfinite(result.checkpoint_interval_s) else None, "chip_hours": result.chip_hours, "phases": phases}


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
        out.append({"tokens": work.tokens, "micro_batches_per_replica": n, "bubble_share": p.result.bubble_share, "step_s": p.result.step_s,
                    "tokens_per_s_per_chip": p.tokens_per_s / p.chips})
    return out


def what_if_facts(s: Scenario, p: Point) -> list[dict]:
    """Each what-if beside the scenario: its step, throughput and how many times as fast it is."""
    out = []
    for name, changes, note in s.what_if:
        entry = {"name": name, "note": note}
        try:
            base = {k: v for k, v in s.document.items() if not (k in ("global_batch", "global_tokens") and {"global_batch", "global_tokens"} & set(changes))}
            other = resolve(merge(base, changes), s.name)
            q = point(other, jitter=None)
            entry |= {"step_s": q.result.step_s, "tokens_per_s": q.tokens_per_s, "speed": q.tokens_per_s / p.tokens_per_s,
                      "bubble_share": q.result.bubble_share, "micro_batches_per_replica": other.plan.micro_batches(other.workload),
                      "days_at_this_step": total_tokens(s) / q.tokens_per_s / DAY_S, "memory_gib": q.memory.total_bytes / 2**30}
        except InputError as err:
            entry["reason"] = str(err)
        out.append(entry)
    return out


def assumption_facts(s: Scenario, p: Point) -> list[dict]:
    """The scenario's own list, then every figure that is not measured or published, then defaults that were taken."""
    out = [dict(a) for a in s.assumptions]
    figures = [("peak of the chip", s.cluster.chip.peak(_peak(s))), ("memory bandwidth", s.cluster.chip.memory_bytes_per_s),
               ("power of the chip", s.cluster.chip.power_w), ("rent of a chip", s.cluster.chip.rent_usd_per_hour),
               ("failures of a chip", s.cluster.chip.failures_per_chip_hour), ("price with the system", s.cluster.system_price_usd),
               ("storage bandwidth", s.cluster.storage_bytes_per_s), ("PUE", s.cluster.pue), ("electricity", s.cluster.electricity_usd_per_kwh)]
    for tier in s.cluster.tiers:
        figures += [(f"{tier.name} rate", tier.bytes_per_s), (f"{tier.name} efficiency", tier.efficiency), (f"{tier.name} latency", tier.latency_s)]
    words = {"vendor": "vendor claim"}
    for name, f in figures:
        if f is not None:
            span = said(f.value, f.unit) + ("" if f.certain else f" ({said(f.low, f.unit)} to {said(f.high, f.unit)})")
            out.append({"text": f"{name}: {span}", "kind": words.get(f.confidence, f.confidence), "source": f.source})
    over = p.memory.total_bytes - s.cluster.chip.memory_bytes.value
    if over > 0:
        out.insert(0, {"text": f"the plan fits, although the memory estimate is {over / 2**30:.1f} GiB over", "kind": "assumed",
                       "source": "the scenario says memory: warn"})
    out += [{"text": text, "kind": "assumed", "source": "default: the scenario does not say"} for text in s.stated]
    return out


def said(value: float, unit: str) -> str:
    """A figure in human units; rates per hour as so many million hours between events."""
    if unit == "1/h":
        return f"one in {1 / value:,.0f} h" if value else "never"
    kinds = {"B": "bytes", "B/s": "bytes_per_s", "FLOP/s": "flops", "s": "time", "W": "power", "USD": "money"}
    return show(value, kinds[unit]) if unit in kinds else f"{value:.4g}" + ("" if unit == "1" else f" {unit}")


def check_finite(value: object, where: str = "result") -> None:
    """No NaN, infinity or negative figure leaves the simulator unnoticed."""
    if isinstance(value, dict):
        for k, v in value.items():
            check_finite(v, f"{where}.{k}")
    elif isinstance(value, list):
        for v in value:
            check_finite(v, where)
    elif isinstance(value, float) and (not math.isfinite(value) or value < -1e-9):
        raise InputError(f"{where}={value}: an input is out of range; check peaks, bandwidths, prices and batch")


def versions() -> dict[str, str]:
    import platform
    from importlib import metadata

    from minglm import __version__
    out = {"python": platform.python_version(), "minglm": __version__}
    try:
        out["simpy"] = metadata.version("simpy")
    except metadata.PackageNotFoundError:
        pass
    return out


def project_file(path: str | Path, changes: list[str] | None = None, **over: object) -> dict:
    """`project` of a scenario file (or a shipped scenario's name)."""
    return project(load_scenario(path, changes, **over))


def as_dict(plan: Plan) -> dict:
    return dataclasses.asdict(plan)
