"""What is not known exactly: a triangle, a normal, or a set of equally likely values.

>>> d = distribution({"low": 1, "mid": 2, "high": 4})
>>> d.middle, round(d.quantile(0.5), 3)
(2.0, 2.268)
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from minglm.errors import InputError
from sim.base.units import parse

DRAWS = 256  # of the uncertain inputs behind every interval, where no other number is asked for


@dataclass(frozen=True)
class Triangle:
    """Between low and high, most likely at mid."""

    low: float
    mid: float
    high: float

    @property
    def middle(self) -> float:
        """The most likely value."""
        return self.mid

    def quantile(self, p: float) -> float:
        """The value that a share p of draws stays below."""
        a, c, b = self.low, self.mid, self.high
        if a == b:
            return c
        turn = (c - a) / (b - a)
        if p < turn:
            return a + math.sqrt(p * (b - a) * (c - a))
        return b - math.sqrt((1 - p) * (b - a) * (b - c))

    def draw(self, rng: random.Random) -> float:
        """One value at random."""
        return self.quantile(rng.random())


@dataclass(frozen=True)
class Normal:
    """Mean and standard deviation; what falls below zero (under one in a thousand) is drawn at zero."""

    mean: float
    sd: float

    @property
    def middle(self) -> float:
        """The most likely value."""
        return self.mean

    def quantile(self, p: float) -> float:
        """The value that a share p of draws stays below."""
        return max(NormalDist(self.mean, self.sd).inv_cdf(min(max(p, 1e-9), 1 - 1e-9)), 0.0) if self.sd else self.mean

    def draw(self, rng: random.Random) -> float:
        """One value at random."""
        return self.quantile(rng.random())


@dataclass(frozen=True)
class Values:
    """Equally likely values: measured errors, or the items of a list."""

    values: tuple[Any, ...]

    @property
    def middle(self) -> Any:
        """The median."""
        return self.quantile(0.5)

    def quantile(self, p: float) -> Any:
        """The value that a share p of draws stays below; items that are not numbers keep their order."""
        numbers = all(isinstance(v, (int, float)) for v in self.values)
        ordered = sorted(self.values) if numbers else self.values
        return ordered[min(int(p * len(ordered)), len(ordered) - 1)]

    def draw(self, rng: random.Random) -> Any:
        """One value at random."""
        return self.values[rng.randrange(len(self.values))]


def distribution(
    raw: object, dimension: str = "count", name: str = "distribution", signed: bool = False
) -> Triangle | Normal | Values:
    """From {low, mid, high}, {normal: [mean, sd]} or a list.

    Raises:
        InputError: unknown shape, values out of order, or support below zero where a quantity cannot be negative.
    """
    if isinstance(raw, (list, tuple)):
        if not raw:
            raise InputError(f"{name}: an empty list; give at least one value")
        return Values(tuple(raw))
    if not isinstance(raw, Mapping):
        raise InputError(
            f"{name}: {raw!r} is not a distribution; give {{low, mid, high}}, {{normal: [mean, sd]}} or a list"
        )

    def number(value: object, what: str) -> float:
        return parse(value, dimension, f"{name}.{what}", low=None)

    if set(raw) == {"normal"}:
        pair = raw["normal"]
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise InputError(
                f"{name}: normal {pair!r} must be [mean, standard deviation], such as {{normal: [100, 5]}}"
            )
        mean, sd = number(pair[0], "mean"), number(pair[1], "sd")
        if sd < 0:
            raise InputError(f"{name}: a standard deviation of {sd:g} is negative; give 0 or more")
        if not signed and mean < 3 * sd:
            raise InputError(
                f"{name}: normal [{mean:g}, {sd:g}] reaches below zero (mean − 3 sd = {mean - 3 * sd:g}); use "
                f"{{low, mid, high}} from 0 up, or a smaller sd"
            )
        return Normal(mean, sd)
    if set(raw) != {"low", "mid", "high"}:
        raise InputError(f"{name}: keys {', '.join(map(str, raw))}; give low, mid and high, or normal alone")
    low, mid, high = (number(raw[k], k) for k in ("low", "mid", "high"))
    if not low <= mid <= high:
        raise InputError(f"{name}: low {low:g}, mid {mid:g}, high {high:g} are not in order; give low ≤ mid ≤ high")
    if low < 0 and not signed:
        raise InputError(f"{name}: low {low:g} is below zero, which this quantity cannot be; give low of 0 or more")
    return Triangle(low, mid, high)
