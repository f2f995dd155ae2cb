"""How many layers each chunk of a pipeline holds, so that its busiest rank has as little to do as possible.

Units in model order: the embedding, the layers (dense ones first), the layers of the prediction depths, the heads.
What does not move between chunks (embedding, depths, heads) is a rank's fixed load; layers are what is dealt out. One
chunk a rank: the smallest busiest load is found exactly, by bisection over what a rank may have. Several: layers go one
by one to the rank with least to do, which is exact for equal layers, and there to its thinnest chunk.
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
    mean = (units.seconds(0, units.layers) + sum(units.fixed_s)) / len(units.fixed_s)
    one = max(units.layer_s, units.dense_s)
    low, high, best = 0.0, max(mean, *units.fixed_s) + one, None
    while best is None:  # as a rule the first: every chunk but the last can be filled to the mean
        best = _filled(units, high)
        low, high = (low, high) if best else (high, 2 * high)
    low = max(low, mean - one)
    for _ in range(20):  # to a millionth of a layer
        middle = (low + high) / 2
        stages = _filled(units, middle)
        if stages is None:
            low = middle
        else:
            high, best = middle, stages
    return best


def _filled(units: Units, most_s: float) -> tuple[int, ...] | None:
    """Chunks filled from the last on, none above `most_s` seconds: the first, whose activations wait longest, get
    least. None where the layers do not fit.
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
    thinnest = [[(units.fixed_s[c], -c) for c in chunks if c <= last] for chunks in owners]
    for heap in (loads, *thinnest):
        heapq.heapify(heap)
    for _ in range(units.layers):
        load, i = loads[0]
        thin, c = thinnest[-i][0]
        one = units.dense_s if not c and stages[0] < units.dense_layers else units.layer_s
        stages[-c] += 1
        heapq.heapreplace(thinnest[-i], (thin + units.layer_s, c))
        heapq.heapreplace(loads, (load + one, i))
    return tuple(stages)


def moved(stages: tuple[int, ...], empty: int, distant: int) -> list[tuple[int, ...]]:
    """All partitions that differ in one layer, from one chunk to another at most `distant` chunks away: from the last
    chunks first, where the heads are."""
    last = len(stages) - empty
    out = []
    for i in reversed(range(last)):
        for j in range(max(0, i - distant), min(last, i + distant + 1)):
            if i != j and stages[i]:
                out.append(tuple(n - (k == i) + (k == j) for k, n in enumerate(stages)))
    return out
