"""Checks of 08: rotary wavelengths, hiding a needle, a table by depth and length."""

import math

from minglm.course.workshop.checking import Exercise, Mistake
from minglm.model.layers import rope_table


def _wave(theta, width, pair):
    angle = float(rope_table(2, width, theta)[1, pair].angle())  # how far one position turns this pair
    return 2 * math.pi / angle


def _prompt(filler, needle, question, length, depth):
    room = length - len(needle) - len(question)
    at = round(depth * room)
    return [*filler[:at], *needle, *filler[at:room], *question]


def _prompt_long(filler, needle, question, length, depth):
    at = round(depth * length)
    return [*filler[:at], *needle, *filler[at:length], *question]


def _prompt_reversed(filler, needle, question, length, depth):
    return _prompt(filler, needle, question, length, 1 - depth)


def _prompt_cut(filler, needle, question, length, depth):
    room = length - len(needle) - len(question)
    at = min(round(depth * length), room)
    return [*filler[:at], *needle, *filler[at:room], *question]


def _prompt_again(filler, needle, question, length, depth):
    room = length - len(needle) - len(question)
    at = round(depth * room)
    return [*filler[:at], *needle, *filler[: room - at], *question]


def _table(rows, order_depths=sorted, order_lengths=sorted):
    depths, lengths = (
        order_depths(dict.fromkeys(d for d, _, _ in rows)),
        order_lengths(dict.fromkeys(n for _, n, _ in rows)),
    )
    out = []
    for d in depths:
        line = []
        for n in lengths:
            hits = [right for a, b, right in rows if (a, b) == (d, n)]
            line.append(sum(hits) / len(hits))
        out.append(line)
    return out


# Neither depths nor lengths come in rising order, and as words the lengths would stand in another one.
ROWS = [
    (0.9, 512, False),
    (0.1, 64, True),
    (0.9, 1024, True),
    (0.1, 512, True),
    (0.9, 64, True),
    (0.1, 1024, False),
    (0.1, 64, False),
    (0.9, 512, False),
    (0.9, 64, True),
    (0.9, 512, True),
]


EXERCISES = [
    Exercise(
        "08.wavelength",
        _wave,
        lambda: [(10_000.0, 16, 0), (10_000.0, 16, 7), (1_000_000.0, 64, 20)],
        (
            Mistake(
                lambda t, w, j: t ** (2 * j / w),
                "That is the inverse of the angle for one step. A full turn is 2 pi, so multiply by it.",
            ),
            Mistake(
                lambda t, w, j: 2 * math.pi * t ** (j / w),
                "The exponent is 2 * pair / width: pair number `pair` holds the numbers 2 * pair and 2 * pair + 1.",
            ),
            Mistake(
                lambda t, w, j: 2 * math.pi * t ** (-2 * j / w),
                "The sign of the exponent is wrong: later pairs turn more slowly, so their wavelength is longer.",
            ),
        ),
        "One step turns the pair by theta ** (-2 * pair / width); a full turn is 2 pi.",
    ),
    Exercise(
        "08.needle_prompt",
        _prompt,
        lambda: [
            (list(range(100, 200)), [1, 2], [8, 9], 20, 0.5),
            (list(range(100, 200)), [1, 2], [8, 9], 20, 0.0),
            (list(range(100, 200)), [1], [9], 12, 1.0),
            (list(range(100, 200)), [1, 2, 3], [9], 34, 0.25),
        ],
        (
            Mistake(
                _prompt_long,
                "The prompt is longer than asked for: needle and question need room too. Fill only length - "
                "len(needle) - len(question) places.",
            ),
            Mistake(
                _prompt_reversed,
                "Depth counts from the beginning: 0 puts the needle first, 1 last before the question.",
            ),
            Mistake(
                _prompt_cut,
                "The depth must be a share of the filler, not of the whole prompt, or deep needles land too late.",
            ),
            Mistake(
                _prompt_again,
                "After the needle your filler begins again from its front. Go on with the token at which it stopped.",
            ),
        ),
        "length − len(needle) − len(question) tokens of filler are used; the needle stands after round(depth · that "
        "number) of them; the question ends the prompt.",
    ),
    Exercise(
        "08.accuracy_table",
        _table,
        lambda: [(ROWS,), ([(0.5, 64, True)],)],
        (
            Mistake(
                lambda rows: [list(c) for c in zip(*_table(rows), strict=False)],
                "Rows and columns are exchanged: one row for each depth, one column for each length.",
            ),
            Mistake(
                lambda rows: [
                    [sum(r for a, b, r in rows if (a, b) == (d, n)) for n in sorted({x[1] for x in rows})]
                    for d in sorted({x[0] for x in rows})
                ],
                "Those are counts. Divide by the number of questions of the cell: cells may have different numbers.",
            ),
            Mistake(
                lambda rows: _table(rows, list, list),
                "Depths and lengths stand in the order in which they were met. Sort both.",
            ),
            Mistake(
                lambda rows: _table(rows, list), "The lengths are in rising order, the depths are not: sort them too."
            ),
            Mistake(
                lambda rows: _table(rows, order_lengths=list),
                "The depths are in rising order, the lengths are not: sort them too.",
            ),
            Mistake(
                lambda rows: _table(rows, order_lengths=lambda lengths: sorted(lengths, key=str)),
                "The lengths are sorted as words, where 1024 comes before 64. Sort them as numbers.",
            ),
        ),
        "Depths and lengths in rising order; each cell is right answers over questions.",
    ),
]
