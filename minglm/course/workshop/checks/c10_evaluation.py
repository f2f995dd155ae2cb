"""Checks of 10: pass@k, an interval for a rate, Bradley–Terry, and whether two scores differ."""

import itertools
import math

from minglm.course.workshop.checking import Exercise, Mistake
from minglm.evals.statistics import wilson


def _pass_at_k(n, c, k):
    """By listing every way to draw k of n answers of which c are right."""
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    return sum(any(d) for d in draws) / len(draws)


def _wilson(right, total):
    return wilson(right, total)


def _win(a, b):
    return 10 ** (a / 400) / (10 ** (a / 400) + 10 ** (b / 400))


def _half(right, total):
    p = right / total
    return 1.96 * math.sqrt(p * (1 - p) / total)


def _mm(strength, wins):
    """One step of the fixed-point iteration, written with loops; strengths scaled so that they add up to 1."""
    new = []
    for i in range(len(strength)):
        won = sum(wins[i])
        games = sum((wins[i][j] + wins[j][i]) / (strength[i] + strength[j]) for j in range(len(strength)) if j != i)
        new.append(won / games)
    return [v / sum(new) for v in new]


def _mm_three(strength, wins):
    new = [
        sum(wins[i]) / sum((wins[i][j] + wins[j][i]) / (strength[i] + strength[j]) for j in range(3) if j != i)
        for i in range(3)
    ]
    return [v / sum(new) for v in new]


def _mm_raw(strength, wins):
    new = []
    for i in range(len(strength)):
        games = sum((wins[i][j] + wins[j][i]) / (strength[i] + strength[j]) for j in range(len(strength)) if j != i)
        new.append(sum(wins[i]) / games)
    return new


def _shares(wins):
    won = [sum(row) for row in wins]
    return [w / sum(won) for w in won]


def _proportional(a, b):
    odds = 10 * (a - b) / 400
    return odds / (1 + odds)


WINS = [[0, 7, 9], [3, 0, 6], [1, 4, 0]]
FOUR = [[0, 2, 5, 8], [6, 0, 3, 1], [4, 4, 0, 2], [1, 7, 3, 0]]


EXERCISES = [
    Exercise(
        "10.pass_at_k",
        _pass_at_k,
        lambda: [(10, 3, 1), (10, 3, 5), (8, 0, 4), (6, 6, 2), (5, 3, 3)],
        (
            Mistake(
                lambda n, c, k: 1 - (1 - c / n) ** k,
                "This draws with replacement: the same wrong answer may be drawn twice, and the result is too low. "
                "Count the draws that hold no right answer: C(n-c, k) of C(n, k).",
            ),
            Mistake(lambda n, c, k: c / n, "That is pass@1. With k tries at least one has to be right."),
            Mistake(
                lambda n, c, k: min(1.0, k * c / n),
                "Chances of several tries do not simply add up: two of them may succeed in the same draw.",
            ),
            Mistake(
                lambda n, c, k: math.comb(n - c, k) / math.comb(n, k),
                "That is the chance that all k fail. Take it from 1.",
            ),
        ),
        "1 − C(n−c, k) / C(n, k), with math.comb.",
    ),
    Exercise(
        "10.wilson",
        _wilson,
        lambda: [(39, 50), (0, 20), (20, 20), (389, 500)],
        (
            Mistake(
                lambda r, n: (r / n - _half(r, n), r / n + _half(r, n)),
                "That is the textbook interval. With 0 of 20 it has no width at all, as if you were certain, and it "
                "may leave 0..1. Use Wilson's formula.",
            ),
            Mistake(
                lambda r, n: tuple(100 * v for v in _wilson(r, n)), "Those are percent. Give shares between 0 and 1."
            ),
            Mistake(
                lambda r, n: tuple(round(v, 4) for v in _wilson(r, n)),
                "You rounded to four digits. Give the numbers as they come: later steps may need what you cut off.",
            ),
            Mistake(lambda r, n: _wilson(r, n)[::-1], "The two ends are exchanged: low first, then high."),
        ),
        "With z = 1.96, n = total and p = right / n: centre (p + z²/(2n)) / (1 + z²/n), half z·sqrt(p(1−p)/n + "
        "z²/(4n²)) / (1 + z²/n); low is centre − half, high is centre + half; no rounding.",
    ),
    Exercise(
        "10.win_probability",
        _win,
        lambda: [(1451, 1447), (1000, 1000), (1200, 800), (900, 1100)],
        (
            Mistake(
                lambda a, b: 1 / (1 + math.exp(-(a - b) / 400)),
                "The scale of arena ratings has base 10: 400 points are odds of ten to one. Use 10 ** ..., not exp.",
            ),
            Mistake(lambda a, b: _win(b, a), "That is the chance that b wins."),
            Mistake(lambda a, b: a / (a + b), "Ratings are on a logarithmic scale: only their difference counts."),
            Mistake(
                lambda a, b: 10 ** ((a - b) / 400),
                "Those are the odds. The chance is odds / (1 + odds), which lies between 0 and 1.",
            ),
            Mistake(
                _proportional,
                "Points add, odds multiply: 200 points are half of 400, so their odds are the square root of ten, not "
                "half of ten.",
            ),
        ),
        "Equal ratings: odds 1, chance 1/2. 400 points more: odds 10, chance 10/11. 200 points more: odds sqrt(10). "
        "400 points less: odds 1/10.",
    ),
    Exercise(
        "10.bradley_terry_step",
        _mm,
        lambda: [([1 / 3] * 3, WINS), ([0.5, 0.3, 0.2], WINS), ([0.4, 0.1, 0.3, 0.2], FOUR)],
        (
            Mistake(
                lambda s, w: _shares(w),
                "That is each player's share of all wins. Who played stronger opponents must get more for a win: "
                "divide by the sum of games / (own + other strength).",
            ),
            Mistake(_mm_raw, "The strengths must be scaled to add up to 1: only their ratios mean something."),
            Mistake(_mm_three, "This works for three players only. Let i and j run over range(len(strength))."),
        ),
        "new[i] = wins of i / sum over j of games(i, j) / (s[i] + s[j]); then divide all by their sum.",
    ),
]
