"""Checks of 03: the indexer's score, a causal choice, captured attention, the KL that teaches."""

from minglm.course.workshop.checking import Exercise, Mistake, NotYet, same
from minglm.course.workshop.checks import drawn
from minglm.model.indexer import index_scores

ZERO = (
    "Where p is 0 your loss is NaN (log 0 is −inf, and 0 times −inf is NaN); with causal attention every key of the "
    "future has p = 0. The term is 0 there: torch.xlogy(p, p)."
)


def _scores(q, k, w):
    return index_scores(q, k, w)


def _choice(scores, k):
    """Sorted, empty places (-1) first; the slow way: sort each row's visible keys by score, then by place."""
    import torch

    rows = []
    for t, row in enumerate(scores.tolist()):
        best = sorted(range(t + 1), key=lambda s: (-row[s], s))[:k]
        rows.append(sorted([-1] * (k - len(best)) + best))
    return torch.tensor(rows)


def _written(scores, k, hide: float | None = float("-inf"), first=1, mark=True, sort="last"):
    """As the lesson writes it, with one step done otherwise: hide the future, take the best, mark empty places,
    sort.
    """
    import torch

    future = torch.ones_like(scores).triu(first).bool()
    places = (scores if hide is None else scores.masked_fill(future, hide)).topk(k, -1).indices
    if sort == "first":
        places = places.sort(-1).values
    if mark:
        places = places.masked_fill(future.gather(-1, places), -1)
    return places.sort(-1).values if sort == "last" else places


def _best_scores(scores, k):
    return scores.masked_fill(scores.new_ones(scores.shape).triu(1).bool(), float("-inf")).topk(k, -1).values


def _share(attention, chosen):
    total = 0.0
    for row, places in zip(attention.tolist(), chosen.tolist(), strict=False):
        total += sum(row[s] for s in places if s >= 0)
    return total / len(attention)


def _kl(p, scores):
    from torch.nn.functional import kl_div

    return kl_div(scores.log_softmax(-1), p, reduction="none").sum(-1).mean()


def _zero_in_p(answer) -> None:
    p = _attention_case()[0][0]
    if not same(answer(p, drawn(4, 4, seed=6)), _kl(p, drawn(4, 4, seed=6))):
        raise NotYet(ZERO)


def _kl_cases():
    return [(drawn(3, 6).softmax(-1), drawn(3, 6, seed=1)), (drawn(1, 4, seed=2).softmax(-1), drawn(1, 4, seed=3))]


def _attention_case():
    attention = drawn(4, 4, seed=5).masked_fill(drawn(4, 4).new_ones(4, 4).triu(1).bool(), float("-inf")).softmax(-1)
    return [
        (attention, attention.new_tensor([[0, -1], [0, 1], [2, 0], [3, -1]]).long()),
        (attention, attention.new_tensor([[-1], [1], [0], [3]]).long()),
    ]


EXERCISES = [
    Exercise(
        "03.index_scores",
        _scores,
        lambda: [
            (drawn(4, 2, 3), drawn(5, 3, seed=1), drawn(4, 2, seed=2)),
            (drawn(2, 1, 4), drawn(2, 4, seed=1), drawn(2, 1, seed=2)),
        ],
        (
            Mistake(
                lambda q, k, w: (w[..., None] * (q @ k.T)).sum(1),
                "max(0, ...) is missing: what is negative must count as nothing before the heads are added.",
            ),
            Mistake(
                lambda q, k, w: (w[..., None] * (q @ k.T)).sum(1).relu(),
                "You cut off below zero after adding the heads. Cut each head's product first, then weigh and add; a "
                "weight may be negative, so the sum may be too.",
            ),
            Mistake(
                lambda q, k, w: (q @ k.T).relu().sum(1),
                "The weights w are not used: each query says how much each head matters.",
            ),
            Mistake(lambda q, k, w: (w[..., None] * (q @ k.T).relu()).mean(1), "The heads are added, not averaged."),
        ),
        "score[t, s] = sum over heads j of w[t, j] * max(0, q[t, j] · k[s]).",
    ),
    Exercise(
        "03.choose_keys",
        _choice,
        lambda: [(drawn(6, 6), 3), (drawn(4, 4, seed=1), 1), (drawn(3, 3, seed=2), 3)],
        (
            Mistake(
                lambda s, k: _written(s, k, mark=False),
                "This is the leak of the lesson: a query with fewer than k visible keys takes keys from the future "
                "too, because nothing else is left. Put -1 where the key is later than t, then sort.",
            ),
            Mistake(
                lambda s, k: s.topk(k, -1).indices.sort(-1).values,
                "The future is not hidden at all: query t may only read keys 0 to t.",
            ),
            Mistake(
                lambda s, k: _choice(s.abs(), k),
                "You took the largest absolute values. A strongly negative score says: do not read this.",
            ),
            Mistake(lambda s, k: _choice(-s, k), "You took the lowest scores; the highest are wanted."),
            *(
                Mistake(
                    lambda s, k, mark=mark: _written(s, k, hide=0.0, mark=mark),
                    "You hid the future with 0, which is more than a negative score. Hide it with -inf, before topk.",
                )
                for mark in (True, False)
            ),
            Mistake(
                lambda s, k: _written(s, k, first=0),
                "You hid the token itself as well. Query t may read keys 0 to t, its own included: triu(1).",
            ),
            Mistake(
                lambda s, k: _written(s, k, hide=None),
                "You took the best of all keys and put -1 for the future afterwards: it has taken the places of "
                "visible keys. Hide the future before topk.",
            ),
            *(
                Mistake(
                    scores,
                    "Those are the scores of the best keys. Their column numbers are wanted: `.indices` of topk.",
                )
                for scores in (_best_scores, lambda s, k: _best_scores(s, k).sort(-1).values)
            ),
            Mistake(
                lambda s, k: _written(s, k, sort="no"),
                "The keys are right, but the rows are not sorted: sort after you have put in -1.",
            ),
            Mistake(
                lambda s, k: _written(s, k, sort="first"),
                "You sorted first and put in -1 afterwards, so -1 comes last. Put in -1, then sort.",
            ),
            Mistake(
                lambda s, k: _written(s, k, sort="no").sort(-1),
                "sort gives two tensors, the sorted numbers and their old places. Take the first: `.sort(-1).values`.",
            ),
        ),
        "Query t may read keys 0 to t: hide the rest with -inf before topk; then put -1 where a key is later than t; "
        "then sort each row.",
    ),
    Exercise(
        "03.captured",
        _share,
        _attention_case,
        (
            Mistake(
                lambda a, c: a.gather(-1, c % a.shape[-1]).sum(-1).mean(),
                "-1 marks an empty place, but as an index it means the last column. Leave empty places out.",
            ),
            Mistake(
                lambda a, c: a.gather(-1, c.clamp(min=0)).sum(-1).mean(),
                "An empty place (-1) was counted as key 0. Leave empty places out.",
            ),
            Mistake(
                lambda a, c: _share(a, c) / c.shape[-1],
                "You divided by the number of keys: the shares of a query's keys are added, only the queries are "
                "averaged.",
            ),
        ),
        "Add the attention on the chosen keys for each query, leaving out -1, and average over queries.",
    ),
    Exercise(
        "03.indexer_kl",
        _kl,
        _kl_cases,
        (
            Mistake(
                lambda p, s: (s.softmax(-1) * (s.log_softmax(-1) - p.log())).sum(-1).mean(),
                "You have the two the other way round. The attention p is the teacher: KL(p || softmax(scores)) weighs "
                "by p.",
            ),
            Mistake(
                lambda p, s: (p * (p.log() - s)).sum(-1).mean(),
                "The scores are not probabilities yet: take log_softmax of them.",
            ),
            Mistake(
                lambda p, s: (p * (p.log() - s.log_softmax(-1))).sum(),
                "Add over keys, but average over queries: otherwise the loss grows with the length of the text.",
            ),
            Mistake(
                lambda p, s: -(p * s.log_softmax(-1)).sum(-1).mean(),
                "That is the cross-entropy. It has the same gradient, but it is not 0 when the indexer is perfect: "
                "subtract the entropy of p.",
            ),
            Mistake(lambda p, s: (p * (p.log() - s.log_softmax(-1))).sum(-1).mean(), ZERO),
        ),
        "Sum over keys of p·(log p − log_softmax(scores)), averaged over queries.",
        _zero_in_p,
    ),
]
