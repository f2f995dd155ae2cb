"""The same training run on several chips: time, money, energy, chips, and the price at which one breaks even with
another.

    table = compare("glm5", chips=8192, batch_tokens="16M", tokens="1T")

Each chip sits in its usual nodes and network (`cluster` in its file of data/chips) and gets the best plan that the
search finds; a row has the figures and the 90% intervals that `clustersim run` gives for it. A 910C is counted in dies,
as frameworks see it: two are one package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minglm.errors import InputError
from sim.planner.planner import solved
from sim.planner.question import ModelSource, question
from sim.scenario.training import resolve
from sim.study.answer import Simulated, simulate
from sim.study.monte_carlo import draws, figures_with_intervals, interval

Draws = list[dict[str, float]]  # outcomes of an answer with its uncertain inputs drawn
CHIPS = ("910b", "910c_die", "h800", "h100", "b200")


def compare(
    model: ModelSource,
    chips: object = 1024,
    names: Sequence[str] = CHIPS,
    against: str = "h100",
    progress: Callable[[int, int], None] | None = None,
    **terms: Any,
) -> dict[str, Any]:
    """One row per chip, in the order given.

    Args:
        chips: of the cluster, the same number of each.
        against: the chip whose cost the others must meet; `break_even_usd_per_hour` is the rent of a chip-hour at which
            they do.
        terms: as `sim.planner.question.question` (seq, batch, batch_tokens, tokens, precision, fixed, schedules, …).
    Returns:
        rows (with the planner's figures and `intervals`, or the reason why nothing fits), against, notes.
    Raises:
        InputError: an unknown chip, or `against` not among them.
    """
    if against not in names:
        raise InputError(f"against {against!r}: not among the compared chips {', '.join(names)}; name one of them")
    twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if twice is not None:
        raise InputError(f"chip {twice!r}: named twice; name each chip once")
    rows, notes, answers, drawn = [], [], dict[str, Simulated](), dict[str, Draws]()
    for i, name in enumerate(names):
        q = question(model, None, chips, chip=name, **terms)
        entry: dict[str, Any] = {"name": name, "chip": q.cluster.chip.name, "cluster": q.cluster.name}
        try:
            answers[name] = simulate(resolve(solved(q), q.cluster.chip.name))
            drawn[name] = draws(answers[name].scenario, simulated=answers[name])
            entry |= figures_with_intervals(answers[name], drawn[name])
            notes += [f"{q.cluster.chip.name}: {text}" for text in q.stated]
        except InputError as err:
            entry["reason"] = str(err)
        for key, figure in (
            ("rent_usd_per_hour", q.cluster.chip.rent_usd_per_hour),
            ("system_price_usd", q.cluster.system_price_usd),
        ):
            entry[key] = figure and {
                "value": figure.value,
                "low": figure.low,
                "high": figure.high,
                "source": figure.source,
                "confidence": figure.confidence,
            }
        if entry["rent_usd_per_hour"] is None:
            notes.append(f"{q.cluster.chip.name}: no rent is known, so no cost to rent")
        if entry["system_price_usd"] is None:
            notes.append(f"{q.cluster.chip.name}: no price with its system is known, so no cost to own")
        rows.append(entry)
        if progress:
            progress(i + 1, len(names))
    tokens = q.tokens
    reference = next(r for r in rows if r["name"] == against)
    others = drawn_apart(answers[against]) if "rent_usd" in reference else []
    for r in rows:
        r["break_even_usd_per_hour"] = break_even(r, reference)
        if r["break_even_usd_per_hour"] is not None and r is not reference:
            r["intervals"]["break_even_usd_per_hour"] = break_even_interval(
                answers[r["name"]], drawn[r["name"]], others
            )
    return {"rows": rows, "tokens": tokens, "against": against, "notes": list(dict.fromkeys(notes))}


def break_even(one: Mapping[str, Any], reference: Mapping[str, Any]) -> float | None:
    """Rent of a chip-hour at which `one` costs as much as `reference` does to rent; None where either has no answer."""
    if "chip_hours" not in one or "rent_usd" not in reference:
        return None
    return reference["rent_usd"] / one["chip_hours"]


def drawn_apart(reference: Simulated) -> Draws:
    """Draws of an answer for `break_even_interval`, which owe nothing to the answer's own."""
    return draws(reference.scenario, simulated=reference, seed=reference.scenario.seed + 1)


def break_even_interval(one: Simulated, drawn: Draws, others: Draws) -> dict[str, float]:
    """Quantiles of `break_even` over an answer's draws and the reference's `drawn_apart`: the simulator's error on one
    is independent of that on the other, as nothing says that it errs alike on two chips."""
    hours = [row["days"] * 24 * one.scenario.cluster.num_chips for row in drawn]
    return interval([row["rent_usd"] / h for row, h in zip(others, hours, strict=False)])
