"""How many layers each chunk of a pipeline holds, so that its busiest rank has as little to do as possible.

Units in model order: the embedding, the layers (dense ones first), the layers of the prediction depths, the heads. What
does not move between chunks (embedding, depths, heads) is a rank's fixed load; layers are what is dealt out. One chunk
a rank: the smallest busiest load is found exactly, by bisection over what a rank may have. Several: layers go one by one
to the rank with least to do, which is exact for equal layers, and there to its thinnest chunk.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Units:
    """Seconds of one micro-batch: a dense layer, another layer, and what each chunk has besides."""

    dense_s: float
    layer_s: float
    dense_layers: int
    layers: int
    fixed_s: tuple[float, ...]  # of each chunk in model order
    empty: int = 0  # how many chunks at the end may hold no layer

    def seconds(self, before: int, count: int) -> float:
        """Of `count` layers, `before` of the model's lying in earlier chunks."""
        dense = max(0, min(count, self.dense_layers - before))
        return dense * self.dense_s + (count - dense) * self.layer_s

    def loads(self, stages: Sequence[int], ranks: Sequence[Sequence[int]]) -> list[float]:
        """Seconds of each rank."""
        chunk_s, before = [], 0
        for count, fixed in zip(stages, self.fixed_s, strict=True):
            chunk_s.append(self.seconds(before, count) + fixed)
            before += count
        return [sum(chunk_s[chunk] for chunk in chunks) for chunks in ranks]


def balanced(units: Units, ranks: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Layers of each chunk in model order. `ranks[r]`: the chunks of pipeline rank r."""
    if all(len(chunks) == 1 for chunks in ranks) and len(ranks) == len(units.fixed_s):
        return _one_chunk_a_rank(units)
    return _dealt(units, ranks)


def _one_chunk_a_rank(units: Units) -> tuple[int, ...]:
    low, high = 0.0, units.seconds(0, units.layers) + sum(units.fixed_s)
    best = _filled(units, high)
    for _ in range(40):  # to a trillionth of the step
        middle = (low + high) / 2
        stages = _filled(units, middle)
        if stages is None:
            low = middle
        else:
            high, best = middle, stages
    assert best is not None  # all layers fit into what they take together
    return best


def _filled(units: Units, most_s: float) -> tuple[int, ...] | None:
    """Chunks filled from the last on, none above `most_s` seconds: the first, whose activations wait longest, get least.
    None where the layers do not fit.
    """
    if max(units.fixed_s) > most_s:
        return None
    left, out = units.layers, []
    last = len(units.fixed_s) - 1 - units.empty
    for chunk in range(len(units.fixed_s) - 1, -1, -1):
        count = 0
        if chunk <= last and left:
            room = most_s - units.fixed_s[chunk]
            others = left - min(units.dense_layers, left)  # layers that are not dense, taken first from behind
            count = min(others, int(room / units.layer_s + 1e-9)) if units.layer_s else others
            if count == others and units.dense_s:
                count += min(left - others, int((room - count * units.layer_s) / units.dense_s + 1e-9))
        left -= count
        out.append(count)
    return None if left else tuple(reversed(out))


def _dealt(units: Units, ranks: Sequence[Sequence[int]]) -> tuple[int, ...]:
    last = len(units.fixed_s) - 1 - units.empty
    stages = [0] * len(units.fixed_s)
    owners = list({tuple(sorted(chunks)): None for chunks in ranks})  # two ranks of DualPipe hold the same
    loads = [(sum(units.fixed_s[c] for c in chunks), -i) for i, chunks in enumerate(owners) if min(chunks) <= last]
    heapq.heapify(loads)
    for _ in range(units.layers):
        load, i = heapq.heappop(loads)
        chunks = [c for c in owners[-i] if c <= last]
        chunk = min(chunks, key=lambda c: (units.fixed_s[c] + stages[c] * units.layer_s, -c))
        dense = chunk == 0 and stages[0] < units.dense_layers
        stages[chunk] += 1
        heapq.heappush(loads, (load + (units.dense_s if dense else units.layer_s), i))
    return tuple(stages)


def moved(stages: tuple[int, ...], empty: int) -> list[tuple[int, ...]]:
    """All partitions that differ in one layer: from one chunk to another."""
    last = len(stages) - empty
    out = []
    for i in range(last):
        for j in range(last):
            if i != j and stages[i]:
                out.append(tuple(n - (k == i) + (k == j) for k, n in enumerate(stages)))
    return out
