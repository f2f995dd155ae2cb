"""A step as a picture: one row per pipeline rank, one bar per piece of work, the critical path outlined."""

from __future__ import annotations

from collections.abc import Sequence

from sim.training.campaign import CampaignResult
from sim.training.critical_path import causes
from sim.training.program import Program
from sim.training.replica import Replica
from sim.training.step import StepResult

# Okabe-Ito colours with a pattern as a second cue.
STYLES = {
    "F": ("forward", "#0072B2", ""),
    "B": ("backward", "#E69F00", ""),
    "I": ("backward, activations", "#E69F00", ""),
    "W": ("backward, weights", "#009E73", "."),
    "FB": ("forward and backward together", "#CC79A7", "/"),
}


def bars(programs: Sequence[Program], replica: Replica) -> dict[str, list[tuple[int, float, float, str]]]:
    """The bars of each kind of work: kind -> [(rank, start_s, seconds, label)]."""
    out: dict[str, list[tuple[int, float, float, str]]] = {}
    for rank, program in enumerate(programs):
        for op, (start, end) in zip(program.ops, replica.spans(rank, program), strict=True):
            label = f"{op.micro_batch}" if op.kind != "FB" else f"{op.micro_batch}|{op.b_micro_batch}"
            out.setdefault(op.kind, []).append((rank, start, end - start, label))
    return out


def figure(result: StepResult, title: str | None = None, height: int | None = None):
    """A Plotly figure of the slowest replica of a step (`sim.training.step.simulate`)."""
    import plotly.graph_objects as go

    fig, ranks = go.Figure(), len(result.programs)
    for kind, rows in bars(result.programs, result.slowest).items():
        name, colour, pattern = STYLES[kind]
        fig.add_bar(
            orientation="h",
            y=[r for r, *_ in rows],
            base=[s for _, s, *_ in rows],
            x=[d for *_, d, _ in rows],
            text=[t for *_, t in rows] if len(rows) <= 600 else None,
            textposition="inside",
            insidetextanchor="middle",
            name=name,
            marker=dict(color=colour, pattern_shape=pattern, line=dict(color="white", width=0.5)),
            hovertemplate="rank %{y}, from %{base:.4g} s for %{x:.4g} s<extra>" + name + "</extra>",
        )
    path = [s for s in result.critical_path if s.end_s <= result.pipeline_s * (1 + 1e-9)]
    fig.add_scatter(
        x=[x for s in path for x in (s.start_s, s.end_s)],
        y=[s.rank for s in path for _ in range(2)],
        mode="lines",
        line=dict(color="#000000", width=1.5, dash="dot"),
        name="critical path",
        hoverinfo="skip",
    )
    shares = (
        ", ".join(
            f"{cause} {seconds / result.step_s:.0%}"
            for cause, seconds in list(causes(result.critical_path).items())[:4]
        )
        if result.step_s
        else ""
    )
    fig.update_layout(
        barmode="overlay",
        bargap=0.15,
        template="plotly_white",
        height=height or 160 + 30 * ranks,
        title=dict(
            text=title
            or f"{result.schedule}: {result.step_s:.4g} s, bubble {result.bubble_fraction:.1%}. Critical path: "
            f"{shares}",
            x=0.01,
            xanchor="left",
            font=dict(size=15),
        ),
        margin=dict(l=70, r=20, t=60, b=60),
        uniformtext=dict(minsize=8, mode="hide"),  # numbers that no bar has room for would shrink to dots
    )
    fig.update_yaxes(title="pipeline rank", autorange="reversed", dtick=1, ticks="outside", tickcolor="white")
    fig.update_xaxes(title="time (s)", rangemode="tozero")
    return fig


def campaign_figure(result: CampaignResult, title: str | None = None, height: int = 380):
    """A Plotly figure of a campaign (`sim.training.campaign.run`): tokens kept over the days, and what the run would
    have been had nothing been lost."""
    import plotly.graph_objects as go

    fig = go.Figure()
    days = [0.0] + [span.end_s / 86400.0 for span in result.timeline]
    tokens = [0.0] + [span.tokens / 1e12 for span in result.timeline]
    drawn = range(0, len(days), max(1, len(days) // 2000))
    fig.add_scatter(
        x=[days[k] for k in drawn] + days[-1:],
        y=[tokens[k] for k in drawn] + tokens[-1:],
        mode="lines",
        name="this campaign",
        line=dict(color="#0072B2", width=2),
    )
    fig.add_scatter(
        x=[0.0, result.ideal_days],
        y=[0.0, result.tokens / 1e12],
        mode="lines",
        name="nothing lost (mean pace)",
        line=dict(color="#E69F00", dash="dash", width=2),
    )
    fig.update_layout(
        template="plotly_white",
        height=height,
        margin=dict(l=70, r=20, t=60, b=60),
        title=dict(
            text=title
            or f"{result.days:.1f} days, goodput {result.goodput:.0%}, {result.interruptions:,} interruptions",
            x=0.01,
            xanchor="left",
            font=dict(size=15),
        ),
    )
    fig.update_xaxes(title="days")
    fig.update_yaxes(title="tokens kept (trillions)", rangemode="tozero")
    return fig
