"""Operators of the optimiser's step: AdamW and Muon."""

from __future__ import annotations

from sim.cost.operators import ACCUMULATE, WIDTH, Op


def optimizer_ops(params: float, kind: str, model, tp: int, shards: float, grad_bytes: int = ACCUMULATE) -> list[Op]:
    """One optimiser step over `params` weights of this chip (already divided by the ZeRO shards).

    Adam reads and writes the fp32 weight and both moments, reads the gradient twice (norm, step) and writes the bf16
    weight. Muon keeps one moment and adds five Newton–Schulz iterations: for an r×c matrix (r ≤ c) 2·(2·r²c + r³) FLOPs
    each; without the shapes at hand every matrix is taken as hidden × (its count) with r = hidden/tp.
    """
    if kind == "muon":
        r = model.hidden / tp
        flops = 5 * 2 * (2 * r * params + r * params)
        return [
            Op("muon", "optimizer", "memory", 0.0, params * (8 + 8 + 2 * grad_bytes + WIDTH + 8), kernels=8),
            Op(
                "newton-schulz",
                "optimizer",
                "matmul",
                flops,
                5 * 6 * params * WIDTH,
                r,
                max(params / r, 1.0),
                r,
                kernels=15 * model.layers,
            ),
        ]
    size = params * (8 + 16 + 2 * grad_bytes + WIDTH)
    return [Op("adam", "optimizer", "memory", 0.0, size, kernels=8)]
