"""Published serving figures against the model, calibration and holdout rows apart.

A row with `use: calibration` sets the one scalar of its (chip, stack): the factor by which the modelled time is
multiplied. At most a third of a chip's rows may be fitted, one per stack; `check_rows` enforces both. Everything
else is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sim.serving.calibration import GROUPS, Row, chip_of, fitted_scale, predict, rows
from sim.serving.operators import CONSTANTS
from sim.serving.stacks import LABELS, load_stack

WITHIN, WORST = 0.20, 0.30  # the aim for published decode figures: mean and worst relative error
UNITS = {1: "tokens/s/chip", 2: "tokens/s/package", 8: "tokens/s/node"}  # by chips in the unit


def validate() -> dict[str, Any]:
    """Every row: measured, predicted, error, assumptions; and how far off the holdout rows are. JSON-ready.

    Returns a dict with `rows`, `mape_holdout`, `worst_holdout` (all holdout rows), the same for decode rows alone
    (`mape_decode`, `worst_decode`) and by group (`groups`), `fitted` (the scalars), `unfitted_decode` (decode rows
    without any), `met` (decode rows within the aim) and `beyond` (rows whose error exceeds the aim's worst).
    """
    table = [_compare(row) for row in rows()]
    holdout = [e for e in table if e["use"] == "holdout"]
    groups = {name: _summary([e for e in holdout if e["kind"] in kinds]) for name, kinds in GROUPS.items()}
    whole, decode = _summary(holdout), groups["decode"]
    return {
        "constants": _constants(),
        "rows": table,
        "mape_holdout": whole["mape"],
        "worst_holdout": whole["worst"],
        "mape_decode": decode["mape"],
        "worst_decode": decode["worst"],
        "groups": groups,
        "unfitted_decode": _unfitted_decode(),
        "worst_row": max(holdout, key=lambda e: abs(e["error"]))["id"],
        "fitted": _scalars(),
        "mode": "hybrid",
        "aim": {"mean": WITHIN, "worst": WORST},
        "met": decode["mape"] <= WITHIN and decode["worst"] <= WORST,
        "beyond": [e["id"] for e in holdout if abs(e["error"]) > WORST],
    }


def _compare(row: Row) -> dict[str, Any]:
    """One row beside its prediction."""
    entry: dict[str, Any] = {
        "id": row["id"],
        "chip": row["chip"],
        "stack": row.get("deployment", {}).get("stack", ""),
        "kind": row["kind"],
        "use": row["use"],
        "measured": row["measured"],
        "unit": _unit(row),
        "predicted": None,
        "error": None,
        "mode": "hybrid",
        "assumed": list(row.get("assumed", [])),
        "why": row.get("why", ""),
        "source": row["source"],
    }
    if row["kind"] != "none":
        value, details = predict(row)
        entry |= {"predicted": value, "details": details, "error": relative_error(row["measured"], value)}
        if row.get("measured_tpot_ms") and details.get("tpot_ms"):
            entry["tpot_ms"] = [row["measured_tpot_ms"], details["tpot_ms"]]
    return entry


def _unit(row: Row) -> str:
    if row["kind"] == "stream":
        return "ms per token"
    if row["kind"] in ("gain", "arithmetic"):
        return "ratio"
    return UNITS[row.get("per", 1)]


def relative_error(measured: float | Sequence[float], predicted: float) -> float:
    """Predicted over measured, less one; against a range, the distance to its nearer end (0 inside).

    >>> relative_error(10.0, 12.0), relative_error([8.0, 10.0], 9.0), relative_error([8.0, 10.0], 12.0)
    (0.19999999999999996, 0.0, 0.2)
    """
    if not isinstance(measured, Sequence):
        return predicted / measured - 1.0
    low, high = measured
    if low <= predicted <= high:
        return 0.0
    end = low if predicted < low else high
    return (predicted - end) / end


def _summary(entries: list[dict[str, Any]]) -> dict[str, Any]:
    errors = [abs(e["error"]) for e in entries]
    mean, worst = (sum(errors) / len(errors), max(errors)) if errors else (math.nan, math.nan)
    return {"rows": len(entries), "mape": mean, "worst": worst}


def _unfitted_decode() -> dict[str, Any]:
    """The decode rows that count, calibration ones included, predicted without any scalar."""
    errors = [
        abs(relative_error(row["measured"], predict(row, scale=1.0)[0]))
        for row in rows()
        if row["use"] != "unsupported" and row["kind"] in GROUPS["decode"]
    ]
    return {"rows": len(errors), "mape": sum(errors) / len(errors), "worst": max(errors)}


def _scalars() -> list[dict[str, Any]]:
    """The scalar of each calibration row."""
    scalars = []
    for row in rows():
        if row["use"] == "calibration":
            chip, stack = row["chip"], row["deployment"]["stack"]
            scalar = fitted_scale(chip_of(row).file, stack)
            assert scalar is not None, f"{row['id']} is a calibration row of {chip} with {stack}"
            scalars.append({"chip": chip, "stack": stack, "scale": scalar[0], "row": scalar[1]})
    return scalars


def _constants() -> dict[str, list[dict[str, Any]]]:
    """The constants of every stack that a row names, and those of the operators."""
    used = sorted({row["deployment"]["stack"] for row in rows() if row.get("deployment")})
    constants = {name: load_stack(name).describe() for name in used}
    constants["operators"] = [
        {"constant": name, "value": value, "label": label, "source": source}
        for name, (value, label, source) in CONSTANTS.items()
    ]
    return constants


# ------------------------------------------------------------------ as text


def table_text(report: Mapping[str, Any]) -> str:
    """The report as aligned text, calibration and holdout rows apart."""
    lines = []
    for use, title in (
        ("calibration", "calibration (one scalar per chip and stack)"),
        ("holdout", "holdout (predicted)"),
        ("unsupported", "unsupported, not counted"),
    ):
        lines.append(
            f"{title}\n  {'row':<30} {'measured':>12} {'predicted':>10} {'error':>7}  unit; mode; what was assumed"
        )
        lines += [_line(entry) for entry in report["rows"] if entry["use"] == use]
    for s in report["fitted"]:
        lines.append(f"scalar of {s['chip']} with {s['stack']}: time × {s['scale']:.3f}, from {s['row']}")
    labels = [c["label"] for group in report["constants"].values() for c in group]
    lines.append(
        "constants of the stacks used: "
        + ", ".join(f"{labels.count(x)} {x}" for x in LABELS if x != "fitted")
        + f", and {len(report['fitted'])} fitted scalars; data/serving/stacks.yaml and --json give each with its source"
    )
    aim = report["aim"]
    verdict = f" (aim {aim['mean']:.0%} and {aim['worst']:.0%}: {'met' if report['met'] else 'not met'})"
    for name, g in report["groups"].items():
        lines.append(
            f"{name}: {g['rows']} holdout rows, mean error {g['mape']:.1%}, worst {g['worst']:.1%}"
            + (verdict if name == "decode" else "")
        )
    u = report["unfitted_decode"]
    lines.append(
        f"the same decode rows and the calibration ones without any scalar: {u['rows']} rows, "
        f"mean error {u['mape']:.1%}, worst {u['worst']:.1%}"
    )
    lines.append(
        f"all holdout rows: mean {report['mape_holdout']:.1%}, "
        f"worst {report['worst_holdout']:.1%} ({report['worst_row']}); "
        f"beyond {aim['worst']:.0%}: {', '.join(report['beyond']) or 'none'}"
    )
    return "\n".join(lines)


def _line(e: Mapping[str, Any]) -> str:
    """One row of the table."""
    measured = "-".join(f"{v:g}" for v in e["measured"]) if isinstance(e["measured"], list) else f"{e['measured']:,.5g}"
    predicted = "-"
    if e["predicted"] is not None:
        predicted = f"{e['predicted']:,.4g}" if e["predicted"] < 1e4 else f"{e['predicted']:,.0f}"
    error = "-" if e["error"] is None else f"{e['error']:+.0%}"
    tpot = f"TPOT {e['tpot_ms'][1]:.1f} against {e['tpot_ms'][0]:g} ms; " if e.get("tpot_ms") else ""
    note = e["why"] if e["use"] == "unsupported" else "; ".join(e["assumed"]) or "nothing"
    if e["use"] == "holdout" and e["why"]:
        note += f". Out of reach: {e['why']}"
    return f"  {e['id']:<30} {measured:>12} {predicted:>10} {error:>7}  {e['unit']}; {e['mode']}; {tpot}{note}"
