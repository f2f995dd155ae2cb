"""From a scenario to a whole training run: segments, failures, checkpoints, and the best and worst case of the hardware."""

from __future__ import annotations

import functools
from dataclasses import replace

from minglm.errors import InputError
from sim.base.figure import Figure
from sim.cost.evaluate import in_closed_form
from sim.scenario.training import Scenario
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model
from sim.spec.phases import Pace
from sim.spec.plan import describe
from sim.training.evaluate import evaluate

MAX_FAILURES = 50_000  # a campaign with more is a job that does not run: it is refused in seconds


CHECKPOINT_BYTES_PER_PARAM = 14  # bf16 weights, fp32 master weights, two fp32 moments


def corner(cluster: Cluster, good: bool) -> Cluster:
    """The cluster with every uncertain rate at its good or bad end."""

    def end(f: Figure | None, more_is_better: bool = True) -> Figure | None:
        if f is None:
            return None
        value = f.high if good == more_is_better else f.low
        return replace(f, value=value)

    chip = cluster.chip
    chip = replace(
        chip,
        peak_flops={k: end(v) for k, v in chip.peak_flops.items()},
        memory_bytes_per_s=end(chip.memory_bytes_per_s),
        max_matmul_flops=end(chip.max_matmul_flops),
        max_matmul_flops_fp8=end(chip.max_matmul_flops_fp8),
    )
    tiers = tuple(
        replace(t, bytes_per_s=end(t.bytes_per_s), latency_s=end(t.latency_s, False), efficiency=end(t.efficiency))
        for t in cluster.tiers
    )
    return replace(cluster, chip=chip, tiers=tiers)


def failure_model(s: Scenario, level: str | None = None):
    """Failures of the scenario, or of another level of its range ('low', 'high')."""
    from sim.training.failures import FailureModel

    if level is None and "per_chip_day" in s.failures:
        return FailureModel(float(s.failures["per_chip_day"]))
    if level is None and "level" not in s.failures and s.cluster.chip.failures_per_chip_hour:
        return FailureModel(24 * s.cluster.chip.failures_per_chip_hour.value)
    if level is not None and "per_chip_day" in s.failures:
        return FailureModel(float(s.failures["per_chip_day"]) * {"low": 0.6, "high": 1.7}[level])
    return FailureModel.named(level or str(s.failures.get("level", "mid")))


def campaign_input(s: Scenario, legs: tuple, level: str | None = None):
    """What `sim.training.campaign.run` takes, from the scenario's failures, checkpoint and inventory."""
    from sim.training.campaign import CampaignInput
    from sim.training.checkpoints import Checkpoint
    from sim.training.failures import Recovery, SlowServers

    c, f = s.checkpoint, s.failures
    written = CHECKPOINT_BYTES_PER_PARAM * s.model.total_params(mtp=True)
    saved = Checkpoint(
        kind=str(c.get("kind", "async")),
        bytes=float(written),
        write_bytes_per_s=c.get("write", s.cluster.storage_bytes_per_s.value),
        read_bytes_per_s=c.get("read", s.cluster.storage_bytes_per_s.value),
        host_bytes_per_s=s.cluster.host_bytes_per_s.value,
        storage_every=c.get("storage_every"),
        interval_s=c.get("interval"),
    )
    given = {
        name: f[key]
        for key, name in (("detect", "detect_s"), ("restart", "restart_s"), ("repair", "repair_s"))
        if key in f
    }
    if "elastic" in f:
        given["elastic"] = bool(f["elastic"])
    extra = {} if s.horizon_s is None else {"horizon_s": s.horizon_s}
    return CampaignInput(
        legs=legs,
        cluster_chips=s.cluster_chips,
        failures=failure_model(s, level),
        checkpoint=saved,
        recovery=Recovery(**given),
        slow=SlowServers() if f.get("slow_servers", True) else None,
        chips_per_server=min(s.cluster.chips_per_node, s.cluster_chips, *(leg.pace.num_chips for leg in legs)),
        max_failures=MAX_FAILURES,
        **extra,
    )


def campaign_legs(s: Scenario, cluster: Cluster | None = None, like: tuple = ()) -> tuple:
    """The campaign's legs: each phase with the plan that finishes it soonest, or the main plan for all tokens.

    Plans are chosen in closed form; the chosen ones are played as events. With `like` (the legs of the scenario's own
    cluster) the same plans are timed on another `cluster` in closed form, times what events added to it there.
    """
    from sim.spec.phases import Leg, Phase, choose_plans

    at, wet = cluster or s.cluster, _sparse_model(s)
    phases = s.phases or (Phase("training", s.tokens, s.workload.seq, s.workload.tokens),)
    plans = {describe(p): p for p in (s.plan, *s.candidates)}

    @functools.cache
    def seconds(name: str, seq: int, batch: int, dsa: bool, where: int, events: bool) -> float:
        args = (
            wet if dsa else s.model,
            (s.cluster, at)[where],
            plans[name],
            replace(s.workload, global_batch=batch, seq=seq),
            s.precision,
            s.stack,
        )
        return (
            evaluate(*args, warn=s.memory_warns).result.step_s if events else in_closed_form(*args, s.memory_warns)[2]
        )

    def pace(name: str, phase, batch_tokens: float) -> Pace:
        plan = plans[name]
        per = plan.dp * plan.micro_batch
        wanted = batch_tokens / phase.seq
        batch = max(1, round(wanted / per)) * per
        if not 0.75 <= batch / wanted <= 1.34:
            raise InputError(
                f"{phase.name}: a batch of {wanted:,.0f} sequences does not divide over {plan.dp} replicas; use fewer replicas"
            )
        return Pace(
            seconds(name, phase.seq, batch, phase.attention == "sparse", 1, False),
            batch * phase.seq,
            plan.num_chips,
            plan.dp,
            name,
        )

    seqs = {phase.name: phase.seq for phase in phases}
    sparse = {phase.name: phase.attention == "sparse" for phase in phases}

    def played(leg: Leg) -> Leg:
        key = (
            leg.pace.plan,
            seqs[leg.phase],
            round(leg.pace.tokens_per_step / seqs[leg.phase]),
            sparse[leg.phase],
        )
        if not like:
            return replace(leg, pace=replace(leg.pace, step_s=seconds(*key, 0, True)))
        return replace(
            leg, pace=replace(leg.pace, step_s=leg.pace.step_s * seconds(*key, 1, False) / seconds(*key, 0, False))
        )

    if like:
        return tuple(map(played, like))
    return tuple(map(played, choose_plans(phases, list(plans), pace)))


def _sparse_model(s: Scenario) -> ModelSpec:
    """The model of the DSA phases, where the scenario's own is still dense."""
    later = s.document.get("attention") == "dense" and any(p.attention == "sparse" for p in s.phases)
    return load_model(s.document["model"]) if later else s.model


def total_tokens(s: Scenario) -> float:
    return sum(ph.tokens for ph in s.phases) if s.phases else s.tokens
