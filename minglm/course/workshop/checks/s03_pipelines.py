"""Checks of the sheet to scale/03: 1F1B, the clock, the bubble, ZB-H1. A test holds them to the simulator's own."""

from functools import partial

from minglm.course.workshop.checking import Exercise, Mistake, NotYet

TIMES = {"F": 1.0, "B": 2.0, "I": 1.2, "W": 0.8}


def reference_order(rank, P, m, warm_off=0, newest=False):
    """By counting: a forward while fewer than P − rank are held, else the backward that waits longest."""
    out: list[tuple[str, int]] = []
    held: list[int] = []
    forwards = 0
    while forwards < m or held:
        if forwards < m and len(held) < max(1, P - rank + warm_off):
            out.append(("F", forwards))
            held.append(forwards)
            forwards += 1
        else:
            out.append(("B", held.pop(-1 if newest else 0)))
    return out


def _gpipe(rank, P, m):
    return [("F", i) for i in range(m)] + [("B", i) for i in range(m)]


def reference_time(orders, times, hop, wrong=""):
    """Asked from the end: each piece of work ends after the one before it in its rank, and after what it waits for."""
    place = {(kind, i, r): k for r, order in enumerate(orders) for k, (kind, i) in enumerate(order)}
    known: dict[tuple[int, int], float] = {}
    last = len(orders) - 1

    def waits_for(kind, i, r):
        if kind == "W" or wrong == "alone":
            return None
        if kind == "F":
            return ("F", i, r - 1) if r else None
        return (kind, i, r + 1) if r < last else ("F", i, r)

    for _ in range(sum(map(len, orders)) + 1):  # each round settles at least one, or there is a circle
        for r, order in enumerate(orders):
            for k, (kind, i) in enumerate(order):
                if (r, k) in known or (k and (r, k - 1) not in known):
                    continue
                at, need = known.get((r, k - 1), 0.0), waits_for(kind, i, r)
                if need is not None:
                    if need not in place or (need[2], place[need]) not in known:
                        continue
                    travel = hop if need[2] != r and wrong != "no hop" else 0.0
                    at = max(at, known[need[2], place[need]] + travel)
                if wrong == "sender waits" and k and order[k - 1][0] != "W":
                    at = max(at, known[r, k - 1] + hop)
                known[r, k] = at + times[kind]
    if len(known) < len(place):
        raise ValueError("a circle")
    return max(known.values())


def _bubble(orders, times, hop, wrong=""):
    work = [sum(times[kind] for kind, _ in order) for order in orders]
    whole = reference_time(orders, times, hop)
    if wrong == "first rank":
        return 1 - work[0] / whole
    idle = sum(whole - w for w in work)
    return (
        idle / sum(work) if wrong == "of the work" else idle / whole if wrong == "ranks" else idle / whole / len(orders)
    )


def _zero_bubble(rank, P, m, lag=None, at_once=False, newest=False):
    lag = rank if lag is None else lag
    out, done = [], 0
    waiting: list[int] = []
    for kind, i in reference_order(rank, P, m):
        if kind == "F":
            out.append((kind, i))
            continue
        out.append(("I", i))
        waiting.append(i)
        done += 1
        if at_once or done > lag:
            out.append(("W", waiting.pop(-1 if newest else 0)))
    return out + [("W", i) for i in waiting]


def _lists(answer):
    """Pairs may be lists."""

    def run(*args):
        out = answer(*args)
        return [tuple(pair) for pair in out] if isinstance(out, list) else out

    return run


def _deadlock(answer) -> None:
    """Two ranks that wait for each other are told apart from a loop without end."""
    forward, backward = ("F", 0), ("B", 0)
    for stuck in ([[backward, forward], [forward, backward]], [[forward, backward], [backward, forward]]):
        try:
            answer(stuck, TIMES, 0.0)
        except NotYet as err:
            if "ValueError" in str(err):
                continue
            raise
        raise NotYet("Orders that wait for each other for ever must raise ValueError; here a time was given.")


def _grid():
    return [(r, P, m) for P, m in ((4, 8), (4, 2), (1, 3), (3, 3)) for r in range(P)]


def _orders(P, m, schedule):
    return [schedule(r, P, m) for r in range(P)]


def _time_cases():
    return [
        (_orders(4, 8, reference_order), TIMES, 0.0),
        (_orders(4, 8, reference_order), TIMES, 0.3),
        (_orders(3, 5, _gpipe), TIMES, 0.1),
        (_orders(3, 6, _zero_bubble), TIMES, 0.05),
        (_orders(1, 2, reference_order), TIMES, 9.0),
        (_orders(2, 1, reference_order), TIMES, 0.5),
    ]


EXERCISES = [
    Exercise(
        "scale_03.one_f_one_b",
        reference_order,
        _grid,
        (
            Mistake(_gpipe, "That is GPipe: all forwards first. After the warm-up forwards and backwards alternate."),
            Mistake(partial(reference_order, warm_off=1), "One forward too many in the warm-up: it has P - rank - 1."),
            Mistake(
                partial(reference_order, newest=True), "The backward is that of the oldest micro-batch that waits."
            ),
        ),
        "min(P − rank − 1, m) forwards; then F i and B i − warm in turns; then the backwards that are left.",
        use=_lists,
        hints=(
            "Write out P = 2, m = 3 by hand for both ranks.",
            "The last rank has no warm-up: F0 B0 F1 B1 … Each rank before it begins with one more forward.",
            "for i in range(warm, m): F i, B i − warm; at the end B from m − warm on.",
        ),
    ),
    Exercise(
        "scale_03.step_time",
        reference_time,
        _time_cases,
        (
            Mistake(
                partial(reference_time, wrong="no hop"), "What comes from a neighbour arrives `hop` seconds later."
            ),
            Mistake(partial(reference_time, wrong="alone"), "No rank waits for its neighbours here; each must."),
            Mistake(
                partial(reference_time, wrong="sender waits"), "The sender goes on at once; only the receiver waits."
            ),
        ),
        "Keep the end of every piece; go round the ranks and do what can be done, until nothing moves.",
        also=_deadlock,
        hints=(
            "Keep a dict (kind, i, rank) → end, and for each rank where it stands in its list and when it is free.",
            "A piece can be done when what it waits for is in the dict; it starts at max(free, that end + hop).",
            "Loop over the ranks, each as far as it gets, until a whole round moved nothing; work left: ValueError.",
        ),
    ),
    Exercise(
        "scale_03.bubble",
        _bubble,
        lambda: [
            *((_orders(4, 8, s), TIMES, h) for s, h in ((reference_order, 0.0), (_gpipe, 0.2), (_zero_bubble, 0.0))),
            ([[("F", 0), ("B", 0)], [("F", 0), ("B", 0), ("W", 0)]], TIMES, 0.1),
        ],
        (
            Mistake(partial(_bubble, wrong="of the work"), "The share is of all the ranks' time, not of their work."),
            Mistake(partial(_bubble, wrong="ranks"), "The time of all ranks is ranks · step time."),
            Mistake(
                lambda orders, times, hop: _bubble(orders, times, hop, wrong="first rank"),
                "The work of all ranks counts: they need not have the same.",
            ),
        ),
        "1 − sum of all work over len(orders) · step_time.",
        hints=(
            "Only two numbers are needed: all work, and the step time.",
            "All work: times[kind] summed over all lists. All time: ranks times the step.",
            "1 − work / (len(orders) · step_time(orders, times, hop)).",
        ),
    ),
    Exercise(
        "scale_03.zero_bubble",
        _zero_bubble,
        _grid,
        (
            Mistake(
                partial(_zero_bubble, lag=0), "Each W stands right after its I: put it off, by `rank` micro-batches."
            ),
            Mistake(
                lambda rank, P, m: _zero_bubble(rank, P, m, lag=m),
                "All W stand at the end: then activations of all micro-batches are held. Do the oldest as you go.",
            ),
            Mistake(
                partial(_zero_bubble, newest=True),
                "Of those that wait, the oldest gets its W: it holds memory longest.",
            ),
        ),
        "Walk through 1F1B; for a B append I and remember it; if more than rank are remembered, W of the first.",
        use=_lists,
        hints=(
            "Use your one_f_one_b and translate it, piece by piece.",
            "Keep a list of micro-batches whose W is owed; its length says when to pay one.",
            "owed.append(i); if len(owed) > rank: W of owed.pop(0); after the loop the rest.",
        ),
    ),
]
