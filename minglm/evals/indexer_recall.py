"""Which positions the indexer chose, against where attention looks: the picture behind DeepSeek Sparse Attention.

`captured` is the share of the (dense, head-averaged) attention that falls on a query's k keys. Compared are the
indexer's own choice, the k best possible keys (an oracle that has seen the attention), and rules that read no query
(`minglm.evals.choosers`), the k most recent keys among them.

Shapes: T positions of one passage, k chosen keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minglm.evals.choosers import by_rule, top
from minglm.model.attention import MLA
from minglm.model.indexer import causal_mask, index_scores
from minglm.model.layers import apply_rope


@torch.no_grad()
def indexer_recall(model, tokens: Tensor, keep_layer: int | None = None, mode: str = "sparse") -> dict:
    """Run one passage and compare choice and attention in every layer that runs an indexer.

    Args:
        tokens: (T,) int64, with T > index_topk.
        keep_layer: the layer whose maps are returned; None takes the middle one.
        mode: "sparse", or "dense" to judge several indexers by the very same attention.

    Returns: `layers` (per layer: indexer, recent, best, and `rules` by name: mean share of attention captured by
        queries that see more than k keys), and `attention`, `chosen`: (T, T) lists of the kept layer.
    """
    seen_by: dict[int, Tensor] = {}
    rope: list[Tensor] = []

    def remember(module: MLA, args: tuple) -> None:
        seen_by[module.layer], ctx, *_ = args
        rope[:] = [ctx.rope]

    blocks = [layer.self_attn for layer in model.layers if layer.self_attn.indexer is not None]
    handles = [block.register_forward_pre_hook(remember) for block in blocks]
    try:
        model(tokens[None], mode=mode)
    finally:
        for handle in handles:
            handle.remove()
    k, T = model.config.index_topk, tokens.shape[0]
    kept = blocks[len(blocks) // 2].layer if keep_layer is None else keep_layer
    out = {"index_topk": k, "positions": T, "layer": kept, "layers": []}
    mask = causal_mask(T, 0, T, None, tokens.device)
    late = torch.arange(T) >= k  # queries that have to choose

    def share(attention: Tensor, which: Tensor) -> float:
        return float((attention * which)[late].sum(-1).mean())

    for block in blocks:
        attention, scores = _attention_and_scores(block, seen_by[block.layer], rope[0], mask)
        chosen = top(scores, k) & mask
        rules = {name: share(attention, which) for name, which in by_rule(attention, scores, mask, k).items()}
        out["layers"].append(
            {
                "layer": block.layer,
                "indexer": share(attention, chosen),
                "recent": rules["recent"],
                "best": share(attention, top(attention, k)),
                "rules": rules,
            }
        )
        if block.layer == kept:
            out["attention"] = [[round(float(v), 5) for v in row] for row in attention]
            out["chosen"] = chosen.int().tolist()
    return out


def _attention_and_scores(block: MLA, x: Tensor, rope: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Head-averaged dense attention (T, T) and masked indexer scores (T, T) of one layer; x (1, T, C) is its input."""
    q_latent = block.q_a_layernorm(block.q_a_proj(x))
    q_nope, q_rope = (
        block.q_b_proj(q_latent)
        .unflatten(-1, (block.num_heads, -1))
        .split((block.qk_nope_head_dim, block.qk_rope_head_dim), -1)
    )
    kv, k_rope = block.kv_a_proj_with_mqa(x).split((block.kv_lora_rank, block.qk_rope_head_dim), -1)
    latent = torch.cat((block.kv_a_layernorm(kv), apply_rope(k_rope, rope)), -1)
    keys, _ = block.expand(latent)
    q = torch.cat((q_nope, apply_rope(q_rope, rope)), -1)
    logits = torch.einsum("bthd,bshd->bhts", q, keys)[0] * block.scale
    attention = logits.masked_fill(~mask, -torch.inf).softmax(-1).mean(0)
    assert block.indexer is not None, "only layers that run an indexer are compared"
    q_i, k_i, w_i = block.indexer(x, q_latent, rope)
    return attention, index_scores(q_i[0], k_i[0], w_i[0]).masked_fill(~mask, -torch.inf)
