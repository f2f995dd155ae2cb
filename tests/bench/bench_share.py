"""A training step's share of what the same cores do in a matrix product, and what the indexer's KL adds to a step.

fp32, 2 threads, the size "bench" of `bench_model`, our side of its training steps. Large square products run in turns
with the steps: torch's own, and those of the faster library (`minglm.model.products`), which a step may use. Each share
is taken of the product of its own turn; medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from minglm.model.model import Model
from minglm.model.products import rows_product
from minglm.tools.bench_summary import answer
from tests.bench.bench_model import CONFIG, STEPS, alternate, our_step, row

NAME = "share"
REPEATS, SIDE, SQUARES = 9, 1024, 8
SQUARES_FLOPS = SQUARES * 2 * SIDE**3


def squares(multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
    """A few large square products, SQUARES_FLOPS in all: what a step's share is taken of."""
    a = torch.linspace(-1, 1, SIDE * SIDE).view(SIDE, SIDE)

    def work():
        for _ in range(SQUARES):
            multiply(a, a)

    return work


def run() -> list[dict]:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model, rows = Model(CONFIG), []
    for B, T, _ in STEPS:
        took = alternate(
            {
                "torch.mm": squares(torch.mm),
                "step": our_step(model, B, T),
                "rows_product": squares(rows_product),
                "kl": our_step(model, B, T, kl=True),
            },
            REPEATS,
        )
        flops = B * T * CONFIG.train_flops_per_token(T)
        for kind, library in (("torch.mm", "torch's own"), ("rows_product", "the faster library's")):
            peak = SQUARES_FLOPS / statistics.median(took[kind])
            pairs = zip(took["step"], took[kind], strict=True)
            shares = [100 * flops / step / (SQUARES_FLOPS / product) for step, product in pairs]
            middle = statistics.median(shares)
            rows.append(row(f"train {B}x{T}: share of {library} {peak / 1e9:.0f} GFLOP/s", middle, "%"))
            if kind == "torch.mm":
                rows[-1] |= answer(f"train {B}x{T}: share of the matmul peak", middle, shares)
        ratios = [100 * plain / kl for plain, kl in zip(took["step"], took["kl"], strict=True)]
        name, middle = f"train {B}x{T} with the indexer's KL, speed over the plain step", statistics.median(ratios)
        rows.append(row(name, middle, "%") | answer(name, middle, ratios))
    return rows
