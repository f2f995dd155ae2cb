"""Checks of 01: pairs, merges, what a token holds, where a document starts."""

from collections import Counter

from minglm.course.workshop.checking import Exercise, Mistake


def _pair(ids):
    best, most = None, 0
    for i in range(len(ids) - 1):  # slow and obvious: count each pair anew, the first of the best wins
        times = sum(ids[j] == ids[i] and ids[j + 1] == ids[i + 1] for j in range(len(ids) - 1))
        if times > most:
            best, most = (ids[i], ids[i + 1]), times
    return best


def _pair_tied(ids, of):
    counts = Counter(zip(ids, ids[1:], strict=False))
    return of([p for p in counts if counts[p] == max(counts.values())])


def _pair_apart(ids):
    """Counts as text search does: what overlaps is counted once."""
    text = "".join(map(chr, ids))
    return max(zip(ids, ids[1:], strict=False), key=lambda p: text.count("".join(map(chr, p))))


def _merge(ids, pair, new):
    text = "".join(map(chr, ids)).replace(chr(pair[0]) + chr(pair[1]), chr(new))  # str.replace does not overlap either
    return [ord(c) for c in text]


def _merge_overlapping(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == tuple(pair):
            out.append(new)
        else:
            out.append(ids[i])
        i += 1
    return out


def _merge_even(ids, pair, new):
    out: list[int] = []
    for i in range(0, len(ids), 2):
        out += [new] if tuple(ids[i : i + 2]) == tuple(pair) else ids[i : i + 2]
    return out


def _merge_again(ids, pair, new):
    while len(shorter := _merge(ids, pair, new)) < len(ids):
        ids = shorter
    return ids


def _merge_either(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        found = tuple(ids[i : i + 2]) in (tuple(pair), tuple(pair)[::-1])
        out.append(new if found else ids[i])
        i += 2 if found else 1
    return out


def _starts(tokens, bos):
    out = []
    for i in range(len(tokens)):
        out.append(max((j for j in range(i + 1) if tokens[j] == bos), default=0))
    return out


def _starts_after(tokens, bos):
    out, start = [], 0
    for i, t in enumerate(tokens):
        out.append(start)
        if t == bos:
            start = i
    return out


def _starts_plus(tokens, bos):
    return [s + 1 if tokens[s] == bos and s < i else s for i, s in enumerate(_starts(tokens, bos))]


EXERCISES = [
    Exercise(
        "01.most_frequent_pair",
        _pair,
        lambda: [
            ([1, 2, 3, 1, 2],),
            ([9, 1, 2, 9, 1, 9, 1],),
            (list(b"the cat sat on the mat"),),
            ([6, 9, 5, 8, 7],),
            ([1, 2, 7, 7, 7],),
        ],
        (
            Mistake(
                lambda ids: Counter(zip(ids[::2], ids[1::2], strict=False)).most_common(1)[0][0],
                "You looked at places (0,1), (2,3), ... only. Every neighbour counts: (0,1), (1,2), (2,3), ... as in "
                "zip(ids, ids[1:]).",
            ),
            Mistake(
                lambda ids: Counter(zip(ids, ids[1:], strict=False)).most_common(1)[0],
                "You gave back the pair together with its count. Only the pair is asked for.",
            ),
            Mistake(
                lambda ids: Counter(tuple(sorted(p)) for p in zip(ids, ids[1:], strict=False)).most_common(1)[0][0],
                "A pair has an order: (1, 2) and (2, 1) are different and must be counted apart.",
            ),
            *(
                Mistake(
                    lambda ids, of=of: _pair_tied(ids, of),
                    "Of equally frequent pairs the one that comes first in the list is wanted, whatever its numbers: "
                    "do not compare the pairs themselves.",
                )
                for of in (min, max)
            ),
            Mistake(
                lambda ids: _pair_tied(ids, lambda pairs: pairs[-1]),
                "Of equally frequent pairs you gave the one that comes last in the list; the first is wanted.",
            ),
            Mistake(_pair_apart, "Overlapping pairs count: [7, 7, 7] holds (7, 7) twice, at places (0,1) and (1,2)."),
        ),
        "Count each pair of neighbours; of several equally frequent ones give the one that comes first.",
    ),
    Exercise(
        "01.merge",
        _merge,
        lambda: [
            ([1, 2, 3, 1, 2], (1, 2), 300),
            ([7, 7, 7], (7, 7), 300),
            ([5, 1, 2, 1], (1, 2), 300),
            ([], (1, 2), 300),
            ([2, 1], (1, 2), 300),
            ([1, 1, 1, 1], (1, 1), 1),
        ],
        (
            Mistake(
                _merge_overlapping,
                "After a merge both tokens are used up: move on by two places, not by one, or the second token is "
                "counted twice.",
            ),
            Mistake(
                _merge_even,
                "A pair may begin at an odd place too. Go along the list and move by two only where you merged.",
            ),
            Mistake(
                lambda ids, pair, new: [new if t in pair else t for t in ids],
                "You replaced each member of the pair alone. Only the two side by side, in this order, become one new "
                "token.",
            ),
            Mistake(
                _merge_either, "A pair has an order: where the second token stands before the first, nothing is merged."
            ),
            Mistake(_merge_again, "You merged again what a merge had just written. Go through the list once."),
        ),
        "Go from left to right; where the two tokens of the pair stand side by side write `new` and skip both.",
    ),
    Exercise(
        "01.bytes_per_token",
        lambda text, ids: (
            sum(1 if ord(c) < 128 else 2 if ord(c) < 2048 else 3 if ord(c) < 65536 else 4 for c in text) / len(ids)
        ),
        lambda: [("abcd", [1, 2]), ("abcdef", [4, 4, 7]), ("naïve 猫", [1, 2, 3]), ("🙂", [1, 2, 3, 4])],
        (
            Mistake(
                lambda text, ids: len(text) / len(ids),
                "You counted characters. One character may be several bytes: measure the text encoded in UTF-8.",
            ),
            Mistake(lambda text, ids: len(ids) / len(text.encode()), "That is tokens per byte, the inverse."),
            Mistake(
                lambda text, ids: len(text.encode()) / len(set(ids)),
                "You counted each kind of token once. Count every token as often as it stands: len(ids).",
            ),
        ),
        "Bytes of the text in UTF-8, divided by the number of tokens.",
    ),
    Exercise(
        "01.document_starts",
        _starts,
        lambda: [([0, 5, 6, 0, 7, 8, 9], 0), ([5, 6, 0, 7], 0), ([0, 0, 1], 0), ([7, 0, 5, 7, 0, 6], 7)],
        (
            Mistake(
                _starts_after,
                "The begin token itself already belongs to the new document: at its own place the start is that place.",
            ),
            Mistake(_starts_plus, "A document starts at its begin token, not after it: that token may be seen."),
            Mistake(
                lambda tokens, bos: [0] * len(tokens),
                "Everything may see place 0: then documents see each other. After each begin token the start moves "
                "there.",
            ),
            Mistake(
                lambda tokens, bos: _starts(tokens, 0),
                "You looked for the token 0. Which token begins a document is given as `bos`: compare with that.",
            ),
        ),
        "For each place: the place of the last begin token at or before it; 0 where there is none.",
    ),
]
