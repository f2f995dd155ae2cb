"""Checks of 15: the rate, the index under a threshold, and the certainty from which an answer pays."""

from minglm.course.workshop.checking import Exercise, Mistake
from minglm.rl.abstention_world import Counts


def _rate(correct, partial, incorrect, abstained):
    counts = Counts(correct, partial, incorrect, abstained)
    return counts.hallucination_rate if counts.total > correct else 0.0


def _index(answers, threshold):
    worth = {"correct": 100.0, "partial": 0.0, "incorrect": -100.0}
    return sum(0.0 if confidence < threshold else worth[grade] for grade, confidence in answers) / len(answers)


def _speak(right, wrong, unknown):
    """By halving the interval in which the two earnings cross."""
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        low, high = (low, p) if p * right + (1 - p) * wrong > unknown else (p, high)
    return low


ANSWERS = [
    ("correct", 0.99),
    ("incorrect", 0.3),
    ("correct", 0.5),
    ("partial", 0.6),
    ("incorrect", 0.8),
    ("correct", 0.2),
    ("correct", 0.5),
]


EXERCISES = [
    Exercise(
        "15.hallucination_rate",
        _rate,
        lambda: [(50, 5, 45, 0), (10, 0, 0, 90), (0, 10, 30, 60), (7, 0, 0, 0), (900, 1, 9, 0), (12, 0, 8, 5)],
        (
            Mistake(
                lambda c, p, i, a: i / (c + p + i + a),
                "You divided by all questions. Right answers are not in this rate at all: that is why it can be 90% "
                "for a model that knows a lot.",
            ),
            Mistake(
                lambda c, p, i, a: i / (i + a) if i + a else 0.0,
                "Partial answers belong below the line: they are not right either.",
            ),
            Mistake(
                lambda c, p, i, a: (i + p) / (p + i + a) if p + i + a else 0.0,
                "Only incorrect answers stand above the line; partial ones are below it alone.",
            ),
            Mistake(lambda c, p, i, a: i / (p + i + a), "When everything is right this divides by 0. Give 0 then."),
            Mistake(lambda c, p, i, a: 100 * _rate(c, p, i, a), "That is percent; give a share between 0 and 1."),
        ),
        "incorrect / (partial + incorrect + abstained), and 0 when that sum is 0.",
    ),
    Exercise(
        "15.index_with_threshold",
        _index,
        lambda: [(ANSWERS, 0.0), (ANSWERS, 0.5), (ANSWERS, 0.9), (ANSWERS, 1.0)],
        (
            Mistake(
                lambda a, t: _index([x for x in a if x[1] >= t], 0) if any(x[1] >= t for x in a) else 0.0,
                "You divided by the answers that were given. Withheld ones are questions too: divide by all of them.",
            ),
            Mistake(
                lambda a, t: _index([(g, c if c > t else -1) for g, c in a], 0),
                "An answer whose confidence equals the threshold is not below it: it counts.",
            ),
            Mistake(
                lambda a, t: 100 * sum(g == "correct" and c >= t for g, c in a) / len(a),
                "That is the share of right answers. Each wrong one takes a point away.",
            ),
            Mistake(
                lambda a, t: _index([(g, -c) for g, c in a], -t),
                "The wrong half is withheld: answers below the threshold are the ones not given.",
            ),
            Mistake(lambda a, t: _index(a, t) / 100, "The index runs from −100 to 100: multiply by 100."),
        ),
        "Only answers with confidence ≥ threshold count above the line; below it stand all questions.",
    ),
    Exercise(
        "15.speak_above",
        _speak,
        lambda: [(1, -1, 0), (1, 0, 0), (1, -1, -0.5), (1, -3, 0), (2, -1, 0.5), (1, 0.2, 0.6)],
        (
            Mistake(
                lambda r, w, u: (u - w) / r,
                "Divide by the whole distance from wrong to right: p·right + (1 − p)·wrong = wrong + p·(right − "
                "wrong).",
            ),
            Mistake(
                lambda r, w, u: (r - u) / (r - w),
                "That is how unsure it may be. Turn it round: the certainty from which on it pays.",
            ),
            Mistake(
                lambda r, w, u: 0.5,
                "One half is right for +1, −1 and 0 only. Set p·right + (1 − p)·wrong equal to unknown and solve for "
                "p.",
            ),
            Mistake(
                lambda r, w, u: u / r,
                "A wrong answer earns `wrong`, not 0: set p·right + (1 − p)·wrong equal to unknown and solve for p.",
            ),
            Mistake(
                lambda r, w, u: (u + abs(w)) / (r + abs(w)),
                "That takes `wrong` for a penalty. It may be above 0 too, such as 0.2: subtract it as it is, without "
                "abs.",
            ),
        ),
        "Solve p·right + (1 − p)·wrong = unknown for p.",
    ),
]
