"""How wrong are we? Predictions of measured runs beside what was measured.

    result = run()                      # every file of data/published_runs
    result = run(["my_runs.yaml"])      # rows of the same schema, or a single-node CSV of measured iterations
    print(format_table(result)); figure(result)

Each row is `fit` (its stack's one scalar was fitted on it), `predict` (scored) or `listed` (incomplete: shown, not scored).
Cross-validation refits every scalar without the row, and without the row's whole stack or chip, and predicts it again.
"""
from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError
from sim import memory
from sim.closed_form import StepTime, step_time, straggler
from sim.rows import Row, parse
from sim.stacks import Stack
from sim.step_cost import Estimate, estimate


def megatron_flops_per_token(model, seq: int) -> float:
    """Megatron's own count with full recomputation: 96·B·s·L·C²(1 + s/6C + V/16LC) per step (arXiv 2104.04473 eq. 3)."""
    C, L = model.hidden, model.layers
    return 96.0 * L * C * C * (1 + seq / (6 * C) + model.vocab / (16 * L * C))


def flops_per_token(row: Row) -> float:
    """FLOPs for one trained token as the source of the row counts them."""
    seq, mtp = row.workload.seq, row.workload.mtp
    if row.flops == "megatron_2021":
        return megatron_flops_per_token(row.model, seq)
    count = row.model.train_flops_per_token(seq, causal=row.flops != "model_full", mtp=mtp)
    if row.flops == "hardware" and row.plan.recompute == "full":
        count *= 4 / 3
    return count


def step_of(row: Row, stack: Stack | None = None) -> tuple[StepTime, Estimate]:
    """Closed-form step of a row, under its own stack or another."""
    made = estimate(row.model, row.cluster, row.plan, row.workload, row.precision, stack or row.stack)
    slow = straggler(row.plan.chips, made.stack.jitter)
    overlap = made.stack.overlap_p2p if row.plan.overlap_p2p is None else row.plan.overlap_p2p
    return step_time(made.costs, row.plan.schedule, overlap, slow, made.stack.dp_hidden), made


def predict(row: Row, stack: Stack | None = None) -> float:
    """The row's quantity as the simulator has it."""
    if row.quantity == "memory_gib":
        return memory.peak(row.model, row.plan, row.workload, row.precision, stack or row.stack).total_bytes / 2**30
    step, _ = step_of(row, stack)
    if row.quantity == "bubble":
        return step.bubble_share
    if row.quantity == "seconds_per_step":
        return step.total_s
    per_second = row.workload.tokens / step.total_s
    if row.quantity == "tokens_per_s":
        return per_second
    per_chip = per_second / row.plan.chips
    if row.quantity == "tokens_per_s_per_chip":
        return per_chip
    rate = per_chip * flops_per_token(row)
    return rate / 1e12 if row.quantity == "tflops_per_chip" else rate / row.peak_flops


def speed_error(row: Row, predicted: float) -> float:
    """Predicted / measured − 1."""
    return predicted / row.measured - 1.0


# ------------------------------------------------------------------ reading

def read_rows(paths: Iterable[str | Path] | None = None) -> list[Row]:
    """Rows of YAML files in the schema; all of data/published_runs without `paths`."""
    from sim.documents import read_document
    files = list(datafiles.catalogue("published_runs", ".yaml").values()) if paths is None else [Path(p) for p in paths]
    rows = []
    for file in files:
        document = read_document(file)
        given = document.get("rows") if isinstance(document, Mapping) else document
        if not isinstance(given, list) or not given:
            raise InputError(f"{file}: has no list 'rows'; see data/published_runs/schema.json")
        defaults = document.get("defaults") or {} if isinstance(document, Mapping) else {}
        rows += [parse({**defaults, **row} if isinstance(row, Mapping) else row, i + 1) for i, row in enumerate(given)]
    return rows


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def run(paths: Iterable[str | Path] | None = None, cross: bool | None = None) -> dict:
    """Predict every row and score them.

    Returns a dict: rows (id, kind, quantity, measured, predicted, error, assumptions, chip, stack, reason, source),
    mape_predict, mape_fit, worst_predict, count_predict, count_fit, by_stack, by_chip, cross_validated, constants.
    Raises InputError for an unreadable file or row.
    """
    paths = None if paths is None else list(paths)
    tables = [p for p in paths or [] if str(p).lower().endswith(".csv")]
    if tables:
        from sim.single_node import run_csv
        return run_csv(tables[0])
    rows = read_rows(paths)
    out = []
    for row in rows:
        entry = {"id": row.id, "kind": row.kind, "quantity": row.quantity, "measured": row.measured or None, "predicted": None,
                 "error": None, "assumptions": list(row.assumptions), "chip": row.chip, "stack": row.stack.name if row.stack else "",
                 "reason": row.reason, "source": row.source}
        if row.kind != "listed":
            try:
                entry["predicted"] = predict(row)
                entry["error"] = speed_error(row, entry["predicted"])
            except InputError as error:
                entry["kind"], entry["reason"] = "listed", f"cannot be simulated: {error}"
        out.append(entry)
    result = {"rows": out, **scores(out)}
    if cross if cross is not None else paths is None:
        from sim.fit import cross_validate
        result["cross_validated"] = cross_validate(rows)
    else:
        result["cross_validated"] = None
    from sim.constants import table
    result["constants"] = table(sorted({r.stack.name for r in rows if r.stack}))
    return result


def scores(rows: list[dict]) -> dict:
    """Mean absolute and worst errors over scored rows, apart for fit and predict, by stack and by chip."""
    def of(kind: str, key: str | None = None, value: str = "") -> list[float]:
        return [abs(r["error"]) for r in rows if r["kind"] == kind and r["error"] is not None and (key is None or r[key] == value)]
    predicted = [r for r in rows if r["kind"] == "predict" and r["error"] is not None]
    worst = max(predicted, key=lambda r: abs(r["error"]), default=None)
    return {
        "mape_predict": _mean(of("predict")), "mape_fit": _mean(of("fit")), "count_predict": len(predicted), "count_fit": len(of("fit")),
        "count_listed": sum(r["kind"] == "listed" for r in rows),
        "worst_predict": abs(worst["error"]) if worst else None, "worst_row": worst["id"] if worst else None,
        "by_stack": {s: _mean(of("predict", "stack", s)) for s in sorted({r["stack"] for r in predicted})},
        "by_chip": {c: _mean(of("predict", "chip", c)) for c in sorted({r["chip"] for r in predicted})},
    }


# ------------------------------------------------------------------ showing

_UNITS = {"seconds_per_step": ("s/step", 2), "tokens_per_s_per_chip": ("tokens/s/chip", 1), "tokens_per_s": ("tokens/s", 0),
          "tflops_per_chip": ("TFLOPS/chip", 1), "mfu": ("MFU", 3), "bubble": ("bubble share", 3), "memory_gib": ("GiB", 1), "": ("", 1)}


def format_table(result: dict, assumptions: bool = True) -> str:
    """The error table as text: predicted rows, fitted rows apart, listed rows with their reason, then the scores."""
    if "host_op_s" in result:
        from sim.single_node import summary
        return summary(result)
    lines = []
    for kind, title in (("predict", "Predicted rows"), ("fit", "Fitted rows (their stack's one scalar comes from them)")):
        rows = [r for r in result["rows"] if r["kind"] == kind]
        if not rows:
            continue
        lines.append(f"{title}\n{'run':46} {'quantity':14} {'measured':>11} {'predicted':>11} {'error':>7}  assumed")
        for r in rows:
            unit, digits = _UNITS[r["quantity"]]
            notes = "; ".join(r["assumptions"]) if assumptions else str(len(r["assumptions"]))
            lines.append(f"{r['id'][:46]:46} {unit:14} {r['measured']:>11,.{digits}f} {r['predicted']:>11,.{digits}f} {100 * r['error']:>+6.1f}%  {notes}")
        lines.append("")
    listed = [r for r in result["rows"] if r["kind"] == "listed"]
    if listed:
        lines.append("Listed, not scored")
        lines += [f"{r['id'][:46]:46} {r['reason']}" for r in listed] + [""]

    def percent(value) -> str:
        return "–" if value is None else f"{100 * value:.2f}%"
    lines.append(f"mean absolute error, {result['count_predict']} predicted rows: {percent(result['mape_predict'])}   worst: "
                 f"{percent(result['worst_predict'])} ({result['worst_row']})   {result['count_fit']} fitted rows: {percent(result['mape_fit'])}")
    cross = result.get("cross_validated")
    if cross:
        lines.append("cross-validated: " + "   ".join(f"{name} {percent(cross[key])}" for name, key in (
            ("row left out", "leave_row_out"), ("stack left out", "leave_stack_out"), ("chip left out", "leave_chip_out"))))
    if result.get("by_chip"):
        lines.append("by chip: " + "  ".join(f"{c} {percent(e)}" for c, e in result["by_chip"].items()))
    if result.get("by_stack"):
        lines.append("by stack: " + "  ".join(f"{s} {percent(e)}" for s, e in result["by_stack"].items()))
    if result.get("constants"):
        lines += ["", "Constants (value, label, source)"]
        lines += [f"{c['name']:44} {c['value']!s:>12}  {c['label']:9} {c['source']}" for c in result["constants"]]
    return "\n".join(lines)


@functools.cache
def _colours() -> tuple[str, str]:
    return "#0072B2", "#E69F00"


def figure(result: dict):
    """Predicted against measured, as a ratio, with bands at ±8% and ±20% (a plotly figure)."""
    import plotly.graph_objects as go
    fig = go.Figure()
    rows = [r for r in result["rows"] if r["error"] is not None]
    fig.add_hrect(y0=-20, y1=20, fillcolor="#56B4E9", opacity=0.12, line_width=0)
    fig.add_hrect(y0=-8, y1=8, fillcolor="#009E73", opacity=0.15, line_width=0)
    for kind, colour, symbol in (("predict", _colours()[0], "circle"), ("fit", _colours()[1], "diamond-open")):
        some = [r for r in rows if r["kind"] == kind]
        if some:
            fig.add_scatter(x=[r["id"] for r in some], y=[100 * r["error"] for r in some], mode="markers", name=kind,
                            marker=dict(color=colour, symbol=symbol, size=8),
                            customdata=[[r["measured"], r["predicted"], _UNITS[r["quantity"]][0]] for r in some],
                            hovertemplate="%{x}<br>measured %{customdata[0]:.4g} %{customdata[2]}<br>predicted %{customdata[1]:.4g}"
                                          "<br>error %{y:.1f}%<extra></extra>")
    mape = result.get("mape_predict")
    fig.update_layout(title=f"Predicted against measured: mean absolute error {100 * mape:.1f}% over {result['count_predict']} predicted rows"
                      if mape is not None else "Predicted against measured",
                      yaxis_title="error of the prediction (%)", xaxis_title="measured run (bands: ±8% and ±20%)",
                      template="plotly_white", xaxis=dict(showticklabels=len(rows) <= 40))
    return fig


def static_figure(result: dict, path) -> None:
    """The same as an .svg for a page without JavaScript: one column a chip, a point a row. Needs matplotlib."""
    from minglm import plots
    rows = [r for r in result["rows"] if r["error"] is not None]
    chips = sorted({r["chip"] for r in rows})
    points = []
    for kind, name in (("predict", f"predicted ({result['count_predict']} rows)"), ("fit", f"used for fitting ({result['count_fit']} rows)")):
        some = [r for r in rows if r["kind"] == kind]
        if some:      # spread inside the column, in the table's order
            column = {c: [r for r in some if r["chip"] == c] for c in chips}
            xs = [chips.index(r["chip"]) + 0.7 * ((column[r["chip"]].index(r) + 0.5) / len(column[r["chip"]]) - 0.5) for r in some]
            points.append((name, xs, [100 * r["error"] for r in some]))
    plots.static_svg(path, [{"title": f"Mean absolute error of the predicted rows: {100 * result['mape_predict']:.1f}%, worst {100 * result['worst_predict']:.1f}%"
                             if result["mape_predict"] is not None else "Predicted against measured",
                             "x": "chip of the measured run (bands: ±8% and ±20%)", "y": "error of the prediction (%)", "points": points,
                             "bands": ((-20, 20, "#56B4E9"), (-8, 8, "#009E73")), "x_labels": chips}], size=(11, 4.4))
