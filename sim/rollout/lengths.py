"""How long trajectories are: log-normal with a cap, measured values, or a run's own log; samples of a prompt resemble
each other.

    >>> lengths = Lengths.lognormal(mean=4000, cap=16384, sigma=1.0)
    >>> round(lengths.mean()), round(lengths.truncated_share(), 3)
    (4000, 0.034)

A published mean is of what was produced, so `mean` counts capped trajectories at the cap. The prompt explains a share
of the variance of log length: 64.8% in TailSieve's measurement (64 prompts × 8 samples). Where only mean and cap are
known the spread is sigma = 1, from "p99 about ten times the median" (Laminar's setting, read in a note). Token counts
everywhere.
"""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import NormalDist
from typing import Any

from minglm.errors import InputError

EXPLAINED = 0.65
SIGMA = 1.0
LONGEST = 10_000_000
MAX_LINES = 2_000_000
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Lengths:
    """Response lengths in tokens. Exactly one of three: log-normal (`sigma` > 0 or fixed), `values`, or `groups`.

    groups: lengths of whole groups, taken in order and again from the start; nothing is drawn.
    prompts: the prompt of each of those groups; empty where all have `prompt` tokens.
    """

    median: float = 1.0
    sigma: float = 0.0
    cap: int = LONGEST
    explained: float = EXPLAINED
    prompt: int = 0
    values: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    prompts: tuple[int, ...] = ()

    @classmethod
    def lognormal(
        cls,
        mean: float | None = None,
        cap: int = LONGEST,
        sigma: float | None = None,
        percentile: tuple[float, float] | None = None,
        median: float | None = None,
        explained: float = EXPLAINED,
        prompt: int = 0,
    ) -> Lengths:
        """From what a source prints.

        Args:
            mean, median: of the capped lengths. Give one; with both, sigma follows.
            percentile: (share, tokens), such as (0.99, 20000): fixes sigma with the mean or the median.
        Raises:
            InputError: mean above the cap, a percentile that no log-normal has.
        """
        if mean is None and median is None:
            raise InputError("lengths: neither mean nor median is given; give mean in tokens, such as mean: 4000")
        for name, value in (("mean", mean), ("median", median)):
            if value is not None and not 1 <= value <= cap:
                raise InputError(
                    f"lengths: {name}={value:g} is not between 1 and the maximum {cap:,}; give a {name} below the "
                    "maximum"
                )
        if sigma is not None and not 0 <= sigma <= 5:
            raise InputError(f"lengths: sigma={sigma:g} is not between 0 and 5; leave it out for {SIGMA:g}")
        if sigma is None:
            median, sigma = _median_and_sigma(mean, median, cap, percentile)
        elif median is None:
            median = _median_of(mean, sigma, cap)
        return cls(median, sigma, cap, explained, prompt)

    @classmethod
    def measured(
        cls, values: Iterable[float], cap: int = LONGEST, explained: float = EXPLAINED, prompt: int = 0
    ) -> Lengths:
        """Drawn from measured values, each as likely as it was seen."""
        capped = tuple(sorted(min(cap, max(1, round(v))) for v in values))
        if not capped:
            raise InputError("lengths: an empty list of values; give at least one length in tokens")
        return cls(cap=cap, explained=explained, prompt=prompt, values=capped)

    def draw_group(self, rng: random.Random, size: int, index: int = 0) -> list[int]:
        """Lengths of the `size` samples of one prompt. Always draws size + 1 numbers, so that groups keep their lengths
        whatever the mode does with them."""
        if self.groups:
            row = self.groups[index % len(self.groups)]
            return [row[i % len(row)] for i in range(size)]
        if not self.values and not self.sigma:
            return [min(self.cap, max(1, round(self.median)))] * size
        gauss, own = rng.gauss, math.sqrt(1.0 - self.explained)
        common = math.sqrt(self.explained) * gauss(0.0, 1.0)
        others = [gauss(0.0, 1.0) for _ in range(size)]
        if self.values:
            table, n = self.values, len(self.values)
            return [table[min(n - 1, int(_NORMAL.cdf(common + own * z) * n))] for z in others]
        median, sigma, cap, exp = self.median, self.sigma, self.cap, math.exp
        drawn = [round(median * exp(sigma * (common + own * z))) for z in others]
        return [(n if n < cap else cap) if n > 1 else 1 for n in drawn]

    def prompt_of(self, index: int) -> int:
        """Prompt tokens of the group of that index."""
        return self.prompts[index % len(self.prompts)] if self.prompts else self.prompt

    def mean(self) -> float:
        """Tokens, of capped lengths."""
        if self.groups:
            return sum(map(sum, self.groups)) / sum(map(len, self.groups))
        if self.values:
            return sum(self.values) / len(self.values)
        return _mean(self.median, self.sigma, self.cap)

    def quantile(self, p: float) -> float:
        """Tokens that a share `p` of the trajectories does not exceed."""
        table = sorted(x for g in self.groups for x in g) if self.groups else self.values
        if table:
            return float(table[min(len(table) - 1, int(p * len(table)))])
        return (
            min(float(self.cap), self.median * math.exp(self.sigma * _NORMAL.inv_cdf(p))) if self.sigma else self.median
        )

    @property
    def longest(self) -> int:
        """No trajectory is longer."""
        table = [x for g in self.groups for x in g] if self.groups else self.values
        return max(table) if table else self.cap if self.sigma else min(self.cap, max(1, round(self.median)))

    def truncated_share(self) -> float:
        """Share of trajectories that the cap ends."""
        table = sorted(x for g in self.groups for x in g) if self.groups else self.values
        if table:
            return 1.0 - bisect_right(table, self.cap - 1) / len(table)
        return (
            1.0 - _NORMAL.cdf(math.log(self.cap / self.median) / self.sigma)
            if self.sigma
            else float(self.median >= self.cap)
        )

    def scaled(self, mean: float) -> Lengths:
        """The same shape and cap with another mean (log-normal), or every value times the ratio."""
        if self.groups:
            ratio = mean / self.mean()
            return replace(
                self, groups=tuple(tuple(min(self.cap, max(1, round(x * ratio))) for x in g) for g in self.groups)
            )
        if self.values:
            return Lengths.measured(
                (x * mean / self.mean() for x in self.values), self.cap, self.explained, self.prompt
            )
        return Lengths.lognormal(mean, self.cap, self.sigma, explained=self.explained, prompt=self.prompt)

    def describe(self) -> str:
        """In a line."""
        kind = (
            f"{sum(map(len, self.groups)):,} lengths as logged"
            if self.groups
            else f"{len(self.values):,} measured values"
            if self.values
            else f"log-normal, sigma {self.sigma:.2f}"
            if self.sigma
            else "all alike"
        )
        cut = f", {self.truncated_share():.1%} cut at {self.cap:,}" if self.cap < LONGEST else ""
        median, p99 = self.quantile(0.5), self.quantile(0.99)
        return f"mean {self.mean():,.0f}, median {median:,.0f}, p99 {p99:,.0f} tokens ({kind}{cut})"


def _mean(median: float, sigma: float, cap: float) -> float:
    """E[min(X, cap)] of a log-normal."""
    if sigma <= 1e-12:
        return min(median, cap)
    m, c = math.log(median), math.log(cap)
    return math.exp(min(m + sigma * sigma / 2, 600.0)) * _NORMAL.cdf((c - m - sigma * sigma) / sigma) + cap * (
        1.0 - _NORMAL.cdf((c - m) / sigma)
    )


def _bisect(f, low: float, high: float, refusal: str) -> float:
    """A root of f between low and high, the first that a coarse walk from `low` meets."""
    last, edge = f(low), low
    for i in range(1, 101):
        x = low + (high - low) * i / 100
        value = f(x)
        if (last <= 0 <= value) or (value <= 0 <= last):
            break
        last, edge = value, x
    else:
        raise InputError(refusal + "; check the figures")
    sign = 1.0 if value >= last else -1.0
    a, b = edge, x
    for _ in range(80):
        middle = (a + b) / 2
        if sign * f(middle) < 0:
            a = middle
        else:
            b = middle
    return (a + b) / 2


def _median_of(mean: float | None, sigma: float, cap: int) -> float:
    """The median at which a log-normal of this sigma, capped, has this mean."""
    assert mean is not None, "mean or median is given"
    if not sigma or mean >= 0.999 * cap:
        return mean
    log_median = _bisect(
        lambda m: _mean(math.exp(m), sigma, cap) - mean,
        math.log(0.01),
        math.log(1e4 * cap),
        f"lengths: no log-normal capped at {cap:,} has mean {mean:g}",
    )
    return math.exp(log_median)


def _median_and_sigma(
    mean: float | None, median: float | None, cap: int, percentile: tuple[float, float] | None
) -> tuple[float, float]:
    """Of the log-normal that has the figures which are there; sigma is `SIGMA` where nothing tells it."""
    if percentile is not None:
        return _through(percentile, mean, median, cap)
    if median is None:
        return _median_of(mean, SIGMA, cap), SIGMA
    if mean is None:
        return median, SIGMA
    sigma = _bisect(
        lambda s: _mean(median, s, cap) - mean,
        0.0,
        4.0,
        f"lengths: no log-normal of median {median:g} capped at {cap:,} has mean {mean:g}",
    )
    return median, sigma


def _through(
    percentile: tuple[float, float], mean: float | None, median: float | None, cap: int
) -> tuple[float, float]:
    """(median, sigma) of the log-normal through a percentile, with this median, or else with this mean."""
    share, tokens = percentile
    if tokens > cap:
        raise InputError(
            f"lengths: percentile {share:.3g} at {tokens:g} is above the maximum {cap:,}; give one at most the maximum"
        )
    z = _NORMAL.inv_cdf(share)
    if median is not None:
        sigma = math.log(tokens / median) / z if z and tokens >= median else -1.0
        if not 0 <= sigma <= 5:
            raise InputError(
                f"lengths: percentile {share:.3g} at {tokens:g} does not fit a median of {median:g}; give one further "
                "out"
            )
        return median, sigma
    assert mean is not None, "mean or median is given"
    # The spread at which the log-normal through (share, tokens) has this mean; of two solutions the narrower.
    sigma = _bisect(
        lambda s: _mean(tokens / math.exp(min(z * s, 600.0)), s, cap) - mean,
        0.0,
        4.0,
        f"lengths: no log-normal capped at {cap:,} has mean {mean:g} and percentile {share:.3g} at {tokens:g}",
    )
    return tokens / math.exp(z * sigma), sigma


# ------------------------------------------------------------------ a run's own log

_LENGTH = ("response_length", "length", "response_tokens", "tokens", "generated", "output_tokens", "n_tokens")
_GROUP = ("group", "group_id", "prompt_id", "prompt_index")
_PROMPT = ("prompt_length", "prompt_tokens", "n_prompt")


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Finished trajectories of a run's `trajectories.jsonl`: dicts with length, group, prompt and whatever else a line
    has.

    Raises:
        InputError: no such file, a line that is not JSON, or no lengths in it.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            lines = [line for line in islice(file, MAX_LINES) if line.strip()]
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; a run of minglm rl writes trajectories.jsonl into its folder"
        ) from None
    except (OSError, UnicodeDecodeError, ValueError) as err:
        raise InputError(
            f"{str(path)[:120]}: cannot be read ({getattr(err, 'strerror', None) or 'not text'}); give a "
            "trajectories.jsonl"
        ) from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{path}: line {number} is not JSON; give one object per line") from None
        if not isinstance(values, Mapping):
            raise InputError(
                f'{path}: line {number} is not an object; give lines such as {{"group": 0, "response_length": 57}}'
            )
        row = dict(values)
        length = _number(_first(values, _LENGTH))
        if length is None:
            raise InputError(
                f"{path}: line {number} has no length; give one of {', '.join(_LENGTH)} as a number of tokens"
            )
        row |= {"length": length, "group": _first(values, _GROUP), "prompt": _number(_first(values, _PROMPT)) or 0}
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: holds no trajectories; give a run that finished some")
    return rows


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    value = next((row[n] for n in names if row.get(n) is not None), None)
    return len(value) if isinstance(value, (list, tuple)) else value


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return int(value) if 0 <= value <= LONGEST else None


def from_rows(rows: Sequence[Mapping[str, Any]], cap: int | None = None) -> Lengths:
    """Values and explained share of logged trajectories; the prompt is their mean prompt."""
    values = [max(1, r["length"]) for r in rows]
    groups: dict[str, list[int]] = {}
    for r in rows:
        if r.get("group") is not None:
            groups.setdefault(str(r["group"]), []).append(max(1, r["length"]))
    return Lengths.measured(
        values,
        cap or max(values),
        explained_share(list(groups.values())),
        round(sum(r["prompt"] for r in rows) / len(rows)),
    )


def explained_share(groups: Sequence[Sequence[float]], least: int = 8) -> float:
    """Share of the variance of log length that lies between prompts (one-way random effects); the usual 65% where fewer
    than `least` groups have two samples or more."""
    some = [[math.log(max(1.0, x)) for x in g] for g in groups if len(g) >= 2]
    if len(some) < least:
        return EXPLAINED
    n = sum(map(len, some))
    means = [sum(g) / len(g) for g in some]
    grand = sum(map(sum, some)) / n
    within = sum((x - m) ** 2 for g, m in zip(some, means, strict=True) for x in g) / (n - len(some))
    between = sum(len(g) * (m - grand) ** 2 for g, m in zip(some, means, strict=True)) / (len(some) - 1)
    size = (n - sum(len(g) ** 2 for g in some) / n) / (len(some) - 1)
    shared = max(0.0, (between - within) / size)
    return min(0.99, shared / (shared + within)) if shared + within > 0 else EXPLAINED
