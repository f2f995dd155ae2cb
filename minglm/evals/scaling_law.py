"""Chinchilla's form of a scaling law, loss = E + A / N^alpha + B / D^beta, and the published fits of it.

Torch-free: the laboratory of `minglm.course.labs.scaling` fits it, and `sim.planner.capstone` grades designs by it. N
counts parameters (of a mixture of experts those that a token uses, which no published fit has tested), D tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from minglm import datafiles
from minglm.errors import InputError, nearest


@dataclass(frozen=True)
class Law:
    """loss = E + A / N^alpha + B / D^beta, nats per token.

    `error` is the mean relative error of the runs that it was fitted on.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    error: float = 0.0

    def loss(self, weights: float, tokens: float) -> float:
        """Nats per token of a model of so many weights after so many tokens.

        >>> Law(1.0, 2.0, 6.0, 0.5, 1.0).loss(4.0, 3.0)
        4.0
        """
        return self.E + self.A / weights**self.alpha + self.B / tokens**self.beta

    def best_split(self, flops: float) -> tuple[float, float]:
        """(N, D) with the least loss for C = 6·N·D training FLOPs: equation 4 of arXiv 2203.15556.

        >>> n, d = Law(0.0, 1.0, 1.0, 0.5, 0.5).best_split(600.0)
        >>> round(n, 9), round(d, 9)
        (10.0, 10.0)
        """
        total = self.alpha + self.beta
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        weights = ratio * (flops / 6) ** (self.beta / total)
        return weights, flops / 6 / weights

    @property
    def share(self) -> float:
        """The exponent of the best N in C: beta / (alpha + beta), a half where N and D grow alike."""
        return self.beta / (self.alpha + self.beta)


@lru_cache(maxsize=1)
def _published() -> dict[str, dict]:
    import yaml

    return yaml.safe_load(datafiles.data("scaling_laws.yaml").read_text(encoding="utf-8"))["laws"]


def published() -> dict[str, Law]:
    """Name, as a legend shows it, → law, of data/scaling_laws.yaml."""
    return {entry["name"]: Law(**entry["values"]) for entry in _published().values()}


def law(key: str) -> Law:
    """One published law by its key.

    Raises:
        InputError: no such key.
    """
    return Law(**_entry(key)["values"])


def name(key: str) -> str:
    """What a legend calls a published law; InputError where there is none of that key."""
    return _entry(key)["name"]


def _entry(key: str) -> dict:
    laws = _published()
    if key not in laws:
        raise InputError(f"law {key!r}: not one of {', '.join(laws)}{nearest(key, laws)}; see data/scaling_laws.yaml")
    return laws[key]
