"""Which heads look back: attention to the token before, attention to what followed the same token earlier, and what is
lost without them.

An induction head answers "what came after this token last time?" (Olsson et al. 2022, arXiv 2209.11895). Alone it does
not know which place that is: an earlier layer has to tell every place which token stands before it.

Shapes: B batch, T positions, L layers, H heads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minglm.data.shards import Batch
from minglm.model.attention import MLA
from minglm.model.model import Model

_LOOK_BACK = 1  # an induction head reads the place one after the earlier key


@torch.no_grad()
def attention(model: Model, tokens: Tensor) -> Tensor:
    """Dense attention of every head: tokens (B, T) → (L, B, H, T, T), rows are queries."""
    maps: list[Tensor] = []

    def remember(block: MLA, args: tuple) -> None:
        x, ctx, *_ = args
        q, latent = block.project(x, ctx)
        scores = torch.einsum("bthd,bshd->bhts", q.joined, block.expand(latent)[0]) * block.scale
        hidden = ~torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        maps.append(scores.masked_fill(hidden, -torch.inf).softmax(-1))

    handles = [layer.self_attn.register_forward_pre_hook(remember) for layer in model.layers]
    try:
        model(tokens, mode="dense")
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(maps)


@dataclass(frozen=True)
class HeadScores:
    """How much of its attention each head gives, on average, (L, H): `previous` to the token before, from all places
    but the first; `induction`, at keys seen before, to the places after the same key; `chance` is the latter for even
    attention to all visible places, a number."""

    previous: Tensor
    induction: Tensor
    chance: float


def head_scores(model: Model, batch: Batch) -> HeadScores:
    """Scores of all heads on a batch of rows."""
    maps = attention(model, batch.tokens)  # (L, B, H, T, T)
    T = batch.tokens.shape[1]
    previous = maps.diagonal(-1, -2, -1).mean((1, -1))
    same = batch.tokens[:, :, None] == batch.tokens[:, None, :]  # (B, query, key)
    after = torch.zeros_like(same)
    after[:, :, _LOOK_BACK:] = same[:, :, :-_LOOK_BACK]
    after &= torch.ones(T, T, dtype=torch.bool).tril()  # the query's own token does not stand before itself
    asks = batch.targets >= 0
    given = (maps * after[None, :, None]).sum(-1)  # (L, B, H, T)
    induction = (given * asks[None, :, None]).sum((1, -1)) / asks.sum()
    even = after.sum(-1) / torch.arange(1, T + 1)
    return HeadScores(previous, induction, float(even[asks].mean()))


@contextlib.contextmanager
def without_heads(model: Model, heads: list[tuple[int, int]]) -> Iterator[None]:
    """Inside, each of the heads (layer, head) puts out its mean over all places of the batch, the same everywhere.

    So it can tell no place anything, and the layers after it still get what they are used to; zeros would not be that.
    """
    width = model.config.v_head_dim

    def flatten(layer: int):
        def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            out = args[0].clone()  # (B, T, H·Dv)
            for _, head in (place for place in heads if place[0] == layer):
                part = out[..., head * width : (head + 1) * width]
                part[:] = part.mean((0, 1))
            return (out,)

        return hook

    handles = [
        model.layers[layer].self_attn.o_proj.register_forward_pre_hook(flatten(layer))
        for layer in {x for x, _ in heads}
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def strongest(scores: Tensor, count: int) -> list[tuple[int, int]]:
    """The `count` (layer, head) with the largest scores (L, H), largest first."""
    places = scores.flatten().topk(count).indices.tolist()
    return [(place // scores.shape[1], place % scores.shape[1]) for place in places]
