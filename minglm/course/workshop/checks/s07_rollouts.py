"""Checks of the sheet to scale/07: rounds of groups, ages, and how many engines."""

import heapq
from functools import partial

from minglm.course.workshop.checking import Exercise, Mistake


def _play(groups, places, target, wrong=""):
    """By events: the end of each request is known when it starts."""
    line = [(g, s) for g, samples in enumerate(groups) for s, n in enumerate(samples) if n]
    running: list[tuple[int, int, int]] = []
    ends: dict[tuple[int, int], int] = {}
    starts: dict[tuple[int, int], int] = {}
    clock = 0

    def complete():
        some = any if wrong == "any sample" else all
        return [g for g, samples in enumerate(groups) if some(not n or (g, s) in ends for s, n in enumerate(samples))]

    while len(complete()) < target:
        while line and (len(running) < places or wrong == "at once"):
            g, s = line.pop(0)
            starts[g, s] = clock
            heapq.heappush(running, (clock + groups[g][s], g, s))
        clock = running[0][0]
        while running and running[0][0] == clock:
            _, g, s = heapq.heappop(running)
            ends[g, s] = clock
    done = complete()
    if wrong == "exactly":
        done = done[:target]
    rest = {}
    for g, samples in enumerate(groups):
        if g not in done:
            wrote = [min(n, clock - starts.get((g, s), clock)) for s, n in enumerate(samples)]
            rest[g] = [n - (0 if wrong == "lost" else w) for n, w in zip(samples, wrote, strict=True)]
    return [clock, done, rest]


def _play_wrongly(wrong, groups, places, target):
    return tuple(_play(groups, places, target, wrong))


def _triple(answer):
    def run(*args):
        out = answer(*args)
        return [out[0], list(out[1]), out[2]] if isinstance(out, tuple) and len(out) == 3 else out

    return run


def _play_cases():
    return [
        ([[1, 2], [3, 1], [9, 9]], 3, 2),
        ([[4, 1, 1], [2, 2, 2], [1, 1, 1]], 4, 2),
        ([[0, 0], [5, 1]], 1, 1),
        ([[2], [2], [2], [7]], 2, 3),
        ([[0, 6], [3, 0], [2, 2]], 2, 2),
        ([[1, 9], [2, 2], [2, 2]], 6, 1),
    ]


def _ages(writing, trained, limit, pick=min, strict=False, all_kept=False):
    dropped = largest = 0
    for versions, now in zip(writing, trained, strict=True):
        age = now - pick(versions)
        gone = age >= limit if strict else age > limit
        dropped += gone
        if all_kept or not gone:
            largest = max(largest, age)
    return [dropped / len(writing), largest]


def _pair(answer):
    def run(*args):
        out = answer(*args)
        return list(out) if isinstance(out, tuple) else out

    return run


def _engines(chips, per_engine, engine_rate, tokens, train_s, train_chips, wrong=""):
    best = None
    for n in range(1, chips):
        rest = chips - n * per_engine
        if rest < 1:
            break
        sides = (tokens / engine_rate / n, train_s / (rest / train_chips))
        time = sum(sides) if wrong == "in turn" else sides[0] if wrong == "rollout only" else max(sides)
        if best is None or time < best[1]:
            best = [n, time]
    return best


EXERCISES = [
    Exercise(
        "scale_07.play",
        _play,
        _play_cases,
        (
            Mistake(
                partial(_play_wrongly, "any sample"),
                "A group is complete when all its samples are, not the first.",
            ),
            Mistake(
                partial(_play_wrongly, "at once"),
                "Only `places` requests run at once; the others wait in line.",
            ),
            Mistake(
                partial(_play_wrongly, "lost"),
                "Stopped groups keep what they wrote: give what is still to write.",
            ),
            Mistake(
                partial(_play_wrongly, "exactly"),
                "All groups that are complete after the last tick count, even if that is more than the target.",
            ),
        ),
        "A line of (group, sample) with tokens left; each tick the first `places` write; empty groups are done.",
        use=_triple,
        hints=(
            "Keep the tokens left of every sample, and one line of those that still have some.",
            "A tick: the first `places` of the line write one; then drop from the line those that have none left.",
            "Groups that begin complete count before the first tick; check the target before each tick.",
        ),
    ),
    Exercise(
        "scale_07.ages",
        _ages,
        lambda: [
            ([[3, 4], [5], [1, 2, 5]], [5, 5, 6], 2),
            ([[0]], [9], 3),
            ([[2, 2], [1, 3]], [4, 4], 2),
            ([[7], [7]], [7, 8], 0),
            ([[3], [4, 1]], [4, 6], 3),
        ],
        (
            Mistake(partial(_ages, pick=max), "The oldest token counts: the smallest version that it wrote under."),
            Mistake(partial(_ages, strict=True), "A group exactly at the limit is kept; only older ones are dropped."),
            Mistake(partial(_ages, all_kept=True), "The largest age is asked among the groups that are kept."),
        ),
        "age = trained − min(versions); kept where age <= limit.",
        use=_pair,
        hints=(
            "One age a group first.",
            "min(versions) is the oldest; kept are those with an age of at most `limit`.",
            "1 − len(kept)/len(all), and max(kept, default=0).",
        ),
    ),
    Exercise(
        "scale_07.engines",
        _engines,
        lambda: [
            (64, 4, 2000.0, 1e6, 60.0, 16),
            (1000, 8, 5000.0, 5e7, 100.0, 512),
            (9, 8, 1.0, 10.0, 1.0, 1),
            (10, 1, 1.0, 6.0, 6.0, 1),
            (3, 1, 1.0, 2.0, 2.0, 1),  # one engine or two: the same
        ],
        (
            Mistake(partial(_engines, wrong="in turn"), "Both sides run beside each other: the slower one counts."),
            Mistake(
                partial(_engines, wrong="rollout only"), "The trainer gets the chips that are left, and needs some."
            ),
        ),
        "For every number of engines max(tokens/(n·rate), train_s·train_chips/(chips − n·per_engine)); the least.",
        use=_pair,
        hints=(
            "Write a batch's time as a function of the number of engines.",
            "n engines leave chips − n·per_engine for training, at least one.",
            "min over range(1, (chips − 1)//per_engine + 1): min takes the first of equal ones, the fewest engines.",
        ),
    ),
]
