"""Checks of 13: waiting in a synchronous rollout, a round that stops at its target, the share of stale tokens.

The references count step by step; the formulas are what a learner finds."""

from minglm.course.workshop.checking import Exercise, Mistake


def _waiting(lengths):
    waiting, places = 0, 0
    for step in range(max(lengths)):
        for n in lengths:
            places += 1
            waiting += n <= step
    return waiting / places


def _round(todo, target, at_once=False):
    left, steps = list(todo), 0
    while sum(n == 0 for n in left) < target:
        left = [max(0, n - 1) for n in left]
        steps += 1
    return steps, [i for i, n in enumerate(left) if n == 0], [n for n in left if n > 0]


def _stale(segments, now):
    tokens = [version for version, count in segments for _ in range(count)]
    return sum(v != now for v in tokens) / len(tokens)


def _exact(todo, target):
    order = sorted(range(len(todo)), key=lambda i: todo[i])
    steps = todo[order[target - 1]]
    return steps, sorted(order[:target]), [max(0, todo[i] - steps) for i in range(len(todo)) if i not in order[:target]]


SEGMENTS = [([(3, 30), (4, 10)], 4), ([(7, 12)], 7), ([(1, 5), (2, 5), (4, 30)], 4), ([(0, 8)], 2)]


EXERCISES = [
    Exercise(
        "13.waiting_share",
        _waiting,
        lambda: [([2, 2, 8],), ([5, 5],), ([1, 2, 3, 40],), ([7],), ([8, 2, 2],)],
        (
            Mistake(
                lambda n: sum(n) / (len(n) * max(n)), "That is the share that works. The rest waits: take it from 1."
            ),
            Mistake(
                lambda n: sum(v < max(n) for v in n) / len(n),
                "That counts answers that wait at all. How long each waits is what costs: count slot-steps.",
            ),
            Mistake(
                lambda n: 1 - (sum(n) / len(n)) / sum(n),
                "Compare with the longest answer, not with all tokens: the rollout lasts max(lengths) steps.",
            ),
            Mistake(
                lambda n: sum(max(n) - v for v in n) / sum(n),
                "You divided the waiting by the work. The share is of all slot-steps: len(lengths) · max(lengths).",
            ),
            Mistake(
                lambda n: 1 - sum(n) / (len(n) * n[-1]),
                "You took the last length for the longest. The list is in no order: use max(lengths).",
            ),
        ),
        "All slot-steps are len(lengths) · max(lengths); those that work are sum(lengths).",
    ),
    Exercise(
        "13.april_round",
        _round,
        lambda: [
            ([9, 2, 5, 1], 2),
            ([2, 1, 9], 2),
            ([9, 1, 5], 1),
            ([3, 3, 3, 8], 2),
            ([4, 6], 2),
            ([10, 20, 30, 40, 50], 1),
        ],
        (
            Mistake(
                lambda t, k: (max(t), list(range(len(t))), []),
                "That waits for all of them, as a synchronous rollout does. Stop as soon as `target` are finished.",
            ),
            Mistake(
                lambda t, k: (_round(t, k)[0], _round(t, k)[1], [n for n in t if n > _round(t, k)[0]]),
                "The unfinished ones begin again from nothing: what they wrote in this round is lost. They lack only "
                "what is left.",
            ),
            Mistake(
                _exact,
                "Several answers may end in the last step; all of them are finished, even if that is more than "
                "`target`.",
            ),
            Mistake(
                lambda t, k: (
                    sorted(t)[k - 1] if k < len(t) else max(t),
                    list(range(k)),
                    [max(0, n - sorted(t)[k - 1]) for n in t[k:]],
                ),
                "You took the first `target` answers. Those that end first are meant, wherever they stand.",
            ),
            Mistake(
                lambda t, k: (
                    sorted(t)[min(k, len(t) - 1)],
                    [i for i, n in enumerate(t) if n <= sorted(t)[min(k, len(t) - 1)]],
                    [n - sorted(t)[min(k, len(t) - 1)] for n in t if n > sorted(t)[min(k, len(t) - 1)]],
                ),
                "That waits for one answer too many: the round ends with the `target`-th shortest, which is "
                "sorted(todo)[target - 1].",
            ),
            Mistake(
                lambda t, k: (_round(t, k)[0], sorted(_round(t, k)[1], key=lambda i: t[i]), _round(t, k)[2]),
                "Your `done` is in the order in which the answers finished. Give the indices in rising order: "
                "sorted(done).",
            ),
            Mistake(
                lambda t, k: (*_round(t, k)[:2], sorted(_round(t, k)[2])),
                "Your `rest` is sorted by size, so nobody knows whose it is. Give it in the order of the answers' "
                "indices.",
            ),
            Mistake(
                lambda t, k: (_round(t, k)[0], sorted(_round(t, k)[1], key=lambda i: t[i]), sorted(_round(t, k)[2])),
                "You sorted the answers by what they lack. Give `done` by rising index, and `rest` in the order of the "
                "answers' indices.",
            ),
        ),
        "The round lasts as long as the `target`-th shortest of `todo`; who needs no more than that is done.",
    ),
    Exercise(
        "13.stale_share",
        _stale,
        lambda: SEGMENTS,
        (
            Mistake(
                lambda s, now: sum(v < now for v, _ in s) / len(s),
                "That is the share of segments. A segment counts as much as it has tokens.",
            ),
            Mistake(lambda s, now: 1 - _stale(s, now), "That is the share of fresh tokens."),
            Mistake(
                lambda s, now: sum(n * (now - v) for v, n in s) / sum(n for _, n in s),
                "That is the mean age in versions. Here a token is stale or not, however old.",
            ),
            Mistake(
                lambda s, now: sum(n for v, n in s if v <= now) / sum(n for _, n in s),
                "A token of the trainer's own version is fresh: stale means version < now.",
            ),
        ),
        "Tokens of versions below `now`, over all tokens.",
    ),
]
