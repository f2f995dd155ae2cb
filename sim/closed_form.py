"""Step time in closed form, per schedule: what the event floor gives without jitter, in microseconds of work.

Symbols: P ranks, m micro-batches, v chunks per rank, F/B/W forward, input-gradient and weight-gradient time of a chunk.
Sources: GPipe (arXiv 1811.06965), 1F1B and interleaved (arXiv 2104.04473 §2.2: bubble (P−1)/(v·m)), zero bubble (arXiv
2401.10241: (P−1)(F + B − W)), ZB-V (2405.15362), DualPipe (arXiv 2412.19437 Table 2: (P/2−1)(F&B + B − 3W)).
Exact for equal stages; for unequal ones the busiest rank sets the pace and the others the ramp.
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
    if schedule in ("dualpipe", "dualpipe-v", "zb-v", "zb-h1"):
        hide = max(sum(min(c.forward_comm_s + c.backward_comm_s, c.forward_s + c.backward_s) for c in row) for row in costs.chunks) * slow
        F, B, W = (sum(x) / P / v for x in (fwd, bwd, wgt))
        if schedule == "zb-h1":
            bubble, hide = (P - 1) * max(F + B - 2 * W if F + B > 2 * W else 0.0, max(F + B - W, 0.0)), 0.0
        elif schedule == "zb-v":
            bubble, hide = (P - 1) * max(F + B - 2 * W, 0.0), 0.0
        else:
            # F and B are of one chunk; each rank holds two. Pairs of F and B overlap, hiding the all-to-all.
            pair = F + B + W - hide / v
            bubble = (P / 2 - 1) * max(pair + (B + W) - 3 * W, 0.0)
            if schedule == "dualpipe-v":
                bubble = (P - 1) * max(pair + (B + W) - 3 * W, 0.0) * 0.5
        steady = m * (busy - hide) if schedule != "dualpipe" else m * (busy - hide) / 2
        return steady + bubble + 2 * (P - 1) * p2p, bubble + 2 * (P - 1) * p2p
    # 1F1B and interleaved: the busiest rank, the rest of the ramp, and messages
    ramp = (total - busy) / v
    if v == 1:
        # a rank r keeps P−r micro-batches in flight: the round trip to the last rank and back must fit in their work
        round_trip = max((sum(work[r:]) + 2 * (P - 1 - r) * p2p) / (P - r) for r in range(P))
        cycle = max(busy, round_trip)
        time = (m - 1) * cycle + total + 2 * (P - 1) * p2p
        return time, time - m * busy
    time = m * busy + ramp + 2 * (P - 1) * p2p
    if not overlap_p2p:
        time += 2 * m * v * p2p
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
        last = min(sum(c.backward_s for c in row) for row in costs.chunks) * slow
        layers = 8                                                # buckets: the last one has nothing to hide under
        reduce = max(reduce - dp_hidden * last, reduce / layers * (1 - dp_hidden), 0.0)
    total = pipeline + reduce + costs.param_gather_s + costs.optimizer_s + costs.fixed_s
    return StepTime(total, pipeline, bubble, reduce, costs.param_gather_s, costs.optimizer_s, costs.fixed_s)
