"""Step time in closed form, per schedule: what the event floor gives without jitter, in microseconds of work.

Symbols: P ranks, m micro-batches, v chunks per rank, F/B/W forward, input-gradient and weight-gradient time of a chunk.
Sources: GPipe (arXiv 1811.06965), 1F1B and interleaved (arXiv 2104.04473 §2.2: bubble (P−1)/(v·m)), zero bubble (arXiv
2401.10241: (P−1)(F + B − W)), ZB-V (2405.15362), DualPipe (arXiv 2412.19437 Table 2: (P/2−1)(F&B + B − 3W)). The counts of
messages and of unpaired chunks in the ramps are those of `sim/pipeline.py`'s orders.
Exact for equal stages of GPipe, 1F1B, interleaved and ZB-H1; for unequal ones the busiest rank sets the pace and the
others the ramp. DualPipe and ZB-V are within a few percent.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from sim.step_costs import StepCosts


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step and its parts; `bubble_share` is idle time of the busiest rank over pipeline time."""

    total_s: float
    pipeline_s: float
    bubble_s: float
    grad_reduce_s: float             # what overlap leaves
    param_gather_s: float
    optimizer_s: float
    fixed_s: float

    @property
    def bubble_share(self) -> float:
        return self.bubble_s / self.pipeline_s if self.pipeline_s > 0 else 0.0


def pipeline_time(costs: StepCosts, schedule: str = "1f1b", overlap_p2p: bool = True, slow: float = 1.0) -> tuple[float, float]:
    """(seconds from the first forward to the last backward, idle seconds of the busiest rank).

    `slow` multiplies compute: the slowest chip of every rank (see `straggler`).
    """
    P, m = costs.ranks, costs.micro_batches
    fwd = [sum(c.forward_s for c in row) * slow for row in costs.chunks]
    bwd = [sum(c.backward_input_s for c in row) * slow for row in costs.chunks]
    wgt = [sum(c.backward_weight_s for c in row) * slow for row in costs.chunks]
    work = [f + b + w for f, b, w in zip(fwd, bwd, wgt)]
    busy, v = max(work), max(len(row) for row in costs.chunks)
    if P == 1:
        return m * busy, 0.0
    total = sum(work)
    p2p = costs.p2p_s
    if schedule == "gpipe":
        # the forwards run through, then the backwards: each ramp passes every other rank once
        f, b = max(fwd), max(x + y for x, y in zip(bwd, wgt))
        time = (m - 1) * (f + b) + total + 2 * (P - 1) * p2p
        return time, time - m * busy
    F, B, W = (sum(x) / P / v for x in (fwd, bwd, wgt))           # of one chunk
    if schedule == "zb-h1":
        bubble = (P - 1) * max(F + B - W, F, B) + 4 * (P - 1) * p2p
        return m * busy + bubble, bubble
    if schedule == "zb-v":
        bubble = (P - 1) * max(F + B - 2 * W, 2 * (B - W), F, B, W) + (5 * P - 7) * p2p
        return m * busy + bubble, bubble
    if schedule in ("dualpipe", "dualpipe-v"):
        # Pairs of a forward and a full backward run together and hide the all-to-all; the ramps run unpaired.
        hide = [sum(min(c.forward_comm_s + c.backward_comm_s, c.forward_s, c.backward_s) for c in row) * slow for row in costs.chunks]
        pair = F + B + W - sum(hide) / P / v
        unpaired = (P + 1 if schedule == "dualpipe" else 2 * P + 1) * sum(hide) / P / v
        bubble = (P / 2 - 1 if schedule == "dualpipe" else P - 1) * max(pair + (B + W) - 3 * W, 0.0) + unpaired
        share = 0.5 if schedule == "dualpipe" else 1.0            # each direction carries half of the micro-batches
        steady = m * share * max(w - h for w, h in zip(work, hide))
        messages = m * share * (4 - 4 / P) + max(P - 5, 0)         # behind a busier rank some fall into its shadow: not counted off
        return steady + bubble + messages * p2p, bubble + messages * p2p
    # 1F1B and interleaved: the busiest rank, the rest of the ramp, and messages
    ramp = (total - busy) / v
    if v == 1:
        # a rank r keeps P−r micro-batches in flight: the round trip to the last rank and back must fit in their work
        round_trip = max((sum(work[r:]) + 2 * (P - 1 - r) * p2p) / (P - r) for r in range(P))
        cycle = max(busy, round_trip)
        time = (m - 1) * cycle + total + 2 * (P - 1) * p2p
        return time, time - m * busy
    time = m * busy + ramp + 2 * (P * v - 1) * p2p
    if not overlap_p2p:
        time += 2 * m * v * p2p                                   # each chunk waits for its messages
    return time, time - m * busy


def straggler(chips: int, spread: float) -> float:
    """Expected slowest of `chips` chips whose speed varies by `spread` (normal): 1 + σ·E[max] (Blom's approximation)."""
    if chips < 2 or spread <= 0:
        return 1.0
    p = (chips - 0.375) / (chips + 0.25)
    # inverse normal by Abramowitz & Stegun 26.2.23
    t = math.sqrt(-2.0 * math.log(1.0 - p))
    z = t - (2.515517 + 0.802853 * t + 0.010328 * t * t) / (1 + 1.432788 * t + 0.189269 * t * t + 0.001308 * t**3)
    return 1.0 + spread * z


def step_time(costs: StepCosts, schedule: str = "1f1b", overlap_p2p: bool = True, slow: float = 1.0, dp_hidden: float = 0.9) -> StepTime:
    """Seconds of one training step.

    The gradient reduction may run under the backward of the last micro-batch (`overlap_grad_reduce`): what is longer than
    `dp_hidden` of that stays visible, and the last bucket always does.
    """
    pipeline, bubble = pipeline_time(costs, schedule, overlap_p2p, slow)
    reduce = costs.grad_reduce_s
    if costs.overlap_grad_reduce and reduce > 0:
        v = max(len(row) for row in costs.chunks)
        chunk = min(sum(c.backward_s for c in row) for row in costs.chunks) * slow / v
        # interleaving finishes a chunk's gradients P micro-batches of backwards before the next chunk's
        early, last = reduce * (v - 1) / v, reduce / v
        waiting = max(early - dp_hidden * (v - 1) * min(costs.ranks, costs.micro_batches) * chunk, 0.0)
        buckets = 8                                               # the last bucket has nothing to hide under
        reduce = max(waiting + last - dp_hidden * chunk, last / buckets * (1 - dp_hidden))
    total = pipeline + reduce + costs.param_gather_s + costs.optimizer_s + costs.fixed_s
    return StepTime(total, pipeline, bubble, reduce, costs.param_gather_s, costs.optimizer_s, costs.fixed_s)
