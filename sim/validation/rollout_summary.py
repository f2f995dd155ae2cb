"""What the simulator misses of published rollouts: by family, framework and quantity, family left out, coverage.

A family that is left out knows nothing of itself: its scalar is what the other families' are (for mean lengths the
geometric mean of the shares of the cap), 1 for a scale of times, or nothing where a framework has a habit. That is an
upper bound: the scalars are mostly lengths, which whoever asks knows. Errors of gains and shares are points, all others
relative; the interval of a family is conformal, from the rows of the others.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sim.rollout.scenario import canonical
from sim.validation import rollout
from sim.validation.coverage import interval

SHARES = (0.5, 0.8)


class Compared(NamedTuple):
    """A holdout row beside its prediction. factor: measured over simulated, of the quantity."""

    id: str
    family: str
    error: float
    factor: float | None  # None for shares, which have no ratio


def _case(family: str) -> Mapping[str, Any]:
    return canonical(rollout.document()["families"][family].get("case") or {}, family)


def _cap(family: str) -> float:
    case = _case(family)
    return float(case.get("max_response", case.get("max", 1)))


def borrowed(family: str) -> tuple[str, float] | None:
    """(key, value) of the scalar of a family that is left out; None where none is fitted, or none is said."""
    families = rollout.document()["families"]
    first = families[family].get("fit_from", family)
    if "fit" not in families[first]:
        return None
    key = families[first]["fit"]["key"]
    if key == "memory_share":
        return None  # what the framework does
    if key != "mean":
        return key, 1.0
    others = {name for name, spec in families.items() if spec.get("fit", {}).get("key") == key and name != first}
    shares = [found[1] / _cap(name) for name in sorted(others) if (found := rollout.fitted(name))]
    return (key, _cap(family) * statistics.geometric_mean(shares)) if shares else None


def left_out(report: Mapping[str, Any]) -> list[Compared]:
    """Every holdout row of `rollout.validate`, with its family left out of every fit."""
    known = {row["id"]: row for row in rollout.document()["rows"]}
    out = []
    for entry in (e for e in report["rows"] if e["kind"] == "holdout"):
        fits = rollout.fitted(entry["family"]) is not None
        predicted = rollout.predict(known[entry["id"]], borrowed(entry["family"])) if fits else entry["predicted"]
        out.append(_compare(entry, predicted))
    return out


def _compare(entry: Mapping[str, Any], predicted: float) -> Compared:
    """A row beside `predicted`; its factor is of a gain that of the speeds themselves, of a range to its nearer end."""
    error = rollout.error_of(entry["quantity"], entry["measured"], predicted)
    factor: float | None = 1.0 / (1.0 + error)
    if entry["quantity"] == "gain":
        factor = (1.0 + predicted - error) / (1.0 + predicted)
    is_share = entry["quantity"] in ("tail_share", "rollout_idle")
    return Compared(entry["id"], entry["family"], error, None if is_share else factor)


def coverage(rows: Sequence[Compared]) -> dict[str, float]:
    """How often the intervals of the other families hold a row: rows, inside_50, inside_80, width_80 (high / low)."""
    some = [row for row in rows if row.factor is not None]
    inside, widths = dict.fromkeys(SHARES, 0), []
    for row in some:
        others = [other.factor for other in some if other.family != row.family and other.factor is not None]
        for share in SHARES:
            low, high = interval(others, share)
            inside[share] += low <= (row.factor or 0.0) <= high
        widths.append(high / low if low else math.inf)
    count = max(len(some), 1)
    return {
        "rows": len(some),
        "inside_50": inside[0.5] / count,
        "inside_80": inside[0.8] / count,
        "width_80": statistics.median(widths) if widths else math.nan,
    }


def summary() -> dict[str, Any]:
    """Errors of the holdout rows: all, left_out, by_family, by_framework, by_quantity (rows, mean, median, worst with
    its row), and coverage. JSON-ready."""
    report = rollout.validate()
    entries = [e for e in report["rows"] if e["kind"] == "holdout"]
    rows, errors = left_out(report), [(e["id"], e["error"]) for e in entries]
    return {
        "rows": len(entries),
        "all": _errors(errors),
        "left_out": _errors([(row.id, row.error) for row in rows]),
        "by_family": _by([e["family"] for e in entries], errors),
        "left_out_by_family": _by([row.family for row in rows], [(row.id, row.error) for row in rows]),
        "by_framework": _by([str(_case(e["family"]).get("framework", "none named")) for e in entries], errors),
        "by_quantity": _by([e["quantity"] for e in entries], errors),
        "coverage": coverage([_compare(e, e["predicted"]) for e in entries]),
        "unsupported": {e["id"]: e["reason"] for e in report["rows"] if e["kind"] == "unsupported"},
    }


def _errors(some: Sequence[tuple[str, float]]) -> dict[str, Any]:
    off = [abs(error) for _, error in some]
    name, worst = max(some, key=lambda one: abs(one[1]), default=("", math.nan))
    mean, median = (statistics.mean(off), statistics.median(off)) if off else (math.nan, math.nan)
    return {"rows": len(off), "mean": mean, "median": median, "worst": worst, "worst_row": name}


def _by(names: Sequence[str], errors: Sequence[tuple[str, float]]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for name, error in zip(names, errors, strict=True):
        groups[name].append(error)
    return {name: _errors(groups[name]) for name in sorted(groups)}


def summary_text(result: Mapping[str, Any]) -> str:
    """The summary as tables."""

    def line(name: str, e: Mapping[str, Any]) -> str:
        return (
            f"  {name:<24} {e['rows']:>4} {e['mean']:>7.1%} {e['median']:>7.1%} {e['worst']:>+8.1%}  {e['worst_row']}"
        )

    head = f"  {'':<24} {'rows':>4} {'mean':>7} {'median':>7} {'worst':>8}"
    lines = ["Published rollouts, predicted against measured (data/rollouts/published.yaml); holdout rows", head]
    lines += [line("all", result["all"]), line("family left out", result["left_out"])]
    for key in ("family", "framework", "quantity"):
        lines += ["", f"by {key}", *(line(name, e) for name, e in result[f"by_{key}"].items())]
    lines += ["", "by family, each left out of every fit"]
    lines += [line(name, e) for name, e in result["left_out_by_family"].items()]
    c = result["coverage"]
    lines += [
        "",
        f"intervals from the other families: {c['rows']} rows, {c['inside_50']:.0%} inside the 50% and "
        f"{c['inside_80']:.0%} inside the 80% interval, high / low {c['width_80']:.2f}",
        "",
        "not compared",
        *(f"  {name}: {reason}" for name, reason in result["unsupported"].items()),
    ]
    return "\n".join(lines)
