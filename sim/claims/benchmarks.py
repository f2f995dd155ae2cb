"""Claims about scores: gaps, what the noise of a benchmark allows, leaderboards, and rates of hallucination.

A score of k right answers out of n is a draw: asked again with n other questions of the same kind it would differ. The
intervals here say by how much, for one run over independent questions, which is the most favourable case.
"""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist

from minglm.errors import InputError
from minglm.evals import statistics
from sim.claims.rules import Answer, exact

ITEMS = {
    "SWE-bench Verified": 500,
    "AIME 2026 I": 15,
    "AIME 2026": 30,
    "GPQA-Diamond": 198,
    "HLE": 2500,
    "AA-Omniscience": 6000,
}
HLE_TEXT_SHARE = Fraction(86, 100)  # of the 2,500 questions; scale.com, HLE text-only leaderboard

# GLM-5, Claude Opus 4.5, GPT-5.2 (xhigh): report, Table 7
REPORTED = {
    "SWE-bench Verified": ("77.8", "80.9", "80.0"),
    "AIME 2026 I": ("92.7", "93.3", None),
    "GPQA-Diamond": ("86.0", "87.0", "92.4"),
    "HLE with tools": ("50.4", "43.4", "45.5"),
}

# Fresh problems mined by others each month, percent solved and its standard error: SWE-rebench, January 2026 (Table 9)
REBENCH = {"GLM-5": ("42.1", "1.21"), "Claude Opus 4.5": ("43.8", "0.93"), "GPT-5.2": ("51.7", "1.21")}

# Text Arena on 6 February 2026, five days before the release: model, rating, votes, closed weights?
BOARD = (
    ("Claude Opus 4.6", 1496, 2_829, True),
    ("Gemini 3 Pro", 1486, 34_419, True),
    ("Grok 4.1 Thinking", 1475, 34_455, True),
    ("Gemini 3 Flash", 1470, 25_085, True),
    ("Claude Opus 4.5 Thinking", 1468, 26_178, True),
    ("Claude Opus 4.5", 1467, 31_069, True),
    ("Grok 4.1", 1465, 38_605, True),
    ("Gemini 3 Flash, minimal thinking", 1463, 16_255, True),
    ("GPT-5.1 High", 1458, 30_500, True),
    ("ERNIE 5.0", 1452, 10_184, True),
    ("Claude Sonnet 4.5", 1450, 42_437, True),
    ("Claude Sonnet 4.5 Thinking", 1450, 44_799, True),
    ("Gemini 2.5 Pro", 1450, 93_835, True),
    ("ERNIE 5.0 Preview", 1449, 9_775, True),
    ("Kimi K2.5 Thinking", 1449, 7_085, False),
    ("Claude Opus 4.1 Thinking", 1449, 49_956, True),
    ("Claude Opus 4.1", 1445, 73_888, True),
)


# ------------------------------------------------------------------ scores and gaps


def gap(a: float, b: float) -> Answer:
    """a − b in points, exactly."""
    return Answer(exact(a) - exact(b), "points", {})


def score_interval(percent: float, items: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval in percent for a score of `percent` over `items` questions (Wilson 1927).

    Raises:
        InputError: no items, or a percentage outside 0 to 100.
    """
    if items < 1 or not 0 <= percent <= 100:
        raise InputError(
            f"percent={percent}, items={items}: a percentage from 0 to 100 over at least one item is needed"
        )
    right = float(percent) / 100 * items
    low, high = statistics.wilson(right, items, statistics.normal_quantile(confidence))
    return 100 * low, 100 * high


def chance_of_such_a_gap(a: float, b: float, items: int) -> float:
    """Two-sided p-value of the gap between two scores over `items` questions each, if the models were equally good."""
    p, q = float(a) / 100, float(b) / 100
    pooled = (p + q) / 2
    z = abs(p - q) / math.sqrt(2 * pooled * (1 - pooled) / items)
    return 2 * (1 - NormalDist().cdf(z))


def items_to_separate(a: float, b: float, power: float = 0.8, confidence: float = 0.95) -> int:
    """Questions each model must answer before this gap shows with `power`."""
    p, q = float(a) / 100, float(b) / 100
    if p == q:
        raise InputError(f"a={a}, b={b}: equal scores cannot be separated; give two different ones")
    z = statistics.normal_quantile(confidence) + NormalDist().inv_cdf(power)
    return math.ceil(z * z * (p * (1 - p) + q * (1 - q)) / (p - q) ** 2)


def possible_in_one_run(percent: float, items: int, decimals: int = 1) -> bool:
    """Can k right answers of `items` be printed as this percentage? If not, the score is an average of runs."""
    unit = Fraction(1, 10**decimals)
    return any(
        (Fraction(100 * k, items) / unit + Fraction(1, 2)).__floor__() * unit == exact(percent)
        for k in range(items + 1)
    )


def score(benchmark: str, percent: float) -> Answer:
    """The interval around a reported score, and whether one run could have given it."""
    n = ITEMS[benchmark]
    low, high = score_interval(percent, n)
    return Answer(
        (low, high),
        "percent, 95% interval",
        {
            "items": n,
            "right_answers": exact(percent) * n / 100,
            "possible_in_one_run": possible_in_one_run(percent, n),
            "half_width": (high - low) / 2,
        },
    )


def swe_gap_in_noise() -> Answer:
    """Chance of a gap as large as 77.8 to 80.9 between equal models, and questions needed to be sure of it."""
    return Answer(
        chance_of_such_a_gap(77.8, 80.9, 500),
        "chance under equality",
        {"questions_needed": items_to_separate(77.8, 80.9)},
    )


def benchmarks_led() -> Answer:
    """Of the benchmarks quoted, how many GLM-5 leads before both rivals (before the one that has a score)."""
    led = [
        name
        for name, (own, *rivals) in REPORTED.items()
        if all(exact(Fraction(own)) > Fraction(r) for r in rivals if r)
    ]
    return Answer(len(led), f"of {len(REPORTED)} benchmarks", {"led": ", ".join(led)})


def hle_rival_ceiling(full_set: float = 45.5) -> Answer:
    """Range of a rival's text-only score, given its full-set score: from all pictures right to all pictures wrong."""
    total, text = Fraction(2500), 2500 * HLE_TEXT_SHARE
    right = exact(full_set) / 100 * total
    return Answer(
        (max(Fraction(0), right - (total - text)) / text * 100, min(right, text) / text * 100),
        "percent, text questions alone",
        {"text_questions": text},
    )


def vendor_against_independent() -> Answer:
    """Points between the reported SWE-bench Verified score and one that others measured with their own scaffold."""
    fresh = {f"swe_rebench_{name.split()[-1]}": Fraction(score) for name, (score, _) in REBENCH.items()}
    return Answer(exact(77.8) - exact(72.1), "points", {"independent": Fraction("72.1"), **fresh})


# ------------------------------------------------------------------ the Arena


def arena_gap(points: float) -> Answer:
    """Smallest gap that a new model (2,829 votes) and an established one (31,069) can be told apart by.

    The votes are those of the newest and of a settled row of the board of 6 February 2026.
    """
    needed = statistics.votes_to_separate(points)
    return Answer(
        statistics.detectable_gap(2_829, 31_069),
        "points, smallest gap that shows",
        {"of_votes": 100, "votes_won": 100 * statistics.win_probability(points), "head_to_head_votes_needed": needed},
    )


def arena_top() -> Answer:
    """The best rating on the board five days before the release."""
    return Answer(max(row[1] for row in BOARD), "points", {"model": max(BOARD, key=lambda row: row[1])[0]})


def arena_closed_above(rating: float = 1451) -> Answer:
    """Closed models rated above GLM-5's 1451 on that board."""
    above = [row for row in BOARD if row[3] and row[1] > rating]
    return Answer(
        len(above),
        "closed models above",
        {"clearly_above": sum(row[1] - rating > 2 * statistics.half_width(row[2]) for row in above)},
    )


def arena_opus() -> Answer:
    """Claude Opus 4.5 on that board, the lower of its two rows."""
    return Answer(min(row[1] for row in BOARD if row[0].startswith("Claude Opus 4.5")), "points", {})


def arena_reading() -> Answer:
    """Where 1451 may lie: the later reading of 1455 ± the half-width that some 7,000 votes give."""
    half = statistics.half_width(7_085)
    return Answer((1455 - half, 1455 + half), "points, 95%", {"half_width": half})


# ------------------------------------------------------------------ hallucination


def hallucination_rate(correct: int, partial: int, incorrect: int, abstained: int) -> Fraction:
    """AA-Omniscience: of the questions not answered correctly, the share answered wrongly instead of declined."""
    missed = partial + incorrect + abstained
    if missed == 0:
        raise InputError(
            "every answer correct: the rate is a share of the others, and there are none; give at least one miss"
        )
    return Fraction(incorrect, missed)


def omniscience_index(correct: int, partial: int, incorrect: int, abstained: int) -> Fraction:
    """AA-Omniscience: right minus wrong, per hundred questions. From −100 to 100; 0 is as many right as wrong."""
    return Fraction(100 * (correct - incorrect), correct + partial + incorrect + abstained)


def index_at(accuracy: float | Fraction, rate: float | Fraction) -> Fraction:
    """The index of a model with this accuracy and hallucination rate, both shares of one."""
    right = exact(accuracy)
    return 100 * (right - (1 - right) * exact(rate))


def reduction(before: float = 90, after: float = 34) -> Answer:
    """In points (a difference of percentages) and in percent (a share of the start)."""
    return Answer(
        exact(before) - exact(after),
        "points",
        {"percent_of_the_start": (exact(before) - exact(after)) / exact(before) * 100},
    )


def index_range(rate: float = 0.34, best_accuracy: float = 0.39) -> Answer:
    """Every index that a model with this hallucination rate can have, up to the best accuracy measured (39%)."""
    r = exact(rate)
    return Answer(
        (index_at(0, r), index_at(best_accuracy, r)),
        "index points",
        {
            "accuracy_needed_for_34": (Fraction(34, 100) + r) / (1 + r) * 100,
            "index_at_25_percent_accuracy": index_at(0.25, r),
        },
    )
