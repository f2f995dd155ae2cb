"""One plan as events: check that it fits, cost it, simulate one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minglm.errors import InputError
from sim.cost import memory
from sim.cost.evaluate import in_closed_form, scale_compute
from sim.cost.stacks import Stack
from sim.cost.step import Estimate
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan, Workload
from sim.training import step
from sim.training.fast_step import fast_step_s
from sim.training.jitter import Jitter

MAX_SIMULATED_OPS = 20_000_000  # in one step; a headline step with noise on every replica has one million


@dataclass(frozen=True)
class Point:
    """One plan evaluated at one batch on one cluster."""

    estimate: Estimate
    memory: memory.Memory
    result: step.StepResult
    closed_form_s: float
    straggler: float
    num_chips: int

    @property
    def tokens_per_s(self) -> float:
        """Trained tokens per second of all replicas."""
        return self.result.tokens_per_s


def evaluate(  # noqa: PLR0913 - the plan's six facts, and how it is simulated
    model: ModelSpec,
    cluster: Cluster,
    plan: Plan,
    workload: Workload,
    precision: str,
    stack: Stack | str,
    *,
    jitter: Mapping[str, Any] | None = None,
    seed: int = 0,
    recorder: step.Recorder | None = None,
    allow_oom: bool = False,
) -> Point:
    """Check that it fits (unless `allow_oom`), cost it, simulate one step.

    Without `jitter` the replicas are alike and fold into one; the expected slowest of all chips (the stack's spread)
    stretches compute instead. With it every stage of every replica is simulated.

    Raises:
        InputError: the plan cannot run, does not fit, or a step has too many ops.
    """
    estimate, need, closed_form_s, straggler = in_closed_form(
        model, cluster, plan, workload, precision, stack, allow_oom
    )
    noise = Jitter(**jitter) if jitter else None
    ops = 3 * plan.pp * plan.vpp * plan.micro_batches(workload) * (plan.dp if noise else 1)
    if ops > MAX_SIMULATED_OPS:
        raise InputError(
            f"a step of {plan.micro_batches(workload):,} micro-batches on {plan.pp} × {plan.vpp} stages"
            + (f" of {plan.dp:,} replicas" if noise else "")
            + f" is {ops:,} ops, more than the {MAX_SIMULATED_OPS:,} that are simulated; "
            + ("leave the jitter out, or " if noise else "")
            + "lower the batch or raise micro_batch"
        )
    costs = estimate.costs if noise else scale_compute(estimate.costs, straggler)
    # Experts spread over several replicas: these meet in every expert layer and go at the pace of their slowest chip.
    group = max(1, plan.ep * plan.etp // (plan.tp * plan.cp)) if noise and model.experts else 1
    result = step.simulate(
        costs,
        plan.schedule,
        replicas=plan.dp,
        jitter=noise,
        seed=seed,
        recorder=recorder,
        ep_group_replicas=min(group, plan.dp),
    )
    return Point(estimate, need, result, closed_form_s, straggler, plan.num_chips)


def worked_off(
    model: ModelSpec,
    cluster: Cluster,
    plan: Plan,
    workload: Workload,
    precision: str,
    stack: Stack | str,
    allow_oom: bool = False,
) -> tuple[float, memory.Memory]:
    """(seconds of a step, memory) of `evaluate` without jitter, in a fraction of its time (`fast_step_s`).

    Raises:
        InputError: as `evaluate`.
    """
    costed, need, _, straggler = in_closed_form(model, cluster, plan, workload, precision, stack, allow_oom)
    return fast_step_s(scale_compute(costed.costs, straggler), plan.schedule), need
