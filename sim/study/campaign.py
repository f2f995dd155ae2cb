"""From a scenario to a whole training run: segments, failures, checkpoints, the best and worst case of the hardware."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from minglm.errors import InputError
from sim.base.figure import Figure
from sim.base.tape import call
from sim.base.units import DAY_S
from sim.cost.evaluate import in_closed_form
from sim.cost.memory import Memory, checkpoint_bytes
from sim.cost.stacks import Stack
from sim.scenario.training import Scenario
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model
from sim.spec.phases import Phase, RunSegment, Throughput, choose_plans
from sim.spec.plan import Plan, Workload, describe
from sim.training.campaign_input import CampaignInput
from sim.training.checkpoints import Checkpoint
from sim.training.evaluate import evaluate, worked_off
from sim.training.failures import FailureModel, Recovery, SlowServers

MAX_FAILURES = 50_000  # a run with more is a job that does not run: it is refused in seconds
GIVEN_RATE_RANGE = {"low": 0.6, "high": 1.7}  # of a failure rate that a scenario gives as one number (assumed)


def corner(cluster: Cluster, good: bool) -> Cluster:
    """The cluster with every uncertain rate at its good end (the best case) or at its bad end (the worst case)."""

    def end(f: Figure, more_is_better: bool = True) -> Figure:
        return replace(f, value=f.high if good == more_is_better else f.low)

    def end_of(f: Figure | None) -> Figure | None:
        return None if f is None else end(f)

    chip = replace(
        cluster.chip,
        peak_flops={k: end(v) for k, v in cluster.chip.peak_flops.items()},
        memory_bytes_per_s=end(cluster.chip.memory_bytes_per_s),
        max_matmul_flops=end_of(cluster.chip.max_matmul_flops),
        max_matmul_flops_fp8=end_of(cluster.chip.max_matmul_flops_fp8),
    )
    tiers = tuple(
        replace(
            tier,
            bytes_per_s=end(tier.bytes_per_s),
            latency_s=end(tier.latency_s, more_is_better=False),
            efficiency=end(tier.efficiency),
        )
        for tier in cluster.tiers
    )
    return replace(cluster, chip=chip, tiers=tiers)


def failure_model(s: Scenario, level: str | None = None) -> FailureModel:
    """Failures of the scenario, or of another level of its range ('low', 'high')."""
    section: Mapping[str, Any] = s.failures
    if "per_chip_day" in section:
        return FailureModel(call(float, section["per_chip_day"]) * (GIVEN_RATE_RANGE[level] if level else 1.0))
    if level is None and "level" not in section and s.cluster.chip.failures_per_chip_hour:
        return FailureModel(24 * s.cluster.chip.failures_per_chip_hour.value)
    return FailureModel.named(level or str(section.get("level", "mid")))


def campaign_input(s: Scenario, segments: tuple[RunSegment, ...], level: str | None = None) -> CampaignInput:
    """What `sim.training.campaign.run` takes, from the scenario's failures, checkpoint and cluster."""
    failures: Mapping[str, Any] = s.failures
    horizon = {} if s.horizon_s is None else {"horizon_s": s.horizon_s}
    return CampaignInput(
        segments=segments,
        cluster_chips=s.cluster.num_chips,
        failures=failure_model(s, level),
        checkpoint=checkpoint(s),
        recovery=recovery(s),
        slow=SlowServers() if failures.get("slow_servers", True) else None,
        chips_per_server=min(
            s.cluster.chips_per_node, s.cluster.num_chips, *(x.throughput.num_chips for x in segments)
        ),
        max_failures=MAX_FAILURES,
        **horizon,
    )


def checkpoint(s: Scenario) -> Checkpoint:
    """How the scenario's job saves itself."""
    section: Mapping[str, Any] = s.checkpoint
    storage = s.cluster.storage_bytes_per_s.value
    return Checkpoint(
        kind=str(section.get("kind", "async")),
        bytes=checkpoint_bytes(s.plan, s.model.total_params(mtp=True)),
        write_bytes_per_s=section.get("write", storage),
        read_bytes_per_s=section.get("read", storage),
        host_bytes_per_s=s.cluster.host_bytes_per_s.value,
        storage_every=section.get("storage_every"),
        interval_s=section.get("interval"),
    )


def recovery(s: Scenario) -> Recovery:
    """How the scenario's job comes back."""
    names = {"detect": "detect_s", "restart": "restart_s", "repair": "repair_s", "elastic": "elastic"}
    return Recovery(**{field: s.failures[key] for key, field in names.items() if key in s.failures})


def plan_change_s(s: Scenario) -> float:
    """What changing from one plan to another costs, seconds."""
    return checkpoint(s).plan_change_s(recovery(s).restart_s)


Check = Callable[[], None]  # called during long work; what it raises ends the work


def nothing() -> None:
    """A check that never ends the work."""


class PhaseTimer:
    """How long a step of a phase takes with each plan of a scenario, on one cluster."""

    def __init__(self, scenario: Scenario, cluster: Cluster, need: Memory | None = None) -> None:
        """need: of a plan that is known to fit, as all do then: their memory is not counted again."""
        self.scenario, self.cluster, self.need = scenario, cluster, need
        self.plans = _by_name((scenario.plan, *scenario.candidates))
        self.sparse_model = _sparse_model(scenario)
        self.forget()

    def forget(self) -> None:
        """Steps that are known are no longer."""
        self._closed_form_s: dict[tuple[str, Phase, int], float] = {}  # not functools.cache: a timer goes to processes
        self._simulated_s: dict[tuple[str, Phase, int], float] = {}

    def on(self, cluster: Cluster) -> PhaseTimer:
        """The same on another cluster: what the scenario says is not read again."""
        other = copy.copy(self)
        other.cluster = cluster
        other.forget()
        return other

    def throughput(self, plan_name: str, phase: Phase, batch_tokens: float) -> Throughput:
        """The plan at the batch nearest to `batch_tokens` that divides over its replicas, in closed form.

        Raises:
            InputError: that batch is more than a third away, or the plan cannot run.
        """
        plan = self.plans[plan_name]
        per = plan.dp * plan.micro_batch
        wanted = batch_tokens / phase.seq
        batch = max(1, round(wanted / per)) * per
        if not 0.75 <= batch / wanted <= 1.34:
            raise InputError(
                f"{phase.name}: a batch of {wanted:,.0f} sequences does not divide over {plan.dp} replicas; use fewer "
                "replicas"
            )
        step_s = self.closed_form_s(plan_name, phase, batch)
        return Throughput(step_s, batch * phase.seq, plan.num_chips, plan.dp, plan_name)

    def closed_form_s(self, plan_name: str, phase: Phase, batch: int) -> float:
        """Seconds of a step in closed form, known for the next time."""
        known, key = self._closed_form_s, (plan_name, phase, batch)
        if key not in known:
            known[key] = in_closed_form(*self._arguments(*key), self.scenario.allow_oom, self.need)[2]
        return known[key]

    def simulated_s(self, plan_name: str, phase: Phase, batch: int) -> float:
        """The same as events."""
        known, key = self._simulated_s, (plan_name, phase, batch)
        if key not in known:
            known[key] = evaluate(*self._arguments(*key), allow_oom=self.scenario.allow_oom).result.step_s
        return known[key]

    def fast_s(self, plan_name: str, phase: Phase, batch: int) -> float:
        """As `simulated_s`, by the planner's fast model."""
        return worked_off(*self._arguments(plan_name, phase, batch), self.scenario.allow_oom)[0]

    def _arguments(
        self, plan_name: str, phase: Phase, batch: int
    ) -> tuple[ModelSpec, Cluster, Plan, Workload, str, Stack]:
        s = self.scenario
        model = self.sparse_model if phase.attention == "sparse" else s.model
        workload = replace(s.workload, global_batch=batch, seq=phase.seq)
        return model, self.cluster, self.plans[plan_name], workload, s.precision, s.stack


def _by_name(plans: Iterable[Plan]) -> dict[str, Plan]:
    """Each plan once, by its words; of those that read alike each later one with what the words leave out, too."""
    found: dict[str, Plan] = {}
    for plan in dict.fromkeys(plans):
        name = describe(plan)
        if name in found:
            name += f" micro-batch {plan.micro_batch} recompute {plan.recompute} ZeRO {plan.zero}"
        while name in found:  # other stages, say
            name += " *"
        found[name] = plan
    return found


def campaign_segments(s: Scenario, fast: bool = False, check: Check = nothing) -> tuple[RunSegment, ...]:
    """The segments of the scenario's run: each phase with a plan, so that the whole ends soonest.

    Without phases it is one, with the main plan for all tokens. Plans are chosen in closed form; the chosen ones are
    simulated as events, or with `fast` worked off by the planner's fast model. check: called before each.
    """
    timer, phases, out = PhaseTimer(s, s.cluster), {phase.name: phase for phase in _phases(s)}, []
    for segment in choose_plans(_phases(s), list(timer.plans), timer.throughput, plan_change_s(s)):
        check()
        out.append(_with_step_s(segment, (timer.fast_s if fast else timer.simulated_s)(*_key(segment, phases))))
    return tuple(out)


def segments_on(s: Scenario, cluster: Cluster, segments: Sequence[RunSegment]) -> tuple[RunSegment, ...]:
    """The same segments (`campaign_segments` of the scenario's own cluster) on another cluster.

    The plans stay. Each step takes what it took, times the ratio of the two clusters in closed form, so that what
    events added on the scenario's cluster is kept.
    """
    own, other, phases = PhaseTimer(s, s.cluster), PhaseTimer(s, cluster), {phase.name: phase for phase in _phases(s)}
    out = []
    for segment in segments:
        key = _key(segment, phases)
        step_s = segment.throughput.step_s * other.closed_form_s(*key) / own.closed_form_s(*key)
        out.append(_with_step_s(segment, step_s))
    return tuple(out)


def _phases(s: Scenario) -> tuple[Phase, ...]:
    return s.phases or (Phase("training", s.tokens, s.workload.seq, s.workload.tokens),)


def _key(segment: RunSegment, phases: Mapping[str, Phase]) -> tuple[str, Phase, int]:
    """Plan, phase and batch of a segment: what its step depends on."""
    phase = phases[segment.phase]
    return segment.throughput.plan, phase, round(segment.throughput.tokens_per_step / phase.seq)


def phase_keys(s: Scenario, segments: Sequence[RunSegment]) -> dict[str, tuple[str, Phase, int]]:
    """Phase's name → plan, phase and batch of its last segment, where a growing batch has its full size."""
    phases = {phase.name: phase for phase in _phases(s)}
    return {segment.phase: _key(segment, phases) for segment in segments}


def phase_facts(s: Scenario, segments: Sequence[RunSegment]) -> dict[str, dict[str, Any]]:
    """A run's phases with their plans, and its changes from one to the next (`sim.report.run_phases` tells both)."""
    return {"phases": _phases_of(segments), "plan_changes": _plan_changes(s, segments)}


def _phases_of(segments: Sequence[RunSegment]) -> dict[str, dict[str, Any]]:
    """Phase's name → tokens, steps, days without failures, and the plan and chips of its longest stretch; how many
    other plans its stretches have."""
    out: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(segment.phase for segment in segments):
        own = [segment for segment in segments if segment.phase == name]
        longest = max(own, key=lambda segment: segment.work_s).throughput
        out[name] = {
            "tokens": float(sum(segment.tokens for segment in own)),
            "ideal_days": sum(segment.work_s for segment in own) / DAY_S,
            "plan": longest.plan,
            "chips": longest.num_chips,
            "steps": sum(segment.steps for segment in own),
            "other_plans": len({segment.throughput.plan for segment in own}) - 1,
        }
    return out


def _plan_changes(s: Scenario, segments: Sequence[RunSegment]) -> dict[str, float]:
    """How often the run changes its plan, and the seconds of each change: the whole, and what it is made of."""
    saved, restart_s = checkpoint(s), recovery(s).restart_s
    return {
        "count": sum(a.throughput.plan != b.throughput.plan for a, b in pairwise(segments)),
        "each_s": saved.plan_change_s(restart_s),
        "write_s": saved.delay_s,
        "restart_s": restart_s,
        "read_s": saved.read_s,
    }


def _with_step_s(segment: RunSegment, step_s: float) -> RunSegment:
    return replace(segment, throughput=replace(segment.throughput, step_s=step_s))


def _sparse_model(s: Scenario) -> ModelSpec:
    """The model of the phases that train sparse attention, where the scenario's own is still dense."""
    later = s.document.get("attention") == "dense" and any(p.attention == "sparse" for p in s.phases)
    return load_model(s.document["model"]) if later else s.model


def total_tokens(s: Scenario) -> float:
    """Tokens of the whole run, all phases."""
    return sum(ph.tokens for ph in s.phases) if s.phases else s.tokens
