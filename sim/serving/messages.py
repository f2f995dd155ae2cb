"""What the chips of an instance send each other in a layer: all-reduces of attention groups, messages of experts.

Each function gives seconds, `hybrid` (measured latencies, links with their efficiency) or at line rate alone.

Symbols: T query tokens of one attention group, C hidden, K experts chosen.
"""

from __future__ import annotations

from sim.cost import collectives, measured_network
from sim.cost.operators_moe import expected_places
from sim.serving.deployment import Deployment

TABLE_BYTES = 128 * 8 * 7168.0  # values in the message of a stack's ep_table: 128 tokens × top-8 × 7,168
MEASURED_CHIPS, MEASURED_VALUES = 8, 8 * 7168.0  # of DeepEP's measured groups, and sent for a token there
_TABLE_TIERS = {"nvlink", "infiniband", "ub"}


def shared_apart(d: Deployment) -> bool:
    """The shared expert lives on chips of its own, reached like a routed one (CloudMatrix-Infer)."""
    return bool(d.stack.get("shared_spread", 0.0)) and not d.tensor_experts


def copies_sent(d: Deployment) -> float:
    """Copies of a token that the all-to-all sends out."""
    return d.model.experts_per_token + (d.model.shared_experts if shared_apart(d) else 0)


def all_reduce(d: Deployment, T: float, hybrid: bool) -> float:
    """One all-reduce of [T, C] in an attention group: the faster of the collective and, inside one fast domain, of one
    shot (all read all, which no network between machines lets them)."""
    size = 2.0 * T * d.model.hidden
    if d.attention_tp == 1:
        return 0.0
    levels = collectives.place(d.cluster, d.attention_tp)
    n = d.attention_tp
    if not hybrid:
        return 2.0 * size * (n - 1) / n / max(level.tier.bytes_per_s.value for level in levels)
    collective_s = collectives.time("all_reduce", size, levels)
    if len(levels) > 1:
        return collective_s
    return min(collective_s, d.stack["one_shot_s"] + size * (n - 1) / levels[0].bytes_per_s)


def _line_rate(d: Deployment) -> float:
    levels = collectives.place(d.cluster, d.chips)
    return max(level.tier.bytes_per_s.value for level in levels)


def decode_all_to_all(d: Deployment, T: float, hybrid: bool) -> float:
    """Dispatch and combine of one layer, T tokens per attention group split over its chips."""
    m = d.model
    if d.tensor_experts or d.chips == 1:
        return 0.0
    values = T / d.attention_tp * copies_sent(d) * m.hidden
    sent = _sent_bytes(d)
    if not hybrid:
        return values * (sent + 2.0) * (1 - 1 / d.chips) / _line_rate(d)
    levels = collectives.place(d.cluster, d.chips)
    if len(levels) == 1 and d.stack.get("gather_tokens", 0.0):
        inside = _measured_inside(d, values, sent)
        return _gathered(d, T) if inside is None else min(inside, _gathered(d, T))
    table = d.stack.ep_latency(d.chips)
    if table and {level.tier.name for level in levels} <= _TABLE_TIERS:
        floor, x = d.stack["ep_floor_s"], values / TABLE_BYTES
        return sum(floor + max(t - floor, 0.0) * x * (sent if i == 0 else 1.0) for i, t in enumerate(table))
    dedup = _dedup(d, levels)
    return sum(collectives.time("all_to_all", values * b, levels, dedup=dedup) for b in (sent, 2.0))


def _sent_bytes(d: Deployment) -> float:
    """Bytes of a value on its way to an expert: activations go out in the precision that experts multiply in."""
    return 2.0 if d.format.expert_compute == "bf16" else 1.0


def _measured_inside(d: Deployment, values: float, sent: float) -> float | None:
    """Dispatch and combine inside one fast domain, `values` sent by each chip, as DeepEP's low-latency kernels were
    measured on 8 of these chips (data/measured/deepep): what exceeds a single token's time grows with the bytes that
    leave a chip. None where they were not."""
    chip = d.cluster.chip.tables
    tokens = max(values / MEASURED_VALUES, 1.0)
    share = (1.0 - 1.0 / d.chips) / (1.0 - 1.0 / MEASURED_CHIPS)
    seconds = 0.0
    for half, width in (("dispatch", sent), ("combine", 1.0)):
        one, all_s = (measured_network.deepep_s(chip, half, 1, t, "low_latency") for t in (1.0, tokens))
        if one is None or all_s is None:
            return None
        seconds += one + (all_s - one) * share * width
    return seconds


def _gathered(d: Deployment, T: float) -> float:
    """Dispatch and combine inside one fast domain as an all-gather and a reduce-scatter of all tokens in bf16, each in
    one shot: what engines run in a node where nobody chose a kernel for expert parallelism."""
    level = collectives.place(d.cluster, d.chips)[0]
    size = 2.0 * T * d.groups * d.model.hidden * (1.0 - 1.0 / d.chips)
    return 2.0 * (d.stack["one_shot_s"] + size / level.bytes_per_s)


def _dedup(d: Deployment, levels) -> float:
    """Copies of a token that cross nodes when a node gets one copy / copies without that."""
    inside = collectives.members_inside(levels)
    nodes = max(1.0, d.chips / inside)
    if nodes <= 1:
        return 1.0
    chosen = d.model.experts_per_token
    limit = d.stack.get("prefill_node_limit", 4.0) or nodes
    remote = expected_places(nodes, chosen, min(limit, nodes)) * (nodes - 1) / nodes
    return min(1.0, remote / (chosen * (nodes - 1) / nodes))


def prefill_all_to_all(d: Deployment, T: float, hybrid: bool) -> float:
    """Dispatch and combine of one layer while prefilling, by the kernels made for bandwidth."""
    m = d.model
    if d.tensor_experts or d.chips == 1:
        return 0.0
    tokens = T / d.attention_tp
    sent = _sent_bytes(d)
    levels = collectives.place(d.cluster, d.chips)
    nodes = max(1.0, d.chips / collectives.members_inside(levels))
    rate = d.stack.get("prefill_ep_bytes_per_s", 0.0) if hybrid else _line_rate(d)
    names = {level.tier.name for level in levels}
    if rate and names <= _TABLE_TIERS and (nodes > 1 or "ub" in names):
        limit = d.stack.get("prefill_node_limit", 4.0)
        copies = (
            expected_places(nodes, m.experts_per_token, min(limit, nodes))
            if limit
            else m.experts_per_token * (1 - 1 / d.chips)
        )
        return tokens * copies * m.hidden * (sent + 2.0) / rate
    values = tokens * m.experts_per_token * m.hidden
    if not hybrid:
        return values * (sent + 2.0) * (1 - 1 / d.chips) / _line_rate(d)
    return sum(collectives.time("all_to_all", values * b, levels, dedup=_dedup(d, levels)) for b in (sent, 2.0))
