"""Parameters of a layer and of a pipeline rank, as a plan shards them."""

from __future__ import annotations

import functools

from minglm.weights import Weight, matmul_params
from sim.cost.chunks import chunks_by_rank
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan


@functools.lru_cache(maxsize=1024)
def layer_params(model: ModelSpec, kind: str, tp: int, ep: int, etp: int) -> tuple[float, float]:
    """(parameters replicated over data parallelism, expert parameters) of one layer on one chip.

    Counted are the matrices of `minglm.weights`, the latent norms and the layer's two norms. Biases, norms of single
    heads and the router's balance bias are left out: they are less than a ten-thousandth of a layer.

    kind: dense | moe. Whole on every tensor-parallel rank: norms, router, latent projections and indexer.
    """
    C = model.hidden
    base = 2.0 * C + sum(_on_chip(w, model, tp) for w in model.attention_weights())
    if model.attention == "mla" and model.index_topk:
        full_layers = min(1.0, (model.indexer_full_layers or model.layers) / model.layers)
        base += full_layers * sum(_on_chip(w, model, tp) for w in model.indexer_weights())
    if kind == "dense":
        return base + matmul_params(model.ffn_weights(model.ffn)) / tp, 0.0
    base += matmul_params(model.router_weights()) + matmul_params(model.ffn_weights(model.shared_width)) / tp
    return base, model.experts / ep * matmul_params(model.ffn_weights(model.moe_ffn)) / etp


def _on_chip(weight: Weight, model: ModelSpec, tp: int) -> float:
    """Values of an attention weight on one tensor-parallel rank."""
    if not weight.is_matrix and not weight.name.endswith("layernorm"):
        return 0.0
    if not weight.sharded:
        return float(weight.size)
    if weight.name in ("k_proj", "v_proj"):  # fewer heads than ranks: some hold the same one
        return weight.size * max(model.kv_heads / tp, 1.0) / model.kv_heads
    return weight.size / tp


@functools.lru_cache(maxsize=256)
def rank_params(model: ModelSpec, plan: Plan, padded_vocab: float, mtp: bool = True) -> tuple[tuple[float, float], ...]:
    """Weights on one chip of each pipeline rank: (replicated over data parallelism, expert weights)."""
    out = []
    dense = layer_params(model, "dense", plan.tp, plan.ep, plan.etp) if model.dense_ffn_layers else (0.0, 0.0)
    moe = layer_params(model, "moe", plan.tp, plan.ep, plan.etp) if model.experts else (0.0, 0.0)
    table = padded_vocab * model.hidden / plan.tp
    for held in chunks_by_rank(model, plan, mtp):
        base = expert = 0.0
        for chunk in held:
            base += chunk.dense * dense[0] + chunk.moe * moe[0]
            expert += chunk.dense * dense[1] + chunk.moe * moe[1]
            if chunk.is_first:
                base += table + model.positions * model.hidden
            if chunk.is_last:
                base += model.hidden + (0.0 if model.tied and plan.pp == 1 else table)
            if chunk.tail == 0 and model.mtp_modules and mtp:
                one = moe if model.experts else dense
                base += model.mtp_modules * (one[0] + 2 * model.hidden**2)
                expert += model.mtp_modules * one[1]
                if plan.mtp_before_head:  # the depths' own embedding of the next tokens
                    base += table
        out.append((base, expert))
    return tuple(out)
