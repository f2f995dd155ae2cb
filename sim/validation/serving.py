"""Published serving figures against the model, calibration and holdout rows apart.

A row with `use: calibration` sets the one scalar of its (chip, stack): the factor by which the modelled time is multiplied. At most
a third of a chip's rows may be fitted, one per stack; `check_rows` enforces both. Everything else is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from sim.serving.calibration import GROUPS, fitted_scale, predict, rows
from sim.serving.operators import CONSTANTS
from sim.serving.stacks import LABELS, load_stack

WITHIN, WORST = 0.20, 0.30  # the aim for published decode figures: mean and worst relative error


def validate() -> dict:
    """Every row: measured, predicted, error, assumptions; and how far off the holdout rows are.

    Returns a dict with `rows`, `mape_holdout`, `worst_holdout` (all holdout rows), the same for decode rows alone
    (`mape_decode`, `worst_decode`) and by group (`groups`), `fitted` (the scalars), `unfitted_decode` (decode rows without any), `met` (decode rows within the aim) and
    `beyond` (rows whose error exceeds the aim's worst).
    """
    table = []
    for row in rows():
        entry = {
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
            entry["predicted"], entry["details"] = value, details
            entry["error"] = _error(row["measured"], value)
            if row.get("measured_tpot_ms") and details.get("tpot_ms"):
                entry["tpot_ms"] = [row["measured_tpot_ms"], details["tpot_ms"]]
        table.append(entry)
    counted = [e for e in table if e["use"] == "holdout"]
    groups = {}
    for name, kinds in GROUPS.items():
        mean, worst = _spread([e for e in counted if e["kind"] in kinds])
        groups[name] = {"rows": sum(e["kind"] in kinds for e in counted), "mape": mean, "worst": worst}
    scalars = []
    for row in rows():
        if row["use"] == "calibration":
            scale, on = fitted_scale(row["chip"], row["deployment"]["stack"])
            scalars.append({"chip": row["chip"], "stack": row["deployment"]["stack"], "scale": scale, "row": on})
    mean, worst = _spread(counted)
    decode = groups["decode"]
    bare = [
        abs(_error(row["measured"], predict(row, scale=1.0)[0]))
        for row in rows()
        if row["use"] != "unsupported" and row["kind"] in GROUPS["decode"]
    ]
    used = sorted({row["deployment"]["stack"] for row in rows() if row.get("deployment")})
    constants = {name: load_stack(name).describe() for name in used}
    constants["operators"] = [
        {"constant": k, "value": v, "label": label, "source": source} for k, (v, label, source) in CONSTANTS.items()
    ]
    return {
        "constants": constants,
        "rows": table,
        "mape_holdout": mean,
        "worst_holdout": worst,
        "mape_decode": decode["mape"],
        "worst_decode": decode["worst"],
        "groups": groups,
        "unfitted_decode": {"rows": len(bare), "mape": sum(bare) / len(bare), "worst": max(bare)},
        "worst_row": max(counted, key=lambda e: abs(e["error"]))["id"],
        "fitted": scalars,
        "mode": "hybrid",
        "aim": {"mean": WITHIN, "worst": WORST},
        "met": decode["mape"] <= WITHIN and decode["worst"] <= WORST,
        "beyond": [e["id"] for e in counted if abs(e["error"]) > WORST],
    }


def _unit(row: Mapping) -> str:
    if row["kind"] == "stream":
        return "ms per token"
    if row["kind"] in ("gain", "arithmetic"):
        return "ratio"
    return {1: "tokens/s/chip", 2: "tokens/s/package", 8: "tokens/s/node"}[row.get("per", 1)]


def _error(measured, predicted: float) -> float:
    """Relative error; against a range, the distance to its nearer end (0 inside)."""
    if isinstance(measured, (list, tuple)):
        low, high = measured
        return (
            0.0
            if low <= predicted <= high
            else (predicted - (low if predicted < low else high)) / (low if predicted < low else high)
        )
    return predicted / measured - 1.0


def _spread(entries: list[dict]) -> tuple[float, float]:
    errors = [abs(e["error"]) for e in entries]
    return (sum(errors) / len(errors), max(errors)) if errors else (math.nan, math.nan)


def table_text(report: Mapping) -> str:
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
        for e in report["rows"]:
            if e["use"] != use:
                continue
            measured = (
                "-".join(f"{v:g}" for v in e["measured"])
                if isinstance(e["measured"], list)
                else f"{e['measured']:,.5g}"
            )
            predicted = (
                "-"
                if e["predicted"] is None
                else f"{e['predicted']:,.4g}"
                if e["predicted"] < 1e4
                else f"{e['predicted']:,.0f}"
            )
            error = "-" if e["error"] is None else f"{e['error']:+.0%}"
            if e.get("tpot_ms"):
                error_note = f"TPOT {e['tpot_ms'][1]:.1f} against {e['tpot_ms'][0]:g} ms; "
            else:
                error_note = ""
            note = e["why"] if use == "unsupported" else "; ".join(e["assumed"]) or "nothing"
            if use == "holdout" and e["why"]:
                note += f". Out of reach: {e['why']}"
            lines.append(
                f"  {e['id']:<30} {measured:>12} {predicted:>10} {error:>7}  {e['unit']}; {e['mode']}; {error_note}{note}"
            )
    for s in report["fitted"]:
        lines.append(f"scalar of {s['chip']} with {s['stack']}: time × {s['scale']:.3f}, from {s['row']}")
    labels = [c["label"] for group in report["constants"].values() for c in group]
    lines.append(
        "constants of the stacks used: "
        + ", ".join(f"{labels.count(x)} {x}" for x in LABELS if x != "fitted")
        + f", and {len(report['fitted'])} fitted scalars; data/serving/stacks.yaml and --json give each with its source"
    )
    for name, g in report["groups"].items():
        aim = report["aim"]
        verdict = (
            f" (aim {aim['mean']:.0%} and {aim['worst']:.0%}: {'met' if report['met'] else 'not met'})"
            if name == "decode"
            else ""
        )
        lines.append(f"{name}: {g['rows']} holdout rows, mean error {g['mape']:.1%}, worst {g['worst']:.1%}{verdict}")
    u = report["unfitted_decode"]
    lines.append(
        f"the same decode rows and the calibration ones without any scalar: {u['rows']} rows, mean error {u['mape']:.1%}, worst {u['worst']:.1%}"
    )
    lines.append(
        f"all holdout rows: mean {report['mape_holdout']:.1%}, worst {report['worst_holdout']:.1%} ({report['worst_row']}); "
        f"beyond {report['aim']['worst']:.0%}: {', '.join(report['beyond']) or 'none'}"
    )
    return "\n".join(lines)
