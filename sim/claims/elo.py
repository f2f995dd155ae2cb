"""What a leaderboard of votes can tell: Bradley–Terry ratings on the Elo scale, their noise, and votes needed.

Two answers, unnamed, one vote. A rating gap d means that the higher-rated model wins a share 1/(1+10^(−d/400)) of such
votes. Ratings are fitted to all pairs at once (Bradley and Terry 1952; the update of Hunter 2004), as Chatbot Arena does
(arXiv 2403.04132), and their noise is found by drawing the votes again (bootstrap). Ties are not modelled: they carry
no information about who is better and make every figure here optimistic.

    >>> round(win_probability(4), 4)
    0.5058
    >>> votes_to_separate(4) > 50_000
    True
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from minglm.errors import InputError

SCALE = 400 / math.log(10)  # rating points per unit of log-odds: 173.7
Wins = Mapping[tuple[int, int], tuple[int, int]]  # (i, j), i < j -> (votes for i, votes for j)


def win_probability(gap: float) -> float:
    """Share of votes that a model rated `gap` points higher wins."""
    return 1 / (1 + 10 ** (-gap / 400))


def gap_from_share(share: float) -> float:
    """Rating gap that a share of won votes means; the inverse of `win_probability`."""
    if not 0 < share < 1:
        raise InputError(
            f"share={share!r}: a share of votes strictly between 0 and 1 is needed; "
            "with no lost vote at all the gap has no upper bound"
        )
    return 400 * math.log10(share / (1 - share))


def votes_to_separate(gap: float, power: float = 0.8, confidence: float = 0.95) -> int:
    """Head-to-head votes after which a two-sided test sees a true gap of `gap` points with probability `power`."""
    if gap == 0:
        raise InputError("gap=0: equal models cannot be separated by any number of votes; give a gap above 0")
    p = win_probability(abs(gap))
    z_confidence, z_power = NormalDist().inv_cdf((1 + confidence) / 2), NormalDist().inv_cdf(power)
    return math.ceil(((z_confidence / 2 + z_power * math.sqrt(p * (1 - p))) / (p - 0.5)) ** 2)


def half_width(votes: int, confidence: float = 0.95) -> float:
    """± points of a rating from `votes` against well-known opponents of about its own strength."""
    if votes < 1:
        raise InputError(f"votes={votes}: a rating needs at least one vote; give votes of 1 or more")
    return NormalDist().inv_cdf((1 + confidence) / 2) * SCALE / math.sqrt(votes / 4)


def detectable_gap(votes_a: int, votes_b: int, power: float = 0.8, confidence: float = 0.95) -> float:
    """Smallest gap that two models with so many votes each, both against the field, can be told apart by."""
    z = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(power)
    return z * SCALE * math.sqrt(4 / votes_a + 4 / votes_b)


def simulate(ratings: Sequence[float], votes: int, seed: int = 0) -> dict[tuple[int, int], tuple[int, int]]:
    """Votes of an arena whose true ratings are known: pairs drawn evenly, winners by `win_probability`."""
    if len(ratings) < 2:
        raise InputError(f"{len(ratings)} models: an arena compares at least two; give two ratings or more")
    rng = random.Random(seed)
    pairs = [(i, j) for j in range(len(ratings)) for i in range(j)]
    share, extra = divmod(votes, len(pairs))
    wins = {}
    for n, (i, j) in enumerate(pairs):
        games = share + (n < extra)
        won = _binomial(rng, games, win_probability(ratings[i] - ratings[j]))
        wins[i, j] = (won, games - won)
    return wins


def fit(wins: Wins, models: int | None = None, tolerance: float = 1e-7, most: int = 2000) -> list[float]:
    """Bradley–Terry ratings, centred on 0, that make these votes most likely.

    A model that won or lost every one of its votes has no finite rating; half a vote is then added to both sides of each
    of its pairs.
    """
    models = models or 1 + max(max(pair) for pair in wins)
    won = [0.0] * models
    games: dict[tuple[int, int], float] = {}
    totals = [[0, 0] for _ in range(models)]
    for (i, j), (a, b) in wins.items():
        totals[i][0] += a
        totals[i][1] += b
        totals[j][0] += b
        totals[j][1] += a
    extreme = {m for m, (up, down) in enumerate(totals) if not up or not down}
    for (i, j), (a, b) in wins.items():
        pad = 0.5 if {i, j} & extreme else 0.0
        games[i, j] = a + b + 2 * pad
        won[i] += a + pad
        won[j] += b + pad
    strength = [1.0] * models
    for _ in range(most):
        rate = [0.0] * models
        for (i, j), n in games.items():
            share = n / (strength[i] + strength[j])
            rate[i] += share
            rate[j] += share
        new = [won[m] / rate[m] if rate[m] else 1.0 for m in range(models)]
        middle = math.exp(sum(map(math.log, new)) / models)
        new = [s / middle for s in new]
        moved = max(abs(math.log(a / b)) for a, b in zip(new, strength))
        strength = new
        if moved < tolerance:
            break
    return [SCALE * math.log(s) for s in strength]


def bootstrap(wins: Wins, samples: int = 200, seed: int = 0, confidence: float = 0.95) -> dict:
    """Fitted ratings with percentile intervals, and how often each model comes out on top when the votes are redrawn."""
    rng = random.Random(seed)
    centre = fit(wins)
    draws, first = [], [0] * len(centre)
    for _ in range(samples):
        again = {}
        for pair, (a, b) in wins.items():
            redrawn = _binomial(rng, a + b, a / (a + b)) if a + b else 0
            again[pair] = (redrawn, a + b - redrawn)
        ratings = fit(again, len(centre))
        draws.append(ratings)
        first[ratings.index(max(ratings))] += 1
    edge = (1 - confidence) / 2
    columns = [sorted(column) for column in zip(*draws)]
    return {
        "ratings": centre,
        "low": [column[int(edge * (samples - 1))] for column in columns],
        "high": [column[math.ceil((1 - edge) * (samples - 1))] for column in columns],
        "first": [n / samples for n in first],
        "draws": draws,
    }


def share_in_right_order(gap: float, votes: int, arenas: int = 200, seed: int = 0) -> float:
    """Simulated: how often the better of two models, `gap` points apart, also ends up with the higher rating."""
    right = 0.0
    for n in range(arenas):
        up, down = simulate((gap, 0.0), votes, seed + n)[0, 1]
        right += (up > down) + (up == down) / 2
    return right / arenas


def _binomial(rng: random.Random, n: int, p: float) -> int:
    """Successes in n trials. Above a variance of 100 a rounded normal is used: it is off by less than a vote in ten."""
    if n * p * (1 - p) > 100:
        return min(n, max(0, round(rng.gauss(n * p, math.sqrt(n * p * (1 - p))))))
    return sum(rng.random() < p for _ in range(n))
