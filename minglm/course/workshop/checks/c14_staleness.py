"""Checks of 14: the rule that bounds staleness, importance weights, and two ways to tame them."""

import math

from minglm.course.workshop.checking import Exercise, Mistake, NotYet, same
from minglm.course.workshop.checks import drawn


def _may_start(version, batch, max_staleness, started):
    """Start them one by one, as long as each would be trained on by version + max_staleness at the latest."""
    new = 0
    while (started + new) // batch <= version + max_staleness:
        new += 1
    return new


def _importance(old, behaviour):
    import torch

    return torch.tensor(
        [
            [math.exp(a) / math.exp(b) for a, b in zip(x, y, strict=False)]
            for x, y in zip(old.tolist(), behaviour.tolist(), strict=False)
        ]
    )


def _each(function):
    def over(weight, bound):
        import torch

        return torch.tensor([function(w, bound) for w in weight.flatten().tolist()]).reshape(weight.shape)

    return over


def _weights():
    import torch

    return [(torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0, 50.0]), 2.0), (drawn(3, 4, seed=8).exp(), 1.5)]


CARRIES = (
    "The weights are right, but they carry a gradient: the step would also change them, in place of making good tokens "
    "likelier. End with .detach()."
)
WRITES = (
    "The weights are right, but your function changed `logp_old`, which its caller still needs. What ends in `_`, such "
    "as .sub_() or .detach_(), "
    "changes the tensor itself: use its twin without the `_`."
)


def _is_detached(answer):
    given = -drawn(2, 3).abs()
    old = given.clone().requires_grad_().clone()  # a leaf would stop what writes in place with words of autograd's own
    weights = answer(old, -drawn(2, 3, seed=1).abs())
    if not old.requires_grad or not same(old.detach(), given, 0.0, 0.0):
        raise NotYet(WRITES)
    if getattr(weights, "requires_grad", False):
        raise NotYet(CARRIES)


EXERCISES = [
    Exercise(
        "14.may_start",
        _may_start,
        lambda: [(0, 8, 0, 0), (0, 8, 1, 0), (3, 8, 1, 36), (3, 8, 2, 48), (5, 4, 0, 30), (2, 16, 4, 100)],
        (
            Mistake(
                lambda v, b, e, s: (e + v + 1) * b - s,
                "That can be negative: when too many have started, none may start now.",
            ),
            Mistake(
                lambda v, b, e, s: max(0, (e + v) * b - s),
                "Without the + 1 nothing could ever start at max_staleness = 0: the batch for the present version must "
                "be allowed too.",
            ),
            Mistake(
                lambda v, b, e, s: max(0, (e + 1) * b - s),
                "Versions are missing: `started` counts from the very beginning, so what may have started must grow "
                "with each update.",
            ),
            Mistake(
                lambda v, b, e, s: (e + 1) * b,
                "That is what may be under way in all. Take off what has started already.",
            ),
        ),
        "max(0, (max_staleness + version + 1) · batch − started).",
    ),
    Exercise(
        "14.importance",
        _importance,
        lambda: [
            (-drawn(2, 4).abs(), -drawn(2, 4, seed=1).abs()),
            (-drawn(3, 3, seed=2).abs(), -drawn(3, 3, seed=2).abs()),
        ],
        (
            Mistake(
                lambda o, b: _importance(b, o),
                "Upside down: a token that the trainer likes more than its author did must count more. Trainer over "
                "author.",
            ),
            Mistake(lambda o, b: o - b, "That is the logarithm of the weight. Take exp."),
            Mistake(
                lambda o, b: o / b,
                "Those are log-probabilities: the ratio of probabilities is exp of their difference.",
            ),
            Mistake(lambda o, b: o.exp() - b.exp(), "A weight is a ratio of probabilities, not a difference."),
            Mistake(lambda o, b: (o - b).exp(), CARRIES),
            Mistake(lambda o, b: o.sub_(b).exp().detach(), WRITES),
            Mistake(lambda o, b: (o.detach_() - b).exp(), WRITES),
        ),
        "exp(logp_old − logp_behaviour), token by token.",
        also=_is_detached,
    ),
    Exercise(
        "14.truncated",
        _each(lambda w, high: high if w > high else w),
        _weights,
        (
            Mistake(lambda w, h: w.clamp(1 / h, h), "Small weights stay as they are: only the upper side is cut."),
            Mistake(
                lambda w, h: w.clamp(min=h),
                "That lifts small weights up to the bound. Limit them from above: clamp(max=...).",
            ),
            Mistake(
                _each(lambda w, h: 0.0 if w > h else w),
                "A weight above the bound becomes the bound, not 0. Leaving the token out is the next exercise.",
            ),
        ),
        "The smaller of weight and high for each token; torch does it for a tensor of any shape at once.",
    ),
    Exercise(
        "14.icepop",
        _each(lambda w, beta: w if 1 / beta <= w <= beta else 0.0),
        _weights,
        (
            Mistake(
                lambda w, b: w.clamp(1 / b, b),
                "The weight is pulled to the bound, as in truncation. IcePop leaves the token out: 0.",
            ),
            Mistake(
                _each(lambda w, b: w if w <= b else 0.0),
                "Weights below 1/β are left out too: a token that the trainer would hardly write any more says as "
                "little.",
            ),
            Mistake(
                _each(lambda w, b: 1.0 if 1 / b <= w <= b else 0.0),
                "Inside, the weight stays what it is; it does not become 1.",
            ),
            Mistake(
                _each(lambda w, b: w if 1 / b < w < b else 0.0), "The bounds themselves still count: use <= and >=."
            ),
        ),
        "weight where 1/β ≤ weight ≤ β, else 0.",
    ),
]
