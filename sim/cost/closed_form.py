"""Step time in closed form, per schedule: what the simulator gives without jitter, in microseconds of work.

Symbols: P ranks, m micro-batches, v chunks per rank, F/B/W forward, input-gradient and weight-gradient time of a chunk.
Sources: GPipe (arXiv 1811.06965), 1F1B and interleaved (arXiv 2104.04473 §2.2: bubble (P−1)/(v·m)), zero bubble (arXiv
2401.10241: (P−1)(F + B − W)), ZB-V (2405.15362), DualPipe (arXiv 2412.19437 Table 2: (P/2−1)(F&B + B − 3W)). The counts
of messages and of unpaired chunks in the ramps are those of `sim/training/schedules.py`'s orders.
Exact for equal stages of GPipe, 1F1B, interleaved and ZB-H1; for unequal ones the busiest rank sets the pace and the
others the ramp, and where weight gradients are deferred any rank can set it. DualPipe and ZB-V are within a few
percent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sim.base.tape import least, most
from sim.cost.step_costs import StepCosts

DEFERRED = ("zb-h1", "zb-v", "dualpipe", "dualpipe-v")  # schedules that put weight gradients off to fill their ramps


class StepTime(NamedTuple):
    """Seconds of one step and its parts; `bubble_fraction` is idle time of the busiest rank over pipeline time."""

    total_s: float
    pipeline_s: float
    bubble_s: float
    grad_reduce_s: float  # what overlap leaves
    param_gather_s: float
    optimizer_s: float
    fixed_s: float

    @property
    def bubble_fraction(self) -> float:
        """Idle time of the bottleneck rank over the pipeline's time."""
        return self.bubble_s / self.pipeline_s if self.pipeline_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Loads:
    """What a pipeline's ranks do with one micro-batch, summed over their chunks, in seconds: all that the formulas ask
    for.

    It knows nothing of the number of micro-batches, so plans that differ in that alone share it.
    """

    ranks: int
    chunks: int  # per rank
    busy: float  # the busiest rank's work
    total: float  # all ranks' work
    forward: float  # the longest forward, and the longest backward with weights
    backward: float
    mean: tuple[float, float, float]  # forward, input-gradient and weight-gradient of an average chunk
    rest: tuple[float, ...]  # work of rank r and all after it
    hidden: float  # all-to-all that paired micro-batches hide, all ranks
    steady: float  # the busiest rank's work when it is hidden
    paces: tuple[
        tuple[float, float, float], ...
    ]  # (work, work when it is hidden, weight-gradient of one chunk), distinct ranks
    last_backward: float  # the shortest backward of a rank: what gradient reduction hides under


def loads(
    fwd: Sequence[float], bwd: Sequence[float], wgt: Sequence[float], hide: Sequence[float], chunks: int
) -> Loads:
    """From each rank's forward, input-gradient, weight-gradient and hideable seconds."""
    work = [f + b + w for f, b, w in zip(fwd, bwd, wgt, strict=True)]
    back = [b + w for b, w in zip(bwd, wgt, strict=True)]
    rest, left = [], 0.0
    for one in reversed(work):
        left += one
        rest.append(left)
    n = len(work)
    return Loads(
        n,
        chunks,
        most(*work),
        left,
        most(*fwd),
        most(*back),
        (sum(fwd) / n / chunks, sum(bwd) / n / chunks, sum(wgt) / n / chunks),
        tuple(reversed(rest)),
        sum(hide),
        most(*(w - h for w, h in zip(work, hide, strict=True))),
        tuple({(k, k - h, w / chunks) for k, h, w in zip(work, hide, wgt, strict=True)}),
        least(*back),
    )


def loads_of(costs: StepCosts) -> Loads:
    """The loads of a step that has been costed."""
    return loads(
        [sum(c.forward_s for c in row) for row in costs.chunks],
        [sum(c.backward_input_s for c in row) for row in costs.chunks],
        [sum(c.backward_weight_s for c in row) for row in costs.chunks],
        [
            sum(least(c.forward_comm_s + c.backward_comm_s, c.forward_s, c.backward_s) for c in row)
            for row in costs.chunks
        ],
        max(len(row) for row in costs.chunks),
    )


def pipeline_time(
    costs: StepCosts, schedule: str = "1f1b", overlap_p2p: bool = True, slow: float = 1.0
) -> tuple[float, float]:
    """(seconds from the first forward to the last backward, idle seconds of the busiest rank).

    `slow` multiplies compute: the slowest chip of every rank (see `straggler`).
    """
    return pipeline_of(loads_of(costs), costs.micro_batches, costs.p2p_s, schedule, overlap_p2p, slow)


def pipeline_of(work: Loads, m: int, p2p: float, schedule: str, overlap_p2p: bool, slow: float) -> tuple[float, float]:
    """`pipeline_time` of m micro-batches of these loads."""
    P, v, busy, total = work.ranks, work.chunks, work.busy * slow, work.total * slow
    if P == 1:
        return m * busy, 0.0
    if schedule == "gpipe":
        # the forwards run through, then the backwards: each ramp passes every other rank once
        time = (m - 1) * (work.forward + work.backward) * slow + total + 2 * (P - 1) * p2p
        return time, time - m * busy
    if schedule not in DEFERRED:
        # 1F1B and interleaved: the busiest rank, the rest of the ramp, and messages
        if v == 1:
            # a rank r keeps P−r micro-batches in flight: the round trip to the last rank and back must fit in their
            # work
            round_trip = most(*((rest * slow + 2 * (P - 1 - r) * p2p) / (P - r) for r, rest in enumerate(work.rest)))
            time = (m - 1) * most(busy, round_trip) + total + 2 * (P - 1) * p2p
            return time, time - m * busy
        time = m * busy + (total - busy) / v + 2 * (P * v - 1) * p2p
        if not overlap_p2p:
            time += 2 * m * v * p2p  # each chunk waits for its messages
        return time, time - m * busy
    F, B, W = (x * slow for x in work.mean)  # of one chunk
    paces = [(k * slow, s * slow, w * slow) for k, s, w in work.paces]
    # any rank can set the pace: the ramp takes long where its weight gradients, which fill it, are short
    if schedule == "zb-h1":
        time = most(*(m * work_r + (P - 1) * most(F + B - w, F, B) for work_r, _, w in paces)) + 4 * (P - 1) * p2p
        return time, time - m * busy
    if schedule == "zb-v":
        time = (
            most(*(m * work_r + (P - 1) * most(F + B - 2 * w, 2 * (B - w), F, B, w) for work_r, _, w in paces))
            + (5 * P - 7) * p2p
        )
        return time, time - m * busy
    # Pairs of a forward and a full backward run together and hide the all-to-all; the ramps run unpaired.
    hide = work.hidden * slow / P / v
    pair = F + B + W - hide
    unpaired = (P + 1 if schedule == "dualpipe" else 2 * P + 1) * hide
    ramp = P / 2 - 1 if schedule == "dualpipe" else P - 1
    share = 0.5 if schedule == "dualpipe" else 1.0  # each direction carries half of the micro-batches
    messages = m * share * (4 - 4 / P) + max(
        P - 5, 0
    )  # behind a busier rank some fall into its shadow: not counted off
    time = (
        most(*(m * share * steady + ramp * most(pair + (B + W) - 3 * w, 0.0) for _, steady, w in paces))
        + unpaired
        + messages * p2p
    )
    return time, time - m * share * work.steady * slow


@functools.lru_cache(maxsize=4096)
def straggler(num_chips: int, spread: float) -> float:
    """Expected slowest of `num_chips` chips whose speed varies by `spread` (normal):
    1 + σ·E[max] (Blom's approximation).
    """
    if num_chips < 2 or spread <= 0:
        return 1.0
    p = (num_chips - 0.375) / (num_chips + 0.25)
    # inverse normal by Abramowitz & Stegun 26.2.23
    t = math.sqrt(-2.0 * math.log(1.0 - p))
    z = t - (2.515517 + 0.802853 * t + 0.010328 * t * t) / (1 + 1.432788 * t + 0.189269 * t * t + 0.001308 * t**3)
    return 1.0 + spread * z


class StepScalars(Protocol):
    """What a step costs beside its chunks:
    `StepCosts` has it, and so has a search that shares `Loads` between plans.
    """

    @property
    def micro_batches(self) -> int: ...  # noqa: D102 (documented in StepCosts)
    @property
    def p2p_s(self) -> float: ...  # noqa: D102
    @property
    def grad_reduce_s(self) -> float: ...  # noqa: D102
    @property
    def param_gather_s(self) -> float: ...  # noqa: D102
    @property
    def overlap_grad_reduce(self) -> bool: ...  # noqa: D102
    @property
    def optimizer_s(self) -> float: ...  # noqa: D102
    @property
    def fixed_s(self) -> float: ...  # noqa: D102


def step_time(
    costs: StepCosts, schedule: str = "1f1b", overlap_p2p: bool = True, slow: float = 1.0, dp_hidden: float = 0.9
) -> StepTime:
    """Seconds of one training step.

    The gradient reduction may run under the backward of the last micro-batch (`overlap_grad_reduce`): what is longer
    than `dp_hidden` of that stays visible, and the last bucket always does.
    """
    return step_time_of(loads_of(costs), costs, schedule, overlap_p2p, slow, dp_hidden)


def step_time_of(
    work: Loads, costs: StepScalars, schedule: str, overlap_p2p: bool, slow: float, dp_hidden: float
) -> StepTime:
    """`step_time` where the loads are known already."""
    pipeline, bubble = pipeline_of(work, costs.micro_batches, costs.p2p_s, schedule, overlap_p2p, slow)
    reduce = costs.grad_reduce_s
    if costs.overlap_grad_reduce and reduce > 0:
        reduce = exposed_reduction(work, costs.micro_batches, reduce, slow, dp_hidden)
    total = pipeline + reduce + costs.param_gather_s + costs.optimizer_s + costs.fixed_s
    return StepTime(total, pipeline, bubble, reduce, costs.param_gather_s, costs.optimizer_s, costs.fixed_s)


def exposed_reduction(work: Loads, m: int, reduce: float, slow: float, dp_hidden: float) -> float:
    """Seconds of a gradient reduction of `reduce` seconds that stay visible after the last backward passes."""
    return exposed_behind(work.last_backward * slow, work.ranks, work.chunks, m, reduce, dp_hidden)


def exposed_behind(backward_s: float, ranks: int, v: int, m: int, reduce: float, dp_hidden: float) -> float:
    """`exposed_reduction` behind a rank whose v chunks take `backward_s` for the backward of one micro-batch: the
    shorter, the more is visible."""
    chunk = backward_s / v
    # interleaving finishes a chunk's gradients P micro-batches of backwards before the next chunk's
    early, last = reduce * (v - 1) / v, reduce / v
    waiting = most(early - dp_hidden * (v - 1) * min(ranks, m) * chunk, 0.0)
    buckets = 8  # the last bucket has nothing to hide under
    return most(waiting + last - dp_hidden * chunk, last / buckets * (1 - dp_hidden))
