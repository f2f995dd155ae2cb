"""Published figures of RL systems beside what the simulator says: calibration and holdout rows apart.

A family of rows (`data/rollouts/published.yaml`) shares its inputs and at most one fitted scalar, found on one row by
bisection; every other row is predicted with it. A row is a case of `sim.rollout.scenario` with `measured`; `measured`
may be a range, against which the error is the distance to its nearer end. Gains are compared in points, all else
relatively.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

from minglm import datafiles
from minglm.errors import InputError
from sim.base.documents import read_document
from sim.base.row_kinds import row_kind
from sim.rollout.case import Case
from sim.rollout.metrics import IN_POINTS, quantity
from sim.rollout.result import Result
from sim.rollout.scenario import baseline, canonical, read
from sim.rollout.simulate import simulate
from sim.validation.predict import scores


@functools.lru_cache(maxsize=1)
def document() -> Mapping[str, Any]:
    """The families and rows, checked.

    Raises:
        InputError: a row without source or family, another use, or a second calibration row of a family.
    """
    values: Any = read_document(datafiles.data("rollouts", "published.yaml"))
    fitted: dict[str, str] = {}
    for row in values["rows"]:
        if not row.get("source") or row.get("family") not in values["families"]:
            raise InputError(f"rollout row {row.get('id')!r}: needs a source and a family that is there")
        row_kind(row.get("use"), f"rollout row {row.get('id')!r}: use")
        if row["use"] == "calibration" and fitted.setdefault(row["family"], row["id"]) != row["id"]:
            raise InputError(
                f"rollout row {row['id']!r}: a second calibration row of family {row['family']}; one scalar has one row"
            )
    return dict(values)


def _values(row: Mapping[str, Any], scalar: tuple[str, float] | None) -> dict[str, Any]:
    """The case of a row: what it says itself is said before the family's scalar, and that before the family's case."""
    family = document()["families"][row["family"]]
    values = canonical(family.get("case") or {}, row["family"])
    if scalar:
        values[scalar[0]] = scalar[1]
    values |= canonical(row.get("case") or {}, row["id"])
    against = row.get("against", family.get("against"))
    if against is not None:
        values["against"] = against
    return values


@functools.lru_cache(maxsize=64)
def _simulated(case: Case) -> Result:
    """The result of a case; several rows are quantities of one."""
    return simulate(case)


def predict(row: Mapping[str, Any], scalar: tuple[str, float] | None = None) -> float:
    """The row's quantity, with a value for the family's scalar."""
    values = read(_values(row, scalar)).values
    name = row["quantity"]
    needs = name in ("speedup", "rollout_speedup", "gain")
    seeds = document()["families"][row["family"]].get("seeds", 1)
    total = 0.0
    for seed in range(seeds):
        one = read({**values, "seed": seed})
        total += quantity(name, _simulated(one.case), _simulated(baseline(one).case) if needs else None)
    return total / seeds


@functools.lru_cache(maxsize=32)
def fitted(family: str) -> tuple[str, float, str] | None:
    """(key, value, row id) of a family's scalar, or None where nothing is fitted."""
    if "fit_from" in document()["families"][family]:
        return fitted(document()["families"][family]["fit_from"])
    spec = document()["families"][family].get("fit")
    row = next((r for r in document()["rows"] if r["family"] == family and r["use"] == "calibration"), None)
    if not spec or row is None:
        return None
    key, low, high = spec["key"], float(spec["low"]), float(spec["high"])

    def off(value: float) -> float:
        return predict(row, (key, value)) - row["measured"]

    a, b = off(low), off(high)
    if a * b > 0:  # out of reach: the nearer end
        return key, low if abs(a) < abs(b) else high, row["id"]
    for _ in range(spec.get("halvings", 9)):
        middle = math.sqrt(low * high)
        if off(middle) * a > 0:
            low = middle
        else:
            high = middle
    return key, math.sqrt(low * high), row["id"]


def error_of(name: str, measured: float | list[float], predicted: float) -> float:
    """Points for a gain and a share, relative otherwise; against a range, the distance to its nearer end."""
    if isinstance(measured, list):
        low, high = measured
        if low <= predicted <= high:
            return 0.0
        measured = low if predicted < low else high
    return predicted - measured if name in IN_POINTS else predicted / measured - 1.0


def validate() -> dict[str, Any]:
    """Every row predicted and scored; shaped as `sim.validation.training.run`, with the tolerance of each row and the
    orderings."""
    table = []
    for row in document()["rows"]:
        family = document()["families"][row["family"]]
        entry = {
            "id": row["id"],
            "kind": row["use"],
            "family": row["family"],
            "quantity": row.get("quantity", ""),
            "measured": row.get("measured"),
            "predicted": None,
            "error": None,
            "tolerance": row.get("tolerance", family.get("tolerance")),
            "within": None,
            "assumptions": [*family.get("assumed", []), *row.get("assumed", [])],
            "chip": family.get("chip", ""),
            "stack": row["family"],
            "reason": row.get("reason", ""),
            "source": row["source"],
        }
        if row["use"] != "unsupported":
            scalar = fitted(row["family"])
            entry["predicted"] = predict(row, scalar[:2] if scalar else None)
            entry["error"] = error_of(entry["quantity"], row["measured"], entry["predicted"])
            if entry["tolerance"] is not None:
                entry["within"] = abs(entry["error"]) <= entry["tolerance"]
        table.append(entry)
    by_id = {e["id"]: e for e in table}
    orderings = [
        {
            "name": o["name"],
            "rows": o["rows"],
            "predicted": [by_id[i]["predicted"] for i in o["rows"]],
            "source": o["source"],
            "holds": all(by_id[a]["predicted"] <= by_id[b]["predicted"] for a, b in itertools.pairwise(o["rows"])),
        }
        for o in document().get("orderings", [])
    ]
    constants = [
        {"name": f"{name}: {f[0]}", "value": f[1], "label": "fitted", "source": f[2]}
        for name in document()["families"]
        if (f := fitted(name))
    ]
    return {
        "rows": table,
        **scores(table),
        "orderings": orderings,
        "constants": constants,
        "cross_validated": None,
        "missed": [e["id"] for e in table if e["kind"] == "holdout" and e["within"] is False],
    }


def table_text(report: Mapping[str, Any], assumptions: bool = True) -> str:
    """The report as aligned text."""
    lines = []
    for kind, title in (
        ("holdout", "Holdout rows (predicted; nothing was fitted on them)"),
        ("calibration", "Calibration rows (their family's one scalar comes from them)"),
    ):
        lines.append(f"{title}\n  {'row':36} {'quantity':20} {'published':>10} {'predicted':>10} {'error':>10}  aim")
        for e in (e for e in report["rows"] if e["kind"] == kind):
            gain = e["quantity"] in IN_POINTS

            def shown(x, gain=gain) -> str:
                return (
                    "-".join(shown(v) for v in x)
                    if isinstance(x, list)
                    else f"{100 * x:+.0f}%"
                    if gain
                    else f"{x:,.4g}"
                )

            aim = (
                ""
                if e["tolerance"] is None
                else (
                    f"±{100 * e['tolerance']:.0f}{' points' if gain else '%'}: "
                    + ("within" if e["within"] else "MISSED")
                )
            )
            lines.append(
                f"  {e['id'][:36]:36} {e['quantity']:20} {shown(e['measured']):>10} {shown(e['predicted']):>10} "
                f"{100 * e['error']:+.1f}{' pts' if gain else '%':<4}".ljust(92)
                + f"  {aim}"
            )
        lines.append("")
    lines.append("Unsupported, not scored")
    lines += [f"  {e['id'][:36]:36} {e['reason']}" for e in report["rows"] if e["kind"] == "unsupported"] + [""]
    for o in report["orderings"]:
        lines.append(
            f"ordering     {o['name']}: {'holds' if o['holds'] else 'DOES NOT HOLD'} "
            f"({', '.join(f'{x:.3g}' for x in o['predicted'])})"
        )
    for c in report["constants"]:
        lines.append(f"fitted       {c['name']} = {c['value']:.4g}, on {c['source']}")
    if assumptions:
        lines += [
            f"assumed      {family}: {'; '.join(e['assumptions'])}"
            for family, e in {e["family"]: e for e in report["rows"] if e["assumptions"]}.items()
        ]
    lines.append(
        f"{report['count_holdout']} holdout rows: mean absolute error {100 * report['mape_holdout']:.1f}%, worst "
        f"{100 * report['worst_holdout']:.1f}% ({report['worst_row']}); "
        f"beyond their aim: {', '.join(report['missed']) or 'none'}"
    )
    return "\n".join(lines)
