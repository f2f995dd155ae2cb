"""The planner page's pictures: cards as HTML, the rest as Plotly figures in the house style, each with its text
alternative.

A picture is a function of an `Answer` (`sim.dashboard.state`) and returns (figure, alt text). Figures are made wide
enough for a
phone: long names are wrapped, legends lie below.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from minglm import plots
from sim.base.units import show
from sim.cost.money import with_prices
from sim.dashboard.state import Answer, figure_words
from sim.report.html import escape, table


def block(inner: str, live: bool = False) -> str:
    """HTML in the page's style; `live` parts are read out when they change."""
    return f'<div class="planner"{" role=status aria-live=polite" if live else ""}>{inner}</div>'


def error(text: str) -> str:
    """What was refused and why, as an alert; nothing for an empty text."""
    return block(f'<div class="error" role="alert"><b>Not changed.</b> {escape(text)}</div>') if text else ""


# ------------------------------------------------------------------ cards


def cards(a: Answer) -> str:
    """The results: value, 90% interval, and which assumption moves it most; then throughput and the plan."""
    out = []
    for key, label, _ in a.results:
        low, high = a.interval(key)
        moved = a.mover(key)
        words = f"90% of samples: {figure_words(a, key, low)} to {figure_words(a, key, high)}"
        most = (
            f"Moved most by {moved['name']}: {figure_words(a, key, moved['low'])} to "
            f"{figure_words(a, key, moved['high'])}"
            if moved
            else ""
        )
        out.append(
            f'<div class="card"><span>{escape(label)}</span><b>{escape(figure_words(a, key))}</b>'
            f"{_span(low, a.row[key], high)}<span>{escape(words)}</span><span>{escape(most)}</span></div>"
        )
    r, chip = a.row, a.question.cluster.chip.name
    for key, label, flag in (
        ("rent_usd", "Cost to rent", "the rent"),
        ("own_usd", "Cost to own", "the price with its system"),
    ):
        if key not in r:
            out.append(
                f'<div class="card"><span>{label}</span><b>not known</b><span>No price of {escape(chip)} is in the '
                f"fact files: set {flag} "
                "among the controls.</span></div>"
            )
    out.append(
        f'<div class="card"><span>Speed</span><b>{show(r["tokens_per_s"], "count")} '
        f"tokens/s</b><span>{r['tokens_per_s_per_chip']:.1f} a chip, "
        f"MFU {r['mfu']:.1%} of the chip's {escape(_precision(a))} peak, goodput {r['goodput']:.1%}</span></div>"
    )
    spare = f"{r['spares']:,} stay spare; a larger batch may use them" if r["spares"] else "none stays spare"
    out.append(
        f'<div class="card"><span>Plan</span><b>{r["chips"]:,} chips used</b><span>{escape(str(r["plan"]))}, '
        f"micro-batch {r['micro_batch']}, ZeRO {r['zero']}, "
        f"recompute {escape(str(r['recompute']))}; {spare}</span></div>"
    )
    return block(f'<div class="cards">{"".join(out)}</div>')


def _precision(a: Answer) -> str:
    return "fp8" if a.question.precision == "fp8" else "bf16"


def _span(low: float, value: float, high: float) -> str:
    """A bar from 0 to a little over the high end, with the interval and the value on it."""
    end = 1.05 * max(high, value)
    at = [100 * x / end for x in (low, high, value)]
    return (
        f'<div class="span" aria-hidden="true"><i style="left:{at[0]:.1f}%;width:{at[1] - at[0]:.1f}%"></i><u '
        f'style="left:{at[2]:.1f}%"></u></div>'
    )


# ------------------------------------------------------------------ figures


def _fit(fig, height: int, legend: bool = False):
    """Margins and legend for a narrow screen."""
    fig.update_layout(
        height=height,
        autosize=True,
        margin=dict(l=8, r=12, t=44, b=84 if legend else 44),
        title=dict(font=dict(size=15), x=0, xanchor="left"),
        legend=dict(orientation="h", yref="container", y=0.0, yanchor="bottom", x=0, font=dict(size=12)),
        dragmode=False,
    )
    fig.update_xaxes(automargin=True, fixedrange=True, visible=True)
    fig.update_yaxes(automargin=True, fixedrange=True, visible=True)
    return fig


# Bars and lines of each picture. A page that is already open follows changes of traces, not traces that come or go:
# what is not needed is empty.
TRACES = {"memory": (8, 1), "step": (1, 0), "tornado": (2, 0)}


def padded(key: str, fig) -> dict:
    """The figure as {data, layout} with the number of bars and lines that its kind always has, those not needed empty
    and not shown."""
    bars, lines = ([t.to_plotly_json() for t in fig.data if t.type == kind] for kind in ("bar", "scatter"))
    data = []
    for kind, have, want in (("bar", bars, TRACES[key][0]), ("scatter", lines, TRACES[key][1])):
        data += [
            {"visible": True, **have[i]}
            if i < len(have)
            else {"type": kind, "x": [None], "y": [None], "showlegend": False, "visible": True}
            for i in range(want)
        ]
    return {"data": data, "layout": fig.layout.to_plotly_json()}


def _wrap(text: str, width: int = 18) -> str:
    return "<br>".join(textwrap.wrap(text, width)) or text


def memory(a: Answer):
    """A stacked bar of the peak-memory rank's memory, with the chip's capacity as a line."""
    fig = plots.figure(
        f"Memory of the peak-memory rank: {sum(a.memory.values()):.1f} of {a.capacity_gib:.0f} GiB", "GiB", ""
    )
    for i, (part, gib) in enumerate(a.memory.items()):
        fig.add_bar(
            orientation="h",
            y=["chip"],
            x=[gib],
            name=part,
            marker=dict(color=plots.COLOURS[i % 8], pattern_shape=("", "/", ".", "x", "-", "\\")[i % 6]),
            hovertemplate=f"{part}: %{{x:.1f}} GiB<extra></extra>",
        )
    fig.add_scatter(
        x=[a.capacity_gib, a.capacity_gib],
        y=[-0.45, 0.45],
        yaxis="y2",
        mode="lines",
        line=dict(color="#000000", width=3, dash="dash"),
        showlegend=True,
        name="capacity",
        hovertemplate=f"capacity: {a.capacity_gib:.0f} GiB<extra></extra>",
    )
    fig.update_layout(barmode="stack", yaxis2=dict(overlaying="y", range=[-0.5, 0.5], visible=False, fixedrange=True))
    fig.update_yaxes(showticklabels=False, selector=dict(anchor=None))
    _fit(fig, 240, legend=True)
    fig.update_xaxes(range=[0, 1.05 * max(a.capacity_gib, sum(a.memory.values()))])
    listed = ", ".join(f"{k} {v:.1f}" for k, v in a.memory.items() if v >= 0.05)
    return (
        fig,
        f"Memory of the peak-memory rank in GiB: {listed}; {sum(a.memory.values()):.1f} of {a.capacity_gib:.0f}.",
    )


def step(a: Answer):
    """Where a step's time goes on the busiest rank, in closed form."""
    total = sum(a.parts.values()) or 1.0
    shown = sorted(((k, v) for k, v in a.parts.items() if v / total >= 0.005), key=lambda p: p[1])
    fig = plots.figure(f"Where a step of {show(a.row['step_s'], 'time')} goes", "share of the step (%)", "")
    fig.add_bar(
        orientation="h",
        y=[_wrap(k, 22) for k, _ in shown],
        x=[100 * v / total for _, v in shown],
        marker_color=plots.COLOURS[0],
        showlegend=False,
        text=[f"{100 * v / total:.0f}%" for _, v in shown],
        textposition="auto",
        hovertemplate="%{y}: %{x:.1f}%<extra></extra>",
    )
    _fit(fig, 110 + 24 * len(shown))
    return fig, f"A step takes {show(a.row['step_s'], 'time')}: " + ", ".join(
        f"{k} {v / total:.0%}" for k, v in reversed(shown)
    ) + "."


def tornado(a: Answer, key: str, most: int = 8):
    """What moves a result: each input alone at its 5% and 95% point."""
    rows = [r for r in a.sure["tornado"] if f"low_{key}" in r and f"high_{key}" in r]
    rows = sorted(rows, key=lambda r: abs(r[f"high_{key}"] - r[f"low_{key}"]))[-most:]
    label = dict((k, n) for k, n, _ in a.results)[key]
    unit, scale = {"days": ("days", 1.0), "energy_kwh": ("GWh", 1e-6)}.get(
        key, ("million dollars", 1e-6)
    )  # two dollar signs in one text would be read as a formula
    centre = a.row[key]
    fig = plots.figure(f"What moves {label.lower()}", f"change from {figure_words(a, key)} ({unit})", "")
    for end, words, index, pattern in (
        ("low", "at its low end (5%)", 0, ""),
        ("high", "at its high end (95%)", 1, "/"),
    ):
        fig.add_bar(
            orientation="h",
            y=[_wrap(r["name"]) for r in rows],
            x=[scale * (r[f"{end}_{key}"] - centre) for r in rows],
            name=words,
            marker=dict(color=plots.COLOURS[index], pattern_shape=pattern),
            hovertemplate="%{y}: %{x:+.3g} " + unit + "<extra></extra>",
        )
    fig.update_layout(barmode="overlay")
    _fit(fig, 180 + 34 * len(rows), legend=True)
    top = a.mover(key)
    return fig, (
        f"{label} with one input at a time at its 5% and 95% point: {top['name']} moves it most, from "
        f"{figure_words(a, key, top['low'])} to "
        f"{figure_words(a, key, top['high'])}."
        if top
        else f"No input with a range moves {label.lower()}."
    )


def versus(first: Answer, second: Answer, names: Sequence[str]):
    """Two answers side by side: each result of the second as a multiple of the first's."""
    both = [(k, n) for k, n, _ in first.results if k in second.row]
    fig = plots.figure("B against A", "B as a multiple of A", "")
    ratio = [second.row[k] / first.row[k] for k, _ in both][::-1]
    low = [second.interval(k)[0] / first.row[k] for k, _ in both][::-1]
    high = [second.interval(k)[1] / first.row[k] for k, _ in both][::-1]
    fig.add_bar(
        orientation="h",
        y=[n for _, n in both][::-1],
        x=ratio,
        marker_color=plots.COLOURS[0],
        showlegend=False,
        text=[f"{x:.2f}×" for x in ratio],
        textposition="inside",
        insidetextanchor="start",
        hovertemplate="%{y}: %{x:.2f} × A<extra></extra>",
        error_x=dict(
            type="data",
            symmetric=False,
            array=[max(h - r, 0) for h, r in zip(high, ratio, strict=True)],
            arrayminus=[max(r - lo, 0) for lo, r in zip(low, ratio, strict=True)],
            color="#1c2330",
            thickness=1.5,
        ),
    )
    fig.add_shape(type="line", x0=1, x1=1, y0=0, y1=1, yref="paper", line=dict(color="#000000", width=2, dash="dash"))
    _fit(fig, 120 + 40 * len(both))
    fig.update_xaxes(rangemode="tozero")
    listed = ", ".join(f"{n.lower()} {second.row[k] / first.row[k]:.2f} times" for k, n in both)
    return fig, f"B ({names[1]}) against A ({names[0]}): {listed}. Lines: B's 90% interval; dashed: equal."


def versus_words(first: Answer, second: Answer) -> str:
    """Who is cheaper and faster, and at which rent the second would cost the same."""
    a, b = first.row, second.row
    clauses = [f"B takes {b['days'] / a['days']:.2f} times as long as A"]
    if "rent_usd" in a and "rent_usd" in b:
        apart = b["rent_usd"] / a["rent_usd"]
        sure = (
            second.interval("rent_usd")[0] > first.interval("rent_usd")[1]
            or second.interval("rent_usd")[1] < first.interval("rent_usd")[0]
        )
        word = "dearer to rent" if apart > 1.005 else "cheaper to rent" if apart < 0.995 else "as dear to rent"
        clauses.append(
            f"and is {word}: {apart:.2f} times A's cost "
            f"({'the 90% intervals do not overlap' if sure else 'their 90% intervals overlap, so that is not sure'})"
        )
        clauses.append(f"at ${a['rent_usd'] / b['chip_hours']:.2f} a chip-hour B would cost as much as A to rent")
    elif "own_usd" in a and "own_usd" in b:
        clauses.append(f"and costs {b['own_usd'] / a['own_usd']:.2f} times as much to own")
    else:
        clauses.append("and no price is known for both")
    return clauses[0] + " " + clauses[1] + ("; " + clauses[2] if len(clauses) > 2 else "") + "."


def versus_table(first: Answer, second: Answer, names: Sequence[str]) -> str:
    """The results of two answers beside each other, with their 90% intervals."""

    def cell(a: Answer, key: str) -> str:
        if key not in a.row:
            return "not known"
        low, high = a.interval(key)
        return f"{figure_words(a, key)} ({figure_words(a, key, low)} to {figure_words(a, key, high)})"

    keys = [("days", "time"), ("rent_usd", "cost to rent"), ("own_usd", "cost to own"), ("energy_kwh", "energy")]
    rows: list[Sequence] = [(label, cell(first, k), cell(second, k)) for k, label in keys]
    rows += [
        ("chips used", f"{first.row['chips']:,}", f"{second.row['chips']:,}"),
        ("rent of a chip-hour", _rent(first), _rent(second)),
        ("plan", first.row["plan"], second.row["plan"]),
    ]
    return table(("", f"A: {names[0]}", f"B: {names[1]}"), rows)


def _rent(a: Answer) -> str:
    f = with_prices(a.question.cluster, a.question.prices).chip.rent_usd_per_hour
    return "not known" if f is None else f"${f.value:.2f}" + ("" if f.certain else f" (${f.low:.2f} to ${f.high:.2f})")


def widget(drawn: dict):
    """What `padded` made as a widget that later figures are filled into."""
    import plotly.graph_objects as go

    figure_widget = go.FigureWidget(drawn)
    figure_widget._config = {"displayModeBar": False, "responsive": True, "displaylogo": False}  # noqa: SLF001 - plotly has no other way
    return figure_widget


def fill(widget, drawn: dict) -> None:
    """Show what `padded` made in a FigureWidget that is already on the page, without building a new one. The template
    stays as it is."""
    layout = {k: v for k, v in drawn["layout"].items() if k != "template"}
    with widget.batch_update():
        for old, wanted in zip(widget.data, drawn["data"], strict=True):
            if {k: v for k, v in old.to_plotly_json().items() if k != "uid"} != wanted:
                old.update(wanted, overwrite=True)
        widget.layout.update(layout, overwrite=False)
