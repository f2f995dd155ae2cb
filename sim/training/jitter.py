"""What makes real chips uneven: noise of every kernel, chips that are slow for good, experts that are popular.

A pipeline rank is `chips_per_rank` chips in lock step, so each piece of work takes as long as its slowest chip: the
noise of a rank is the largest of that many draws, not their mean.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields
from functools import lru_cache
from statistics import NormalDist

from minglm.errors import InputError

_TABLE = 1 << 14  # equally likely values per distribution; the tail beyond 1 in 32,768 is cut


@dataclass(frozen=True, slots=True)
class Jitter:
    """Sources of unevenness; every default is 'none'.

    noise: spread (sigma of the logarithm) of one chip's time for one piece of work, drawn anew each time.
    spread: permanent chip-to-chip spread (sigma of the logarithm), drawn once per chip.
    slow_share, slow_factor: share of chips that are permanently slow, and how many times longer they take.
        MegaScale (arXiv 2402.15627 §6.3) saw about 0.5% of machines, about 10% slower.
    slow: named slow ranks, as (replica, rank, factor); for what-ifs without chance.
    expert_spread: spread of the load of the busiest expert rank, per stage and micro-batch, relative to even load; it
        multiplies all-to-all time and `expert_share` of the compute.
    expert_share: share of a chunk's compute that is routed experts.
    """

    noise: float = 0.0
    spread: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 1.0
    slow: tuple[tuple[int, int, float], ...] = ()
    expert_spread: float = 0.0
    expert_share: float = 0.0

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name == "slow":
                continue
            value, top = getattr(self, f.name), 1.0 if f.name.endswith("share") else math.inf
            least = 1.0 if f.name == "slow_factor" else 0.0
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not math.isfinite(value)
                or not least <= value <= top
            ):
                raise InputError(
                    f"jitter {f.name}={value!r}: must be a finite number of at least {least:g}"
                    f"{' and at most 1' if top == 1 else ''}; leave it out for {least:g}"
                )
        for entry in self.slow:
            if len(entry) != 3 or not math.isfinite(entry[2]) or entry[2] <= 0:
                raise InputError(
                    f"jitter slow={entry!r}: each entry is (replica, rank, factor) with a positive factor; "
                    "write (0, 3, 1.1)"
                )

    @property
    def random(self) -> bool:
        """Whether simulated ops differ by chance, so that no two replicas are alike."""
        return bool(self.noise or self.expert_spread)

    def rank_factors(self, replicas: int, ranks: int, chips_per_rank: int, seed: int) -> list[tuple[float, ...]]:
        """Permanent slowness of each rank of each replica: its slowest chip. Shape [replicas][ranks]."""
        named = {(replica, rank): factor for replica, rank, factor in self.slow}
        if not self.spread and not self.slow_share:
            rows = [(1.0,) * ranks] * replicas
            for replica in {replica for replica, _ in named if 0 <= replica < replicas}:
                rows[replica] = tuple(named.get((replica, r), 1.0) for r in range(ranks))
            return rows
        rng = random.Random(f"chips {seed}")
        table = largest(self.spread, chips_per_rank) if self.spread else (1.0,)
        healthy = (1.0 - self.slow_share) ** chips_per_rank
        out = []
        for replica in range(replicas):
            base = rng.choices(table, k=ranks) if self.spread else [1.0] * ranks
            if self.slow_share:
                base = [f * self.slow_factor if rng.random() >= healthy else f for f in base]
            out.append(tuple(f * named.get((replica, r), 1.0) for r, f in enumerate(base)))
        return out


@lru_cache(maxsize=32)
def largest(sigma: float, n: int) -> tuple[float, ...]:
    """Equally likely values of the largest of `n` independent log-normal factors (median 1, log-sigma `sigma`)."""
    quantile = NormalDist().inv_cdf
    return tuple(math.exp(sigma * quantile(((k + 0.5) / _TABLE) ** (1.0 / n))) for k in range(_TABLE))


@lru_cache(maxsize=32)
def expert_load_imbalance(sigma: float) -> tuple[float, ...]:
    """Equally likely values of the busiest expert rank's load over the even load: half-normal in the logarithm, so
    never below 1."""
    quantile = NormalDist().inv_cdf
    return tuple(math.exp(sigma * quantile(0.5 + (k + 0.5) / (2 * _TABLE))) for k in range(_TABLE))
