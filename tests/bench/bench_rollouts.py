"""Rollout simulation at 5K, 50K and 500K trajectories a step: seconds, and whether they grow in proportion.

One thread that computes and never waits: MINGLM_BENCH_CPU_TIME=1 counts processor seconds, for a machine that others
use. Every engine has the same load (500,000 trajectories on 3,000 engines, synchronous, groups of 32); one run each,
largest last. Then the largest shipped scenario, as `clustersim rollouts` answers it.
"""

from __future__ import annotations

import os
import time

from minglm.rl.modes import Policy
from minglm.tools import bench_summary
from sim.rollout.decode_curve import DecodeCurve
from sim.rollout.lengths import Lengths
from sim.rollout.questions import answer
from sim.rollout.simulate import Case, simulate

NAME = "rollouts"
clock = time.process_time if os.environ.get("MINGLM_BENCH_CPU_TIME") else time.perf_counter
CURVE = DecodeCurve(((1, 0.02), (64, 0.04), (256, 0.1)), ((1, 1e-8),))
SIZES = ((160, 30), (1_600, 300), (16_000, 3_000))


def run() -> list[dict]:
    rows, seconds = [], {}
    for groups, engines in SIZES:
        case = Case(Policy("sync", groups), 32, Lengths.lognormal(8000, 65536), engines, CURVE, kv_limit=2e6, steps=1)
        start = clock()
        result = simulate(case)
        n = result.throughput.trained_trajectories
        seconds[n] = clock() - start
        rows.append({"name": f"{n:,} trajectories on {engines:,} engines", "value": seconds[n], "unit": "s"})
    rows[-1] |= {"target": 60.0, "met": rows[-1]["value"] < 60.0}
    _small, middle, large = (s / n for n, s in seconds.items())
    rows.append(
        {
            "name": "seconds per trajectory, 500K over 50K",
            "value": large / middle,
            "unit": "x",
            "ratio": large / middle,
            "target": 2.0,
            "met": large / middle < 2.0,
        }
    )
    rows[-2] |= bench_summary.answer(rows[-2]["name"], rows[-2]["value"])
    start = clock()
    answer("rollouts_glm5_100k")
    name, took = "rollouts_glm5_100k, the whole answer", clock() - start
    rows.append({"name": name, "value": took, "unit": "s", **bench_summary.answer(name, took)})
    return rows
