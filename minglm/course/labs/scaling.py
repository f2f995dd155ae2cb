"""A scaling law from the toy's own runs: the fit, its intervals, and the published ones beside it.

The law is Chinchilla's (arXiv 2203.15556, equation 2): loss = E + A / N^alpha + B / D^beta, with N the weights that
multiply a token (of the experts those that are chosen; the head, not the embedding) and D the tokens trained on. For
given exponents it is linear in E, A and B, so the fit is a search over two exponents with least squares inside. Errors
are relative (each run weighs 1 / loss²), which for small errors is least squares of the logarithm.

`data/reference/scaling.csv` holds a row for each run; `python -m minglm.course.labs.record scaling` makes it again.
Shapes: R runs, G pairs of exponents, S resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minglm import datafiles, plots
from minglm.config import ModelConfig
from minglm.course.labs import toy
from minglm.errors import InputError
from minglm.evals.scaling_law import Law
from minglm.records import read_rows

WIDTHS, STEPS = (16, 24, 32, 48, 64), (40, 80, 160, 320)
RATE, TOO_SMALL = 0.03, 0.01  # learning rate of the runs, and of the control: it is too small for the narrow models
LARGEST = (96, 480)  # width and steps of the run that no fit sees
ROWS, LENGTH = 8, 64  # of a batch
COLUMNS = ("lr", "width", "steps", "weights", "tokens", "loss", "floor")
EXPONENTS = (0.05, 3.0)  # between which alpha and beta are looked for
GRID = 36


def config(width: int) -> ModelConfig:
    """A model of the family: `nano`, every width in proportion to the hidden one; three layers, eight experts."""
    return toy.config(
        hidden_size=width,
        intermediate_size=5 * width // 2,
        q_lora_rank=width // 2,
        kv_lora_rank=width // 4,
        qk_nope_head_dim=width // 4,
        qk_rope_head_dim=max(2, 2 * (width // 16)),
        v_head_dim=width // 4,
        moe_intermediate_size=width // 2,
    )


def weights(model_config: ModelConfig) -> int:
    """N: the weights that multiply a token, two FLOPs each in a forward pass."""
    return round(model_config.flops_breakdown(LENGTH, sparse=False)["linear"] / 2)


@dataclass(frozen=True)
class Run:
    """One training: its learning rate, its model's width and N, steps and D, and its loss on unseen text, nats."""

    lr: float
    width: int
    steps: int
    weights: int
    tokens: int
    loss: float
    floor: float


def recorded() -> Path:
    """The file of the recorded runs."""
    return datafiles.data("reference", "scaling.csv")


def runs(path: Path | None = None, lr: float = RATE) -> tuple[list[Run], list[Run]]:
    """The recorded runs with a learning rate: those to fit on, and those of the largest model, which are kept out.

    Raises:
        InputError: no such file, or a row that is none.
    """
    mine = [r for r in read_rows(path or recorded(), _run, "minglm.course.labs.record") if r.lr == lr]
    return [r for r in mine if r.width != LARGEST[0]], [r for r in mine if r.width == LARGEST[0]]


def _run(row: dict[str, str]) -> Run:
    width, steps, size, tokens = (int(row[c]) for c in ("width", "steps", "weights", "tokens"))
    return Run(float(row["lr"]), width, steps, size, tokens, float(row["loss"]), float(row["floor"]))


def _solve(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares of many designs and many weightings: coefficients (S, G, 3), squared error (S, G).

    A term that would be negative is left out: A, or B, or both. Where E alone is negative, the error is infinite.

    Args:
        x: (G, R, 3). y: (R,). weight: (S, R).
    """
    best, least = torch.zeros(len(weight), len(x), 3, dtype=x.dtype), torch.full((len(weight), len(x)), torch.inf)
    least = least.to(x.dtype)
    for columns in ((0, 1, 2), (0, 1), (0, 2), (0,)):
        part = x[..., columns]
        G, R, C = part.shape
        outer = (part[..., :, None] * part[..., None, :]).permute(1, 0, 2, 3).reshape(R, G * C * C)
        normal = (weight @ outer).view(-1, G, C, C)
        right = (weight @ (part * y[:, None]).permute(1, 0, 2).reshape(R, G * C)).view(-1, G, C)
        found = torch.linalg.solve(normal + 1e-12 * torch.eye(C, dtype=x.dtype), right[..., None])[..., 0]
        error = (weight @ (y * y))[:, None] - (found * right).sum(-1)
        better = (found >= 0).all(-1) & (error < least)
        least = torch.where(better, error.clamp_min(0), least)
        whole = torch.zeros_like(best)
        whole[..., columns] = found
        best = torch.where(better[..., None], whole, best)
    return best, least


def _design(n: Tensor, d: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Columns 1, N^-alpha, D^-beta for each pair of exponents: (G, R, 3)."""
    a, b = -alpha[:, None] * n.log(), -beta[:, None] * d.log()
    return torch.stack((torch.ones_like(a), a.exp(), b.exp()), dim=-1)


def fit_many(points: Sequence[Run], counts: Tensor) -> list[Law]:
    """The law that fits best, for each weighting of the runs.

    Args:
        counts: (S, R), how often each run counts.

    Raises:
        InputError: fewer than six runs, or no law of this form with E, A and B of at least zero.
    """
    if len(points) < 6:
        raise InputError(f"{len(points)} runs: five numbers are fitted, so at least 6 are needed; train more")
    n, d, y = (torch.tensor([float(getattr(p, f)) for p in points], dtype=torch.float64)
               for f in ("weights", "tokens", "loss"))  # fmt: skip
    n_mid, d_mid = n.log().mean().exp(), d.log().mean().exp()
    weight = counts.to(torch.float64) / (y * y)
    axis = torch.logspace(math.log10(EXPONENTS[0]), math.log10(EXPONENTS[1]), GRID, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    _, error = _solve(_design(n / n_mid, d / d_mid, *grid.T), y, weight)
    best = error.argmin(1)
    step = float(axis[1] / axis[0])
    out = []
    for s, index in enumerate(best.tolist()):
        if not math.isfinite(float(error[s, index])):
            raise InputError("the runs follow no law of this form; are N and D those of their losses?")
        alpha, beta = grid[index]
        for reach in (step, step ** (1 / 6)):  # twice finer, around the best so far
            fine = torch.logspace(-math.log10(reach), math.log10(reach), 13, dtype=torch.float64)
            near = torch.cartesian_prod(alpha * fine, beta * fine).clamp(*EXPONENTS)
            values, errors = _solve(_design(n / n_mid, d / d_mid, *near.T), y, weight[s : s + 1])
            chosen = int(errors[0].argmin())
            (e, a, b), (alpha, beta) = values[0, chosen], near[chosen]
        mean_error = (float(errors[0, chosen]) / float(counts[s].sum())) ** 0.5
        out.append(
            Law(float(e), float(a * n_mid**alpha), float(b * d_mid**beta), float(alpha), float(beta), mean_error)
        )
    return out


def fit(points: Sequence[Run]) -> Law:
    """The law that fits these runs best."""
    return fit_many(points, torch.ones(1, len(points)))[0]


def resampled(points: Sequence[Run], count: int = 200, seed: int = 0) -> list[Law]:
    """Laws of so many resamples, each of as many runs drawn with replacement: their spread is the fit's (bootstrap).

    A resample that holds too few sizes to fit on is drawn again.
    """
    draw = torch.Generator().manual_seed(seed)
    laws: list[Law] = []
    while len(laws) < count:
        chosen = torch.randint(len(points), (count, len(points)), generator=draw)
        counts = torch.stack([torch.bincount(row, minlength=len(points)) for row in chosen])
        sizes = torch.tensor([[p.weights, p.tokens] for p in points])
        wide = [len(sizes[c > 0].unique(dim=0)) >= 6 for c in counts]
        laws += fit_many(points, counts[torch.tensor(wide)])
    return laws[:count]


def interval(values: Sequence[float], level: float = 0.9) -> tuple[float, float]:
    """The middle `level` of the values.

    >>> interval([float(i) for i in range(101)], 0.5)
    (25.0, 75.0)
    """
    t = torch.tensor(values, dtype=torch.float64)
    low, high = torch.quantile(t, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


def shuffled(points: Sequence[Run], seed: int = 0) -> list[Run]:
    """The control: each run with the N of another one, drawn by `seed`; tokens and losses as they are."""
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed)).tolist()
    return [replace(p, weights=points[i].weights) for p, i in zip(points, order, strict=True)]


def curves(points: Sequence[Run], law: Law, unseen: Sequence[Run] = ()) -> tuple[Any, str]:
    """Runs as points, the law as lines, one colour a size; runs that no fit saw as open marks."""
    fig = plots.figure("The toy's runs and their law", "tokens D", "loss on unseen text (nats)", log_x=True)
    tokens = sorted({p.tokens for p in [*points, *unseen]})
    sizes = sorted({p.weights for p in [*points, *unseen]})
    for i, size in enumerate(sizes):
        own = [p for p in [*points, *unseen] if p.weights == size]
        plots.line(fig, tokens, [law.loss(size, d) for d in tokens], f"N = {size:,}", i)
        fig.add_scatter(x=[p.tokens for p in own], y=[p.loss for p in own], mode="markers", showlegend=False,
                        marker=dict(color=plots.COLOURS[i % len(plots.COLOURS)], size=8,
                                    symbol="circle-open" if own[0] in unseen else "circle"))  # fmt: skip
    floor = points[0].floor
    plots.line(fig, [tokens[0], tokens[-1]], [floor, floor], "floor of the language", 7)
    return fig, (
        f"Line chart, horizontal axis logarithmic. {len(points)} runs of {len({p.weights for p in points})} sizes; "
        f"the law misses a run by {law.error:.1%} on average and puts E at {law.E:.2f}, where the language's own floor "
        f"is {floor:.2f}."
    )


def tokens_per_weight(laws: dict[str, Law], flops: Sequence[float]) -> tuple[Any, str]:
    """How many tokens each law wants for each weight, over the compute."""
    fig = plots.figure("Tokens for each weight", "training FLOPs", "best D / N", log_x=True, log_y=True)
    words = []
    for i, (name, law) in enumerate(laws.items()):
        ratios = [d / n for n, d in map(law.best_split, flops)]
        plots.line(fig, flops, ratios, name, i)
        words.append(f"{name} {ratios[0]:.3g} to {ratios[-1]:.3g}")
    return fig, (
        f"Line chart, both axes logarithmic. Tokens for each weight, {flops[0]:.0e} to {flops[-1]:.0e} FLOPs: "
        f"{'; '.join(words)}."
    )
