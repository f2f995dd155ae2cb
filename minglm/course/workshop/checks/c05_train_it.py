"""Checks of 05: the learning rate's course, clipping, perplexity, MFU."""

import math

from minglm.course.workshop.checking import Exercise, Mistake, NotYet, same
from minglm.course.workshop.checks import drawn
from minglm.training.optim import cosine_with_warmup

ZERO = "When all gradients are 0 your function divides by a norm of 0. Divide only when the norm is above the limit."
PARTS = "Give back a list with as many tensors as came in, each in its own shape."


def _factor(step, steps, warmup, final):
    return cosine_with_warmup(step, steps, warmup, final)


def _cosine(progress, final):
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def _clipped(grads, limit, joint=True):
    import torch

    norm = math.sqrt(sum(float(g.square().sum()) for g in grads)) if joint else sum(float(g.norm()) for g in grads)
    return [g * limit / norm if norm > limit else torch.clone(g) for g in grads]


def _zero_gradients(answer) -> None:
    zeros = [drawn(2).new_zeros(2), drawn(2).new_zeros(3)]
    try:
        right = same(answer([z.clone() for z in zeros], 1.0), zeros)
    except NotYet:
        right = False
    if not right:
        raise NotYet(ZERO)


def _joined(grads, limit):
    import torch

    return torch.cat([g.flatten() for g in _clipped(grads, limit)])


EXERCISES = [
    Exercise(
        "05.learning_rate",
        _factor,
        lambda: [
            (0, 100, 10, 0.1),
            (9, 100, 10, 0.1),
            (10, 100, 10, 0.1),
            (30, 100, 10, 0.1),
            (100, 100, 10, 0.1),
            (0, 50, 0, 0.3),
        ],
        (
            Mistake(
                lambda s, n, w, f: s / w if s < w else _cosine((s - w) / (n - w), f),
                "The very first step gets a rate of 0 and learns nothing. The rise goes from 1/warmup to 1: (step + 1) "
                "/ warmup.",
            ),
            Mistake(
                lambda s, n, w, f: (s + 1) / w if s < w else _cosine((s - w) / (n - w), 0.0),
                "The cosine falls to 0. It should end at `final`: final + (1 - final) x half cosine.",
            ),
            Mistake(
                lambda s, n, w, f: (s + 1) / w if s < w else _cosine(s / n, f),
                "The cosine must start where the rise ends, or the rate jumps there: count progress from `warmup` on.",
            ),
            Mistake(
                lambda s, n, w, f: (s + 1) / w if s < w else 1 - (1 - f) * (s - w) / (n - w),
                "That is a straight line down. A half cosine is wanted: 0.5 x (1 + cos(pi x progress)).",
            ),
            Mistake(
                lambda s, n, w, f: (s + 1) / w if s <= w else _cosine((s - w) / (n - w), f),
                "The rise has one step too many: its last is step warmup - 1, and at step `warmup` the fall begins. "
                "Otherwise the factor goes above 1.",
            ),
            Mistake(
                lambda s, n, w, f: (s + 1) / w if s < w else _cosine((s - w) / (n - 1 - w), f),
                "The fall ends one step early: `final` is reached at step `steps`, not at steps - 1.",
            ),
            Mistake(
                lambda s, n, w, f: ((s + 1) / w, _cosine((s - w) / (n - w), f))[s >= w],
                "When warmup is 0 your function divides by 0. Work out (step + 1) / warmup only where step < warmup.",
            ),
        ),
        "First (step + 1) / warmup; then final + (1 − final)·0.5·(1 + cos(pi·progress)), progress from 0 at warmup to "
        "1 at the end.",
    ),
    Exercise(
        "05.clip",
        _clipped,
        lambda: [([drawn(3, 2) * 5, drawn(4, seed=1)], 1.0), ([drawn(2) * 0.01, drawn(2, seed=1) * 0.01], 1.0)],
        (
            Mistake(
                lambda g, limit: [x * min(1.0, limit / float(x.norm())) for x in g],
                "You clipped each tensor alone, which changes the direction of the step. There is one norm for all "
                "gradients together.",
            ),
            Mistake(
                lambda g, limit: [x * limit / math.sqrt(sum(float(y.square().sum()) for y in g)) for x in g],
                "Small gradients were made larger. Scale only when the norm is above the limit.",
            ),
            Mistake(
                lambda g, limit: _clipped(g, limit, joint=False),
                "You added the norms of the tensors. Add the squares of all their numbers, then take one root.",
            ),
            Mistake(
                lambda g, limit: [x.clamp(-limit, limit) for x in g],
                "You cut each number alone. Clipping shortens the whole gradient and keeps its direction.",
            ),
            *(
                Mistake(part, PARTS)
                for part in (lambda g, limit: _clipped(g, limit)[:1], lambda g, limit: _clipped(g, limit)[0], _joined)
            ),
            Mistake(
                lambda g, limit: [x * min(1.0, limit / math.sqrt(sum(float(y.square().sum()) for y in g))) for x in g],
                ZERO,
            ),
        ),
        "Joint norm = root of the sum of all squares; if it is above the limit multiply every tensor by limit / norm. "
        f"{PARTS}",
        _zero_gradients,
    ),
    Exercise(
        "05.perplexity",
        lambda losses: math.prod(math.exp(x) ** (1 / len(losses)) for x in losses),
        lambda: [([2.0, 4.0],), ([0.0],), ([0.5, 1.25, 2.0],)],
        (
            Mistake(
                lambda x: sum(map(math.exp, x)) / len(x),
                "You averaged the perplexities. Average the losses first, then take the exponential: a few very "
                "surprising tokens would rule otherwise.",
            ),
            Mistake(lambda x: 2 ** (sum(x) / len(x)), "The losses are in nats, so the base is e, not 2."),
            Mistake(lambda x: math.exp(sum(x)), "You added the losses; the mean per token is wanted."),
        ),
        "exp of the mean loss.",
    ),
    Exercise(
        "05.mfu",
        lambda tokens_per_s, flops_per_token, peak: 1 / (peak / flops_per_token / tokens_per_s),
        lambda: [(4600.0, 2.2e7, 1.0e12), (1e6, 3e11, 1e18)],
        (
            Mistake(lambda t, f, p: 100 * t * f / p, "That is in percent. Give the share itself, between 0 and 1."),
            Mistake(lambda t, f, p: p / (t * f), "The fraction is upside down: work done over work possible."),
            Mistake(
                lambda t, f, p: t * f / 3 / p,
                "flops_per_token already holds forward and backward: nothing to divide by three.",
            ),
        ),
        "tokens per second x FLOPs per token / peak FLOPs per second.",
    ),
]
