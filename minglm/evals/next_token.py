"""How well a model predicts unseen text, beside the floor of the language and n-gram tables of its own training text.

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from minglm.data.shards import IGNORE, Batch
from minglm.data.tiny_world.grammar import KINDS
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.evals.ngram import Quality, Trigram


@torch.no_grad()
def losses(model, loader, batches: int, mode: str = "sparse") -> tuple[torch.Tensor, torch.Tensor]:
    """Loss in nats of each target and whether the likeliest token is the right one, over `batches` batches: (N,), (N,).

    N counts the targets, in the order of the rows.
    """
    nats, hits = [], []
    for step in range(batches):
        tokens, targets, start = loader.batch(step)
        logits = model(tokens, mode=mode, doc_start=start).logits
        counted = targets != IGNORE
        picked, wanted = logits[counted].float(), targets[counted]
        nats.append(torch.nn.functional.cross_entropy(picked, wanted, reduction="none"))
        hits.append(picked.argmax(-1) == wanted)
    return torch.cat(nats), torch.cat(hits)


def against_floor(model, loader: TinyWorldLoader, batches: int, mode: str = "sparse") -> dict[str, dict[str, float]]:
    """Loss, floor and their difference on validation rows, for all tokens and for each kind of `KINDS`.

    Keys `loss`, `floor`, `above` in nats a token, `share` of the tokens.
    """
    nats, _ = losses(model, loader, batches, mode)
    known = [loader.floor(step) for step in range(batches)]
    kinds = torch.cat([f.kinds[f.kinds >= 0] for f in known])
    floor = torch.cat([f.nats[f.kinds >= 0] for f in known])
    out = {}
    for name, which in [("all", kinds >= 0), *((k, kinds == i) for i, k in enumerate(KINDS))]:
        if which.any():
            loss, best = float(nats[which].mean()), float(floor[which].mean())
            out[name] = {"loss": loss, "floor": best, "above": loss - best, "share": float(which.float().mean())}
    return out


def against_counts(model, shown: Iterable[Batch], valid, batches: int, mode: str = "sparse") -> dict[str, Any]:
    """The model beside n-gram tables counted on the batches `shown` in training, on `batches` of unseen text."""
    nats, hits = losses(model, valid, batches, mode)
    table = Trigram(shown, model.config.vocab_size)
    counted = table.quality(valid.batch(i) for i in range(batches))
    own = Quality(float(nats.mean()), float(hits.float().mean()), len(nats))
    return {name: vars(q) for name, q in {"model": own, **counted}.items()}
