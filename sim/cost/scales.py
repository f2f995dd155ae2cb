"""What to expect of a (chip, software stack) that was never fitted: a two-way model of those that were.

log scale = μ + chip + product, solved by ridge regression: a chip's effect is held back by one imaginary observation at
zero, a product's by half of one (assumed; the error of leaving stacks out is flat around these). A chip or product that
no fit has seen has no effect, so an unknown chip gets the mean share that long runs keep of their best matmuls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

CHIP_PULL, PRODUCT_PULL = 1.0, 0.5


def expected(fits: Sequence[tuple[str, str, float]], chip: str, product: str) -> float:
    """Expected scale of (chip, product) from `fits`: (chip, product, scale) of every fitted pair; 1 without any."""
    if not fits:
        return 1.0
    rows = [(c, p, math.log(v)) for c, p, v in fits]
    chip_effects, products = dict.fromkeys((c for c, _, _ in rows), 0.0), dict.fromkeys((p for _, p, _ in rows), 0.0)
    mean = 0.0
    for _ in range(40):  # alternating least squares; converges in a few rounds
        mean = sum(v - chip_effects[c] - products[p] for c, p, v in rows) / len(rows)
        for name in chip_effects:
            left = [v - mean - products[p] for c, p, v in rows if c == name]
            chip_effects[name] = sum(left) / (len(left) + CHIP_PULL)
        for name in products:
            left = [v - mean - chip_effects[c] for c, p, v in rows if p == name]
            products[name] = sum(left) / (len(left) + PRODUCT_PULL)
    return math.exp(mean + chip_effects.get(chip, 0.0) + products.get(product, 0.0))
