"""Operators of the optimiser's step: AdamW and Muon."""

from __future__ import annotations

from sim.cost.operators import ACCUMULATE, WIDTH, Op

# Share of the whole Newton–Schulz work of a rank's weights that it takes, by who repeats it: every data-parallel rank
# (repeated), shards of each weight (distributed), or one home a weight (owned). Measured on 32 GB300: 632, 356 and
# 157 ms (NVIDIA/Megatron-LM issue 6676); where nothing is sharded all is repeated.
MUON_SHARES = {"repeated": 1.0, "distributed": 0.56, "owned": 0.25}


def optimizer_ops(
    params: float,
    kind: str,
    side: float,
    layers: int,
    shards: float = 1.0,
    grad_bytes: int = ACCUMULATE,
    muon: str = "owned",
) -> list[Op]:
    """One optimiser step over `params` weights of this chip (already divided by the ZeRO shards).

    Adam reads and writes the fp32 weight and both moments, reads the gradient twice (norm, step) and writes the bf16
    weight. Muon keeps one moment and adds five Newton–Schulz iterations: for an r×c matrix (r ≤ c) 2·(2·r²c + r³) FLOPs
    each, over the share of the rank's whole weights that `muon` says (`MUON_SHARES`; never less than a shard).

    Args:
        side: r, the shorter side of the matrices. layers: of this chip, for the launches.
    """
    if kind == "muon":
        whole = params * max(1.0, shards * MUON_SHARES[muon])
        return [
            Op("muon", "optimizer", "memory", 0.0, params * (8 + 8 + 2 * grad_bytes + WIDTH + 8), kernels=8),
            Op(
                "newton-schulz",
                "optimizer",
                "matmul",
                5 * 2 * (2 * side * whole + side * whole),
                5 * 6 * whole * WIDTH,
                side,
                max(whole / side, 1.0),
                side,
                kernels=15 * layers,
            ),
        ]
    size = params * (8 + 16 + 2 * grad_bytes + WIDTH)
    return [Op("adam", "optimizer", "memory", 0.0, size, kernels=8)]
