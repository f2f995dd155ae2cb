"""Checks of 19: a dense table of gates, rounding to a floating-point format, agreement within a tolerance.

The references go element by element; rounding is done by torch's own bfloat16 and float16."""

import math

from minglm.course.workshop.checking import Exercise, Mistake
from minglm.course.workshop.checks import drawn


def _routes():
    import torch

    out = [(torch.tensor([[2, 0]]), torch.tensor([[0.7, 0.3]]), 4)]
    for seed, (n, k, e) in enumerate(((5, 2, 8), (3, 3, 3))):
        out.append((drawn(n, e, seed=seed).topk(k).indices, drawn(n, k, seed=9 + seed).sigmoid(), e))
    return out


def _dense(chosen, gates, E):
    import torch

    return torch.tensor(
        [
            [next((g for c, g in zip(row, gate, strict=False) if c == e), 0.0) for e in range(E)]
            for row, gate in zip(chosen.tolist(), gates.tolist(), strict=False)
        ]
    )


def _first_columns(chosen, gates, E):
    import torch

    return torch.cat([gates, torch.zeros(len(gates), E - gates.shape[1])], 1)


def _rounded(x, bits):
    import torch

    return float(torch.tensor(x, dtype=torch.float64).to({7: torch.bfloat16, 10: torch.float16}[bits]))


def _to_step(x, step, to=round):
    return to(x / step) * step


def _exponent(x):
    return math.frexp(x)[1] - 1


def _pairs():
    import torch

    nan, one = math.nan, torch.tensor
    return [
        (one([1.0, 2.0]), one([1.0005, 2.0])),
        (one([1.0, 2.0]), one([1.0, 2.1])),
        (one([0.0, 1.0]), one([5e-6, 1.0])),
        (one([2e-5, 1.0]), one([0.0, 1.0])),
        (one([nan, 1.0]), one([1.0, 1.0])),
        (one([nan, 1.0]), one([nan, 1.0])),
        (one([[1.0], [1.0]]), one([1.0, 1.0])),
        (one([[1.0], [1.0]]), one([[1.0, 1.0]])),
        (one([[1.0], [1.0]]), one([1.0])),
        (one([900.0]), one([899.5])),
        (one([1.0, 3.0]), one([3.0, 1.0])),
        (one([1.0] * 999 + [1.02]), one([1.0] * 1000)),
        (one([-1.0]), one([-1.0005])),
        (one([1.0]), one([1.0015])),  # beyond the bound that holds when none is given
        (one([0.0, 2.0]), one([0.0, 2.0]), 1e-3, 0.0),  # equal is within a bound of nothing
        (one([1.0, -1.0]), one([1.0, 1.0])),
        # bounds of the caller's own; relative to want, not to got; both added up, not either
        (one([1.0]), one([1.05]), 0.1),
        (one([1.0]), one([1.0005]), 1e-5),
        (one([0.0]), one([5e-4]), 0.0, 1e-3),
        (one([1.1]), one([1.0]), 0.095, 0.0),
        (one([1.15]), one([1.0]), 0.1, 0.1),
    ]


REL, ABS = 1e-3, 1e-5


def _agree(got, want, relative=REL, absolute=ABS):
    if tuple(got.shape) != tuple(want.shape):
        return False
    return all(
        abs(a - b) <= absolute + relative * abs(b)
        for a, b in zip(got.flatten().tolist(), want.flatten().tolist(), strict=False)
    )


def _stretched(got, want, relative=REL, absolute=ABS):
    return bool(((got - want).abs() <= absolute + relative * want.abs()).all())


EXERCISES = [
    Exercise(
        "19.dense_gates",
        _dense,
        _routes,
        (
            Mistake(
                _first_columns,
                "The gates stand in the first K columns. Each belongs into the column of its expert, which `chosen` "
                "names.",
            ),
            Mistake(
                lambda c, g, e: _dense(c, g * 0 + 1, e), "That marks who was chosen. Write the gate there, not a 1."
            ),
            Mistake(
                lambda c, g, e: _dense(c.sort(1).values, g, e),
                "Sorting the experts tears them from their gates: the two must stay side by side.",
            ),
            Mistake(
                lambda c, g, e: _dense(c, g, e).T,
                "Rows and columns are exchanged: a row for each token, a column for each expert.",
            ),
            Mistake(
                lambda c, g, e: _dense(c, g / g.sum(1, keepdim=True), e),
                "You made the gates of each token sum to 1. Take them as they are: the router has settled that.",
            ),
        ),
        "torch.zeros(chosen.shape[0], E).scatter(1, chosen, gates).",
    ),
    Exercise(
        "19.round_to_bits",
        _rounded,
        lambda: [(100.3, 7), (-1.3, 7), (0.0, 7), (3.14159, 7), (0.013, 7), (-7.77, 10), (1234.7, 7), (0.9004, 10)],
        (
            Mistake(
                lambda x, b: _to_step(x, 2.0**-b),
                "The step is the same everywhere. It has to double with each power of two, or large numbers would be "
                "kept too exactly and small ones lost.",
            ),
            Mistake(
                lambda x, b: _to_step(x, 2.0 ** (math.frexp(x)[1] - b)),
                "Twice too coarse: frexp's m lies between a half and 1, so the exponent of ±1.xxx is e − 1.",
            ),
            Mistake(
                lambda x, b: _to_step(x, 2.0 ** (_exponent(x) - b), math.floor),
                "That rounds down. The nearest is wanted; rounding down adds up over a sum.",
            ),
            Mistake(
                lambda x, b: _to_step(x, 2.0 ** (_exponent(x) - b), math.trunc),
                "That cuts off towards zero. The nearest is wanted; cut-off numbers make all sums a little too small.",
            ),
            Mistake(
                lambda x, b: float(round(x, b)),
                "That keeps decimal places. A chip keeps bits, and they count from the number's own first one.",
            ),
        ),
        "step = 2 ** (frexp exponent − 1 − bits); result = round(x / step) · step.",
    ),
    Exercise(
        "19.agree",
        _agree,
        _pairs,
        (
            Mistake(
                lambda a, b, r=REL, t=ABS: a.shape == b.shape and bool((a - b).abs().mean() <= t + r * b.abs().mean()),
                "A mean hides one wrong element among a thousand. Every element has to be close to its partner.",
            ),
            Mistake(
                lambda a, b, r=REL, t=ABS: a.shape == b.shape and not bool(((a - b).abs() > t + r * b.abs()).any()),
                "A NaN passed: every comparison with NaN is false, so 'none is too far' is true. Ask whether all are "
                "near.",
            ),
            Mistake(
                _stretched,
                "Shapes (2, 1) and (2,) were stretched to fit each other. A port that gives another shape is wrong: "
                "compare the shapes first.",
            ),
            Mistake(
                lambda a, b, r=REL, t=ABS: len(a) == len(b) and _stretched(a, b, r, t),
                "`len` is the first number of a shape only: (2, 1) and (2,) have the same. Compare `got.shape` with "
                "`want.shape`.",
            ),
            Mistake(
                lambda a, b, r=REL, t=ABS: a.numel() == b.numel() and _agree(a.flatten(), b.flatten(), r, t),
                "As many elements are not yet the same shape: (2, 1) and (2,) have two each. Compare `got.shape` with "
                "`want.shape`.",
            ),
            Mistake(
                lambda a, b, r=REL, t=ABS: (
                    a.shape == b.shape
                    and all(
                        p - q <= t + r * abs(q)
                        for p, q in zip(a.flatten().tolist(), b.flatten().tolist(), strict=False)
                    )
                ),
                "Without abs() a number that is far too small counts as near.",
            ),
            Mistake(
                lambda a, b, r=REL, t=ABS: _agree(a, b),
                "You use fixed bounds. The caller chooses them: use `relative` and `absolute`.",
            ),
            Mistake(
                lambda a, b, r=REL, t=ABS: a.shape == b.shape and _agree(b, a, r, t),
                "The two are exchanged: the bound grows with |want|, which is known to be right, not with |got|.",
            ),
            Mistake(
                lambda a, b, r=REL, t=ABS: (
                    a.shape == b.shape and bool(((a - b).abs() <= (r * b.abs()).clamp(min=t)).all())
                ),
                "You ask for one bound or the other (the larger). The two are added: |got − want| <= absolute + "
                "relative · |want|.",
            ),
            Mistake(
                lambda a, b, r=REL, t=ABS: _agree(a, b, r, 0.0),
                "With the relative bound alone, nothing but zero agrees with zero; add the absolute one.",
            ),
            Mistake(
                lambda a, b, r=REL, t=ABS: _agree(a, b, 0.0, t),
                "One absolute bound for all: 899.5 and 900 agree to a thousandth of their size, and near zero 0.001 is "
                "a mile. Scale it with |want|.",
            ),
            Mistake(
                lambda a, b, r=REL, t=ABS: _agree(a.sort().values, b.sort().values, r, t),
                "Sorted, any exchange of two elements goes unnoticed. Compare each with its own partner.",
            ),
        ),
        "Same shape, and |got − want| <= absolute + relative · |want| for all elements.",
    ),
]
