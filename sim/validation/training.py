"""How wrong are we? Predictions of measured runs beside what was measured.

    result = run()                      # every file of data/published_runs
    result = run(["my_runs.yaml"])      # rows of the same schema, or a single-node CSV of measured iterations
    print(format_table(result)); figure(result)

Each row is `calibration` (its stack's one scalar was fitted on it), `holdout` (scored) or `unsupported` (shown, not
scored). Cross-validation refits every scalar without the row, and without the row's whole stack or chip, and predicts
it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from minglm.errors import InputError
from sim.base.row_kinds import UNSUPPORTED
from sim.cost.constants import table
from sim.validation.csv_tables import run_csv
from sim.validation.fit import cross_validate
from sim.validation.predict import predict, scores, speed_error
from sim.validation.rows import MeasuredRow, UnsupportedRow, read_rows


def run(paths: Iterable[str | Path] | None = None, cross: bool | None = None) -> dict[str, Any]:
    """Predict every row and score them.

    Returns a dict: rows (id, kind, quantity, measured, predicted, error, assumptions, chip, stack, reason, source),
    mape_holdout, mape_calibration, worst_holdout, count_holdout, count_calibration, by_stack, by_chip, cross_validated,
    constants.
    Raises InputError for an unreadable file or row.
    """
    paths = None if paths is None else list(paths)
    tables = [p for p in paths or [] if str(p).lower().endswith(".csv")]
    if tables:
        if paths and len(paths) > 1:
            raise InputError(
                f"{tables[0]}: a table is compared alone, {len(paths)} files are given; give this one only"
            )
        return run_csv(tables[0])
    rows = read_rows(paths)
    measured = [row for row in rows if isinstance(row, MeasuredRow)]
    entries = [_entry(row) for row in rows]
    cross = paths is None if cross is None else cross
    return {
        "rows": entries,
        **scores(entries),
        "cross_validated": cross_validate(measured) if cross else None,
        "constants": table(sorted({row.run.stack.name for row in measured})),
    }


def _entry(row: MeasuredRow | UnsupportedRow) -> dict[str, Any]:
    """A row of the error table; a plan that cannot be simulated is unsupported, with the reason."""
    entry: dict[str, Any] = {
        "id": row.id,
        "kind": row.kind,
        "quantity": row.quantity,
        "measured": row.measured or None,
        "predicted": None,
        "error": None,
        "assumptions": list(row.assumptions),
        "chip": "",
        "stack": "",
        "reason": "",
        "source": row.source,
    }
    if isinstance(row, UnsupportedRow):
        return {**entry, "reason": row.reason}
    entry |= {"chip": row.chip, "stack": row.run.stack.name}
    try:
        entry["predicted"] = predict(row)
        entry["error"] = speed_error(row, entry["predicted"])
    except InputError as error:
        entry |= {"kind": UNSUPPORTED, "reason": f"cannot be simulated: {error}"}
    if "micro-batch 1" in row.run.defaults_used and entry["error"] is not None:
        entry["assumptions"] += _other_micro_batches(row)
    return entry


def _other_micro_batches(row: MeasuredRow) -> list[str]:
    """What a row without a micro-batch would be at other ones, so that 1 is not taken in silence."""
    shown = []
    for micro in (2, 4):
        plan = replace(row.run.plan, micro_batch=micro)
        try:
            other = predict(replace(row, run=replace(row.run, plan=plan)))
        except InputError:
            continue
        shown.append(f"{micro}: {speed_error(row, other):+.0%}")
    return [f"micro-batch not given: its error at {', '.join(shown)}; give micro_batch"] if shown else []
