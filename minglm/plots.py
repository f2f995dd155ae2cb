"""The house style: one module makes every figure, so that all read alike on a screen, in a report and on paper.

Plotly, Okabe-Ito colours (distinguishable with any colour vision), units in the axis titles, line dashes and markers as
a second cue beside colour. `html()` makes a self-contained fragment, `static_svg()` a picture for a README or a printed
page.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence

from minglm import atomic

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
SEQUENTIAL = "Cividis"  # a colour scale that survives greyscale printing and all colour vision


def figure(title: str, x: str, y: str, *, log_x: bool = False, log_y: bool = False, height: int = 380, note: str = ""):
    """An empty house-style Plotly figure. `x` and `y` are axis titles with their units, `note` a caption below."""
    import plotly.graph_objects as go

    fig = go.Figure()
    fig.update_layout(
        title=dict(text=title, x=0.01, xanchor="left", font=dict(size=17)),
        template="plotly_white",
        colorway=list(COLOURS),
        height=height,
        autosize=True,
        font=dict(family="Helvetica, Arial, sans-serif", size=13, color="#222"),
        margin=dict(l=70, r=20, t=60, b=70 if not note else 105),
        legend=dict(bgcolor="rgba(255,255,255,0.7)", borderwidth=0),
        hovermode="closest",
    )
    fig.update_xaxes(title=x, type="log" if log_x else None, showline=True, linecolor="#888", ticks="outside")
    fig.update_yaxes(title=y, type="log" if log_y else None, showline=True, linecolor="#888", ticks="outside")
    if note:
        fig.add_annotation(
            text=note,
            showarrow=False,
            x=0,
            y=0,
            yshift=-88,
            xref="paper",
            yref="paper",
            align="left",
            xanchor="left",
            yanchor="bottom",
            font=dict(size=11, color="#555"),
        )
    return fig


ACROSS = 60  # characters of labels that a horizontal axis has room for, in the column of a notebook's page


def _log_ticks(low: float, high: float) -> list[float]:
    """Values 1, 2, 5, 10 … over up to three decades, powers of ten over more; one step beyond `low` and `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / 8))
    mantissas = range(1, 10) if high < 4 * low else (1, 2, 5) if last - first <= 3 else (1,)
    values = [m * 10.0**e for e in range(first, last + 1, every) for m in mantissas]
    return values if len(mantissas) == 1 else [v for v in values if low / 2.6 < v < high * 2.6]


def label_log_axes(fig) -> None:
    """Name the ticks of logarithmic axes in full (20, 50, 100), in place of Plotly's bare 2 and 5 between powers of
    ten. Axes whose ticks or range are set already stay as they are.
    """
    for letter, axes in (("x", fig.select_xaxes()), ("y", fig.select_yaxes())):
        for axis in axes:
            if axis.type != "log" or axis.tickvals is not None or axis.dtick is not None:
                continue
            name = letter + axis.plotly_name.removeprefix(f"{letter}axis")
            values = [
                float(v)
                for trace in fig.data
                if (getattr(trace, f"{letter}axis", None) or letter) == name
                for v in _values(trace, letter)
                if isinstance(v, numbers.Real) and 0 < float(v) < math.inf
            ]
            if axis.range is not None:
                values = [10.0**v for v in axis.range]
            if values and max(values) > min(values):
                ticks = _log_ticks(min(values), max(values))
                seen = [v for v in ticks if min(values) <= v <= max(values)]
                if letter == "x" and sum(len(re.sub("<.*?>", "", _tick_text(v))) + 2 for v in seen) > ACROSS:
                    powers = [v for v in ticks if math.log10(v).is_integer()]  # Plotly would turn so many labels
                    ticks = powers if len(set(powers) & set(seen)) >= 2 else ticks[::2]
                axis.update(tickvals=ticks, ticktext=_tick_texts(ticks))


def _values(trace, letter: str) -> Sequence:
    found = getattr(trace, letter, None)
    return () if found is None else found


def _tick_texts(ticks: Sequence[float]) -> list[str]:
    """All in full, or, where one is too long for that and all are powers of ten, all as powers."""
    powers = all(math.log10(v).is_integer() for v in ticks) and not all(1e-3 <= v < 1e7 for v in ticks)
    return [_tick_text(v, powers) for v in ticks]


def _tick_text(value: float, as_power: bool = False) -> str:
    if 1e-3 <= value < 1e7 and not as_power:
        return f"{value:,.6g}" if value < 1e6 else f"{value:,.0f}"
    power = math.floor(math.log10(value) + 1e-9)
    head = round(value / 10.0**power)
    return ("" if head == 1 else f"{head}·") + f"10<sup>{power}</sup>"


def line(
    fig,
    x: Sequence,
    y: Sequence,
    name: str,
    index: int = 0,
    *,
    markers: bool = False,
    band: tuple | None = None,
    **more,
):
    """Add a line; `index` picks colour and dash together. `band=(low, high)` shades an interval around it."""
    colour = COLOURS[index % len(COLOURS)]
    if band is not None:
        low, high = band
        fig.add_scatter(
            x=list(x) + list(x)[::-1],
            y=list(high) + list(low)[::-1],
            fill="toself",
            mode="lines",
            line_width=0,
            fillcolor=colour,
            opacity=0.18,
            hoverinfo="skip",
            showlegend=False,
        )
    fig.add_scatter(
        x=list(x),
        y=list(y),
        name=name,
        mode="lines+markers" if markers else "lines",
        line=dict(color=colour, dash=DASHES[index % len(DASHES)], width=2),
        marker=dict(symbol=SYMBOLS[index % len(SYMBOLS)], size=7),
        **more,
    )
    return fig


def bars(
    fig,
    labels: Sequence[str],
    values: Sequence[float],
    name: str = "",
    index: int = 0,
    *,
    text: Sequence[str] | None = None,
    **more,
):
    """Add bars in one colour, with the value printed on each when `text` is given."""
    fig.add_bar(
        x=list(labels),
        y=list(values),
        name=name,
        marker_color=COLOURS[index % len(COLOURS)],
        text=list(text) if text is not None else None,
        textposition="auto",
        showlegend=bool(name),
        **more,
    )
    return fig


def heatmap(  # noqa: PLR0913 (options of one picture, all by keyword)
    title: str,
    x: str,
    y: str,
    z: Sequence[Sequence[float | None]],
    *,
    unit: str,
    x_labels=None,
    y_labels=None,
    text: bool = False,
    zmin: float | None = None,
    zmax: float | None = None,
    height: int = 380,
    note: str = "",
):
    """A heat map, first row on top, with a colour bar that names its unit; `text` prints the value in each cell."""
    fig = figure(title, x, y, height=height, note=note)
    fig.add_heatmap(
        z=[list(row) for row in z],
        x=x_labels,
        y=y_labels,
        colorscale=SEQUENTIAL,
        zmin=zmin,
        zmax=zmax,
        colorbar=dict(title=unit),
        texttemplate="%{z:.3g}" if text else None,
    )
    fig.update_yaxes(autorange="reversed", type="category" if y_labels is not None else None)
    return fig


def html(fig, alt: str, first: bool = False) -> str:
    """A figure as an HTML fragment with a text alternative. The first one on a page carries plotly.js itself (4.8 MB),
    so that the page needs no network."""
    import html as escape

    body = fig.to_html(full_html=False, include_plotlyjs=bool(first), config={"displaylogo": False, "responsive": True})
    return f'<figure role="img" aria-label="{escape.escape(alt, quote=True)}">{body}</figure>'


def static_svg(
    path, panels: Sequence[Mapping], title: str = "", size: tuple[float, float] = (11, 4.2), rows: int = 1
) -> None:
    """Write a picture that needs no JavaScript. Each panel is a mapping: title, x, y, and `lines` (name, xs, ys) or
    `points` (name, xs, ys) with `bands` (low, high, colour), or `bars` (labels, values), or `spans` (label, low, high,
    value or None); optional `log_x`, `log_y`, `image` (rows of values, with `unit`, `range`, `x_labels`, `y_labels`).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(rows, -(-len(panels) // rows), figsize=size, constrained_layout=True, squeeze=False)
    for ax, panel in zip(axes.flat, panels, strict=True):
        _draw_curves(ax, panel)
        if "spans" in panel:
            _draw_spans(ax, panel["spans"])
        if "bars" in panel:
            labels, values = panel["bars"]
            ax.barh(range(len(values)), values, color=COLOURS[0])
            ax.set_yticks(range(len(values)), labels)
            ax.invert_yaxis()
        if "image" in panel:
            _draw_image(fig, ax, panel)
        _draw_frame(ax, panel)
    if title:
        fig.suptitle(title, x=0.01, ha="left", fontsize=13)
    with atomic.beside(path) as place:
        fig.savefig(place, format="svg", metadata={"Date": None})
    plt.close(fig)


def _draw_curves(ax, panel: Mapping) -> None:
    """Lines, bands and points of a panel."""
    styles = ("-", "--", ":", "-.")
    for i, (name, xs, ys) in enumerate(panel.get("lines", ())):
        ax.plot(xs, ys, styles[i % 4], color=COLOURS[i % len(COLOURS)], label=name, linewidth=1.8)
    for low, high, colour in panel.get("bands", ()):
        ax.axhspan(low, high, color=colour, alpha=0.13, linewidth=0)
    for i, (name, xs, ys) in enumerate(panel.get("points", ())):
        ax.plot(
            xs,
            ys,
            linestyle="",
            marker="oD"[i % 2],
            markersize=5,
            fillstyle="full" if i == 0 else "none",
            color=COLOURS[i % len(COLOURS)],
            label=name,
        )
    if "points" in panel and panel.get("x_labels") is not None:
        ax.set_xticks(range(len(panel["x_labels"])), panel["x_labels"], fontsize=9)


def _draw_spans(ax, spans: Sequence[tuple[str, float, float, float | None]]) -> None:
    """A bar from low to high in each row: a range, in another colour and with a mark, where there is a value in it."""
    for row, (_, low, high, value) in enumerate(spans):
        ax.barh(row, high - low, left=low, height=0.55, color=COLOURS[0 if value is None else 1], alpha=0.75)
        if value is not None:
            ax.plot([value], [row], marker="D", markersize=6, color="black", linestyle="")
    ax.set_yticks(range(len(spans)), [label for label, *_ in spans], fontsize=9)
    ax.set_ylim(max(len(spans), 4) - 0.5, -0.5)
    ax.set_xlim(left=0)


def _draw_image(fig, ax, panel: Mapping) -> None:
    """Rows of values as colours, with a bar that names their unit."""
    low, high = panel.get("range", (None, None))
    image = ax.imshow(panel["image"], cmap="cividis", aspect="auto", interpolation="nearest", vmin=low, vmax=high)
    for labels, ticks in ((panel.get("x_labels"), ax.set_xticks), (panel.get("y_labels"), ax.set_yticks)):
        if labels is not None:
            ticks(range(len(labels)), [str(v) for v in labels])
    fig.colorbar(image, ax=ax, label=panel.get("unit", ""))


def _draw_frame(ax, panel: Mapping) -> None:
    """Scales, title, names of the axes, and a legend where there is more than one curve."""
    if panel.get("log_x"):
        ax.set_xscale("log")
    if panel.get("log_y"):
        ax.set_yscale("log")
    ax.set_title(panel["title"], fontsize=11, loc="left")
    ax.set_xlabel(panel["x"])
    ax.set_ylabel(panel["y"])
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if len(panel.get("lines", ())) + len(panel.get("points", ())) > 1:
        ax.legend(frameon=False, fontsize=9)
