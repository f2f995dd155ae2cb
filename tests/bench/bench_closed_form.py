"""The closed form against the simulator on one step: TP8 PP16 with 64 micro-batches, folded, side by side."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from sim.cost.closed_form import step_time
from sim.cost.step import build
from sim.spec.hardware import load_cluster
from sim.spec.model_loader import load_model
from sim.spec.plan import Plan, Workload
from sim.training.step import simulate

NAME = "closed_form"


def _median(action, repeat: int) -> float:
    spent = []
    for _ in range(repeat):
        start = time.perf_counter()
        action()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def run() -> list[dict]:
    plan = Plan(tp=8, pp=16, dp=62, zero=1)
    costs = build(load_model("gpt3_175b"), load_cluster("atlas_900_a2_podc"), plan, Workload(62 * 64, 2048))
    closed, events = [], []
    for _ in range(5):  # interleaved, so that a slow moment hits both
        closed.append(_median(lambda: step_time(costs, "1f1b"), 200))
        events.append(_median(lambda: simulate(costs, "1f1b"), 3))
    fast, slow = statistics.median(closed), statistics.median(events)
    rows = [
        {
            "name": "closed form of one step, TP8 PP16, 64 micro-batches",
            "value": fast * 1e3,
            "unit": "ms",
            "ratio": slow / fast,
            "target": "under 0.2 ms",
            "met": fast < 0.2e-3,
        },
        {
            "name": "events of the same step, folded",
            "value": slow * 1e3,
            "unit": "ms",
            "ratio": 1.0,
            "target": "under 50 ms",
            "met": slow < 50e-3,
        },
        {
            "name": "difference of their step times",
            "value": 100 * abs(step_time(costs, "1f1b").total_s / simulate(costs, "1f1b").step_s - 1),
            "unit": "%",
            "ratio": None,
            "target": "under 1 %",
            "met": abs(step_time(costs, "1f1b").total_s / simulate(costs, "1f1b").step_s - 1) < 0.01,
        },
    ]
    table = os.environ.get("MINGLM_VTRAIN_CSV", "")
    if table and Path(table).exists():
        from sim.validation.csv_tables import run_csv

        spent = run_csv(table, fit=False)["evaluation_s"]
        rows.append(
            {
                "name": "1,440 iterations of the single-node table, costs and closed form",
                "value": spent,
                "unit": "s",
                "ratio": None,
                "target": "under 2 s",
                "met": spent < 2.0,
            }
        )
    return rows
