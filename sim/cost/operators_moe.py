"""The expert layer on one chip: router, permutation, all-to-all, grouped matmuls, shared expert; and the optimiser.

An expert-parallel group of `ep` chips holds E/ep experts each; `etp` chips share the width of every expert. A token
goes to K experts, so each chip sends T·K rows and, when balanced, receives as many. With node-limited routing and one
copy per node (DeepSeek-V3 §3.2.2) a token crosses the network at most `node_limited` times and is copied on inside the
node.

Sources: Megatron-Core MoE (arXiv 2504.14960 for folded expert groups), DeepSeek-V3 (arXiv 2412.19437), Muon (Jordan
2024, Newton–Schulz with five steps).
"""

from __future__ import annotations

from sim.cost.operators import (
    WIDTH,
    OperatorTrace,
    ParallelContext,
    activation,
    norm,
    residual,
    sequence_parallel_gather,
    sequence_parallel_scatter,
)
from sim.spec.model import ModelSpec

# Bytes a value of the experts' output, forward and backward, where experts have biases: Megatron-Core adds b·p expert
# by expert in fp32, puts the pieces together and casts back (TEGroupedMLP; counted by hand, no measurement).
BIAS_BYTES = (28.0, 36.0)
# Operators that make the counts for an all-to-all out of a routing map: sums by expert, by chip and by own expert, and
# four copies to the host (Megatron-Core 0.12, token_dispatcher.py: preprocess, _maybe_dtoh_and_synchronize; by hand).
COUNT_OPERATORS = 12.0
COUNT_BYTES, GATE_BYTES = 8.0, 4.0  # an int64 and an fp32


def expected_places(places: float, chosen: float, limit: float = 0.0) -> float:
    """Distinct nodes (or chips) that one token's `chosen` experts lie on, experts spread evenly over `places`, at most
    `limit` of them."""
    if places <= 1:
        return 1.0
    distinct = places * (1.0 - (1.0 - 1.0 / places) ** chosen)
    return min(distinct, limit) if limit else distinct


def _counts_and_gates(trace: OperatorTrace, ctx: ParallelContext, local: float, experts: int, chosen: int) -> None:
    """Every chip of the group learns what each sends to each expert; gates follow their rows, and their gradients."""
    trace.memory("token counts", local * experts, 0.0, group="router", kernels=COUNT_OPERATORS)
    trace.message("ep.counts", "all_gather", COUNT_BYTES * experts * ctx.ep, "ep")
    for phase in ("forward", "backward_input"):
        trace.message("ep.gates", "all_to_all", GATE_BYTES * local * chosen, "ep", phase, "schedule")


def moe_ffn(trace: OperatorTrace, ctx: ParallelContext, model: ModelSpec) -> None:
    """Router, dispatch, routed experts, combine, shared experts, with the block's norm and residual."""
    style, C, E, K = trace.style, model.hidden, model.experts, model.experts_per_token
    local = ctx.tokens / ctx.tp if ctx.sp or ctx.tp > 1 else ctx.tokens  # rows this chip routes
    if not ctx.sp and ctx.tp > 1 and ctx.etp > 1:
        local = ctx.tokens  # without sequence parallelism every TP rank routes the same rows
    norm(trace, ctx, C)
    trace.linear("router", "router", local, C, E, low=False, saved_input=ctx.tokens_sp * C * WIDTH)
    gate = local * E * 4.0
    eager = style.fusion == "eager" or not style.router_fused
    trace.memory(
        "routing",
        style.router_passes * gate,
        style.router_passes * gate,
        group="router",
        kernels=20 if eager else 10,
        backward_kernels=12 if eager else 6,
        save=2 * gate,
    )
    rows = local * K * (ctx.etp if ctx.sp or ctx.etp == 1 else 1)
    rows_worst = rows * style.imbalance
    row = C * WIDTH
    # permute to expert order before sending and again after receiving; un-permute on the way back with gates applied
    trace.memory(
        "permute",
        local * row + local * K * row + 2 * rows_worst * row,
        local * K * row * 2 + 2 * rows_worst * row,
        group="permutation",
        kernels=4,
        save=0.0,
    )
    nodes = max(ctx.nodes, 1.0)
    copies, dedup = float(K), 1.0
    if style.dedup and ctx.ep > 1:
        limit = style.node_limited
        if model.groups_per_token and model.router_groups > 1:  # groups lie on whole nodes, or several on one
            limit = min(limit or nodes, model.groups_per_token * max(1.0, nodes / model.router_groups))
        reach = min(limit or nodes, nodes) / nodes * ctx.ep
        copies = min(expected_places(reach, K), float(K))  # one a chip, not one an expert
        dedup = min(expected_places(nodes, K, limit), copies) / copies if nodes > 1 else 1.0
    if ctx.ep > 1:
        if style.counts_apart and not style.dedup:
            _counts_and_gates(trace, ctx, local, E, K)
        sent = local * copies * row * style.imbalance
        for name, phase in (
            ("dispatch", "forward"),
            ("combine", "forward"),
            ("combine", "backward_input"),
            ("dispatch", "backward_input"),
        ):
            trace.message(f"ep.{name}", "all_to_all", sent, "ep", phase, "schedule", dedup)
    if ctx.etp > 1:
        size = rows * row
        for kind, phase in (
            ("all_gather", "forward"),
            ("reduce_scatter", "forward"),
            ("all_gather", "backward_input"),
            ("reduce_scatter", "backward_input"),
        ):
            trace.message("etp", kind, size, "etp", phase)
    experts = E / ctx.ep
    each, width = rows_worst / experts, model.moe_ffn / ctx.etp
    gated = model.gated_ffn
    trace.linear(
        "experts up", "expert", each, C, width * (2 if gated else 1), batch=experts, loop=style.grouped == "loop"
    )
    if style.grouped != "joined":
        activation(trace, rows_worst, width, gated, name="expert activation")
    trace.linear("experts down", "expert", each, width, C, batch=experts, loop=style.grouped == "loop")
    trace.memory(
        "unpermute",
        2 * rows_worst * row + local * K * row + local * row,
        rows_worst * row + local * K * row * 2 + local * row,
        group="permutation",
        kernels=4,
        save=local * K * row,
    )
    if model.ffn_bias and style.grouped != "joined":
        values = rows_worst * C
        trace.memory("expert bias", BIAS_BYTES[0] * values, BIAS_BYTES[1] * values, group="permutation", kernels=2)
    if model.shared_width:
        ffn = model.shared_width
        sequence_parallel_gather(trace, ctx, C)
        trace.linear("shared up", "linear", ctx.tokens, C, ffn * (2 if gated else 1) / ctx.tp, saved_input=0.0)
        activation(trace, ctx.tokens, ffn / ctx.tp, gated, name="shared activation")
        trace.linear("shared down", "linear", ctx.tokens, ffn / ctx.tp, C)
        sequence_parallel_scatter(trace, ctx, C)
    residual(trace, ctx, C)
