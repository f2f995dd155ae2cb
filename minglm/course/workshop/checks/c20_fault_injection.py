"""Checks of 20: the newest whole checkpoint, the best interval between two, waits that grow and end.

The references look for the answer: sorted candidates, a search for the smallest loss, sums of prefixes."""

import itertools
import math

from minglm.course.workshop.checking import Exercise, Mistake

WHOLE = {"model": 100, "optimizer": 200}
FOLDERS = [
    ([("step_8", {"model": 100}, {"model": 100}), ("step_12", {"model": 100}, {"model": 60})],),
    ([("step_8", WHOLE, WHOLE), ("step_12", WHOLE, WHOLE), (".writing_16", None, {"model": 100})],),
    ([("step_4", WHOLE, WHOLE), (".writing_8", WHOLE, WHOLE)],),
    ([("step_20", WHOLE, WHOLE), ("step_24", WHOLE, {"model": 100})],),
    ([("step_4", WHOLE, {"model": 100, "optimizer": 0})],),
    ([("step_16", None, WHOLE), ("step_12", WHOLE, {**WHOLE, "notes": 5})],),
    ([("step_12", WHOLE, WHOLE), ("step_8", WHOLE, WHOLE)],),
    ([("step_8", {"model": 100}, {"model": 100}), ("step_12", {"model": 100}, {"model": 120})],),
    ([],),
]
MACHINES = [(10.0, 8_000_000.0, 1000), (30.0, 5e8, 100_000), (0.5, 86400.0, 1), (60.0, 1e8, 16), (0.2, 31.0, 7)]
WAITS = [(1, 2, 8, 30), (0.5, 3, 10, 4.0), (5, 2, 60, 4), (2, 2, 2, 7), (1, 2, 100, 7), (10, 2, 4, 9), (1, 2, 8, 12)]


def _number(name):
    return int(name.rsplit("_", 1)[1])


def _whole(entry):
    name, promised, found = entry
    return name[0] != "." and promised is not None and {f: found.get(f) for f in promised} == promised


def _newest(entries, trusted=_whole, key=lambda e: _number(e[0]), none=0):
    good = sorted(filter(trusted, entries), key=key)
    return _number(good[-1][0]) if good else none


def _interval(stall, chip_mtbf, chips):
    """The smallest loss, by narrowing down the logarithm of the interval; each chip adds its failures a second."""
    rate = sum(itertools.repeat(1 / chip_mtbf, chips))
    low, high = math.log(1e-3), math.log(1e9)
    while high - low > 1e-9:
        a, b = low + (high - low) / 3, high - (high - low) / 3
        if stall / math.exp(a) + math.exp(a) * rate / 2 < stall / math.exp(b) + math.exp(b) * rate / 2:
            high = b
        else:
            low = a
    return math.exp((low + high) / 2)


def _waits(first, factor, most, limit):
    row = [min(first * factor**k, most) for k in range(64)]
    fit = sum(total <= limit for total in itertools.accumulate(row))
    return row[:fit]


def _one_more(first, factor, most, limit):
    row = [min(first * factor**k, most) for k in range(64)]
    return row[: len(_waits(first, factor, most, limit)) + 1]


def _cut_to_fit(first, factor, most, limit):
    row = _waits(first, factor, most, limit)
    return [*row, limit - sum(row)] if sum(row) < limit else row


def _up_to_limit(first, factor, most, limit):
    return [w for w in dict.fromkeys(min(first * factor**k, most) for k in range(64)) if w <= limit]


UNPROMISED = (
    "Nothing promised, nothing to check: such a checkpoint can never be told from half a one, so it is not trusted. "
    "Pass over an entry whose `promised` is None."
)


EXERCISES = [
    Exercise(
        "20.resume_from",
        _newest,
        lambda: FOLDERS,
        (
            Mistake(
                lambda e: _newest(e, lambda x: x[0][0] != "."),
                "The newest may be cut short, or lack a file. Compare what is found with what was promised, and take "
                "an older one that is whole.",
            ),
            Mistake(
                lambda e: _newest(e, lambda x: _whole(("step_0", *x[1:]))),
                "A folder that is still called .writing_ was never committed: the rename is the last act, and a run "
                "that finds it must not rely on it.",
            ),
            Mistake(
                lambda e: _newest(e, key=lambda x: x[0]),
                "As text 'step_8' comes after 'step_12'. Compare the steps as numbers (or write them with leading "
                "zeros, as the project does).",
            ),
            Mistake(
                lambda e: _newest(
                    e,
                    lambda x: x[0][0] != "." and x[1] is not None and all(x[1].get(f, n) == n for f, n in x[2].items()),
                ),
                "You looked at the files that are there. One that is missing is not among them: go through the "
                "promised ones.",
            ),
            Mistake(
                lambda e: _newest(e, lambda x: x[0][0] != "." and x[1] is not None and set(x[1]) <= set(x[2])),
                "A file that is there may be cut short, even empty: compare its bytes with the promised number.",
            ),
            Mistake(
                lambda e: _newest(e, lambda x: _whole(x) and set(x[1]) == set(x[2])),
                "A further file does no harm: whole means that every promised file is there in full.",
            ),
            Mistake(lambda e: _newest(e, lambda x: (x[1] is None and x[0][0] != ".") or _whole(x)), UNPROMISED),
            Mistake(
                lambda e: _newest(e, lambda x: x[0][0] != "." and all(x[2].get(f) == n for f, n in x[1].items())),
                UNPROMISED,
            ),
            Mistake(
                lambda e: _newest(
                    e, lambda x: x[0][0] != "." and x[1] is not None and all(x[2][f] == n for f, n in x[1].items())
                ),
                "A promised file may be missing from `found`, and then `found[file]` stops with a KeyError. "
                "`found.get(file)` gives None in its place.",
            ),
            Mistake(
                lambda e: _newest(
                    e,
                    lambda x: (
                        x[0][0] != "." and x[1] is not None and all(x[2].get(f, -1) >= n for f, n in x[1].items())
                    ),
                ),
                "A file that is too long is not the promised one either: its bytes must be exactly as many.",
            ),
            Mistake(
                lambda e: ([_number(x[0]) for x in e if _whole(x)] or [0])[-1],
                "You took the last whole one in the list. A folder's list has no particular order: compare the steps.",
            ),
            Mistake(
                lambda e: _newest(e, none=None), "With no whole checkpoint the run begins again: give 0, not nothing."
            ),
        ),
        "Keep names that begin with step_ and whose promised files are all found with their bytes (`promised` may be "
        "None, and a promised file may be missing from `found`); the largest number, or 0.",
    ),
    Exercise(
        "20.best_interval",
        _interval,
        lambda: MACHINES,
        (
            Mistake(
                lambda s, m, n: math.sqrt(2 * s * m),
                "That is right for one chip. With many, one of them fails that many times as often: divide its time "
                "between failures by `chips`.",
            ),
            Mistake(
                lambda s, m, n: math.sqrt(2 * s * m * n),
                "More chips fail more often, so the time between failures becomes shorter: divide by `chips`.",
            ),
            Mistake(
                lambda s, m, n: math.sqrt(s * m / n),
                "The factor 2 is missing: half of an interval is lost on average, not all of it. Set the derivative "
                "−stall/τ² + 1/(2M) to zero.",
            ),
            Mistake(lambda s, m, n: 2 * s * m / n, "That is τ². Take the square root."),
            Mistake(
                lambda s, m, n: round(math.sqrt(2 * s * m / n)),
                "That is rounded to whole seconds. Give τ exactly: set the derivative −stall/τ² + 1/(2M) to zero and "
                "solve for τ.",
            ),
            Mistake(
                lambda s, m, n: math.sqrt(2 * s * m) / n,
                "Only the time between failures is divided by `chips`, and it stands under the root.",
            ),
            Mistake(
                lambda s, m, n: math.sqrt(s * m / (2 * n)),
                "The 2 stands on the wrong side: −stall/τ² + 1/(2M) = 0 gives τ² = 2 · stall · M.",
            ),
        ),
        "τ = √(2 · stall · M) with M = chip_mtbf / chips.",
    ),
    Exercise(
        "20.waits",
        _waits,
        lambda: WAITS,
        (
            Mistake(
                lambda f, k, m, t: _waits(f, k, 1e9, t),
                "The waits grow without end. None may be longer than `most`, or a part that is back waits for nothing.",
            ),
            Mistake(_one_more, "The last wait goes beyond the limit: look before you begin it, not after."),
            Mistake(
                _cut_to_fit, "The last wait was shortened to fit. One that would go beyond the limit is not begun."
            ),
            Mistake(
                _up_to_limit, "The limit holds for all waits together, and a wait of `most` may come several times."
            ),
            Mistake(
                lambda f, k, m, t: _waits(min(f, m), 1, m, t),
                "All waits are equal. Each is `factor` times the one before, up to `most`.",
            ),
            Mistake(
                lambda f, k, m, t: [
                    w for w in [min(f * k ** (i + 1), m) for i in range(64)][: len(_waits(min(f * k, m), k, m, t))]
                ],
                "The first wait is `first`; it grows only after that.",
            ),
            Mistake(
                lambda f, k, m, t: [f, *_waits(min(f * k, m), k, m, t - f)] if f <= t else [],
                "The first wait may not be longer than `most` either.",
            ),
        ),
        "Begin with min(first, most); as long as the sum stays within `limit`, add the wait and multiply it by "
        "`factor`, at most `most`. Give the list back; raise nothing at the limit.",
    ),
]
