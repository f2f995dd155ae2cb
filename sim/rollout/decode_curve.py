"""How long a step of an engine takes, by how many run and what they have cached."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from minglm.errors import InputError


@dataclass(frozen=True)
class DecodeCurve:
    """Seconds that one token of every running request takes: τ(b, kv) = base(b) + slope(b) · kv.

    points: (requests running, seconds); straight lines between, and beyond the last with its last slope.
    slopes: (requests running, seconds per cached token of the whole engine); empty where the cache costs nothing.
    beyond: (requests running, seconds more) while the longest request has more keys than sparse attention reads.
    contexts: (tokens of the longest request, seconds more for each one running) then: all rows are as wide as the
        longest.
    """

    points: tuple[tuple[float, float], ...]
    slopes: tuple[tuple[float, float], ...] = ()
    beyond: tuple[tuple[float, float], ...] = ()
    contexts: tuple[tuple[float, float], ...] = ()
    _base: list[float] = field(default_factory=list, init=False, repr=False, compare=False)
    _slope: list[float] = field(default_factory=list, init=False, repr=False, compare=False)
    _growth: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.points:
            raise InputError("decode: no points; give at least one [requests running, seconds per token]")
        for name, pairs, least in (("decode", self.points, 0.0), ("decode slope", self.slopes, -1.0)):
            last = 0.0
            for b, s in pairs:
                if not (math.isfinite(b) and math.isfinite(s) and b > last and s > least and s >= 0):
                    raise InputError(
                        f"{name}: point [{b:g}, {s:g}]: batches must grow from above 0 and seconds be positive; sort "
                        "and check the list"
                    )
                last = b

    def base(self, b: int) -> float:
        """Seconds of a step with `b` running and nothing cached."""
        return self.up_to(b)[0][b]

    def slope(self, b: int) -> float:
        """Seconds of a step per cached token of the whole engine, with `b` running."""
        return self.up_to(b)[1][b]

    def up_to(self, b: int) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
        """`base`, `slope`, and half of what a step more costs by the tokens that each step caches, as tables whose
        index is the requests running, at least up to `b`: x steps take (base + slope·kv)·x + growth·x² seconds."""
        if b >= len(self._base):
            for i in range(len(self._base), b + 1):
                self._base.append(_interpolate(self.points, i))
                self._slope.append(max(0.0, _interpolate(self.slopes, i)) if self.slopes else 0.0)
                self._growth.append(self._slope[i] * i / 2.0)
        return self._base, self._slope, self._growth

    def beyond_topk(self, b: int, longest: float = 0.0) -> float:
        """Seconds of a step more once keys are selected, with `b` running and so many tokens in the longest."""
        return (_interpolate(self.beyond, b) if self.beyond else 0.0) + (
            b * _interpolate(self.contexts, longest) if self.contexts else 0.0
        )

    def seconds(self, b: int, kv: float = 0.0) -> float:
        """τ(b, kv)."""
        return self.base(b) + self.slope(b) * kv

    def tokens_per_s(self, b: int, kv: float = 0.0) -> float:
        """Of one request."""
        return b / self.seconds(b, kv)

    def times(self, factor: float) -> DecodeCurve:
        """The same curve, `factor` slower."""
        return DecodeCurve(
            *(
                tuple((b, s * factor) for b, s in pairs)
                for pairs in (self.points, self.slopes, self.beyond, self.contexts)
            )
        )


def _interpolate(points: Sequence[tuple[float, float]], b: float) -> float:
    if b <= points[0][0] or len(points) == 1:
        return points[0][1]
    for (b0, s0), (b1, s1) in itertools.pairwise(points):
        if b <= b1:
            return s0 + (s1 - s0) * (b - b0) / (b1 - b0)
    (b0, s0), (b1, s1) = points[-2:]
    return max(s1, s1 + (s1 - s0) * (b - b1) / (b1 - b0))


def synchronous_makespan(lengths: Iterable[float], curve: DecodeCurve, prompt: float = 0.0) -> float:
    """Seconds of one engine that starts all requests at once and takes no more: T = Σ_j τ(j) (L_j − L_{j+1}), lengths
    falling, with the cache's growth integrated (TailSieve's closed form)."""
    order = [*sorted(lengths, reverse=True), 0.0]
    total = 0.0
    for j in range(len(order) - 1, 0, -1):  # j requests run from token order[j] to order[j - 1]
        x = order[j - 1] - order[j]
        kv = j * (prompt + order[j])
        total += (curve.base(j) + curve.slope(j) * kv) * x + curve.slope(j) * j * x * x / 2
    return total
