"""One whole layer as operators: attention, then its feed-forward block."""

from __future__ import annotations

import functools

from sim.cost.operators import OperatorTrace, ParallelContext, Style, dense_ffn, norm
from sim.cost.operators_attention import gqa, mla
from sim.cost.operators_moe import moe_ffn
from sim.spec.model import ModelSpec


@functools.lru_cache(maxsize=512)  # facts of a machine move no operator, so a draw of them records none again
def record_layer(
    style: Style, ctx: ParallelContext, model: ModelSpec, kind: str, window: int = 0, indexer: bool = True
) -> OperatorTrace:
    """The operators of one whole layer: attention, then a dense or an expert feed-forward block. To be read only: every
    caller that asks for the same gets the same one.

    Args:
        kind: dense | moe.
        window: keys that a query may look back on (grouped-query attention; 0: all).
        indexer: whether this layer runs its own indexer or reuses the last choice.
    """
    trace = OperatorTrace(style)
    if model.attention == "mla":
        mla(trace, ctx, model, indexer)
    else:
        gqa(trace, ctx, model, window)
    if kind == "moe":
        moe_ffn(trace, ctx, model)
    else:
        dense_ffn(trace, ctx, model.hidden, model.ffn, model.gated_ffn, model.norm)
    for _ in range(model.norms_per_layer - 2):  # of what attention and feed-forward give, before it is added (Gemma)
        norm(trace, ctx, model.hidden, model.norm)
    return trace
