"""One plan as events: check that it fits, cost it, simulate one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minglm.errors import InputError
from sim.cost import memory
from sim.cost.evaluate import in_closed_form, scale_compute
from sim.cost.step import Estimate
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan, Workload
from sim.training import step
from sim.training.jitter import Jitter

MAX_PIECES = 20_000_000  # of work in one step; a headline step with noise on every replica has one million


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
        return self.result.tokens_per_s


def evaluate(
    model: ModelSpec,
    cluster: Cluster,
    plan: Plan,
    workload: Workload,
    precision: str,
    stack,
    *,
    jitter: Mapping[str, float] | None = None,
    seed: int = 0,
    recorder=None,
    warn: bool = False,
) -> Point:
    """Check that it fits (unless `warn`), cost it, play one step.

    Without `jitter` the replicas are alike and fold into one; the expected slowest of all chips (the stack's spread)
    stretches compute instead. With it every stage of every replica is played.
    """
    made, need, closed, slow = in_closed_form(model, cluster, plan, workload, precision, stack, warn)
    noise = Jitter(**jitter) if jitter else None
    pieces = 3 * plan.pp * plan.vpp * plan.micro_batches(workload) * (plan.dp if noise else 1)
    if pieces > MAX_PIECES:
        raise InputError(
            f"a step of {plan.micro_batches(workload):,} micro-batches on {plan.pp} × {plan.vpp} stages"
            + (f" of {plan.dp:,} replicas" if noise else "")
            + f" is {pieces:,} pieces of work, more than {MAX_PIECES:,} are played; "
            + ("leave the jitter out, or " if noise else "")
            + "lower the batch or raise micro_batch"
        )
    costs = made.costs if noise else scale_compute(made.costs, slow)
    # experts spread over several replicas: these meet in every expert layer and go at the pace of their slowest chip
    together = max(1, plan.ep * plan.etp // (plan.tp * plan.cp)) if noise and model.experts else 1
    result = step.simulate(
        costs,
        plan.schedule,
        replicas=plan.dp,
        jitter=noise,
        seed=seed,
        recorder=recorder,
        lockstep=min(together, plan.dp),
    )
    return Point(made, need, result, closed, slow, plan.num_chips)
