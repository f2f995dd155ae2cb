"""Is the plan found at least as fast as the plan that people used, under the same simulator?

For every shipped scenario, and every published training run whose model and cluster are known, the search is asked the
run's own question: same chips, batch, sequence, precision and software. What the run says of software and optimiser
stays; how it is laid out is left open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minglm import atomic, datafiles
from minglm.errors import InputError
from sim.planner.candidates import PlanCosts
from sim.planner.refine import FINALISTS, refine
from sim.planner.search import RankedPlan, search
from sim.planner.space import FIXED, default_space
from sim.scenario.build import Run
from sim.scenario.training import load_scenario
from sim.spec.plan import describe
from sim.training.evaluate import worked_off
from sim.validation.rows import MeasuredRow, read_rows

SLOWER = 1e-6  # of the step: two ways to add the same seconds differ by rounding
SERVED = ("serving_", "rollouts_")


@dataclass(frozen=True)
class Compared:
    """A plan that people used beside the best that is found. `reason`: why there is no comparison."""

    name: str
    theirs: str
    theirs_s: float = 0.0
    best: str = ""
    best_s: float = 0.0
    reason: str = ""

    @property
    def slower(self) -> bool:
        """Whether the search loses."""
        return not self.reason and self.best_s > self.theirs_s * (1 + SLOWER)

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        gain = self.theirs_s / self.best_s - 1 if self.best_s else None
        return {**self.__dict__, "slower": self.slower, "gain": gain}


def step_s(run: Run) -> tuple[float, float]:
    """(seconds of a step of the run's own plan as events give them, bytes on its fullest chip)."""
    arguments = (run.model, run.cluster, run.plan, run.workload, run.precision, run.stack)
    seconds, need = worked_off(*arguments, allow_oom=True)
    return seconds, need.total_bytes


def best_plan(run: Run, room: float = 0.0) -> tuple[RankedPlan, PlanCosts]:
    """The best plan for the run's question. `room`: bytes that its own plan is known to have had on a chip.

    Raises:
        InputError: nothing fits.
    """
    plan, work = run.plan, run.workload
    kept = {name: getattr(plan, name) for name in FIXED if getattr(plan, name) != getattr(type(plan)(), name)}
    if kept.get("sp") == (plan.tp > 1):
        del kept["sp"]
    cluster = replace(run.cluster, num_chips=plan.num_chips)
    space = default_space(
        run.model,
        cluster,
        work.seq,
        work.global_batch,
        fixed=kept,
        mtp=work.mtp,
        unfused=run.stack.attention == "unfused",
    )
    costs = PlanCosts(run.model, cluster, work, run.precision, run.stack, space.switches)
    costs.memory_capacity = max(costs.memory_capacity, room)
    out = search(costs, space, cluster.num_chips, work.global_batch, "tokens", FINALISTS)
    if not out.best:
        raise InputError("no plan fits the memory estimate")
    return refine(costs, out, "tokens", 1).best[0], costs


def runs() -> list[tuple[str, Run]]:
    """Name and run of every shipped training scenario and of every published row that can be predicted, those that
    nothing is fitted on included."""
    names = [n for n in datafiles.catalogue("scenarios", ".yaml") if not n.startswith(SERVED)]
    out = [(f"scenario {name}", load_scenario(name).run) for name in names]
    held_out = sorted(datafiles.data("published_runs", "held_out").glob("*.yaml"))
    rows = read_rows() + read_rows(held_out)
    return out + [(row.id, row.run) for row in rows if isinstance(row, MeasuredRow)]


def compared(name: str, run: Run) -> Compared:
    """One comparison."""
    try:
        theirs_s, need = step_s(run)
        best, costs = best_plan(run, need)
    except InputError as err:
        return Compared(name, describe(run.plan), reason=str(err))
    per_step = best.tokens / run.workload.tokens  # a batch that differs within the tolerance
    return Compared(name, describe(run.plan), theirs_s, describe(costs.plan(best.candidate)), best.step_s / per_step)


COLUMNS = ("name", "their_plan", "their_step_s", "best_plan", "best_step_s", "faster", "reason")


def write(rows: list[Compared], path: Path) -> None:
    """The comparisons as CSV."""
    atomic.write_csv(
        path,
        [
            {
                "name": row.name,
                "their_plan": row.theirs,
                "their_step_s": f"{row.theirs_s:.6g}",
                "best_plan": row.best,
                "best_step_s": f"{row.best_s:.6g}",
                "faster": f"{row.theirs_s / row.best_s - 1:.4f}" if row.best_s else "",
                "reason": row.reason,
            }
            for row in rows
        ],
        COLUMNS,
    )


def compare_all(
    progress: Callable[[int, int], None] | None = None, only: Callable[[str], bool] = lambda name: True
) -> list[Compared]:
    """Every comparison, in the order of `runs`."""
    chosen = [(name, run) for name, run in runs() if only(name)]
    out = []
    for i, (name, run) in enumerate(chosen):
        out.append(compared(name, run))
        if progress:
            progress(i + 1, len(chosen))
    return out
