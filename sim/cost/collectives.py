"""How long a collective takes: α–β costs by algorithm over the tiers of a cluster.

A group of n chips with a stride (distance between neighbours in rank order) is placed on the tiers from the inside out:
it has `fan` members side by side in each tier. Ring, tree, halving-doubling, hierarchical and pairwise costs follow
Thakur et al. 2005 and Rabenseifner 2004; NCCL and HCCL pick among them, so `auto` takes the fastest.

Rates. Behind a switch a group has a chip's whole rate. In a full mesh every pair has its own link, so a group of n uses
n−1 of the links (Huawei's own planner counts so for the 910B: MindSpeed `comm_hardware_info.py`). On a rail or Clos
tier every chip has its port; oversubscription divides what leaves the tier below. `efficiency` is the share of line
rate that large messages reach; the ramp for small ones comes from α.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from minglm.errors import InputError, nearest
from sim.base.tape import least, most
from sim.cost import measured_network
from sim.spec.hardware import Cluster, Tier

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "p2p")
ALGORITHMS = ("auto", "ring", "tree", "halving-doubling", "hierarchical", "pairwise")

# name: (value, label, source)
CONSTANTS = {
    "launch_s": (
        8.0e-6,
        "assumed",
        "start of a collective on the device: kernel launch, handshake (NCCL small-message floor is 10-20 µs)",
    ),
    "all_to_all_share": (
        0.85,
        "assumed",
        "inside a tier that was not measured all-to-all reaches this share of what a ring reaches (many peers)",
    ),
    "ring_share": (
        0.9,
        "assumed",
        "share of line rate that large messages reach over the network on which all-to-alls were measured: what one "
        "loses to its short messages is taken relative to it",
    ),
    "wide_port_gain": (
        1.0,
        "assumed",
        "how much faster an all-to-all of a training step goes over a port wider than the measured 50 GB/s: experts "
        "over eight nodes of B200 and of B300, whose ports are twice as wide, took as long (Megatron-Bridge 26.02, "
        "GPT-OSS), and so did three models over EFA; alone, nccl-tests reach 1.8 times as much; range 1.0 to 1.8",
    ),
    "gradient_share": (
        0.78,
        "fitted",
        "gradients between nodes: share of the links' rate that a reduction in buckets beside a backward pass reaches "
        "(Megatron runs: 22-26% slower than large messages alone, which reach 0.95); range 0.72 to 0.95",
    ),
    "dedup_share": (
        1.0,
        "published",
        "DeepEP's normal kernels reach 43-58 GB/s per 400G port across nodes, line rate (deepseek-ai/DeepEP README)",
    ),
}


@dataclass(frozen=True)
class Level:
    """One tier as a group sees it: `fan` members side by side, each sending at `bytes_per_s`."""

    tier: Tier
    fan: int
    bytes_per_s: float
    latency_s: float
    tables: str = ""  # whose measured collectives a group inside this tier takes
    slower: float = 1.0  # line rate of the measured links over this group's share of this tier's


# Line rate of the links that `data/measured` was made on, bytes/s each way (data sheets: NVLink 3, 4, 5).
MEASURED_LINE = {"a100": 300e9, "h100": 450e9, "h200": 450e9} | dict.fromkeys(("b200", "b300", "gb200", "gb300"), 900e9)


@functools.lru_cache(maxsize=4096)
def _place(cluster_id: int, n: int, stride: int, sharers: float, tables: bool) -> tuple[Level, ...]:
    cluster = _CLUSTERS[cluster_id]
    levels, inside, last = [], 1, len(cluster.tiers) - 1
    for i, tier in enumerate(cluster.tiers):
        here = n if i == last else max(1, min(n, tier.size // max(stride, 1)))
        fan = max(1, here // inside) if i < last else math.ceil(n / inside)
        if fan > 1:
            rate = tier.bytes_per_s.value * tier.efficiency.value
            if tier.topology == "mesh":
                # members of the group side by side × chips of the inner domain each stands for = links used
                rate *= min(1.0, (fan - 1) / max(tier.links, 1))
            if tier.topology in ("clos", "rail"):
                rate /= tier.oversubscription
            slower = MEASURED_LINE.get(tier.tables, 0.0) * sharers / tier.bytes_per_s.value if tables else 0.0
            levels.append(
                Level(tier, fan, rate / sharers, tier.latency_s.value, tier.tables if slower else "", slower or 1.0)
            )
            inside *= fan
    return tuple(levels)


_CLUSTERS: dict[int, Cluster] = {}


def place(cluster: Cluster, n: int, stride: int = 1, sharers: float = 1.0, tables: bool = False) -> tuple[Level, ...]:
    """Levels that a group of `n` chips, `stride` apart, spans.

    sharers: groups that use the same ports at once. tables: collectives inside a tier that was measured take the time
    that was; without, those of the textbook.
    """
    key = id(cluster)
    if _CLUSTERS.get(key) is not cluster:
        if len(_CLUSTERS) > 256:
            _CLUSTERS.clear()
            _place.cache_clear()
        _CLUSTERS[key] = cluster
    return _place(key, int(n), int(stride), float(sharers), tables)


def leaves_node(cluster: Cluster, levels: tuple[Level, ...]) -> bool:
    """Whether a placed group spans more than the innermost tier."""
    return any(level.tier is not cluster.tiers[0] for level in levels)


def members_inside(levels: tuple[Level, ...]) -> int:
    """Members of the group that share the innermost level it spans (1 when it spans only one chip)."""
    return levels[0].fan if levels else 1


def _flat(levels: tuple[Level, ...]) -> tuple[int, float, float]:
    """A flat ring through all levels: members, slowest rate, latency of a step.

    Where the ring leaves a node, every member inside it has its own port: the ports of all `inside` members carry the
    ring's channels together, so an outer level counts with inside × its rate.
    """
    n, rate, latency, inside = 1, math.inf, 0.0, 1
    for level in levels:
        rate = least(rate, level.bytes_per_s * inside)
        latency = most(latency, level.latency_s)
        inside *= level.fan
        n *= level.fan
    return n, rate, latency


def _steps(levels: tuple[Level, ...]) -> float:
    """Latency of one trip around a ring that crosses each tier as seldom as it can: n − 1 hops, most of them inside."""
    total, groups = 0.0, 1
    for level in reversed(levels):
        total += groups * (level.fan - 1) * level.latency_s
        groups *= level.fan
    return total


def _ring(kind: str, size: float, levels: tuple[Level, ...]) -> float:
    n, rate, _ = _flat(levels)
    trips = 2 if kind == "all_reduce" else 1
    if kind == "broadcast":
        return _steps(levels) + size / rate
    return trips * (_steps(levels) + size * (n - 1) / n / rate)


def _tree(kind: str, size: float, levels: tuple[Level, ...]) -> float:
    """Double binary trees (NCCL): bandwidth of a ring, logarithmic latency; for broadcast one pipelined tree."""
    _, rate, _ = _flat(levels)
    depth = sum(math.ceil(math.log2(level.fan)) * level.latency_s for level in levels)
    trips = 2 if kind == "all_reduce" else 1
    return trips * (depth + size / rate)


def _halving(kind: str, size: float, levels: tuple[Level, ...]) -> float:
    """Recursive halving then doubling:
    log2(n) exchanges, each pair at its own rate (no port is shared between steps).
    """
    total, left, trips = 0.0, size, 2 if kind == "all_reduce" else 1
    for level in reversed(levels):  # largest pieces travel farthest: the vector halves inwards
        for _ in range(math.ceil(math.log2(level.fan))):
            left /= 2
            rate = level.bytes_per_s
            if level.tier.topology == "mesh":  # one partner at a time uses one link
                rate = rate / max(level.fan - 1, 1)
            total += level.latency_s + left / rate
    return trips * total


def _hierarchical(kind: str, size: float, levels: tuple[Level, ...]) -> float:
    """Reduce-scatter inside, the collective on 1/fan of the data outside, all-gather inside (and halves of that)."""
    total, part = 0.0, size
    trips = 2 if kind == "all_reduce" else 1
    for level in levels:
        inside = _measured("all_gather" if kind == "all_reduce" else kind, part, level)
        if inside is not None:
            total += trips * inside
            part /= level.fan
            continue
        total += trips * ((level.fan - 1) * level.latency_s + part * (level.fan - 1) / level.fan / level.bytes_per_s)
        part /= level.fan
    return total


def _measured(kind: str, size: float, level: Level) -> float | None:
    """Seconds of a collective of a group inside one tier, as measured; None where it was not."""
    if not level.tables:
        return None
    seconds = measured_network.nccl_s(level.tables, kind, level.fan, size)
    if seconds is None:
        return None
    latency = measured_network.nccl_s(level.tables, kind, level.fan, 1.0) or 0.0
    return latency + max(seconds - latency, 0.0) * level.slower  # a slower link takes longer for the bytes alone


def _pairwise(size: float, levels: tuple[Level, ...], dedup: float = 1.0) -> float:
    """All-to-all: each chip sends `size`, an equal part to each member. Tiers work at the same time; the slowest
    decides.

    Over nodes the rate falls with the message from chip to chip, as measured (`sim.cost.measured_network`), and a port
    that is wider than the measured one gains `wide_port_gain`.

    `dedup`: share of the rows that crosses the outer tiers when each node receives one copy and passes it on inside
    (then every row also crosses the inner tier).
    """
    n, inside, worst, latency = 1, 1, 0.0, 0.0
    for level in levels:
        n *= level.fan
    for i, level in enumerate(levels):
        share = (1.0 - inside / n) * dedup if i else (level.fan - 1) / (level.fan if dedup < 1.0 else n)
        rate = level.bytes_per_s
        if dedup < 1.0:
            rate *= CONSTANTS["dedup_share"][0]
        elif i:
            ring = CONSTANTS["ring_share"][0]
            rate = least(rate, ring * measured_network.PORT * CONSTANTS["wide_port_gain"][0])
            rate *= measured_network.all_to_all_share(n / inside, size / n) / ring
        else:
            rate *= CONSTANTS["all_to_all_share"][0]
        worst = most(worst, size * share / rate)
        latency = most(latency, min((level.fan - 1) * inside, 64) * level.latency_s / 4)
        inside *= level.fan
    return latency + worst


def time(kind: str, size: float, levels: tuple[Level, ...], algorithm: str = "auto", dedup: float = 1.0) -> float:
    """Seconds for one collective over a placed group.

    Args:
        kind: one of KINDS.
        size: bytes of the whole buffer (all_reduce, all_gather's result, reduce_scatter's input, broadcast), what one
            chip sends in all (all_to_all), or the message (p2p).
        levels: from `place`; empty for a group of one, which costs nothing.
        algorithm: one of ALGORITHMS; 'auto' takes the fastest that fits.
    Raises:
        InputError: unknown kind or algorithm.
    """
    if kind not in KINDS:
        raise InputError(f"collective {kind!r}: not one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    if algorithm not in ALGORITHMS:
        raise InputError(f"algorithm {algorithm!r}: not one of {', '.join(ALGORITHMS)}{nearest(algorithm, ALGORITHMS)}")
    if not levels or size <= 0:
        return 0.0
    start = CONSTANTS["launch_s"][0]
    if len(levels) == 1 and algorithm == "auto" and (seconds := _measured(kind, size, levels[0])) is not None:
        return seconds  # its launch is inside
    if kind == "p2p":
        level = levels[-1]
        return start + level.latency_s + size / level.bytes_per_s
    if kind == "all_to_all":
        return start + _pairwise(size, levels, dedup)
    options = {
        "ring": _ring,
        "tree": _tree,
        "halving-doubling": _halving,
        "hierarchical": _hierarchical,
    }
    if algorithm == "pairwise":
        raise InputError(
            f"algorithm 'pairwise': is for all_to_all, not {kind}; use ring, tree, halving-doubling or hierarchical"
        )
    if algorithm != "auto":
        return start + options[algorithm](kind, size, levels)
    names = ["ring", "hierarchical"] + (["tree"] if kind in ("all_reduce", "broadcast") else [])
    return start + least(*(options[name](kind, size, levels) for name in names))


def p2p(cluster: Cluster, size: float, distance: int) -> float:
    """One message between chips `distance` apart in rank order: over the innermost tier that holds both."""
    if size <= 0:
        return 0.0
    tiers = cluster.tiers
    tier = next((t for t in tiers if distance < t.size), tiers[-1])
    rate = tier.bytes_per_s.value * tier.efficiency.value
    if tier.topology == "mesh":
        rate /= max(tier.links, 1)  # one link to that one partner
    return (
        CONSTANTS["launch_s"][0]
        + tier.latency_s.value
        + size / (rate / (tier.oversubscription if tier.topology != "mesh" else 1.0))
    )
