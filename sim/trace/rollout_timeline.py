"""A rollout run as a picture: engines as rows, their running requests as colour, the trainer's work below."""

from __future__ import annotations

from bisect import bisect_right

from sim.rollout.result import Result


def grid(result: Result, bins: int = 240) -> tuple[list[float], list[list[int]]]:
    """(times, one row of running requests per watched engine), sampled evenly."""
    end = max((s.end_s for s in result.steps), default=result.seconds)
    times = [end * (i + 0.5) / bins for i in range(bins)]
    rows = []
    for changes in result.watched:
        times_of = [t for t, _ in changes]
        rows.append([changes[max(0, bisect_right(times_of, t) - 1)][1] for t in times])
    return times, rows


def figure(result: Result, title: str | None = None, height: int = 460):
    """A Plotly figure of a result whose case had `watch` > 0."""
    from plotly.subplots import make_subplots

    times, rows = grid(result)
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.82, 0.18], vertical_spacing=0.06)
    fig.add_heatmap(
        x=times,
        y=list(range(len(rows))),
        z=rows,
        colorscale=[[0, "#FFFFFF"], [0.02, "#cfe3f1"], [1, "#0072B2"]],
        row=1,
        col=1,
        colorbar=dict(title="running", len=0.75, y=0.62),
        hovertemplate="engine %{y}, %{x:.4g} s: %{z} requests<extra></extra>",
    )
    for kind, colour, pattern in (("train", "#E69F00", ""), ("weight_sync", "#009E73", "/")):
        spans = [(a, b) for k, a, b in result.trainer_spans if k == kind and b > a]
        if spans:
            fig.add_bar(
                orientation="h",
                y=["trainer"] * len(spans),
                base=[a for a, _ in spans],
                x=[b - a for a, b in spans],
                name=kind.replace("_", " "),
                row=2,
                col=1,
                marker=dict(color=colour, pattern_shape=pattern, line=dict(color="white", width=0.5)),
                hovertemplate="from %{base:.4g} s for %{x:.4g} s<extra>" + kind.replace("_", " ") + "</extra>",
            )
    fig.update_layout(
        template="plotly_white",
        height=height,
        barmode="overlay",
        margin=dict(l=70, r=20, t=60, b=60),
        legend=dict(orientation="h", y=-0.15),
        title=dict(
            text=title
            or f"{result.mode}: {result.throughput.step_s:,.4g} s a step, engines idle "
            f"{result.utilisation.rollout_idle:.0%}, tail {result.utilisation.tail_share:.0%}",
            x=0.01,
            xanchor="left",
            font=dict(size=15),
        ),
    )
    fig.update_yaxes(title="engine", row=1, col=1)
    fig.update_xaxes(title="time (s)", row=2, col=1)
    return fig
