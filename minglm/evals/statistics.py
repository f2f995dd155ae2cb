"""How good is a model, and how sure are we: pass@k, intervals for a rate, and arenas of votes with Bradley–Terry
ratings.

Torch-free: `minglm eval` and the claims of `sim.claims` count with the same functions.

Two answers, unnamed, one vote. A rating gap d means that the higher-rated player wins a share 1/(1+10^(−d/400)) of such
votes. Ratings are fitted to all pairs at once, as Chatbot Arena does (arXiv 2403.04132), and their noise is found by
drawing the votes again (bootstrap).

Sources: pass@k estimator, Chen et al. 2021 (arXiv 2107.03374, eq. 1); Wilson's interval, Wilson 1927; Bradley–Terry by
minorisation–maximisation, Hunter 2004 (Annals of Statistics 32); ratings on the Elo scale, 400 points = odds of ten to
one.

    >>> round(win_probability(4), 4)
    0.5058
    >>> votes_to_separate(4) > 50_000
    True
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import TypedDict, TypeVar

from minglm.errors import InputError

Z95 = 1.959963984540054  # 97.5% point of the normal distribution
SCALE = 400.0 / math.log(10.0)  # Elo points for one unit of log-odds: 173.7
Vote = tuple[str, str, float]  # first player, second player, score of the first: 1 won, 0.5 tie, 0 lost
Wins = Mapping[tuple[int, int], tuple[int, int]]  # (i, j), i < j → (votes for i, votes for j)
Key = TypeVar("Key", bound=Hashable)


class RatedTable(TypedDict):
    """Ratings of a table of wins with their intervals, a list entry for each player."""

    ratings: list[float]
    low: list[float]
    high: list[float]
    first: list[float]  # share of the draws in which the player came out on top
    draws: list[list[float]]


# ------------------------------------------------------------------ rates


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k answers, drawn without replacement from n of which `correct` are right, is right.

    Unbiased for any k ≤ n; `1 - (1 - correct/n)**k` is too low.

    Raises:
        InputError: k outside 1..n, or `correct` outside 0..n.
    """
    if not 1 <= k <= n:
        raise InputError(f"k={k}: must be 1 to n={n} answers; draw more answers or lower k")
    if not 0 <= correct <= n:
        raise InputError(f"correct={correct}: must be 0 to n={n}; count again")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def wilson(right: float, total: int, z: float = Z95) -> tuple[float, float]:
    """Interval (low, high) for a rate of which `right` of `total` independent trials succeeded; honest at 0 and at all.

    `right` may be a fraction where a rounded percentage is all that is known.

    Raises:
        InputError: no trials, or more successes than trials.
    """
    if total < 1 or not 0 <= right <= total:
        raise InputError(f"{right} right of {total}: needs at least one trial and 0 to total right; count again")
    p, square = right / total, z * z / total
    centre, half = (
        (p + square / 2) / (1 + square),
        z * math.sqrt(p * (1 - p) / total + square / (4 * total)) / (1 + square),
    )
    return max(0.0, centre - half), min(1.0, centre + half)


# ------------------------------------------------------------------ means


def t_quantile(freedom: int, confidence: float = 0.95) -> float:
    """Student's t of a two-sided interval with `freedom` degrees of freedom, by halving the angle atan(t/√freedom).

    The finite series of the two-sided probability: Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even).

    >>> round(t_quantile(2), 3), round(t_quantile(9), 3)
    (4.303, 2.262)

    Raises:
        InputError: less than one degree of freedom.
    """
    if freedom < 1:
        raise InputError(f"{freedom} degrees of freedom: a spread needs two values or more; give more seeds")

    def inside(angle: float) -> float:
        odd, cosine = freedom % 2, math.cos(angle)
        term = total = (cosine if freedom > 1 else 0.0) if odd else 1.0
        for k in range(3 if odd else 2, freedom, 2):
            term *= cosine * cosine * (k - 1) / k
            total += term
        return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """(mean, half width of its t-interval).

    Raises:
        InputError: fewer than two values.
    """
    half = t_quantile(len(values) - 1, confidence) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), half


# ------------------------------------------------------------------ votes and gaps


def normal_quantile(confidence: float) -> float:
    """The z of a two-sided interval: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def win_probability(a: float, b: float = 0.0) -> float:
    """Chance that a player rated `a` beats one rated `b` (Elo points)."""
    return 1 / (1 + 10 ** ((b - a) / 400))


def votes_to_separate(gap: float, power: float = 0.8, confidence: float = 0.95, ties: float = 0.0) -> int:
    """Head-to-head votes after which a two-sided test sees a true gap of `gap` points with probability `power`.

    `ties` is the share of votes that say nothing. With power=0.5 the expected rate is just as many standard errors from
    1/2 as the test asks, so half of such experiments find the gap.

    Raises:
        InputError: a gap of 0, or ties outside [0, 1).
    """
    if gap == 0:
        raise InputError("gap=0: equal players cannot be separated by any number of votes; give a gap above 0")
    if not 0 <= ties < 1:
        raise InputError(f"ties={ties}: must be in [0, 1); give the share of votes that are ties")
    p = win_probability(abs(gap))
    z_confidence, z_power = normal_quantile(confidence), NormalDist().inv_cdf(power)
    return math.ceil(((z_confidence / 2 + z_power * math.sqrt(p * (1 - p))) / (p - 0.5)) ** 2 / (1 - ties))


def half_width(votes: int, confidence: float = 0.95) -> float:
    """± points of a rating from `votes` against well-known opponents of about its own strength."""
    if votes < 1:
        raise InputError(f"votes={votes}: a rating needs at least one vote; give votes of 1 or more")
    return normal_quantile(confidence) * SCALE / math.sqrt(votes / 4)


def detectable_gap(votes_a: int, votes_b: int, power: float = 0.8, confidence: float = 0.95) -> float:
    """Smallest gap that two players with so many votes each, both against the field, can be told apart by."""
    z = normal_quantile(confidence) + NormalDist().inv_cdf(power)
    return z * SCALE * math.sqrt(4 / votes_a + 4 / votes_b)


# ------------------------------------------------------------------ ratings


def _strengths(
    won: Mapping[Key, float], games: Mapping[tuple[Key, Key], float], prior: float, tolerance: float, most_steps: int
) -> dict[Key, float]:
    """Bradley–Terry strengths by minorisation–maximisation (Hunter 2004), the one fit of this module.

    Args:
        won: player → votes won, those of the prior included.
        games: pair → votes between the two.
        prior: wins and losses of each player against an imaginary one of strength 1; 0: the geometric mean is held at
            1.
    """
    strength = dict.fromkeys(won, 1.0)
    for _ in range(most_steps):
        denominator = {player: 2 * prior / (strength[player] + 1.0) for player in won}
        for (a, b), count in games.items():
            share = count / (strength[a] + strength[b])
            denominator[a] += share
            denominator[b] += share
        new = {player: won[player] / denominator[player] if denominator[player] else 1.0 for player in won}
        if prior == 0:  # nothing else fixes the scale
            middle = math.exp(sum(map(math.log, new.values())) / len(new))
            new = {player: value / middle for player, value in new.items()}
        moved = max(abs(math.log(new[player] / strength[player])) for player in won)
        strength = new
        if moved < tolerance:
            break
    return strength


def bradley_terry(
    votes: Sequence[Vote],
    prior: float = 0.1,
    mean: float = 1000.0,
    tolerance: float = 1e-9,
    most_steps: int = 20_000,
) -> dict[str, float]:
    """Ratings of all players of a set of votes, highest first.

    Args:
        votes: (first player, second player, score of the first: 1 won, 0.5 tie, 0 lost).
        prior: wins and losses of each player against an imaginary average one; keeps ratings finite where somebody won
            everything. mean: rating of the average player.

    Raises:
        InputError: no votes, a player against itself, a score outside 0..1, no prior where there must be one.
    """
    players = sorted({p for a, b, _ in votes for p in (a, b)})
    if not votes or prior < 0:
        raise InputError(
            f"{len(votes)} votes, prior={prior}: needs at least one vote and a prior of 0 or more; give some"
        )
    won = dict.fromkeys(players, prior)
    games: dict[tuple[str, str], float] = {}
    for a, b, score in votes:
        if a == b or not 0 <= score <= 1:
            raise InputError(f"vote ({a!r}, {b!r}, {score}): needs two players and a score of 0 to 1; leave it out")
        won[a] += score
        won[b] += 1 - score
        pair = (a, b) if a < b else (b, a)
        games[pair] = games.get(pair, 0.0) + 1
    if prior == 0 and (winless := [p for p in players if won[p] == 0]):
        raise InputError(
            f"player {winless[0]!r}: never won, so without a prior its rating has no bound; give prior=0.1"
        )
    ratings = {p: mean + SCALE * math.log(s) for p, s in _strengths(won, games, prior, tolerance, most_steps).items()}
    return dict(sorted(ratings.items(), key=lambda item: (-item[1], item[0])))


def fit_table(wins: Wins, players: int | None = None, tolerance: float = 1e-7, most_steps: int = 2000) -> list[float]:
    """Bradley–Terry ratings, centred on 0, that make a table of wins most likely.

    A player that won or lost every one of its votes has no finite rating; half a vote is then added to both sides of
    each of its pairs.
    """
    players = players or 1 + max(max(pair) for pair in wins)
    up, down = [0] * players, [0] * players
    for (i, j), (a, b) in wins.items():
        up[i] += a
        down[i] += b
        up[j] += b
        down[j] += a
    extreme = {player for player in range(players) if not up[player] or not down[player]}
    won: dict[int, float] = dict.fromkeys(range(players), 0.0)
    games: dict[tuple[int, int], float] = {}
    for (i, j), (a, b) in wins.items():
        pad = 0.5 if {i, j} & extreme else 0.0
        games[i, j] = a + b + 2 * pad
        won[i] += a + pad
        won[j] += b + pad
    return [SCALE * math.log(s) for s in _strengths(won, games, 0.0, tolerance, most_steps).values()]


# ------------------------------------------------------------------ noise


def bootstrap(
    votes: Sequence[Vote], rounds: int = 200, seed: int = 0, level: float = 0.95, prior: float = 0.1
) -> dict[str, tuple[float, float]]:
    """Interval of each rating: the votes are drawn again with replacement, `rounds` times, and rated anew.

    Raises:
        InputError: fewer than 20 rounds, or a level outside (0, 1).
    """
    if rounds < 20 or not 0 < level < 1:
        raise InputError(
            f"rounds={rounds}, level={level}: needs 20 rounds or more and a level in (0, 1); 200 and 0.95 are usual"
        )
    draw, votes = random.Random(seed), list(votes)
    drawn: dict[str, list[float]] = {p: [] for a, b, _ in votes for p in (a, b)}
    for _ in range(rounds):
        again = bradley_terry(draw.choices(votes, k=len(votes)), prior, tolerance=1e-6)
        for player, rating in again.items():
            drawn[player].append(rating)
    return {p: percentile_interval(values, level) for p, values in drawn.items() if values}


def bootstrap_table(wins: Wins, rounds: int = 200, seed: int = 0, level: float = 0.95) -> RatedTable:
    """Fitted ratings of a table of wins with percentile intervals, and how often each player comes out on top.

    The votes of each pair are drawn again as one binomial, which takes no longer for a million votes than for ten.
    """
    rng, ratings = random.Random(seed), fit_table(wins)
    draws, first = [], [0] * len(ratings)
    for _ in range(rounds):
        again = {}
        for pair, (a, b) in wins.items():
            redrawn = _binomial(rng, a + b, a / (a + b)) if a + b else 0
            again[pair] = (redrawn, a + b - redrawn)
        draws.append(fit_table(again, len(ratings)))
        first[draws[-1].index(max(draws[-1]))] += 1
    intervals = [percentile_interval(column, level) for column in zip(*draws, strict=True)]
    return {
        "ratings": ratings,
        "low": [low for low, _ in intervals],
        "high": [high for _, high in intervals],
        "first": [n / rounds for n in first],
        "draws": draws,
    }


def percentile_interval(values: Iterable[float], level: float) -> tuple[float, float]:
    """The middle `level` of a sample: (low, high)."""
    ordered, cut = sorted(values), (1 - level) / 2
    return ordered[round(cut * (len(ordered) - 1))], ordered[round((1 - cut) * (len(ordered) - 1))]


def ranks(intervals: dict[str, tuple[float, float]]) -> dict[str, int]:
    """Rank of each player: one more than the players that are surely better, whose intervals do not overlap."""
    return {p: 1 + sum(other_low > high for other_low, _ in intervals.values()) for p, (_, high) in intervals.items()}


def arena(
    answers: dict[str, Sequence], judge: Callable[[object, object, int], float], pairs: int, seed: int = 0
) -> list[Vote]:
    """Votes of a judge on randomly drawn pairs of players and questions; who stands first is drawn too.

    Args:
        answers: player → its answers to the same questions, in the same order.
        judge: (first answer, second answer, question number) → score of the first, 1, 0.5 or 0.

    Raises:
        InputError: fewer than two players, or answers of different counts.
    """
    counts = {len(a) for a in answers.values()}
    if len(answers) < 2 or len(counts) != 1 or counts == {0}:
        raise InputError(
            f"{len(answers)} players with {sorted(counts)} answers: needs two players or more that answered the same "
            "questions"
        )
    draw, names, votes = random.Random(seed), sorted(answers), []
    for _ in range(pairs):
        a, b = draw.sample(names, 2)
        question = draw.randrange(len(answers[a]))
        votes.append((a, b, judge(answers[a][question], answers[b][question], question)))
    return votes


def simulate_votes(ratings: Sequence[float], votes: int, seed: int = 0) -> dict[tuple[int, int], tuple[int, int]]:
    """A table of wins of an arena whose true ratings are known: pairs drawn evenly, winners by `win_probability`.

    Raises:
        InputError: fewer than two players.
    """
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


def share_in_right_order(gap: float, votes: int, arenas: int = 200, seed: int = 0) -> float:
    """Simulated: how often the better of two players, `gap` points apart, also ends up with the higher rating."""
    right = 0.0
    for n in range(arenas):
        up, down = simulate_votes((gap, 0.0), votes, seed + n)[0, 1]
        right += (up > down) + (up == down) / 2
    return right / arenas


def _binomial(rng: random.Random, n: int, p: float) -> int:
    """Successes in n trials. Above a variance of 100 a rounded normal is used: it is off by less than a vote in ten."""
    if n * p * (1 - p) > 100:
        return min(n, max(0, round(rng.gauss(n * p, math.sqrt(n * p * (1 - p))))))
    return sum(rng.random() < p for _ in range(n))
