"""Checks of 04: routing with a bias that only steers, moving the bias, how uneven a load is."""

import math

from minglm.course.workshop.checking import Exercise, Mistake
from minglm.course.workshop.checks import drawn


def _spread(scores, chosen, weights):
    import torch

    return torch.zeros_like(scores).scatter_(-1, chosen, weights)


def _gates(scores, bias, k, scale):
    """(N, E): the gate of each chosen expert, 0 elsewhere; with loops."""
    out = scores.new_zeros(scores.shape)
    for n, row in enumerate(scores.tolist()):
        best = sorted(range(len(row)), key=lambda e: -(row[e] + float(bias[e])))[:k]
        for e in best:
            out[n, e] = scale * row[e] / sum(row[i] for i in best)
    return out


def _with_bias_in_gates(scores, bias, k, scale):
    values, chosen = (scores + bias).topk(k, -1)
    return _spread(scores, chosen, scale * values / values.sum(-1, keepdim=True))


def _unnormalised(scores, bias, k, scale):
    chosen = (scores + bias).topk(k, -1).indices
    return _spread(scores, chosen, scale * scores.gather(-1, chosen))


def _softmaxed(scores, bias, k, scale):
    chosen = (scores + bias).topk(k, -1).indices
    return _spread(scores, chosen, scale * scores.gather(-1, chosen).softmax(-1))


def _cases():
    bias = drawn(6, seed=9) * 0.4
    return [(drawn(5, 6).sigmoid(), bias, 2, 2.5), (drawn(3, 6, seed=1).sigmoid(), bias * 0, 3, 1.0)]


def _moved(bias, counts, rate, rounded=float):
    import torch

    mean = rounded(sum(counts.tolist()) / len(counts))
    return torch.tensor(
        [b + rate * ((c < mean) - (c > mean)) for b, c in zip(bias.tolist(), counts.tolist(), strict=False)]
    )


def _bias_cases():
    bias = drawn(4) * 0.01
    return [
        (bias, bias.new_tensor([10, 2, 4, 8]).long(), 0.01),
        (bias.new_zeros(4), bias.new_tensor([4, 4, 4, 4]).long(), 0.1),
        (bias, bias.new_tensor([2, 3, 4, 2]).long(), 0.01),
    ]  # mean 2.75: rounded, it would be just what some expert had


def _unevenness(counts):
    return max(counts) * len(counts) / sum(counts)


EXERCISES = [
    Exercise(
        "04.route",
        _gates,
        _cases,
        (
            Mistake(
                _with_bias_in_gates,
                "The bias got into the gates. It may only steer who is chosen; how loudly an expert speaks must come "
                "from the raw score, or balancing changes the model's output.",
            ),
            Mistake(
                lambda s, b, k, c: _gates(s, b * 0, k, c),
                "The bias is not used when choosing: take the k largest of score + bias.",
            ),
            Mistake(
                _unnormalised, "The gates of a token must add up to `scale`: divide the chosen scores by their sum."
            ),
            Mistake(
                _softmaxed,
                "You took a softmax over the chosen scores. They are sigmoids already: divide them by their sum.",
            ),
            Mistake(lambda s, b, k, c: _gates(s, b, k, 1.0), "The gates must add up to `scale`, not to 1."),
        ),
        "Choose by score + bias; gates are scale x raw score / sum of the chosen raw scores; 0 for the others.",
    ),
    Exercise(
        "04.move_bias",
        _moved,
        _bias_cases,
        (
            Mistake(
                lambda b, c, r: b - r * (c.float().mean() - c).sign(),
                "The sign is wrong: who had too little work must become likelier, so its bias goes up.",
            ),
            Mistake(
                lambda b, c, r: b + r * (c.float().mean() - c),
                "You moved in proportion to the load. The rule takes the sign only: every bias moves by the same small "
                "step, however large the batch.",
            ),
            Mistake(
                lambda b, c, r: r * (c.float().mean() - c).sign(),
                "You threw the old bias away. The step is added to it.",
            ),
            *(
                Mistake(
                    lambda b, c, r, rounded=rounded: _moved(b, c, r, rounded),
                    "You rounded the mean. It need not be a whole number: use counts.float().mean().",
                )
                for rounded in (math.floor, math.ceil)
            ),
        ),
        "bias + rate x sign(mean load − load).",
    ),
    Exercise(
        "04.unevenness",
        _unevenness,
        lambda: [([10, 2, 4, 8],), ([5, 5],), ([0, 0, 9],), ([5, 2],)],
        (
            Mistake(
                lambda c: max(c) / sum(c),
                "That is the busiest expert's share of all work. Compare it with an even share: divide by the mean, "
                "not by the sum.",
            ),
            Mistake(
                lambda c: max(c) / max(min(c), 1e-9),
                "You compared with the idlest expert. The measure is the busiest over the mean: it says how long the "
                "others wait.",
            ),
            Mistake(lambda c: sum(c) / len(c) / max(c), "The fraction is upside down: 1 is even, larger is worse."),
            *(
                Mistake(
                    lambda c, rounded=rounded: max(c) / rounded(sum(c) / len(c)),
                    "You rounded the mean. It need not be a whole number: sum / len, with one slash.",
                )
                for rounded in (math.floor, math.ceil)
            ),
        ),
        "The busiest expert's work divided by the mean.",
    ),
]
