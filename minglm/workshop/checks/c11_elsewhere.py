"""Checks of 11: experts apart as a checkpoint stores them, and a comparison that notices."""
import math

from minglm.workshop.checking import Exercise, Mistake
from minglm.workshop.checks import drawn


def _apart(gate_up, e):
    import torch

    rows = gate_up[e].tolist()
    half = len(rows) // 2
    return torch.tensor(rows[:half]), torch.tensor(rows[half:])


def _agree(ours, theirs, tolerance):
    return all(math.fabs(a - b) <= tolerance for x, y in zip(ours.tolist(), theirs.tolist()) for a, b in zip(x, y))


def _pairs():
    import torch

    a = drawn(4, 6)
    far, balanced, broken = a.clone(), a.clone(), a.clone()
    far[3, 5] += 0.5                     # one place alone
    balanced[0, 0] += 1.0
    balanced[0, 1] -= 1.0                # the sum of the differences is 0
    broken[1, 2] = torch.nan
    return [(a, a + 1e-6, 1e-4), (a, far, 0.1), (a, balanced, 1e-4), (broken, broken, 1e-4), (1000 * a, 1000 * a + 0.01, 1e-4), (a, a - 0.5, 1e-4)]


EXERCISES = [
    Exercise(
        "11.take_apart", _apart, lambda: [(drawn(4, 6, 3), 0), (drawn(3, 4, 5, seed=1), 2)],
        (Mistake(lambda g, e: (_apart(g, e)[1], _apart(g, e)[0]), "Gate and up are exchanged: the gate's rows come first. The model would still run, and answer nonsense."),
         Mistake(lambda g, e: (g[e][0::2], g[e][1::2]), "That takes every second row. The gate's rows come first, all of them, then those of up: cut in the middle."),
         Mistake(lambda g, e: tuple(g[e].chunk(2, -1)), "You cut the columns. The rows hold gate and up: chunk along the first dimension."),
         Mistake(lambda g, e: tuple(part[e] for part in g.chunk(2)) if e < g.shape[0] // 2 else tuple(part[0] for part in g.chunk(2)), "You cut the stack of experts in half. Take expert e first, then cut its rows.")),
        "gate_up[e], its first half of rows, its second half."),
    Exercise(
        "11.agree", _agree, _pairs,
        (Mistake(lambda a, b, t: bool((a - b).abs().mean() <= t), "A mean lets one wrong place hide among many right ones. Every place must agree."),
         Mistake(lambda a, b, t: not bool(((a - b).abs() > t).any()), "A NaN slips through: it is not > tolerance, so it looks like agreement. Ask the other way round: is every difference <= tolerance?"),
         Mistake(lambda a, b, t: bool((a - b <= t).all()), "A difference below zero counts as well: take its absolute value."),
         Mistake(lambda a, b, t: bool((a - b).sum().abs() <= t), "Differences of opposite sign cancel in a sum. Every place must agree by itself.")),
        "True if |ours − theirs| <= tolerance everywhere, and no NaN anywhere."),
]
