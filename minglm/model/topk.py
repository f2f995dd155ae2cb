"""The k largest scores of each row, as a function of the scores alone: equal ones go to the lowest position.

torch leaves the order of equal values open, and so it may differ between devices, sizes and versions. Here one more
than k is asked for; where the k-th and the next are equal, torch's own choice was arbitrary and the row is settled by
position. Training, prefill and decoding all settle by the same function, so they choose the same ones.

Shapes: n rows, S scores in each, k chosen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k + 1 largest of each row in falling order, the first k of them settled by position: (n, S) with S > k →
    values and positions (int64), (n, k + 1) each. -inf stands for what must not be chosen."""
    values, index = torch.topk(scores, k + 1, -1)
    _settle_ties(scores, values, index)
    return values, index


def topk_lowest(scores: Tensor, k: int) -> Tensor:
    """The k largest of each row, (n, S) → (n, k) int64 in any order; a place that only -inf could fill gets -1.

    Long rows are searched in passes (`places_of_largest`).
    """
    S = scores.shape[1]
    if S <= k:
        values, index = scores.topk(S, -1)
        return index.masked_fill_(values == -torch.inf, -1)
    if fold_factor(S, k + 1) > 1:
        places = places_of_largest(scores, k + 1)
        values, index = scores.gather(1, places).sort(-1, descending=True)
        index = places.gather(1, index)
        _settle_ties(scores, values, index)
    else:
        values, index = largest(scores, k)
    return index[:, :k].masked_fill_(values[:, :k] == -torch.inf, -1)


def _settle_ties(scores: Tensor, values: Tensor, index: Tensor) -> None:
    """Of the k + 1 best in order, make the first k the right ones, in place: where the last two are equal, whichever
    torch put first is replaced by the lowest position. scores (n, S), values and index (n, k + 1)."""
    k = index.shape[1] - 1
    edges = values[:, k - 1]
    tied = ((edges == values[:, k]) & (edges > -torch.inf)).nonzero().squeeze(-1)
    if not tied.numel():
        return
    edges = edges[tied, None]
    above = (values[tied, :k] > edges).sum(-1)  # these stay, in front
    row, place = (scores[tied] == edges).nonzero().unbind(1)  # all that are equal to the last, in order
    first = torch.searchsorted(row, torch.arange(len(tied), device=row.device))
    nth = torch.arange(len(row), device=row.device) - first[row]  # its number among its row's
    settled = index[tied, :k]
    settled[torch.arange(k, device=row.device) >= above[:, None]] = place[nth < (k - above)[row]]
    index[tied, :k] = settled


def fold_factor(S: int, m: int) -> int:
    """Looking for m values in S/f folded maxima and then in f·m candidates costs least at f = √(S/m)."""
    return 1 << round(math.log2(S / m) / 2) if S >= 4 * m else 1


def places_of_largest(scores: Tensor, m: int) -> Tensor:
    """Positions of m largest values of each row, (n, S) → (n, m) in any order; which of equal ones is left open.

    The row is folded; what remains to be searched, its maxima and then the candidates, is shorter and is searched in
    the same way.
    """
    fold = fold_factor(scores.shape[1], m)
    if fold == 1:
        return scores.topk(m, -1, sorted=False).indices
    places = _candidates(scores, m, fold)
    return places.gather(1, places_of_largest(scores.gather(1, places), m))


def _candidates(scores: Tensor, m: int, fold: int) -> Tensor:
    """Positions that hold m largest values of each row: fold the row, keep the m columns with the highest maxima. A
    value outside them is at most the smallest of m maxima, so it cannot be needed. (n, S) → (n, about fold·m)."""
    n, S = scores.shape
    columns = S // fold
    best = places_of_largest(scores[:, : columns * fold].unflatten(1, (fold, columns)).amax(1), m)
    places = (best.unsqueeze(1) + columns * torch.arange(fold, device=scores.device)[:, None]).flatten(1)
    rest = torch.arange(columns * fold, S, device=scores.device)
    return torch.cat((places, rest.expand(n, -1)), 1) if rest.numel() else places
