"""Checks of 21: a percentile by rank, admission by pages of a cache, goodput under two promises.

The references count: values that are no larger, pages filled token by token, limits compared without a division."""

import math

from minglm.course.workshop.checking import Exercise, Mistake

WAITS = [
    ([0.3, 0.1, 0.2, 9.0], 50),
    ([float((37 * i) % 200) for i in range(200)], 99),
    ([5.0], 1),
    ([3.0, 1.0, 2.0], 100),
    ([0.4, 0.9, 0.1, 0.6, 0.7, 0.2, 0.8], 90),
    ([0.2, 0.9, 0.2, 0.2], 75),
    ([float((37 * i) % 100) for i in range(100)], 7),
]
QUEUES = [
    ([(100, 28), (10, 10)], 5, 64),
    ([(60, 10), (60, 10), (500, 10), (10, 10)], 8, 64),
    ([(64, 64), (1, 0), (30, 30)], 4, 64),
    ([(900, 100)], 10, 64),
    ([(15, 1), (17, 1), (3, 40)], 6, 16),
    ([(40, 40), (40, 40)], 3, 64),
]
ANSWERS = [
    ([(0.5, 10.5, 101), (3.0, 4.0, 50)], 1.0, 0.2, 20.0),
    ([(0.5, 40.0, 80), (0.25, 4.25, 41), (0.75, 0.75, 1), (2.0, 80.0, 60), (3.0, 3.0, 1)], 1.0, 0.25, 100.0),
    ([(1.0, 6.0, 11), (0.5, 5.75, 11)], 1.0, 0.5, 10.0),
    ([(4.0, 5.0, 10)], 1.0, 1.0, 5.0),
    ([(0.5, 9.5, 2), (0.5, 1.0, 2)], 1.0, 0.5, 10.0),  # two tokens have one wait between them
]


def _percentile(values, p):
    return min(v for v in values if 100 * sum(w <= v for w in values) >= p * len(values))


def _at(values, index):
    return values[min(max(int(index), 0), len(values) - 1)]


def _interpolated(values, p):
    order, at = sorted(values), (len(values) - 1) * p / 100
    low = int(at)
    return order[low] + (at - low) * (order[min(low + 1, len(order) - 1)] - order[low])


def _pages(prompt, new, page):
    pages, room = 0, 0
    for _ in range(prompt + new):
        if not room:
            pages, room = pages + 1, page
        room -= 1
    return pages


def _admit(queue, free, page, pages=_pages):
    needs = [pages(prompt, new, page) for prompt, new in queue]
    entering = 0
    while entering < len(needs) and sum(needs[: entering + 1]) <= free:
        entering += 1
    return needs[:entering]


def _overtaken(queue, free, page):
    out: list[int] = []
    for prompt, new in queue:
        need = _pages(prompt, new, page)
        if sum(out) + need <= free:
            out.append(need)
    return out


def _kept(answer, ttft, tpot):
    first, last, tokens = answer
    return first <= ttft and last - first <= tpot * (tokens - 1)


def _goodput(answers, ttft, tpot, seconds, kept=_kept):
    return sum(a[2] for a in answers if kept(a, ttft, tpot)) / seconds


EXERCISES = [
    Exercise(
        "21.percentile",
        _percentile,
        lambda: WAITS,
        (
            Mistake(
                lambda v, p: _at(v, -(-p * len(v) // 100) - 1),
                "The values have to be in rising order first: sort them.",
            ),
            Mistake(
                lambda v, p: _at(sorted(v), p * len(v) // 100),
                "One place too far: the 198th value stands at index 197.",
            ),
            Mistake(
                lambda v, p: _at(sorted(v), p * len(v) // 100 - 1),
                "Rounded down, too few values are no larger. Of seven values 90% are 6.3, so it takes the seventh.",
            ),
            Mistake(
                lambda v, p: sorted(v)[math.ceil(p / 100 * len(v)) - 1],
                "p / 100 is not exact: 7 / 100 * 100 is a little more than 7 and is rounded up to 8. Multiply first, "
                "then divide: p * n / 100.",
            ),
            Mistake(
                lambda v, p: _percentile(list(set(v)), p),
                "A value that was measured three times counts three times: do not throw repeated ones away.",
            ),
            Mistake(
                lambda v, p: max(v),
                "That is the longest wait of all. It grows with every further measurement, so nobody promises it.",
            ),
            Mistake(
                lambda v, p: _interpolated(v, p),
                "That lies between two measured values, as some libraries do it. Asked is a measured one: the smallest "
                "that is large enough.",
            ),
        ),
        "sorted(values)[rank − 1] with rank = p * n / 100, rounded up (multiply first: p / 100 is not exact).",
    ),
    Exercise(
        "21.admit",
        _admit,
        lambda: QUEUES,
        (
            Mistake(
                lambda q, f, p: _admit(q, f, p, lambda a, b, c: (a + b) // c),
                "A page that is begun is taken: round up.",
            ),
            Mistake(
                lambda q, f, p: _admit(q, f, p, lambda a, b, c: -(-a // c)),
                "The answer needs room too. With pages for the prompt alone, the cache would be full halfway through.",
            ),
            Mistake(
                lambda q, f, p: _admit(q, f, p, lambda a, b, c: -(-a // c) + -(-b // c)),
                "The answer goes on in the prompt's last page: round up the sum, not both parts.",
            ),
            Mistake(
                lambda q, f, p: _admit(q, f, p, lambda a, b, c: a + b), "Those are tokens. A page holds `page` of them."
            ),
            Mistake(
                _overtaken,
                "A small request overtook a large one. With many small ones the large one would wait for ever: stop at "
                "the first that does not fit.",
            ),
            Mistake(
                lambda q, f, p: _admit(q, 10**9, p),
                "More pages are given away than are free. Each who enters takes some from those behind.",
            ),
            Mistake(
                lambda q, f, p: _admit(q, f, p, lambda a, b, c: (a + b) // c + 1),
                "Where the tokens fill their pages exactly, no further page is begun: round up, do not add one.",
            ),
        ),
        "need = (prompt + new) / page, rounded up; stop at the first whose need is more than what is left.",
    ),
    Exercise(
        "21.goodput",
        _goodput,
        lambda: ANSWERS,
        (
            Mistake(
                lambda a, x, y, s: sum(n for *_, n in a) / s,
                "That is the throughput: every token counts, however late. Goodput leaves broken promises out.",
            ),
            Mistake(
                lambda a, x, y, s: _goodput(a, x, y, s, lambda b, t, u: b[0] <= t),
                "The first token was in time; look at the later ones too.",
            ),
            Mistake(
                lambda a, x, y, s: _goodput(a, x, y, s, lambda b, t, u: _kept((0, b[1] - b[0], b[2]), 1, u)),
                "The later tokens came fast enough; the first one has a promise of its own.",
            ),
            Mistake(
                lambda a, x, y, s: _goodput(
                    a, x, y, s, lambda b, t, u: b[0] <= t or _kept((0, b[1] - b[0], b[2]), 1, u)
                ),
                "One promise kept is not enough: both must be.",
            ),
            Mistake(
                lambda a, x, y, s: _goodput(a, x, y, s, lambda b, t, u: b[0] <= t and b[1] <= u * b[2]),
                "The wait for the first token is not part of the pace: from first to last there are tokens − 1 steps.",
            ),
            Mistake(
                lambda a, x, y, s: _goodput(a, x, y, s, lambda b, t, u: b[0] <= t and b[1] - b[0] <= u * b[2]),
                "Between 11 tokens there are 10 waits: divide by tokens − 1.",
            ),
            Mistake(
                lambda a, x, y, s: _goodput(a, x, y, s, lambda b, t, u: b[2] == 1 or _kept(b, t, u)),
                "A single token may come too late as well. It keeps the second promise; look at the first one too.",
            ),
            Mistake(
                lambda a, x, y, s: _goodput(a, x, y, s, lambda b, t, u: b[0] <= t and (b[1] - b[0]) / (b[2] - 1) <= u),
                "A single token has no further ones: it keeps the second promise, and tokens − 1 = 0 must not be "
                "divided by.",
            ),
            Mistake(
                lambda a, x, y, s: sum(_kept(b, x, y) for b in a) / s,
                "Those are answers per second. Count their tokens.",
            ),
        ),
        "Add up the tokens of answers with first <= ttft and (last − first) / (tokens − 1) <= tpot (a single token "
        "keeps this one); divide by `seconds`.",
    ),
]
