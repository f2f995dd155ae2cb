"""Experiments of the lightning-indexer notebook: other values of k, a leak made on purpose, and who depends on whom.

Shapes: B batch, T query positions, S key positions, k chosen keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor

from minglm.evals.indexer_recall import indexer_recall
from minglm.model import attention
from minglm.model.model import Model


def with_topk(model: Model, k: int) -> Model:
    """The same weights reading `k` keys per query."""
    other = Model(dataclasses.replace(model.config, index_topk=k)).eval()
    other.load_state_dict(model.state_dict())
    return other


def captured(model: Model, passages: list[Tensor]) -> list[dict]:
    """`indexer_recall`'s shares per layer, averaged over passages, with what k keys drawn at random would capture.

    `rule` is what the best of the rules captures that read no query (`minglm.evals.choosers`; one for all layers).

    All ways to choose are judged by the same dense attention. A random choice of k among v visible keys captures k/v of
    the attention on average, whatever it looks like.
    """
    maps = [indexer_recall(model, tokens, mode="dense")["layers"] for tokens in passages]
    names = maps[0][0]["rules"]
    best = max(names, key=lambda name: sum(row["rules"][name] for rows in maps for row in rows))
    k = model.config.index_topk
    visible = torch.arange(k, len(passages[0])) + 1
    random = float((k / visible).mean())
    return [
        {
            "layer": rows[0]["layer"],
            "random": random,
            "rule": sum(row["rules"][best] for row in rows) / len(rows),
            **{name: sum(row[name] for row in rows) / len(rows) for name in ("recent", "indexer", "best")},
        }
        for rows in zip(*maps, strict=True)
    ]


@contextlib.contextmanager
def choosing_with(select_topk: Callable) -> Iterator[None]:
    """Let every attention layer choose its keys with another function than `minglm.model.indexer.select_topk`."""
    with mock.patch.object(attention, "select_topk", select_topk):
        yield


@torch.no_grad()
def change_of_the_past(model: Model, tokens: Tensor, place: int, seed: int = 0) -> Tensor:
    """Replace every token from `place` on; how much do the logits of each position change? tokens (1, T) → (T,).

    A causal model gives 0 (or rounding) before `place`: those positions cannot know what comes after them.
    """
    other = tokens.clone()
    generator = torch.Generator().manual_seed(seed)
    other[:, place:] = torch.randint(model.config.vocab_size, other[:, place:].shape, generator=generator)
    difference = model(tokens, mode="sparse").logits - model(other, mode="sparse").logits
    return difference.abs().amax(-1)[0]
