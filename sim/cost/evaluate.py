"""One plan in closed form: costs, memory, seconds of a step, in about a millisecond."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

from minglm.errors import InputError
from sim.cost import memory
from sim.cost.closed_form import Loads, StepScalars, StepTime, loads_of, step_time_of, straggler
from sim.cost.stacks import Stack
from sim.cost.step import Estimate, estimate
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan, Workload


def closed_form_step(
    work: Loads, costs: StepScalars, schedule: str, overlap_p2p: bool | None, num_chips: int, stack: Stack
) -> StepTime:
    """Step time in closed form: the one formula of projections, of validation and of the planner's search.

    Args:
        work: what the pipeline's ranks do: `loads_of(costs)`, or shared by plans that differ in the rest alone.
        costs: the rest of the step: micro-batches, messages, gradient reduction, optimiser.
        overlap_p2p: whether messages overlap with compute; None: as the stack does by default.
        stack: its spread of chips' speeds: the slowest of all `num_chips` sets the pace.
    """
    overlap = stack.overlap_p2p if overlap_p2p is None else overlap_p2p
    return step_time_of(work, costs, schedule, overlap, straggler(num_chips, stack.jitter), stack.dp_hidden)


def step_of_estimate(costed: Estimate, plan: Plan) -> StepTime:
    """`closed_form_step` of one plan that has been costed."""
    return closed_form_step(
        loads_of(costed.costs), costed.costs, plan.schedule, plan.overlap_p2p, plan.num_chips, costed.stack
    )


def in_closed_form(
    model: ModelSpec,
    cluster: Cluster,
    plan: Plan,
    workload: Workload,
    precision: str,
    stack,
    allow_oom: bool = False,
    need: memory.Memory | None = None,
) -> tuple[Estimate, memory.Memory, float, float]:
    """(costs, memory, seconds of a step in closed form, factor of the slowest chip), in about a millisecond.

    allow_oom: a plan that is over the memory estimate is costed, not refused.
    need: the plan's memory where it is known to fit: it is then not counted again.

    Raises:
        InputError: a plan that cannot run, or how many GiB it is over and what would fit.
    """
    if need is None:
        need = (
            memory.peak(model, plan, workload, precision, stack)
            if allow_oom
            else memory.check_fits(model, cluster, plan, workload, precision, stack)
        )
    costed = estimate(model, cluster, plan, workload, precision, stack)
    seconds = step_of_estimate(costed, plan).total_s
    if not 0 < seconds < math.inf:
        raise InputError(f"a step of {seconds} s: an input is out of range; check peaks, bandwidths and batch")
    return costed, need, seconds, straggler(plan.num_chips, costed.stack.jitter)


def scale_compute(costs, factor: float):
    """Step costs with all compute taking `factor` times as long."""

    @functools.cache
    def slower(chunk):
        return replace(chunk, **{f: getattr(chunk, f) * factor for f in chunk.__dataclass_fields__})

    return replace(
        costs,
        chunks=tuple(tuple(slower(c) for c in row) for row in costs.chunks),
        optimizer_s=costs.optimizer_s * factor,
    )
