"""Load on a serving fleet: token counts, arrivals, and the percentiles of what requests wait."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from minglm.errors import InputError
from sim.base.units import parse

PERCENTILES = (50, 90, 95, 99)


def number(value: object, name: str, low: float, high: float = 1e7) -> float:
    """`value` as a float.

    Raises:
        InputError: not a finite number from `low` to `high`.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise InputError(f"{name}={value!r}: must be a number from {low:g} to {high:g}")
    return float(value)


def _tokens(value: object, name: str) -> float:
    """Tokens of a sequence: a number, or a text such as 8k."""
    return number(parse(value, "length", name) if isinstance(value, str) else value, name, 1)


@dataclass(frozen=True)
class RequestLengths:
    """Token counts: fixed (cv 0), log-normal with mean and coefficient of variation, or uniform from low to high."""

    mean: float
    cv: float = 0.0
    low: int = 0
    high: int = 0

    @classmethod
    def of(cls, lengths: float | Mapping[str, Any] | RequestLengths, name: str = "length") -> RequestLengths:
        """From a number, or a mapping with mean and cv, or with low and high.

        Raises:
            InputError: an unknown key, or a value that cannot be.
        """
        if isinstance(lengths, RequestLengths):
            return lengths
        if not isinstance(lengths, Mapping):
            return cls(_tokens(lengths, name))
        unknown = set(lengths) - {"mean", "cv", "low", "high"}
        if unknown:
            raise InputError(f"{name}: unknown key {sorted(unknown)[0]!r}; give mean and cv, or low and high")
        if "low" in lengths or "high" in lengths:
            low = _tokens(lengths.get("low", 1), name + ".low")
            high = _tokens(lengths.get("high", 0), name + ".high")
            if high < low:
                raise InputError(f"{name}: low={low:g} is above high={high:g}; swap them")
            return cls((low + high) / 2, 0.0, int(low), int(high))
        mean = _tokens(lengths.get("mean"), name + ".mean")
        return cls(mean, number(lengths.get("cv", 0.0), name + ".cv", 0.0, 10.0))

    def draw(self, rng: random.Random, most: int) -> int:
        """One token count, from 1 to `most`."""
        if self.high:
            return min(most, rng.randint(self.low, self.high))
        if not self.cv:
            return min(most, max(1, round(self.mean)))
        sigma = math.sqrt(math.log(1.0 + self.cv**2))
        return min(most, max(1, round(rng.lognormvariate(math.log(self.mean) - sigma**2 / 2, sigma))))


@dataclass(frozen=True)
class ServingWorkload:
    """Requests: either `rate_per_s` (open loop) or `concurrency` (closed loop).

    In an open loop requests arrive as a Poisson process or evenly spaced; in a closed loop so many are in flight, and
    each that ends is followed by the next at once.

    stretches: relative rates of stretches of `stretch_s` seconds one after the other, around the mean `rate_per_s`;
    requests then come until the last is over, however many. dealt_over: this fleet is one of so many alike, to which a
    router deals the requests of one stream in turn, and `rate_per_s` is its own share.
    """

    rate_per_s: float | None = None
    concurrency: int | None = None
    requests: int = 1000
    prompt: RequestLengths | float = 1024
    output: RequestLengths | float = 256
    cached_share: float = 0.0  # share of each prompt whose cache is there already
    arrivals: str = "poisson"  # poisson | even
    stretches: tuple[float, ...] = ()
    stretch_s: float = 3600.0
    dealt_over: float = 1.0

    def check(self) -> ServingWorkload:
        """Itself, when every value can be.

        Raises:
            InputError: the first value that cannot.
        """
        if (self.rate_per_s is None) == (self.concurrency is None):
            raise InputError(
                "workload: give either rate_per_s (requests per second) or concurrency (requests in flight), not both"
            )
        if self.rate_per_s is not None:
            number(self.rate_per_s, "rate_per_s", 1e-9, 1e7)
        if self.concurrency is not None:
            number(self.concurrency, "concurrency", 1, 1e6)
        number(self.requests, "requests", 1, 1e6)
        number(self.cached_share, "cached_share", 0.0, 0.999)
        if self.arrivals not in ("poisson", "even"):
            raise InputError(f"arrivals {self.arrivals!r}: must be 'poisson' or 'even'")
        if self.stretches:
            for share in self.stretches:
                number(share, "stretches", 0.0)
            number(sum(self.stretches), "sum of stretches", 1e-9)
            number(self.stretch_s, "stretch_s", 1e-6)
        number(self.dealt_over, "dealt_over", 1.0)
        RequestLengths.of(self.prompt, "prompt")
        RequestLengths.of(self.output, "output")
        return self

    def arrival_times(self, rng: random.Random) -> Iterator[float]:
        """Seconds at which requests of an open loop come, one after the other."""
        assert self.rate_per_s is not None, "a closed loop has no arrivals of its own"
        gap, now = 1.0 / self.rate_per_s, 0.0
        if not self.stretches:
            for _ in range(self.requests):
                now += self._gap(rng, gap)
                yield now
            return
        mean = sum(self.stretches) / len(self.stretches)
        until = passed = 0.0  # counted in requests to come: a Poisson process of rate 1, stretched by the rate there
        passed += self._gap(rng, 1.0)
        for i, share in enumerate(self.stretches):
            rate = self.rate_per_s * share / mean
            before, until = until, until + rate * self.stretch_s
            while passed < until:
                yield i * self.stretch_s + (passed - before) / rate
                passed += self._gap(rng, 1.0)

    def _gap(self, rng: random.Random, mean: float) -> float:
        """Until the next request: one gap of a Poisson stream, or as many as others get requests in between."""
        if self.arrivals != "poisson":
            return mean
        if self.dealt_over == 1.0:
            return rng.expovariate(1.0 / mean)
        return rng.gammavariate(self.dealt_over, mean / self.dealt_over)


def percentiles(values: list[float]) -> dict[str, float]:
    """Mean and nearest-rank percentiles."""
    if not values:
        return {"mean": 0.0, **{f"p{p}": 0.0 for p in PERCENTILES}}
    order = sorted(values)
    return {
        "mean": sum(order) / len(order),
        **{f"p{p}": order[max(0, math.ceil(p / 100 * len(order)) - 1)] for p in PERCENTILES},
    }
