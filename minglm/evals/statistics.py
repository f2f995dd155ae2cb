"""How good is a model, and how sure are we: pass@k, intervals for a rate, and a small arena with Bradley–Terry ratings.

Torch-free; `minglm.evals.needle` asks a model for hidden facts, `minglm.cli.eval` puts all together.

Sources: pass@k estimator, Chen et al. 2021 (arXiv 2107.03374, eq. 1); Wilson's interval, Wilson 1927; Bradley–Terry by
minorisation–maximisation, Hunter 2004 (Annals of Statistics 32); ratings on the Elo scale, 400 points = odds of ten to one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from minglm.errors import InputError

Z95 = 1.959963984540054  # 97.5% point of the normal distribution
SCALE = 400.0 / math.log(10.0)  # Elo points for one unit of log-odds


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


def wilson(right: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Interval (low, high) for a rate of which `right` of `total` independent trials succeeded; honest at 0 and at all.

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


def win_probability(a: float, b: float) -> float:
    """Chance that a player rated `a` beats one rated `b` (Elo points)."""
    return 1.0 / (1.0 + math.exp((b - a) / SCALE))


def votes_to_separate(points: float, z: float = Z95, ties: float = 0.0) -> int:
    """Votes between two players after which a true gap of `points` stands out: the interval of the win rate leaves 1/2.

    `ties` is the share of votes that say nothing. This is the count at which the expected rate is `z` standard errors from
    1/2, so about half of such experiments find the gap.
    """
    if not points > 0 or not 0 <= ties < 1:
        raise InputError(f"points={points}, ties={ties}: points must be positive and ties in [0, 1); give such values")
    p = win_probability(points, 0.0)
    return math.ceil(z * z * p * (1 - p) / (p - 0.5) ** 2 / (1 - ties))


def bradley_terry(
    votes: Sequence[tuple[str, str, float]],
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
    if prior == 0 and (idle := [p for p in players if won[p] == 0]):
        raise InputError(f"player {idle[0]!r}: never won, so without a prior its rating has no bound; give prior=0.1")
    strength = dict.fromkeys(players, 1.0)
    for _ in range(most_steps):
        denominator = {
            p: 2 * prior / (strength[p] + 1.0) for p in players
        }  # games against the average player, strength 1
        for (a, b), count in games.items():
            share = count / (strength[a] + strength[b])
            denominator[a] += share
            denominator[b] += share
        new = {p: won[p] / denominator[p] for p in players}
        if prior == 0:  # nothing else fixes the scale
            middle = math.exp(sum(map(math.log, new.values())) / len(new))
            new = {p: v / middle for p, v in new.items()}
        moved = max(abs(math.log(new[p] / strength[p])) for p in players)
        strength = new
        if moved < tolerance:
            break
    return dict(
        sorted(((p, mean + SCALE * math.log(s)) for p, s in strength.items()), key=lambda item: (-item[1], item[0]))
    )


def bootstrap(
    votes: Sequence[tuple[str, str, float]], rounds: int = 200, seed: int = 0, level: float = 0.95, **options
) -> dict[str, tuple[float, float]]:
    """Interval of each rating: the votes are drawn again with replacement, `rounds` times, and rated anew."""
    if rounds < 20 or not 0 < level < 1:
        raise InputError(
            f"rounds={rounds}, level={level}: needs 20 rounds or more and a level in (0, 1); 200 and 0.95 are usual"
        )
    draw, votes = random.Random(seed), list(votes)
    found: dict[str, list[float]] = {p: [] for a, b, _ in votes for p in (a, b)}
    for _ in range(rounds):
        for player, rating in bradley_terry(draw.choices(votes, k=len(votes)), tolerance=1e-6, **options).items():
            found[player].append(rating)
    return {p: _middle(sorted(values), level) for p, values in found.items() if values}


def _middle(values: list[float], level: float) -> tuple[float, float]:
    cut = (1 - level) / 2
    return values[round(cut * (len(values) - 1))], values[round((1 - cut) * (len(values) - 1))]


def ranks(intervals: dict[str, tuple[float, float]]) -> dict[str, int]:
    """Rank of each player: one more than the number of players that are surely better (their intervals do not overlap)."""
    return {p: 1 + sum(other_low > high for other_low, _ in intervals.values()) for p, (_, high) in intervals.items()}


def arena(
    answers: dict[str, Sequence], judge: Callable[[object, object, int], float], pairs: int, seed: int = 0
) -> list[tuple[str, str, float]]:
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
            f"{len(answers)} players with {sorted(counts)} answers: needs two players or more that answered the same questions"
        )
    draw, names, votes = random.Random(seed), sorted(answers), []
    for _ in range(pairs):
        a, b = draw.sample(names, 2)
        question = draw.randrange(len(answers[a]))
        votes.append((a, b, judge(answers[a][question], answers[b][question], question)))
    return votes
