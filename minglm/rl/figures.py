"""Pictures of an RL run from what it wrote: who ran when, how stale the batches were, how pass@1 rose."""

from __future__ import annotations

from pathlib import Path

from minglm import plots
from minglm.rl.log import STALENESS_BINS, read_lines
from minglm.training import metrics


def timeline(run_dir: str | Path, title: str, updates: int | None = None):
    """Each trajectory a line from its start to its end (aborted and resumed ones have gaps), training a grey band.

    The picture ends with update `updates` where it is given.
    """
    run_dir = Path(run_dir)
    trained = [e for e in read_lines(run_dir / "events.jsonl") if e["event"] == "update"][:updates]
    end = trained[-1]["end_s"] if trained else 0.0
    segments = [
        (start, stop, t["sample"])
        for t in read_lines(run_dir / "trajectories.jsonl")
        for start, stop, _ in t["segments"]
        if start <= end
    ]
    segments.sort()
    fig = plots.figure(title, "seconds since the run began", "trajectory")
    x: list[float | None] = []
    y: list[int | None] = []
    for row, (start, stop, _) in enumerate(segments):
        x += [start, min(stop, end), None]
        y += [row, row, None]
    fig.add_scatter(x=x, y=y, mode="lines", line=dict(color=plots.COLOURS[0], width=1.5), name="rollout")
    for i, e in enumerate(trained):
        fig.add_vrect(
            x0=e["start_s"],
            x1=e["end_s"],
            fillcolor="#999999",
            opacity=0.35,
            line_width=0,
            # Plotly writes "new text" where a position is given without a text
            **({"annotation_text": "training", "annotation_position": "top left"} if i == 0 else {}),
        )
    return fig


def staleness(run_dir: str | Path, title: str):
    """Share of the trained tokens by how many versions old they were, over the updates."""
    rows = metrics.read(Path(run_dir) / "metrics.csv")
    fig = plots.figure(title, "update", "share of the batch's tokens")
    for i in range(STALENESS_BINS):
        if any(r[f"staleness_hist_{i}"] for r in rows):
            plots.line(
                fig,
                [r["step"] for r in rows],
                [r[f"staleness_hist_{i}"] for r in rows],
                f"{i} version{'' if i == 1 else 's'} old" + (" or more" if i == STALENESS_BINS - 1 else ""),
                i,
                markers=True,
            )
    return fig


def progress(run_dirs: dict[str, str | Path], title: str):
    """Held-out pass@1 over updates, one line a run."""
    fig = plots.figure(title, "update", "held-out pass@1")
    for i, (name, folder) in enumerate(run_dirs.items()):
        rows = metrics.read(Path(folder) / "evals.csv")
        plots.line(fig, [r["step"] for r in rows], [r["pass_at_1"] for r in rows], name, i, markers=True)
    fig.update_yaxes(rangemode="nonnegative")
    return fig
