"""Checks of 09: which tokens the loss counts, how conversations share a row, a mean over counted tokens only."""

from minglm.course.workshop.checking import Exercise, Mistake
from minglm.course.workshop.checks import drawn

IGNORE = -100


def _targets(ids, counted):
    out = []
    for place in range(len(ids) - 1):
        out.append(ids[place + 1] if counted[place + 1] else IGNORE)
    return out


def _starts(lengths):
    out, at = [], 0
    for n in lengths:
        for _ in range(n):
            out.append(at)
        at = len(out)
    return out


def _mean(losses, targets):
    kept = [x for x, t in zip(losses.tolist(), targets.tolist(), strict=False) if t != IGNORE]
    return sum(kept) / len(kept) if kept else 0.0


def _loss_cases():
    t = drawn(6).new_tensor([5, IGNORE, 0, IGNORE, IGNORE, 2]).long()  # 0 is a token as any other
    one = (t * 0 + IGNORE).index_fill(0, t.new_tensor([4]), 7)  # a single target
    return [
        (drawn(6).abs(), t),
        (drawn(6, seed=4).abs(), one),
        (drawn(6).abs(), t * 0 + IGNORE),
        (drawn(6, seed=3).abs(), t.abs()),
    ]


CHAT = ([0, 4, 11, 12, 5, 21, 22, 1], [False, False, False, False, False, True, True, True])


EXERCISES = [
    Exercise(
        "09.targets",
        _targets,
        lambda: [CHAT, ([0, 4, 11, 5, 21, 1, 4, 12, 5, 1], [False] * 4 + [True] * 2 + [False] * 3 + [True])],
        (
            Mistake(
                lambda ids, c: [t if k else IGNORE for t, k in zip(ids[1:], c[:-1], strict=False)],
                "The mask is one place off: it belongs to the token that is predicted, so shift it together with the "
                "tokens. As it is, the first word of each answer is never learnt.",
            ),
            Mistake(
                lambda ids, c: list(ids[1:]),
                "Everything is counted: the model learns to write the user's questions as well. Put -100 where "
                "`counted` of the next token is False.",
            ),
            Mistake(
                lambda ids, c: [t if k else IGNORE for t, k in zip(ids, c, strict=False)],
                "The target at a place is the token after it, not the token itself.",
            ),
            Mistake(
                lambda ids, c: [IGNORE if k else t for t, k in zip(ids[1:], c[1:], strict=False)],
                "The mask is upside down: the assistant's words are counted, the rest is -100.",
            ),
        ),
        "targets[i] is ids[i+1] where counted[i+1], else -100; one shorter than ids.",
    ),
    Exercise(
        "09.packed_starts",
        _starts,
        lambda: [([3, 2, 4],), ([1],), ([2, 2],)],
        (
            Mistake(
                lambda n: [0] * sum(n),
                "All conversations see each other. Each token may look back to the start of its own conversation only.",
            ),
            Mistake(
                lambda n: [i for i, k in enumerate(n) for _ in range(k)],
                "That is the number of the conversation. The place in the row where it starts is wanted.",
            ),
            Mistake(
                lambda n: [i - sum(n[:j]) for j, k in enumerate(n) for i in range(sum(n[:j]), sum(n[: j + 1]))],
                "That is the place within the conversation. Its first place in the row is wanted.",
            ),
        ),
        "For each token the place in the row at which its own conversation begins.",
    ),
    Exercise(
        "09.counted_mean",
        _mean,
        _loss_cases,
        (
            Mistake(
                lambda x, t: (x * (t != IGNORE)).mean(),
                "You divided by all tokens. Divide by the number of counted ones, or a long question makes the loss "
                "look small.",
            ),
            Mistake(lambda x, t: x.mean(), "The ignored tokens are counted too: leave out places whose label is -100."),
            Mistake(
                lambda x, t: x[t != IGNORE].mean(),
                "When nothing is counted this is 0/0, NaN, and one such batch spoils the whole run: give 0 then.",
            ),
            Mistake(lambda x, t: (x * (t != IGNORE)).sum(), "That is the sum; divide by the number of counted tokens."),
            Mistake(
                lambda x, t: _mean(x, t.masked_fill(t == 0, IGNORE)),
                "You left out token 0. It is a token as any other: only -100 marks what is ignored.",
            ),
        ),
        "The mean over places whose label is not -100, and 0 when there is none; a plain number.",
    ),
]
