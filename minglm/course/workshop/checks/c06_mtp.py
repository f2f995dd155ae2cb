"""Checks of 06: what each depth predicts, how much of a draft is kept, what speculation gains, exact sampling."""

from minglm.course.workshop.checking import Exercise, Mistake
from minglm.course.workshop.checks import drawn
from minglm.model.mtp import shift_targets


def _labels(tokens, depth):
    """(joined, wanted) for each place, read off the table in minglm/model/mtp.py with shift_targets."""
    import torch

    t = torch.tensor([tokens])
    keep = t.shape[1] - 1 - depth
    wanted = shift_targets(t[:, 1:], depth)[0]
    return [(int(t[0, i + depth]), int(wanted[i])) for i in range(keep)]


def _kept(draft, main):
    kept = 0
    while kept < len(draft) and draft[kept] == main[kept]:
        kept += 1
    return kept


def _expected(rate, depth):
    """By walking through every outcome: exactly j drafts are accepted, then the main model's own token comes."""
    total = 0.0
    for j in range(depth + 1):
        probability = rate**j * (1 - rate if j < depth else 1.0)
        total += probability * (j + 1)
    return total


def _residual(p, q):
    rest = [max(0.0, a - b) for a, b in zip(p.tolist(), q.tolist(), strict=False)]
    return p.new_tensor([r / sum(rest) for r in rest])


EXERCISES = [
    Exercise(
        "06.depth_targets",
        _labels,
        lambda: [([1, 2, 3, 4, 5, 6], 1), ([1, 2, 3, 4, 5, 6], 2), ([9, 8, 7], 1)],
        (
            Mistake(
                lambda t, d: [(t[i + d], t[i + d]) for i in range(len(t) - d)],
                "The label is the token it was just given: nothing to guess. At depth d place i joins token i+d and "
                "predicts the one after it, i+d+1.",
            ),
            Mistake(
                lambda t, d: [(t[i], t[i + d + 1]) for i in range(len(t) - d - 1)],
                "The module joins the token at i+d, which is known by then, not the one at i: that one is in the "
                "hidden state already.",
            ),
            Mistake(
                lambda t, d: [(t[i + d - 1], t[i + d]) for i in range(len(t) - d)],
                "Everything is one place too early: depth 0 (the main model) already predicts token i+1, depth 1 "
                "predicts i+2.",
            ),
        ),
        "For place i at depth d: joined token i+d, label i+d+1, as long as the label exists.",
    ),
    Exercise(
        "06.kept",
        _kept,
        lambda: [([1, 2, 3], [1, 2, 9]), ([1, 2, 3], [7, 2, 3]), ([4], [4]), ([], []), ([1, 2, 3], [1, 9, 3])],
        (
            Mistake(
                lambda d, m: sum(a == b for a, b in zip(d, m, strict=False)),
                "You counted all agreements. After the first disagreement the draft went another way: what follows was "
                "guessed from a wrong past and must go.",
            ),
            Mistake(
                lambda d, m: _kept(d, m) + 1,
                "That counts the main model's own token too. Here only the drafted tokens that are kept are asked for.",
            ),
            Mistake(
                lambda d, m: len(d) if d == m else 0,
                "All or nothing wastes work: the tokens before the first disagreement are right and can be kept.",
            ),
        ),
        "The length of the common beginning.",
    ),
    Exercise(
        "06.tokens_per_pass",
        _expected,
        lambda: [(0.8, 1), (0.5, 3), (0.0, 2), (0.9, 5), (1.0, 3), (0.7, 0)],
        (
            Mistake(
                lambda r, d: 1 + d * r,
                "A later draft only counts if all before it were right: its chance is rate**j, not rate.",
            ),
            Mistake(
                lambda r, d: _expected(r, d) - 1,
                "You forgot the token that the main model itself gives in each pass: it comes even when every draft is "
                "wrong.",
            ),
            Mistake(lambda r, d: 1 + r**d, "Partly right drafts count too: add rate**j for every j from 1 to depth."),
            Mistake(
                lambda r, d: (1 - r ** (d + 1)) / (1 - r),
                "Your formula divides by zero when rate is 1. Then every draft is right and a pass gives depth + 1 "
                "tokens; adding the powers one by one needs no such exception.",
            ),
        ),
        "1 + rate + rate² + ... + rate**depth.",
    ),
    Exercise(
        "06.residual",
        _residual,
        lambda: [
            # more than one token is left over, and not the same share of each
            (drawn(9).softmax(-1), drawn(9, seed=1).softmax(-1)),
            (drawn(6, seed=2).softmax(-1), drawn(6, seed=3).softmax(-1)),
        ],
        (
            Mistake(
                lambda p, q: p,
                "Drawing from p again after a rejection favours what the draft had too little of twice over: the "
                "result is no longer p. Take what p has more than q, scaled to 1.",
            ),
            Mistake(
                lambda p, q: (p - q).abs() / (p - q).abs().sum(),
                "Where the draft had too much (p < q) nothing may be added: cut p - q off below zero instead of taking "
                "its absolute value.",
            ),
            Mistake(lambda p, q: (p - q).clamp(min=0), "This does not add up to 1: divide by its sum."),
        ),
        "For each token p − q, or 0 where that is negative: (p - q).clamp(min=0). Then divide by its sum.",
    ),
]
