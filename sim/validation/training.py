"""How wrong are we? Predictions of measured runs beside what was measured.

    result = run()                      # every file of data/published_runs
    result = run(["my_runs.yaml"])      # rows of the same schema, or a single-node CSV of measured iterations
    print(format_table(result)); figure(result)

Each row is `calibration` (its stack's one scalar was fitted on it), `holdout` (scored) or `unsupported` (shown, not scored).
Cross-validation refits every scalar without the row, and without the row's whole stack or chip, and predicts it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError
from sim.validation.predict import predict, scores, speed_error
from sim.validation.rows import Row, parse

# ------------------------------------------------------------------ reading


def read_rows(paths: Iterable[str | Path] | None = None) -> list[Row]:
    """Rows of YAML files in the schema; all of data/published_runs without `paths`."""
    from sim.base.documents import read_document

    files = list(datafiles.catalogue("published_runs", ".yaml").values()) if paths is None else [Path(p) for p in paths]
    rows = []
    for file in files:
        document = read_document(file)
        given = document.get("rows") if isinstance(document, Mapping) else document
        if not isinstance(given, list) or not given:
            raise InputError(f"{file}: has no list 'rows'; see {datafiles.where('published_runs', 'schema.json')}")
        defaults = document.get("defaults") or {} if isinstance(document, Mapping) else {}
        rows += [parse({**defaults, **row} if isinstance(row, Mapping) else row, i + 1) for i, row in enumerate(given)]
    return rows


def run(paths: Iterable[str | Path] | None = None, cross: bool | None = None) -> dict:
    """Predict every row and score them.

    Returns a dict: rows (id, kind, quantity, measured, predicted, error, assumptions, chip, stack, reason, source),
    mape_holdout, mape_calibration, worst_holdout, count_holdout, count_calibration, by_stack, by_chip, cross_validated, constants.
    Raises InputError for an unreadable file or row.
    """
    paths = None if paths is None else list(paths)
    tables = [p for p in paths or [] if str(p).lower().endswith(".csv")]
    if tables:
        from sim.validation.single_node import run_csv

        return run_csv(tables[0])
    rows = read_rows(paths)
    out = []
    for row in rows:
        entry = {
            "id": row.id,
            "kind": row.kind,
            "quantity": row.quantity,
            "measured": row.measured or None,
            "predicted": None,
            "error": None,
            "assumptions": list(row.assumptions),
            "chip": row.chip,
            "stack": row.stack.name if row.stack else "",
            "reason": row.reason,
            "source": row.source,
        }
        if row.kind != "unsupported":
            try:
                entry["predicted"] = predict(row)
                entry["error"] = speed_error(row, entry["predicted"])
            except InputError as error:
                entry["kind"], entry["reason"] = "unsupported", f"cannot be simulated: {error}"
        out.append(entry)
    result = {"rows": out, **scores(out)}
    if cross if cross is not None else paths is None:
        from sim.validation.fit import cross_validate

        result["cross_validated"] = cross_validate(rows)
    else:
        result["cross_validated"] = None
    from sim.cost.constants import table

    result["constants"] = table(sorted({r.stack.name for r in rows if r.stack}))
    return result


# ------------------------------------------------------------------ showing
