"""Checks of 11: experts apart as a checkpoint stores them, and a comparison that notices."""

import math

from minglm.course.workshop.checking import Exercise, Mistake
from minglm.course.workshop.checks import drawn


def _apart(gate_up, e):
    import torch

    rows = gate_up[e].tolist()
    half = len(rows) // 2
    return torch.tensor(rows[:half]), torch.tensor(rows[half:])


def _agree(ours, theirs, tolerance):
    return all(
        math.fabs(a - b) <= tolerance
        for x, y in zip(ours.tolist(), theirs.tolist(), strict=False)
        for a, b in zip(x, y, strict=False)
    )


def _pairs():
    import torch

    a = drawn(4, 6)
    far, balanced, broken = a.clone(), a.clone(), a.clone()
    far[3, 5] += 0.5  # one number alone
    balanced[0, 0] += 1.0
    balanced[0, 1] -= 1.0  # the sum of the differences is 0
    broken[1, 2] = torch.nan
    large, small, zero = 100 + a / 10, 1e-3 * a.sign(), 0 * a
    return [
        (a, a + 1e-6, 1e-4),
        (a, far, 0.1),
        (a, balanced, 1e-4),
        (broken, broken, 1e-4),
        (1000 * a, 1000 * a + 0.01, 1e-4),
        (a, a - 0.5, 1e-4),
        (broken, a, 1e-4),
        (a, broken, 1e-4),
        (large, large + 2e-4, 1e-4),
        (small, small + 5e-5, 1e-4),  # the difference counts, not its share of the number
        (zero + 0.5, zero, 0.5),
        (zero, zero, 0.0),  # at most: exactly the tolerance is allowed
        (a, a + 0.0075, 0.01),
    ]  # every number agrees, though the norm of a row is above the tolerance


def _close(ours, theirs, **tolerances):
    import torch

    return torch.allclose(ours, theirs, **tolerances)


EXERCISES = [
    Exercise(
        "11.take_apart",
        _apart,
        lambda: [(drawn(4, 6, 4), 0), (drawn(3, 4, 6, seed=1), 2)],
        (
            Mistake(
                lambda g, e: (_apart(g, e)[1], _apart(g, e)[0]),
                "Gate and up are exchanged: the gate's rows come first. The model would still run, and answer "
                "nonsense.",
            ),
            Mistake(
                lambda g, e: (g[e][0::2], g[e][1::2]),
                "That takes every second row. The gate's rows come first, all of them, then those of up: cut in the "
                "middle.",
            ),
            Mistake(
                lambda g, e: tuple(g[e].chunk(2, -1)),
                "You cut the columns. The rows hold gate and up: chunk along the first dimension.",
            ),
            Mistake(
                lambda g, e: (
                    tuple(part[e] for part in g.chunk(2))
                    if e < g.shape[0] // 2
                    else tuple(part[0] for part in g.chunk(2))
                ),
                "You cut the stack of experts in half. Take expert e first, then cut its rows.",
            ),
            Mistake(
                lambda g, e: g[e].reshape(2, -1, g.shape[-1]),
                "The numbers are right, but in one tensor (2, I, C). Give a pair of matrices: return gate, up.",
            ),
            Mistake(
                lambda g, e: tuple(part.mT for part in _apart(g, e)),
                "Both matrices are transposed: they should be (I, C), as their rows stand in the stack.",
            ),
        ),
        "gate_up[e], its first half of rows, its second half.",
    ),
    Exercise(
        "11.agree",
        _agree,
        _pairs,
        (
            Mistake(
                lambda a, b, t: bool((a - b).abs().mean() <= t),
                "A mean lets one wrong number hide among many right ones. Every number must agree.",
            ),
            Mistake(
                lambda a, b, t: not bool(((a - b).abs() > t).any()),
                "A NaN slips through: it is not > tolerance, so it looks like agreement. Ask the other way round: is "
                "every difference <= tolerance?",
            ),
            Mistake(
                lambda a, b, t: bool((a - b <= t).all()),
                "A difference below zero counts as well: take its absolute value.",
            ),
            Mistake(
                lambda a, b, t: bool((a - b).sum().abs() <= t),
                "Differences of opposite sign cancel in a sum. Every number must agree by itself.",
            ),
            Mistake(
                lambda a, b, t: _close(a, b, rtol=t),
                "`rtol` is a share of the number: large logits may then differ by much, small ones by nearly nothing. "
                "`tolerance` is the difference itself: atol=tolerance, rtol=0.",
            ),
            Mistake(
                lambda a, b, t: _close(a, b, atol=t),
                "allclose allows rtol=1e-5 of the number on top, unless told otherwise: 0.001 for a logit of 100. Add "
                "rtol=0, or compare with <= yourself.",
            ),
            Mistake(
                lambda a, b, t: bool(((a - b).abs() / b.abs() <= t).all()),
                "You divided by the size of the numbers. `tolerance` is the difference itself, large or small as they "
                "may be.",
            ),
            Mistake(
                lambda a, b, t: bool(((a - b).abs() < t).all()),
                "A difference of exactly `tolerance` is allowed: at most means <=, not <.",
            ),
            Mistake(
                lambda a, b, t: not bool(a.isnan().any()) and bool((a - b).nan_to_num().abs().max() <= t),
                "A NaN in `theirs` alone slips through. A NaN anywhere is a disagreement.",
            ),
            Mistake(
                lambda a, b, t: not bool(b.isnan().any()) and bool((a - b).nan_to_num().abs().max() <= t),
                "A NaN in `ours` alone slips through. A NaN anywhere is a disagreement.",
            ),
            Mistake(
                lambda a, b, t: bool(((a - b).norm(dim=-1) <= t).all()),
                "The norm or sum of a row adds up its small differences, so it refuses what agrees in every number. "
                "Compare number by number.",
            ),
        ),
        "True if |ours − theirs| <= tolerance for every number, and no NaN anywhere.",
    ),
]
