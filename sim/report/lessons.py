"""What the notebooks of `notebooks/scale/` need beside the simulator: live figures, fact tables, points on a roofline.

Nothing here computes a result of its own: each helper asks the simulator and arranges the answer for a picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from minglm.errors import InputError
from sim.base.figure import Figure
from sim.base.units import show
from sim.cost import collectives
from sim.cost.kernels import Kernels
from sim.cost.operators import Op
from sim.cost.step_costs import ChunkCost, StepCosts
from sim.spec.hardware import Chip, Cluster, Tier
from sim.trace.timeline import STYLES, bars
from sim.training.schedules import CHUNKS

# unit of a Figure -> dimension of `sim.base.units`
_DIMENSIONS = {"B": "bytes", "B/s": "bytes_per_s", "FLOP/s": "flops", "s": "time", "W": "power", "USD": "money"}


# ------------------------------------------------------------------ figures that move


def live(fig, redraw: Callable, *controls):
    """A figure with its controls above it; `redraw(figure, *values)` changes traces and layout in place.

    A choice that the simulator refuses (`InputError`) is shown in place of the title, and the picture stays as it was.
    """
    import ipywidgets
    import plotly.graph_objects as go

    picture = go.FigureWidget(fig)
    for control in controls:
        control.style.description_width = "initial"

    def again(_=None) -> None:
        try:
            with picture.batch_update():
                redraw(picture, *(control.value for control in controls))
        except InputError as error:
            picture.layout.title.text = "refused: " + wrapped(str(error))

    for control in controls:
        control.observe(again, "value")
    again()
    rows = [ipywidgets.HBox(controls[i : i + 3]) for i in range(0, len(controls), 3)]
    return ipywidgets.VBox([*rows, picture])


def wrapped(text: str, width: int = 100) -> str:
    """A long line cut with `<br>` for a title."""
    import textwrap

    return "<br>".join(textwrap.wrap(text, width))


def table(rows: Sequence[Sequence[object]], *headings: str) -> str:
    """Rows as a Markdown table; columns that hold only numbers (or text that starts with one) stay left to Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(str(cell).replace("|", "∣") for cell in row) + " |" for row in rows]
    return "\n".join(lines).replace("$", "\\$")  # else Jupyter typesets what stands between two dollars


# ------------------------------------------------------------------ facts


def said(value: float, unit: str) -> str:
    """A figure in human units."""
    if unit == "1/h":
        return f"one in {1 / value:,.0f} h" if value else "never"
    return show(value, _DIMENSIONS[unit]) if unit in _DIMENSIONS else f"{value:g}" + ("" if unit == "1" else f" {unit}")


def fact_rows(spec: Chip | Cluster | Tier) -> list[tuple[str, str, str, str, str]]:
    """(what, value, range, confidence, source) of every `Figure` that a chip, a tier or a cluster carries."""
    rows = []
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        named = (
            {f"{field.name} {key}": v for key, v in value.items()}
            if isinstance(value, Mapping)
            else {field.name: value}
        )
        for name, f in named.items():
            if isinstance(f, Figure):
                span = "" if f.certain else f"{said(f.low, f.unit)} to {said(f.high, f.unit)}"
                rows.append((name.replace("_", " "), said(f.value, f.unit), span, f.confidence, f.source))
    return rows


def with_tier(cluster: Cluster, name: str, **changes) -> Cluster:
    """The cluster with one tier changed: `with_tier(c, "roce", oversubscription=4.0)`. A number given for a `Figure`
    keeps the figure's unit and source."""
    cluster.tier(name)

    def changed(tier: Tier) -> Tier:
        new = {
            k: dataclasses.replace(getattr(tier, k), value=v) if isinstance(getattr(tier, k), Figure) else v
            for k, v in changes.items()
        }
        return dataclasses.replace(tier, **new)

    return dataclasses.replace(cluster, tiers=tuple(changed(t) if t.name == name else t for t in cluster.tiers))


# ------------------------------------------------------------------ rooflines


def roofline_points(kernels: Kernels, ops: Iterable[Op]) -> list[dict]:
    """Operators that compute, as points: intensity (FLOP per byte), rate (FLOP/s) and seconds on this chip."""
    return [
        {
            "name": op.name,
            "group": op.group,
            "intensity": op.flops / op.bytes,
            "rate": op.flops / kernels.time(op),
            "seconds": kernels.time(op),
        }
        for op in ops
        if op.flops and op.bytes
    ]


def decode_attention(model, requests: int, context: int) -> Op:
    """Attention of one decoding step of an MLA model: each request reads the latents of the keys it may see, once for
    all heads. With DSA those are at most `index_topk` keys."""
    keys = min(context, model.index_topk) if model.index_topk else context
    row = model.kv_lora + model.rope
    flops = 2.0 * requests * model.heads * keys * (row + model.kv_lora)
    return Op("attention", "attention", "attention", flops, requests * keys * row * 2.0, m=keys, k=row)


# ------------------------------------------------------------------ the network


def group(cluster: Cluster, n: int, stride: int = 1):
    """A group of `n` chips placed on the tiers of a cluster."""
    return collectives.place(cluster, n, stride)


def bus_rate(kind: str, size: float, n: int, seconds: float) -> float:
    """Bytes per second that each chip had to move at least: how collectives of different kinds are compared (the "bus
    bandwidth" of NCCL's tests)."""
    moved = {
        "all_reduce": 2 * (n - 1) / n,
        "all_gather": (n - 1) / n,
        "reduce_scatter": (n - 1) / n,
        "all_to_all": (n - 1) / n,
    }
    return size * moved.get(kind, 1.0) / seconds


# ------------------------------------------------------------------ pipelines


def even_costs(
    schedule: str,
    ranks: int,
    micro_batches: int,
    chunks: int = 2,
    *,
    forward_s: float = 1.0,
    backward_input_s: float = 1.0,
    backward_weight_s: float = 1.0,
    comm_s: float = 0.0,
) -> StepCosts:
    """A pipeline whose ranks all have the same work: seconds of a rank for one micro-batch. Interleaving cuts a rank's
    layers into `chunks`; DualPipe keeps two whole copies of them, one for each direction. `comm_s` is the all-to-all
    inside a forward, and as much inside a backward, which another micro-batch's work may hide."""
    pieces = CHUNKS[schedule] or chunks
    share = 1.0 if schedule == "dualpipe" else 1.0 / pieces
    one = ChunkCost(
        share * (forward_s + comm_s),
        share * (backward_input_s + comm_s),
        share * backward_weight_s,
        share * comm_s,
        share * comm_s,
    )
    return StepCosts(((one,) * pieces,) * ranks, micro_batches, 0.0, 0.0, 0.0, 0.0, False, 0.0)


def redraw_timeline(picture, result) -> None:
    """Put another step into a picture made by `sim.trace.timeline.figure` with all kinds of work present (see
    `timeline_base`)."""
    drawn = bars(result.programs, result.slowest)
    for trace, kind in zip(picture.data, STYLES, strict=False):  # a picture may hold more traces
        rows = drawn.get(kind, [])
        trace.y, trace.base, trace.x = [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]
        trace.text = [r[3] for r in rows] if len(rows) <= 400 else None
    picture.layout.yaxis.range = [len(result.programs) - 0.5, -0.5]
    picture.layout.title.text = (
        f"{result.schedule}: {result.pipeline_s:.4g} s for {len(result.programs)} ranks, bubble "
        f"{result.bubble_fraction:.1%} of the time"
    )


def timeline_base(fig, height: int = 420):
    """A house-style figure with one empty row of bars per kind of work, to be filled by `redraw_timeline`."""
    for name, colour, pattern in STYLES.values():
        fig.add_bar(
            orientation="h",
            y=[],
            base=[],
            x=[],
            name=name,
            textposition="inside",
            insidetextanchor="middle",
            marker=dict(color=colour, pattern_shape=pattern, line=dict(color="white", width=0.5)),
        )
    fig.update_layout(barmode="overlay", bargap=0.15, height=height, legend=dict(orientation="h", y=-0.2))
    fig.update_yaxes(dtick=1)
    return fig
