"""One step of one replica without an event queue: the fast model that a plan search asks hundreds of times.

`sim.training.step.simulate` plays a step as SimPy processes. Where nothing is random and replicas are alike, the same
step is a list of operations to work off (`sim/training/work_off.py`). Long steps repeat themselves: beyond `EXACT`
micro-batches the time of one more group of micro-batches is measured on two shorter steps and the rest is extended from
them.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from sim.cost.step_costs import StepCosts
from sim.training import gradients
from sim.training.program import compile_programs, last_gradients
from sim.training.schedules import group_size
from sim.training.work_off import work_off

EXACT = 6  # micro-batches for each pipeline rank that are always worked off; what is beyond may be extended
# And at least so many: the slack of a ramp hides a small delay of every micro-batch until it is used up. A delay that
# 128 have not brought to light is under a hundredth of a micro-batch's time.
LEAST = 128


@functools.lru_cache(maxsize=1024)  # an answer asks for its own step several times, the next for plans of the last
def fast_step_s(costs: StepCosts, schedule: str = "1f1b") -> float:
    """Seconds of one step, as `sim.training.step.simulate` without jitter gives them.

    Raises:
        InputError: a schedule that cannot run so, or costs that are negative or not finite.
    """
    m, ranks = costs.micro_batches, costs.ranks
    grouped = schedule == "interleaved" and ranks > 1
    period = group_size(ranks, m) if grouped and m >= ranks else 2 * ranks
    exact = max(EXACT * ranks, LEAST)
    first = exact + (m - exact) % period  # the same remainder as m: the last group is as thin
    like_m = (n for n in range(first, m, period) if not grouped or group_size(ranks, n) == period)
    short, long = next(like_m, m), next(like_m, m)
    if long >= m:
        return _worked_off(costs, schedule)
    seconds = [_worked_off(replace(costs, micro_batches=n), schedule) for n in (short, long)]
    return seconds[1] + (m - long) / (long - short) * (seconds[1] - seconds[0])


def _worked_off(costs: StepCosts, schedule: str) -> float:
    programs, size, _ = compile_programs(costs, schedule)
    ends, _, _ = work_off(programs, [program.seconds for program in programs], size, costs.p2p_s)
    reduced = 0.0
    for program, times in zip(programs, ends, strict=True):
        windows = [(times[k] - program.seconds[k], times[k]) for k in last_gradients(program)]
        end = gradients.reduction_end([windows], times[-1], costs.grad_reduce_s, costs.overlap_grad_reduce)
        reduced = max(reduced, end)
    return reduced + costs.optimizer_s + costs.param_gather_s + costs.fixed_s
