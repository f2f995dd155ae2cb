"""The expert layer on one chip: router, permutation, all-to-all, grouped matmuls, shared expert; and the optimiser.

An expert-parallel group of `ep` chips holds E/ep experts each; `etp` chips share the width of every expert. A token goes
to K experts, so each chip sends T·K rows and, when balanced, receives as many. With node-limited routing and one copy
per node (DeepSeek-V3 §3.2.2) a token crosses the network at most `node_limited` times and is copied on inside the node.

Sources: Megatron-Core MoE (arXiv 2504.14960 for folded expert groups), DeepSeek-V3 (arXiv 2412.19437), Muon (Jordan 2024,
Newton–Schulz with five steps).
"""
from __future__ import annotations

from sim.operators import ACCUMULATE, WIDTH, Op, Share, Tape, activation, enter, leave, norm, residual


def expected_nodes(nodes: float, chosen: float, limit: float) -> float:
    """Distinct nodes that one token's `chosen` experts lie on, experts spread evenly over `nodes`, at most `limit`."""
    if nodes <= 1:
        return 1.0
    distinct = nodes * (1.0 - (1.0 - 1.0 / nodes) ** chosen)
    return min(distinct, limit) if limit else distinct


def moe_ffn(tape: Tape, share: Share, model) -> None:
    """Router, dispatch, routed experts, combine, shared experts, with the block's norm and residual."""
    style, C, E, K = tape.style, model.hidden, model.experts, model.experts_per_token
    local = share.tokens / share.tp if share.sp or share.tp > 1 else share.tokens   # rows this chip routes
    if not share.sp and share.tp > 1 and share.etp > 1:
        local = share.tokens                     # without sequence parallelism every TP rank routes the same rows
    norm(tape, share, C)
    tape.linear("router", "router", local, C, E, low=False, keep_input=share.tokens_sp * C * WIDTH)
    gate = local * E * 4.0
    eager = style.fusion == "eager"
    tape.memory("routing", style.router_passes * gate, style.router_passes * gate, group="router",
                kernels=20 if eager else 10, backward_kernels=12 if eager else 6, keep=2 * gate)
    rows = local * K * (share.etp if share.sp or share.etp == 1 else 1)
    rows_worst = rows * style.imbalance
    row = C * WIDTH
    # permute to expert order before sending and again after receiving; un-permute on the way back with gates applied
    tape.memory("permute", local * row + local * K * row + 2 * rows_worst * row, local * K * row * 2 + 2 * rows_worst * row,
                group="permutation", kernels=4, keep=0.0)
    nodes = max(share.nodes, 1.0)
    dedup = 1.0
    if style.dedup and nodes > 1:
        limit = style.node_limited
        if model.groups_per_token and model.router_groups > 1:     # groups lie on whole nodes, or several on one
            limit = min(limit or nodes, model.groups_per_token * max(1.0, nodes / model.router_groups))
        dedup = expected_nodes(nodes, K, limit) / K
    if share.ep > 1:
        sent = local * K * row * style.imbalance
        for name, phase in (("dispatch", "forward"), ("combine", "forward"), ("combine", "backward_input"), ("dispatch", "backward_input")):
            tape.message(f"ep.{name}", "all_to_all", sent, "ep", phase, "schedule", dedup)
    if share.etp > 1:
        size = rows * row
        for kind, phase in (("all_gather", "forward"), ("reduce_scatter", "forward"), ("all_gather", "backward_input"),
                            ("reduce_scatter", "backward_input")):
            tape.message("etp", kind, size, "etp", phase)
    experts = E / share.ep
    each, width = rows_worst / experts, model.moe_ffn / share.etp
    gated = model.gated_ffn
    tape.linear("experts up", "expert", each, C, width * (2 if gated else 1), batch=experts, loop=style.grouped == "loop")
    activation(tape, rows_worst, width, gated)
    tape.linear("experts down", "expert", each, width, C, batch=experts, loop=style.grouped == "loop")
    tape.memory("unpermute", 2 * rows_worst * row + local * K * row + local * row, rows_worst * row + local * K * row * 2 + local * row,
                group="permutation", kernels=4, keep=local * K * row)
    if model.shared_width:
        ffn = model.shared_width
        enter(tape, share, C)
        tape.linear("shared up", "linear", share.tokens, C, ffn * (2 if gated else 1) / share.tp, keep_input=0.0)
        activation(tape, share.tokens, ffn / share.tp, gated)
        tape.linear("shared down", "linear", share.tokens, ffn / share.tp, C)
        leave(tape, share, C)
    residual(tape, share, C)


# ------------------------------------------------------------------ parameters of one rank, optimiser

def layer_params(model, kind: str, tp: int, ep: int, etp: int) -> tuple[float, float]:
    """(parameters replicated over data parallelism, expert parameters) of one layer on one chip.

    kind: dense | moe. Norm weights and the router are whole on every tensor-parallel rank.
    """
    C = model.hidden
    if model.attention == "mla":
        H, R = model.heads, model.kv_lora
        down = C * model.q_lora + C * (R + model.rope)
        q_in = model.q_lora or C
        up = q_in * H * (model.nope + model.rope) + R * H * (model.nope + model.v_dim) + H * model.v_dim * C
        attention = down + up / tp + (model.q_lora or 0) + R
        if model.index_topk:
            share = min(1.0, (model.indexer_full_layers or model.layers) / model.layers)
            attention += share * (q_in * model.index_heads * model.index_dim + C * (model.index_dim + model.index_heads))
    else:
        D = model.head_dim
        kv = max(model.kv_heads / tp, 1.0) * tp
        attention = (C * (model.heads + 2 * kv) * D + model.heads * D * C) / tp
    gate = 3 if model.gated_ffn else 2
    base = attention + 2 * C
    if kind == "dense":
        return base + gate * C * model.ffn / tp, 0.0
    base += C * model.experts + gate * C * model.shared_width / tp
    return base, model.experts / ep * gate * C * model.moe_ffn / etp


def optimizer_ops(params: float, kind: str, model, tp: int, shards: float, grad_bytes: int = ACCUMULATE) -> list[Op]:
    """One optimiser step over `params` weights of this chip (already divided by the ZeRO shards).

    Adam reads and writes the fp32 weight and both moments, reads the gradient twice (norm, step) and writes the bf16
    weight. Muon keeps one moment and adds five Newton–Schulz iterations: for an r×c matrix (r ≤ c) 2·(2·r²c + r³) FLOPs
    each; without the shapes at hand every matrix is taken as hidden × (its count) with r = hidden/tp.
    """
    if kind == "muon":
        r = model.hidden / tp
        flops = 5 * 2 * (2 * r * params + r * params)
        return [Op("muon", "optimizer", "memory", 0.0, params * (8 + 8 + 2 * grad_bytes + WIDTH + 8), kernels=8),
                Op("newton-schulz", "optimizer", "matmul", flops, 5 * 6 * params * WIDTH, r, max(params / r, 1.0), r,
                   kernels=15 * model.layers)]
    size = params * (8 + 16 + 2 * grad_bytes + WIDTH)
    return [Op("adam", "optimizer", "memory", 0.0, size, kernels=8)]
