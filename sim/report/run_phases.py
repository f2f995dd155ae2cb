"""The phases of a run, each with its plan, and what changing from one plan to the next costs, in text and in HTML."""

from __future__ import annotations

from collections.abc import Mapping

from sim.base.units import show
from sim.report.html import escape, table


def text(run: Mapping[str, Mapping]) -> list[str]:
    """The lines of a table; `run` has what `sim.study.campaign.phase_facts` says of one."""
    phases, changes = run["phases"], run["plan_changes"]
    lines = [f"{'phase':24}{'tokens':>10}{'days (ideal)':>14}{'chips':>9}  plan"]
    for name, p in phases.items():
        lines.append(f"{name:24}{p['tokens'] / 1e12:>9.3f}T{p['ideal_days']:>14.2f}{p['chips']:>9,}  {_plan(p)}")
    return lines + ([sentence(changes)] if changes["count"] else [])


def html(run: Mapping[str, Mapping]) -> str:
    """The same as a part of a page; nothing for a run of one phase."""
    phases, changes = run["phases"], run["plan_changes"]
    if len(phases) < 2:
        return ""
    rows = [
        [name, show(p["tokens"], "count"), f"{p['ideal_days']:.2f}", f"{p['chips']:,}", _plan(p)]
        for name, p in phases.items()
    ]
    said = f'<p class="note">{escape(sentence(changes))}</p>' if changes["count"] else ""
    return table(["phase", "tokens", "days without failures", "chips", "plan"], rows) + said


def sentence(changes: Mapping[str, float]) -> str:
    """What the changes of plan cost, and of what that is made."""
    count, each_s = changes["count"], changes["each_s"]
    often = "once" if count == 1 else f"{count} times"
    return (
        f"The plan changes {often}, {each_s:,.0f} s each ({changes['write_s']:,.0f} s until storage has the "
        f"checkpoint, {changes['restart_s']:,.0f} s to start anew, {changes['read_s']:,.0f} s to read the new shards): "
        f"{count * each_s / 3600:.2f} h, counted in the days and in the choice of the plans."
    )


def _plan(p: Mapping) -> str:
    also = p["other_plans"]
    return p["plan"] + (f" (and {also} other{'s' * (also > 1)} while the batch grows)" if also else "")
