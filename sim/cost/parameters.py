"""Parameters of a layer and of a pipeline rank, as a plan shards them."""

from __future__ import annotations

import functools
from typing import NamedTuple, Protocol

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


class Held(NamedTuple):
    """What all chunks of a pipeline rank hold together: layers of both kinds, embeddings, prediction depths, heads."""

    dense: int
    moe: int
    first: int
    depths: int
    last: int


@functools.lru_cache(maxsize=256)
def rank_params(model: ModelSpec, plan: Plan, padded_vocab: float, mtp: bool = True) -> tuple[tuple[float, float], ...]:
    """Weights on one chip of each pipeline rank: (replicated over data parallelism, expert weights)."""
    return tuple(
        held_params(
            Held(
                sum(chunk.dense for chunk in held),
                sum(chunk.moe for chunk in held),
                sum(chunk.is_first for chunk in held),
                sum(chunk.tail == 0 for chunk in held) if mtp else 0,
                sum(chunk.is_last for chunk in held),
            ),
            model,
            plan,
            padded_vocab,
        )
        for held in chunks_by_rank(model, plan, mtp)
    )


class Shards(Protocol):
    """What the weights on a chip hang on, beside the layers there: of a `Plan`, or of a search's candidate."""

    @property
    def tp(self) -> int: ...  # noqa: D102 (documented in Plan)
    @property
    def ep(self) -> int: ...  # noqa: D102
    @property
    def etp(self) -> int: ...  # noqa: D102
    @property
    def pp(self) -> int: ...  # noqa: D102
    @property
    def mtp_before_head(self) -> int: ...  # noqa: D102


def held_params(held: Held, model: ModelSpec, plan: Shards, padded_vocab: float) -> tuple[float, float]:
    """Weights on one chip of a rank that holds so much: (replicated over data parallelism, expert weights)."""
    dense = layer_params(model, "dense", plan.tp, plan.ep, plan.etp) if model.dense_ffn_layers else (0.0, 0.0)
    moe = layer_params(model, "moe", plan.tp, plan.ep, plan.etp) if model.experts else (0.0, 0.0)
    table, depths = padded_vocab * model.hidden / plan.tp, held.depths * model.mtp_modules
    base, expert = (held.dense * dense[i] + held.moe * moe[i] for i in (0, 1))
    base += held.first * (table + model.positions * model.hidden)
    base += held.last * (model.hidden + (0.0 if model.tied and plan.pp == 1 else table))
    if depths:
        one = moe if model.experts else dense
        base += depths * (one[0] + 2 * model.hidden**2)
        expert += depths * one[1]
        if plan.mtp_before_head:  # the depths' own embedding of the next tokens
            base += held.depths * table
    return base, expert
