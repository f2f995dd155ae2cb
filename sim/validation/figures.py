"""Predicted against measured: the table and the picture."""

from __future__ import annotations

import functools

from minglm import plots
from sim.validation.csv_tables import summary

_UNITS = {
    "seconds_per_step": ("s/step", 2),
    "tokens_per_s_per_chip": ("tokens/s/chip", 1),
    "tokens_per_s": ("tokens/s", 0),
    "tflops_per_chip": ("TFLOPS/chip", 1),
    "mfu": ("MFU", 3),
    "bubble": ("bubble share", 3),
    "memory_gib": ("GiB", 1),
    "": ("", 1),
}


def format_table(result: dict, assumptions: bool = True) -> str:
    """The error table as text: holdout, calibration and unsupported rows apart, then the scores."""
    if "host_op_s" in result:
        return summary(result)
    lines = []
    for kind, title in (
        ("holdout", "Holdout rows (predicted; nothing was fitted on them)"),
        ("calibration", "Calibration rows (their stack's one scalar comes from them)"),
    ):
        rows = [r for r in result["rows"] if r["kind"] == kind]
        if not rows:
            continue
        lines.append(f"{title}\n{'run':46} {'quantity':14} {'measured':>11} {'predicted':>11} {'error':>7}  assumed")
        for r in rows:
            unit, digits = _UNITS[r["quantity"]]
            notes = "; ".join(r["assumptions"]) if assumptions else str(len(r["assumptions"]))
            lines.append(
                f"{r['id'][:46]:46} {unit:14} {r['measured']:>11,.{digits}f} {r['predicted']:>11,.{digits}f} "
                f"{100 * r['error']:>+6.1f}%  {notes}"
            )
        lines.append("")
    unsupported = [r for r in result["rows"] if r["kind"] == "unsupported"]
    if unsupported:
        lines.append("Unsupported, not scored")
        lines += [f"{r['id'][:46]:46} {r['reason']}" for r in unsupported] + [""]

    def percent(value) -> str:
        return "–" if value is None else f"{100 * value:.2f}%"

    lines.append(
        f"mean absolute error, {result['count_holdout']} holdout rows: {percent(result['mape_holdout'])}   worst: "
        f"{percent(result['worst_holdout'])} ({result['worst_row']})   {result['count_calibration']} "
        f"calibration rows: {percent(result['mape_calibration'])}"
    )
    cross = result.get("cross_validated")
    if cross:
        lines.append(
            "cross-validated: "
            + "   ".join(
                f"{name} {percent(cross[key])}"
                for name, key in (
                    ("row left out", "leave_row_out"),
                    ("stack left out", "leave_stack_out"),
                    ("chip left out", "leave_chip_out"),
                )
            )
        )
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
    for kind, colour, symbol in (("holdout", _colours()[0], "circle"), ("calibration", _colours()[1], "diamond-open")):
        some = [r for r in rows if r["kind"] == kind]
        if some:
            fig.add_scatter(
                x=[r["id"] for r in some],
                y=[100 * r["error"] for r in some],
                mode="markers",
                name=kind,
                marker=dict(color=colour, symbol=symbol, size=8),
                customdata=[[r["measured"], r["predicted"], _UNITS[r["quantity"]][0]] for r in some],
                hovertemplate="%{x}<br>measured %{customdata[0]:.4g} %{customdata[2]}<br>predicted %{customdata[1]:.4g}"
                "<br>error %{y:.1f}%<extra></extra>",
            )
    mape = result.get("mape_holdout")
    fig.update_layout(
        title=f"Predicted against measured: mean absolute error {100 * mape:.1f}% over {result['count_holdout']} "
        "holdout rows"
        if mape is not None
        else "Predicted against measured",
        yaxis_title="error of the prediction (%)",
        xaxis_title="measured run (bands: ±8% and ±20%)",
        template="plotly_white",
        xaxis=dict(showticklabels=len(rows) <= 40),
    )
    return fig


def static_figure(result: dict, path) -> None:
    """The same as an .svg for a page without JavaScript: one column a chip, a point a row. Needs matplotlib."""
    rows = [r for r in result["rows"] if r["error"] is not None]
    chips = sorted({r["chip"] for r in rows})
    points = []
    for kind, name in (
        ("holdout", f"holdout ({result['count_holdout']} rows)"),
        ("calibration", f"calibration ({result['count_calibration']} rows)"),
    ):
        some = [r for r in rows if r["kind"] == kind]
        if some:  # spread inside the column, in the table's order
            column = {c: [r for r in some if r["chip"] == c] for c in chips}
            xs = [
                chips.index(r["chip"]) + 0.7 * ((column[r["chip"]].index(r) + 0.5) / len(column[r["chip"]]) - 0.5)
                for r in some
            ]
            points.append((name, xs, [100 * r["error"] for r in some]))
    plots.static_svg(
        path,
        [
            {
                "title": f"Mean absolute error of the holdout rows: {100 * result['mape_holdout']:.1f}%, worst "
                f"{100 * result['worst_holdout']:.1f}%"
                if result["mape_holdout"] is not None
                else "Predicted against measured",
                "x": "chip of the measured run (bands: ±8% and ±20%)",
                "y": "error of the prediction (%)",
                "points": points,
                "bands": ((-20, 20, "#56B4E9"), (-8, 8, "#009E73")),
                "x_labels": chips,
            }
        ],
        size=(11, 4.4),
    )
