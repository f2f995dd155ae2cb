"""Measured times of networks: NCCL's collectives inside a node, its all-to-all over nodes, DeepEP.

Tables of `data/measured`, read and interpolated as those of kernels are (`sim.cost.measured`).
"""

from __future__ import annotations

import functools
import math
import statistics
from typing import TypeAlias

from sim.cost.measured import Curves, curves_of, interpolate, least_from_here, table


@functools.cache
def _nccl_curves(chip: str, collective: str) -> Curves | None:
    return curves_of(table("nccl", chip), lambda key: key[1] if key[0] == collective else None)


@functools.lru_cache(1 << 16)  # a Monte Carlo asks for the same sizes at every draw, a search for every plan
def nccl_s(chip: str, collective: str, members: float, size: float) -> float | None:
    """Seconds of a collective inside a node, `size` bytes as in `sim.cost.collectives.time`; None where not measured.

    Beyond 512 MiB the last bandwidth goes on. Beyond the largest measured group (8, or 4) the wire share of a ring,
    (n − 1)/n, and its latency, n − 1 steps, go on from there.
    """
    curves = _nccl_curves(chip, collective)
    if curves is None:
        return None
    inside = min(max(members, curves.second[0]), curves.second[-1])
    largest = curves.axis[-1]
    seconds = 1e-6 * curves.at(min(size, largest), inside) * max(size / largest, 1.0)
    if members > inside:
        latency = 1e-6 * curves.at(curves.axis[0], inside)
        wire = max(seconds - latency, 0.0) * ((members - 1) / members) / ((inside - 1) / inside)
        seconds = latency * (1 + math.log2(members / inside)) + wire
    return seconds


_Law: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # bytes from chip to chip, share at each

NODE = 8  # chips of a node that all-to-alls over nodes were measured on …
PORT = 50e9  # … and a chip's port to the network, bytes/s (p5.48xlarge: 3,200 Gbps a node, EFA)


@functools.cache
def _all_to_all_shares() -> tuple[_Law, _Law]:
    """Share of the port's line rate that what leaves a node goes at, over the bytes from chip to chip: of four nodes
    and more together, which agree, and of two nodes over that."""
    lines = table("all_to_all_nodes", "h100")
    shares: tuple[dict[float, list[float]], ...] = {}, {}  # of more nodes, of two: message → what was measured
    for (nodes,), times in lines.lines.items():
        chips = NODE * int(nodes)
        for size, us in zip(lines.axis, times, strict=True):
            share = size * (1 - NODE / chips) / (1e-6 * us) / PORT
            shares[int(nodes) == 2].setdefault(size / chips, []).append(share)
    many, two = ({m: statistics.geometric_mean(some) for m, some in sorted(one.items())} for one in shares)
    law = tuple(many), least_from_here(list(many.values()))
    return law, (tuple(two), tuple(min(v / interpolate(*law, m), 1.0) for m, v in two.items()))


@functools.lru_cache(1 << 16)
def all_to_all_share(nodes: float, message: float) -> float:
    """Share of a port's line rate that NCCL's all-to-all over `nodes` nodes reaches, `message` bytes from chip to chip.

    Measured over EFA, 2 to 32 nodes of H100. From four nodes on the rate hangs on the message alone: 0.4 of the line at
    128 KiB, 0.6 at 1 MiB, 0.8 at 8 MiB; two nodes reach less with short ones. Beyond the longest message the rate
    stays; below the shortest it falls with the square root, which is assumed.
    """
    law, two = _all_to_all_shares()
    share = interpolate(*law, message) * min(message / law[0][0], 1.0) ** 0.5
    return share * interpolate(*two, message) ** max(0.0, 1.0 - math.log2(max(nodes, 2.0) / 2.0))


def deepep_s(
    chip: str, half: str, nodes: float, tokens: float, kind: str = "normal", hidden: int = 7168, experts: int = 256
) -> float | None:
    """Seconds of DeepEP's dispatch or combine of `tokens` tokens a rank, 8 experts chosen, over `nodes` nodes of 8.

    kind: normal (training and prefill) | low_latency (decode). Several nodes were measured on H100 only.
    """
    curves = curves_of(
        table("deepep", chip),
        lambda key: key[2] if key[:2] == (kind, half) and key[3:] == (str(hidden), "8", str(experts)) else None,
    )
    if curves is None:
        return None
    inside = min(tokens, curves.axis[-1])
    return 1e-6 * curves.at(inside, nodes) * tokens / inside
