"""Parameters of a layer and of a pipeline rank, as a plan shards them."""

from __future__ import annotations

from sim.spec.model import ModelSpec
from sim.spec.plan import Plan


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
            attention += share * (
                q_in * model.index_heads * model.index_dim + C * (model.index_dim + model.index_heads)
            )
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


def rank_params(model: ModelSpec, plan: Plan, padded_vocab: float, mtp: bool = True) -> tuple[tuple[float, float], ...]:
    """Weights on one chip of each pipeline rank: (replicated over data parallelism, expert weights)."""
    layers, out = plan.chunk_layers(model.layers, model.mtp_depth if mtp else 0), []
    dense = layer_params(model, "dense", plan.tp, plan.ep, plan.etp) if model.dense_ffn_layers else (0.0, 0.0)
    moe = layer_params(model, "moe", plan.tp, plan.ep, plan.etp) if model.experts else (0.0, 0.0)
    table = padded_vocab * model.hidden / plan.tp
    last = len(layers) - 1
    starts = [sum(layers[:i]) for i in range(len(layers))]
    for rank in range(plan.pp):
        base = expert = 0.0
        for chunk in plan.chunks_of_rank(rank):
            n_dense = (
                max(0, min(layers[chunk], model.dense_ffn_layers - starts[chunk])) if model.experts else layers[chunk]
            )
            n_moe = layers[chunk] - n_dense
            base += n_dense * dense[0] + n_moe * moe[0]
            expert += n_dense * dense[1] + n_moe * moe[1]
            if chunk == 0:
                base += table + model.positions * model.hidden
            if chunk == last:
                base += model.hidden + (0.0 if model.tied and plan.pp == 1 else table)
                if model.mtp_modules and mtp:
                    one = moe if model.experts else dense
                    base += model.mtp_modules * (one[0] + 2 * model.hidden**2)
                    expert += model.mtp_modules * one[1]
        out.append((base, expert))
    return tuple(out)
