"""Checks of 00: the loss of knowing nothing, what an expert weighs, how long a training takes."""

import math
from typing import Any

from minglm.config import ModelConfig
from minglm.course.workshop.checking import Exercise, Mistake, NotYet, same

YEAR_S = 365 * 86400
ROUNDED = (
    "You rounded the seconds (`//` gives whole numbers): a training of 1.2 seconds becomes one of 1 second. Divide "
    "with `/`."
)


def _expert(hidden: int, width: int) -> int:
    # the project's own count: what one more expert adds to a model with a single layer of experts
    base: dict[str, Any] = dict(
        hidden_size=hidden,
        moe_intermediate_size=width,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        num_experts_per_tok=1,
    )
    one, two = (ModelConfig(n_routed_experts=n, **base).params_breakdown()["routed_experts"] for n in (1, 2))
    return two - one


def _no_whole_seconds(answer) -> None:
    """A training of 1.2 seconds: in years the difference would be lost in the tolerance."""
    if not same(answer(1e6, 2e5, 1e12) * YEAR_S, 1.2):
        raise NotYet(ROUNDED)


EXERCISES = [
    Exercise(
        "00.loss_of_knowing_nothing",
        lambda V: -math.log(1 / V),
        lambda: [(512,), (2048,), (154880,), (2,)],
        (
            Mistake(
                lambda V: math.log2(V),
                "That is the surprise in bits (logarithm to base 2). The loss here is in nats: use the natural "
                "logarithm, math.log.",
            ),
            Mistake(
                lambda V: math.log10(V),
                "That is the logarithm to base 10. The loss is in nats: use the natural logarithm, math.log.",
            ),
            Mistake(
                lambda V: math.log(1 / V),
                "The number is right, its sign is not: the surprise is minus the logarithm of the probability, so it "
                "is positive.",
            ),
            Mistake(
                lambda V: 1 / V,
                "That is the probability of one token. The loss is its surprise: minus the natural logarithm of it.",
            ),
        ),
        "Each of V tokens has probability 1/V; the loss is minus the natural logarithm of the probability of the right "
        "one.",
    ),
    Exercise(
        "00.expert_parameters",
        _expert,
        lambda: [(64, 32), (6144, 2048), (10, 7)],
        (
            Mistake(
                lambda C, F: 2 * C * F,
                "You counted two matrices. An expert has three: gate and up lead from `hidden` to `width`, down leads "
                "back from `width` to `hidden`.",
            ),
            Mistake(lambda C, F: C * F, "That is one matrix. An expert has three of them: gate, up and down."),
            Mistake(
                lambda C, F: 3 * C * F + 2 * F + C,
                "There are no biases in GLM-5's experts: count the three matrices only.",
            ),
        ),
        "An expert has three matrices, gate, up and down, each with hidden x width numbers.",
    ),
    Exercise(
        "00.training_years",
        lambda n, tokens, rate: math.prod((6, n, tokens)) / rate / YEAR_S,
        lambda: [(40.83e9, 28.5e12, 1e11), (1e6, 2e6, 1e11), (40e9, 28.5e12, 1e5 * 320e12 * 0.3)],
        (
            Mistake(
                lambda n, t, r: 2 * n * t / r / YEAR_S,
                "Two operations per parameter and token is the forward pass alone. Backward costs twice as much again: "
                "six in all.",
            ),
            Mistake(lambda n, t, r: 6 * n * t / r, "Those are seconds. Divide by the seconds of a year."),
            Mistake(lambda n, t, r: 6 * n * t / r / 86400, "Those are days. A year has 365 of them."),
            Mistake(
                lambda n, t, r: r / (6 * n * t) / YEAR_S, "The fraction is upside down: time is work divided by speed."
            ),
            Mistake(lambda n, t, r: 6 * n * t // r / YEAR_S, ROUNDED),
        ),
        "Work is 6 x active parameters x tokens; divide by operations per second, then by the seconds in 365 days.",
        _no_whole_seconds,
    ),
]
