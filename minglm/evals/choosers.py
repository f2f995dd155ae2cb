"""Rules that choose keys without reading the query: what an indexer's choice has to be better than.

Each takes the dense attention of one layer, averaged over its heads, and the indexer's scores, and gives k keys to
each query. Only `recent`, `first and recent` and the heavy hitters (arXiv 2306.14048) could be used in earnest; `by
distance` and `mean query` are given all of the passage beforehand, and are what an indexer would be worth that had
learnt where attention looks on the average but nothing of the query.

Shapes: T positions of one passage, k chosen keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

SINKS = 4  # first positions that "first and recent" always keeps
RULES = ("recent", "first and recent", "heavy hitters", "recent and heavy", "by distance", "mean query")


def top(scores: Tensor, k: int) -> Tensor:
    """(T, S) bool, True at the k largest of each row."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(k, -1).indices, True)


def by_rule(attention: Tensor, scores: Tensor, mask: Tensor, k: int) -> dict[str, Tensor]:
    """Rule → (T, T) bool, the keys that each query reads; only queries that see at least k have k of them.

    Args:
        attention: (T, T), rows sum to one. scores: (T, T) of the indexer, −∞ in the future. mask: True at the past.
    """
    T = len(mask)
    place, query = torch.arange(T), torch.arange(T)[:, None]
    age = (query - place).clamp(min=0)
    received = attention.cumsum(0) - attention  # by earlier queries
    seen = scores.masked_fill(~mask, 0.0)
    distance = torch.zeros(T).index_add_(0, age[mask], seen[mask]) / torch.bincount(age[mask], minlength=T)
    each = {
        "recent": -age.float(),
        "first and recent": torch.where(place < SINKS, 1.0, -age.float()),
        "heavy hitters": received,
        "recent and heavy": torch.where(age < k // 2, 2.0 * T, received),
        "by distance": distance[age],
        "mean query": (seen.sum(0) / mask.sum(0)).expand(T, T),
    }
    return {name: top(value.masked_fill(~mask, -torch.inf), k) & mask for name, value in each.items()}
