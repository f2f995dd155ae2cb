"""The planner page: from a moved control to the picture, in this process (the browser's drawing comes on top)."""

from __future__ import annotations

import os
import statistics
import tempfile
import time

NAME = "dashboard"
MOVES = (
    ("chips", ("19000", "17000", "12000", "9000", "24000")),
    ("batch", ("15M", "18M", "24M", "32M", "12M")),
    ("seq", ("8192", "4096", "6144", "2048", "3072")),
    ("tokens", ("20T", "15T", "25T", "30T", "28.5T")),
    ("rent_usd_per_hour", ("2-3", "2.5", "1.5-2", "4", "3")),
)


def run() -> list[dict]:
    with tempfile.TemporaryDirectory() as place:
        before, os.environ["MINGLM_RUNS"] = os.environ.get("MINGLM_RUNS"), place
        try:
            return _run()
        finally:
            if before is None:
                del os.environ["MINGLM_RUNS"]
            else:
                os.environ["MINGLM_RUNS"] = before


def _run() -> list[dict]:
    from sim.dashboard.page import Page

    page, out = Page(), []
    for key, values in MOVES:
        spent = []
        for value in values:
            start = time.perf_counter()
            page.inputs.fields[key].box.value = value
            spent.append(time.perf_counter() - start)
            if page.error.value:
                raise AssertionError(page.error.value)
        median = statistics.median(spent)
        out.append(
            {
                "name": (
                    f"GLM-5 on H100: {page.inputs.fields[key].control.label.lower()} moved, answer with interval and "
                    "all pictures made"
                ),
                "value": median,
                "unit": "s",
                "ratio": None,
                "target": "under 0.5 s",
                "met": median < 0.5,
            }
        )
    return out + [_quick(values) for values in ({}, {"machine": "chip:910b"})]


def _quick(values: dict) -> dict:
    """The plan that follows a slider against the best one, which takes the search many seconds to prove."""
    from sim.dashboard.controls import BY_KEY, question_of
    from sim.planner.planner import find
    from sim.planner.quick import quick

    q = question_of(values)
    fast, best = quick(q)[0], find(q, 1)[0].best[0]
    apart = fast.value(q.objective) / best.value(q.objective)
    return {
        "name": (
            f"{q.model.name} on {q.cluster.num_chips:,} {q.cluster.chip.name}, "
            f"batch {BY_KEY['batch'].default}: step of "
            "the plan found at once over that of the proven best"
        ),
        "value": apart,
        "unit": "1",
        "ratio": apart,
        "target": "at most 1.05",
        "met": apart <= 1.05,
    }
