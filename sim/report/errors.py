"""The error page of `clustersim validate --html`: what is missed where a software stack is left out, and by how much.

Every row is predicted with its stack left out of all fits (`sim.validation.coverage`). What is believed to be to blame
for a miss is a rule by what the run was, not a finding: the measurement that would decide stands beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from minglm import plots
from sim.cost.stacks import product_of
from sim.report.html import Page, cards, table
from sim.scenario.build import Run
from sim.validation.coverage import ALONE, LeftOut, all_left_out, all_rows, coverage, kind_of_run
from sim.validation.summary import FEWEST, by_group

BEYOND = 0.11  # mean error of a group that is listed row by row
# (rows, who, their mean error on them, where it is printed); ours stands beside it.
OTHERS = (
    (
        "1,440 iterations on 1-8 A100",
        "vTrain, after profiling each kernel",
        "8.37%",
        "VIA-Research/vTrain f8dda84",
        "8.8%",
    ),
)


def believed(run: Run) -> tuple[str, str]:
    """(mechanism believed to blame for a miss of such a run, measurement that would decide)."""
    model, plan = run.model, run.plan
    if model.sinks:
        return "attention with learned sinks: no measured kernel", "a timing of that kernel by length and heads"
    if run.cluster.chip.family == "ascend":
        return "no table of Ascend's kernels and HCCL", "minglm probe on one node"
    if model.experts and not run.stack.dedup and run.workload.capacity_factor is None:
        if plan.overlap_all_to_all and kind_of_run(run) == ALONE:
            return (
                "how much of an all-to-all between nodes the other micro-batch hides",
                "a trace of one step: seconds of each all-to-all, alone and beside other work",
            )
        if plan.vpp > 1 and not plan.overlap_all_to_all:
            return (
                "interleaved chunks that each wait for token counts: a device queue that runs empty at every one",
                "the same run without interleaving, and one with whole-node dispatch (DeepEP)",
            )
        if kind_of_run(run) == ALONE:
            return (
                "the host: seconds to issue a layer's small operators",
                "a trace of the host's thread, or the run with a graph of all but the experts",
            )
    if model.experts:
        return "dispatcher, launches and the spread of tokens over experts", "a trace of ten steps with expert loads"
    if plan.zero == 3:
        return "how much of the gathers compute hides", "a trace of one step"
    if plan.tp > 2:
        return "how much of the tensor-parallel messages is hidden", "the same run without overlap"
    return "clocks held in a long run", "the chip's power and clock during the run"


def year_of(stack: str) -> str:
    """The year in a release's name: 25.11 and 2025-11 are 2025; '?' where it has none."""
    number = product_of(stack)[1]
    year = int(number) if number >= 2000 else 2000 + int(number) if 20 <= number < 100 else 0
    return str(year) if year else "?"


def page() -> Page:
    """The page; about five seconds."""
    runs = {row.id: row for row in all_rows()}
    rows = all_left_out()
    errors = [100 * row.error for row in rows]
    out = Page(
        "How wrong is the simulator?",
        f"{len(rows)} measured training runs, each predicted with its software stack left out of every fit.",
    )
    inside = coverage(rows)
    out.add(
        cards(
            [
                (f"{statistics.mean(map(abs, errors)):.1f}%", "mean absolute error"),
                (f"{statistics.median(map(abs, errors)):.1f}%", "median"),
                (f"{inside['all']['inside_80']:.0%}", "of the rows lie in their 80% interval"),
            ]
        )
    )
    out.heading("Predicted against measured", "scatter")
    fig = plots.figure("", "measured over predicted time", "", height=380)
    fig.add_scatter(
        x=[row.factor for row in rows],
        y=[row.kind for row in rows],
        mode="markers",
        text=[row.id for row in rows],
        hovertemplate="%{text}: %{x:.2f}<extra></extra>",
    )
    fig.update_xaxes(type="log")
    out.figure(fig, "A point a row, by kind of question; 1 is exact, right of it the run took longer than predicted.")
    for title, anchor, key in (
        ("By kind of question", "kinds", lambda row: row.kind),
        ("By chip", "chips", lambda row: row.chip),
        ("By year of the software", "years", lambda row: year_of(row.stack)),
    ):
        out.heading(title, anchor)
        out.add(_groups(rows, key))
    out.heading("The ten worst", "worst")
    worst = sorted(rows, key=lambda row: -abs(row.error))[:10]
    out.add(
        table(
            ("run", "measured over predicted", "believed to blame", "would decide"),
            [(row.id, f"{row.factor:.2f}", *believed(runs[row.id].run)) for row in worst],
        )
    )
    out.heading(f"Groups missed by more than {BEYOND:.0%}", "groups")
    out.add(
        table(
            ("stack on chip", "run", "measured over predicted", "believed to blame", "would decide"),
            [
                (f"{row.stack} on {row.chip}", row.id, f"{row.factor:.2f}", *believed(runs[row.id].run))
                for some in far(rows)
                for row in sorted(some, key=lambda row: -abs(row.error))
            ],
            f"Groups of {FEWEST} rows and more of one release on one chip, worst first.",
        )
    )
    out.heading("Do the intervals hold?", "coverage")
    out.add(
        table(
            (
                "kind",
                "rows",
                "in the 50% interval",
                "in the 80% interval",
                "width of the 80%",
                "stacks",
                "in the 80%, a stack once",
            ),
            [
                (
                    k,
                    v["rows"],
                    f"{v['inside_50']:.0%}",
                    f"{v['inside_80']:.0%}",
                    f"{v['width_80']:.0%}",
                    v["stacks"],
                    f"{v['stacks_80']:.0%}",
                )
                for k, v in inside.items()
            ],
            "Each interval is made without the row's stack.",
        )
    )
    out.heading("Other simulators on the same rows", "others")
    out.add(table(("rows", "simulator", "its mean error", "printed in", "ours"), OTHERS))
    return out


def far(rows: Sequence[LeftOut]) -> list[list[LeftOut]]:
    """The groups of `FEWEST` rows and more that are missed by more than `BEYOND` on average, worst first."""
    return [some for some in by_group(rows).values() if _mean(some) > BEYOND]


def _by(rows: Sequence[LeftOut], key: Callable[[LeftOut], str]) -> dict[str, list[LeftOut]]:
    by_key: dict[str, list[LeftOut]] = {}
    for row in rows:
        by_key.setdefault(key(row), []).append(row)
    return by_key


def _mean(rows: Sequence[LeftOut]) -> float:
    return statistics.mean(abs(row.error) for row in rows)


def _groups(rows: Sequence[LeftOut], key: Callable[[LeftOut], str]) -> str:
    return table(
        ("", "rows", "mean absolute error", "median of measured over predicted time"),
        [
            (name, len(some), f"{_mean(some):.1%}", f"{statistics.median(row.factor for row in some):.2f}")
            for name, some in sorted(_by(rows, key).items())
        ],
    )


def write(path: Path) -> Path:
    """Write the page; returns its path."""
    return page().write(path)
