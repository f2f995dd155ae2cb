"""Pictures of the notebooks `build_*`: drawn with the learner's parts, or with minglm's while those are blank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from minglm import plots
from minglm.config import ModelConfig
from minglm.course.workshop.build.swap import CLOSE, differences
from minglm.model import moe
from minglm.model.layers import RMSNorm, SwiGLU, apply_rope, rope_table


def compared(parts: Mapping[str, Callable], control: tuple[str, Callable]) -> tuple[Any, str]:
    """`differences` as bars, the control last, and in words. A part that is still to be written is left out.

    Args:
        control: a name of `PARTS` and a part that is wrong on purpose.
    """
    written = {name: value for name, part in parts.items() if (value := _difference(name, part)) is not None}
    wrong = _difference(*control)
    shown = {**written, **({} if wrong is None else {f"{control[0]}, wrong": wrong})}
    fig = plots.figure("Each part alone inside minglm", "", "largest difference of a logit", log_y=True)
    plots.bars(fig, list(shown), [max(v, 1e-9) for v in shown.values()])
    # the place of a label on a logarithmic axis is given as the exponent
    fig.add_hline(
        y=CLOSE,
        line_dash="dot",
        annotation_text="1e-5",
        annotation_y=math.log10(CLOSE),
        annotation_position="top left",
        annotation_bgcolor="white",
    )
    missing = [name for name in parts if name not in written]
    words = ", ".join(f"{name} {value:.1g}" for name, value in shown.items())
    still = f" Still to be written: {', '.join(missing)}." if missing else ""
    return fig, f"Bar chart, vertical axis logarithmic. Largest difference of a logit: {words or 'nothing yet'}.{still}"


def _difference(name: str, part: Callable) -> float | None:
    """`differences` of one part; None while it is blank."""
    try:
        return differences({name: part})[name]
    except NotImplementedError:
        return None


def residual_gradients(depth: int, norm: Callable, layer: Callable, width: int = 64) -> tuple[Any, str]:
    """Size of the gradient at the input of each layer of a stack, as a share of that at its end: with the residual
    addition and without. Layers are the learner's, or minglm's while those are blank."""

    def gradients(residual: bool) -> list[float]:
        torch.manual_seed(0)
        x = torch.randn(16, width, requires_grad=True)
        inputs = [x]
        for _ in range(depth):
            try:
                read, feed = norm(width, 1e-5), layer(width, 2 * width)
                y = feed(read(inputs[-1]))
            except NotImplementedError:
                y = SwiGLU(width, 2 * width)(RMSNorm(width, 1e-5)(inputs[-1]))
            inputs.append(inputs[-1] + y if residual else y)
        grads = torch.autograd.grad(inputs[-1].square().mean(), inputs)
        return [float(g.norm() / grads[-1].norm()) for g in grads[:-1]]

    fig = plots.figure("Gradient by depth", "layer", "gradient (share of the last)", log_y=True)
    ends = []
    for i, (words, residual) in enumerate((("x + layer(norm(x))", True), ("control: layer(norm(x))", False))):
        shares = gradients(residual)
        ends.append(shares[0])
        plots.line(fig, range(1, depth + 1), shares, words, i)
    return fig, (
        f"Line chart, vertical axis logarithmic. At the first of {depth} layers the gradient is {ends[0]:.2g} times "
        f"that at the end with the addition, and {ends[1]:.2g} times without it."
    )


def scores_by_distance(table: Callable, turn: Callable, width: int = 32, theta: float = 100.0) -> tuple[Any, str]:
    """Inner product of a turned query and a turned key over their distance, for queries at three positions: with the
    learner's functions, or minglm's while those are blank."""
    torch.manual_seed(0)
    q = k = torch.randn(width)
    try:
        rows = turn(q.expand(1, 300, 1, width), table(torch.arange(300), width, theta))[0, :, 0]
    except NotImplementedError:
        rows = apply_rope(q.expand(1, 300, 1, width), rope_table(300, width, theta))[0, :, 0]
    fig = plots.figure("A score depends on the distance only", "distance (tokens)", "query · key")
    curves = []
    for i, start in enumerate((60, 150, 299)):
        curves.append((rows[start] @ rows[start - 60 : start + 1].T).flip(0))
        plots.line(fig, range(61), curves[-1].tolist(), f"query at {start}", i)
    apart = float((torch.stack(curves) - curves[0]).abs().max())
    return fig, (
        f"Line chart of three curves that differ by at most {apart:.0e}. The score of a vector with itself is "
        f"{float(q @ k):.1f} at distance 0 and {float(curves[0][20]):.1f} at distance 20."
    )


def multiplications_by_length(name: str = "glm5") -> tuple[Any, str]:
    """Multiplications of one layer's attention for one query, expanded and absorbed, over the length of the cache."""
    c = ModelConfig.named(name)
    H, L, D, Dv = c.num_attention_heads, c.kv_lora_rank, c.qk_head_dim, c.v_head_dim
    nope, rope = c.qk_nope_head_dim, c.qk_rope_head_dim
    lengths = [2**n for n in range(18)]
    ways = {
        "expanded": [S * H * (L * (nope + Dv) + D + Dv) for S in lengths],
        "absorbed": [H * L * (nope + Dv) + S * H * (2 * L + rope) for S in lengths],
    }
    fig = plots.figure("One query, one layer of GLM-5", "cached tokens", "multiplications", log_x=True, log_y=True)
    for i, (words, values) in enumerate(ways.items()):
        plots.line(fig, lengths, values, words, i)
    ratio = ways["expanded"][-1] / ways["absorbed"][-1]
    return (
        fig,
        f"Line chart, both axes logarithmic. At {lengths[-1]:,} tokens expanded needs {ratio:.0f} times as many.",
    )


@torch.no_grad()
def balance_over_steps(router: Callable, steps: int = 80, tokens: int = 512) -> tuple[Any, str]:
    """Load of the busiest expert over the mean, step by step, for tokens that resemble each other: with the bias moved
    after each step and, as a control, left at zero. The router is the learner's, or minglm's while that is blank."""
    config = ModelConfig.named("nano")

    def imbalance(kind: Callable, rate: float) -> list[float]:
        torch.manual_seed(0)
        common = torch.randn(config.hidden_size)
        gate = kind(config)
        gate.weight.normal_(0.0, config.hidden_size**-0.5)
        out = []
        for _ in range(steps):
            chosen = gate(0.5 * common + torch.randn(tokens, config.hidden_size))[0]
            counts = torch.bincount(chosen.flatten(), minlength=config.n_routed_experts)
            gate.move_bias(counts, rate)
            out.append(float(counts.max() / counts.float().mean()))
        return out

    try:
        curves = {"bias moved by 0.01": imbalance(router, 0.01), "control: no bias": imbalance(router, 0.0)}
    except NotImplementedError:
        curves = {"bias moved by 0.01": imbalance(moe.Router, 0.01), "control: no bias": imbalance(moe.Router, 0.0)}
    fig = plots.figure("Load imbalance", "step", "busiest expert over the mean")
    for i, (words, values) in enumerate(curves.items()):
        plots.line(fig, range(1, steps + 1), values, words, i)
    last = {words: values[-1] for words, values in curves.items()}
    return fig, "Line chart. At the last step: " + ", ".join(f"{w}: {v:.2f}" for w, v in last.items()) + "."


def clipped_by_ratio(low: float = 0.2, high: float = 0.28) -> tuple[Any, str]:
    """min(r·A, clip(r)·A) over r, for an advantage of 1 and of −1."""
    ratios = torch.linspace(0.4, 1.8, 141)
    fig = plots.figure("What the clip leaves", "ratio π/π_old", "min(r·A, clip(r)·A)")
    for i, A in enumerate((1.0, -1.0)):
        values = torch.minimum(ratios * A, ratios.clamp(1 - low, 1 + high) * A)
        plots.line(fig, ratios.tolist(), values.tolist(), f"advantage {A:+.0f}", i)
    return fig, f"Line chart. With advantage +1 it is flat above {1 + high}; with −1 it is flat below {1 - low}."


def weight_of_a_token(average: Callable, short: int = 10, long: int = 90) -> tuple[Any, str]:
    """Gradient of one token's loss in a batch of a short and a long answer, by the learner's three averages."""
    mask = torch.arange(long)[None] < torch.tensor([[short], [long]])
    fig = plots.figure("What one token counts", "", "gradient of its loss")
    labels, values = [], []
    for how in ("grpo", "dapo", "dr_grpo"):
        losses = torch.zeros(2, long, requires_grad=True)
        try:
            average(losses, mask, how, long).backward()
        except NotImplementedError:
            return fig, "An empty chart: `average` is still to be written."
        if losses.grad is not None:
            labels += [f"{how}, answer of {n}" for n in (short, long)]
            values += [float(losses.grad[0, 0]), float(losses.grad[1, 0])]
    plots.bars(fig, labels, values)
    return fig, "Bar chart. " + ", ".join(f"{name}: {v:.4f}" for name, v in zip(labels, values, strict=True)) + "."
