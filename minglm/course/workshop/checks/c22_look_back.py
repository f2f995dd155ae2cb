"""Checks of 22: the token after the last earlier equal one, and the attention that a head gives to such places.

The references search backwards from each place, and weigh places by a table of pairs.
"""

from minglm.course.workshop.checking import Exercise, Mistake

ROWS = [
    [5, 9, 5, 9, 5],
    [1, 2, 3],
    [4, 4, 4],
    [7],
    [3, 8, 3, 1, 3, 8, 3],
    [0, 6, 2, 0, 2, 6, 0, 0, 6],
]


def _uneven(count: int) -> list[list[float]]:
    """Rows of shares that differ everywhere and sum to 1; later places have 0."""
    out = []
    for place in range(count):
        weights = [float((3 * place + 5 * read) % 7 + 1) for read in range(place + 1)]
        out.append([w / sum(weights) for w in weights] + [0.0] * (count - place - 1))
    return out


MAPS = [
    ([5, 9, 5], [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.7, 0.1]]),
    ([3, 8, 3, 1, 3, 8, 3], _uneven(7)),
    ([4, 4, 4, 4], _uneven(4)),
    ([0, 6, 2, 0, 2, 6, 0, 0, 6], _uneven(9)),
]


def _look_back(tokens, last=True, before=False):
    out: list[int | None] = []
    for place in range(len(tokens)):
        found = [p for p in range(place) if tokens[p] == tokens[place]]
        if not found:
            out.append(None)
            continue
        p = found[-1] if last else found[0]
        out.append(tokens[p - 1] if before else tokens[p + 1])
    return out


def _future(tokens):
    return [
        next((tokens[q + 1] for q in range(len(tokens) - 2, -1, -1) if tokens[q] == token and q != place), None)
        for place, token in enumerate(tokens)
    ]


def _pairs(tokens, shift=1):
    """{(place, place to read)}."""
    return {
        (place, p + shift)
        for place in range(len(tokens))
        for p in range(place)
        if tokens[p] == tokens[place] and p + shift <= place
    }


def _score(tokens, attention, shift=1, over=None):
    pairs = _pairs(tokens, shift)
    asking = {place for place in range(len(tokens)) if tokens[place] in tokens[:place]}
    return sum(attention[q][k] for q, k in pairs) / (over(tokens, pairs) if over else len(asking))


def _last_only(tokens, attention):
    last: dict[int, int] = {}
    for q, k in _pairs(tokens):
        last[q] = max(k, last.get(q, 0))
    return sum(attention[q][k] for q, k in last.items()) / len(last)


def _turned(tokens, attention):
    asking = {q for q, _ in _pairs(tokens)}
    return sum(attention[k][q] for q, k in _pairs(tokens)) / len(asking)


EXERCISES = [
    Exercise(
        "22.look_back",
        _look_back,
        lambda: [(row,) for row in ROWS],
        (
            Mistake(
                lambda t: _look_back(t, last=False),
                "That is what followed the first time. Asked is the last earlier place.",
            ),
            Mistake(
                lambda t: _look_back(t, before=True),
                "That is the token before the earlier place. Asked is what came after it.",
            ),
            Mistake(
                lambda t: [None if x is None else t[i] for i, x in enumerate(_look_back(t))],
                "That is the token itself, found again. Go one place further: what came after it?",
            ),
            Mistake(_future, "A place read what comes after itself. Look among earlier places only."),
            Mistake(
                lambda t: [-1 if x is None else x for x in _look_back(t)],
                "Where the token has not stood before there is nothing to tell: give None there.",
            ),
        ),
        "followed[tokens[place − 1]] = tokens[place], then look tokens[place] up in it.",
    ),
    Exercise(
        "22.induction_score",
        _score,
        lambda: MAPS,
        (
            Mistake(
                lambda t, a: _score(t, a, 0),
                "Those are the shares on the earlier places themselves. An induction head reads one place further.",
            ),
            Mistake(
                lambda t, a: _score(t, a, 1, lambda tokens, pairs: len(tokens)),
                "Divided by all places. Places whose token is new have nothing to read: leave them out of the mean.",
            ),
            Mistake(
                lambda t, a: _score(t, a, 1, lambda tokens, pairs: len(pairs)),
                "Divided by the number of places read. Add them up for each place that asks, then take the mean over "
                "those that ask.",
            ),
            Mistake(
                lambda t, a: _score(t, a, 1, lambda tokens, pairs: 1),
                "That is the sum. Divide it by how many places ask.",
            ),
            Mistake(_last_only, "Only the last earlier place was counted. Add the shares after all of them."),
            Mistake(_turned, "Rows and columns are exchanged: a row of `attention` belongs to the place that asks."),
        ),
        "sum(attention[place][p + 1] for earlier p with the same token), and the mean over the places that have one.",
    ),
]
