"""Two of the page's pictures as plain HTML and SVG, which follow every change in every browser: a step's timeline, and
B against A.

Colours are those of `minglm.plots`; the height of a bar is the second cue beside its colour. Each returns (HTML, alt
text).
"""

from __future__ import annotations

from collections.abc import Sequence

from minglm.plots import COLOURS
from sim.base.units import show
from sim.dashboard.figures import versus as versus_figure
from sim.dashboard.state import Answer
from sim.report.html import escape
from sim.trace.timeline import STYLES, bars

ROW = 26  # height of a pipeline rank, in pixels
TALL = {"F": 1.0, "B": 0.7, "I": 0.7, "W": 0.45, "FB": 0.85}


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
    alt = versus_figure(first, second, names)[1]
    return f'<div class="versus" role="img" aria-label="{escape(alt)}">{"".join(rows)}</div>', alt
