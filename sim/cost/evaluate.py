"""One plan in closed form: costs, memory, seconds of a step, in about a millisecond."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

from minglm.errors import InputError
from sim.cost import memory
from sim.cost.closed_form import step_time, straggler
from sim.cost.step import Estimate, estimate
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan, Workload


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
    made = estimate(model, cluster, plan, workload, precision, stack)
    slow = straggler(plan.chips, made.stack.jitter)
    overlap = made.stack.overlap_p2p if plan.overlap_p2p is None else plan.overlap_p2p
    seconds = step_time(made.costs, plan.schedule, overlap, slow, made.stack.dp_hidden).total_s
    if not math.isfinite(seconds) or seconds <= 0:
        raise InputError(f"a step of {seconds} s: an input is out of range; check peaks, bandwidths and batch")
    return made, need, seconds, slow


def stretched(costs, factor: float):
    """Step costs with all compute taking `factor` times as long."""

    @functools.cache
    def slower(chunk):
        return replace(chunk, **{f: getattr(chunk, f) * factor for f in chunk.__dataclass_fields__})

    return replace(
        costs,
        chunks=tuple(tuple(slower(c) for c in row) for row in costs.chunks),
        optimizer_s=costs.optimizer_s * factor,
    )
