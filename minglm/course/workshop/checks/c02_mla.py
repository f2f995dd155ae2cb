"""Checks of 02: the size of a cache, causal attention, rotary position, absorbed scores."""

import math

from minglm.course.workshop.checking import Exercise, Mistake, NotYet
from minglm.course.workshop.checks import drawn
from minglm.model.layers import apply_rope, rope_table

REBUILT = (
    "The scores are right, but you rebuild every key, or use the matrix anew for each latent: that costs many times "
    "the operations needed. "
    "Multiply the query with the matrix once, then compare it with the latents."
)


def _attention(q, k, v, hide="future", power=0.5, axis=-1):
    import torch

    T, _H, D = q.shape
    scores = torch.einsum("thd,shd->hts", q, k) / D**power
    mask = {
        "future": torch.ones(T, T).triu(1),
        "self too": torch.ones(T, T).triu(0),
        "none": torch.zeros(T, T),
        "late": torch.zeros(T, T),
    }[hide].bool()
    shares = scores.masked_fill(mask, -torch.inf).softmax(axis)
    return torch.einsum("hts,shd->thd", shares.tril() if hide == "late" else shares, v)


def _reference_attention(q, k, v):
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return sdpa(q, k, v, is_causal=True).transpose(0, 1)


def _turn(x, position, theta):
    return apply_rope(x.view(1, 1, -1), rope_table(position + 1, len(x), theta)[position:]).view(-1)


def _turn_by_hand(x, position, theta, halves=False, sign=1.0, step=2):
    out, D = x.clone(), len(x)
    for j in range(D // 2):
        a, b = (j, j + D // 2) if halves else (2 * j, 2 * j + 1)
        angle = sign * position * theta ** (-step * j / D)
        out[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
        out[b] = x[a] * math.sin(angle) + x[b] * math.cos(angle)
    return out


def _rebuilt(q, up, latents):
    import torch

    keys = torch.einsum("hnl,sl->shn", up, latents)
    return torch.einsum("thn,shn->hts", q, keys)


def _rebuilt_by_number(q, up, latents):
    keys = (up[:, None] * latents[None, :, None]).sum(-1)  # (H, S, D)
    return (q.transpose(0, 1)[:, :, None] * keys[:, None]).sum(-1)


def _rebuilt_one_by_one(q, up, latents):
    import torch

    return torch.stack([torch.stack([q[:, h] @ (up[h] @ c) for c in latents], -1) for h in range(len(up))])


def _no_rebuilding(answer) -> None:
    """One query against many latents: rebuilding every key would cost H·S·n·L multiply-adds."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def elementwise(a, b, out_shape=None, **_):
        return 2 * math.prod(out_shape)  # a product and, in the sum that follows, an addition

    def inner(a, b, **_):
        return 2 * math.prod(a)  # matrix times vector, or vector times vector

    uncounted = {torch.ops.aten.mul: elementwise, torch.ops.aten.mv: inner, torch.ops.aten.dot: inner}
    H, n, L, S = 4, 16, 32, 500
    with FlopCounterMode(display=False, custom_mapping=uncounted) as counter:
        answer(drawn(1, H, n), drawn(H, n, L, seed=1), drawn(S, L, seed=2))
    least = 2 * (H * n * L + H * S * L)
    if counter.get_total_flops() > 1.5 * least:
        raise NotYet(REBUILT)


EXERCISES = [
    Exercise(
        "02.cache_bytes",
        lambda heads, key, value, layers, width: sum(
            width * (key + value) for _ in range(heads) for _ in range(layers)
        ),
        lambda: [(64, 256, 256, 78, 2), (4, 48, 32, 5, 4), (1, 1, 1, 1, 1)],
        (
            Mistake(
                lambda h, k, v, n, w: h * k * n * w,
                "You counted the keys only. The values have to be kept too: they are mixed when a query has chosen.",
            ),
            Mistake(
                lambda h, k, v, n, w: h * (k + v) * w, "That is one layer. Each layer keeps keys and values of its own."
            ),
            Mistake(lambda h, k, v, n, w: h * (k + v) * n, "Those are numbers, not bytes: each takes `bytes_each`."),
            Mistake(
                lambda h, k, v, n, w: (k + v) * n * w,
                "That is a single head. Without MLA or groups every head has its own key and value.",
            ),
        ),
        "heads x (key width + value width) x layers x bytes of one number.",
    ),
    Exercise(
        "02.causal_attention",
        _reference_attention,
        lambda: [
            # the root of D is unlike D/2, 2, log2(D) and the number of heads
            (drawn(5, 3, 6), drawn(5, 3, 6, seed=1), drawn(5, 3, 6, seed=2)),
            (drawn(1, 3, 8), drawn(1, 3, 8, seed=1), drawn(1, 3, 8, seed=2)),
        ],
        (
            Mistake(
                lambda q, k, v: _attention(q, k, v, hide="none"),
                "A query sees keys that come after it. Set the scores of the future to minus infinity before the "
                "softmax.",
            ),
            Mistake(
                lambda q, k, v: _attention(q, k, v, hide="self too"),
                "You hid the token itself as well (the first one then sees nothing, and softmax gives NaN). Hide only "
                "what comes later: triu(1).",
            ),
            Mistake(
                lambda q, k, v: _attention(q, k, v, power=0),
                "The scores must be divided by the square root of the head width, or the softmax becomes too sharp.",
            ),
            Mistake(
                lambda q, k, v: _attention(q, k, v, power=1), "You divided by D. Divide by its square root, D**0.5."
            ),
            Mistake(
                lambda q, k, v: _attention(q, k, v, hide="late"),
                "You hid the future after the softmax: the shares of what is left no longer add up to 1. Set its "
                "scores to minus infinity before the softmax.",
            ),
            Mistake(
                lambda q, k, v: _attention(q, k, v, axis=1),
                "The softmax runs over the queries. Each query shares itself out over the keys: take it over the last "
                "axis.",
            ),
        ),
        "scores = q·k / sqrt(D); the future is minus infinity; softmax over keys; mix the values.",
    ),
    Exercise(
        "02.rotate",
        _turn,
        lambda: [(drawn(8), 0, 10_000.0), (drawn(8, seed=1), 3, 10_000.0), (drawn(4, seed=2), 250, 100.0)],
        (
            Mistake(
                lambda x, p, t: _turn_by_hand(x, p, t, halves=True),
                "You paired place j with place j + D/2. GLM-5 turns neighbours: (0,1), (2,3), ...",
            ),
            Mistake(
                lambda x, p, t: _turn_by_hand(x, p, t, sign=-1.0),
                "You turned the other way round: new a = a cos - b sin, new b = a sin + b cos.",
            ),
            Mistake(
                lambda x, p, t: _turn_by_hand(x, p, t, step=1),
                "The exponent is -2j/D for pair number j, not -j/D: each pair has two numbers.",
            ),
        ),
        "Pair j holds places 2j and 2j+1 and turns by position x theta**(-2j/D).",
    ),
    Exercise(
        "02.absorbed_scores",
        _rebuilt,
        lambda: [
            (drawn(3, 2, 4), drawn(2, 4, 5, seed=1), drawn(6, 5, seed=2)),
            (drawn(1, 1, 2), drawn(1, 2, 3, seed=1), drawn(2, 3, seed=2)),
        ],
        (
            Mistake(
                lambda q, up, c: _rebuilt(q, up, c).sum(0),
                "You added the heads up. Each head keeps its own scores: the result is (H, T, S).",
            ),
            Mistake(
                lambda q, up, c: _rebuilt(q, up, c).transpose(0, 1),
                "The axes are in another order: heads come first, (H, T, S).",
            ),
            Mistake(
                lambda q, up, c: _rebuilt(q, up[:1].expand_as(up), c),
                "All heads used the matrix of the first one. Head h has its own: up[h].",
            ),
            *(Mistake(answer, REBUILT) for answer in (_rebuilt, _rebuilt_by_number, _rebuilt_one_by_one)),
        ),
        "For head h the query becomes up[h].T @ q; its product with a latent is the score.",
        _no_rebuilding,
    ),
]
