"""The planner's report: one self-contained HTML page, with plan.json and plans.csv beside it, for someone who signs.

Question, answer with its interval, why this plan, what would change the answer, assumptions with their sources, and the
simulator's error on measured runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from minglm import atomic, plots
from minglm.errors import InputError
from sim.base.units import show
from sim.report import run_phases
from sim.report.html import Page, cards, table
from sim.study.monte_carlo import tornado_figure
from sim.validation import training as validation

COLUMNS = (
    "plan",
    "micro_batch",
    "zero",
    "recompute",
    "chips",
    "step_s",
    "tokens_per_s",
    "tokens_per_s_per_chip",
    "mfu",
    "memory_gib",
    "goodput",
    "days",
    "chip_hours",
    "energy_kwh",
    "rent_usd",
    "own_usd",
)


def write(result: Mapping, folder: Path) -> Path:
    """Write plan.json, plans.csv (ranked list and front) and plan.html; returns the page.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(folder / "plan.json", result, ensure_ascii=False)
        rows = ({"list": name, **row} for name in ("ranked", "front") for row in result[name])
        atomic.write_csv(folder / "plans.csv", rows, ("list", *COLUMNS), extrasaction="ignore")
        return page(result).write(folder / "plan.html")
    except OSError as err:
        raise InputError(
            f"{folder}: cannot be written ({err.strerror or err}); give another folder with --out"
        ) from None


def page(result: Mapping) -> Page:
    """The answer as a `sim.report.html.Page`."""
    q, w, s = result["question"], result["winner"], result["search"]
    document = Page(
        f"A plan for {q['model']} on {q['chips']:,} × {q['chip']}",
        f"Which parallel plan trains {show(q['tokens'], 'count')} tokens best (by {q['objective']}), how long does "
        "it take and what does it cost?",
    )
    document.heading("Answer", "answer")
    sure = (result.get("uncertainty") or {}).get("intervals", {})

    def span(key: str, kind: str | None) -> str:
        if key not in sure:
            return ""
        low, high = (show(sure[key][p], kind) if kind else f"{sure[key][p]:.3g}" for p in ("p5", "p95"))
        return f"; 90% of samples between {low} and {high}"

    items = [
        (
            w["plan"],
            f"micro-batch {w['micro_batch']}, ZeRO {w['zero']}, recompute {w['recompute']}, on {w['chips']:,} "
            f"chips, {w['spares']:,} spare",
        ),
        (f"{w['days']:.3g} days", f"with failures and restarts, goodput {w['goodput']:.0%}{span('days', None)}"),
        (f"{w['tokens_per_s']:,.0f} tokens/s", f"{w['tokens_per_s_per_chip']:.1f} a chip, MFU {w['mfu']:.1%}"),
    ]
    items += [
        (show(w[k], "money"), f"{words}{span(k, 'money')}")
        for k, words in (("rent_usd", "to rent the plan's chips"), ("own_usd", "to own them"))
        if k in w
    ]
    items.append((f"{w['energy_kwh'] / 1e6:.3g} GWh", "at the meter"))
    document.add(cards(items))
    document.add(run_phases.html(result))
    document.heading("Why this plan", "why")
    for sentence in result["explanation"]:
        document.prose(sentence)
    if "difference" in result.get("verified", {}):
        v = result["verified"]
        document.prose(
            f"Simulated as events the step takes {v['events_step_s']:.3g} s, {v['difference']:+.1%} from the closed "
            "form that ranked it."
        )
    if s["looked_at"] > 1:
        document.prose(
            f"{s['looked_at']:,} plans: {s['evaluated']:,} costed, {s['too_large']:,} too large for "
            f"memory, {s['bounded']:,} skipped by a bound.",
            "note",
        )
    head = ("plan", "micro-batch", "recompute", "chips", "step", "tokens/s/chip", "GiB", "days", "rent", "own")

    def line(r: Mapping) -> tuple:
        money = (show(r[k], "money") if k in r else "no price" for k in ("rent_usd", "own_usd"))
        return (
            r["plan"],
            r["micro_batch"],
            r["recompute"],
            f"{r['chips']:,}",
            show(r["step_s"], "time"),
            f"{r['tokens_per_s_per_chip']:.1f}",
            f"{r['memory_gib']:.1f}",
            f"{r['days']:.3g}",
            *money,
        )

    document.add(table(head, [line(r) for r in result["ranked"]], "ranked, best first"))
    document.add(table(head, [line(r) for r in result["by_schedule"].values()], "the best of each schedule"))
    document.heading("Chips against time", "front")
    document.figure(
        front_figure(result),
        f"Days against chips: {len(result['front'])} plans that no other beats in time, cost and chips.",
    )
    document.heading("What would change the answer", "changes")
    if result.get("uncertainty"):
        u = result["uncertainty"]
        first = u["tornado"][0]
        document.figure(
            tornado_figure(u),
            f"Days with one input at a time at its 5% and 95% point. {first['name']} moves them most.",
        )
        document.prose(f"{u['samples']:,} samples over the ranges of the facts and the simulator's own error.", "note")
    else:
        document.prose("No samples were drawn (--samples 1000 draws them).")
    document.heading("Assumptions", "assumptions")
    document.add(table(("assumption",), [(a,) for a in result["assumptions"]]))
    if result.get("facts"):
        document.add(
            table(
                ("figure", "value", "range", "strength", "source"),
                [tuple(f.values()) for f in result["facts"]],
                "figures of the machine",
            )
        )
    document.heading("How wrong the simulator is", "error")
    checked = validation.run(cross=False)
    document.prose(
        f"On {checked['count_holdout']} measured runs that it was not fitted on, the mean absolute error is "
        f"{checked['mape_holdout']:.1%}, "
        f"the worst {checked['worst_holdout']:.1%} ({checked['worst_row']})."
    )
    document.add(
        table(
            ("run", "chip", "stack", "error"),
            [
                (r["id"], r["chip"], r["stack"], f"{100 * r['error']:+.1f}%")
                for r in checked["rows"]
                if r["kind"] == "holdout" and r["error"] is not None
            ],
        )
    )
    return document


def front_figure(result: Mapping):
    """Days over chips of the Pareto front (Plotly)."""
    fig = plots.figure("Chips against time", "chips", "days", log_x=True, log_y=True)
    plots.line(
        fig, [r["chips"] for r in result["front"]], [r["days"] for r in result["front"]], "Pareto front", markers=True
    )
    return fig
