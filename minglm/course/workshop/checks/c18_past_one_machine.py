"""Checks of 18: rows of an all-to-all, bytes of a ring all-reduce, the loss of processes with unequal numbers of
targets.

The references play it out: a table of owners, a ring step by step, a list of all targets."""

import math

from minglm.course.workshop.checking import Exercise, Mistake

ROUTES = [
    ([[0, 5], [1, 2]], 8, 2),
    ([[7, 6], [7, 5], [6, 4], [0, 7]], 8, 4),
    ([[3], [3], [1]], 4, 1),
    ([[0, 1, 2], [5, 4, 0], [2, 3, 5]], 6, 3),
]
NAN = math.nan


def _rows(chosen, experts, ep):
    owner = [process for process in range(ep) for _ in range(experts // ep)]
    owners = [owner[e] for token in chosen for e in token]
    return [owners.count(process) for process in range(ep)]


def _rows_by(chosen, ep, owner, once=False):
    out = [0] * ep
    for token in chosen:
        owners = [owner(e) for e in token]
        for process in set(owners) if once else owners:
            out[process] += 1
    return out


def _ring(size, n):
    part, sent = size / n, [0.0] * n
    for _lap in ("sums", "finished parts"):
        for _step in range(n - 1):
            for process in range(n):
                sent[process] += part
    return sent[0]


def _joint(losses, targets):
    each = [loss for loss, n in zip(losses, targets, strict=False) for _ in range(n)]
    return sum(each) / len(each)


EXERCISES = [
    Exercise(
        "18.rows_to_send",
        _rows,
        lambda: ROUTES,
        (
            Mistake(
                lambda c, e, ep: _rows_by(c, ep, lambda x: x % ep),
                "Experts are not dealt out in turn: a process owns a block of neighbours, experts // ep of them.",
            ),
            Mistake(
                lambda c, e, ep: _rows_by(c, ep, lambda x: x * ep // e, once=True),
                "A token goes once for each expert it chose, even if two of them live in the same process: count "
                "choices, not tokens.",
            ),
            Mistake(
                lambda c, e, ep: _rows_by([t[:1] for t in c], ep, lambda x: x * ep // e),
                "You counted each token's first choice only. All of its experts need the row.",
            ),
            Mistake(
                lambda c, e, ep: _rows([range(e)], e, ep),
                "That is how many experts each process owns. What it gets depends on what the tokens chose.",
            ),
            Mistake(
                lambda c, e, ep: [sum(t.count(x) for t in c) for x in range(e)],
                "That is one number for each expert. Experts of the same owner travel in one parcel: add them up, `ep` "
                "numbers.",
            ),
        ),
        "The owner of expert e is e // (experts // ep); count one row for each choice.",
    ),
    Exercise(
        "18.ring_bytes",
        _ring,
        lambda: [(1200, 4), (1200, 2), (1000, 1), (8e9, 16), (1000, 3)],
        (
            Mistake(
                lambda s, n: _ring(s, n) / 2,
                "That is one lap. The finished parts have to go round as well, so it takes two.",
            ),
            Mistake(
                lambda s, n: 2 * (n - 1) * s,
                "That is n times too much: in a step one process passes on one part, size / n, not all it holds; and "
                "what the others send is not its own.",
            ),
            Mistake(
                lambda s, n: 2 * s,
                "Close for many processes, but a lap has n − 1 steps, not n: nobody sends to itself. What would one "
                "process alone send?",
            ),
            Mistake(
                lambda s, n: 2 * (n - 1) * (s // n),
                "`//` throws the remainder away: a third of 1000 bytes is 333.33, not 333. Divide with `/`.",
            ),
            Mistake(
                lambda s, n: (n - 1) * s,
                "That sends everything to everybody. A ring needs less, as the parts are summed on their way.",
            ),
        ),
        "Two laps of n − 1 steps, size / n bytes in each.",
    ),
    Exercise(
        "18.joint_loss",
        _joint,
        lambda: [
            ([2.0, 4.0], [30, 10]),
            ([3.0, 3.5, 1.0], [100, 20, 5]),
            ([2.5, NAN], [12, 0]),
            ([NAN, 1.0, 5.0], [0, 1, 7]),
        ],
        (
            Mistake(
                lambda x, n: sum(x) / len(x),
                "A plain mean lets a process with ten targets say as much as one with thirty. Weigh each loss by its "
                "number of targets.",
            ),
            Mistake(
                lambda x, n: sum(a for a, b in zip(x, n, strict=False) if b) / sum(b > 0 for b in n),
                "The empty processes are left out, rightly; the others must still be weighed by their numbers of "
                "targets.",
            ),
            Mistake(
                lambda x, n: sum(a * b for a, b in zip(x, n, strict=False)) / sum(n),
                "Zero times NaN is NaN: one process without targets spoils the loss of all. Leave it out of the sum.",
            ),
            Mistake(
                lambda x, n: sum(a * b for a, b in zip(x, n, strict=False) if b) / len(n),
                "That divides by the number of processes. Weighed by targets, the sum belongs over the number of all "
                "targets.",
            ),
            Mistake(
                lambda x, n: sum(a * b for a, b in zip(x, n, strict=False) if b),
                "That is the sum over all targets. The mean is wanted: divide by how many there are.",
            ),
        ),
        "Sum of loss · targets over the processes that have some, divided by all targets.",
    ),
]
