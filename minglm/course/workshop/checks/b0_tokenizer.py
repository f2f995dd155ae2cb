"""Checks of build 0: counting pairs, merging one, learning merges, encoding, decoding."""

import math
from collections import Counter
from functools import partial
from itertools import pairwise

from minglm.course.workshop.checking import Exercise, Mistake, NotYet

WORDS = {(1, 2, 3): 4, (2, 3): 5, (7, 7, 7): 2, (1, 2): 1, (9,): 30}


def _use_counts(answer):
    """Counter or dict, in any order."""

    def run(words):
        out = answer(words)
        return dict(sorted(out.items())) if isinstance(out, dict) else out

    return run


def _pairs(words, weighted=True, once=False):
    out: Counter = Counter()
    for piece, often in words.items():
        pairs = [piece[i : i + 2] for i in range(len(piece) - 1)]
        for pair in set(pairs) if once else pairs:
            out[pair] += often if weighted else 1
    return dict(sorted(out.items()))


def _merge(piece, pair, new, from_right=False, first_only=False, both=False):
    """As text: symbols joined by commas, replaced by Python's own `str.replace`."""
    if from_right:
        back = _merge(piece[::-1], pair[::-1], new)
        return back[::-1]
    if both:  # the halves stay
        return tuple(
            v for a, b in zip(piece, (*piece[1:], None), strict=True) for v in ((a, new) if (a, b) == pair else (a,))
        )
    out, i = [], 0
    while i < len(piece):
        hit = tuple(piece[i : i + 2]) == pair and not (first_only and new in out)
        out.append(new if hit else piece[i])
        i += 2 if hit else 1
    return tuple(out)


def _learn(words, count, order="smallest", stale=False, start=256):
    words, merges = dict(words), []
    for new in range(start, start + count):
        pairs = _pairs(words)
        if not pairs:
            break
        most = max(pairs.values())
        equal = sorted(pair for pair, n in pairs.items() if n == most)
        pair = equal[0] if order == "smallest" else equal[-1]
        if order == "rarest":
            pair = min(pairs, key=lambda p: (pairs[p], p))
        merges.append(pair)
        if not stale:
            words = _together((_merge(piece, pair, new), often) for piece, often in words.items())
        elif len(pairs) > len(merges):  # the counts of the beginning, taken one after the other
            ranked = sorted(pairs, key=lambda p: (-pairs[p], p))
            return ranked[:count]
    return merges


def _together(items):
    out: Counter = Counter()
    for piece, often in items:
        out[piece] += often
    return dict(out)


def _encode(piece, merges, order="rank", once=False):
    while True:
        places = [
            (merges.index(pair) if order == "rank" else i, i)
            for i, pair in enumerate(pairwise(piece))
            if pair in merges
        ]
        if not places:
            return piece
        i = min(places)[1]
        pair = piece[i : i + 2]
        new = 256 + merges.index(pair)
        piece = (*piece[:i], new, *piece[i + 2 :]) if order == "place" else _merge(piece, pair, new)
        if once:
            return piece


def _longest_first(piece, merges):
    known = {tuple(_decode([256 + n], merges)): 256 + n for n in range(len(merges))}
    known |= {(symbol,): symbol for symbol in piece}
    out, i = [], 0
    while i < len(piece):
        length = max(n for n in range(1, len(piece) - i + 1) if piece[i : i + n] in known)
        out.append(known[piece[i : i + length]])
        i += length
    return tuple(out)


def _decode(symbols, merges, depth=math.inf, reverse=False):
    out = list(symbols)
    while any(s >= 256 for s in out) and depth > 0:
        parts = [[s] if s < 256 else list(merges[s - 256])[:: -1 if reverse else 1] for s in out]
        out, depth = [v for part in parts for v in part], depth - 1
    return out


def _use_list(answer):
    """A tuple is as good as a list."""

    def run(*args):
        out = answer(*args)
        return list(out) if isinstance(out, tuple) else out

    return run


def _use_tuple(answer):
    def run(*args):
        out = answer(*args)
        return tuple(out) if isinstance(out, list) else out

    return run


MERGES = [(2, 3), (1, 2), (1, 256), (258, 258)]


def _unseen(answer) -> None:
    """A piece without a known pair comes back as it is."""
    if tuple(answer((8, 9), MERGES)) != (8, 9) or tuple(answer((5,), MERGES)) != (5,):
        raise NotYet("A piece of which no pair was ever learnt must come back as it is.")


EXERCISES = [
    Exercise(
        "build_0.count_pairs",
        _pairs,
        lambda: [(WORDS,), ({(4, 4): 3, (4, 4, 4): 1},), ({(8, 3, 8): 2, (3, 8): 5},), ({(5,): 7},)],
        (
            Mistake(partial(_pairs, weighted=False), "A piece that stands in the corpus n times counts n times."),
            Mistake(partial(_pairs, once=True), "A pair that stands in one piece several times counts each time."),
        ),
        "For each piece and each of its neighbours zip(piece, piece[1:]), add how often the piece stands there.",
        use=_use_counts,
    ),
    Exercise(
        "build_0.merge",
        _merge,
        lambda: [
            ((1, 2, 3, 1, 2), (1, 2), 300),
            ((7, 7, 7), (7, 7), 257),
            ((7, 7, 7, 7), (7, 7), 257),
            ((2, 1, 2), (1, 1), 256),
            ((1, 2, 1), (1, 2), 256),
        ],
        (
            Mistake(partial(_merge, from_right=True), "Go from left to right: (7, 7, 7) becomes (new, 7)."),
            Mistake(
                partial(_merge, first_only=True), "The pair is merged wherever it stands, not only the first time."
            ),
            Mistake(partial(_merge, both=True), "The new symbol replaces both halves: after a hit go on two further."),
        ),
        "Walk with an index; on a hit append new and go on by two, else append the symbol and go on by one.",
        use=_use_tuple,
    ),
    Exercise(
        "build_0.learn",
        _learn,
        lambda: [(WORDS, 5), ({(3, 4, 3, 4, 5): 2, (1, 9): 4, (9, 1): 4}, 4), ({(1, 2): 1}, 9), (WORDS, 0)],
        (
            Mistake(partial(_learn, order="largest"), "Where pairs are equally frequent, take the smallest of them."),
            Mistake(partial(_learn, order="rarest"), "The most frequent pair is merged first, not the rarest."),
            Mistake(
                partial(_learn, stale=True),
                "Count again after each merge: the pieces have changed, and pairs with the new symbol have come up.",
            ),
            Mistake(partial(_learn, start=257), "The first merge makes the symbol 256."),
        ),
        "Count, take min by (-count, pair), append it, merge it in all pieces with symbol 256 + number, and again.",
        use=_use_list,
    ),
    Exercise(
        "build_0.encode",
        _encode,
        lambda: [
            ((1, 2, 3), MERGES),
            ((1, 2, 3, 1, 2, 3), MERGES),
            ((1, 2, 1, 2), MERGES),
            ((3, 2, 1), MERGES),
            ((6, 6, 6), [(6, 6)]),
            ((1, 2, 3, 4), [(2, 3), (1, 2), (256, 4)]),
        ],
        (
            Mistake(
                partial(_encode, order="place"),
                "Take the pair that was learnt first, not the one that stands first in the piece.",
            ),
            Mistake(
                partial(_encode, once=True), "Go on until no known pair is left: a merge can make a new known pair."
            ),
            Mistake(
                _longest_first,
                "The longest known symbol from the left is another rule: what was learnt first is merged first.",
            ),
        ),
        "Among the piece's pairs take the one with the lowest place in merges, merge it everywhere, repeat.",
        also=_unseen,
        use=_use_tuple,
    ),
    Exercise(
        "build_0.decode",
        _decode,
        lambda: [([259, 8, 257], MERGES), ([1, 2, 3], MERGES), ([258], MERGES), ([], MERGES)],
        (
            Mistake(partial(_decode, depth=1), "The halves of a merge may be merges themselves: take them apart, too."),
            Mistake(partial(_decode, reverse=True), "The left half comes first."),
        ),
        "A symbol below 256 stays; any other one is decode(merges[symbol - 256]).",
        use=_use_list,
    ),
]
