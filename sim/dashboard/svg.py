"""The page's pictures as plain HTML and SVG, each made whole from an answer: memory, the step's parts, what moves a
result, a step's timeline, and B against A.

A picture is a few kilobytes of text in an ordinary HTML widget, so it follows every change in every browser, however
busy the machine. (As Plotly widgets each brought the library along, 15 MB in all, and on half of the fresh loads of a
busy machine some never heard of a change again.) Colours are those of `minglm.plots`; a figure stands beside every bar,
so that no colour is needed to read it. Each function returns (HTML, alt text).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minglm.plots import COLOURS
from sim.base.units import show
from sim.dashboard.figures import block
from sim.dashboard.state import Answer, figure_words
from sim.report.html import escape, static_text
from sim.trace.timeline import STYLES, bars

ROW = 26  # height of a pipeline rank, in pixels
TALL = {"F": 1.0, "B": 0.7, "I": 0.7, "W": 0.45, "FB": 0.85}


def _picture(head: str, alt: str, inner: str, legend: str = "") -> tuple[str, str]:
    bars = f'<div class="bars" role="img" aria-label="{escape(alt)}">{inner}</div>'
    return f'<p class="head">{escape(head)}</p>{bars}{legend}', alt


def alone(picture: str, alt: str) -> tuple[str, str]:
    """A picture with its style, to show outside of the page."""
    return f"<style>{static_text('sim.dashboard', 'page.css')}</style>{block(picture)}", alt


def memory(a: Answer) -> tuple[str, str]:
    """The memory of the peak-memory rank as one bar of its parts, with the chip's capacity as a dashed line."""
    total = sum(a.memory.values())
    end = 1.05 * max(a.capacity_gib, total)
    parts = [(k, v, COLOURS[i % 8]) for i, (k, v) in enumerate(a.memory.items()) if v >= 0.05]
    inner, at = [], 0.0
    for part, gib, colour in parts:
        inner.append(
            f'<b title="{escape(part)}: {gib:.1f} GiB" style="left:{100 * at / end:.2f}%;'
            f'width:{100 * gib / end:.2f}%;background:{colour}"></b>'
        )
        at += gib
    line = f'<u style="left:{100 * a.capacity_gib / end:.2f}%"></u>'
    legend = "".join(
        f'<span class="key"><i style="background:{colour};height:12px"></i>{escape(part)} {gib:.1f}</span>'
        for part, gib, colour in parts
    )
    listed = ", ".join(f"{part} {gib:.1f}" for part, gib, _ in parts)
    return _picture(
        f"Memory of the peak-memory rank: {total:.1f} of {a.capacity_gib:.0f} GiB",
        f"Memory of the peak-memory rank in GiB: {listed}; {total:.1f} of {a.capacity_gib:.0f}.",
        f'<div class="bar tall"><div>{"".join(inner)}{line}</div></div>',
        f'<div>{legend}<span class="key">dashed: capacity {a.capacity_gib:.0f} GiB</span></div>',
    )


def step(a: Answer) -> tuple[str, str]:
    """Where a step's time goes on the busiest rank, in closed form."""
    total = sum(a.parts.values()) or 1.0
    shown = sorted(((k, v / total) for k, v in a.parts.items() if v / total >= 0.005), key=lambda p: -p[1])
    most = max((share for _, share in shown), default=1.0)
    inner = "".join(
        f'<div class="bar"><span>{escape(k)}: {share:.1%}</span><div><b style="left:0;width:{100 * share / most:.1f}%;'
        f'background:{COLOURS[0]}"></b></div></div>'
        for k, share in shown
    )
    took = show(a.row["step_s"], "time")
    alt = f"A step takes {took}: " + ", ".join(f"{k} {share:.0%}" for k, share in shown) + "."
    return _picture(f"Where a step of {took} goes", alt, inner)


def tornado(a: Answer, key: str, most: int = 8) -> tuple[str, str]:
    """What moves a result: each input alone at its 5% and 95% point."""
    rows = [r for r in a.sure["tornado"] if f"low_{key}" in r and f"high_{key}" in r]
    rows = sorted(rows, key=lambda r: -abs(r[f"high_{key}"] - r[f"low_{key}"]))[:most]
    label = {k: n for k, n, _ in a.results}[key]
    ends = [r[f"{end}_{key}"] for r in rows for end in ("low", "high")]
    centre = a.row[key]
    least, greatest = min([centre, *ends]), max([centre, *ends])
    wide = (greatest - least) or 1.0

    def bar(value: float, colour: str) -> str:
        left, right = sorted((value, centre))
        return (
            f'<b style="left:{100 * (left - least) / wide:.1f}%;width:{100 * (right - left) / wide:.1f}%;'
            f'background:{colour}"></b>'
        )

    line = f'<u style="left:{100 * (centre - least) / wide:.1f}%"></u>'
    inner = "".join(
        f'<div class="bar"><span>{escape(r["name"])}: {escape(figure_words(a, key, r[f"low_{key}"]))} to '
        f"{escape(figure_words(a, key, r[f'high_{key}']))}</span><div>{bar(r[f'low_{key}'], COLOURS[0])}"
        f"{bar(r[f'high_{key}'], COLOURS[1])}{line}</div></div>"
        for r in rows
    )
    legend = "".join(
        f'<span class="key"><i style="background:{colour};height:12px"></i>{words}</span>'
        for colour, words in ((COLOURS[0], "at its low end (5%)"), (COLOURS[1], "at its high end (95%)"))
    )
    top = a.mover(key)
    alt = (
        f"{label} with one input at a time at its 5% and 95% point: {top['name']} moves it most, from "
        f"{figure_words(a, key, top['low'])} to {figure_words(a, key, top['high'])}."
        if top
        else f"No input with a range moves {label.lower()}."
    )
    return _picture(
        f"What moves {label.lower()}, now {figure_words(a, key)}", alt, inner, f"<div>{legend}</div>" if rows else ""
    )


def timeline(a: Answer, point) -> tuple[str, str]:
    """The step as events: one row per pipeline rank, one bar per piece of work, from left to right in time."""
    r = point.result
    ranks, end = len(r.programs), r.step_s or 1.0
    rects, kinds = [], []
    for kind, rows in bars(r.programs, r.slowest).items():
        kinds.append(kind)
        height = (ROW - 4) * TALL[kind]
        rects += [
            f'<rect x="{1000 * start / end:.2f}" y="{rank * ROW + ROW - 2 - height:.1f}" '
            f'width="{max(1000 * took / end, 0.4):.2f}" height="{height:.1f}" '
            f'fill="{STYLES[kind][1]}" stroke="#fff" stroke-width="0.4"/>'
            for rank, start, took, _ in rows
        ]
    alt = (
        f"One step of one replica as events on {ranks} pipeline ranks: {show(r.step_s, 'time')} "
        f"({point.closed_form_s / r.step_s - 1:+.1%} in closed form), "
        f"{r.bubble_fraction:.0%} of the pipeline's time idle."
    )
    legend = " ".join(
        '<span class="key"><i '
        f'style="background:{STYLES[k][1]};height:{12 * TALL[k]:.0f}px"></i>{escape(STYLES[k][0])}</span>'
        for k in kinds
    )
    return (
        f'<p class="head">One step as events: {show(r.step_s, "time")}, bubble {r.bubble_fraction:.0%}</p><svg '
        f'class="strip" role="img" aria-label="{escape(alt)}" '
        f'viewBox="0 0 1000 {ranks * ROW}" preserveAspectRatio="none" '
        f'style="width:100%;height:{min(ranks * ROW, 640)}px;background:#f5f7fa">{"".join(rects)}</svg>'
        f'<div class="ends"><span>0 s</span><span>pipeline rank 0 on top, {ranks} in '
        f"all</span><span>{show(r.step_s, 'time')}</span></div><div>{legend}</div>"
    ), alt


def versus(first: Answer, second: Answer, names: Sequence[str]) -> tuple[str, str]:
    """Each result of B as a multiple of A's, with B's 90% interval; the dashed line is where they are equal."""
    both = [(k, label) for k, label, _ in first.results if k in second.row]
    most = max([1.0, *(second.interval(k)[1] / first.row[k] for k, _ in both)]) * 1.05
    rows = []
    for k, label in both:
        ratio, (low, high) = second.row[k] / first.row[k], (x / first.row[k] for x in second.interval(k))
        rows.append(
            f'<div class="bar"><span>{escape(label)}: {ratio:.2f} × A</span><div><b '
            f'style="width:{100 * ratio / most:.1f}%;background:{COLOURS[0]}"></b>'
            f'<i style="left:{100 * low / most:.1f}%;width:{100 * (high - low) / most:.1f}%"></i><u '
            f'style="left:{100 / most:.1f}%"></u></div></div>'
        )
    listed = ", ".join(f"{label.lower()} {second.row[k] / first.row[k]:.2f} times" for k, label in both)
    alt = f"B ({names[1]}) against A ({names[0]}): {listed}. Lines: B's 90% interval; dashed: equal."
    return f'<div class="versus" role="img" aria-label="{escape(alt)}">{"".join(rows)}</div>', alt


def curve(growth: Mapping[str, Any]) -> tuple[str, str]:
    """Days over chips (`sim.planner.inverse.growth`), each point with its figures; beside it the line of chips that all
    pay, which is the control."""
    rows = growth["rows"]
    first, high = rows[0], max(row["days"] for row in rows)
    wide, tall = 600.0, 160.0
    span = max(rows[-1]["chips"] - first["chips"], 1)

    def place(chips: float, days: float) -> str:
        return f"{8 + (wide - 16) * (chips - first['chips']) / span:.1f},{8 + (tall - 16) * (1 - days / high):.1f}"

    ideal = " ".join(place(row["chips"], first["days"] * first["chips"] / row["chips"]) for row in rows)
    places = [place(row["chips"], row["days"]) for row in rows]
    points, listed = "", []
    for row, at in zip(rows, places, strict=True):
        x, y = at.split(",")
        words = f"{row['chips']:,} chips: {row['days']:.4g} days"
        points += f'<circle cx="{x}" cy="{y}" r="4" fill="{COLOURS[0]}"><title>{words}</title></circle>'
        listed.append(words)
    alt = f"Days over chips: {'; '.join(listed)}. Dashed: if every chip added paid in full."
    drawn = (
        f'<svg class="curve" role="img" aria-label="{escape(alt)}" viewBox="0 0 {wide:g} {tall:g}" width="100%">'
        f'<polyline points="{ideal}" fill="none" stroke="#4a5361" stroke-dasharray="6 4"/>'
        f'<polyline points="{" ".join(places)}" fill="none" stroke="{COLOURS[0]}" stroke-width="2"/>{points}</svg>'
    )
    head = f"Days on {first['chips']:,} to {rows[-1]['chips']:,} chips; dashed: if each paid in full"
    return f'<p class="head">{head}</p>{drawn}', alt
