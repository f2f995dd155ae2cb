"""Read a prompt into a cache, in pieces that fit in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minglm.model.cache import LatentCache
from minglm.model.model import Model


@torch.inference_mode()
def prefill(
    model: Model, cache: LatentCache, rows: Sequence[Sequence[int]], mode: str = "sparse"
) -> tuple[Tensor, Tensor]:
    """Run token lists of any lengths through the model, appending to the cache, padded on the right: a query sees
    nothing after itself, so only what is written past a row's end is meaningless, and decoding overwrites it.

    Returns logits (B, V) of what follows each row, and the hidden states (B, T, C) of all positions.
    """
    longest = max(map(len, rows))
    device = model.embed_tokens.weight.device
    tokens = torch.tensor([[*r, *[0] * (longest - len(r))] for r in rows], device=device)
    out = model(tokens, cache=cache, mode=mode, last_only=True)
    if all(len(r) == longest for r in rows):
        return out.logits[:, -1], out.hidden
    last = out.hidden[torch.arange(len(rows), device=device), torch.tensor([len(r) - 1 for r in rows], device=device)]
    return model.lm_head(model.norm(last)), out.hidden
